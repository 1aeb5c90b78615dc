"""The nursery and what is forked from it: who lives on when something dies, shown with real processes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import zoo
from tests.support import Running, alive, toy, wait_until

FRAME = np.zeros((8, 8, 3), np.uint8)

Start = Callable[..., Running]


def nurseries(running: Running) -> list[int]:
    """One or none. A worker that has just been forked has the name as well, but no session of its own."""
    found = []
    for pid in running.processes():
        try:
            if Path(f"/proc/{pid}/comm").read_text().strip() == "zoo-nursery" and parent(pid) == running.pid:
                found += [pid] if os.getsid(pid) == pid else []
        except OSError:
            continue
    return found


def nursery(running: Running, other_than: int = 0) -> int:
    (pid,) = wait_until(lambda: nurseries(running) not in ([], [other_than]) and nurseries(running), what="a nursery")
    return pid


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def children(pid: int) -> list[int]:
    """Also those that are not buried yet."""
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def test_loaded_models_outlive_their_nursery_and_another_takes_its_place(broker: Start) -> None:
    running = broker([toy("one"), toy("two")])
    client = running.client()
    pid = client.infer("one", FRAME)["pid"]
    old = nursery(running)
    assert parent(pid) == old
    os.kill(old, signal.SIGKILL)
    nursery(running, other_than=old)
    assert client.infer("one", FRAME)["pid"] == pid
    assert parent(client.infer("two", FRAME)["pid"]) == nursery(running), "forked in the same way"
    wait_until(lambda: running.log().count("the nursery: it has ended (killed by SIGKILL)") == 1)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: client.get_status()["workers"] == 1, what="its end is noticed, with only the broker to reap it")
    assert any("killed by SIGKILL" in line for line in client.explain("one"))
    assert not Path(f"/proc/{pid}").exists(), "it is buried"


@pytest.mark.parametrize("doing", ["x", "hang-gil", "hang-python"])
def test_nothing_outlives_the_broker_when_it_is_killed_together_with_the_nursery(broker: Start, doing: str) -> None:
    running = broker([toy("busy"), toy("idle")], standby=2)
    client = running.client()
    pids = [client.infer(name, FRAME)["pid"] for name in ("busy", "idle")]

    def ask() -> None:
        with pytest.raises(zoo.ZooError):
            client.infer("busy", FRAME, do=doing, timeout=9)

    call = threading.Thread(target=ask)
    if doing != "x":
        call.start()
        wait_until(lambda: any(row["inflight"] for row in client.processes()))
    os.kill(nursery(running), signal.SIGKILL)
    running.kill()  # which sees everything gone
    wait_until(lambda: not any(alive(pid) for pid in pids))
    if doing != "x":
        call.join(15)


def test_what_is_left_of_an_adapter_goes_with_its_worker_also_from_another_session(broker: Start) -> None:
    running = broker([toy()])
    client = running.client()
    before = len(running.processes())
    client.infer("toy", FRAME, do="fork-away", flag=str(running.folder / "flag"))
    assert len(running.processes()) == before + 2, "the worker and what left it"
    client.unload("toy")
    wait_until(lambda: len(running.processes()) == before, what="both are gone")
    wait_until(lambda: not children(nursery(running)), what="and buried")


def test_a_refused_fork_fails_that_start_alone(broker: Start) -> None:
    running = broker([toy("one"), toy("two")], preload=["tests.meddling"])
    client = running.client()
    pid = client.infer("one", FRAME)["pid"]
    old = nursery(running)
    (running.folder / "refuse").touch()
    with pytest.raises(zoo.LoadFailed, match="no process could be forked: Resource temporarily unavailable") as failed:
        client.infer("two", FRAME)
    assert failed.value.retryable
    assert client.infer("one", FRAME)["pid"] == pid
    (running.folder / "refuse").unlink()
    wait_until(lambda: attempt(client, "two"), what="forks are allowed again")
    assert nursery(running) == old


def attempt(client: zoo.Client, model: str) -> bool:
    try:
        return bool(client.infer(model, FRAME)["pid"])
    except zoo.LoadFailed:
        return False


def test_a_start_in_the_hands_of_a_dying_nursery_is_made_again_and_no_failed_load(broker: Start) -> None:
    running = broker([toy()], preload=["tests.meddling"])
    client = running.client()
    before = len(running.processes())
    (running.folder / "die").touch()
    assert client.infer("toy", FRAME)["mean"] == 0
    wait_until(lambda: "ended (killed by SIGKILL)" in running.log())
    assert not any("failed" in line for line in client.explain("toy"))
    wait_until(lambda: len(running.processes()) == before + 1, what="what the first one had forked is gone")


def test_a_worker_without_a_pidfd_is_ended_and_its_end_is_noticed(broker: Start) -> None:
    running = broker([toy(dispatch_timeout=0.3)], preload=["tests.meddling"], start=False)
    (running.folder / "unnamed").touch()
    client = running.start().client()
    pids = [client.infer("toy", FRAME)["pid"]]
    with pytest.raises(zoo.WorkerHung):
        client.infer("toy", FRAME, do="hang-python")
    pids.append(client.infer("toy", FRAME)["pid"])
    os.kill(pids[1], signal.SIGKILL)
    wait_until(lambda: client.get_status()["workers"] == 0)
    pids.append(client.infer("toy", FRAME)["pid"])
    os.kill(nursery(running), signal.SIGKILL)
    os.kill(pids[2], signal.SIGKILL)
    wait_until(lambda: client.get_status()["workers"] == 0, what="also without the nursery")
    assert not any(alive(pid) for pid in pids)


DEADLY = {
    "dies": "import os\nos.kill(os.getpid(), 11)\n",
    "leaves": "import os\nos._exit(3)\n",
    "hangs": "import time\ntime.sleep(3600)\n",
    "threads": "import threading, time\nthreading.Thread(target=time.sleep, args=(3600,), daemon=True).start()\n",
}
SAYS = {
    "dies": "its import ends it (killed by SIGSEGV)",
    "leaves": "its import ends it (exit status 3)",
    "hangs": "its import takes more than 3 s",
    "threads": "it starts a thread when it is imported",
}


@pytest.mark.parametrize("how", ["dies", "hangs", "threads", pytest.param("leaves", marks=pytest.mark.slow)])
def test_what_an_import_does_to_the_nursery_it_does_once(broker: Start, how: str) -> None:
    running = broker([toy()], preload=["tests.metered", "deadly", "json"], module="tests.hurried", start=False)
    (running.folder / "deadly.py").write_text(DEADLY[how])
    client = running.start().client()
    assert client.infer("toy", FRAME)["mean"] == 0
    wait_until(lambda: f"deadly is left out from now on, {SAYS[how]}" in running.log())
    os.kill(nursery(running), signal.SIGKILL)
    client.unload("toy")
    assert client.infer("toy", FRAME)["mean"] == 0
    wait_until(lambda: running.log().count("is left out") == 1)


def test_a_module_during_whose_import_the_nursery_is_killed_is_not_blamed_at_once(broker: Start) -> None:
    running = broker([toy()], preload=["slow"], start=False)
    (running.folder / "slow.py").write_text("import os, time\nopen('began', 'w').close()\ntime.sleep(1)\n")
    client = running.start().client()
    began = running.folder / "began"
    wait_until(began.exists)
    os.kill(nursery(running), signal.SIGKILL)
    assert client.infer("toy", FRAME)["mean"] == 0
    wait_until(lambda: "while it imported slow" in running.log())
    assert "left out" not in running.log()


def test_a_nursery_that_hangs_is_replaced(broker: Start) -> None:
    running = broker([toy("one"), toy("two")], module="tests.hurried")
    client = running.client()
    pid = client.infer("one", FRAME)["pid"]
    old = nursery(running)
    os.kill(old, signal.SIGSTOP)
    assert client.infer("two", FRAME)["mean"] == 0
    assert nursery(running) != old
    assert client.infer("one", FRAME)["pid"] == pid
    os.kill(nursery(running), signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: client.get_status()["workers"] == 1, what="an end that it does not tell is noticed")


def test_a_drain_survives_a_signal_to_the_whole_tree(broker: Start) -> None:
    """As systemd sends it by default."""
    running = broker([toy("one"), toy("two")], drain_seconds=10, standby=1)
    client = running.client()
    for name in ("one", "two"):
        client.infer(name, FRAME)
    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(client.infer, name, FRAME, do="sleep", seconds=1.0) for name in ("one", "two")]
        wait_until(lambda: client.get_status()["running"] == 2)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            for pid in running.processes():
                if pid != running.pid or number == signal.SIGTERM:
                    os.kill(pid, number)
        assert [call.result()["mean"] for call in calls] == [0, 0]
    assert running.process is not None
    assert running.process.wait(10) == 0


def test_what_an_adapter_starts_can_be_asked_to_end(broker: Start) -> None:
    client = broker([toy()]).client()
    assert client.infer("toy", FRAME, do="start-and-end") == {"forked": -signal.SIGTERM, "run": -signal.SIGTERM}


def test_an_orphan_of_a_worker_is_ended_with_it_also_when_the_nursery_died_before(broker: Start) -> None:
    running = broker([toy()])
    client = running.client()
    before = len(running.processes())
    pid = client.infer("toy", FRAME, do="fork-away", flag=str(running.folder / "flag"))["pid"]
    old = nursery(running)
    os.kill(old, signal.SIGKILL)
    nursery(running, other_than=old)
    wait_until(lambda: parent(pid) == running.pid)
    client.unload("toy")
    wait_until(lambda: len(running.processes()) == before, what="both are gone")
    wait_until(lambda: children(running.pid) == [nursery(running)], what="and buried")


def test_under_load_no_death_of_a_nursery_costs_an_answer(broker: Start) -> None:
    running = broker([toy("warm"), *(toy(f"m{i}") for i in range(3))], standby=1)
    client = running.client()
    client.infer("warm", FRAME)
    ending = threading.Event()

    def ask() -> int:
        asked = 0
        while not ending.is_set():
            assert client.infer("warm", FRAME + asked % 200)["mean"] == asked % 200
            asked += 1
        return asked

    def load(name: str) -> int:
        loads = 0
        while not ending.is_set():
            assert client.infer(name, FRAME)["mean"] == 0
            client.unload(name)
            loads += 1
        return loads

    with ThreadPoolExecutor(4) as threads:
        asking = threads.submit(ask)
        loading = [threads.submit(load, f"m{i}") for i in range(3)]
        killed = 0
        try:
            for _ in range(3):
                killed = nursery(running, other_than=killed)
                loads = running.log().count("loaded in")
                wait_until(lambda: running.log().count("loaded in") > loads + 3, what="models are loaded")  # noqa: B023
                os.kill(killed, signal.SIGKILL)
        finally:
            ending.set()
        assert asking.result()
        assert sum(load.result() for load in loading)
    assert client.get_status()["requests"] == 0
