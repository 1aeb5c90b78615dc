"""`check()` sees a state that contradicts itself: each of these is one that a mistake in the scheduler would leave."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from broker.scheduler.capacity.demand import Demand, Want
from broker.scheduler.soundness import Unsound
from broker.scheduler.state import Due, Guess, Move, Peak, Phase, State, Timers, Worker
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
    "a charge that is no number": lambda w: w.s.ledger.recharge(w.process("b").worker, math.nan),
    "overdrawn for ever": lambda w: w.s.registry.overdrawn.add("gpu0"),
    "overdrawn on no device": lambda w: w.s.registry.overdrawn.add("gpu7"),
    "more is charged than may be, with an idle model": lambda w: w.s.ledger.allow("gpu0", 100.0),
    "two loads at once": lambda w: _start(w, "e"),
    "a worker that is not known": lambda w: w.s.registry.workers.pop(w.process("b").worker),
    "a worker that its model does not have": lambda w: w.model("b").workers.clear(),
    "a load that is not held for moving": lambda w: w.s.registry.moving.clear(),
    "a state without a process": lambda w: setattr(w.worker("e"), "phase", Phase.SERVING),
    "a process without a state": lambda w: setattr(w.worker("b"), "phase", Phase.GONE),
    "a phase that is not the state": lambda w: setattr(w.worker("b"), "state", State.EVICTING),
    "a model that drains with a lease": lambda w: w.worker("a").move(Move.DRAIN),
    "a draining model with nothing to do": lambda w: w.worker("b").move(Move.DRAIN),
    "one too many said to run": lambda w: setattr(w.s.registry, "running", w.s.registry.running + 1),
    "one too few said to run": lambda w: setattr(w.s.registry, "running", w.s.registry.running - 1),
    "a batch that was forgotten": lambda w: w.worker("a").ahead.clear(),
    "a batch ahead of nothing": lambda w: w.worker("a").inflight.clear(),
    "a request that is nowhere": lambda w: w.model("a").queue.pop(),
    "a request in two places": lambda w: w.model("d").queue.push(w.worker("a").inflight[0]),
    "a request that its client does not have": lambda w: w.s.registry.sessions[b"c"].requests.pop(),
    "a client that has nothing": lambda w: w.s.registry.sessions[b"holder"].leases.clear(),
    "a lease without a client": lambda w: w.s.registry.sessions.pop(b"holder"),
    "a lease that its model does not know": lambda w: w.model("a").leases.clear(),
    "a lease on nothing": lambda w: w.s.registry.leases.clear(),
    "a suspect with others": lambda w: setattr(w.worker("a").ahead[0], "alone", True),
    "a place, and a request that waits": lambda w: _let_go_of_ahead(w),
    "waits, and demands nothing": lambda w: w.s.registry.demands.clear(),
    "a demand without a request": lambda w: w.s.registry.demands.update(e=Demand(w.model("e"), Want.LOAD)),
    "a demand of another kind": lambda w: setattr(w.s.registry.demands["d"], "want", Want.GROW),
    "a claim on no device": lambda w: _claim(w, 7, "gpu7"),
    "yields, and is not held for that": lambda w: w.worker("b").move(Move.YIELD),
    "yields, and no demand waits for it": lambda w: w.s.registry.move(w.worker("b"), Move.YIELD),
    "is held for yielding": lambda w: w.s.registry.yielding.update({w.worker("b").number: w.worker("b")}),
    "touched and not attended to": lambda w: w.s.registry.touched.update({w.model("b"): None}),
    "a request without a timer": lambda w: _without(w, Due.DEADLINE),
    "a load that is not watched": lambda w: setattr(w.worker("c"), "watch_at", math.inf),
    "work that is not watched": lambda w: _without(w, Due.WATCH),
    "an idle model without a timer": lambda w: _without(w, Due.IDLE),
    "an idle model that nothing will end": lambda w: setattr(w.worker("b"), "idle_at", math.inf),
    "a look that will not come": lambda w: setattr(w.s.registry, "look_at", w.now + 1.0),
    "a figure that is no number": lambda w: setattr(w.worker("b"), "service_s", math.nan),
    "a batch of nothing": lambda w: setattr(w.worker("b"), "max_batch", 0),
    "a peak that no device could hold": lambda w: w.model("b").peaks.update(gpu0=Peak(math.inf)),
    "a worker under its model's name that is not the primary": lambda w: setattr(w.worker("b"), "name", "b#2"),
    "a model under another name": lambda w: w.s.models.update(f=w.model("e")),
    "a guess that a request waits for": lambda w: setattr(w.model("c"), "guess", Guess.OPEN),
    "what waits for a next process that is not to come": lambda w: _later(w),
}


def _start(w: World, name: str) -> None:
    """As if a second load had been decided."""
    registry = w.s.registry
    model = registry.models[name]
    worker = Worker(model, next(registry.worker_numbers), "gpu0")
    registry.ledger.charge(worker.number, name, "gpu0", worker.mb)
    model.primary = worker
    model.workers.append(worker)
    registry.workers[worker.number] = worker
    registry.move(worker, Move.START)


def _claim(w: World, number: int, device: str) -> None:
    demand = w.s.registry.demands["d"]
    demand.claim, demand.claim_on = number, device


def _later(w: World) -> None:
    request = w.model("a").queue.pop()
    assert request is not None
    w.model("a").later.push(request)


def _let_go_of_ahead(w: World) -> None:
    """As if the worker were through with its next batch, and had not been given another."""
    registry, a = w.s.registry, w.worker("a")
    for request in a.ahead:
        request.running = False
        registry.running -= 1
        del registry.requests[request.id]
        registry.sessions[request.session].requests.discard(request.id)
    a.ahead = []


def _without(w: World, due: Due) -> None:
    """As if entries had never been made."""
    kept = Timers()
    for entry in w.s.registry.timers:
        if entry[1] != due:
            kept.add(entry[0], Due(entry[1]), entry[2])
    w.s.registry.timers = kept


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
    w.s.registry.workers[1] = None  # type: ignore[assignment]
    with pytest.raises(Unsound, match="cannot be checked: AttributeError"):
        w.s.check()


def test_a_check_changes_nothing() -> None:
    w = busy_world()
    before = w.s.status(w.now), w.s.processes(), list(w.s.registry.timers), w.s.story.count
    w.s.check()
    assert before == (w.s.status(w.now), w.s.processes(), list(w.s.registry.timers), w.s.story.count)
