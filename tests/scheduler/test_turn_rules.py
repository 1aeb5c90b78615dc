"""Who gives way when, and what is placed where, to the moment and to the megabyte: pure functions on small records."""

from __future__ import annotations

import math

import pytest

from broker.scheduler.capacity import adaptive, by_priority, fairness
from broker.scheduler.capacity.adaptive import Adaptive
from broker.scheduler.capacity.by_priority import ByPriority, Candidate
from broker.scheduler.capacity.demand import Demand, Want
from broker.scheduler.capacity.habits import Habits
from broker.scheduler.capacity.ledger import EPSILON_MB
from broker.scheduler.capacity.overrun import relieve, short_mb
from broker.scheduler.capacity.placement import (
    Admit,
    Claim,
    GiveUp,
    Hold,
    Impossible,
    MakeRoom,
    choose,
    in_order,
    lost_claims,
    place,
    place_spare,
    users,
)
from broker.scheduler.state import Model, Move, Phase, Request, Worker
from tests.scheduler.test_decisions import NOW, at_work, decide, growing, loaded, overrun, view, waiting
from tests.scheduler.world import model
from zoo.config.schema import ModelPriority as P


def head_of(demand: Demand) -> Request:
    head = demand.model.queue.head()
    assert head is not None
    return head


# ---------------------------------------------------------------- turns


def test_a_request_is_due_at_its_deadline_or_when_is_usual() -> None:
    head = head_of(waiting("a", since=NOW, deadline=NOW + 10))
    assert fairness.due(head, 30.0) == NOW + 10
    assert fairness.due(head, 5.0) == NOW + 5


def test_a_request_rises_one_priority_for_each_quarter_of_the_usual_time() -> None:
    head = head_of(waiting("a", since=NOW))
    assert [fairness.urgency(head, 20.0, NOW + waited) for waited in (0.0, 4.9, 5.0, 9.9, 10.0, 99.0)] == [
        2, 2, 1, 1, 0, 0,
    ]  # fmt: skip


def test_a_load_starts_in_time_for_what_waits() -> None:
    demand = waiting("a", deadline=200.0)
    demand.model.primary.load_seconds, demand.model.primary.service_s = 4.0, 3.0
    assert fairness.latest_start(demand.model, head_of(demand)) == 200.0 - 1.5 * 4.0 - 3.0


def busy_for(loads_s: float = 4.0, **more: float) -> Worker:
    worker = at_work(loaded("busy", 800))
    worker.loaded_at, worker.load_seconds = 90.0, loads_s
    for key, value in more.items():
        setattr(worker, key, value)
    return worker


@pytest.mark.parametrize(
    ("since", "deadline", "patience", "turn"),
    [
        (NOW, 1e9, 1.0, 102.0),  # the burst: twice both loads of 4 and 2 s
        (NOW, 1e9, 5.0, 105.0),  # patience, from when it came
        (50.0, 1e9, 20.0, 110.0),  # or from when the other was loaded
        (NOW, 103.5, 1.0, 101.0),  # its deadline is near, but patience
        (50.0, 103.0, 0.0, 100.0),  # load with its margin: 3 s before
        (50.0, 95.0, 0.0, 94.0),  # never before the minimum residency
    ],
)
def test_a_busy_worker_gives_way_after_its_burst(since: float, deadline: float, patience: float, turn: float) -> None:
    demand = waiting("a", since=since, deadline=deadline)
    demand.model.primary.load_seconds = 2.0
    assert fairness.gives_way_at(busy_for(), demand.model, head_of(demand), patience) == turn


def test_to_a_more_important_model_or_from_beside_another_worker_after_patience_alone() -> None:
    demand = waiting("a", priority="HIGH")
    assert fairness.gives_way_at(busy_for(), demand.model, head_of(demand), 1.0) == NOW + 1.0
    equal = waiting("a")
    extra = busy_for()
    extra.model.primary = loaded("other")
    assert fairness.gives_way_at(extra, equal.model, head_of(equal), 1.0) == NOW + 1.0
    low = waiting("a", priority="LOW")
    assert fairness.gives_way_at(busy_for(), low.model, head_of(low), 1.0) == NOW + 1.0, "two loads of 4 s are less"
    assert fairness.gives_way_at(busy_for(20.0), low.model, head_of(low), 1.0) == 90.0 + 40.0


