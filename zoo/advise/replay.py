"""The requests of a recording through the broker's own scheduler, under its configuration or another.

Requests come when they came. That is right for cameras, and for callers whose pace does not depend on the answers; a
caller that waits for each answer before it asks again would in truth ask sooner or later than it did.

Loads, batches and answers take what they took (`costs.py`); what failed for reasons of its own (a load that raised, a
process that died) succeeds here. Clients that went away, and requests that were withdrawn, do so at the same moments.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from broker.scheduler.events import Answer, Asked, Deliver, Forget, Kind, Pinned, Refuse, Released, Withdrawn
from broker.simulation.simulation import Answered, Costs, Counts, Simulation
from zoo.advise.change import Setting
from zoo.advise.costs import FORK_S, Loads, Taken
from zoo.recording import RecordedRequest, RecordingPart

BEFORE = b"before"  # the session by which is loaded what was at the beginning
GAVE_UP = {"cancelled", "forgotten"}
NOT_ITS_OWN = {"model_not_found", "model_disabled", "model_unavailable", "quarantined", "access_denied"}  # not replayed
MISSED = "deadline_exceeded"


def share(values: Sequence[float], part: float) -> float:
    """The value that this part of the (sorted) values does not exceed."""
    return values[min(len(values) - 1, math.ceil(len(values) * part) - 1)] if values else 0.0


@dataclass
class ReplayFigures:
    """What became of the requests. `took`: seconds until each answer, by number; inf: it was missed or refused."""

    requests: int = 0
    loads: int = 0
    evictions: int = 0
    load_s: float = 0.0
    missed: int = 0
    refused: int = 0
    waiting_s: float = 0.0
    took: dict[int, float] = field(default_factory=dict)
    waited_for: Counter[str] = field(default_factory=Counter)  # model → seconds

    def percentile(self, part: float) -> float:
        """Seconds within which this part of the requests was answered; inf: it never was."""
        return share(sorted(self.took.values()), part)

    def summary(self) -> dict[str, Any]:
        took = sorted(self.took.values())
        shares = {f"p{p}_s": _finite(share(took, p / 100)) for p in (50, 95, 99)}
        return {
            "requests": self.requests, "loads": self.loads, "evictions": self.evictions,
            "load_s": round(self.load_s, 3), **shares, "missed": self.missed, "refused": self.refused,
            "waiting_s": round(self.waiting_s, 3),
        }  # fmt: skip


def _finite(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


class Replay:
    """One replay of a part."""

    def __init__(self, part: RecordingPart, times: Taken, setting: Setting) -> None:
        self._part = part
        self._own_s = times.own_s
        self._in_batch = times.in_batch
        self.figures = ReplayFigures()
        self._let_go = _let_go(part)  # number of a lease's request → when it ended
        self._open: dict[int, RecordedRequest | None] = {}
        extra = FORK_S * ((setting.broker.standby == 0) - (part.began.broker.standby == 0))
        sizes = {model.name: model.vram_mb for model in setting.models}
        copied = [model.config.name for model in part.began.models if model.copied]
        loads = Loads(times, sizes, setting.broker.host_cache_mb, copied, extra)
        costs = Costs(lambda model, _: loads.take(model), self._batch_s, times.max_batch.__getitem__, times.kill_s)
        before = [model for model in part.began.models if model.loaded_on]
        longest = max((max(times.load_s[model.config.name]) for model in before), default=0.0)
        idle = min(setting.broker.idle_seconds, max((model.unused_s for model in before), default=0.0))
        self._zero = idle + (longest + 1) * len(before)  # the scheduler's clock, when the recording begins
        self._simulation = Simulation(setting.broker, setting.devices, setting.models, costs, self._answered)
        self._load_before(len(part.requests), before, idle, longest)

    def _load_before(self, number: int, before: list[Any], idle: float, longest: float) -> None:
        """Loads what was loaded at the beginning, the last used last, before the first request."""
        left = len(before)
        for model in sorted(before, key=lambda model: -model.unused_s):
            at = self._zero - min(model.unused_s, idle) - (longest + 1) * left
            left, number = left - 1, number + 1
            ask = Asked(number, BEFORE, model.config.name, Kind.PRELOAD, self._zero)
            self._open[number] = None
            self._simulation.at(at, partial(self._simulation.ask, ask))

    def run(self) -> ReplayFigures:
        """Raises NeverAnswered: a bug of the scheduler, or of the simulation."""
        simulation = self._simulation
        simulation.at(self._zero, self._start_counting)
        for number, request in enumerate(self._part.requests):
            if request.outcome not in NOT_ITS_OWN:
                simulation.at(self._at(request.at), partial(self._ask, number, request))
        for pin in self._part.pins:
            simulation.at(self._at(pin.at), partial(simulation.tell, Pinned(pin.model, pin.on)))
        simulation.run()
        counts, figures = simulation.counts, self.figures
        figures.loads, figures.evictions, figures.load_s = counts.loads, counts.evictions, counts.load_s
        return figures

    def _at(self, recorded: float) -> float:
        """A recorded moment on the scheduler's clock."""
        return recorded - self._part.began.at + self._zero

    def _start_counting(self) -> None:
        self._simulation.counts = Counts()

    def _ask(self, number: int, request: RecordedRequest) -> None:
        simulation = self._simulation
        self._open[number] = request
        seconds = request.deadline_s or simulation.scheduler.registry.config.request_timeout
        kind = Kind(request.kind)
        session = request.session.to_bytes(8, "big")
        if request.outcome in GAVE_UP:
            simulation.at(simulation.now + request.took, partial(self._give_up, number))
        simulation.ask(
            Asked(
                number, session, request.model, kind, simulation.now + seconds, request.priority,
                keep_alive=request.keep_alive,
            )
        )  # fmt: skip

    def _give_up(self, number: int) -> None:
        if number in self._open:
            self._simulation.tell(Withdrawn(number))

    def _answered(self, number: int, answer: Answered) -> None:
        request = self._open.pop(number)
        if request is None:
            return
        figures, took = self.figures, self._simulation.now - self._at(request.at)
        if isinstance(answer, Answer) and request.kind == "lease":
            self._hold(number, request, answer.value)
        if request.kind == "unload" or isinstance(answer, Forget):
            return
        if isinstance(answer, Refuse) and answer.code == "cancelled":
            return
        figures.requests += 1
        if isinstance(answer, Refuse):
            figures.missed += answer.code == MISSED
            figures.refused += answer.code != MISSED
        own = self._own_s[number] if isinstance(answer, Deliver) else 0.0
        figures.took[number] = math.inf if isinstance(answer, Refuse) else took
        waited = max(0.0, took - own)
        figures.waiting_s += waited
        figures.waited_for[request.model] += waited  # type: ignore[assignment]

    def _hold(self, number: int, request: RecordedRequest, lease: int) -> None:
        """A lease is held for as long as it was."""
        until = self._let_go.get(number, math.inf)
        if until < math.inf:
            released = Released(request.session.to_bytes(8, "big"), lease)
            now = self._simulation.now
            self._simulation.at(max(now, self._at(until)), partial(self._simulation.tell, released))

    def _batch_s(self, model: str, batch: list[int]) -> float:
        longest = max(self._own_s[number] for number in batch)
        return longest * (1 + self._in_batch.get(model, 0.0) * (len(batch) - 1))


