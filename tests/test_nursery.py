"""The nursery and what is forked from it: who lives on when something dies, shown with real processes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import zoo
from tests.support import Running, toy, wait_until

FRAME = np.zeros((8, 8, 3), np.uint8)

Start = Callable[..., Running]


def nurseries(running: Running) -> list[int]:
    """One or none; a worker that has just been forked has the name as well."""
    found = []
    for pid in running.processes():
        try:
            if Path(f"/proc/{pid}/comm").read_text().strip() == "zoo-nursery" and parent(pid) == running.pid:
                found.append(pid)
        except OSError:
            continue
    return found


def nursery(running: Running, other_than: int = 0) -> int:
    (pid,) = wait_until(lambda: nurseries(running) not in ([], [other_than]) and nurseries(running), what="a nursery")
    return pid


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


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
    assert running.log().count("the nursery: it has ended (killed by SIGKILL)") == 1
    os.kill(pid, signal.SIGKILL)
    wait_until(
        lambda: client.get_status()["workers"] == 1, what="its end is noticed, with nobody but the broker to reap it"
    )
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
    wait_until(lambda: not any(alive(pid) for pid in pids), 2.0)
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
