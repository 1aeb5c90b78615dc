"""The broker's own scheduler in virtual time: a heap of what will happen stands for service loop and workers.

Nothing here decides anything about models. Callers are not simulated: the owner of a `Simulation` asks at moments of
its own (`at`, `ask`), and is told each answer. How long things take it says as well (`Costs`).

Each worker computes for itself: several may run at once without slowing each other down, and a load slows no request.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from broker.scheduler.capacity.ledger import Device
from broker.scheduler.events import (
    Answer,
    Asked,
    Deliver,
    Event,
    Finished,
    Forget,
    KillWorker,
    MemoryBack,
    Refuse,
    SendBatch,
    StartWorker,
    Tick,
    WorkerDone,
    WorkerExited,
    WorkerReady,
)
from broker.scheduler.scheduler import Scheduler
from broker.scheduler.state import State
from zoo.config.schema import BrokerConfig, ModelConfig

KILL_S = 0.03  # until a killed process's memory is seen back (measured by benchmarks.swap)
MOST_TICKS = 1000  # at one moment: a few are usual

Answered = Deliver | Answer | Refuse | Forget


@dataclass(frozen=True)
class Costs:
    """How long things take, in seconds.

    Attributes:
        load_s: by model and device; asked once for each load.
        batch_s: of these requests (numbers), run together by a worker of the model.
        max_batch: how many requests a model's adapter takes at once.
        kill_s: until the memory of a killed process is back.
    """

    load_s: Callable[[str, str], float]
    batch_s: Callable[[str, list[int]], float]
    max_batch: Callable[[str], int]
    kill_s: float = KILL_S


@dataclass
class Counts:
    """What the workers did. `busy_s`: at least one of them loaded or ran."""

    loads: int = 0
    evictions: int = 0
    load_s: float = 0.0
    busy_s: float = 0.0


class NeverAnswered(RuntimeError):
    """A simulation came to its end and some requests had no answer: a bug of the scheduler, or of the simulation."""


class Simulation:
    """See the module's docstring.

    Args:
        answered: gets the number of each request, and its answer, after all else that the same event led to.

    Attributes:
        now: virtual seconds.
        counts: of the workers, since the beginning or since `counts` was last replaced.
    """

    def __init__(
        self,
        config: BrokerConfig,
        devices: list[Device],
        models: list[ModelConfig],
        costs: Costs,
        answered: Callable[[int, Answered], None],
        *,
        now: float = 0.0,
    ) -> None:
        self.scheduler = Scheduler(config, devices, models)
        self.now = now
        self.counts = Counts()
        self._costs = costs
        self._tell_answer = answered
        self._heap: list[tuple[float, int, Event | Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._coming = 0  # of what is in the heap: what is not a worker's doing or a tick
        self._open: set[int] = set()
        self._answers: deque[tuple[int, Answered]] = deque()
        self._telling = False
        self._models: dict[int, str] = {}  # worker → its model
        self._running: dict[int, list[int]] = {}  # worker → batch at work
        self._ahead: dict[int, list[int]] = {}
        self._working: set[int] = set()  # workers that load or run
        self._since = 0.0
        self._tick_at = math.inf  # of the one tick in the heap that counts
        self._ticks = 0

    def at(self, when: float, do: Callable[[], None]) -> None:
        """Has `do` called then."""
        self._coming += 1
        self._push(when, do)

    def ask(self, asked: Asked) -> None:
        """A request, now."""
        self._open.add(asked.request)
        self.tell(asked)

    def is_loaded(self, model: str) -> bool:
        return self.scheduler.models[model].state is State.LOADED

    def run(self) -> None:
        """Until nothing more happens.

        Raises:
            NeverAnswered: some requests have no answer.
        """
        while self._heap:
            self.step()
        if self._open:
            raise NeverAnswered(f"{len(self._open)} requests were never answered, the first is {min(self._open)}")

    @property
    def next_at(self) -> float:
        """When the next thing happens, if nothing is asked before; infinite: never. For several under one clock."""
        return self._heap[0][0] if self._heap else math.inf

    def step(self) -> None:
        """The next thing that happens."""
        when, _, what = heapq.heappop(self._heap)
        if isinstance(what, Tick) and not (when == self._tick_at and (self._open or self._coming)):
            return  # an earlier one has come instead, or nothing is left to wait for
        self.now = when
        if isinstance(what, Tick):
            self._tick_at = math.inf
            self.tell(what)
        elif callable(what):
            self._coming -= 1
            what()
        else:
            self._worker_does(what)

    def tell(self, event: Event) -> None:
        """The scheduler learns of an event, and what it answers is done."""
        for action in self.scheduler.handle(event, self.now):
            match action:
                case SendBatch(worker, batch):
                    numbers = [number for number, _ in batch]
                    if worker in self._running:
                        self._ahead[worker] = numbers
                    else:
                        self._run_batch(worker, numbers)
                case StartWorker(worker, model, device):
                    self._start(worker, model, device)
                case KillWorker(worker):
                    self._kill(worker)
                case Deliver(number) | Answer(number) | Refuse(number) | Forget(number):
                    self._open.remove(number)  # KeyError: it was answered twice
                    self._answers.append((number, action))
        self._arm_tick()
        self._tell_answers()

    # ------------------------------------------------------------ time

    def _push(self, when: float, what: Event | Callable[[], None]) -> None:
        heapq.heappush(self._heap, (when, next(self._numbers), what))

    def _arm_tick(self) -> None:
        """The scheduler is woken when it wants to be, as long as anything is to come; what is due already, at once."""
        wake = self.scheduler.next_wakeup()
        if wake is None or not (self._open or self._coming):
            return
        when = max(wake, self.now)
        if when < self._tick_at:
            self._ticks = self._ticks + 1 if when == self.now else 0
            if self._ticks > MOST_TICKS:
                raise RuntimeError(f"the scheduler wants to be woken at {when} without end")
            self._tick_at = when
            self._push(when, Tick())

    def _tell_answers(self) -> None:
        """One after another: an answer leads to further requests, and these to answers."""
        if self._telling:
            return
        self._telling = True
        try:
            while self._answers:
                self._tell_answer(*self._answers.popleft())
        finally:
            self._telling = False

    # ------------------------------------------------------------ workers

    def _worker_does(self, event: Event) -> None:
        match event:
            case WorkerReady(worker) if worker in self._models:
                self._works(worker, False)
            case WorkerDone(worker) if worker in self._models:
                del self._running[worker]
                if (ahead := self._ahead.pop(worker, None)) is not None:
                    self._run_batch(worker, ahead)
                else:
                    self._works(worker, False)
            case WorkerExited(worker):
                self._push(self.now, MemoryBack(worker))
            case WorkerReady() | WorkerDone():
                return  # it was killed meanwhile
        self.tell(event)

    def _start(self, worker: int, model: str, device: str) -> None:
        seconds = self._costs.load_s(model, device)
        self.counts.loads += 1
        self.counts.load_s += seconds
        self._models[worker] = model
        self._works(worker, True)
        self._push(self.now + seconds, WorkerReady(worker, self._costs.max_batch(model)))

    def _kill(self, worker: int) -> None:
        self.counts.evictions += 1
        del self._models[worker]
        self._running.pop(worker, None)
        self._ahead.pop(worker, None)
        self._works(worker, False)
        self._push(self.now + self._costs.kill_s, WorkerExited(worker, "killed"))

    def _run_batch(self, worker: int, batch: list[int]) -> None:
        self._running[worker] = batch
        self._works(worker, True)
        seconds = self._costs.batch_s(self._models[worker], batch)
        self._push(self.now + seconds, WorkerDone(worker, [Finished(number) for number in batch]))

    def _works(self, worker: int, on: bool) -> None:
        if on == (worker in self._working):
            return
        if on and not self._working:
            self._since = self.now
        (self._working.add if on else self._working.discard)(worker)
        if not on and not self._working:
            self.counts.busy_s += self.now - self._since
