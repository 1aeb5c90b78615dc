"""Models that are asked for together and do not fit together: who serves how long, and whose turn is next."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.scheduler.state import Phase, State
from tests.scheduler.world import World, model

LOAD_S = 2.0
POLICIES = ["priority", "adaptive"]


def two(*, priorities: str = "MEDIUM MEDIUM", **broker) -> World:
    """ "a" is loaded, "b" was; both took `LOAD_S` to load, and they do not fit together."""
    a, b = priorities.split()
    w = World([model("a", 300, a), model("b", 300, b)], 512, patience_seconds=1.0, **broker)
    for name in ("b", "a"):
        w.preload(name)
        if w.state(name) is State.UNLOADED:
            w.gone("b")
        w.wait(LOAD_S)
        w.ready(name)
    return w


def serve(w: World, name: str, each_s: float) -> None:
    """One request of the model is answered, and its caller asks again at once."""
    w.wait(each_s)
    w.done(name)
    w.ask(name, client=b"stream")


def served_until_it_yields(w: World, each_s: float = 0.1) -> float:
    """For how long a stream of requests keeps "a", seen from now."""
    began = w.now
    for _ in range(5):
        w.ask("a", client=b"stream")
    while w.worker("a").phase is not Phase.YIELDING:
        serve(w, "a", each_s)
        assert w.now < began + 60
    return w.now - began


def visit(w: World, times: int, gap_s: float) -> None:
    """A caller of "a" who takes so long after each answer."""
    for _ in range(times):
        w.ask("a")
        w.wait(0.1)
        w.done("a")
        w.wait(gap_s)


def test_a_burst_lasts_as_long_as_it_takes_to_earn_the_swap() -> None:
    w = two()
    w.ask("a")
    waiter = w.ask("b")
    assert served_until_it_yields(w) == pytest.approx(4 * LOAD_S, abs=0.2)
    while w.state("a") is not State.EVICTING:
        w.wait(0.1)
        w.done("a")
    w.gone("a")
    w.ready("b")
    assert waiter in w.dispatches()


def test_a_queue_that_is_worked_off_earlier_is_the_end_of_the_burst() -> None:
    w = two()
    w.ask("a")
    w.ask("b")
    w.wait(0.5)
    w.done("a")
    assert w.state("a") is State.EVICTING


def test_a_waiter_short_of_time_ends_the_burst_but_not_the_minimum_residency() -> None:
    w = two()
    w.ask("a")
    w.ask("b", timeout=7.0)  # a load with its margin takes 3 s of them
    assert served_until_it_yields(w) == pytest.approx(4.0, abs=0.2)
    w = two()
    w.ask("a")
    w.ask("b", timeout=4.5)
    assert served_until_it_yields(w) == pytest.approx(LOAD_S, abs=0.2)


def test_a_more_important_model_waits_for_patience_only() -> None:
    w = two(priorities="MEDIUM HIGH")
    w.ask("a")
    w.ask("b")
    assert served_until_it_yields(w) == pytest.approx(1.0, abs=0.2)


def test_a_model_does_not_give_way_to_less_urgent_requests() -> None:
    w = two()
    for _ in range(100):
        w.ask("a", priority=1)
    w.ask("b", priority=2)
    for _ in range(100):
        assert w.state("a") is State.LOADED
        w.wait(0.3)
        w.done("a")
    assert w.state("a") is State.EVICTING  # idle


def test_callers_that_come_right_back_keep_their_model_for_the_burst() -> None:
    """Two clients, each waiting for its answer before it asks again: not one answer for each load."""
    w = two()
    visit(w, 20, 0.01)
    began, answers = w.worker("a").loaded_at, 0
    w.ask("b")
    while w.state("a") is State.LOADED:
        w.ask("a")
        w.wait(0.1)
        w.done("a")
        answers += 1
        w.wait(0.01)
    assert w.now - began == pytest.approx(4 * LOAD_S, abs=0.2)
    assert answers > 40


def test_a_caller_that_stays_away_delays_the_swap_by_a_moment_only() -> None:
    w = two()
    visit(w, 20, 0.01)
    w.ask("b")
    assert w.state("a") is State.LOADED
    assert any("usually come right back" in line for line in w.story("b"))
    w.wait(0.2)
    assert w.state("a") is State.EVICTING


def test_no_model_lingers_whose_callers_take_their_time() -> None:
    w = two()
    visit(w, 5, 0.5)
    w.ask("b")
    assert w.state("a") is State.EVICTING


def test_what_cannot_be_met_any_more_is_refused_at_once_and_evicts_nothing() -> None:
    w = two()
    late = w.ask("b", timeout=1.9)
    assert w.code(late) == "deadline_exceeded"
    assert "its fastest load took 2.00 s, and 1.90 s are left" in w.answer(late).message
    assert w.state("a") is State.LOADED
    assert not w.s.registry.requests


def test_what_cannot_be_met_any_more_is_refused_when_it_becomes_so() -> None:
    w = two()
    w.lease("a")
    late = w.ask("b", timeout=5.0)
    w.wait(2.9)
    assert w.code(late) is None
    w.wait(0.2)
    assert w.code(late) == "deadline_exceeded"


def test_a_request_without_a_chance_still_has_its_model_loaded_where_there_is_room() -> None:
    """The next one will find it there."""
    w = two()
    w.unload("a")
    w.gone("a")
    late = w.ask("b", timeout=1.0)
    assert w.state("b") is State.LOADING
    w.wait(1.0)
    assert w.code(late) == "deadline_exceeded"
    w.ready("b")
    assert w.state("b") is State.LOADED


def test_the_nearest_deadline_goes_first_among_models() -> None:
    w = World([model("a", 300), model("b", 300), model("c", 300)], 512)
    w.load("a")
    w.ask("a")
    w.ask("b", timeout=20.0)
    w.ask("c", timeout=10.0)
    w.done("a")
    w.gone("a")
    assert w.state("c") is State.LOADING


def test_a_far_deadline_is_not_put_off_for_ever() -> None:
    """Beyond what is usual it counts as usual: a stream with nearer deadlines would else always be first."""
    w = World([model("a", 300), model("b", 300), model("c", 300)], 512, request_timeout=30.0)
    w.load("a")
    w.ask("a")
    w.ask("b", timeout=9000.0)
    w.wait(1.0)
    w.ask("c", timeout=30.0)
    w.done("a")
    w.gone("a")
    assert w.state("b") is State.LOADING


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 8), fits=st.integers(2, 6), policy=st.sampled_from(POLICIES))
def test_small_models_that_never_rest_cannot_hold_up_a_big_one(seed: int, count: int, fits: int, policy: str) -> None:
    """It gets its room when it has lost patience and those in its way have had their turn."""
    small = [model(f"small{i}", 100) for i in range(count)]
    w = World([*small, model("big", 100 * fits)], 100 * fits, patience_seconds=1.0, eviction=policy)
    draw = random.Random(seed)

    def rush(seconds: float) -> None:
        """Each small model has requests waiting at all times; loads take half a second, answers 50 ms."""
        end = w.now + seconds
        while w.now < end and big not in w.dispatches():
            for m in draw.sample(small, len(small)):
                while w.s.models[m.name].waiting < 2:
                    w.ask(m.name)
            w.wait(0.05)
            for p in list(w.processes.values()):
                if p.running or p.killed or (p.loading and w.now >= w.worker(p.model).started_at + 0.5):
                    w.step(p)

    big = 0
    rush(3.0)
    big = w.ask("big")
    rush(12.0)
    assert big in w.dispatches(), w.story("big")


def test_a_more_urgent_request_for_a_model_that_waits_already_counts_at_once() -> None:
    w = World([model("busy", 600), model("big", 800), model("small", 100)], 1000, patience_seconds=1.0)
    w.load("busy")
    w.ask("busy", timeout=100.0)
    w.ask("big", priority=1)
    w.wait(1.5)
    w.ask("small", priority=2)
    assert w.starts() == ["busy"], "what is free is kept for the big one, which has waited for long"
    w.ask("small", priority=0)
    assert w.starts() == ["busy", "small"]
