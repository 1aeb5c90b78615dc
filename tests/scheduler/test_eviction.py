"""Who goes: the choice of victims against the rule, checked by brute force."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
from hypothesis import given, settings

from broker.scheduler.capacity.by_priority import Candidate, choose, order
from broker.scheduler.capacity.ledger import EPSILON_MB
from zoo.config.schema import ModelPriority as P


def c(name: str, mb: float, priority: P = P.MEDIUM, last_used: float = 0.0) -> Candidate:
    return Candidate(name, mb, priority, last_used)


def names(victims) -> list[str] | None:
    return None if victims is None else [v.model for v in victims]


def test_low_first_critical_last() -> None:
    crowd = [c("critical", 1, P.CRITICAL), c("low", 1, P.LOW), c("high", 1, P.HIGH), c("medium", 1)]
    assert names(order(crowd)) == ["low", "medium", "high", "critical"]


def test_among_equals_the_least_recently_used() -> None:
    assert names(choose(100, [c("new", 100, last_used=2), c("old", 100, last_used=1)], P.HIGH)) == ["old"]


def test_priority_comes_before_age() -> None:
    assert names(choose(100, [c("old", 100, P.HIGH, 1), c("new", 100, P.LOW, 9)], P.HIGH)) == ["new"]


def test_critical_only_for_critical() -> None:
    crowd = [c("critical", 500, P.CRITICAL)]
    for priority in (P.HIGH, P.MEDIUM, P.LOW):
        assert choose(100, crowd, priority) is None
    assert names(choose(100, crowd, P.CRITICAL)) == ["critical"]


def test_a_low_model_may_displace_an_idle_high_one() -> None:
    """Priority says which goes first, not which may ask: the victim is not in use."""
    assert names(choose(100, [c("high", 100, P.HIGH)], P.LOW)) == ["high"]


def test_no_model_goes_when_it_would_not_do() -> None:
    assert choose(500, [c("a", 200), c("b", 200)], P.HIGH) is None


def test_no_model_goes_when_nothing_is_needed() -> None:
    assert choose(0, [c("a", 200)], P.HIGH) == []


def test_who_frees_nothing_does_not_go() -> None:
    assert names(choose(10, [c("empty", 0, P.LOW), c("a", 10)], P.HIGH)) == ["a"]


def test_the_most_valuable_unnecessary_victim_is_spared_first() -> None:
    crowd = [c("a", 100, P.LOW), c("b", 100, P.MEDIUM), c("d", 300, P.HIGH)]
    assert names(choose(400, crowd, P.HIGH)) == ["a", "d"]


CROWDS = st.lists(
    st.tuples(
        st.sampled_from([0, 0.1, 0.2, 50, 100, 100, 150, 300, 512.5]), st.sampled_from(list(P)), st.integers(0, 5)
    ),
    max_size=8,
).map(lambda rows: [Candidate(f"m{i}", mb, priority, used) for i, (mb, priority, used) in enumerate(rows)])


@settings(max_examples=600, deadline=None, print_blob=True)
@given(crowd=CROWDS, needed=st.floats(0.001, 1500), asking=st.sampled_from(list(P)))
def test_the_choice_is_enough_minimal_and_in_the_order_of_the_policy(crowd, needed, asking) -> None:
    allowed = [x for x in crowd if x.mb > 0 and (x.priority is not P.CRITICAL or asking is P.CRITICAL)]
    victims = choose(needed, crowd, asking)

    def enough(group) -> bool:
        return sum(x.mb for x in group) + 2 * EPSILON_MB >= needed

    def surely_enough(group) -> bool:
        return sum(x.mb for x in group) >= needed

    if victims is None:
        assert not surely_enough(allowed), "all together would have done"
        return
    assert enough(victims)
    assert len({v.model for v in victims}) == len(victims)
    assert all(v in allowed for v in victims)
    assert victims == order(victims), "told in the order in which they go"
    for size in range(len(victims)):  # no part of the choice would have done: brute force over all parts
        assert not any(surely_enough(part) for part in itertools.combinations(victims, size))
    spared = [x for x in order(allowed) if x not in victims]
    ranks = {x.model: i for i, x in enumerate(order(allowed))}
    for victim in victims:  # nothing less valuable could have gone in a victim's stead
        for other in spared:
            if ranks[other.model] < ranks[victim.model]:
                assert not surely_enough([v for v in victims if v is not victim] + [other])


@given(crowd=CROWDS, needed=st.floats(0.001, 1500), seed=st.randoms())
def test_the_choice_does_not_depend_on_the_order_of_the_candidates(crowd, needed, seed) -> None:
    shuffled = list(crowd)
    seed.shuffle(shuffled)
    assert choose(needed, crowd, P.CRITICAL) == choose(needed, shuffled, P.CRITICAL)
