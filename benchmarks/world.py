"""Traces replayed in virtual time: callers over a `Simulation`, which stands for the service loop and the workers.

Nothing here decides anything about models. Each worker computes for itself, which flatters every policy alike; what is
compared are loads and waiting times, not the throughput of a device.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from benchmarks.traces import Event, Step, Trace
from broker.scheduler.capacity.ledger import Device
from broker.scheduler.events import Asked, Deliver, Kind, Refuse
from broker.simulation.simulation import Answered, Costs, Simulation
from zoo.config.schema import BrokerConfig, ModelConfig

IN_BATCH = 0.25  # of its time that a request adds to a batch's longest


@dataclass
class Figures:
    """What came of a trace. `waits`: from an event's begin to each answer, less the model's time.

    Each request is one of `answered` in time, `missed` (answered late, or refused at its deadline) and `refused`.
    """

    requests: int = 0
    answered: int = 0
    hits: int = 0
    loads: int = 0
    evictions: int = 0
    load_s: float = 0.0
    busy_s: float = 0.0  # at least one worker loads or runs
    waits: list[float] = field(default_factory=list)
    missed: int = 0
    late: set[Event] = field(default_factory=set)  # events with a request among the missed
    refused: int = 0
    end: float = 0.0

    def summary(self) -> dict[str, float]:
        waits = sorted(self.waits) or [0.0]

        def percentile(p: int) -> float:
            return round(waits[min(len(waits) - 1, len(waits) * p // 100)], 4)

        return {
            "requests": self.requests,
            "answered": self.answered,
            "loads": self.loads,
            "evictions": self.evictions,
            "hit_ratio": round(self.hits / self.requests, 4),
            "load_s": round(self.load_s, 1),
            "busy_share": round(self.busy_s / self.end, 4) if self.end else 0.0,
            "wait_p50_s": percentile(50),
            "wait_p95_s": percentile(95),
            "wait_p99_s": percentile(99),
            "wait_max_s": round(waits[-1], 3),
            "missed": self.missed,
            "refused": self.refused,
            "duration_s": round(self.end, 1),
        }


_Steps = deque[tuple[Step, Event]]  # what is still to be asked for, and of which event it is


class World:
    """Replays one trace.

    Args:
        load_s: of each model.
        in_order: one request at a time, in order of arrival, and without deadlines: first come, first served. Otherwise
            each event begins when the trace says, and has several under way.
        resident_first: callers ask for models that are loaded first, as `enrich` does.
    """

    def __init__(
        self,
        trace: Trace,
        load_s: Mapping[str, float],
        *,
        eviction: str = "priority",
        prefetch: bool = False,
        in_order: bool = False,
        resident_first: bool = True,
        models: list[ModelConfig] | None = None,
        max_batch: int = 8,
    ) -> None:
        config = BrokerConfig(
            eviction=eviction,  # type: ignore[arg-type]
            prefetch=prefetch,
            idle_seconds=1e9,
            max_queue=1_000_000,
            max_queue_per_client=1_000_000,
        )
        devices = [Device("gpu0", "cuda", trace.budget_mb)]
        costs = Costs(lambda model, _: load_s[model], self._batch_s, lambda _: max_batch)
        self.simulation = Simulation(config, devices, models or trace.models, costs, self._answered)
        self.trace = trace
        self.in_order = in_order
        self.resident_first = resident_first
        self.figures = Figures()
        self._numbers = itertools.count()
        self._line: _Steps = deque()  # in order: what has arrived and is not served yet
        self._open: dict[int, tuple[_Steps, Step, Event]] = {}  # and its caller's further requests
        self._seconds: dict[int, float] = {}  # that a request's answer takes

    def run(self) -> Figures:
        """Raises NeverAnswered, or RuntimeError unless answered, refused and missed are together all of the trace."""
        for event in self.trace.events:
            self.simulation.at(event.at, partial(self._begin, event))
        self.simulation.run()
        figures, counts = self.figures, self.simulation.counts
        wanted = sum(len(event.steps) for event in self.trace.events)
        if not figures.requests == figures.answered + figures.refused + figures.missed == wanted:
            raise RuntimeError(
                f"{self.trace.name}: of {wanted} requests {figures.requests} were asked, {figures.answered} answered, "
                f"{figures.refused} refused and {figures.missed} missed"
            )
        figures.loads, figures.evictions = counts.loads, counts.evictions
        figures.load_s, figures.busy_s = counts.load_s, counts.busy_s
        figures.end = self.simulation.now
        return figures

    def _begin(self, event: Event) -> None:
        if self.in_order:
            self._line.extend((step, event) for step in event.steps)
            if not self._open:
                self._ask_next(self._line)
            return
        steps = event.steps
        if self.resident_first:
            steps = tuple(sorted(steps, key=lambda step: not self.simulation.is_loaded(step.model)))
        left = deque((step, event) for step in steps)
        for _ in range(self.trace.parallel):
            self._ask_next(left)

    def _ask_next(self, left: _Steps) -> None:
        if not left:
            return
        step, event = left.popleft()
        number = next(self._numbers)
        self._open[number] = left, step, event
        self._seconds[number] = step.seconds
        self.figures.requests += 1
        self.figures.hits += self.simulation.is_loaded(step.model)
        deadline = 1e12 if self.in_order else event.at + self.trace.deadline_s
        self.simulation.ask(Asked(number, b"backend", step.model, Kind.INFER, deadline))

    def _answered(self, number: int, answer: Answered) -> None:
        left, step, event = self._open.pop(number)
        now = self.simulation.now
        late = now > event.at + self.trace.deadline_s
        if isinstance(answer, Refuse) and answer.code != "deadline_exceeded":
            self.figures.refused += 1
        elif isinstance(answer, Refuse) or late:
            self.figures.missed += 1
            self.figures.late.add(event)
        else:
            self.figures.answered += 1
        own = step.seconds if isinstance(answer, Deliver) else 0.0
        self.figures.waits.append(now - event.at - own)
        self._ask_next(left)

    def _batch_s(self, _: str, batch: list[int]) -> float:
        """As long as its longest, and a part of the others."""
        times = sorted(self._seconds[number] for number in batch)
        return times[-1] + IN_BATCH * sum(times[:-1])
