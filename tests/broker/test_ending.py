"""A broker that is told to stop has ended some seconds after its drain, whatever failed on the way."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from broker import ending
from tests import faulty
from tests.support import Running, toy, wait_until
from zoo import ZooError

FRAME = np.full((8, 8, 3), 7, np.uint8)
DRAIN_S = 1.0
SLACK_S = 6.0  # of a loaded machine, and for the processes to end
FAILING = ["event WorkerExited", "next_wakeup"]
MORE = [
    *("event ShutDown", "event Tick", "event MemoryBack", "after ShutDown", "Service._note_resident"),
    *("Fleet._hear_pool", "Learnt.write_down", "Fleet._escalate", "Service._time_passes", "Fleet.kill", "os.close"),
]


def _end(folder: Path, fault: str) -> float:
    """Tells a broker to stop that has a loaded model and a request at work. Gives how long it takes to end."""
    one = Running(
        folder, [toy()], module="tests.faulty", drain_seconds=DRAIN_S, footprint="measured", restore=True,
        state_dir=str(folder / "state"), standby=1,
    )  # fmt: skip
    one.start()
    assert one.process is not None
    try:
        with one.client() as zoo:
            assert zoo.infer("toy", FRAME)["first"] == [7, 7, 7]
            (folder / "new").write_text(fault)
            (folder / "new").rename(folder / faulty.FAULT)
            began = time.monotonic()
            one.process.send_signal(signal.SIGTERM)
            one.process.wait(DRAIN_S + ending.GRACE_S + ending.CLOSE_S + SLACK_S)
            took = time.monotonic() - began
        one.wait_gone()
    finally:
        if one.process.poll() is None:
            one.kill()
    return took


@pytest.mark.parametrize("name", FAILING)
def test_a_broker_ends_in_time_whatever_fails_for_ever(zoo_dir: Path, name: str) -> None:
    assert _end(zoo_dir, name + faulty.FOR_EVER) < DRAIN_S + ending.GRACE_S + SLACK_S


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_a_broker_ends_in_time_whatever_else_fails_for_ever(zoo_dir: Path, name: str) -> None:
    assert _end(zoo_dir, name + faulty.FOR_EVER) < DRAIN_S + ending.GRACE_S + SLACK_S


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FAILING, *MORE, "os.read"])
def test_one_error_on_the_way_to_its_end_costs_no_time(zoo_dir: Path, name: str) -> None:
    assert _end(zoo_dir, name) < DRAIN_S + SLACK_S


def test_told_a_second_time_it_drains_no_longer(zoo_dir: Path) -> None:
    one = Running(zoo_dir, [toy()], drain_seconds=60.0).start()
    assert one.process is not None
    with one.client() as zoo:
        zoo.get_model("toy")
        asker = threading.Thread(target=lambda: _suffers(lambda: zoo.infer("toy", FRAME, do="sleep", seconds=30.0)))
        asker.start()
        wait_until(lambda: zoo.get_status()["requests"] >= 1)
        one.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "shutting down" in one.log())
        assert one.process.poll() is None
        one.process.send_signal(signal.SIGTERM)
        assert one.process.wait(ending.GRACE_S + SLACK_S) == 0
        asker.join(10.0)
    one.wait_gone()


def _suffers(call: Callable[[], object]) -> None:
    with contextlib.suppress(ZooError):
        call()


def test_the_earlier_end_counts() -> None:
    end = ending.Ending()
    assert end.at == math.inf
    end.begin(30.0, 100.0)
    end.begin(0.0, 101.0)
    end.begin(30.0, 102.0)
    assert not end.is_over(101.0 + ending.GRACE_S - 0.1)
    assert end.is_over(101.0 + ending.GRACE_S)


def test_a_process_that_cannot_be_closed_ends_all_the_same(tmp_path: Path) -> None:
    pid = os.fork()
    if not pid:
        ending.within(0.1, 7, (tmp_path / "last").touch)
        threading.Event().wait()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert (tmp_path / "last").exists()
