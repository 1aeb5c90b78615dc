"""Models, their workers, their requests: the records that the scheduler changes. They decide nothing.

A model has a list of workers. One of them is the primary: as long as any worker of the model is loaded, the primary is.
Leases and pins hold the primary; the queue is the model's, and any worker that has a place takes from it. What is
learnt of a process, its times and limits, is kept by its worker and ends with it; what outlives a process is the
model's.
"""

from __future__ import annotations

import enum
import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec

from broker.scheduler.events import Finished, Kind
from broker.scheduler.state.peaks import Peak
from broker.scheduler.state.quarantine import Quarantine
from broker.scheduler.state.queue import Queue
from broker.scheduler.state.states import STATES, TRANSITIONS, Move, Phase, State
from zoo.config.schema import ModelConfig

GONE, ENDING, LOADED, DRAINING = Phase.GONE, Phase.ENDING, State.LOADED, State.DRAINING
NEWEST = 0.2  # its weight in the averages of how long a request takes, and how soon the next one comes
BATCHES_FIRST, BATCHES_MOST = 16, 1024  # before larger ones are tried: twice as many each time that memory ran out
BACKOFF_FIRST_S, BACKOFF_MOST_S = 1.0, 300.0

# ---------------------------------------------------------------- requests


class Request(msgspec.Struct, eq=False):
    """One accepted request, until it is answered (and, if a worker still reads its frames, until that ends).

    In a `queue` → waiting; `running` → dispatched; neither → answered. `alone`: it was at work when a process died or
    hung, so it is not run together with others, and blame is never in doubt. `starved`: memory ran out under it once.

    The rest is for the journal. `found`, `behind`: the model's state and how many waited when it came in, if it had to
    wait; `sent`, `worker`, `batch`: its last dispatch; `ended`, `outcome`: the answer (of a success its type alone).
    """

    id: int
    session: bytes
    model: Model
    kind: Kind
    deadline: float
    priority: int
    payload: Any
    keep_alive: float | None
    seq: int
    since: float
    queue: Queue[Request] | None = None
    running: bool = False
    crashes: int = 0
    alone: bool = False
    starved: bool = False
    digest: bytes | None = None
    found: State | None = None
    behind: int = 0
    sent: float = 0.0
    worker: int = 0
    batch: int = 0
    ended: float = 0.0
    outcome: Any = None


class Session:
    """A client: its unanswered requests and its leases, by number."""

    __slots__ = ("leases", "requests")

    def __init__(self) -> None:
        self.requests: set[int] = set()
        self.leases: set[int] = set()


# ---------------------------------------------------------------- workers


class BatchLimit:
    """How many requests a process gets at once, because memory ran out under more.

    Attributes:
        most: 0 is no limit.
    """

    __slots__ = ("_needed", "_well", "most")

    def __init__(self) -> None:
        self.most = 0
        self._well = 0  # batches of that size that have gone well
        self._needed = 0  # and have to, before larger ones are tried

    def ran_out(self, size: int) -> bool:
        """Memory did not suffice for `size` at once. False if that changes nothing: no smaller batch is possible, or
        the batch was sent before the limit became smaller.
        """
        if size == 1 or (self.most and size > self.most):
            return False
        self.most, self._well = size // 2, 0
        self._needed = min(BATCHES_MOST, 2 * self._needed or BATCHES_FIRST)
        return True

    def went_well(self, size: int, max_batch: int) -> bool:
        """A batch is through. True if larger ones are tried from now on."""
        if not self.most or size < self.most:
            return False
        self._well += 1
        if self._well < self._needed:
            return False
        self._well = 0
        self.most = 2 * self.most if 2 * self.most < max_batch else 0
        return True