@pytest.mark.parametrize(("urgent", "turn"), [(1, 90.0 + 8 * 8.0), (2, NOW + 1.0), (3, NOW + 1.0)])
def test_to_less_urgent_requests_after_eight_bursts(urgent: int, turn: float) -> None:
    busy = busy_for()
    first = head_of(waiting("busy"))
    first.priority = urgent
    busy.model.queue.push(first)
    demand = waiting("a")
    assert fairness.gives_way_at(busy, demand.model, head_of(demand), 1.0) == turn


def lingering(gap_s: float = 0.001, last_used: float = 99.5) -> Worker:
    worker = loaded("idle", 800, last_used=last_used)
    worker.load_seconds, worker.loaded_at, worker.model.gap_s = 10.0, 50.0, gap_s
    return worker


def test_a_worker_lingers_for_a_part_of_what_the_swap_costs() -> None:
    demand = waiting("a", 600)
    demand.model.primary.load_seconds = 10.0
    head = head_of(demand)
    assert fairness.lingers_until(lingering(), demand.model, head, 50.0) == 99.5 + 1.0
    assert fairness.lingers_until(lingering(1 / 3), demand.model, head, 50.0) == 100.5, "the usual gap is short enough"
    assert fairness.lingers_until(lingering(0.34), demand.model, head, 50.0) == -math.inf
    assert fairness.lingers_until(lingering(last_used=NOW + 5), demand.model, head, 0.0) == NOW, "its turn is over"
    extra = lingering()
    extra.model.primary = loaded("other")
    assert fairness.lingers_until(extra, demand.model, head, 50.0) == -math.inf


def test_an_idle_worker_goes_when_its_moment_is_over() -> None:
    demand = waiting("a", 600)
    assert isinstance(decide(demand, view(lingering(last_used=99.5), patience_s=50.0)), MakeRoom)
    plan = place([demand], view(lingering(last_used=99.75), patience_s=50.0))
    assert isinstance(plan.decisions[0], Hold)
    assert (plan.look_at, plan.contested, plan.yields, plan.acts) == (100.25, True, {}, False)


def test_what_cannot_be_met_is_given_up_from_that_moment_on() -> None:
    demand = waiting("a", 600, deadline=NOW + 3.0)
    assert fairness.hopeless_from(head_of(demand)) == math.inf, "no load of it is known"
    demand.model.least_load_s = 3.0
    assert fairness.hopeless_from(head_of(demand)) == NOW
    assert isinstance(decide(demand, view(loaded("b", 800))), GiveUp)
    demand.model.least_load_s = 2.75
    assert isinstance(decide(demand, view(loaded("b", 800))), MakeRoom)


def test_a_busy_worker_yields_from_the_moment_of_its_turn() -> None:
    busy = at_work(loaded("b", 800))
    assert place([waiting("a", 600, since=NOW - 5)], view(busy, patience_s=5.0)).yields == {"b": "a"}
    later = place([waiting("a", 600, since=NOW - 4.5)], view(busy, patience_s=5.0))
    assert (later.yields, later.look_at) == ({}, NOW + 0.5)


def test_what_has_lost_patience_is_kept_the_room_that_is_free() -> None:
    busy, small = busy_for(20.0), waiting("small", 150, since=NOW)
    patient = place([waiting("a", 600, since=NOW - 4), small], view(busy, patience_s=5.0))
    assert [type(d) for d in patient.decisions] == [Hold, Admit]
    assert patient.look_at == NOW + 1.0
    impatient = place([waiting("a", 600, since=NOW - 5), small], view(busy, patience_s=5.0))
    assert [type(d) for d in impatient.decisions] == [Hold, Hold]
    assert "demands that came first wait for busy" in impatient.decisions[1].reason.why  # type: ignore[union-attr]


# ---------------------------------------------------------------- placement


HAIR = EPSILON_MB  # what sums of floats may miss


