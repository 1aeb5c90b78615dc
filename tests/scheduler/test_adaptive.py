"""`eviction = "adaptive"`: what a model is worth, who goes, what is learned, and what the story says of it."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import pytest
from hypothesis import assume, given, settings

from broker.scheduler.capacity.adaptive import SPARE_MB, choose, order, worth
from broker.scheduler.capacity.by_priority import Candidate
from broker.scheduler.capacity.habits import AHEAD, LONG_RUN, OF_LATE, Habits
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


def test_one_that_frees_enough_for_the_next_loads_as_well_goes_before_a_row_of_small_ones() -> None:
    small = [c(f"small{i}", 100, 1.0) for i in range(5)]
    assert names(choose(100, [c("large", 500, 1.5), *small], P.HIGH)) == ["large"]
    assert names(choose(100, [c("large", 500, 4.9), *small], P.HIGH)) == ["large"], "as long as it is cheaper per MB"
    assert names(choose(100, [c("large", 500, 5.1), *small], P.HIGH)) == ["small0"]
    assert names(choose(100, [c("large", 10 * SPARE_MB, 9.0), *small], P.HIGH)) == ["small0"], "not for any excess"


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


def expected(habits: Habits, name: str, after: str) -> float:
    return habits.expected([name], after)[0]


def test_what_is_asked_for_more_often_or_more_lately_is_expected_more() -> None:
    habits = Habits()
    for name in ("seldom", "often", "often", "old", "new"):
        habits.asked(name)
    assert expected(habits, "often", "x") > expected(habits, "seldom", "x") > 0.0
    assert expected(habits, "new", "x") > expected(habits, "old", "x")
    assert expected(habits, "never", "x") == 0.0


def test_a_burst_is_seen_at_once_and_a_steady_model_is_not_forgotten_for_it() -> None:
    habits = Habits()
    for i in range(3 * LONG_RUN):
        habits.asked("steady" if i % 10 == 0 else f"one of many {i % 1000}")
    for _ in range(6):
        habits.asked("burst")
    assert expected(habits, "burst", "x") > expected(habits, "steady", "x")
    for i in range(5 * OF_LATE):
        habits.asked(f"one of many {i}")
    assert expected(habits, "steady", "x") > expected(habits, "burst", "x")


def test_the_rate_counts_more_where_requests_say_little_of_the_next() -> None:
    draw, orderly, random = itertools.cycle([0, 3, 1, 2, 3, 0, 2, 1, 1, 3, 2, 0, 3]), Habits(), Habits()
    for i in range(LONG_RUN):
        orderly.asked("abcd"[i % 4])
        random.asked("abcd"[next(draw)])
    gain = [expected(habits, "d", "x") - expected(habits, "never", "x") for habits in (orderly, random)]
    assert gain[1] > gain[0]


def test_what_follows_sooner_or_more_surely_is_expected_more() -> None:
    habits = Habits()
    for i in range(40):
        for name in ("a", "next", *(["half"] if i % 2 else []), "later", *(f"other{i}-{n}" for n in range(30))):
            habits.asked(name)
    order = [expected(habits, name, "a") for name in ("next", "later", "half", "a", "never")]
    assert order == sorted(order, reverse=True)
    assert expected(habits, "next", "a") > 5 * expected(habits, "next", "later")


def test_what_follows_is_learned_in_a_few_turns_and_forgotten_in_many() -> None:
    habits = Habits()
    for _ in range(3):
        habits.asked("plate")
        habits.asked("ocr")
        for i in range(AHEAD):
            habits.asked(f"other{i}")
    assert habits.follows("plate", "ocr") == 1.0
    assert habits.follows("ocr", "plate") == 0.0
    for _ in range(2000):
        habits.asked("plate")
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