class Worker:
    """One process of a model, from the decision to start it until its memory is back. Without one (`number` 0) it
    stands for a model that was never loaded.

    Attributes:
        number: never used twice. name: of the model, or "NAME#2" where it is not the primary worker.
        mb: what the process is charged. state: what `phase` means to others.
        settings: the generation of the model's settings that it was started with.
        inflight: the batch that it is running (also after it was answered, until the worker is through).
        ahead: the batch that lies at the worker already, so that it goes on without waiting for the broker.
        short: requests that ran out of memory; nothing is run until the process may be charged for them.
        max_batch: how many requests its adapter takes at once.
        leaves_at, idle_at, watch_at: when its batching window ends, when it has been idle for long enough, when its
            load or batch has taken too long; inf: no timer is armed.
        service_s, least_service_s: how long a request has taken lately, its share of the batch; and at the least.
        load_seconds: how long the load took; until it is through, how long the one before did.
        noted: it is the newest process in the model's peak on its device.
    """

    __slots__ = (
        "ahead", "batch_limit", "device", "dispatched_at", "idle_at", "inflight", "last_used", "least_service_s",
        "leaves_at", "load_seconds", "loaded_at", "max_batch", "mb", "model", "name", "noted", "number", "phase",
        "requests", "service_s", "settings", "short", "started_at", "state", "watch_at",
    )  # fmt: skip

    def __init__(self, model: Model, number: int = 0, device: str = "", before: Worker | None = None) -> None:
        self.model = model
        self.number = number
        self.name = model.name
        self.device = device
        self.mb = model.need_mb(device)
        self.phase = Phase.GONE
        self.state = State.UNLOADED
        self.settings = model.settings
        self.inflight: list[Request] = []
        self.ahead: list[Request] = []
        self.short: list[Request] = []
        self.max_batch = 1
        self.leaves_at = self.idle_at = self.watch_at = math.inf
        self.started_at = self.loaded_at = self.dispatched_at = self.last_used = 0.0
        self.service_s = self.least_service_s = self.load_seconds = 0.0
        self.requests = 0
        self.noted = False
        self.batch_limit = BatchLimit()
        if before is not None:
            self._begin_like(before)

    def _begin_like(self, before: Worker) -> None:
        """What is expected of it until it has been measured itself. A limit that was learnt goes on with the only
        process of the model alone: beside another one, it says nothing about this one.
        """
        self.service_s, self.load_seconds = before.service_s, before.load_seconds
        if before.phase in (Phase.GONE, Phase.ENDING):
            self.last_used, self.batch_limit = before.last_used, before.batch_limit

    def move(self, move: Move) -> None:
        """Changes the phase by the table; a move that is not in it is a bug and raises KeyError."""
        self.phase = TRANSITIONS[self.phase, move]
        self.state = STATES[self.phase]

    def runs(self, outcomes: list[Finished]) -> bool:
        """These are about its batch, in its order, and it has one."""
        batch = self.inflight
        for request, outcome in zip(batch, outcomes, strict=False):  # no generator: each request passes here
            if request.id != outcome.request:
                return False
        return len(batch) == len(outcomes) > 0

    def took(self, seconds: float) -> None:
        """A request's share of the batch that is through."""
        self.service_s += (NEWEST if self.service_s else 1.0) * (seconds - self.service_s)
        if seconds < self.least_service_s or not self.least_service_s:
            self.least_service_s = seconds

    @property
    def primary(self) -> bool:
        return self.model.primary is self

    @property
    def alive(self) -> bool:
        """It may answer requests, now or when it is loaded."""
        return self.phase is not GONE and self.phase is not ENDING

    @property
    def answers(self) -> bool:
        """It is loaded, and answers what it has."""
        return self.state is LOADED or self.state is DRAINING

    @property
    def queued(self) -> int:
        """Requests that wait for this process, not for any of the model."""
        return self.model.queue.live if self.primary else 0

    @property
    def outdated(self) -> bool:
        """Its process was started with settings that have changed since."""
        wanted = self.model.config.device
        return self.number > 0 and (self.settings != self.model.settings or wanted not in ("", self.device))

    @property
    def dispensable(self) -> bool:
        """Another worker of the model goes on without it."""
        return not self.primary or any(w.state is State.LOADED for w in self.model.workers if w is not self)

    @property
    def was_used(self) -> bool:
        """Its process has been given a request."""
        return self.state is not State.LOADING and self.dispatched_at >= self.loaded_at

    @property
    def held(self) -> bool:
        """Leased or pinned."""
        return self.primary and (bool(self.model.leases) or self.model.pinned)

    @property
    def referenced(self) -> bool:
        """Leased, pinned or at work: never to be chosen for eviction."""
        return bool(self.inflight) or self.held

    @property
    def idle(self) -> bool:
        """It has no work, and none waits for it."""
        return not self.inflight and not self.queued

    @property
    def evictable(self) -> bool:
        """Loaded, without work, lease or pin."""
        return self.state is State.LOADED and self.idle and not self.held

    def reasons(self) -> str:
        """Why it cannot go, in words."""
        why = []
        if self.primary and (leases := len(self.model.leases)):
            why.append(f"{leases} lease{'s' if leases > 1 else ''}")
        if self.primary and self.model.pinned:
            why.append("pinned")
        if self.inflight:
            why.append("a request in flight" if len(self.inflight) == 1 else f"{len(self.inflight)} requests in flight")
        if self.queued:
            why.append(f"{self.queued} queued")
        return ", ".join(why) or "idle"


# ---------------------------------------------------------------- models


class End(enum.Enum):
    """Why a process has ended."""

    ROOM = "room"  # another model needed its memory
    OVERRUN = "overrun"  # more was charged than may be
    IDLE = "idle"
    UNLOADED = "unloaded"  # asked for, or its configuration changed: it finished what it had
    UNWANTED = "unwanted"  # a load ahead of any request was in the way
    SHUTDOWN = "shutdown"
    LOAD_FAILED = "load_failed"
    OUT_OF_MEMORY = "out_of_memory"
    HUNG = "hung"
    CRASHED = "crashed"


FAILURES = {End.LOAD_FAILED, End.OUT_OF_MEMORY, End.HUNG, End.CRASHED}


class Guess(enum.Enum):
    """Whether a process was started ahead of any request."""

    NONE = "none"  # it was asked for
    OPEN = "open"  # it runs, and has not been asked for since
    WRONG = "wrong"  # it ended without having been asked for: no further guess before a request


