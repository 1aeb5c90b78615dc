"""The claim on an endpoint: whose the files are, who may connect, and what cleaners of temporary folders may do."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from broker.front import endpoint, listening
from tests import support
from tests.support import Running, wait_until
from zoo import Client
from zoo.errors import ConfigError

FRAME = np.zeros((4, 4, 3), np.uint8)
NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can play another user")


def second(running: Running) -> subprocess.CompletedProcess[str]:
    """Another broker on the same endpoint, which has to end at once."""
    command = [sys.executable, "-m", "zoo.broker", "--config", str(running.config_path)]
    env = {**os.environ, "PYTHONPATH": str(support.ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=30, env=env, check=False)


@pytest.fixture
def place(zoo_dir: Path) -> Iterator[endpoint.Place]:
    made = endpoint.claim(f"ipc://{zoo_dir}/b")
    sockets = [made.listen(made.front, socket.SOCK_STREAM), made.listen(made.handoff, socket.SOCK_SEQPACKET)]
    yield made
    for sock in sockets:
        sock.close()
    made.release()


def not_again(path: str) -> None:
    raise AssertionError(f"{path} is still there")


# ---------------------------------------------------------------- over real processes


def test_a_removed_lock_lets_no_second_broker_in_and_is_restored(broker: Callable[..., Running]) -> None:
    running = broker()
    with running.client() as zoo:
        assert zoo.infer("toy", FRAME)
        lock = running.folder / "b.lock"
        lock.unlink()
        refused = second(running)
        assert refused.returncode == 2
        assert f"(process {running.pid}) serves {running.endpoint} already" in refused.stderr
        wait_until(lambda: lock.exists() and lock.read_text() == str(running.pid), what="the lock is restored")
        assert zoo.infer("toy", FRAME)
    refused = second(running)
    assert f"a broker (process {running.pid}) serves" in refused.stderr
    with running.client() as zoo:
        assert zoo.infer("toy", FRAME)


@pytest.mark.parametrize("what", ["the sockets", "the whole folder"])
def test_removed_sockets_come_back_and_who_is_connected_stays_served(
    broker: Callable[..., Running], what: str, zoo_dir: Path
) -> None:
    running = broker(endpoint=f"ipc://{zoo_dir}/run/b")
    folder = zoo_dir / "run"
    with running.client() as old:
        assert old.infer("toy", FRAME)
        for file in list(folder.iterdir()):
            if what == "the whole folder" or file.name != "b.lock":
                file.unlink()
        if what == "the whole folder":
            folder.rmdir()
        wait_until(lambda: {"b", "b.handoff", "b.lock"} <= set(os.listdir(folder)) if folder.exists() else False)
        assert old.infer("toy", FRAME)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "b").stat().st_mode) == 0o600
        with running.client() as new:
            assert new.infer("toy", FRAME)["pid"] == old.infer("toy", FRAME)["pid"]
    running.stop()
    assert os.listdir(folder) == []


def test_the_files_of_another_broker_are_not_removed_at_the_end(broker: Callable[..., Running]) -> None:
    running = broker()
    names = ["b", "b.handoff", "b.lock"]
    kept = []
    for name in names:  # as a second broker would have left them, had it come to that
        other = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        other.bind(f"{running.folder}/new")
        other.listen()
        os.rename(running.folder / "new", running.folder / name)
        kept.append(other)
    assert running.process is not None
    running.process.terminate()
    assert running.process.wait(20.0) == 0
    assert sorted(n for n in os.listdir(running.folder) if n[:1] == "b") == names
    for name, other in zip(names, kept, strict=True):
        other.close()
        (running.folder / name).unlink()


def test_a_broker_after_a_killed_one_takes_its_endpoint_over(broker: Callable[..., Running]) -> None:
    running = broker()
    running.kill()
    assert (running.folder / "b").exists()
    running.start()
    with Client(running.endpoint, timeout=20.0, arena_mb=8) as zoo:
        assert zoo.infer("toy", FRAME)


def test_an_endpoint_that_cannot_be_bound_is_said_in_a_line(broker: Callable[..., Running]) -> None:
    running = broker(start=False)
    (running.folder / "b").write_text("the user's own")
    refused = second(running)
    assert refused.returncode == 2
    assert "is not a socket" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert (running.folder / "b").read_text() == "the user's own"
    assert not (running.folder / "b.lock").exists()
    (running.folder / "b").unlink()


# ---------------------------------------------------------------- the claim alone


def test_a_socket_is_private_from_its_first_moment(zoo_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "chmod", lambda *_, **__: pytest.fail("too late: it was open until now"))
    mask = os.umask(0)
    try:
        for name, kind in (("a", socket.SOCK_STREAM), ("b", socket.SOCK_SEQPACKET)):
            with listening.listen(f"{zoo_dir}/{name}", kind, 1):
                assert stat.S_IMODE(os.lstat(zoo_dir / name).st_mode) == 0o600
    finally:
        os.umask(mask)


def test_files_are_kept_too_fresh_for_cleaners(place: endpoint.Place) -> None:
    names = [place.front, place.handoff, f"{place.front}.lock"]
    for name in names:
        os.utime(name, (1, 1), follow_symlinks=False)
    place.keep(0.0, not_again)
    assert all(os.lstat(name).st_mtime > 1e9 for name in names)


def test_a_lock_that_others_may_open_is_closed_to_them(zoo_dir: Path) -> None:
    (zoo_dir / "b.lock").touch(0o666)
    (zoo_dir / "b.lock").chmod(0o666)
    made = endpoint.claim(f"ipc://{zoo_dir}/b")
    assert stat.S_IMODE((zoo_dir / "b.lock").stat().st_mode) == 0o600
    made.release()


def test_a_lock_under_a_second_name_is_not_ours(zoo_dir: Path) -> None:
    (zoo_dir / "precious").write_text("data")
    os.link(zoo_dir / "precious", zoo_dir / "b.lock")
    with pytest.raises(ConfigError, match=r"b\.lock was not made by a broker"):
        endpoint.claim(f"ipc://{zoo_dir}/b")
    assert (zoo_dir / "precious").read_text() == "data"


@pytest.mark.parametrize("what", ["a pipe", "a link", "a folder"])
def test_a_lock_that_is_no_file_is_refused_at_once(zoo_dir: Path, what: str) -> None:
    (zoo_dir / "precious").write_text("data")
    lock = zoo_dir / "b.lock"
    {"a pipe": os.mkfifo, "a link": lambda p: p.symlink_to(zoo_dir / "precious"), "a folder": os.mkdir}[what](lock)
    with pytest.raises(ConfigError):
        endpoint.claim(f"ipc://{zoo_dir}/b")
    assert (zoo_dir / "precious").read_text() == "data"


def test_a_folder_that_is_a_link_is_refused(zoo_dir: Path) -> None:
    (zoo_dir / "real").mkdir(0o700)
    (zoo_dir / "link").symlink_to(zoo_dir / "real")
    with pytest.raises(ConfigError, match="symbolic link"):
        endpoint.claim(f"ipc://{zoo_dir}/link/b")
    assert os.listdir(zoo_dir / "real") == []


@as_root
@pytest.mark.parametrize("name", ["", "b", "b.lock"])
def test_what_another_user_made_beforehand_is_not_used(zoo_dir: Path, name: str) -> None:
    folder = zoo_dir / "f"
    folder.mkdir(0o1777)
    folder.chmod(0o1777)
    if name == "b":
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(folder / name))
    elif name:
        (folder / name).touch(0o666)
    os.chown(folder / name, NOBODY, NOBODY)
    with pytest.raises(ConfigError, match=r"another user|belongs to user|was not made by"):
        endpoint.claim(f"ipc://{folder}/b")
    assert not name or (folder / name).lstat().st_uid == NOBODY


def test_a_folder_where_others_write_is_refused(zoo_dir: Path) -> None:
    (zoo_dir / "f").mkdir()
    (zoo_dir / "f").chmod(0o770)
    with pytest.raises(ConfigError, match="others may write"):
        endpoint.claim(f"ipc://{zoo_dir}/f/b")


def test_an_unbindable_path_is_an_error_and_leaves_nothing(zoo_dir: Path) -> None:
    made = endpoint.claim(f"ipc://{zoo_dir}/b")
    with pytest.raises(OSError, match="too long"):
        made.listen(f"{zoo_dir}/{'x' * 120}", socket.SOCK_STREAM)
    made.release()
    assert os.listdir(zoo_dir) == []
