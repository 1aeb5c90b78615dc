"""How often each model is asked for, and what is usually asked for after it. Pure; time is counted in requests.

A camera backend asks in sequences: a plate that was found is read next, a person in view wants eight models one after
another. So what a request says about the next few is worth more than the age of the last use, and a few of its turns
are enough to see it. For each model it is counted which others came after it before it came again, each the less the
later it came (by half in about five requests, see `SOON`). What has been counted fades with the model's turns.

How often a model is asked for is the mean of two rates: of late, which sees a burst at once, and in the long run, which
does not forget the steady ones for it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

AHEAD = 8  # requests: what is loaded ahead has to be among the next ones
SOON = 8.0  # requests: a use so much later counts 1/e
REMEMBERED = 200  # turns of a model, until what followed counts half
OF_LATE, LONG_RUN = 16, 2000  # requests, after which a use counts half

_LOOK = 2 * int(SOON)  # later ones are not worth their counting
_COUNTS = [complex(later < AHEAD, math.exp(-later / SOON)) for later in range(_LOOK)]  # among the next, and how soon
_ALL_SOON = sum(_COUNTS).imag
_MOST = OF_LATE / math.log(2), LONG_RUN / math.log(2)  # that a count can come to


class Habits:
    def __init__(self) -> None:
        self._requests = 0
        self._uses: dict[str, tuple[int, float, float]] = {}  # the last one's number, and the counts as they were then
        self._turns: dict[str, float] = {}
        self._after: dict[str, dict[str, complex]] = {}  # sums of `_COUNTS`: two numbers, added at once
        self._recent: deque[str] = deque(maxlen=_LOOK)  # the latest first
        self._foreseen = 1.0  # how much of each request the one before it had let expect, in the mean

    def asked(self, model: str) -> None:
        if self._recent and (last_asked := self._recent[0]) != model:
            known = self._after[last_asked].get(model, 0j).imag / (self._turns[last_asked] + 1.0)
            self._foreseen += (min(1.0, known) - self._foreseen) / LONG_RUN
        for before, counts in zip(self._recent, _COUNTS, strict=False):
            if before == model:
                break  # what came before that was followed by it then
            after = self._after[before]
            after[model] = after.get(model, 0j) + counts
        self._recent.appendleft(model)
        self._take_turn(model)
        self._requests += 1
        last, late, long = self._uses.get(model, (0, 0.0, 0.0))
        unused = last - self._requests
        late, long = late * 2.0 ** (unused / OF_LATE), long * 2.0 ** (unused / LONG_RUN)
        self._uses[model] = self._requests, late + 1.0, long + 1.0

    def _take_turn(self, model: str) -> None:
        turns = self._turns.get(model)
        if turns is None:
            turns, self._after[model] = 0.0, {}
        turns += 1.0
        if turns > REMEMBERED:
            turns /= 2
            followed = self._after[model].items()
            self._after[model] = {other: both / 2 for other, both in followed if max(both.real, both.imag) > 1.0}
        self._turns[model] = turns

    def follows(self, model: str, other: str) -> float:
        """How probable `other` is among the next `AHEAD` requests after one for `model`, 0 to 1."""
        turns = self._turns.get(model, 0.0)
        return min(1.0, self._after[model].get(other, 0j).real / turns) if turns >= 2 else 0.0

    def expected(self, models: Iterable[str], after: str) -> list[float]:
        """How much a use of each is to be expected, now that `after` is asked for. No unit, for comparison only.

        The first part is how soon it usually follows, with one turn's weight for what its rate alone would say. The
        second is its rate, less the longer it has been unused. It counts the more, the less requests say of the next.
        """
        requests, followed, turns = self._requests, self._after.get(after, {}), self._turns.get(after, 0.0) + 1.0
        late_part, long_part = (0.5 / max(1.0, min(requests, most)) for most in _MOST)
        unforeseen = 1.0 / max(0.01, self._foreseen)
        found = []
        for model in models:
            last, late, long = self._uses.get(model, (0, 0.0, 0.0))
            unused = requests - last
            rate = late * late_part * 2.0 ** (-unused / OF_LATE) + long * long_part * 2.0 ** (-unused / LONG_RUN)
            follows = (followed.get(model, 0j).imag + min(1.0, _ALL_SOON * rate)) / turns
            found.append(follows + rate / (1.0 + rate * unused) * unforeseen)
        return found
