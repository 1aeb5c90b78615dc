"""The decisions about room as pure functions: what is there goes in, decisions come out, and nothing is changed."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest

from broker.scheduler.capacity.by_priority import ByPriority
from broker.scheduler.capacity.demand import Demand, Want
from broker.scheduler.capacity.overrun import relieve, short_mb
from broker.scheduler.capacity.placement import (
    Admit,
    Claim,
    GiveUp,
    Hold,
    Impossible,
    MakeRoom,
    Space,
    View,
    lost_claims,
    place,
    place_spare,
)
from broker.scheduler.events import Kind
from broker.scheduler.state import Guess, Model, Move, Request, Worker
from tests.scheduler.world import model

NOW = 100.0
NUMBERS = itertools.count(1)


def waiting(name: str, mb: float = 300, *, since: float = NOW, deadline: float = 1e9, **more: Any) -> Demand:
    """A demand to load a model, with one request."""
    demanded = Model(model(name, mb, **more))
    number = next(NUMBERS)
    demanded.queue.push(Request(number, b"c", demanded, Kind.INFER, deadline, 2, None, None, number, since))
    return Demand(demanded, Want.LOAD)


def loaded(name: str, mb: float = 300, device: str = "gpu0", *, last_used: float = 50.0, **more: Any) -> Worker:
    """The primary worker of a model that is loaded and idle."""
    there = Model(model(name, mb, **more))
    worker = there.primary = Worker(there, next(NUMBERS), device)
    there.workers.append(worker)
    worker.move(Move.START)
    worker.move(Move.READY)
    worker.loaded_at, worker.load_seconds, worker.last_used = 10.0, 1.0, last_used
    return worker


def at_work(worker: Worker) -> Worker:
    number = next(NUMBERS)
    worker.inflight = [Request(number, b"w", worker.model, Kind.INFER, 1e9, 2, None, None, number, NOW)]
    return worker


def view(*workers: Worker, budget: float = 1000.0, devices: tuple[str, ...] = ("gpu0",), **more: Any) -> View:
    used = {device: sum(w.mb for w in workers if w.device == device) for device in devices}
    spaces = {name: Space(budget - used[name], budget - used[name], budget, budget) for name in devices}
    return View(NOW, spaces, workers, [w.model for w in workers], ByPriority(), **more)


def decide(demand: Demand, seen: View) -> Any:
    plan = place([demand], seen)
    again = place([demand], seen)
    assert [type(d) for d in plan.decisions] == [type(d) for d in again.decisions], "it changes nothing"
    return plan.decisions[0] if plan.decisions else None


def test_1_what_no_budget_suffices_for_is_impossible() -> None:
    assert isinstance(decide(waiting("a", 1001), view(loaded("b"))), Impossible)


def test_2_room_that_is_there_is_given() -> None:
    decision = decide(waiting("a", 700), view(loaded("b")))
    assert isinstance(decision, Admit)
    assert decision.device == "gpu0"


def test_2_on_the_device_that_is_allowed_sound_and_has_most_left() -> None:
    two = ("gpu0", "gpu1")
    assert decide(waiting("a"), view(loaded("b"), devices=two)).device == "gpu1"
    assert decide(waiting("a", device="gpu0"), view(loaded("b"), devices=two)).device == "gpu0"
    doubtful = view(loaded("b"), devices=two)
    doubtful.spaces["gpu1"].doubtful_until = NOW + 1
    assert decide(waiting("a"), doubtful).device == "gpu0"
    failed = waiting("a")
    failed.model.failures.device = "gpu1"
    assert decide(failed, view(loaded("b"), devices=two)).device == "gpu0"


def test_3_room_that_is_coming_back_is_claimed_once() -> None:
    seen = view(loaded("b", 800))
    seen.spaces["gpu0"].coming_mb = 700.0
    first, second = waiting("a", 600, since=1.0), waiting("c", 600, since=2.0)
    plan = place([second, first], seen)
    assert isinstance(plan.decisions[0], Claim)
    assert plan.decisions[0].demand is first, "the one that waits longer"
    assert not isinstance(plan.decisions[1], Claim | Admit)


def test_3_a_claim_that_memory_no_longer_reaches_is_lost() -> None:
    one, other = waiting("a", 600), waiting("b", 600)
    one.claim, other.claim = 1, 2
    one.claim_on = other.claim_on = "gpu0"
    assert lost_claims([other, one], view()) == [other]


def test_4_what_cannot_be_answered_in_time_makes_no_room() -> None:
    demand = waiting("a", 600, deadline=NOW + 2.0)
    demand.model.least_load_s = 3.0
    assert isinstance(decide(demand, view(loaded("b", 800))), GiveUp)
    demand.model.least_load_s = 1.0
    assert isinstance(decide(demand, view(loaded("b", 800))), MakeRoom)
    assert place([demand], view(loaded("b", 800))).look_at == NOW + 1.0


def test_5_idle_workers_make_room_and_no_more_of_them_than_needed() -> None:
    old, new = loaded("old", 400, last_used=20.0), loaded("new", 400, last_used=30.0)
    decision = decide(waiting("a", 500), view(old, new))
    assert isinstance(decision, MakeRoom)
    assert ([v.model for v in decision.victims], [v.model for v in decision.spared]) == (["old"], ["new"])
    assert (decision.missing_mb, decision.fits) == (300.0, False)


def test_5_a_worker_whose_callers_come_right_back_is_given_a_moment() -> None:
    worker = loaded("b", 800, last_used=NOW)
    worker.model.gap_s = 0.001
    demand = waiting("a", 600, since=NOW - 1)
    decision = decide(demand, view(worker, patience_s=50.0))
    assert isinstance(decision, Hold)
    assert "a moment for b" in decision.reason.why


@pytest.mark.parametrize("held", ["leased", "pinned", "at work"])
def test_5_what_is_in_use_is_never_a_victim(held: str) -> None:
    worker = loaded("b", 800)
    if held == "leased":
        worker.model.leases[1] = b"c"
    elif held == "pinned":
        worker.model.pinned = True
    else:
        at_work(worker)
    assert not isinstance(decide(waiting("a", 600), view(worker)), MakeRoom)


def test_6_another_load_and_a_device_that_cannot_be_read_are_waited_for() -> None:
    seen = view()
    seen.spaces["gpu0"].loading = 1
    assert decide(waiting("a"), seen).reason.why == "another model is loading"
    seen.spaces["gpu0"].closed = "no answer"
    assert decide(waiting("a"), seen).reason.why == "nothing is started on gpu0: no answer"


def test_7_busy_workers_yield_when_their_time_has_come() -> None:
    busy = at_work(loaded("b", 800))
    early = place([waiting("a", 600, since=NOW)], view(busy, patience_s=5.0))
    assert isinstance(early.decisions[0], Hold)
    assert (early.decisions[0].awaits, early.yields, early.contested) == (("b",), {}, True)
    late = place([waiting("a", 600, since=NOW - 6)], view(busy, patience_s=5.0))
    assert late.yields == {"b": "a"}


def test_7_the_workers_that_a_demand_awaits_are_kept_to() -> None:
    one, other = at_work(loaded("one", 400, last_used=20.0)), at_work(loaded("other", 400, last_used=10.0))
    demand = waiting("a", 500)
    demand.awaits = ("one",)
    assert decide(demand, view(one, other)).awaits == ("one",)


def test_8_where_nothing_may_go_it_is_told_what_holds_the_room() -> None:
    worker = loaded("b", 800)
    worker.model.pinned = True
    decision = decide(waiting("a", 600), view(worker))
    assert "needs 600 MB on gpu0, 200 of 1000 MB are free and no model there may go" in decision.reason.why
    assert "all pinned or leased: b 800 MB (MEDIUM, pinned)" in decision.reason.why


def growing(worker: Worker, mb: float) -> Demand:
    """A demand of a loaded worker to be charged `mb` instead of what it is."""
    demand = Demand(worker.model, Want.GROW)
    worker.model.config.vram_mb = mb
    number = next(NUMBERS)
    request = Request(number, b"c", worker.model, Kind.INFER, 1e9, 2, None, None, number, NOW)
    worker.model.queue.push(request)
    worker.short = [request]
    return demand


def test_a_process_that_grows_lacks_the_difference_on_its_own_device() -> None:
    grows = loaded("a", 300)
    decision = decide(growing(grows, 500), view(grows, loaded("b", 400)))
    assert isinstance(decision, Admit)
    grows = loaded("a", 300)
    decision = decide(growing(grows, 700), view(grows, loaded("b", 400), devices=("gpu0", "gpu1")))
    assert isinstance(decision, MakeRoom)
    assert (decision.device, decision.missing_mb) == ("gpu0", 100.0)


def test_a_process_that_cannot_grow_is_told_so_and_does_not_wait() -> None:
    grows, pinned = loaded("a", 300), loaded("b", 600)
    pinned.model.pinned = True
    decision = decide(growing(grows, 700), view(grows, pinned))
    assert isinstance(decision, Impossible)
    assert "no model there may go" in decision.why


def test_a_claim_comes_before_older_requests() -> None:
    claims, older = waiting("a", 600, since=50.0), waiting("b", 600, since=1.0)
    claims.claim, claims.claim_on = 1, "gpu0"
    assert place([older, claims], view()).decisions[0].demand is claims


def test_a_model_whose_load_failed_is_not_tried_before_its_time() -> None:
    demand = waiting("a")
    demand.model.failures.add("broken", NOW - 0.5, extra=False, guessed=False, permanent=False)
    plan = place([demand], view())
    assert plan.decisions == []
    assert plan.look_at == NOW + 0.5


def test_spare_room_is_free_room_on_a_device_of_its_own() -> None:
    worker = loaded("a", 300)
    two = view(worker, devices=("gpu0", "gpu1"))
    assert place_spare(Demand(worker.model, Want.EXTRA), two) == "gpu1"
    two.spaces["gpu1"].free_mb = 299.0
    assert place_spare(Demand(worker.model, Want.EXTRA), two) is None
    for key, value in (("closed", "no answer"), ("doubtful_until", NOW + 1), ("loading", 1)):
        seen = view(worker, devices=("gpu0", "gpu1"))
        setattr(seen.spaces["gpu1"], key, value)
        assert place_spare(Demand(worker.model, Want.EXTRA), seen) is None, key


# ---------------------------------------------------------------- overruns


def overrun(*workers: Worker, limit: float, budget: float = 1000.0) -> View:
    free = limit - sum(w.mb for w in workers)
    return View(NOW, {"gpu0": Space(free, free, budget, limit)}, workers, [], ByPriority())


def test_no_worker_goes_where_charges_fit() -> None:
    found = relieve("gpu0", overrun(loaded("a", 300), limit=300.0))
    assert (found.victims, found.oversized, found.short_mb) == ([], [], 0.0)


def test_idle_workers_go_until_it_fits_critical_ones_last() -> None:
    critical = loaded("critical", 300, priority="CRITICAL", last_used=1.0)
    found = relieve("gpu0", overrun(critical, loaded("a", 300), limit=500.0))
    assert [v.model for v in found.victims] == ["a"]
    found = relieve("gpu0", overrun(critical, loaded("a", 300), limit=200.0))
    assert {v.model for v in found.victims} == {"a", "critical"}


def test_what_the_idle_cannot_give_is_short() -> None:
    busy = at_work(loaded("busy", 400))
    found = relieve("gpu0", overrun(busy, loaded("a", 300), limit=300.0))
    assert ([v.model for v in found.victims], found.short_mb) == (["a"], 100.0)


def test_a_process_larger_than_the_budget_goes_before_all_others() -> None:
    grown, idle = loaded("grown", 300, priority="CRITICAL"), loaded("idle", 200, priority="LOW")
    grown.mb = 1200.0
    found = relieve("gpu0", overrun(grown, idle, limit=1000.0))
    assert (found.oversized, found.victims) == ([grown], [])
    grown.move(Move.DRAIN)
    assert short_mb("gpu0", overrun(grown, idle, limit=1000.0)) == -800.0, "it is going: what it takes comes back"


def test_a_guess_goes_first_whatever_its_priority() -> None:
    guessed = loaded("guessed", 300, priority="CRITICAL", last_used=99.0)
    guessed.model.guess = Guess.OPEN
    found = relieve("gpu0", overrun(guessed, loaded("a", 300, priority="LOW"), limit=400.0))
    assert [v.model for v in found.victims] == ["guessed"]


def test_nothing_is_changed_by_a_decision() -> None:
    worker, demand = loaded("b", 800), waiting("a", 600)
    before = copy.deepcopy((worker.phase, worker.mb, demand.claim, demand.wait, worker.model.guess))
    place([demand], view(worker))
    relieve("gpu0", overrun(worker, limit=100.0))
    assert before == (worker.phase, worker.mb, demand.claim, demand.wait, worker.model.guess)
