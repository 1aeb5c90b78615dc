"""`eviction = "adaptive"`: what a model is worth, who goes, what is learned, and what the story says of it."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import pytest
from hypothesis import assume, given, settings

from broker.scheduler.capacity.adaptive import choose, order, use, worth
from broker.scheduler.capacity.by_priority import Candidate
from broker.scheduler.capacity.habits import AHEAD, HALF_LIFE_S, Habits
from broker.scheduler.capacity.ledger import EPSILON_MB
from broker.scheduler.state import State
from tests.scheduler.world import World, model
from zoo.config.schema import ModelPriority as P


def c(name: str, mb: float, seconds: float, priority: P = P.MEDIUM, last_used: float = 0.0) -> Candidate:
    return Candidate(name, mb, priority, last_used, worth=seconds)


def names(victims) -> list[str] | None:
    return None if victims is None else [v.model for v in victims]


# ---------------------------------------------------------------- worth


POSITIVE = st.floats(0.01, 1e4)
SHARE = st.floats(0, 1)


@given(often=POSITIVE, unused=POSITIVE, follows=SHARE, more=POSITIVE)
def test_use_grows_with_how_often_and_how_lately_and_with_what_follows(often, unused, follows, more) -> None:
    base = use(often, unused, follows)
    assert use(often + more, unused, follows) >= base
    assert use(often, unused + more, follows) <= base
    assert use(often, unused, min(1.0, follows + more)) >= base


@given(load=POSITIVE, expected=POSITIVE, more=POSITIVE)
def test_worth_grows_with_priority_load_time_and_use(load, expected, more) -> None:
    by_priority = [worth(p, load, expected) for p in (P.LOW, P.MEDIUM, P.HIGH, P.CRITICAL)]
    assert by_priority == sorted(by_priority)
    assert worth(P.LOW, load + more, expected) >= by_priority[0]
    assert worth(P.LOW, load, expected + more) >= by_priority[0]


# ---------------------------------------------------------------- the choice


def test_the_least_worth_per_megabyte_goes_whatever_its_priority() -> None:
    assert names(choose(100, [c("dear", 100, 9, P.LOW), c("cheap", 100, 1, P.HIGH)], P.LOW)) == ["cheap"]


def test_critical_only_for_critical_and_last() -> None:
    crowd = [c("critical", 500, 0.001, P.CRITICAL), c("dear", 500, 1000)]
    assert names(choose(400, crowd, P.CRITICAL)) == ["dear"]
    assert names(choose(400, crowd[:1], P.CRITICAL)) == ["critical"]
    for priority in (P.HIGH, P.MEDIUM, P.LOW):
        assert choose(600, crowd, priority) is None
        assert choose(400, crowd[:1], priority) is None


def test_a_small_model_goes_for_a_small_need_though_a_big_one_is_cheaper_per_megabyte() -> None:
    assert names(choose(400, [c("big", 2000, 10), c("small", 500, 3)], P.HIGH)) == ["small"]


CROWDS = st.lists(
    st.tuples(
        st.sampled_from([0, 0.1, 0.2, 50, 100, 100, 150, 300, 512.5]),
        st.sampled_from(list(P)),
        st.integers(0, 5),
        st.sampled_from([0.0, 0.1, 0.5, 1.0, 1.0, 7.0, 100.0]),
    ),
    max_size=8,
).map(lambda rows: [Candidate(f"m{i}", mb, p, used, worth=w) for i, (mb, p, used, w) in enumerate(rows)])


@settings(max_examples=600, deadline=None, print_blob=True)
@given(crowd=CROWDS, needed=st.floats(0.001, 1500), asking=st.sampled_from(list(P)))
def test_the_choice_is_enough_and_minimal_and_spares_critical(crowd, needed, asking) -> None:
    allowed = [x for x in crowd if x.mb > 0 and (x.priority is not P.CRITICAL or asking is P.CRITICAL)]
    victims = choose(needed, crowd, asking)
    if victims is None:
        assert sum(x.mb for x in allowed) < needed, "all together would have done"
        return
    assert sum(x.mb for x in victims) + 2 * EPSILON_MB >= needed
    assert all(v in allowed for v in victims)
    assert len({v.model for v in victims}) == len(victims)
    assert victims == order(victims), "told in the order in which they go"
    for size in range(len(victims)):
        assert not any(sum(x.mb for x in part) >= needed for part in itertools.combinations(victims, size))
    if any(v.priority is P.CRITICAL for v in victims):
        assert sum(x.mb for x in allowed if x.priority is not P.CRITICAL) < needed


@settings(max_examples=400, deadline=None, print_blob=True)
@given(crowd=CROWDS, needed=st.floats(0.001, 1500))
def test_of_two_equally_large_the_one_worth_less_goes_first(crowd, needed) -> None:
    crowd = [x for x in crowd if x.priority is not P.CRITICAL]
    victims = choose(needed, crowd, P.HIGH)
    assume(victims is not None)
    for victim in victims:
        for other in crowd:
            if other not in victims and other.mb == victim.mb:
                assert other.worth >= victim.worth


@given(crowd=CROWDS, needed=st.floats(0.001, 1500), seed=st.randoms())
def test_the_choice_does_not_depend_on_the_order_of_the_candidates(crowd, needed, seed) -> None:
    shuffled = list(crowd)
    seed.shuffle(shuffled)
    assert choose(needed, crowd, P.CRITICAL) == choose(needed, shuffled, P.CRITICAL)


# ---------------------------------------------------------------- habits


def test_what_was_asked_for_counts_by_half_after_the_half_life() -> None:
    habits = Habits()
    for _ in range(4):
        habits.asked("a", 0.0)
    assert habits.often("a", 0.0) == 4.0
    assert habits.often("a", HALF_LIFE_S) == 2.0
    assert habits.often("never", 0.0) == 0.0


def test_what_follows_is_learned_in_a_few_turns_and_forgotten_in_many() -> None:
    habits = Habits()
    for _ in range(3):
        habits.asked("plate", 0.0)
        habits.asked("ocr", 0.0)
        for i in range(AHEAD):
            habits.asked(f"other{i}", 0.0)
    assert habits.follows("plate", "ocr") == 1.0
    assert habits.follows("ocr", "plate") == 0.0
    for _ in range(300):
        habits.asked("plate", 0.0)
    assert habits.follows("plate", "ocr") < 0.02


# ---------------------------------------------------------------- in the scheduler


def test_the_story_tells_the_arithmetic_and_the_next() -> None:
    w = World([model("a", 300, "LOW"), model("b", 300, "HIGH"), model("new", 300)], 700, eviction="adaptive")
    w.load("a", "b")
    w.ask("new")
    assert w.state("a") is State.EVICTING
    (line,) = [text for text in w.story("a") if text.startswith("evicted")]
    assert "new needs 300 MB, 200 MB short of 700; worth" in line
    assert "LOW 1 x 0.05 s to load" in line
    assert "; next b, " in line


def test_what_follows_stays_though_it_is_the_longest_unused() -> None:
    w = World([model(n, 300) for n in ("plate", "ocr", "pet")], 700, eviction="adaptive")
    for _ in range(3):
        for name in ("plate", "ocr"):
            w.ask(name)
            w.settle()
            w.now += 1
    w.ask("pet")
    w.settle()
    w.now += 60
    alive = {name for name in ("plate", "ocr", "pet") if w.alive(name)}
    assert "pet" in alive
    missing = ({"plate", "ocr"} - alive).pop()
    w.ask(missing)
    assert w.state("pet") is State.EVICTING


@pytest.mark.parametrize("eviction", ["priority", "adaptive"])
def test_all_pinned_or_leased_is_said_as_such(eviction) -> None:
    w = World([model("a", pinned=True), model("b")], 512, eviction=eviction)
    w.load("a")
    asked = w.ask("b", timeout=5)
    w.wait(6)
    assert w.code(asked) == "deadline_exceeded"
    assert "all pinned or leased" in w.answer(asked).message
