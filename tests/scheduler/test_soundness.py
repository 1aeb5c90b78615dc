"""`check()` sees a state that contradicts itself: each of these is one that a mistake in the scheduler would leave."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from broker.scheduler.capacity.demand import Demand, Want
from broker.scheduler.events import Kind
from broker.scheduler.registry import Lifetime
from broker.scheduler.soundness import Unsound
from broker.scheduler.state import MOST_MB, Due, Guess, Model, Move, Peak, Phase, Request, State, Timers, Worker
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


# ---------------------------------------------------------------- each condition by itself


def _set(of: str, **values: object) -> Callable[[World], None]:
    """The worker of that name, with other values."""

    def corrupt(w: World) -> None:
        for key, value in values.items():
            setattr(w.worker(of), key, value)

    return corrupt


def _all(*steps: Callable[[World], object]) -> Callable[[World], None]:
    def corrupt(w: World) -> None:
        for step in steps:
            step(w)

    return corrupt


def _registry(**values: object) -> Callable[[World], None]:
    def corrupt(w: World) -> None:
        for key, value in values.items():
            setattr(w.s.registry, key, value)

    return corrupt


def _extra(of: str, until: Phase = Phase.LOADING, number: int = 90, **values: object) -> Callable[[World], None]:
    """One more worker of the model, on the same device unless told otherwise."""

    def corrupt(w: World) -> None:
        model = w.model(of)
        worker = Worker(model, number, "gpu0")
        worker.name = f"{of}#2"
        worker.move(Move.START)
        if until is not Phase.LOADING:
            worker.move(Move.READY)
        for key, value in values.items():
            setattr(worker, key, value)
        model.workers.append(worker)
        w.s.registry.workers[number] = worker

    return corrupt


def _request(w: World, name: str, kind: Kind = Kind.INFER, **values: object) -> Request:
    asked = Request(900, b"z", w.model(name), kind, 1e9, 2, None, None, 900, 0.0)
    for key, value in values.items():
        setattr(asked, key, value)
    return asked


def _waits(**values: object) -> Callable[[World], None]:
    """The request that waits for "a", with other values."""

    def corrupt(w: World) -> None:
        head = w.model("a").queue.head()
        for key, value in values.items():
            setattr(head, key, value)

    return corrupt


def _runs(**values: object) -> Callable[[World], None]:
    """The request that "a" runs, with other values."""

    def corrupt(w: World) -> None:
        for key, value in values.items():
            setattr(w.worker("a").inflight[0], key, value)

    return corrupt


def _unloads(name: str, **values: object) -> Callable[[World], None]:
    return lambda w: w.model(name).unloads.append(_request(w, name, **{"kind": Kind.UNLOAD, **values}))  # type: ignore[arg-type]


def _short(**values: object) -> Callable[[World], None]:
    """The request that waits for "a" waits for more memory."""

    def corrupt(w: World) -> None:
        head = w.model("a").queue.head()
        assert head is not None
        head.starved = head.alone = True
        for key, value in values.items():
            setattr(head, key, value)
        w.worker("a").short = [head]

    return corrupt


def _over(w: World) -> None:
    """Less may be charged than is, and that is known."""
    w.s.ledger.allow("gpu0", 100.0)
    w.s.registry.overdrawn.add("gpu0")


def _massless(w: World, mb: float = 0.0) -> None:
    w.s.ledger.recharge(w.worker("b").number, mb)
    w.worker("b").mb = mb


def _second_claim(w: World) -> None:
    _claim(w, 7, "gpu0")
    w.s.registry.demands["e"] = other = Demand(w.model("e"), Want.LOAD)
    other.claim, other.claim_on = 7, "gpu0"


TOLD: list[tuple[Callable[[World], object], str]] = [
    (lambda w: w.s.ledger.release(w.worker("b").number), "b: worker 2 lives and is not charged"),
    (lambda w: w.s.ledger.recharge(w.worker("b").number, 10.0), "b: 200 MB on gpu0 by its own record"),
    (_over, "gpu0: charged 500.0 MB too much, and b is idle there"),
    (_all(_over, lambda w: _massless(w, 0.5)), "gpu0: charged 300.5 MB too much, and b is idle there"),
    (lambda w: w.s.ledger.allow("gpu0", 100.0), "gpu0: charged 500.0 MB too much; overdrawn: False"),
    (lambda w: _start(w, "e"), "gpu0: 2 loads at once, concurrent_loads = 1"),
    (_extra("c"), "c: 2 of its workers load at once"),
    (lambda w: w.s.models.update(f=w.model("e")), "e: stands under 'f'"),
    (lambda w: setattr(w.model("e"), "name", "f"), "f: stands under 'e'"),
    (lambda w: setattr(w.model("b"), "primary", Worker(w.model("b"))), "b: its primary worker 0 has no process"),
    (_set("e", phase=Phase.SERVING), "e: serving, without a process"),
    (_extra("b", Phase.SERVING), "b: 2 workers on gpu0"),
    (_extra("b", Phase.SERVING, name="b"), "b: its workers are named ['b']"),
    (_set("b", name="b#2"), "b: its workers are named ['b#2']"),
    (_extra("b", device="gpu1"), "b: 2 workers, max_instances = 1"),
    (_extra("b", Phase.SERVING, device="gpu1"), "b: 2 workers, max_instances = 1"),
    (_extra("b", Phase.YIELDING, phase=Phase.YIELDING), "b: 2 workers, max_instances = 1"),
    (_extra("c", Phase.SERVING), "c: a worker is loaded, and its primary one is loading"),
    (_extra("b", Phase.SERVING, short=[None]), "b#2: holds what is the primary worker's"),
    (lambda w: w.model("b").workers.clear(), "living workers: ["),
    (lambda w: w.s.registry.moving.clear(), "loading or ending: [] against ['3']"),
    (lambda w: w.worker("b").move(Move.YIELD), "yielding: [] against ['2']"),
    (lambda w: w.s.registry.move(w.worker("b"), Move.YIELD), "[2] yield, and no model waits for their room"),
    (lambda w: w.s.registry.workers.update({99: w.s.registry.workers.pop(2)}), "b: worker 2 under 99, serving, loaded"),
    (_set("b", phase=Phase.GONE, state=State.UNLOADED), "b: worker 2 under 2, gone, unloaded"),
    (_set("b", state=State.EVICTING), "b: worker 2 under 2, serving, evicting"),
    (_set("b", device="gpu7"), "b: on 'gpu7', which is no device"),
    (lambda w: w.worker("a").move(Move.DRAIN), "a (draining): 1 lease, a request in flight, 1 queued"),
    (lambda w: w.worker("b").move(Move.DRAIN), "b (draining): has nothing left to do, and does not end"),
    (
        _all(lambda w: w.worker("b").move(Move.DRAIN), _registry(stage=Lifetime.STOPPING)),
        "b (draining): has nothing left to do, and does not end",
    ),
    (lambda w: _later(w), "a (loaded): 1 wait for its next process"),
    (_unloads("e"), "e (unloaded): requests to unload it are not answered"),
    (_unloads("b"), "b (loaded): requests to unload it are not answered"),
    (_unloads("c"), "c (loading): is to be unloaded, and does not know it"),
    (_set("c", short=[None]), "c (loading): waits for more memory"),
    (lambda w: setattr(w.model("a"), "guess", Guess.OPEN), "a (loaded): is held for a guess"),
    (lambda w: setattr(w.model("e"), "guess", Guess.OPEN), "e (unloaded): is held for a guess"),
    (
        lambda w: (setattr(w.model("b"), "guess", Guess.OPEN), setattr(w.model("b"), "pinned", True)),
        "b (loaded): is held for a guess",
    ),
    (
        _all(lambda w: w.model("b").leases.update({77: b"z"}), _registry(stage=Lifetime.KILLED)),
        "b (loaded): 1 lease after the end",
    ),
    (_registry(stage=Lifetime.KILLED), "d (unloaded): 1 queued after the end"),
    (_all(_unloads("e"), _registry(stage=Lifetime.KILLED)), "e (unloaded): idle after the end"),
    (_registry(stage=Lifetime.STOPPED), "stopped, and 3 workers live"),
    (_registry(stage=Lifetime.STOPPING), "the grace of the end has no timer"),
    (_set("b", service_s=math.nan), "b: service_s is nan"),
    (_set("b", last_used=math.inf), "b: last_used is inf"),
    (_set("b", loaded_at=-math.inf), "b: loaded_at is -inf"),
    (_extra("b", Phase.SERVING, load_seconds=math.nan), "b#2: load_seconds is nan"),
    (_set("b", mb=-0.5), "b: -0.5 MB, 0.0 s a request, 1 at once"),
    (_set("b", service_s=-0.5), "b: 200 MB, -0.5 s a request, 1 at once"),
    (_set("b", max_batch=0), "b: 200 MB, 0.0 s a request, 0 at once"),
    (lambda w: setattr(w.worker("b").batch_limit, "most", -1), "b: 200 MB, 0.0 s a request, 1 at once"),
    (lambda w: setattr(w.model("b").failures, "retry_at", math.nan), "b: its next load is due at nan"),
    (lambda w: setattr(w.model("b"), "least_load_s", math.nan), "b: its next load is due at 0.0"),
    (lambda w: w.model("b").peaks.update(gpu0=Peak(-0.5)), "b: its peak on gpu0 is -0.5 MB"),
    (lambda w: w.model("b").peaks.update(gpu0=Peak(2 * MOST_MB)), "b: its peak on gpu0 is 2000000000.0 MB"),
    (lambda w: w.model("d").queue.push(w.worker("a").inflight[0]), "request 4 is in 2 places"),
    (lambda w: w.model("a").queue.pop(), "requests that are accepted, and in their places: ['6'] against []"),
    (_runs(id=99), "request 99 of a stands under 4, answered None"),
    (_runs(outcome="answered"), "request 4 of a stands under 4, answered answered"),
    (lambda w: setattr(w.worker("a").inflight[0], "model", Model(model("b"))), "request 4 of b stands under 4"),
    (_runs(deadline=math.nan), "request 4 has no deadline"),
    (_registry(running=1), "1 requests are said to run, 2 do"),
    (lambda w: setattr(w.model("a").queue, "live", 2), "a: 2 are said to wait, 1 do"),
    (_waits(running=True), "a: request 6 (infer) of a waits in its queue"),
    (lambda w: _waits(model=w.model("b"))(w), "a: request 6 (infer) of b waits in its queue"),
    (_waits(kind=Kind.UNLOAD), "a: request 6 (unload) of a waits in its queue"),
    (_waits(queue=None), "a: request 6 (infer) of a waits in its queue"),
    (_waits(kind=Kind.LEASE), "a: lease 6 waits"),
    (_unloads("e", kind=Kind.INFER), "e: request 900 among those to unload it"),
    (lambda w: _unloads("e", queue=w.model("e").queue)(w), "e: request 900 among those to unload it"),
    (_unloads("e", running=True), "e: request 900 among those to unload it"),
    (_short(queue=None), "a: [6] wait for memory, and not in its queue"),
    (_short(starved=False), "a: [6] wait for memory, and not in its queue"),
    (_short(alone=False), "a: [6] wait for memory, and not in its queue"),
    (lambda w: w.worker("c").inflight.append(_request(w, "c")), "c (loading): 1 requests at its worker"),
    (lambda w: w.worker("a").inflight.clear(), "a: a batch lies ahead of nothing"),
    (lambda w: setattr(w.worker("a").ahead[0], "alone", True), "a: [5] do not run alone"),
    (lambda w: _runs(queue=w.model("a").later)(w), "a: request 4 of a at worker 1, sent to 1"),
    (_runs(kind=Kind.LEASE), "a: request 4 of a at worker 1, sent to 1"),
    (lambda w: _runs(model=w.model("b"))(w), "a: request 4 of b at worker 1, sent to 1"),
    (_runs(worker=9), "a: request 4 of a at worker 1, sent to 9"),
    (_runs(running=False), "a: request 4 is at its worker, and does not know it"),
    (lambda w: _let_go_of_ahead(w), "a: has a place, and request 6 waits"),
    (lambda w: w.model("b").queue.push(_request(w, "b")), "b: has a place, and request 900 waits"),
    (_all(lambda w: _let_go_of_ahead(w), _set("a", leaves_at=-math.inf)), "a: has a place, and request 6 waits"),
    (lambda w: w.s.registry.demands.clear(), "d (unloaded): 1 wait, wants load, None"),
    (_short(), "a (loaded): 1 wait, wants grow, None"),
    (
        lambda w: w.s.registry.demands.update(e=Demand(w.model("e"), Want.LOAD)),
        "e (unloaded): 0 wait, wants nothing, load",
    ),
    (lambda w: setattr(w.s.registry.demands["d"], "model", w.model("e")), "d: its demand is for e"),
    (lambda w: _claim(w, 7, "gpu7"), "d: has a claim on 'gpu7'"),
    (lambda w: w.s.registry.demands.update(z=Demand(w.model("e"), Want.LOAD)), "z demands room, and is not registered"),
    (_second_claim, "2 models have claim 7"),
    (lambda w: w.s.registry.touched.update({w.model("b"): None}), "it has not settled: ['b']"),
    (_registry(look=True), "it has not settled: []"),
    (lambda w: w.s.registry.sessions[b"holder"].leases.clear(), "client 686f6c646572 has nothing, and is kept"),
    (lambda w: w.s.registry.sessions[b"c"].requests.discard(4), "requests of client 63: [] against ['4']"),
    (lambda w: w.s.registry.sessions.pop(b"other"), "client 6f74686572 has requests, and is not known"),
    (lambda w: w.s.registry.leases.clear(), "leases and their models: [] against"),
    (lambda w: w.s.registry.sessions[b"holder"].leases.add(99), "leases and their clients: [] against"),
    (lambda w: _without(w, Due.DEADLINE), "request 4 has no timer"),
    (_set("a", watch_at=2000.0), "a: has no timer WATCH"),
    (_set("b", idle_at=1001.0), "b: has no timer IDLE"),
    (_set("b", leaves_at=1001.0), "b: has no timer BATCH"),
    (_set("a", watch_at=math.inf), "a (loaded): worker 1 is not watched"),
    (_set("c", watch_at=math.inf), "c (loading): worker 3 is not watched"),
    (_set("b", idle_at=math.inf), "b: is idle, and no timer will end it"),
    (_registry(look_at=2000.0), "a look for room is to come, and has no timer"),
]

FINE: list[tuple[Callable[[World], object], str]] = [
    (_all(_over, _registry(stage=Lifetime.STOPPING)), "too much"),
    (_all(_over, _registry(look_at=2000.0)), "too much"),
    (_all(_over, _massless), "idle there"),
    (_all(_over, lambda w: setattr(w.model("b"), "pinned", True)), "idle there"),
    (_all(lambda w: _start(w, "e"), lambda w: setattr(w.s.registry, "reconfigured_at", w.now)), "loads at once"),
    (_all(lambda w: w.s.registry.move(w.worker("b"), Move.YIELD), _registry(contested=True)), "no model waits"),
    (_all(lambda w: w.s.registry.move(w.worker("b"), Move.YIELD), _registry(stage=Lifetime.STOPPING)), "no model"),
    (_all(lambda w: w.worker("b").move(Move.DRAIN), _registry(stage=Lifetime.KILLED)), "nothing left to do"),
    (_all(_unloads("b"), _extra("b", Phase.SERVING)), "to unload it are not answered"),
    (_unloads("c"), "among those to unload it"),
    (_unloads("a", kind=Kind.UNLOAD), "does not know it"),
    (lambda w: setattr(w.model("b"), "guess", Guess.OPEN), "held for a guess"),
    (_massless, "MB, "),
    (lambda w: setattr(w.model("b").failures, "retry_at", math.inf), "its next load"),
    (lambda w: w.model("b").peaks.update(gpu0=Peak(0.0), gpu1=Peak(MOST_MB)), "its peak on"),
    (_short(), "wait for memory"),
    (_short(), "waits for more memory"),
    (lambda w: _claim(w, 7, "gpu0"), "claim"),
    (_registry(look=True, stage=Lifetime.STOPPING), "has not settled"),
    (lambda w: _later(w), "waits in its queue"),
]


def wrong(w: World) -> list[str]:
    try:
        w.s.check()
    except Unsound as e:
        return e.wrong
    return []


@pytest.mark.parametrize(("corrupt", "line"), TOLD, ids=[line for _, line in TOLD])
def test_what_does_not_hold_is_told(corrupt, line) -> None:
    w = busy_world()
    corrupt(w)
    assert [told for told in wrong(w) if told.startswith(line)], wrong(w)


@pytest.mark.parametrize(("corrupt", "part"), FINE, ids=[f"{n} {part}" for n, (_, part) in enumerate(FINE)])
def test_what_may_be_is_no_fault(corrupt, part) -> None:
    w = busy_world()
    corrupt(w)
    assert not [told for told in wrong(w) if part in told]


def test_of_an_overdrawn_device_only_its_own_idle_workers_are_told() -> None:
    w = World([model("a", 200), model("b", 200, device="gpu1")], 400, 400)
    w.load("a", "b")
    _over(w)
    assert [told for told in wrong(w) if "is idle there" in told] == [
        "gpu0: charged 100.0 MB too much, and a is idle there"
    ]


def test_a_busy_scheduler_is_sound() -> None:
    busy_world().s.check()


@pytest.mark.parametrize("what", CORRUPTIONS)
def test_it_sees_that_there_is(what) -> None:
    w = busy_world()
    CORRUPTIONS[what](w)
    with pytest.raises(Unsound) as caught:
        w.s.check()
    assert caught.value.wrong
    assert str(caught.value) == "; ".join(caught.value.wrong)
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
