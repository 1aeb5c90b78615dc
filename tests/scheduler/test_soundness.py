"""`check()` sees a state that contradicts itself: each of these is one that a mistake in the scheduler would leave."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from broker.scheduler.events import State
from broker.scheduler.soundness import Unsound
from broker.scheduler.timers import Due
from tests.scheduler.world import World, model


def busy_world() -> World:
    """`a` at work with a batch ahead, one waiting and a lease; `b` loaded and idle; `c` loads; `d` waits for room."""
    w = World([model("a", 200), model("b", 200), model("c", 200), model("d", 600), model("e", 50)], 700, max_batch=1)
    w.load("a", "b")
    w.lease("a", client=b"holder")
    for _ in range(3):
        w.ask("a")
    w.ask("c", client=b"other")
    w.ask("d", client=b"other")
    return w


CORRUPTIONS: dict[str, Callable[[World], object]] = {
    "a charge forgotten": lambda w: w.s.ledger.release(w.process("b").worker),
    "a charge that is not the model's": lambda w: w.s.ledger.recharge(w.process("b").worker, 10.0),
    "a sum that is not the charges'": lambda w: w.s.ledger._sums.update(gpu0=1.0),
    "a charge that is no number": lambda w: w.s.ledger.recharge(w.process("b").worker, math.nan),
    "overdrawn for ever": lambda w: w.s._overdrawn.add("gpu0"),
    "more is charged than may be, with an idle model": lambda w: w.s.ledger.allow("gpu0", 100.0),
    "two loads at once": lambda w: w.s._start(w.residency("e"), "gpu0", w.now),
    "a worker that nobody knows": lambda w: w.s._workers.pop(w.process("b").worker),
    "a load that is not held for moving": lambda w: w.s._moving.clear(),
    "a state without a process": lambda w: setattr(w.residency("e"), "state", State.LOADED),
    "a process without a state": lambda w: setattr(w.residency("b"), "state", State.UNLOADED),
    "a model that drains with a lease": lambda w: setattr(w.residency("a"), "state", State.DRAINING),
    "one too many said to run": lambda w: setattr(w.s, "_running", w.s._running + 1),
    "one too few said to run": lambda w: setattr(w.s, "_running", w.s._running - 1),
    "a batch that was forgotten": lambda w: w.residency("a").ahead.clear(),
    "a batch ahead of nothing": lambda w: w.residency("a").inflight.clear(),
    "a request that is nowhere": lambda w: w.residency("a").queue.pop(),
    "a request in two places": lambda w: w.residency("d").queue.push(w.residency("a").inflight[0]),
    "a request that its client does not have": lambda w: w.s.sessions[b"c"].requests.pop(),
    "a client that has nothing": lambda w: w.s.sessions[b"holder"].leases.clear(),
    "a lease without a client": lambda w: w.s.sessions.pop(b"holder"),
    "a lease that its model does not know": lambda w: w.residency("a").leases.clear(),
    "a lease on nothing": lambda w: w.s._leases.clear(),
    "a suspect with others": lambda w: setattr(w.residency("a").ahead[0], "alone", True),
    "a place, and somebody waits": lambda w: _let_go_of_ahead(w),
    "waits, and is not wanted": lambda w: w.s._wanted.clear(),
    "wanted for nobody": lambda w: w.s._wanted.setdefault("e", w.residency("e")),
    "a claim of one that does not wait": lambda w: setattr(w.residency("b"), "claim", 7),
    "yields, and does not know it": lambda w: w.s._yielding.add("b"),
    "yields, and nobody asked for it": lambda w: setattr(w.residency("b"), "yielding", True),
    "yields, and is not known": lambda w: w.s._yielding.add("a#2"),
    "a request without a timer": lambda w: _drop(w, Due.DEADLINE),
    "a load that is not watched": lambda w: _drop(w, Due.WATCH, w.process("c").worker),
    "work that is not watched": lambda w: _drop(w, Due.WATCH, w.process("a").worker),
    "an idle model without a timer": lambda w: _drop(w, Due.IDLE, w.residency("b").number),
    "an idle model that nothing will end": lambda w: setattr(w.residency("b"), "idle_at", math.inf),
    "a heap that is none": lambda w: w.s.timers._heap.reverse(),
    "a figure that is no number": lambda w: setattr(w.residency("b"), "service_s", math.nan),
    "a further worker that its model does not have": lambda w: w.s.further.update({"a#2": w.residency("e")}),
    "a model under another name": lambda w: w.s.models.update(f=w.residency("e")),
    "a guess that somebody waits for": lambda w: setattr(w.residency("c"), "unasked", True),
}


def _let_go_of_ahead(w: World) -> None:
    """As if the worker were through with its next batch, and had not been given another."""
    a = w.residency("a")
    for request in a.ahead:
        request.running = False
        w.s._running -= 1
        del w.s.requests[request.id]
        w.s.sessions[request.session].requests.discard(request.id)
    a.ahead = []


def _drop(w: World, due: Due, key: int | None = None) -> None:
    """As if entries had never been made."""
    heap = w.s.timers._heap
    heap[:] = sorted(entry for entry in heap if not (entry[1] == due and key in (None, entry[2])))


def test_a_busy_scheduler_is_sound() -> None:
    busy_world().s.check()


@pytest.mark.parametrize("what", CORRUPTIONS)
def test_it_sees_that_there_is(what) -> None:
    w = busy_world()
    CORRUPTIONS[what](w)
    with pytest.raises(Unsound) as caught:
        w.s.check()
    assert caught.value.wrong
    assert not any("cannot be checked" in line for line in caught.value.wrong), caught.value.wrong


def test_a_state_that_cannot_be_read_is_unsound() -> None:
    w = busy_world()
    w.s.ledger._charges[1] = None  # type: ignore[assignment]
    with pytest.raises(Unsound, match="cannot be checked: AttributeError"):
        w.s.check()


def test_a_check_changes_nothing() -> None:
    w = busy_world()
    before = w.s.status(w.now), w.s.processes(), list(w.s.timers._heap), w.s.story.count
    w.s.check()
    assert before == (w.s.status(w.now), w.s.processes(), list(w.s.timers._heap), w.s.story.count)
