"""Who may connect, and who may do what: CURVE keys and their roles, and a Unix group."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq

from broker.front.access import Access
from tests import support
from tests.client.test_peers import NOBODY, STRANGER
from tests.client.test_peers import pytestmark as as_root
from tests.support import Running, as_user, free_port, wait_until
from zoo import Client, curve
from zoo.client import session
from zoo.errors import AccessDenied, BrokerUnreachable, ConfigError, ZooError
from zoo.wire import protocol

FRAME = np.zeros((4, 4, 3), np.uint8)
Start = Callable[..., Running]


class Keys:
    """A broker's `curve_dir`, and the folders of clients who have keys of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        curve.make_keys(folder)
        (folder / "clients" / "client.key").unlink()

    def client(self, name: str) -> Path:
        """A client's folder, with the three files that it gets."""
        made = self.folder.parent / name
        curve.make_keys(made)
        for file in made.glob("server.key*"):
            file.unlink()
        (made / "server.key").write_bytes((self.folder / "server.key").read_bytes())
        return made

    def list(self, name: str, where: str = "clients") -> None:
        (self.folder / where).mkdir(mode=0o700, exist_ok=True)
        (self.folder / where / f"{name}.key").write_bytes((self.folder.parent / name / "client.key").read_bytes())

    def strike(self, name: str, where: str = "clients") -> None:
        (self.folder / where / f"{name}.key").unlink()


