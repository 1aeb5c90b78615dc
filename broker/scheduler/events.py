"""The events that the scheduler takes, and the actions that it gives. Small records without behaviour.

Nothing here knows about sockets, processes, clocks or pixels: payloads and bodies are opaque and only handed through.
"""

from __future__ import annotations

import enum
import math
from typing import Any

import msgspec

from zoo.config.schema import BrokerConfig, ModelConfig
from zoo.timings import UNKNOWN, Timings


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
        session: of the client that asks.
        deadline: on the clock of `handle`'s `now`.
        priority: 0 (first) to 3 within the model's queue.
        payload: opaque; comes back in `SendBatch`.
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
    """A client is gone, with its requests and leases."""

    session: bytes


class Pinned(_Record):
    model: str
    on: bool


class IdleCleanup(_Record):
    """Evict what has not been used for `idle_seconds`; `handle` answers with Kill actions."""

    idle_seconds: float


class WorkerReady(_Record):
    """The model is loaded. `max_batch`: how many requests its adapter takes at once."""

    worker: int
    max_batch: int = 1


class MemoryShort(_Record):
    """Of an allocation that failed: what its process used by then, and what it asked for. 0: unknown."""

    used_mb: float = 0.0
    asked_mb: float = 0.0


class WorkerLoadFailed(_Record):
    """`short`: memory ran out. `retryable`: a load may succeed later without anything being changed."""

    worker: int
    code: str
    message: str
    short: MemoryShort | None = None
    retryable: bool = True


class Finished(_Record):
    """How one request of a batch ended; `body` is opaque.

    `error`: (code, message) when it failed. `short`: because memory ran out, though it was run alone.
    """

    request: int
    body: Any = None
    error: tuple[str, str] | None = None
    short: MemoryShort | None = None


class WorkerDone(_Record):
    """The worker is through with a batch. `halved`: memory did not suffice for all of it at once.

    `seconds`: as the worker says, to read the batch, to run it, to pack what came of it.
    """

    worker: int
    outcomes: list[Finished]
    halved: bool = False
    seconds: tuple[float, float, float] = (0.0, 0.0, 0.0)


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
    """What was measured of the model's weights as they are now (device → `peaks.Peak`); replaces what was known."""

    model: str
    version: str
    peaks: dict[str, Any]


class LoadedEarlier(_Record):
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
    | LoadedEarlier
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


class SendBatch(_Record):
    """Send these requests (number → payload) to the worker, as one batch. See `protocol.Dispatch` for the rest."""

    worker: int
    batch: list[tuple[int, Any]]
    suspect: bool = False
    refuse: tuple[bytes, ...] = ()


class Deliver(_Record):
    """An inference succeeded on `worker`: hand `body` to the caller."""

    request: int
    body: Any
    worker: int
    timings: Timings = UNKNOWN


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
    """No worker reads the frames of an already answered request any more.

    `body` is what its worker said, if anything, so that nothing it placed in its arena is lost.
    """

    request: int
    worker: int
    body: Any = None


class Forget(_Record):
    """The client is gone: the request is not answered."""

    request: int


class Stop(_Record):
    """Everything has ended; the process may exit."""


Action = StartWorker | KillWorker | SendBatch | Deliver | Answer | Refuse | Settled | Forget | Stop
