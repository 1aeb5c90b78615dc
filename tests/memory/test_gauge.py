"""Readings put together: who uses what, and whether it is back. The readings here are the tests' own."""

from __future__ import annotations

import os
import socket

import pytest

from broker.memory.gauge import Gauge
from broker.memory.measuring import Reading
from broker.memory.meters import Figures


class Driver:
    """`pids`: what the driver tells of each process; `used`: of the whole device; `listed`: processes still shown.

    Its clock goes on by a second with everything that happens.
    """

    def __init__(self, gauge: Gauge) -> None:
        self.gauge = gauge
        self.pids: dict[int, float] = {}
        self.used: float | None = 1000.0
        self.listed: set[int] | None = set()
        self.free_at_end = False
        self.now = 0.0

    def later(self) -> float:
        self.now += 1
        return self.now

    def figures(self) -> Figures:
        listed = frozenset(self.listed) if self.listed is not None else None
        total = None if self.used is None else 8000.0
        return Figures(self.used, total, dict(self.pids), listed, free_at_end=self.free_at_end)

    def look(self, began: float | None = None) -> list[int]:
        began = self.later() if began is None else began
        return self.gauge.take(Reading("d", began, self.now, self.figures()))

    def fail(self) -> list[int]:
        return self.gauge.take(Reading("d", self.later(), self.now, None, "Unknown Error"))

    def use(self, mb: float) -> None:
        assert self.used is not None
        self.used += mb

    def grow(self, worker: int, mb: float, *, told: bool) -> None:
        """A worker starts, and its load takes `mb`."""
        self.look()
        self.gauge.start(worker, "d")
        self.gauge.born(worker, 100 + worker)
        self.gauge.briefed(worker, self.later())
        self.use(mb)
        if told:
            self.pids[100 + worker] = mb
        self.gauge.loaded(worker, self.later())
        self.look()

    def end(self, worker: int, line: int | None = None) -> None:
        self.gauge.end(worker, line, self.later())


def used(gauge: Gauge, worker: int) -> float:
    """MB that a worker was seen to use."""
    found = gauge.measured(worker)
    return found[0] if found is not None else 0.0


@pytest.fixture
def gauge() -> Gauge:
    return Gauge(["d"])


@pytest.fixture
def driver(gauge: Gauge) -> Driver:
    return Driver(gauge)


@pytest.mark.parametrize("told", [True, False])
def test_others_are_what_is_not_ours(gauge: Gauge, driver: Driver, told: bool) -> None:
    driver.look()
    assert gauge.others("d") == (1000.0, 8000.0)
    driver.grow(1, 300.0, told=told)
    driver.grow(2, 200.0, told=told)
    assert (used(gauge, 1), used(gauge, 2)) == (300.0, 200.0)
    assert (gauge.told_mb(1) is not None) is told
    assert gauge.others("d") == (1000.0, 8000.0)
    driver.use(50)
    driver.look()
    assert gauge.others("d") == (1050.0, 8000.0)


def test_a_loading_worker_is_not_taken_for_others(gauge: Gauge, driver: Driver) -> None:
    driver.look()
    gauge.start(1, "d")
    gauge.born(1, 101)
    driver.use(400)
    driver.look()
    assert gauge.others("d") is None, "it cannot be told whose they are"
    driver.pids[101] = 400
    driver.look()
    assert gauge.others("d") == (1000.0, 8000.0)


def test_a_rise_is_no_workers_own_when_another_one_started_meanwhile(gauge: Gauge, driver: Driver) -> None:
    driver.look()
    for worker in (1, 2):
        gauge.start(worker, "d")
        gauge.born(worker, 100 + worker)
    driver.use(500)
    for worker in (1, 2):
        gauge.loaded(worker, driver.later())
        driver.look()
        assert used(gauge, worker) == 0.0


def test_a_rise_counts_from_the_last_look_before_the_worker_knew_its_model(gauge: Gauge, driver: Driver) -> None:
    driver.look()
    gauge.start(1, "d")
    gauge.born(1, 101)
    driver.use(70)  # another program's
    driver.look()
    gauge.briefed(1, driver.later())
    driver.use(300)
    driver.look()
    gauge.loaded(1, driver.later())
    assert driver.look(driver.now - 0.5) == [], "it began before the load was through"
    driver.use(50)
    assert driver.look() == [1]
    assert used(gauge, 1) == 350.0