class Far:
    """A broker behind tcp://, which knows the keys of `ann` and `bob`."""

    def __init__(self, broker: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        port = free_port()
        self.running = broker(start=False, endpoint=f"tcp://127.0.0.1:{port}", curve_dir="keys")
        self.keys = Keys(self.running.folder / "keys")
        for name in ("ann", "bob"):
            self.keys.client(name)
            self.keys.list(name)

    def client(self, name: str, timeout: float = 20.0) -> Client:
        """Opened at once, with that client's keys."""
        self._patch.setenv("ZOO_CURVE_DIR", str(self.keys.folder.parent / name))
        made = self.running.client(timeout=timeout)
        made.models()
        return made

    def is_refused(self, name: str) -> bool:
        try:
            self.client(name, 0.5).close()
        except BrokerUnreachable:
            return True
        return False


@pytest.fixture
def far(broker: Start, monkeypatch: pytest.MonkeyPatch) -> Far:
    return Far(broker, monkeypatch)


# ---------------------------------------------------------------- keys


@pytest.mark.parametrize("how", ["reload", "SIGHUP"])
def test_a_key_that_is_added_counts_from_the_next_reload_on(far: Far, how: str) -> None:
    far.running.start()
    far.keys.client("eve")
    ann = far.client("ann")
    assert far.is_refused("eve")
    far.keys.list("eve")
    if how == "reload":
        assert "curve_dir: client eve was added" in ann.reload()
    else:
        os.kill(far.running.pid, signal.SIGHUP)
        wait_until(lambda: "client eve was added" in far.running.log())
    assert far.client("eve").infer("toy", FRAME)
    assert ann.reload() == []


def test_a_key_that_is_taken_away_ends_its_sessions_and_its_connections(
    far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    far.running.start()
    bob, ann = far.client("bob", 1.0), far.client("ann")
    lease = bob.load("toy")
    assert ann.get_status()["sessions"] == 2
    far.keys.strike("bob")
    assert "curve_dir: client bob was taken away" in ann.reload()
    assert ann.get_status()["sessions"] == 1
    assert ann.unload("toy")  # the lease went with the session
    for _ in range(3):
        with pytest.raises(ZooError):
            bob.infer("toy", FRAME)
    assert ann.get_status()["sessions"] == 1
    monkeypatch.setenv("ZOO_CURVE_DIR", str(far.keys.folder.parent / "bob"))
    lease.release()
    far.keys.list("bob")
    ann.reload()
    assert wait_until(lambda: not far.is_refused("bob"))


def test_old_connections_of_a_key_that_was_taken_away_are_cut_off(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of its sessions at once, others with the first thing that they say."""
    far.running.start()
    monkeypatch.setenv("ZOO_CURVE_DIR", str(far.keys.folder.parent / "bob"))
    mine, other = session.new_key(), session.new_key()
    sockets = [session.open_socket(key, 0, far.running.endpoint) for key in (mine, other)]
    gone = [sock.get_monitor_socket(zmq.EVENT_DISCONNECTED) for sock in sockets]
    try:
        sockets[0].send(session.hello(mine))
        sockets[1].send(protocol.pack(protocol.Query(1, "status")))  # without a session
        for sock in sockets:
            wait_until(lambda sock=sock: sock.poll(100))  # type: ignore[misc]
            assert sock.recv_multipart()
        ann = far.client("ann")
        far.keys.strike("bob")
        ann.reload()
        assert gone[0].poll(10_000)
        assert not gone[1].poll(0)
        sockets[1].send(session.hello(other))
        assert gone[1].poll(10_000)
        assert sockets[1].poll(0) == 0
        assert ann.get_status()["sessions"] == 1
    finally:
        for sock in sockets:
            sock.disable_monitor()
        for sock in (*gone, *sockets):
            sock.close(0)


def test_another_clients_session_is_not_taken_over(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    far.running.start()
    key = session.new_key()
    sockets = []
    answers = []
    try:
        for number, name in enumerate(("bob", "ann")):
            monkeypatch.setenv("ZOO_CURVE_DIR", str(far.keys.folder.parent / name))
            sockets.append(session.open_socket(key, number, far.running.endpoint))
            sockets[-1].send(session.hello(key))
            assert wait_until(lambda: sockets[-1].poll(100))
            answers.append(protocol.unpack_from_broker(sockets[-1].recv_multipart()[0]))
    finally:
        for sock in sockets:
            sock.close(0)
    assert isinstance(answers[0], protocol.Welcome)
    assert isinstance(answers[1], protocol.Error)
    assert answers[1].code == "access_denied"


@pytest.mark.parametrize(
    "what", ["no key", "half a key", "no Z85", "a pipe", "a folder", "a dangling link", "not text"]
)
def test_a_key_file_that_cannot_be_used_is_left_out_and_the_others_count(
    far: Far, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = far.keys.folder / "clients" / "broken.key"
    made = {
        "no key": lambda: file.write_text("curve\n"),
        "half a key": lambda: file.write_text('public-key = "rq:rM>}U?@Lns47E1%kR"\n'),
        "no Z85": lambda: file.write_text('public-key = "' + "~" * 40 + '"\n'),
        "a pipe": lambda: os.mkfifo(file),
        "a folder": lambda: file.mkdir(),
        "a dangling link": lambda: file.symlink_to("nowhere"),
        "not text": lambda: file.write_bytes(b"public-key\xff = \xfe\n"),
    }
    made[what]()
    ring = Access(far.keys.folder, False)
    assert sorted(ring.clients.values()) == ["ann", "bob"]


def test_a_broken_key_among_the_others_is_said_at_the_start(far: Far) -> None:
    (far.keys.folder / "clients" / "broken.key").write_text("nonsense")
    far.running.start()
    assert far.client("ann").infer("toy", FRAME)
    wait_until(lambda: "broken.key is left out, the others count" in far.running.log())


def test_a_folder_of_keys_where_others_write_is_refused(far: Far) -> None:
    (far.keys.folder / "clients").chmod(0o777)
    with pytest.raises(ConfigError, match="others may write"):
        Access(far.keys.folder, False)


def test_a_folder_that_cannot_be_used_any_more_changes_nothing(far: Far) -> None:
    far.running.start()
    ann = far.client("ann")
    (far.keys.folder / "clients").chmod(0o777)
    with pytest.raises(ConfigError, match="others may write"):
        ann.reload()
    assert ann.infer("toy", FRAME)
    assert far.client("bob").infer("toy", FRAME)


def test_the_help_says_which_files_a_client_gets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        curve.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "three files" in said
    assert "server.key, client.key and client.key_secret. Never give it server.key_secret" in said
    assert "operators" in said
    readme = " ".join((support.ROOT / "README.md").read_text().split())
    assert "`server.key`, `client.key` and `client.key_secret`" in readme
    assert "never `server.key_secret`" in readme


@pytest.mark.parametrize("what", ["the folder", "the secret", "the copy"])
def test_keys_are_not_made_through_a_link_that_another_left(zoo_dir: Path, what: str) -> None:
    keys, elsewhere = zoo_dir / "keys", zoo_dir / "elsewhere"
    elsewhere.mkdir()
    if what == "the folder":
        keys.symlink_to(elsewhere)
    else:
        (keys / "clients").mkdir(parents=True)
        (keys / {"the secret": "server.key_secret", "the copy": "clients/client.key"}[what]).symlink_to(elsewhere / "x")
    assert curve.main([str(keys)]) == 1
    assert os.listdir(elsewhere) == []


@as_root
def test_keys_are_not_made_in_a_folder_of_another_user(zoo_dir: Path) -> None:
    (zoo_dir / "keys").mkdir()
    os.chown(zoo_dir / "keys", STRANGER, STRANGER)
    assert curve.main([str(zoo_dir / "keys")]) == 1
    assert os.listdir(zoo_dir / "keys") == []


# ---------------------------------------------------------------- roles


def test_where_there_are_operators_others_change_nothing_for_all(far: Far) -> None:
    far.keys.list("ann", "operators")
    far.keys.strike("ann")  # an operator need not be listed as a client as well
    far.running.start()
    ann, bob = far.client("ann"), far.client("bob")
    assert bob.infer("toy", FRAME)
    with bob.load("toy"):
        pass
    for what, ask in {
        "pin": lambda: bob.pin("toy"),
        "unpin": lambda: bob.unpin("toy"),
        "unload": lambda: bob.unload("toy"),
        "cleanup_idle_models": lambda: bob.cleanup_idle_models(0.0),
        "reload": bob.reload,
        "logs": bob.logs,
        "record": bob.record,
    }.items():
        with pytest.raises(AccessDenied, match=rf"{what} is for operators: the keys in .*keys/operators"):
            ask()
    assert [row["name"] for row in bob.get_status()["loaded_models"]] == ["toy"]
    ann.pin("toy")
    ann.unpin("toy")
    assert ann.reload() == []
    assert ann.logs("toy")["lines"]
    assert ann.unload("toy")
    assert ann.cleanup_idle_models(0.0) == []


def test_the_requests_of_other_clients_are_explained_to_operators(far: Far) -> None:
    far.keys.list("ann", "operators")
    far.running.start()
    ann, bob = far.client("ann"), far.client("bob")
    numbers = []
    for client in (ann, bob):
        with pytest.raises(ZooError) as failed:
            client.infer("toy", FRAME, do="raise")
        numbers.append(str(failed.value.request))
    of_ann, of_bob = numbers
    assert bob.explain(of_bob)
    with pytest.raises(AccessDenied, match="another client's"):
        bob.explain(of_ann)
    assert ann.explain(of_ann)
    assert ann.explain(of_bob)
    mine, all_of_it = bob.explain("toy"), ann.explain("toy")
    assert any("loaded" in line for line in mine)
    assert any(f"request {of_ann}" in line for line in all_of_it)
    assert not any("request " in line for line in mine)


def test_which_clients_wait_is_told_to_operators(far: Far) -> None:
    far.keys.list("ann", "operators")
    far.running.start()
    ann, bob = far.client("ann"), far.client("bob")
    waiting = [
        threading.Thread(target=ann.infer, args=("toy", FRAME), kwargs={"do": "sleep", "seconds": 1.0}) for _ in "abc"
    ]
    for thread in waiting:
        thread.start()
    (row,) = wait_until(lambda: ann.overview()["waiting"])
    (mine,) = row["clients"]
    assert (mine["pid"], mine["requests"]) == (os.getpid(), row["requests"])
    (row,) = wait_until(lambda: bob.overview()["waiting"])
    assert (row["model"], row["clients"]) == ("toy", [])
    for thread in waiting:
        thread.join()


def test_a_key_becomes_an_operators_with_a_reload(far: Far) -> None:
    far.keys.list("ann", "operators")
    far.running.start()
    ann, bob = far.client("ann"), far.client("bob")
    far.keys.list("bob", "operators")
    far.keys.strike("ann", "operators")
    assert ann.reload() == ["curve_dir: ann: operator is now client", "curve_dir: bob: client is now operator"]
    assert bob.reload() == []
    with pytest.raises(AccessDenied):
        ann.reload()


def test_without_a_folder_of_operators_each_client_may_do_everything(far: Far) -> None:
    far.running.start()
    bob = far.client("bob")
    bob.pin("toy")
    bob.unpin("toy")
    assert bob.reload() == []


# ---------------------------------------------------------------- a group


@pytest.fixture
def shared(broker: Start) -> Iterator[Running]:
    """A broker of a service account, open to the group `users` (100)."""
    running = broker(
        start=False,
        before=as_user(NOBODY, groups=(100,)),
        state_dir="state",
        group="users",
        user="nobody",
        curve_dir="keys",
        endpoint=f"ipc:///tmp/zoo-group-{os.getpid()}/b",
    )
    (running.folder / "keys" / "operators").mkdir(mode=0o700, parents=True)
    for path in (running.folder, running.folder / "keys", running.folder / "keys" / "operators"):
        os.chown(path, NOBODY, NOBODY)
    running.folder.chmod(0o755)
    yield running.start()
    running.close()
    support.remove(Path(running.endpoint.removeprefix("ipc://")).parent)


def does(running: Running, before: list[str], what: str) -> str:
    """What a client of the group says to `what`, in an expression with `zoo` as the client."""
    code = f"import sys, numpy as np; from zoo import Client\nzoo = Client(sys.argv[1], timeout=20)\nprint({what})"
    command = [*before, sys.executable, "-c", code, running.endpoint]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(support.ROOT), "ZOO_SERVER_USER": "nobody"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, cwd="/", check=False)
    return done.stdout + done.stderr


@as_root
@pytest.mark.parametrize("before", [as_user(STRANGER, 100), as_user(STRANGER, groups=(7, 100))])
def test_a_group_may_use_the_broker_of_a_service_account(shared: Running, before: list[str]) -> None:
    path = Path(shared.endpoint.removeprefix("ipc://"))
    for file, mode in ((path, 0o660), (Path(f"{path}.handoff"), 0o660), (path.parent, 0o750)):
        assert stat.S_IMODE(file.stat().st_mode) == mode
        assert file.stat().st_gid == 100
    assert (
        does(shared, before, "zoo.frame((2000, 2000, 3)).array.shape") == "(2000, 2000, 3)\n"
    )  # shared by its lifeline
    assert "AccessDenied: unload is for operators" in does(shared, before, "zoo.unload('toy')")
    assert does(shared, as_user(NOBODY), "zoo.unload('toy')") == "False\n"  # the broker's own user


@as_root
def test_who_is_not_in_the_group_is_turned_away(shared: Running) -> None:
    path = shared.endpoint.removeprefix("ipc://")
    assert "AccessDenied" in does(shared, as_user(STRANGER), "zoo.models()")
    os.chmod(os.path.dirname(path), 0o755)
    os.chmod(f"{path}.handoff", 0o666)
    code = "import sys\nfrom zoo.wire import lifeline as l\nprint(l.receive(l.connect(sys.argv[1], 5))[0].message)"
    command = [*as_user(STRANGER), sys.executable, "-c", code, f"{path}.handoff"]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(support.ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, cwd="/", check=False)
    assert "this broker serves another user" in done.stdout


@as_root
def test_a_broker_under_another_account_than_configured_says_so(broker: Start) -> None:
    running = broker(start=False, user="nobody")
    refused = subprocess.run(
        [sys.executable, "-m", "zoo.broker", "--config", str(running.config_path)],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "PYTHONPATH": str(support.ROOT)},
        check=False,
    )
    assert refused.returncode == 2
    assert "broker.user is 'nobody', but this process is user 0's" in refused.stderr


def test_a_group_that_is_not_there_is_said(zoo_dir: Path) -> None:
    from broker.front import endpoint

    with pytest.raises(ConfigError, match=r"no group 'no-such-group'"):
        endpoint.claim(f"ipc://{zoo_dir}/b", "no-such-group")


@as_root
def test_a_folder_that_the_group_may_not_enter_is_said_with_its_remedy(zoo_dir: Path) -> None:
    from broker.front import endpoint

    with pytest.raises(ConfigError, match=rf"chgrp users {zoo_dir} && chmod 750 {zoo_dir}"):
        endpoint.claim(f"ipc://{zoo_dir}/b", "users")