def _let_go(part: RecordingPart) -> dict[int, float]:
    """When the lease of each request for one ended; in the order in which a client took those of a model."""
    ended: dict[tuple[str, int], deque[float]] = defaultdict(deque)
    for release in part.releases:
        ended[release.model, release.session].append(release.at)
    found: dict[int, float] = {}
    for number, request in enumerate(part.requests):
        if request.kind == "lease" and not request.outcome and (of := ended[request.model, request.session]):
            found[number] = of.popleft()
    return found


def recorded(part: RecordingPart, times: Taken) -> ReplayFigures:
    """What the broker did with the requests itself, counted as a replay counts."""
    figures = ReplayFigures(
        loads=len(part.loads),
        evictions=sum(end.how == "evicted" for end in part.ends),
        load_s=sum(load.seconds for load in part.loads),
    )
    for number, request in enumerate(part.requests):
        if request.kind == "unload" or request.outcome in GAVE_UP | NOT_ITS_OWN:
            continue
        figures.requests += 1
        figures.missed += request.outcome == MISSED
        refused = bool(request.outcome) and not request.batch and request.outcome != MISSED
        figures.refused += refused
        failed = refused or request.outcome == MISSED
        figures.took[number] = math.inf if failed else request.took
        own = times.own_s[number] if request.kind == "infer" and not failed else 0.0
        waited = max(0.0, request.took - own)
        figures.waiting_s += waited
        figures.waited_for[request.model] += waited  # type: ignore[assignment]
    return figures