def test_without_a_look_before_the_load_no_rise_is_known(gauge: Gauge, driver: Driver) -> None:
    gauge.start(1, "d")
    gauge.born(1, 101)
    gauge.briefed(1, driver.later())
    gauge.loaded(1, driver.later())
    driver.use(500)
    driver.look()
    assert used(gauge, 1) == 0.0


def test_the_one_not_read_for_longest_comes_first(gauge: Gauge, driver: Driver) -> None:
    for worker in (1, 2, 3):
        driver.grow(worker, 10.0, told=True)
    driver.pids = {101: 10.0}
    driver.look()
    assert gauge.stalest("d") == [102, 103, 101]
    driver.end(2)
    assert gauge.stalest("d") == [103, 101]


def test_what_ends_counts_as_ours_until_it_is_back(gauge: Gauge, driver: Driver) -> None:
    driver.grow(1, 300.0, told=True)
    driver.listed = {101}
    del driver.pids[101]
    driver.end(1)
    driver.look()
    assert gauge.others("d") == (1000.0, 8000.0)
    assert not gauge.back(1)
    driver.listed.clear()
    driver.used = 1000
    driver.look()
    assert gauge.back(1)
    assert gauge.others("d") == (1000.0, 8000.0)


def test_where_the_driver_does_not_tell_the_whole_device_shows_it(gauge: Gauge, driver: Driver) -> None:
    driver.grow(1, 500.0, told=False)
    driver.grow(2, 300.0, told=False)
    assert gauge.others("d") == (1000.0, 8000.0)
    driver.end(1)
    driver.look()
    assert not gauge.back(1)
    assert gauge.others("d") is None
    driver.used = 1000 + 300 + 100
    driver.look()
    assert not gauge.back(1), "more than the tolerance is missing"
    driver.used = 1000 + 300 + 60
    driver.look()
    assert gauge.back(1)


def test_what_other_programs_use_meanwhile_does_not_keep_the_host_memory_of_a_short_lived_worker(
    gauge: Gauge, driver: Driver
) -> None:
    driver.free_at_end = True
    driver.grow(1, 10.0, told=False)  # it ended before it could be read
    driver.end(1)
    driver.use(500.0)
    driver.look()
    assert gauge.back(1)


def test_a_look_from_before_the_end_says_nothing_about_what_has_come_back(gauge: Gauge, driver: Driver) -> None:
    driver.grow(1, 300.0, told=True)
    driver.end(1)
    driver.used = 1000
    driver.look(driver.now - 0.5)
    assert not gauge.back(1)
    assert gauge.others("d") is None, "what was in use then may have been the ended process's"
    assert gauge.back(1, unseen=True), "unless no look is waited for any more"


def test_a_failed_look_makes_the_device_unknown_and_keeps_what_was_known_of_workers(
    gauge: Gauge, driver: Driver
) -> None:
    driver.grow(1, 300.0, told=True)
    assert gauge.is_fresh("d")
    driver.fail()
    assert not gauge.is_fresh("d")
    assert gauge.figures("d") is None
    assert gauge.others("d") is None
    assert used(gauge, 1) == 300.0
    driver.end(1)
    driver.fail()
    assert not gauge.back(1)
    driver.used = 1000
    driver.look()
    assert gauge.back(1)


def test_a_device_that_never_tells_anything_gives_memory_back_when_the_process_is_gone(
    gauge: Gauge, driver: Driver
) -> None:
    driver.used, driver.listed = None, None
    driver.look()
    gauge.start(1, "d")
    gauge.born(1, 101)
    gauge.loaded(1, driver.later())
    driver.look()
    assert gauge.is_fresh("d")
    assert gauge.others("d") is None
    assert used(gauge, 1) == 0.0
    driver.end(1)
    driver.look()
    assert gauge.back(1)


def test_memory_is_not_back_while_a_copy_of_the_process_lives(gauge: Gauge, driver: Driver) -> None:
    driver.grow(1, 500.0, told=True)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    copy = os.dup(theirs.fileno())  # what a fork of the worker inherits
    driver.end(1, ours.fileno())
    ours.close()
    theirs.close()
    driver.look()
    assert not gauge.back(1)
    assert not gauge.back(1, unseen=True)
    os.close(copy)
    assert gauge.back(1)
    gauge.close()


def test_no_descriptor_left_for_a_lifeline_is_no_error(
    gauge: Gauge, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> int:
        raise OSError(24, "Too many open files")

    driver.grow(1, 500.0, told=True)
    monkeypatch.setattr(os, "dup", refuse)
    driver.end(1, 0)
    driver.look()
    assert gauge.back(1)