def test_a_sum_of_floats_that_misses_by_a_hair_keeps_no_model_out() -> None:
    assert isinstance(decide(waiting("a", 1000.0 + HAIR), view()), Admit)
    assert isinstance(decide(waiting("a", 1000.0 + 3 * HAIR), view()), Impossible)
    assert place_spare(Demand(Model(model("a", 1000.0 + HAIR)), Want.EXTRA), view()) == "gpu0"
    assert place_spare(Demand(Model(model("a", 1000.0 + 3 * HAIR)), Want.EXTRA), view()) is None
    seen = view(loaded("b", 800))
    seen.spaces["gpu0"].coming_mb = 700.0
    assert isinstance(decide(waiting("a", 700.0 + HAIR), seen), Claim)
    assert not isinstance(decide(waiting("a", 700.0 + 3 * HAIR), seen), Claim)
    claims = waiting("a", 1000.0 + HAIR)
    claims.claim, claims.claim_on = 1, "gpu0"
    assert lost_claims([claims], view()) == []
    assert choose({"a": 300, "b": 300}, {"a": 500.0, "b": 700.0}, [{"a": 700 + HAIR, "b": 700 + HAIR}]) == "a"
    assert choose({"a": 300, "b": 300}, {"a": 500.0, "b": 700.0}, [{"b": 400 + HAIR}]) == "b"


@pytest.mark.parametrize(("need", "fits"), [(200.0 + HAIR, True), (230.0, False)])
def test_what_is_free_then_suffices_or_is_spoken_for(need: float, fits: bool) -> None:
    """600 of the 700 MB that are free or coming back are claimed; 200 are free now."""
    seen = view(loaded("b", 150))
    seen.spaces["gpu0"].free_mb, seen.spaces["gpu0"].coming_mb = 200.0, 700.0
    plan = place([waiting("a", 600, since=1.0), waiting("c", need, since=2.0)], seen)
    assert isinstance(plan.decisions[0], Claim)
    decision = plan.decisions[1]
    assert isinstance(decision, MakeRoom)
    assert (decision.missing_mb, decision.fits) == (need - 100.0, fits)
    assert plan.acts


def test_a_worker_that_yields_does_not_grow_and_a_process_that_ends_is_waited_for() -> None:
    grows = loaded("a", 300)
    demand = growing(grows, 500)
    grows.move(Move.YIELD)
    assert decide(demand, view(grows)) is None
    again = waiting("b")
    again.model.workers.append(loaded("b"))
    assert decide(again, view()) is None
    assert decide(Demand(Model(model("c")), Want.LOAD), view()) is None, "no request waits"


def test_a_model_is_tried_again_at_its_time() -> None:
    demand = waiting("a")
    demand.model.failures.add("broken", NOW - 1.0, extra=False, guessed=False, permanent=False)
    assert isinstance(decide(demand, view()), Admit)


def test_why_is_told_of_a_process_that_cannot_grow_alone() -> None:
    assert decide(waiting("a", 1001), view()).why == ""
    grows = loaded("a", 300)
    assert decide(growing(grows, 1001), view(grows)).why == (
        "needs 1001 MB on gpu0, 700 of 1000 MB are free and no model there may go: a 300 MB (MEDIUM, 1 queued)"
    )


def test_a_claim_stays_on_its_device() -> None:
    def full() -> object:
        seen = view(loaded("x", 900, "gpu0"), loaded("y", 900, "gpu1"), devices=("gpu0", "gpu1"))
        for space in seen.spaces.values():
            space.coming_mb = 700.0
        return seen

    demand = waiting("a", 600)
    demand.claim_on = "gpu1"
    assert decide(demand, full()).device == "gpu0", "it has none"  # type: ignore[arg-type]
    demand.claim = 1
    assert decide(demand, full()).device == "gpu1"  # type: ignore[arg-type]
    loading = full()
    loading.spaces["gpu1"].loading = 1  # type: ignore[attr-defined]
    assert decide(demand, loading).device == "gpu1"  # type: ignore[arg-type]
    demand.claim_on = "gpu9"
    assert decide(demand, full()).device == "gpu0"  # type: ignore[arg-type]


def test_of_several_claims_the_first_comes_first_and_then_the_more_urgent_and_the_older() -> None:
    demands = {name: waiting(name, 2000, since=NOW) for name in ("claim1", "claim2", "urgent", "near", "old", "new")}
    demands["claim1"].claim, demands["claim2"].claim = 1, 2
    head_of(demands["urgent"]).priority = 1
    head_of(demands["near"]).deadline = NOW + 1.0
    found = [demands[name] for name in ("new", "old", "near", "urgent", "claim2", "claim1")]
    assert [demand.model.name for demand, _ in in_order(found, view())] == list(demands)


