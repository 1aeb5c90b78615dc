"""`eviction = "adaptive"`: what is least worth its room goes. Pure; takes the place of `by_priority.py`.

From the family of GreedyDual-Size-Frequency (Cherkasova 1998). What keeping a model is worth are the seconds that its
reload would cost, times how much its next use is to be expected, times a weight for its priority:

    worth = weight * load seconds * expected

`expected` is told in `habits.py`: how soon and how surely the model is usually asked for after the one that needs the
room, and how often it is asked for anyway. The victims are those that together are worth least, less what the memory is
worth that they free beyond need: the next load needs some of that, and a row of small victims, one for each of the
next loads, costs more than one that frees enough for all. docs/eviction.md says how much each constant matters.

CRITICAL is as protected as by priority: it goes only for CRITICAL, and when no other choice would do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from broker.scheduler.capacity.by_priority import Candidate, may_go, spare
from broker.scheduler.capacity.habits import Habits
from broker.scheduler.capacity.ledger import EPSILON_MB
from zoo.config.schema import ModelPriority

WEIGHT = {ModelPriority.CRITICAL: 4.0, ModelPriority.HIGH: 2.0, ModelPriority.MEDIUM: 1.4, ModelPriority.LOW: 1.0}
LEAST_LOAD_S = 0.05  # a kill and a start, whatever the model
SPARE_MB = 500.0  # so much beyond need has a value


def worth(priority: ModelPriority, load_s: float, expected: float) -> float:
    """Seconds at stake when a model goes; `expected` as from `Habits.expected`."""
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
    one that is at most twice as dear. Up to `SPARE_MB` beyond need are worth what they would cost as the next in order.
    """
    ordered = order(candidates)
    price = _next_price(needed_mb + SPARE_MB, ordered)
    best = math.inf, 0.0, ""
    chosen: list[Candidate] = []
    first: list[Candidate] = []
    freed = spent = 0.0
    for i, candidate in enumerate(ordered):
        for last in ordered[i:]:
            spare_mb = freed + last.mb - needed_mb
            if spare_mb + EPSILON_MB >= 0:
                cost = spent + last.worth - price * (spare_mb if spare_mb < SPARE_MB else SPARE_MB)
                if cost <= best[0] and (key := (cost, last.last_used, last.model)) < best:
                    best, chosen = key, [*first, last]
        first.append(candidate)
        freed += candidate.mb
        spent += candidate.worth
        if freed + EPSILON_MB >= needed_mb:
            break
    return _spare(needed_mb, chosen)


def _next_price(needed_mb: float, ordered: Sequence[Candidate]) -> float:
    """Worth per megabyte of the candidate with which `needed_mb` would be free, or of the last."""
    for candidate in ordered:
        needed_mb -= candidate.mb
        if needed_mb <= EPSILON_MB:
            break
    return candidate.worth / candidate.mb


@dataclass(eq=False)
class Adaptive:
    """`by_priority.Policy` by worth. `habits`: kept by the caller."""

    habits: Habits

    def valued(self, candidates: list[Candidate], wanted: str, now: float) -> list[Candidate]:
        found = []
        expected = self.habits.expected([c.model for c in candidates], wanted)
        for c, much in zip(candidates, expected, strict=True):
            if c.unasked:  # a guess is worth nothing where its room is needed
                found.append(c)
                continue
            if c.dispensable:  # beside it another stays: no request has to wait for its reload
                much = 0.0
            seconds = worth(c.priority, c.load_s, much)
            found.append(Candidate(c.model, c.mb, c.priority, c.last_used, c.load_s, c.dispensable, much, seconds))
        return found

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
