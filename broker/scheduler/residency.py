"""One model's life in memory: its state, its queue, its leases. Plain records; the scheduler moves them.

A model with several workers has one `Residency` for each. The first is the model's own: under its name, with its queue,
leases, pin and everything else that outlives a process. The further ones are no more than the life of their process.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Annotated, Any

import msgspec

from broker.scheduler.events import TRANSITIONS, Kind, Move, State
from broker.scheduler.quarantine import Quarantine
from broker.scheduler.queue import Queue
from zoo.config.schema import ModelConfig

NEWEST = 0.2  # its weight in the averages of how long a request takes, and how soon the next one comes
LIVES = 8  # of which a model's peak is remembered
MOST_MB = 1e9  # of what anybody could have measured


Megabytes = Annotated[float, msgspec.Meta(ge=0, le=MOST_MB)]


class Peak(msgspec.Struct, frozen=True):
    """The most that a model's process has been seen to use on a device, in its last `LIVES` lives that are known.

    `worked`: it had run a request by then. Until one has, the peak is what a load takes, and says nothing about work.
    `lives`: the most of each life that ran a request, the newest last; none where an earlier release wrote it down.
    """

    mb: Megabytes
    worked: bool = False
    lives: tuple[Megabytes, ...] = ()

    def loaded(self, mb: float) -> Peak:
        """With what was seen before any request had run."""
        return Peak(max(self.mb, mb), self.worked, self.lives)

    def lived(self, mb: float, *, again: bool) -> Peak:
        """With what a life took that has run a request; `again`: the newest life that is known."""
        before = self.lives or ((self.mb,) if self.worked else ())
        mb = mb if self.worked else max(mb, self.mb)  # its load
        lives = (*before[:-1], max(before[-1], mb)) if again and before else (*before, mb)[-LIVES:]
        return Peak(max(lives), True, lives)

    def within(self, budget_mb: float) -> Peak | None:
        """Without lives that took more than the whole budget, but where all did; None if nothing is left.

        One request can do that to a life, and would make the model too large for all others.
        """
        if not self.worked or self.mb <= budget_mb:
            return self
        fitting = tuple(mb for mb in self.lives if mb <= budget_mb)
        if fitting:
            return Peak(max(fitting), True, fitting)
        return self if len(self.lives) > 1 else None


class Request(msgspec.Struct, eq=False):
    """One accepted request, until it is answered (and, if a worker still reads its frames, until that ends).

    In a `queue` → waiting; `running` → dispatched; neither → answered. `alone`: it was at work when a process died or
    hung, so it is not run together with others, and blame is never in doubt. `starved`: memory ran out under it once.

    The rest is for the journal. `found`, `behind`: the model's state and how many waited when it came in, if it had to
    wait; `sent`, `worker`, `batch`: its last dispatch; `ended`, `outcome`: the answer (of a success its type alone).
    """

    id: int
    session: bytes
    model: Residency
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


class Residency:
    """A registered model and where it is, or a further worker of one.

    Attributes:
        first: itself, or the model that it is a further worker of.
        others: of the first: its further workers, until their memory is back.
        mb: what its process is charged, or was last.
        version: of its weights and options, opaque; `peaks`: device → the most that these have been seen to use.
        queue: what waits for this life of the model; `later`: what came while it drained, for the next life.
        unloads: UNLOAD requests to answer once it is gone.
        inflight: the batch its worker is running (also after it was answered, until the worker lets go).
        ahead: the batch that lies at the worker already, so that it goes on without waiting for us.
        short: of its queue, those that ran out of memory: nobody is served until the process may be charged for them.
        max_batch: how many requests its adapter takes at once; `batch_limit`: how many it gets, because memory ran out
            (0: as many as it takes), `batches`: how many of that size have gone well since, `batches_before`: and have
            to, before larger ones are tried.
        leaves_at: when what waits for company goes without; inf: nobody does.
        service_s, least_service_s: how long a request has taken lately, its share of the batch; and at the least.
        load_seconds, least_load_s: how long its last load took; and the fastest (inf: none yet).
        gap_s: how soon its callers usually come back when it has become idle (inf: they never have).
        leases: lease number → session.
        claim: room that is coming back on `claim_on` was promised to it; lower numbers first, then all without (0).
        blocked, blocked_by: what it waits for, in words and as a key that changes when the reason does.
        awaits: the busy models it waits for; kept to, or each request would move the turn to another of them.
        yielding: takes no further work, so that a model that has waited long enough gets its room.
        failed_load: how the current eviction ends: in FAILED instead of UNLOADED.
        unasked: its process was started ahead of any request, and nobody has asked for it since.
        misguessed: the last such process ended unasked, and nobody has asked since.
        second_load: memory ran out in the load before: if it does again, that is the end of it.
        shortages: "load", "batch" or "request" → how often memory ran out under one.
        failed_on: device of the last load, if that failed.
        further_failures, further_at: failed loads of further workers in a row, and when another may be tried.
        number: never used twice, though a name may be.
        permanent: no retry helps after the load that failed last; the next is tried after its back-off all the same.
        removed: config.toml has it no more; it is forgotten when nobody holds it.
        outdated: its process was started with settings that have changed since.
        noted: its process is the newest life in the model's peak on its device.
    """

    def __init__(self, config: ModelConfig, number: int, first: Residency | None = None) -> None:
        self.config = config
        self.number = number
        self.first = first or self
        self.others: list[Residency] = []
        self.removed = self.outdated = self.noted = False
        self.name = config.name
        self.mb = config.vram_mb
        self.version = ""
        self.peaks: dict[str, Peak] = {}
        self.pinned = config.pinned and first is None
        self.state = State.UNLOADED
        self.worker = 0
        self.device = ""
        self.queue: Queue[Request] = Queue()
        self.later: Queue[Request] = Queue()
        self.unloads: list[Request] = []
        self.inflight: list[Request] = []
        self.ahead: list[Request] = []
        self.short: list[Request] = []
        self.max_batch = 1
        self.batch_limit = 0
        self.batches = self.batches_before = 0
        self.leaves_at = math.inf
        self.service_s = self.least_service_s = 0.0
        self.gap_s = math.inf
        self.leases: dict[int, bytes] = {}
        self.keep_alive: float | None = None
        self.yielding = False
        self.unload_when_loaded = False
        self.unasked = self.misguessed = False
        self.started_at = 0.0
        self.loaded_at = 0.0
        self.dispatched_at = 0.0
        self.last_used = 0.0
        self.watched = 0  # worker whose timer is armed
        self.idle_at = math.inf
        self.failed_load = False
        self.second_load = False
        self.failures = 0
        self.failure = ""
        self.permanent = False
        self.retry_at = 0.0
        self.failed_on = ""
        self.further_failures = 0
        self.further_at = 0.0
        self.claim = 0
        self.claim_on = ""
        self.blocked = ""
        self.blocked_by = ""
        self.awaits: tuple[str, ...] = ()
        self.quarantine = Quarantine()
        self.requests = 0
        self.errors = 0
        self.loads = 0
        self.evictions = 0
        self.crashes = 0
        self.shortages: Counter[str] = Counter()
        self.load_seconds = 0.0
        self.least_load_s = math.inf

    def move(self, move: Move) -> None:
        """Changes state by the table; an illegal move is a bug and raises KeyError."""
        self.state = TRANSITIONS[self.state, move]

    def took(self, seconds: float) -> None:
        """A request's share of the batch that is through."""
        self.service_s += (NEWEST if self.service_s else 1.0) * (seconds - self.service_s)
        self.least_service_s = min(self.least_service_s or seconds, seconds)

    def came_back_after(self, seconds: float) -> None:
        """Somebody asked for it when it was idle."""
        known = self.gap_s < math.inf
        self.gap_s = self.gap_s + NEWEST * (seconds - self.gap_s) if known else seconds

    def unblock(self) -> None:
        self.blocked = self.blocked_by = ""
        self.awaits = ()

    def need_mb(self, device: str) -> float:
        """What a process of the model is charged on the device.

        The declared megabytes, until one has been seen at work there; from then on the most that was ever seen.
        """
        peak = self.first.peaks.get(device)
        if peak is None:
            return self.config.vram_mb
        return peak.mb if peak.worked else max(peak.mb, self.config.vram_mb)

    def measured_mb(self, device: str) -> float | None:
        """The most that was seen on the device; None where nothing was."""
        peak = self.first.peaks.get(device)
        return peak.mb if peak is not None else None

    @property
    def waiting(self) -> int:
        return self.queue.live + self.later.live

    @property
    def leaving(self) -> bool:
        """Removed or disabled while it may have been in use: it takes on nobody new."""
        return self.first.removed or not self.config.enabled

    @property
    def answering(self) -> list[Residency]:
        """The workers of a model that answer requests; `self` is its first."""
        return [one for one in (self, *self.others) if one.state in (State.LOADED, State.DRAINING)]

    @property
    def dispensable(self) -> bool:
        """Another worker of the model goes on without it."""
        return self.first is not self or any(other.state is State.LOADED for other in self.others)

    @property
    def was_used(self) -> bool:
        """Its process has been given a request."""
        return self.state is not State.LOADING and self.dispatched_at >= self.loaded_at

    @property
    def referenced(self) -> bool:
        """Leased, pinned or at work: never to be chosen for eviction."""
        return bool(self.leases) or self.pinned or bool(self.inflight)

    def reasons(self) -> str:
        """Why it cannot go, in words."""
        why = []
        if self.leases:
            why.append(f"{len(self.leases)} lease{'s' if len(self.leases) > 1 else ''}")
        if self.pinned:
            why.append("pinned")
        if self.inflight:
            why.append("a request in flight" if len(self.inflight) == 1 else f"{len(self.inflight)} requests in flight")
        if self.queue.live:
            why.append(f"{self.queue.live} queued")
        return ", ".join(why) or "idle"