def test_a_doubtful_device_is_looked_at_again_and_taken_where_there_is_no_other() -> None:
    two = view(devices=("gpu0", "gpu1"))
    two.spaces["gpu0"].doubtful_until = NOW + 5
    plan = place([waiting("a")], two)
    assert (plan.decisions[0].device, plan.look_at) == ("gpu1", NOW + 5)  # type: ignore[union-attr]
    one = view()
    one.spaces["gpu0"].doubtful_until = NOW + 5
    plan = place([waiting("a")], one)
    assert (plan.decisions[0].device, plan.look_at) == ("gpu0", math.inf)  # type: ignore[union-attr]
    claims = waiting("a", 600)
    claims.claim, claims.claim_on = 1, "gpu0"
    for space, free in zip(two.spaces.values(), (1000.0, 0.0), strict=True):
        space.free_mb = space.coming_mb = free
    assert decide(claims, two).device == "gpu0", "room was made for it there"


@pytest.mark.parametrize(
    ("change", "device"), [("", "gpu0"), ("removed", "gpu1"), ("loaded", "gpu1"), ("only gpu0", "gpu1")]
)
def test_a_place_is_kept_for_the_largest_model_that_may_come(change: str, device: str) -> None:
    large = Model(model("large", 900, device="gpu0" if change == "only gpu0" else ""))
    if change == "removed":
        large.removed = True
    elif change == "loaded":
        large.workers.append(loaded("large", 900))
    seen = view(loaded("x", 300, "gpu0"), devices=("gpu0", "gpu1"))
    seen.models = [*seen.models, large]
    assert decide(waiting("a", 200), seen).device == device


def test_a_worker_that_yields_may_go_though_requests_wait_for_it_and_one_that_serves_may_not() -> None:
    worker = loaded("b", 800)
    worker.model.queue.push(head_of(waiting("b")))
    assert not isinstance(decide(waiting("a", 600), view(worker)), MakeRoom)
    worker.move(Move.YIELD)
    assert worker.phase is Phase.YIELDING
    assert isinstance(decide(waiting("a", 600), view(worker)), MakeRoom)


def test_spare_room_may_load_beside_as_many_as_are_allowed() -> None:
    seen = view(concurrent_loads=2)
    seen.spaces["gpu0"].loading = 1
    assert place_spare(Demand(Model(model("a")), Want.EXTRA), seen) == "gpu0"
    assert isinstance(decide(waiting("a"), seen), Admit)
    seen.spaces["gpu0"].loading = 2
    assert place_spare(Demand(Model(model("a")), Want.EXTRA), seen) is None


def test_what_uses_a_device_is_told_with_what_is_not_there() -> None:
    empty, worker = loaded("empty", 0), loaded("b", 800)
    assert users("gpu0", view(empty, worker)) == "b 800 MB (MEDIUM, idle)"
    worker.model.pinned = True
    assert users("gpu0", view(worker, loaded("c", 100))) == "b 800 MB (MEDIUM, pinned); c 100 MB (MEDIUM, idle)"
    seen = view(worker, unreturned_mb=lambda _: 50.0)
    seen.spaces["gpu0"].limit_mb = 900.0
    assert users("gpu0", seen) == (
        "all pinned or leased: b 800 MB (MEDIUM, pinned); 50 MB of ended processes have not come back; "
        "other programs leave 900 of the budget's 1000 MB"
    )
    assert users("gpu0", view()) == ""
    two = view(loaded("here", 100), loaded("there", 100, "gpu1"), devices=("gpu0", "gpu1"))
    assert users("gpu1", two) == "there 100 MB (MEDIUM, idle)"


# ---------------------------------------------------------------- overruns


