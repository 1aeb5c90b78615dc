"""What the scheduler is told about memory: readings of the tests' own go in, findings come out."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from broker.memory import usage
from broker.memory.measuring import Reading
from broker.memory.meters import Figures
from broker.memory.usage import FRESH_S, NOT_SEEN, NOT_YET, Looked, MemoryUsage
from broker.scheduler.events import DeviceSeen, DeviceUnread, Measured, MemoryBack, MemoryStuck


class Looks:
    """In place of the threads. `pids`: what the next look shows of each process."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[int]]] = []
        self.readings: list[Reading] = []
        self.pids: dict[int, float] = {}
        self.listed: frozenset[int] = frozenset()
        self.slow = False

    def ask(self, device: str, pids: Sequence[int] = (), more: Sequence[int] = ()) -> None:
        self.asked.append((device, [*pids, *more]))

    def take(self) -> list[Reading]:
        taken, self.readings = self.readings, []
        return taken

    def is_slow(self, _: str) -> bool:
        return self.slow

    def close(self) -> None: ...

    def come(self, began: float | None = None) -> None:
        figures = Figures(1000.0 + sum(self.pids.values()), 8000.0, dict(self.pids), self.listed)
        began = time.monotonic() if began is None else began
        self.readings.append(Reading("d", began, time.monotonic(), figures))

    def fail(self, why: str) -> None:
        self.readings.append(Reading("d", time.monotonic(), time.monotonic(), None, why))


class Host:
    cuda: str | None = None


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    made = Looks()
    monkeypatch.setattr(usage, "Measuring", lambda _: made)
    return made


@pytest.fixture
def memory(looks: Looks) -> MemoryUsage:
    made = MemoryUsage({"d": Host()}, True)  # type: ignore[dict-item]
    assert made.open() == [DeviceUnread("d", NOT_YET, FRESH_S)]
    return made


def start(memory: MemoryUsage, looks: Looks, *, shares_pages: bool = True) -> None:
    """A worker has loaded what takes 300 MB, and a look has shown that."""
    memory.starts(1, "d")
    memory.born(1, 101, lambda: shares_pages)
    memory.gauge.briefed(1, time.monotonic())
    memory.loaded(1)
    looks.pids[101] = 300.0
    looks.come()


def test_nothing_is_started_before_the_first_look(memory: MemoryUsage, looks: Looks) -> None:
    looks.come()
    assert list(memory.take()) == [DeviceSeen("d", 1000.0, 8000.0), DeviceUnread("d")]


def test_a_worker_counts_as_at_work_once_it_has_run_a_request(memory: MemoryUsage, looks: Looks) -> None:
    start(memory, looks)
    assert Measured(1, 300.0, False) in list(memory.take())
    memory.gauge.worked(1)
    looks.come()
    assert Measured(1, 300.0, True) in list(memory.take())
    assert memory.gauge.told_mb(1) == 300.0


@pytest.mark.parametrize("measures", [True, False])
def test_what_loads_is_read_at_each_look_only_where_footprints_are_measured(looks: Looks, measures: bool) -> None:
    memory = MemoryUsage({"d": Host()}, measures)  # type: ignore[dict-item]
    memory.starts(1, "d")
    memory.born(1, 101, lambda: True)
    memory.starts(2, "d")
    assert looks.asked[-1] == ("d", [101] if measures else [])
    memory.survey()
    assert looks.asked[-1] == ("d", [101])


def test_nothing_is_learnt_when_the_nursery_has_died(memory: MemoryUsage, looks: Looks) -> None:
    start(memory, looks, shares_pages=False)
    assert not any(isinstance(found, Measured) for found in memory.take())


def test_a_message_waits_for_a_look_that_began_after_it(memory: MemoryUsage, looks: Looks) -> None:
    start(memory, looks)
    list(memory.take())
    before = time.monotonic()
    assert memory.hold(1)
    assert looks.asked[-1] == ("d", [101])
    looks.come(before - 1)
    assert Looked(1) not in list(memory.take())
    looks.come()
    found = list(memory.take())
    assert found.index(Measured(1, 300.0, False)) < found.index(Looked(1)), "it is measured first"


def test_a_message_waits_no_longer_than_its_time_and_not_for_a_slow_device(memory: MemoryUsage, looks: Looks) -> None:
    start(memory, looks)
    list(memory.take())
    assert memory.hold(1)
    now = time.monotonic()
    assert memory.due(now) <= now + usage.HOLD_S
    assert list(memory.tick(now)) == []
    assert list(memory.tick(now + usage.HOLD_S)) == [Looked(1)]
    looks.slow = True
    assert not memory.hold(1)


def test_a_device_that_fails_is_told_once_for_each_reason_until_it_can_be_read(
    memory: MemoryUsage, looks: Looks
) -> None:
    for why in ("lost", "lost", "gone"):
        looks.fail(why)
    assert list(memory.take()) == [DeviceUnread("d", "lost"), DeviceUnread("d", "gone")]
    looks.come()
    assert DeviceUnread("d") in list(memory.take())


def test_memory_is_back_when_a_look_after_the_end_shows_it(memory: MemoryUsage, looks: Looks) -> None:
    start(memory, looks)
    list(memory.take())
    looks.listed = frozenset({101})
    assert memory.ended(1, None) == [DeviceUnread("d", NOT_SEEN, FRESH_S)]
    looks.come()
    assert not any(isinstance(found, MemoryBack) for found in memory.take())
    looks.pids.clear()
    looks.listed = frozenset()
    looks.come()
    assert list(memory.take())[-1] == MemoryBack(1)
    assert list(memory.tick(time.monotonic() + 100)) == []


def test_memory_that_does_not_come_back_is_stuck_and_still_looked_for(memory: MemoryUsage, looks: Looks) -> None:
    start(memory, looks)
    list(memory.take())
    looks.listed = frozenset({101})
    memory.ended(1, None)
    looks.come()
    list(memory.take())
    now = time.monotonic()
    assert list(memory.tick(now)) == []
    assert memory.due(now) <= now + usage.POLL_S
    assert list(memory.tick(now + usage.BACK_LIMIT_S + 1)) == [MemoryStuck(1)]
    assert memory.due(now) > now + usage.POLL_S, "from now on once a second is enough"
    assert list(memory.look_for_stuck(now + 20)) == []
    looks.listed = frozenset()
    looks.come()
    assert MemoryBack(1) in list(memory.take())


def test_a_device_that_does_not_answer_gives_memory_back_at_the_kernels_word(memory: MemoryUsage, looks: Looks) -> None:
    start(memory, looks)
    list(memory.take())
    memory.ended(1, None)
    now = time.monotonic()
    assert list(memory.tick(now)) == []
    assert list(memory.tick(now + FRESH_S)) == [MemoryBack(1)]


def test_one_that_says_it_is_broken_does_not(memory: MemoryUsage, looks: Looks) -> None:
    start(memory, looks)
    list(memory.take())
    memory.ended(1, None)
    looks.fail("lost")
    list(memory.take())
    assert list(memory.tick(time.monotonic() + FRESH_S)) == []


def test_with_declared_footprints_only_the_end_of_memory_is_told(looks: Looks) -> None:
    memory = MemoryUsage({"d": Host()}, False)  # type: ignore[dict-item]
    assert memory.open() == []
    start(memory, looks)
    assert list(memory.take()) == []
    assert not memory.hold(1)
    assert memory.ended(1, None) == []
    looks.come()
    assert list(memory.take()) == [MemoryBack(1)]
