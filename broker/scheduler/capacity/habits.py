"""How often each model is asked for, and what is usually asked for after it. Pure: time comes in.

A camera backend asks in sequences: a plate that was found is read next, a person in view wants eight models one after
another. So what a request says about the next few is worth more than the age of the last use, and a few of its turns
are enough to see it: `follows` counts, for each model, which others came among the next `AHEAD` requests. Both counts
fade: how often by half each `HALF_LIFE_S`, what follows by half each `REMEMBERED` turns.
"""

from __future__ import annotations

from collections import deque

AHEAD = 8  # requests: most of an event, little of the next
HALF_LIFE_S = 3600.0
REMEMBERED = 50


class Habits:
    def __init__(self) -> None:
        self._count: dict[str, tuple[float, float]] = {}  # as it was at a time
        self._turns: dict[str, float] = {}
        self._after: dict[str, dict[str, float]] = {}
        self._recent: deque[tuple[str, set[str]]] = deque(maxlen=AHEAD)  # and which followers were counted already

    def asked(self, model: str, now: float) -> None:
        for before, counted in self._recent:
            if model not in counted and before != model:
                counted.add(model)
                after = self._after[before]
                after[model] = after.get(model, 0.0) + 1.0
        self._recent.append((model, set()))
        after = self._after.setdefault(model, {})
        turns = self._turns.get(model, 0.0) + 1.0
        if turns > REMEMBERED:
            turns /= 2
            self._after[model] = {other: n / 2 for other, n in after.items() if n > 1.0}
        self._turns[model] = turns
        self._count[model] = self.often(model, now) + 1.0, now

    def often(self, model: str, now: float) -> float:
        """How many times it was asked for, each counting half as much after `HALF_LIFE_S`."""
        count, at = self._count.get(model, (0.0, now))
        return count * float(2.0 ** ((at - now) / HALF_LIFE_S))

    def follows(self, model: str, other: str) -> float:
        """How probable `other` is among the next `AHEAD` requests after one for `model`, 0 to 1."""
        turns = self._turns.get(model, 0.0)
        return min(1.0, self._after[model].get(other, 0.0) / turns) if turns >= 2 else 0.0
