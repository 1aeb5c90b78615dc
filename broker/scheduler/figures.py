"""What a figure from outside is worth: one that makes no sense is taken for unknown.

NaN and infinity are among what a message can carry, and would spread into every sum, every timer, every comparison.
"""

from __future__ import annotations

import math

from broker.scheduler.residency import MOST_MB

PRIORITY_LAST = 3


def is_mb(mb: float) -> bool:
    """Megabytes that can have been measured."""
    return 0 <= mb <= MOST_MB


def known_mb(mb: float) -> float:
    """The megabytes, or 0 for unknown."""
    return mb if is_mb(mb) else 0.0


def known_seconds(seconds: float | None) -> float | None:
    """The seconds, which may be infinitely many, or None for unknown."""
    return None if seconds is None or math.isnan(seconds) or seconds < 0 else seconds


def moment(when: float, now: float) -> float:
    """The moment, or now."""
    return when if when == when else now


def priority(wanted: int) -> int:
    """The nearest that there is."""
    return min(max(wanted, 0), PRIORITY_LAST)
