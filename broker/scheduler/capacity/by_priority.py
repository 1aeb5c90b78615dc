"""Which workers go when room is needed. Pure: takes candidates, gives victims, never acts.

Strictly by priority, LOW first; among equals first those beside which another worker of the model stays, then the least
recently used. CRITICAL goes only for CRITICAL. No more victims than needed: one that turns out to be unnecessary,
because a larger one had to go as well, is spared, the most valuable first.

That is `eviction = "priority"`, the default; `adaptive.py` has the other policy. Both are a `Policy` to the scheduler.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from broker.scheduler.capacity.ledger import EPSILON_MB
from zoo.config.schema import ModelPriority


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """A loaded worker that is not in use: no lease, no pin, no request in flight.

    `load_s`: how long its last load took. `dispensable`: another worker of the model stays. `expected`, `worth`: see
    `adaptive.py`, which fills them in. `unasked`: it was loaded ahead of any request, and goes before all others,
    whatever its priority.
    """

    model: str
    mb: float
    priority: ModelPriority
    last_used: float
    load_s: float = 0.0
    dispensable: bool = False
    expected: float = 0.0
    worth: float = 0.0
    unasked: bool = False


class Policy(Protocol):
    """What the scheduler wants of a policy. Nothing here changes it."""

    def valued(self, candidates: list[Candidate], wanted: str, now: float) -> list[Candidate]:
        """The candidates, with what `choose` wants to know of them when room is needed for `wanted`."""

    def choose(
        self, needed_mb: float, candidates: list[Candidate], for_priority: ModelPriority
    ) -> list[Candidate] | None:
        """See `choose` below."""

    def order(self, candidates: list[Candidate]) -> list[Candidate]:
        """From the least to the most valuable, whatever they are wanted for."""

    def loss(self, victims: list[Candidate]) -> tuple[float, float]:
        """To compare choices on several devices: the least goes."""

    def why(self, victim: Candidate, spared: list[Candidate], now: float) -> str:
        """In words, with the arithmetic."""


class ByPriority:
    """`Policy` of this module."""

    def valued(self, candidates: list[Candidate], wanted: str, now: float) -> list[Candidate]:
        return candidates

    def choose(
        self, needed_mb: float, candidates: list[Candidate], for_priority: ModelPriority
    ) -> list[Candidate] | None:
        return choose(needed_mb, candidates, for_priority)

    def order(self, candidates: list[Candidate]) -> list[Candidate]:
        return order(candidates)

    def loss(self, victims: list[Candidate]) -> tuple[float, float]:
        dearest = min((v.priority for v in victims if not v.unasked), default=ModelPriority.LOW)
        return -dearest, sum(v.mb for v in victims)

    def why(self, victim: Candidate, spared: list[Candidate], now: float) -> str:
        if victim.unasked:
            return "loaded ahead, and not asked for since"
        several = "another worker stays, " if victim.dispensable else ""
        return f"{victim.priority.name}, {several}unused for {now - victim.last_used:.1f} s"


def order(candidates: list[Candidate]) -> list[Candidate]:
    """From the least to the most valuable."""
    return sorted(candidates, key=lambda c: (not c.unasked, -c.priority, not c.dispensable, c.last_used, c.model))


def choose(needed_mb: float, candidates: list[Candidate], for_priority: ModelPriority) -> list[Candidate] | None:
    """Victims that together free `needed_mb`, or None when all that may go would not do.

    Args:
        for_priority: of the model that needs the room.
    """
    chosen: list[Candidate] = []
    freed = 0.0
    for candidate in order(may_go(candidates, for_priority)):
        if freed + EPSILON_MB >= needed_mb:
            break
        chosen.append(candidate)
        freed += candidate.mb
    if freed + EPSILON_MB < needed_mb:
        return None
    return spare(needed_mb, chosen)


def may_go(candidates: Sequence[Candidate], for_priority: ModelPriority) -> list[Candidate]:
    """Those that free anything; CRITICAL only for CRITICAL, unless it was loaded ahead and not asked for."""
    critical = for_priority == ModelPriority.CRITICAL
    return [c for c in candidates if c.mb > 0 and (critical or c.unasked or c.priority != ModelPriority.CRITICAL)]


def spare(needed_mb: float, chosen: Sequence[Candidate]) -> list[Candidate]:
    """Without those that turn out to be unnecessary, seen from the last one, the most valuable."""
    victims = list(chosen)
    freed = sum(v.mb for v in victims)
    for candidate in reversed(chosen):
        if freed - candidate.mb + EPSILON_MB >= needed_mb:
            victims.remove(candidate)
            freed -= candidate.mb
    return victims
