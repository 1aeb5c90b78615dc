"""Processes that wait for a model: counted without one, and with real ones."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np

from broker.fleet.roster import PAUSE_FIRST_S, PAUSE_MOST_S, Standby
from tests.support import Running, alive, toy, wait_until

FRAME = np.zeros((8, 8, 3), np.uint8)

Start = Callable[..., Running]


def test_as_many_are_forked_as_are_lacking_and_the_oldest_is_handed_out_first() -> None:
    standby = Standby()
    assert standby.lacks(2, 0.0) == 2
    standby.waiting.append(-1)
    standby.waiting.append(-2)
    assert standby.lacks(2, 0.0) == 0
    assert standby.lacks(1, 0.0) == 0
    assert standby.take() == -1
    assert standby.lacks(2, 0.0) == 1
    assert standby.take() == -2
    assert standby.take() is None


def test_those_that_die_unused_are_replaced_ever_more_slowly_until_one_is_of_use() -> None:
    standby = Standby()
    now, pauses = 0.0, []
    for number in range(-1, -10, -1):
        standby.waiting.append(number)
        standby.lost(number, now)
        assert not standby.waiting
        began = now
        while not standby.lacks(1, now):
            now += 0.5
        pauses.append(now - began)
    assert pauses == [min(PAUSE_FIRST_S * 2**i, PAUSE_MOST_S) for i in range(9)]
    standby.used()
    standby.waiting.append(-10)
    standby.lost(-10, now)
    assert not standby.lacks(1, now)
    assert standby.lacks(1, now + PAUSE_FIRST_S) == 1


def waiting(running: Running) -> list[int]:
    """Process ids of those that wait and have come so far as to say so."""
    found = []
    for pid in running.processes():
        try:
            if Path(f"/proc/{pid}/comm").read_text().strip() == "zoo-standby":
                found.append(pid)
        except OSError:
            continue
    return found


def test_a_load_takes_the_process_that_waits_and_another_takes_its_place(broker: Start) -> None:
    running = broker([toy("one"), toy("two")], standby=1)
    client = running.client()
    for name in ("one", "two"):
        (pid,) = wait_until(lambda: waiting(running), what="a process waits")
        assert client.infer(name, FRAME)["pid"] == pid
    assert len(wait_until(lambda: waiting(running))) == 1
    assert [row["name"] for row in client.processes()] == ["one", "two"], "a process that waits belongs to no model"
    assert client.get_status()["vram_used_mb"] == 20, "nor charged"


def test_one_that_died_while_it_waited_is_replaced_and_not_handed_out(broker: Start) -> None:
    running = broker([toy()], standby=1)
    client = running.client()
    (pid,) = wait_until(lambda: waiting(running), what="a process waits")
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not alive(pid), what="it has died")
    assert client.infer("toy", FRAME)["pid"] != pid
    wait_until(lambda: waiting(running), what="another one waits")
    wait_until(lambda: "a process that waited for a model has ended: killed by SIGKILL" in running.log())


def test_how_many_wait_can_be_changed_while_the_broker_runs(broker: Start) -> None:
    running = broker([toy()], standby=2)
    client = running.client()
    wait_until(lambda: len(waiting(running)) == 2)
    text = running.config_path.read_text()
    running.config_path.write_text(text.replace("standby = 2", "standby = 0"))
    assert client.reload() == ["standby: 2 is now 0"]
    wait_until(lambda: not waiting(running), what="no process waits any more")
    assert client.infer("toy", FRAME)["pid"]
    assert "has ended" not in running.log()


def test_those_that_wait_end_with_the_broker_by_whatever_signal(broker: Start) -> None:
    running = broker([toy()], standby=3)
    wait_until(lambda: len(waiting(running)) == 3)
    running.kill()  # which sees everything gone
    running.start()
    wait_until(lambda: len(waiting(running)) == 3)
    running.stop()


def test_a_broker_that_is_stopped_before_its_nursery_is_ready_does_not_wait_for_it(broker: Start) -> None:
    """Its starter waits for a process that the nursery is yet to fork, for 5 s if it is let."""
    running = broker([toy(adapter="workers.models.yolo:Detector")], standby=1)
    assert running.process is not None
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(timeout=4.0) == 0
