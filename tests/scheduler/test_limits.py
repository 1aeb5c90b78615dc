"""Who is turned away, with what hint, and what is left of a request that is withdrawn."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from broker.scheduler.capacity.ledger import Device
from broker.scheduler.events import Asked, Kind, Refuse, SessionClosed, Tick, Withdrawn, WorkerReady
from broker.scheduler.scheduler import Scheduler
from broker.scheduler.state import State
from tests.scheduler.world import World, model
from zoo.config.schema import BrokerConfig


def working(seconds: float = 0.5, **how: Any) -> World:
    """A world whose model `a` has been seen to take so long for a request, and has two at its worker."""
    w = World([model("a"), model("b", 100)], 512, **how)
    w.load("a", "b")
    w.ask("a", client=b"first")
    w.now += seconds
    w.done("a")
    for _ in range(2):
        w.ask("a", client=b"first")
    return w


def test_a_full_queue_says_how_long_it_will_take() -> None:
    w = working(0.5, max_queue=4)
    for client in (b"x", b"y", b"z", b"u"):
        w.ask("a", client=client)
    refused = w.answer(w.ask("a", client=b"late"))
    assert (refused.code, refused.retryable) == ("queue_full", True)
    assert refused.retry_after == pytest.approx(6 * 0.5)
    assert "4 requests wait for a already (max_queue = 4): 6 x 500 ms = 3.00 s of work" in refused.message


def test_a_batch_counts_as_what_it_takes() -> None:
    w = World([model("a")], 512, max_batch=4, max_queue=4)
    w.load("a")
    for client in (b"first", b"x", b"y", b"z", b"u"):
        w.ask("a", client=client)
    for seconds in (0.01, 0.01, 0.015):  # two alone, then three at once
        w.now += seconds
        w.done("a")
    assert [len(batch) for batch in w.batches()] == [1, 1, 3]
    measured = w.worker("a").service_s
    assert measured == pytest.approx(0.8 * 0.01 + 0.2 * 0.005)
    for i in range(20):
        last = w.ask("a", client=b"%d" % i)
    assert w.code(last) == "queue_full"
    assert w.answer(last).retry_after == 0.1, "six requests of 9 ms are less than the least hint"


def test_the_hint_is_bounded_and_given_where_nothing_is_known() -> None:
    slow = working(25.0, max_queue=1, dispatch_timeout=100.0)
    slow.ask("a", client=b"x")
    assert slow.answer(slow.ask("a")).retry_after == 30.0
    new = World([model("a")], 512, max_queue=1)
    new.ask("a", client=b"x")
    refused = new.answer(new.ask("a"))
    assert refused.retry_after == 0.1
    assert "not known yet" in refused.message


def test_the_hint_counts_the_load_that_comes_first() -> None:
    w = World([model("a")], 512, max_queue=1)
    w.preload("a")
    w.now += 3.0
    w.settle()
    w.ask("a")
    w.now += 0.5
    w.settle()
    w.cleanup()
    w.settle()
    w.ask("a", client=b"x")
    w.now += 1.0
    refused = w.answer(w.ask("a"))
    assert refused.retry_after == pytest.approx(2.0 + 0.5)
    assert "a load of 2.00 s + 1 x 500 ms = 2.50 s" in refused.message


def test_one_client_cannot_fill_a_queue() -> None:
    w = working(max_queue=10, max_queue_per_client=4)
    many = [w.ask("a", client=b"many") for _ in range(6)]
    assert [w.code(n) for n in many] == [None] * 4 + ["queue_full"] * 2
    assert "waits for 4 answers already (max_queue_per_client = 4)" in w.answer(many[-1]).message
    assert w.answer(many[-1]).retry_after == pytest.approx(6 * 0.5)
    assert w.code(w.ask("a", client=b"other")) is None, "there is room for the others"


def test_a_client_s_requests_count_over_all_models_until_they_are_answered() -> None:
    w = working(max_queue_per_client=3)
    for _ in range(2):
        w.ask("a", client=b"c")
    w.ask("b", client=b"c")
    assert w.code(w.ask("a", client=b"c")) == "queue_full"
    w.done("b")
    assert w.code(w.ask("a", client=b"c")) is None


def test_the_limit_can_change_while_the_broker_runs() -> None:
    w = working(max_queue_per_client=2)
    w.ask("a"), w.ask("a")
    assert w.code(w.ask("a")) == "queue_full"
    w.reconfigure(max_queue_per_client=3)
    assert w.code(w.ask("a")) is None


# ---------------------------------------------------------------- withdrawn, too late, or their client gone


class Payload:
    pass


WAYS = {
    "withdrawn": lambda s: s.handle(Withdrawn(2), 1.0),
    "too late": lambda s: s.handle(Tick(), 50.0),
    "client gone": lambda s: s.handle(SessionClosed(b"c"), 1.0),
}


@pytest.mark.parametrize("way", WAYS)
def test_queued_work_that_no_client_wants_is_gone_at_once_payload_and_all(way: str) -> None:
    s = Scheduler(BrokerConfig(load_timeout=1000.0), [Device("gpu0", "cuda", 512)], [model("a"), model("b")])
    s.handle(Asked(1, b"other", "b", Kind.INFER, 900.0), 0.0)
    frame = Payload()
    seen = weakref.ref(frame)
    s.handle(Asked(2, b"c", "a", Kind.INFER, 50.0, payload=frame), 0.0)
    del frame
    WAYS[way](s)
    gc.collect()
    assert seen() is None
    assert 2 not in s.registry.requests
    assert s.models["a"].waiting == 0
    assert "a" not in s.status(1.0)["pending_loads"], "nothing is loaded that no request waits for"


@pytest.mark.parametrize("way", WAYS)
def test_a_load_that_serves_no_request_any_more_goes_on_and_says_so(way: str) -> None:
    s = Scheduler(BrokerConfig(load_timeout=1000.0), [Device("gpu0", "cuda", 512)], [model("a")])
    s.handle(Asked(1, b"other", "a", Kind.INFER, 40.0), 0.0)
    s.handle(Asked(2, b"c", "a", Kind.LEASE, 50.0), 0.0)
    said = "the load goes on, though no request waits for it"
    gone = s.handle(Withdrawn(1), 1.0)
    assert [(a.request, a.code) for a in gone if isinstance(a, Refuse)] == [(1, "cancelled")]
    assert [line.text for line in s.story.about("a")].count(said) == 0, "a request still waits"
    WAYS[way](s)
    assert [line.text for line in s.story.about("a")].count(said) == 1
    s.handle(WorkerReady(1), 60.0)
    assert s.models["a"].state is State.LOADED
    assert not s.models["a"].leases


def test_a_client_holds_so_many_leases_and_no_more() -> None:
    w = World([model("a"), model("b", 100)], 512, max_leases_per_client=3)
    w.load("a")
    held = [w.lease("a", client=b"greedy") for _ in range(2)]
    coming = w.lease("b", client=b"greedy")
    too_many = w.lease("a", client=b"greedy")
    assert w.code(too_many) == "queue_full"
    assert "holds 3 leases already (max_leases_per_client = 3); release some" in w.answer(too_many).message
    assert w.code(w.lease("a", client=b"other")) == "ok", "others may"
    assert w.code(w.preload("a", client=b"greedy")) == "ok"
    w.settle()
    assert w.code(coming) == "ok"
    w.release(w.granted(held[0]))
    assert w.code(w.lease("a", client=b"greedy")) == "ok"
