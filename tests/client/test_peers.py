"""Whose broker it is: a client sends nothing to a process of another user, unless that user was named."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq

from tests import support
from tests.support import Running, as_user
from zoo import Client
from zoo.client import peers
from zoo.config.address import Address, find_address
from zoo.errors import AccessDenied, BrokerUnreachable, ConfigError
from zoo.wire import protocol

FRAME = np.zeros((4, 4, 3), np.uint8)
NOBODY = 65534
STRANGER = 61_000 + os.getpid() % 4_000  # has no name, and its folder in /tmp is not that of another run's
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="only root can play another user"
)
Start = Callable[..., Running]


@pytest.fixture
def theirs(broker: Start) -> Running:
    """The broker of another user, where this one would look."""
    running = broker(start=False, before=as_user(NOBODY), state_dir="state")
    os.chown(running.folder, NOBODY, NOBODY)
    return running.start()


def ask(endpoint: str, uid: int, **environment: str) -> subprocess.CompletedProcess[str]:
    """A client of some user, which says how many sessions the broker has."""
    code = "import sys, zoo; print(zoo.Client(sys.argv[1] or None, timeout=10).get_status()['sessions'])"
    return subprocess.run(
        [*as_user(uid), sys.executable, "-c", code, endpoint],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd="/",
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(support.ROOT), **environment},
    )


# ---------------------------------------------------------------- over real processes


def test_a_broker_of_another_user_gets_no_word(theirs: Running) -> None:
    with (
        Client(theirs.endpoint, timeout=20.0, arena_mb=8) as zoo,
        pytest.raises(AccessDenied, match=r"user 65534 \(nobody\)"),
    ):
        zoo.infer("toy", FRAME)
    own = ask(theirs.endpoint, NOBODY)
    assert own.stdout == "1\n", own.stderr  # that client's own: the other one has not even said Hello


def test_a_broker_of_a_named_user_is_believed(theirs: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_SERVER_USER", "nobody")
    with Client(theirs.endpoint, timeout=20.0, arena_mb=8) as zoo:
        zoo.frame(FRAME.shape).__exit__(None, None, None)  # in an arena that its lifeline took
        assert zoo.get_status()["sessions"]
    monkeypatch.delenv("ZOO_SERVER_USER")
    file = theirs.folder / "client.toml"
    file.write_text(f'[broker]\nendpoint = "{theirs.endpoint}"\nuser = "nobody"')
    monkeypatch.setenv("ZOO_CONFIG", str(file))
    with Client(timeout=20.0) as zoo:
        zoo.frame(FRAME.shape).__exit__(None, None, None)  # in an arena that its lifeline took
        assert zoo.get_status()["sessions"]


def test_a_broker_that_does_not_let_this_user_in_is_said_at_once(broker: Start) -> None:
    running = broker()
    running.folder.chmod(0o755)
    asked = ask(running.endpoint, STRANGER)
    assert "AccessDenied: this user may not connect to" in asked.stderr


def test_a_lifeline_to_another_user_is_not_taken(theirs: Running, zoo_dir: Path) -> None:
    """A front that may be believed, or seems so, names the lifeline of one that may not."""
    context = zmq.Context[zmq.Socket[bytes]]()
    front = context.socket(zmq.ROUTER)
    front.setsockopt(zmq.LINGER, 0)
    front.bind(f"ipc://{zoo_dir}/b")
    os.chmod(theirs.folder, 0o755)

    def answer() -> None:
        identity, _ = front.recv_multipart()
        front.send_multipart([identity, protocol.pack(protocol.Welcome(f"{theirs.folder}/b.handoff", 1 << 20, "x"))])

    answering = threading.Thread(target=answer)
    answering.start()
    try:
        with Client(f"ipc://{zoo_dir}/b", timeout=20.0) as zoo, pytest.raises(AccessDenied, match="is served by"):
            zoo.get_status()
    finally:
        answering.join()
        front.close()
        context.term()


@pytest.mark.parametrize(("theirs_has", "ours_has"), [(True, False), (False, True), (True, True)])
def test_broker_and_client_agree_on_the_default_without_the_variable_on_one_side(
    broker: Start, zoo_dir: Path, theirs_has: bool, ours_has: bool
) -> None:
    """The runtime directory differs, or one side knows of none."""
    for name in ("one", "two"):
        (zoo_dir / name).mkdir(0o700)
        os.chown(zoo_dir / name, STRANGER, STRANGER)
    zoo_dir.chmod(0o755)
    one, two = ({"XDG_RUNTIME_DIR": str(zoo_dir / name)} for name in ("one", "two"))
    environment = one if theirs_has else {}
    running = broker(start=False, endpoint="", before=as_user(STRANGER), environment=environment, state_dir="state")
    os.chown(running.folder, STRANGER, STRANGER)
    running.start()
    try:
        asked = ask("", STRANGER, **(two if ours_has else {}))
        assert asked.stdout == "1\n", asked.stderr
        again = subprocess.run(
            [*as_user(STRANGER), sys.executable, "-m", "zoo.broker", "--config", str(running.config_path)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(support.ROOT)},
        )
        assert f"a broker (process {running.pid}) serves" in again.stderr  # the default of those without the variable
        running.stop()
        assert os.listdir(f"/tmp/zoo-{STRANGER}") == []
    finally:
        support.remove(Path(f"/tmp/zoo-{STRANGER}"))


# ---------------------------------------------------------------- the look alone


@pytest.fixture
def listener(zoo_dir: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"{zoo_dir}/b")
        sock.listen()
        yield sock


def find(endpoint: str, others: tuple[str, ...] = ()) -> str | None:
    return peers.find_server(Address(endpoint, others=others), 0.0, threading.Event())


def test_a_process_that_may_be_believed_is_found(zoo_dir: Path, listener: socket.socket) -> None:
    assert find(f"ipc://{zoo_dir}/b") == f"ipc://{zoo_dir}/b"
    assert find("tcp://127.0.0.1:1") == "tcp://127.0.0.1:1"
    assert find(f"ipc://{zoo_dir}/none/b", (f"ipc://{zoo_dir}/b",)) == f"ipc://{zoo_dir}/b"
    listener.close()
    assert find(f"ipc://{zoo_dir}/b") is None


@pytest.mark.parametrize("what", ["its folder", "its socket"])
def test_what_another_user_made_is_refused_whether_or_not_it_answers(
    zoo_dir: Path, listener: socket.socket, what: str
) -> None:
    os.chown(zoo_dir if what == "its folder" else zoo_dir / "b", STRANGER, STRANGER)
    with pytest.raises(AccessDenied, match=rf"belongs to user {STRANGER}.*ZOO_SERVER_USER={STRANGER}"):
        find(f"ipc://{zoo_dir}/b")
    if what == "its folder":
        with pytest.raises(AccessDenied):
            find(f"ipc://{zoo_dir}/none")


def test_a_folder_where_others_write_is_refused_unless_it_is_sticky(zoo_dir: Path, listener: socket.socket) -> None:
    zoo_dir.chmod(0o777)
    with pytest.raises(AccessDenied, match="others may write"):
        find(f"ipc://{zoo_dir}/b")
    zoo_dir.chmod(0o1777)
    assert find(f"ipc://{zoo_dir}/b")


def test_a_folder_that_is_a_link_is_refused(zoo_dir: Path, listener: socket.socket) -> None:
    (zoo_dir / "link").symlink_to(zoo_dir)
    with pytest.raises(AccessDenied, match="symbolic link"):
        find(f"ipc://{zoo_dir}/link/b")


def test_a_link_to_a_socket_is_followed_once_and_looked_at_there(zoo_dir: Path, listener: socket.socket) -> None:
    (zoo_dir / "one").mkdir(0o700)
    (zoo_dir / "one" / "b").symlink_to(zoo_dir / "b")
    assert find(f"ipc://{zoo_dir}/one/b") == f"ipc://{zoo_dir}/b"
    (zoo_dir / "two").symlink_to(zoo_dir / "one" / "b")
    with pytest.raises(AccessDenied, match="not a socket"):
        find(f"ipc://{zoo_dir}/two")
    os.chown(zoo_dir / "one" / "b", STRANGER, STRANGER, follow_symlinks=False)
    with pytest.raises(AccessDenied, match="belongs to user"):
        find(f"ipc://{zoo_dir}/one/b")


def test_a_strangers_folder_is_passed_over_where_the_broker_may_be_elsewhere(
    zoo_dir: Path, listener: socket.socket
) -> None:
    (zoo_dir / "theirs").mkdir()
    os.chown(zoo_dir / "theirs", STRANGER, STRANGER)
    assert find(f"ipc://{zoo_dir}/theirs/b", (f"ipc://{zoo_dir}/b",)) == f"ipc://{zoo_dir}/b"
    listener.close()
    with pytest.raises(AccessDenied, match="belongs to user"):
        find(f"ipc://{zoo_dir}/theirs/b", (f"ipc://{zoo_dir}/b",))


def test_who_serves_is_asked_of_the_kernel() -> None:
    one, two = socket.socketpair()
    with one, two:
        peers.check_server(one, frozenset({os.geteuid()}), "x")
        with pytest.raises(AccessDenied, match="x is served by user 0"):
            peers.check_server(one, frozenset({STRANGER}), "x")


# ---------------------------------------------------------------- where it was looked for


def test_no_broker_is_said_with_the_place_and_how_it_was_found(zoo_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(given: str | None = None) -> str:
        with Client(given, timeout=0.05) as zoo, pytest.raises(BrokerUnreachable) as caught:
            zoo.get_status()
        return str(caught.value)

    monkeypatch.chdir(zoo_dir)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(zoo_dir / "run"))
    assert f"no broker answers at ipc://{zoo_dir}/run/zoo/broker (the default) within" in said()
    (zoo_dir / "config.toml").write_text(f'[broker]\nendpoint = "ipc://{zoo_dir}/c"')
    assert f"no broker answers at ipc://{zoo_dir}/c (from {zoo_dir}/config.toml)" in said()
    monkeypatch.setenv("ZOO_ENDPOINT", f"ipc://{zoo_dir}/e")
    assert f"no broker answers at ipc://{zoo_dir}/e (from $ZOO_ENDPOINT)" in said()
    assert f"no broker answers at ipc://{zoo_dir}/g (the endpoint that was given)" in said(f"ipc://{zoo_dir}/g")


@pytest.mark.parametrize(
    "text",
    [
        "[database]\nhost = 'x'",
        "[broker]\nendpoint = 'amqp://rabbit'\nuser = 'guest'",
        "[broker]\nhost = 'mqtt'",
        "broker = 'redis'",
        "not TOML at all",
        b"\xff\xfe",
        None,
    ],
)
def test_a_config_toml_of_another_program_is_no_matter(
    zoo_dir: Path, monkeypatch: pytest.MonkeyPatch, text: str | bytes | None
) -> None:
    monkeypatch.chdir(zoo_dir)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(zoo_dir / "run"))
    file = zoo_dir / "config.toml"
    if text is None:
        os.mkfifo(file)
    else:
        file.write_bytes(text.encode() if isinstance(text, str) else text)
    assert find_address() == f"ipc://{zoo_dir}/run/zoo/broker"
    Client().close()


def test_a_config_toml_of_another_user_is_not_believed(zoo_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(zoo_dir)
    file = zoo_dir / "config.toml"
    file.write_text('[broker]\nendpoint = "ipc:///tmp/trap"\nuser = "nobody"')
    assert find_address() == "ipc:///tmp/trap"
    os.chown(file, STRANGER, STRANGER)
    assert find_address() != "ipc:///tmp/trap"
    assert NOBODY not in find_address().owners
    assert "is not read" in find_address().how


def test_a_server_user_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_SERVER_USER", "no-such-user")
    with pytest.raises(ConfigError, match="no-such-user"):
        Client("ipc:///tmp/x")


def test_a_client_waits_for_a_broker_that_is_still_starting(broker: Start) -> None:
    running = broker(start=False)
    heard: list[object] = []
    asking = threading.Thread(target=lambda: heard.append(running.client().get_status()))
    asking.start()
    running.start()
    asking.join(20.0)
    assert heard
