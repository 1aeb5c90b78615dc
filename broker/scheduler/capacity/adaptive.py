"""`eviction = "adaptive"`: what is least worth its room goes. Pure; takes the place of `by_priority.py`.

From the family of GreedyDual-Size-Frequency (Cherkasova 1998). What keeping a model is worth are the seconds that its
reload would cost, times how much its next use is to be expected, times a weight for its priority:

    worth = weight * load seconds * (often ** 0.3 * 60 / (60 + seconds unused) + 30 * follows)

`often` and `follows` are told in `habits.py`; `follows` is how probably the model is asked for soon after the one that
needs the room. The victims are those that together are worth least. The constants were found by replaying camera
traces; docs/eviction.md says how much each matters.

CRITICAL is as protected as by priority: it goes only for CRITICAL, and when no other choice would do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from broker.scheduler.capacity.by_priority import Candidate, may_go, spare
from broker.scheduler.capacity.habits import Habits
from broker.scheduler.capacity.ledger import EPSILON_MB
from zoo.config.schema import ModelPriority

WEIGHT = {ModelPriority.CRITICAL: 4.0, ModelPriority.HIGH: 2.0, ModelPriority.MEDIUM: 1.4, ModelPriority.LOW: 1.0}
LEAST_LOAD_S = 0.05  # a kill and a start, whatever the model
UNUSED_S = 60.0
OFTEN = 0.3
SOON = 30.0


def use(often: float, unused_s: float, follows: float) -> float:
    """How much the next use is to be expected; no unit, for comparison only."""
    return float(often**OFTEN) * UNUSED_S / (UNUSED_S + max(0.0, unused_s)) + SOON * follows


def worth(priority: ModelPriority, load_s: float, expected: float) -> float:
    """Seconds at stake when a model goes; `expected` as from `use`."""
    return WEIGHT[priority] * max(load_s, LEAST_LOAD_S) * expected


def choose(needed_mb: float, candidates: Sequence[Candidate], for_priority: ModelPriority) -> list[Candidate] | None:
    """Victims that together free `needed_mb`, or None when all that may go would not do. See `by_priority.choose`."""
    allowed = may_go(candidates, for_priority)
    if sum(c.mb for c in allowed) + EPSILON_MB < needed_mb:
        return None
    others = [c for c in allowed if c.unasked or c.priority != ModelPriority.CRITICAL]
    rest = needed_mb - sum(c.mb for c in others)
    if rest <= EPSILON_MB:
        return _cheapest(needed_mb, others)
    critical = _cheapest(rest, [c for c in allowed if c not in others])
    return _spare(needed_mb, [*others, *critical])


def order(candidates: Sequence[Candidate]) -> list[Candidate]:
    """From the least to the most worth per megabyte."""
    return sorted(candidates, key=lambda c: (not c.unasked, c.worth / c.mb, c.last_used, c.model))


def _spare(needed_mb: float, chosen: Sequence[Candidate]) -> list[Candidate]:
    return order(spare(needed_mb, sorted(chosen, key=lambda c: (c.worth, c.last_used, c.model))))


def _cheapest(needed_mb: float, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The cheapest of: the first few of the order, and one more that suffices. `candidates` together do.

    To look for the best of all sets would be a knapsack problem; these are the sets among which its solution is, or
    one that is at most twice as dear.
    """
    ordered = order(candidates)
    best: tuple[float, float, str] | None = None
    chosen: list[Candidate] = []
    first: list[Candidate] = []
    freed = spent = 0.0
    for i, candidate in enumerate(ordered):
        for last in ordered[i:]:
            if freed + last.mb + EPSILON_MB >= needed_mb:
                key = spent + last.worth, last.last_used, last.model
                if best is None or key < best:
                    best, chosen = key, [*first, last]
        first.append(candidate)
        freed += candidate.mb
        spent += candidate.worth
        if freed + EPSILON_MB >= needed_mb:
            break
    return _spare(needed_mb, chosen)


@dataclass(eq=False)
class Adaptive:
    """`by_priority.Policy` by worth. `habits`: kept by the caller."""

    habits: Habits

    def valued(self, candidates: list[Candidate], wanted: str, now: float) -> list[Candidate]:
        return [self._valued(c, wanted, now) for c in candidates]

    def _valued(self, c: Candidate, wanted: str, now: float) -> Candidate:
        if c.unasked:
            return c  # a guess is worth nothing where its room is needed
        expected = 0.0  # of a worker beside which another stays: no request has to wait for its reload
        if not c.dispensable:
            expected = use(self.habits.often(c.model, now), now - c.last_used, self.habits.follows(wanted, c.model))
        return msgspec.structs.replace(c, expected=expected, worth=worth(c.priority, c.load_s, expected))

    def choose(
        self, needed_mb: float, candidates: list[Candidate], for_priority: ModelPriority
    ) -> list[Candidate] | None:
        return choose(needed_mb, candidates, for_priority)

    def order(self, candidates: list[Candidate]) -> list[Candidate]:
        return order(candidates)

    def loss(self, victims: list[Candidate]) -> tuple[float, float]:
        return sum(v.worth for v in victims), sum(v.mb for v in victims)

    def why(self, victim: Candidate, spared: list[Candidate], now: float) -> str:
        if victim.unasked:
            return "loaded ahead, and not asked for since"
        text = (
            f"worth {victim.worth:.3g} s ({victim.priority.name} {WEIGHT[victim.priority]:g} x "
            f"{max(victim.load_s, LEAST_LOAD_S):.2f} s to load x {victim.expected:.3g}, unused for "
            f"{now - victim.last_used:.1f} s), {1000 * victim.worth / victim.mb:.3g} ms per MB"
        )
        next_one = min((c for c in spared if c.mb > 0), key=lambda c: (c.worth / c.mb, c.model), default=None)
        if next_one is None:
            return f"{text}; no other could go"
        return f"{text}; next {next_one.model}, {1000 * next_one.worth / next_one.mb:.3g}"
