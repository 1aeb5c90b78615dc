"""The scheduler in virtual time: a heap of future events stands for the service loop, the workers and the clients.
Nothing here decides anything about models.

Each worker computes for itself: several may run at once without slowing each other down, and a load slows no request.
That flatters every policy alike; what is compared are loads and waiting times, not the throughput of a device.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.traces import Event, Step, Trace
from broker.scheduler.capacity.ledger import Device
from broker.scheduler.events import (
    Asked,
    Deliver,
    Finished,
    KillWorker,
    Kind,
    MemoryBack,
    Refuse,
    SendBatch,
    StartWorker,
    Tick,
    WorkerDone,
    WorkerExited,
    WorkerReady,
)
from broker.scheduler.events import Event as Happening
from broker.scheduler.scheduler import Scheduler
from broker.scheduler.state import State
from zoo.config.schema import BrokerConfig, ModelConfig

KILL_S = 0.03  # until a killed process's memory is seen back (measured by benchmarks.swap)
EPSILON_S = 1e-9


@dataclass
class Figures:
    """What came of a trace. `waits`: from an event's begin to each answer, less the model's time."""

    requests: int = 0
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
        self.config = BrokerConfig(
            eviction=eviction,  # type: ignore[arg-type]
            prefetch=prefetch,
            idle_seconds=1e9,
            max_queue=1_000_000,
            max_queue_per_client=1_000_000,
        )
        self.s = Scheduler(self.config, [Device("gpu0", "cuda", trace.budget_mb)], models or trace.models)
        self.trace = trace
        self.load_s = load_s
        self.in_order = in_order
        self.resident_first = resident_first
        self.max_batch = max_batch
        self.figures = Figures()
        self.now = 0.0
        self._heap: list[tuple[float, int, Happening | Event]] = []
        self._numbers = itertools.count()
        self._line: _Steps = deque()  # in order: what has arrived and is not served yet
        self._open: dict[int, tuple[_Steps, Step, Event]] = {}  # and its caller's further requests
        self._running: dict[int, list[int]] = {}  # worker → batch at work
        self._ahead: dict[int, list[int]] = {}
        self._steps: dict[int, Step] = {}
        self._working: set[int] = set()  # workers that load or run
        self._since = 0.0
        self._woken = -1.0  # the tick that is in the heap already

    def run(self) -> Figures:
        for event in self.trace.events:
            self._at(event.at, event)
        while self._heap:
            self.now, _, what = heapq.heappop(self._heap)
            if isinstance(what, Event):
                self._begin(what)
            elif isinstance(what, Tick) and self.now != self._woken:
                continue
            else:
                self._happens(what)
        self.figures.end = self.now
        return self.figures

    def _at(self, when: float, what: Happening | Event) -> None:
        heapq.heappush(self._heap, (when, next(self._numbers), what))

    # ------------------------------------------------------------ clients

    def _begin(self, event: Event) -> None:
        if self.in_order:
            self._line.extend((step, event) for step in event.steps)
            if not self._open:
                self._ask_next(self._line)
            return
        steps = event.steps
        if self.resident_first:
            steps = tuple(sorted(steps, key=lambda step: self.s.models[step.model].state is not State.LOADED))
        left = deque((step, event) for step in steps)
        for _ in range(self.trace.parallel):
            self._ask_next(left)

    def _ask_next(self, left: _Steps) -> None:
        if not left:
            return
        step, event = left.popleft()
        number = next(self._numbers)
        self._open[number] = left, step, event
        self._steps[number] = step
        self.figures.requests += 1
        self.figures.hits += self.s.models[step.model].state is State.LOADED
        deadline = 1e12 if self.in_order else event.at + self.trace.deadline_s
        self._happens(Asked(number, b"backend", step.model, Kind.INFER, deadline))

    # ------------------------------------------------------------ workers

    def _happens(self, event: Happening) -> None:
        if isinstance(event, WorkerReady):
            self._works(event.worker, False)
        elif isinstance(event, WorkerDone):
            batch = self._running.pop(event.worker)
            for number in batch:
                del self._steps[number]
            if (ahead := self._ahead.pop(event.worker, None)) is not None:
                self._run(event.worker, ahead)
            else:
                self._works(event.worker, False)
        elif isinstance(event, WorkerExited):
            self._at(self.now, MemoryBack(event.worker))
        finished = []
        for action in self.s.handle(event, self.now):
            match action:
                case SendBatch(worker, batch):
                    numbers = [number for number, _ in batch]
                    if worker in self._running:
                        self._ahead[worker] = numbers
                    else:
                        self._run(worker, numbers)
                case StartWorker(worker, model, _):
                    self.figures.loads += 1
                    self.figures.load_s += self.load_s[model]
                    self._works(worker, True)
                    self._at(self.now + self.load_s[model], WorkerReady(worker, self.max_batch))
                case KillWorker(worker):
                    self.figures.evictions += 1
                    self._at(self.now + KILL_S, WorkerExited(worker, "killed"))
                case Deliver(request) | Refuse(request):
                    left, step, begun = self._open.pop(request)
                    late = self.now > begun.at + self.trace.deadline_s
                    if isinstance(action, Refuse) and action.code != "deadline_exceeded":
                        self.figures.refused += 1
                    elif isinstance(action, Refuse) or late:
                        self.figures.missed += 1
                        self.figures.late.add(begun)
                    own = step.seconds if isinstance(action, Deliver) else 0.0
                    self.figures.waits.append(self.now - begun.at - own)
                    finished.append(left)
        for left in finished:
            self._ask_next(left)
        wake = self.s.next_wakeup()
        if wake is not None and wake != self._woken and self._open:
            self._woken = wake
            self._at(max(wake, self.now), Tick())

    def _run(self, worker: int, batch: list[int]) -> None:
        """A batch takes as long as its longest, and a quarter of the others."""
        self._running[worker] = batch
        self._works(worker, True)
        times = sorted(self._steps[number].seconds for number in batch)
        seconds = times[-1] + 0.25 * sum(times[:-1])
        self._at(self.now + seconds, WorkerDone(worker, [Finished(number) for number in batch]))

    def _works(self, worker: int, on: bool) -> None:
        if on and not self._working:
            self._since = self.now
        (self._working.add if on else self._working.discard)(worker)
        if not on and not self._working:
            self.figures.busy_s += self.now - self._since
