"""Figures from outside, and what of them is remembered: the peaks of a model's processes. Pure.

A figure that makes no sense is taken for unknown. NaN and infinity are among what a message can carry, and would spread
into every sum, every timer, every comparison.
"""

from __future__ import annotations

import math
from typing import Annotated

import msgspec

LIVES = 8  # processes of which a model's peak is remembered
MOST_MB = 1e9  # more is no measurement
PRIORITY_LAST = 3

Megabytes = Annotated[float, msgspec.Meta(ge=0, le=MOST_MB)]


class Peak(msgspec.Struct, frozen=True):
    """The most that a model's process has been seen to use on a device, in its last `LIVES` processes that are known.

    `worked`: it had run a request by then. Until one has, the peak is what a load takes, and says nothing about work.
    `lives`: the most of each process that ran a request, the newest last; none where an earlier release wrote it down.
    """

    mb: Megabytes
    worked: bool = False
    lives: tuple[Megabytes, ...] = ()

    def loaded(self, mb: float) -> Peak:
        """With what was seen before any request had run."""
        return Peak(max(self.mb, mb), self.worked, self.lives)

    def lived(self, mb: float, *, again: bool) -> Peak:
        """With what a process took that has run a request; `again`: the newest process that is known."""
        before = self.lives or ((self.mb,) if self.worked else ())
        mb = mb if self.worked else max(mb, self.mb)  # its load
        lives = (*before[:-1], max(before[-1], mb)) if again and before else (*before, mb)[-LIVES:]
        return Peak(max(lives), True, lives)

    def within(self, budget_mb: float) -> Peak | None:
        """Without processes that took more than the whole budget, unless all did; None if nothing is left.

        One request can do that to a process, and would make the model too large for all others.
        """
        if not self.worked or self.mb <= budget_mb:
            return self
        fitting = tuple(mb for mb in self.lives if mb <= budget_mb)
        if fitting:
            return Peak(max(fitting), True, fitting)
        return self if len(self.lives) > 1 else None


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
