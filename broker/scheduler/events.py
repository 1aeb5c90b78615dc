"""The vocabulary of the scheduler: states and their legal transitions, the events it takes, the actions it gives.

Two rules. Everything that changes a model's state goes through `TRANSITIONS`; a move that is not in the table
is a bug and raises. Nothing here knows about sockets, processes, clocks or pixels: payloads and routes are
opaque and only handed through.
"""

from __future__ import annotations

import enum
import math
from typing import Any

import msgspec

from zoo.config.schema import BrokerConfig, ModelConfig


class State(enum.Enum):
    """Where a model is. `docs/design.md` has the glossary and the picture."""

    UNLOADED = "unloaded"  # no process, nothing charged
    LOADING = "loading"  # charged; a process is starting and loading
    LOADED = "loaded"  # answers requests
    DRAINING = "draining"  # finishes what it has; newcomers wait for its next life
    EVICTING = "evicting"  # process being killed, or gone with its memory not seen free yet
    FAILED = "failed"  # the last load failed; no process; refused until its retry time


class Move(enum.Enum):
    """What happens to a model."""

    START = "start"
    READY = "ready"
    DRAIN = "drain"
    KEEP = "keep"  # a pin ends the draining
    KILL = "kill"  # the broker's decision: evicted, hung, load failed or took too long
    EXIT = "exit"  # the process went by itself
    FREED = "freed"  # process gone and memory free (or written off)
    FAILED = "failed"  # the same, after a load that failed


TRANSITIONS: dict[tuple[State, Move], State] = {
    (State.UNLOADED, Move.START): State.LOADING,
    (State.FAILED, Move.START): State.LOADING,
    (State.LOADING, Move.READY): State.LOADED,
    (State.LOADING, Move.KILL): State.EVICTING,
    (State.LOADING, Move.EXIT): State.EVICTING,
    (State.LOADED, Move.DRAIN): State.DRAINING,
    (State.LOADED, Move.KILL): State.EVICTING,
    (State.LOADED, Move.EXIT): State.EVICTING,
    (State.DRAINING, Move.KEEP): State.LOADED,
    (State.DRAINING, Move.KILL): State.EVICTING,
    (State.DRAINING, Move.EXIT): State.EVICTING,
    (State.EVICTING, Move.FREED): State.UNLOADED,
    (State.EVICTING, Move.FAILED): State.FAILED,
}


class Kind(enum.Enum):
    """What a request wants."""

    INFER = "infer"
    LEASE = "lease"
    PRELOAD = "preload"
    UNLOAD = "unload"


class _Record(msgspec.Struct, gc=False):
    pass


# ---------------------------------------------------------------- events


class Asked(_Record):
    """A request for a model.

    Attributes:
        request: the service's number for it, never used twice.
        session: whose it is.
        deadline: on the clock of `handle`'s `now`.
        priority: 0 (first) to 3 within the model's queue.
        payload: opaque; comes back in `Dispatch`.
        keep_alive: LEASE and PRELOAD: seconds idle before eviction; 0 evicts with the last reference.
        problem: why the model could not possibly be loaded (weights missing), as far as is known.
    """

    request: int
    session: bytes
    model: str
    kind: Kind
    deadline: float
    priority: int = 2
    payload: Any = None
    keep_alive: float | None = None
    problem: str | None = None


class Released(_Record):
    """A lease ends."""

    session: bytes
    lease: int


class Withdrawn(_Record):
    """The caller cancels a request."""

    request: int


class SessionClosed(_Record):
    """A client is gone, with everything that was its."""

    session: bytes


class Pinned(_Record):
    model: str
    on: bool


class IdleCleanup(_Record):
    """Evict whatever nobody used for `idle_seconds`; `handle` answers with Kill actions."""

    idle_seconds: float


class WorkerReady(_Record):
    """The model is loaded. `max_batch`: how many requests its adapter takes at once."""

    worker: int
    max_batch: int = 1


class Shortage(_Record):
    """Of an allocation that failed: what its process used by then, and what it asked for. 0: unknown."""

    used_mb: float = 0.0
    asked_mb: float = 0.0


class WorkerLoadFailed(_Record):
    """`short`: memory ran out. `retryable`: a load may succeed later without anything being changed."""

    worker: int
    code: str
    message: str
    short: Shortage | None = None
    retryable: bool = True