class LoadFailures:
    """Loads that failed in a row, and when the next is tried. Those of extra workers count by themselves: the model
    goes on with the workers that it has.

    Attributes:
        cause: of the last one; "" where it succeeded. permanent: no retry helps; it is tried after its back-off anyway.
        device: of the last one.
        ran_out: memory ran out in it, and it is tried once more; if that happens again, it has failed.
    """

    __slots__ = ("_count", "_extra", "cause", "device", "extra_at", "permanent", "ran_out", "retry_at")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """A load succeeded, or the model is not what it was."""
        self.cause = self.device = ""
        self.permanent = self.ran_out = False
        self.retry_at = self.extra_at = 0.0
        self._count = self._extra = 0

    def add(self, cause: str, now: float, *, extra: bool, guessed: bool, permanent: bool) -> tuple[int, float]:
        """One more. Gives how many there are in a row, and the seconds until the next try: none after a guess, which
        was not asked for.
        """
        self.ran_out = False
        if extra:
            self._extra += 1
            self.extra_at = now + _back_off(self._extra)
            return self._extra, _back_off(self._extra)
        self._count += not guessed
        wait = 0.0 if guessed else _back_off(self._count)
        self.cause, self.permanent, self.retry_at = cause, permanent, now + wait
        return self._count, wait


def _back_off(failures: int) -> float:
    return float(min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2 ** (failures - 1)))


class Model:
    """A registered model: what outlives its processes.

    Attributes:
        settings: counts changes of its settings that take a new process.
        removed: config.toml has it no more; it is forgotten when no lease and no process is left.
        primary: the worker that leases hold; without a process it is the last one that was (see `Worker`).
        workers: those with a process, until its memory is back.
        version: of its weights and options, opaque; `peaks`: device → the most that these have been seen to use.
        queue: what waits; `later`: what came while it drained, for the next process.
        unloads: UNLOAD requests to answer once it is gone.
        leases: lease number → session.
        gap_s: how soon its callers usually come back when it has become idle (inf: they never have).
        least_load_s: its fastest load (inf: none yet).
        shortages: "load", "batch" or "request" → how often memory ran out under one.
        errors: code → how many requests were answered so. ends: cause → how many processes have ended so.
        ended_badly: the last process that ended was not meant to. restarts: processes started after such a one.
    """

    __slots__ = (
        "config", "crashes", "ended_badly", "ends", "errors", "evictions", "failures", "gap_s", "guess", "keep_alive",
        "later", "leases", "least_load_s", "loads", "name", "peaks", "pinned", "primary", "quarantine", "queue",
        "removed", "requests", "restarts", "settings", "shortages", "unloads", "version", "workers",
    )  # fmt: skip

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.name = config.name
        self.settings = 0
        self.removed = False
        self.pinned = config.pinned
        self.version = ""
        self.peaks: dict[str, Peak] = {}
        self.queue: Queue[Request] = Queue()
        self.later: Queue[Request] = Queue()
        self.unloads: list[Request] = []
        self.leases: dict[int, bytes] = {}
        self.keep_alive: float | None = None
        self.guess = Guess.NONE
        self.failures = LoadFailures()
        self.quarantine = Quarantine()
        self.gap_s = self.least_load_s = math.inf
        self.requests = self.loads = self.evictions = self.crashes = self.restarts = 0
        self.errors: Counter[str] = Counter()
        self.shortages: Counter[str] = Counter()
        self.ends: Counter[End] = Counter()
        self.ended_badly = False
        self.workers: list[Worker] = []
        self.primary = Worker(self)

    @property
    def state(self) -> State:
        state = self.primary.state
        return State.FAILED if state is State.UNLOADED and self.failures.cause else state

    @property
    def waiting(self) -> int:
        return self.queue.live + self.later.live

    @property
    def extras(self) -> list[Worker]:
        """Workers beside the primary one."""
        return [worker for worker in self.workers if worker is not self.primary]

    @property
    def answering(self) -> list[Worker]:
        """The workers that answer requests."""
        return [worker for worker in self.workers if worker.answers]

    def allowed(self, devices: Iterable[str]) -> list[str]:
        """Those of the devices on which it may be loaded, as far as config.toml says."""
        return [self.config.device] if self.config.device else list(devices)

    @property
    def leaving(self) -> bool:
        """Removed or disabled while it may have been in use: it takes no new requests."""
        return self.removed or not self.config.enabled

    def came_back_after(self, seconds: float) -> None:
        """It was asked for when it was idle."""
        known = self.gap_s < math.inf
        self.gap_s = self.gap_s + NEWEST * (seconds - self.gap_s) if known else seconds

    def need_mb(self, device: str) -> float:
        """What a process of the model is charged on the device.

        The declared megabytes, until one has been seen at work there; from then on the most that was seen.
        """
        peak = self.peaks.get(device)
        if peak is None:
            return self.config.vram_mb
        return peak.mb if peak.worked else max(peak.mb, self.config.vram_mb)

    def measured_mb(self, device: str) -> float | None:
        """The most that was seen on the device; None where nothing was."""
        peak = self.peaks.get(device)
        return peak.mb if peak is not None else None
