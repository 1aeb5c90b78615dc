"""Where the time of an answered request went: what was waiting, what was the load, what the worker says of itself."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.scheduler.capacity.ledger import Device
from broker.scheduler.events import (
    Asked,
    Deliver,
    Event,
    Finished,
    Kind,
    MemoryBack,
    SendBatch,
    StartWorker,
    WorkerDone,
    WorkerExited,
    WorkerReady,
)
from broker.scheduler.scheduler import Scheduler
from zoo.config.schema import BrokerConfig, ModelConfig
from zoo.timings import FIELDS, Timings


class Zoo:
    """A scheduler with the model "a", and what it has told to be done."""

    def __init__(self, **settings: float) -> None:
        model = ModelConfig(name="a", adapter="tests.toy:Toy", vram_mb=10, **settings)  # type: ignore[arg-type]
        self._scheduler = Scheduler(BrokerConfig(), [Device("cpu", "cpu", 100.0)], [model])
        self.started: list[int] = []
        self.sent: list[list[int]] = []
        self.timings: dict[int, Timings] = {}

    def at(self, now: float, event: Event) -> None:
        for action in self._scheduler.handle(event, now):
            match action:
                case StartWorker(worker):
                    self.started.append(worker)
                case SendBatch(_, batch):
                    self.sent.append([request for request, _ in batch])
                case Deliver(request, timings=timings):
                    self.timings[request] = timings
        self._scheduler.check()

    def asked(self, now: float, request: int) -> None:
        self.at(now, Asked(request, b"s", "a", Kind.INFER, now + 100.0))

    def done(self, now: float, *requests: int, seconds: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> None:
        self.at(now, WorkerDone(self.started[-1], [Finished(one) for one in requests], seconds=seconds))


def test_a_request_that_finds_its_model_unloaded_waits_for_its_load_and_says_so() -> None:
    zoo = Zoo()
    zoo.asked(10.0, 1)
    zoo.asked(13.0, 2)
    zoo.at(14.0, WorkerReady(zoo.started[0], 8))
    assert zoo.sent == [[1, 2]]
    zoo.done(15.0, 1, 2, seconds=(0.125, 0.5, 0.25))
    first, second = zoo.timings[1], zoo.timings[2]
    assert dict(first) == {
        "queue": 0.0, "load": 4.0, "dispatch": 0.125, "preprocess": 0.125, "infer": 0.5, "postprocess": 0.25,
        "total": 5.0,
    }  # fmt: skip
    assert (second.load, second.infer, second.total) == (1.0, 0.5, 2.0)


def test_one_that_waits_for_another_waits_in_the_queue() -> None:
    zoo = Zoo()
    zoo.asked(0.0, 1)
    zoo.at(1.0, WorkerReady(zoo.started[0]))
    zoo.asked(2.0, 2)  # lies ahead at the worker
    zoo.asked(2.0, 3)
    zoo.done(4.0, 1, seconds=(0.0, 3.0, 0.0))
    zoo.done(6.0, 2, seconds=(0.0, 2.0, 0.0))
    zoo.done(7.0, 3, seconds=(0.0, 0.5, 0.0))
    assert [(t.queue, t.load, t.infer, t.total) for t in zoo.timings.values()] == [
        (0.0, 1.0, 3.0, 4.0), (2.0, 0.0, 2.0, 4.0), (4.0, 0.0, 0.5, 5.0),
    ]  # fmt: skip
    assert zoo.timings[3].dispatch == 0.5


def test_what_lay_ahead_was_begun_before_the_broker_heard_of_the_one_before() -> None:
    zoo = Zoo()
    zoo.asked(0.0, 1)
    zoo.at(0.0, WorkerReady(zoo.started[0]))
    zoo.asked(1.0, 2)
    zoo.done(4.0, 1, seconds=(0.0, 2.0, 0.0))  # heard 2 s after it was said
    zoo.done(5.0, 2, seconds=(0.0, 3.0, 0.0))
    assert (zoo.timings[2].queue, zoo.timings[2].infer, zoo.timings[2].dispatch) == (1.0, 3.0, 0.0)


def test_what_is_run_again_after_a_crash_waited_until_then() -> None:
    zoo = Zoo()
    zoo.asked(0.0, 1)
    zoo.at(1.0, WorkerReady(zoo.started[0]))
    zoo.at(3.0, WorkerExited(zoo.started[0], "by signal 9"))
    zoo.at(4.0, MemoryBack(zoo.started[0]))
    zoo.at(6.0, WorkerReady(zoo.started[1]))
    zoo.done(8.0, 1, seconds=(0.0, 1.0, 0.0))
    found = zoo.timings[1]
    assert (found.queue, found.load, found.infer, found.total) == (4.0, 2.0, 1.0, 8.0)


@pytest.mark.parametrize("claimed", [2.01, -1.0, math.nan, math.inf, -math.inf, 1e308])
@pytest.mark.parametrize("place", range(3))
def test_a_worker_that_claims_what_it_cannot_have_had_is_not_believed(claimed: float, place: int) -> None:
    zoo = Zoo()
    zoo.asked(0.0, 1)
    zoo.at(1.0, WorkerReady(zoo.started[0]))
    seconds = [0.0, 0.0, 0.0]
    seconds[place] = claimed
    zoo.done(3.0, 1, seconds=(seconds[0], seconds[1], seconds[2]))
    assert dict(zoo.timings[1]) == {**dict.fromkeys(FIELDS, 0.0), "load": 1.0, "dispatch": 2.0, "total": 3.0}


moments = st.lists(st.floats(0.001, 1e4), min_size=6, max_size=6)
shares = st.lists(st.floats(-0.2, 1.2), min_size=3, max_size=3)


@given(moments, shares)
def test_no_time_is_negative_and_all_of_it_is_accounted_for(gaps: list[float], parts: list[float]) -> None:
    zoo, now = Zoo(), 0.0
    steps = [
        lambda: zoo.asked(now, 1), lambda: zoo.at(now, WorkerReady(zoo.started[0], 4)), lambda: zoo.asked(now, 2),
        lambda: zoo.done(now, 1, seconds=(parts[0], 0.0, parts[1])), lambda: zoo.asked(now, 3),
        lambda: zoo.done(now, 2, seconds=(parts[0], parts[1], parts[2])),
    ]  # fmt: skip
    for gap, step in zip(gaps, steps, strict=True):
        now += gap / 1000.0
        step()
    for found in zoo.timings.values():
        assert all(found[name] >= 0.0 for name in FIELDS)
        assert sum(found[name] for name in FIELDS[:-1]) == pytest.approx(found.total)
        assert max(found.infer, found.load) <= found.total
    assert zoo.timings[1].load > 0.0 == zoo.timings[2].load
