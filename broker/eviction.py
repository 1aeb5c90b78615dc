"""Who goes when room is needed. Pure: takes candidates, gives victims, never acts.

Strictly by priority, LOW first; among equals the least recently used first. CRITICAL goes only for CRITICAL.
No more victims than needed: whoever turns out to be unnecessary, because a larger one had to go as well, is
spared, the most valuable first.
"""

from __future__ import annotations

import msgspec

from broker.ledger import EPSILON_MB
from zoo.config import ModelPriority


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """A loaded model that nobody is using: no lease, no pin, no request in flight."""

    model: str
    mb: float
    priority: ModelPriority
    last_used: float


def order(candidates: list[Candidate]) -> list[Candidate]:
    """From the least to the most valuable."""
    return sorted(candidates, key=lambda c: (-c.priority, c.last_used, c.model))


def choose(needed_mb: float, candidates: list[Candidate], for_priority: ModelPriority) -> list[Candidate] | None:
    """Victims that together free `needed_mb`, or None when all that may go would not do.

    Args:
        for_priority: of the model that needs the room.
    """
    allowed = [
        c
        for c in candidates
        if c.mb > 0 and (c.priority != ModelPriority.CRITICAL or for_priority == ModelPriority.CRITICAL)
    ]
    chosen: list[Candidate] = []
    freed = 0.0
    for candidate in order(allowed):
        if freed + EPSILON_MB >= needed_mb:
            break
        chosen.append(candidate)
        freed += candidate.mb
    if freed + EPSILON_MB < needed_mb:
        return None
    for candidate in reversed(list(chosen)):
        if freed - candidate.mb + EPSILON_MB >= needed_mb:
            chosen.remove(candidate)
            freed -= candidate.mb
    return chosen