class Outcome(_Record):
    """How one request of a batch ended; `body` is opaque.

    `error`: (code, message) when it failed. `short`: because memory ran out, though it was run alone.
    """

    request: int
    body: Any = None
    error: tuple[str, str] | None = None
    short: Shortage | None = None


class WorkerDone(_Record):
    """The worker is through with a batch. `halved`: memory did not suffice for all of it at once."""

    worker: int
    outcomes: list[Outcome]
    halved: bool = False


class WorkerSaid(_Record):
    """The fingerprint of the input that the worker is about to run."""

    worker: int
    request: int
    digest: bytes


class WorkerExited(_Record):
    """The process is gone; `how` says it in words. `starved`: ended by the kernel because memory ran out."""

    worker: int
    how: str
    starved: bool = False


class Remembered(_Record):
    """What was measured of the model's weights as they are now (device → `residency.Peak`); replaces what was known."""

    model: str
    version: str
    peaks: dict[str, Any]


class Resident(_Record):
    """Models that were loaded when the broker ended, the last used first: they are to come back, as room allows."""

    models: list[str]


class Forgotten(_Record):
    """What was measured of the model is not to count any more."""

    model: str


class Measured(_Record):
    """What the worker's process uses on its device. `worked`: it has run a request."""

    worker: int
    mb: float
    worked: bool = False


class DeviceSeen(_Record):
    """The size of a device, and what of it is used by others than our workers."""

    device: str
    others_mb: float
    total_mb: float


class DeviceUnread(_Record):
    """Nothing is started on the device for `why`, not longer than `seconds`. Without `why`: it can be read (again)."""

    device: str
    why: str = ""
    seconds: float = math.inf


class Reconfigured(_Record):
    """config.toml has changed.

    Attributes:
        broker: the settings from now on.
        budgets: device → MB; the devices themselves stay.
        models: all that are registered from now on.
        restart: names of those whose running process has been overtaken by the change.
        changes: (model or "", what changed), for the story.
    """

    broker: BrokerConfig
    budgets: dict[str, float]
    models: list[ModelConfig]
    restart: set[str]
    changes: list[tuple[str, str]]


class MemoryBack(_Record):
    """The device shows the worker's memory free."""

    worker: int


class MemoryStuck(_Record):
    """The process is gone but its memory has not come back in time: it stays charged."""

    worker: int


class Tick(_Record):
    """Time has passed; something in `next_wakeup` may be due."""


class ShutDown(_Record):
    """Take nothing new, give what runs `grace` seconds, then end everything."""

    grace: float


Event = (
    Asked
    | Released
    | Withdrawn
    | SessionClosed
    | Pinned
    | IdleCleanup
    | WorkerReady
    | WorkerLoadFailed
    | WorkerDone
    | WorkerSaid
    | WorkerExited
    | Remembered
    | Forgotten
    | Resident
    | Measured
    | DeviceSeen
    | DeviceUnread
    | Reconfigured
    | MemoryBack
    | MemoryStuck
    | Tick
    | ShutDown
)

# ---------------------------------------------------------------- actions


class StartWorker(_Record):
    worker: int
    model: str
    device: str


class KillWorker(_Record):
    """End the process group. `gentle`: SIGTERM first, because it may still be able to say why it hangs."""

    worker: int
    gentle: bool = False


class Dispatch(_Record):
    """Send these requests (number → payload) to the worker, as one batch. See `protocol.Dispatch` for the rest."""

    worker: int
    batch: list[tuple[int, Any]]
    suspect: bool = False
    refuse: tuple[bytes, ...] = ()


class Deliver(_Record):
    """An inference succeeded on `worker`: hand `body` to whoever asked."""

    request: int
    body: Any
    worker: int


class Answer(_Record):
    """Anything else succeeded."""

    request: int
    value: Any = None


class Refuse(_Record):
    """The request failed. `held`: a worker still reads its frames; `Settled` follows."""

    request: int
    code: str
    message: str
    retryable: bool = False
    retry_after: float | None = None
    held: bool = False


class Settled(_Record):
    """Nobody reads the frames of an already answered request any more.

    `body` is what its worker said, if anything, so that nothing it placed in its arena is lost.
    """

    request: int
    worker: int
    body: Any = None


class Forget(_Record):
    """The client is gone: nobody is to be answered."""

    request: int


class Stop(_Record):
    """Everything has ended; the process may exit."""


Action = StartWorker | KillWorker | Dispatch | Deliver | Answer | Refuse | Settled | Forget | Stop
