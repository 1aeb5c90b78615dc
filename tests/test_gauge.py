"""Readings put together: who uses what, and whether it is back. The meters here say what the tests tell them."""

from __future__ import annotations

import os
import socket

import pytest

from broker.gauge import Gauge


class Meter:
    """`pids`: what the driver tells of each process; `used`: of the whole device; `listed`: processes still shown."""

    def __init__(self, used: float = 1000.0) -> None:
        self.pids: dict[int, float] = {}
        self.used = used
        self.listed: set[int] = set()

    def used_mb(self, pid: int) -> float | None:
        return self.pids.get(pid)

    def device_mb(self) -> tuple[float, float]:
        return self.used, 8000.0

    def released(self, pid: int) -> bool:
        return pid not in self.listed


@pytest.fixture
def meter() -> Meter:
    return Meter()


@pytest.fixture
def gauge(meter: Meter) -> Gauge:
    return Gauge({"d": meter})


def grow(gauge: Gauge, meter: Meter, worker: int, mb: float, *, told: bool) -> None:
    """A worker starts, and its load takes `mb`."""
    gauge.start(worker, "d")
    gauge.born(worker, 100 + worker)
    meter.used += mb
    if told:
        meter.pids[100 + worker] = mb
    gauge.loaded(worker)


@pytest.mark.parametrize("told", [True, False])
def test_others_are_what_is_not_ours(gauge: Gauge, meter: Meter, told: bool) -> None:
    assert gauge.others("d") == (1000.0, 8000.0)
    grow(gauge, meter, 1, 300.0, told=told)
    grow(gauge, meter, 2, 200.0, told=told)
    assert (gauge.seen_mb(1), gauge.seen_mb(2)) == (300.0, 200.0)
    assert gauge.is_told(1) is told
    assert gauge.others("d") == (1000.0, 8000.0)
    meter.used += 50
    assert gauge.others("d") == (1050.0, 8000.0)


def test_a_loading_worker_is_not_taken_for_others(gauge: Gauge, meter: Meter) -> None:
    gauge.start(1, "d")
    gauge.born(1, 101)
    meter.used += 400
    assert gauge.others("d") is None, "it cannot be told whose they are"
    meter.pids[101] = 400
    assert gauge.others("d") == (1000.0, 8000.0)


def test_a_rise_is_no_workers_own_when_another_one_started_meanwhile(gauge: Gauge, meter: Meter) -> None:
    gauge.start(1, "d")
    gauge.born(1, 101)
    gauge.start(2, "d")
    gauge.born(2, 102)
    meter.used += 500
    gauge.loaded(1)
    assert gauge.seen_mb(1) == 0.0


def test_the_one_not_read_for_longest_comes_first(gauge: Gauge, meter: Meter) -> None:
    for worker in (1, 2, 3):
        grow(gauge, meter, worker, 10.0, told=True)
    gauge.read(1)
    assert gauge.stalest() == [2, 3, 1]
    gauge.end(2, None)
    assert gauge.stalest() == [3, 1]


def test_what_ends_counts_as_ours_until_it_is_back(gauge: Gauge, meter: Meter) -> None:
    grow(gauge, meter, 1, 300.0, told=True)
    meter.listed.add(101)
    del meter.pids[101]
    gauge.end(1, None)
    assert gauge.others("d") == (1000.0, 8000.0)
    assert not gauge.back(1)
    meter.listed.clear()
    meter.used = 1000
    assert gauge.back(1)
    assert gauge.others("d") == (1000.0, 8000.0)


def test_where_the_driver_does_not_tell_the_whole_device_shows_it(gauge: Gauge, meter: Meter) -> None:
    grow(gauge, meter, 1, 500.0, told=False)
    grow(gauge, meter, 2, 300.0, told=False)
    assert gauge.others("d") == (1000.0, 8000.0)
    gauge.end(1, None)
    assert not gauge.back(1)
    assert gauge.others("d") is None
    meter.used = 1000 + 300 + 100
    assert not gauge.back(1), "more than the tolerance is missing"
    meter.used = 1000 + 300 + 60
    assert gauge.back(1)


def test_memory_is_not_back_while_a_copy_of_the_process_lives(gauge: Gauge, meter: Meter) -> None:
    grow(gauge, meter, 1, 500.0, told=True)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    copy = os.dup(theirs.fileno())  # what a fork of the worker inherits
    gauge.end(1, ours.fileno())
    ours.close()
    theirs.close()
    assert not gauge.back(1)
    os.close(copy)
    assert gauge.back(1)
    gauge.close()