def test_an_overrun_of_a_hair_is_none_and_what_is_coming_back_counts() -> None:
    worker = loaded("a", 300)
    assert short_mb("gpu0", overrun(worker, limit=300.0 - HAIR / 2)) == 0.0
    seen = overrun(worker, limit=250.0)
    assert short_mb("gpu0", seen) == 50.0
    seen.spaces["gpu0"].free_mb = -HAIR
    assert short_mb("gpu0", seen) == 0.0
    seen.spaces["gpu0"].free_mb = -50.0
    seen.spaces["gpu0"].coming_mb = 10.0
    assert (short_mb("gpu0", seen), relieve("gpu0", seen).victims) == (-10.0, [])


@pytest.mark.parametrize("why_not", ["held", "loading", "elsewhere", "as large as the budget", "as is needed"])
def test_only_a_loaded_process_that_alone_exceeds_the_budget_is_oversized(why_not: str) -> None:
    grown = loaded("grown", 300, device="gpu1" if why_not == "elsewhere" else "gpu0")
    grown.mb = 1000.0 + HAIR if why_not == "as large as the budget" else 1200.0
    if why_not == "held":
        grown.model.pinned = True
    elif why_not == "loading":
        grown = Worker(grown.model, 77, "gpu0")
        grown.mb = 1200.0
        grown.move(Move.START)
    elif why_not == "as is needed":
        grown.model.config.vram_mb = 1200.0
    seen = overrun(grown, loaded("other", 100), limit=900.0)
    seen.spaces["gpu1"] = seen.spaces["gpu0"]
    assert relieve("gpu0", seen).oversized == []


def test_what_frees_nothing_does_not_go_in_an_overrun() -> None:
    found = relieve("gpu0", overrun(at_work(loaded("busy", 400)), loaded("tiny", 0.5), loaded("empty", 0), limit=300.0))
    assert ([v.model for v in found.victims], found.short_mb) == (["tiny"], 100.0)
    found = relieve("gpu0", overrun(loaded("a", 300), limit=200.0))
    assert ([v.model for v in found.victims], found.short_mb) == (["a"], 0.0)


def test_an_oversized_process_that_goes_elsewhere_gives_nothing_back_here() -> None:
    grown, worker = loaded("grown", 300, "gpu1"), loaded("a", 300)
    grown.mb = 1200.0
    grown.move(Move.DRAIN)
    seen = overrun(worker, limit=250.0)
    seen.workers = [grown, worker]
    seen.spaces["gpu1"] = seen.spaces["gpu0"]
    assert short_mb("gpu0", seen) == 50.0


# ---------------------------------------------------------------- what a model is worth


def candidate(name: str = "a", mb: float = 100.0, priority: P = P.MEDIUM, **more: object) -> Candidate:
    return Candidate(name, mb, priority, **{"last_used": 90.0, **more})  # type: ignore[arg-type]


def test_expected_is_what_follows_and_the_rate_less_with_the_time_unused() -> None:
    habits = Habits()
    for name in ("wanted", "a", "wanted", "a", "b"):
        habits.asked(name)
    rates = [(2 ** (-3 / halves) + 2 ** (-1 / halves)) / 5 for halves in (16, 2000)]
    rate, soon = sum(rates) / 2, [math.exp(-later / 8) for later in range(16)]
    follows = (2 * soon[0] + min(1.0, sum(soon) * rate)) / 3
    foreseen = (1 - 1 / 2000) ** 4 + (1 - 1 / 2000) * (
        1 / 3
    ) / 2000  # the second "a" alone, with a turn's weight for no
    others = rate / (1 + rate) / foreseen
    assert habits.expected(["a"], "wanted") == pytest.approx([follows + others])
    assert habits.expected(["a"], "never") == pytest.approx([min(1.0, sum(soon) * rate) + others])
    assert habits.expected(["never"], "wanted") == [0.0]


def test_worth_is_weight_times_load_times_what_is_expected() -> None:
    weights = [adaptive.worth(priority, 2.0, 3.0) for priority in (P.CRITICAL, P.HIGH, P.MEDIUM, P.LOW)]
    assert weights == pytest.approx([24.0, 12.0, 8.4, 6.0])
    assert adaptive.worth(P.LOW, 0.0, 1.0) == 0.05


