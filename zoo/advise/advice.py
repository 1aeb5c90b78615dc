"""Replays of one recording: as it was, with changes, and the smallest budget that meets a wanted 95th percentile.

A larger budget is not always better: with more memory another model is loaded at another moment, and a policy that does
not know the future may do worse for it. So the search does not only bisect. It replays budgets over the whole range
first, then bisects between the largest that does not meet the wish and the next, and what it recommends is met by every
larger budget that was tried. Where a smaller one met it as well, below one that did not, that is said.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from zoo.advise.change import Change, applied, gigabytes
from zoo.advise.costs import Taken, taken
from zoo.advise.replay import Replay, ReplayFigures, recorded
from zoo.config.schema import MB_PER_GB
from zoo.errors import InvalidInput
from zoo.recording import RecordingPart

MANY = 5000  # requests: fewer are replayed sooner than processes start
STEPS = 8  # budgets over the whole range
FINEST = 0.02  # of the budget: the bisection ends there
PART = 0.95
NEAR_SHARE, NEAR_S = 0.25, 0.05  # an answer of a replay counts as the recorded one if it is as near as one of these
SLACK_MB = 0.5
LEAST_MB = 4.0


@dataclass(frozen=True)
class Row:
    """One replay. `change`: None for what was recorded."""

    label: str
    figures: ReplayFigures
    change: Change | None = None


@dataclass(frozen=True)
class Tried:
    """A budget, what was asked with it, and whether the wish was met."""

    budget_mb: float
    figures: ReplayFigures
    met: bool


@dataclass
class Recommended:
    """The answer to a wish for a 95th percentile.

    Attributes:
        p95_s: wanted.
        budget_mb: the smallest found; None: no budget up to `most_mb`, at which all models fit, meets it.
        tried: by budget.
        smaller: budgets below it that met the wish as well, though one between did not.
    """

    p95_s: float
    budget_mb: float | None
    most_mb: float
    tried: list[Tried]
    smaller: list[float] = field(default_factory=list)


def replayed(part: RecordingPart, times: Taken, change: Change) -> Row:
    return Row(change.label, Replay(part, times, applied(part, change)).run(), change)


class Advisor:
    """Replays a part of a recording."""

    def __init__(self, part: RecordingPart) -> None:
        self.part = part
        self.times: Taken = taken(part)
        self.recorded = Row("as recorded", recorded(part, self.times))
        self.present = self.replay(Change())

    def replay(self, change: Change) -> Row:
        """Raises InvalidInput: the change names what is not there."""
        return replayed(self.part, self.times, change)

    def replay_all(self, changes: Sequence[Change]) -> list[Row]:
        """Of several, on all cores where that is worth the start of processes."""
        cores = min(len(os.sched_getaffinity(0)), len(changes))
        if cores < 2 or len(self.part.requests) < MANY:
            return [self.replay(change) for change in changes]
        for change in changes:
            applied(self.part, change)  # what is wrong with it is said here
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context

        with ProcessPoolExecutor(cores, get_context("spawn"), _begin, (self.part, self.times)) as pool:
            return list(pool.map(_replayed, changes))

    @property
    def budget_mb(self) -> float:
        """Of all devices, as it was."""
        return sum(device.limit_mb for device in self.part.began.devices)

    def agreement(self) -> dict[str, Any]:
        """How well the replay of the present configuration agrees with what was recorded."""
        was, now = self.recorded.figures, self.present.figures
        both = [(was.took[n], now.took[n]) for n in was.took if n in now.took]
        near = sum(
            a == b or (math.isfinite(a - b) and abs(a - b) <= max(NEAR_S, NEAR_SHARE * max(a, b))) for a, b in both
        )
        return {
            "loads": [was.loads, now.loads],
            "p95_s": [was.summary()["p95_s"], now.summary()["p95_s"]],
            "missed": [was.missed, now.missed],
            "near": round(near / len(both), 4) if both else 1.0,
        }

    # ------------------------------------------------------------ what may help

    def suggestions(self) -> Iterator[Change]:
        """Changes that are worth a look where nothing was asked: one of each kind."""
        broker, budget = self.part.began.broker, self.budget_mb
        other = "adaptive" if broker.eviction == "priority" else "priority"
        yield Change(f'eviction = "{other}"', broker={"eviction": other})
        largest, most = self._range()
        for times in (0.75, 1.25, 1.5, 2.0):
            if largest <= budget * times and (times < 1 or budget * times <= 1.3 * most):
                yield Change(f"budget {gigabytes(budget * times)}", budget_mb=budget * times)
        used = self._used()
        cache = math.ceil(sum(used.values()))
        if broker.host_cache_mb < cache:
            yield Change(f"host_cache_mb = {cache}", broker={"host_cache_mb": float(cache)})
        if broker.standby == 0:
            yield Change("standby = 1", broker={"standby": 1})
        if not broker.prefetch:
            yield Change("prefetch = true", broker={"prefetch": True})
        if most > budget:
            mb = self.part.began.devices[0].limit_mb
            yield Change(f"a second device of {gigabytes(mb)}", devices={self._new_device(): mb})
        pinned = {model.config.name for model in self.part.began.models if model.config.pinned}
        for name, waited in self.present.figures.waited_for.most_common(1):
            if name not in pinned and waited and len(used) > 1 and used.get(name, 0) < budget / 2:
                yield Change(f"{name} pinned", pins=(name,))

    def _new_device(self) -> str:
        taken = {device.name for device in self.part.began.devices}
        return next(name for i in range(1, 100) if (name := f"cuda:{i}") not in taken)

    def _used(self) -> dict[str, float]:
        """Models that were asked for → MB."""
        asked = {request.model for request in self.part.requests}
        return {m.config.name: m.config.vram_mb for m in self.part.began.models if m.config.name in asked}

    def _range(self) -> tuple[float, float]:
        """The budget that holds the largest model, and the one that holds all."""
        sizes = self._used().values()
        devices = len(self.part.began.devices)
        return max(sizes, default=0.0) * devices, sum(sizes) * devices

    # ------------------------------------------------------------ the smallest budget

    def smallest(self, p95_s: float, change: Change) -> Recommended:
        """The smallest budget with which 95 % of the requests are answered within `p95_s` seconds.

        Args:
            change: what else is changed.
        """
        if not p95_s > 0:
            raise InvalidInput(f"p95: {p95_s} is not a positive number of seconds")
        least, most = (snapped(mb + SLACK_MB) for mb in self._range())
        tried: dict[float, Tried] = {}

        def met(budgets: Sequence[float]) -> list[bool]:
            rows = self.replay_all([replace(change, budget_mb=mb) for mb in budgets])
            for mb, row in zip(budgets, rows, strict=True):
                tried[mb] = Tried(mb, row.figures, row.figures.percentile(PART) <= p95_s)
            return [tried[mb].met for mb in budgets]

        grid = sorted({snapped(least + (most - least) * i / (STEPS - 1)) for i in range(STEPS)})
        met_by = met(grid)
        found: float | None = None
        if met_by[-1]:
            last = max((i for i, ok in enumerate(met_by) if not ok), default=-1)
            found = self._bisected(grid[last], grid[last + 1], met) if last >= 0 else grid[0]
        in_order = [tried[budget] for budget in sorted(tried)]
        smaller = [one.budget_mb for one in in_order if one.met and (found is None or one.budget_mb < found)]
        return Recommended(p95_s, found, most, in_order, smaller)

    def _bisected(self, low: float, high: float, met: Callable[[Sequence[float]], list[bool]]) -> float:
        """Between one that does not meet the wish and one that does."""
        while high - low > max(LEAST_MB, FINEST * high):
            middle = snapped((low + high) / 2)
            if met([middle])[0]:
                high = middle
            else:
                low = middle
        return high


def in_gb(mb: float) -> float:
    """Rounded up to what config.toml would say."""
    return math.ceil(mb / MB_PER_GB * 1000 - 1e-6) / 1000


def snapped(mb: float) -> float:
    """A budget that can be written into config.toml: what is recommended was replayed, and nothing near it."""
    return in_gb(mb) * MB_PER_GB


# ---------------------------------------------------------------- in further processes

_given: list[tuple[RecordingPart, Taken]] = []


def _begin(part: RecordingPart, times: Taken) -> None:
    _given.append((part, times))


def _replayed(change: Change) -> Row:
    part, times = _given[0]
    return replayed(part, times, change)