def test_candidates_are_valued_by_habit_and_a_guess_or_a_dispensable_one_is_worth_nothing() -> None:
    habits = Habits()
    for name in ("wanted", "a", "wanted", "a"):
        habits.asked(name)
    policy = Adaptive(habits)
    plain, spare, guess = policy.valued(
        [
            candidate(load_s=2.0),
            candidate("b", load_s=2.0, dispensable=True),
            candidate("c", load_s=2.0, unasked=True),
        ],
        "wanted",
        NOW,
    )
    assert plain.expected == habits.expected(["a"], "wanted")[0] > 0.0
    assert plain.worth == adaptive.worth(P.MEDIUM, 2.0, plain.expected)
    assert (spare.expected, spare.worth, guess.worth) == (0.0, 0.0, 0.0)
    assert policy.loss([plain, spare]) == (plain.worth, 200.0)


def test_the_reason_names_the_next_that_would_have_gone() -> None:
    policy = Adaptive(Habits())
    victim = candidate(load_s=2.0, expected=1.0, worth=2.8)
    text = "worth 2.8 s (MEDIUM 1.4 x 2.00 s to load x 1, unused for 10.0 s), 28 ms per MB"
    assert policy.why(victim, [], NOW) == f"{text}; no other could go"
    assert "27.4 ms per MB" in policy.why(candidate(worth=2.7449), [], NOW)
    assert "27.5 ms per MB" in policy.why(candidate(worth=2.7451), [], NOW)
    assert policy.why(victim, [candidate("tiny", 0.5, worth=1.0)], NOW).endswith("; next tiny, 2e+03")
    assert policy.why(victim, [candidate("other", worth=2.7449)], NOW).endswith("; next other, 27.4")
    assert policy.why(victim, [candidate("other", worth=2.7451)], NOW).endswith("; next other, 27.5")
    others = [candidate("dear", 10.0, worth=3.0), candidate("next", 1000.0, worth=9.0), candidate("empty", 0.0)]
    assert policy.why(victim, others, NOW) == f"{text}; next next, 9"
    assert [c.model for c in adaptive.order([*others[:2], candidate("guess", worth=99.0, unasked=True)])] == [
        "guess", "next", "dear",
    ]  # fmt: skip
    assert policy.why(candidate(unasked=True), others, NOW) == "loaded ahead, and not asked for since"


def test_by_priority_the_reason_is_priority_and_age_and_the_loss_the_most_important() -> None:
    policy = ByPriority()
    assert policy.why(candidate(), [], NOW) == "MEDIUM, unused for 10.0 s"
    assert policy.why(candidate(dispensable=True), [], NOW) == "MEDIUM, another worker stays, unused for 10.0 s"
    assert policy.why(candidate(unasked=True), [], NOW) == "loaded ahead, and not asked for since"
    high, low = candidate("h", 10.0, P.HIGH), candidate("l", 20.0, P.LOW)
    assert policy.loss([low]) < policy.loss([high, low]) < policy.loss([candidate("c", 1.0, P.CRITICAL)])
    assert policy.loss([high, low])[1] == 30.0
    assert policy.loss([candidate("c", 20.0, P.CRITICAL, unasked=True)]) == policy.loss([low])


@pytest.mark.parametrize("chooses", [adaptive.choose, by_priority.choose])
def test_guesses_go_first_and_hairs_do_not_count(chooses) -> None:  # type: ignore[no-untyped-def]
    crowd = [candidate("a", 100.0, P.LOW, worth=1.0), candidate("guess", 100.0, P.CRITICAL, unasked=True)]
    assert [v.model for v in chooses(100.0, crowd, P.LOW)] == ["guess"]
    assert [v.model for v in chooses(100.0 + HAIR, crowd, P.LOW)] == ["guess"]
    assert len(chooses(100.0 + 3 * HAIR, crowd, P.LOW)) == 2
    assert len(chooses(200.0 + HAIR, crowd, P.LOW)) == 2
    assert chooses(200.0 + 3 * HAIR, crowd, P.LOW) is None
    assert chooses(HAIR, crowd, P.LOW) == []
    assert [v.model for v in chooses(0.4, [candidate("tiny", 0.5), candidate("empty", 0.0)], P.LOW)] == ["tiny"]


def test_among_equals_one_beside_which_another_stays_goes_first() -> None:
    crowd = [candidate("old", last_used=1.0), candidate("spare", last_used=9.0, dispensable=True)]
    assert [v.model for v in by_priority.order(crowd)] == ["spare", "old"]
