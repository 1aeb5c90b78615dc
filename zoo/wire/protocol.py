"""The wire: every message that crosses a socket, and the limits it must keep. `docs/protocol.md` says it in prose.

A message is `[header, body, buffer…]`, over ZeroMQ between client and broker and over a `zoo.wire.channel` between
broker and worker. The header is one version byte followed by one of the structs
below as MessagePack (arrays, tagged by a small integer). The broker reads headers only; it forwards body and
buffers unread. On the lifelines (Unix SEQPACKET sockets) each packet is one header of the `Lifeline…` kind,
with at most one descriptor attached.

Deadlines travel as remaining milliseconds, never as clock readings. Nothing here is ever pickled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import msgspec

from zoo import errors
from zoo.timings import UNKNOWN, Timings

VERSION = 1
_VERSION_BYTE = bytes([VERSION])

MAX_MESSAGE_BYTES = 160 << 20  # one inline 8K frame (100 MB) and room to spare
MAX_HEADER_BYTES = 64 << 10
MAX_VALUE_BYTES = 16 << 20  # headers from the broker: a `Value` may hold a long list
MAX_PARTS = 2 + 64
MAX_FRAMES = 64  # frames in one request (video)
MAX_ARENAS = 16  # arenas of one process, and so of one request
MAX_TEXT = 2000  # characters of an error's message
MAX_LABELS = 1 << 16  # of a model; one that has more tells none
MAX_LABELS_BYTES = 1 << 20  # of all of them, packed
SESSION_BYTES = 8
INLINE_RESULT_BYTES = 64 << 10  # larger arrays of a result travel through the worker's arena
SESSION_TTL_S = 15.0  # a session without a lifeline that is silent for this long is over
PING_S = 5.0
UNKNOWN_SESSION = "this broker does not know the session"  # it is a new one, or forgot us: say Hello again

Rid = Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]  # 0 is for errors that belong to no request


class Message(msgspec.Struct, array_like=True, gc=False):
    """Base of every header."""


class Item(msgspec.Struct, array_like=True, gc=False):
    """Base of what lists in a header hold."""


# ---------------------------------------------------------------- client → broker


class Hello(Message, tag=1):
    """Opens a session. `session` is chosen by the client; its sockets' routing ids begin with it."""

    session: bytes
    pid: int
    client: str


class Infer(Message, tag=2):
    """One inference. `arenas`: ids of the arenas that the body's frames lie in. The body is an `InferBody`."""

    rid: Rid
    model: str
    timeout_ms: int
    priority: int = 2
    arenas: tuple[int, ...] = ()


class Load(Message, tag=3):
    """Makes a model ready; with `lease`, also keeps it so. `keep_alive` (seconds) overrides its idle time."""

    rid: Rid
    model: str
    timeout_ms: int
    lease: bool = False
    keep_alive: float | None = None


class Release(Message, tag=4):
    """Gives a lease back. With `rid` 0 there is no answer."""

    rid: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    lease: int


class Unload(Message, tag=5):
    rid: Rid
    model: str
    timeout_ms: int


class Pin(Message, tag=6):
    rid: Rid
    model: str
    on: bool


class CleanupIdle(Message, tag=7):
    rid: Rid
    idle_seconds: float


class Query(Message, tag=8):
    """Asks for `what`: "status", "models", "ps", "explain", "overview", "enrich", "room" or "logs".

    `model`: what to explain, a model's name or a request's number (`Error.request`); None: the last decisions. Of
    "models" and "logs": the one model; None: all. `since`: of "overview" and "logs", the `next` of the answer before;
    0 begins.
    """

    rid: Rid
    what: str
    model: str | None = None
    since: int = 0


class Cancel(Message, tag=9):
    """Withdraws request `rid`; there is no answer of its own. The request's comes to the socket that cancels.

    `lost`: its answer, if it was given before, never arrived: what was lent with it is taken back.
    """

    rid: Rid
    lost: bool = False


class Ping(Message, tag=10):
    """Keeps a session without a lifeline alive; there is no answer."""


class Bye(Message, tag=11):
    """Ends a session without a lifeline; there is no answer."""


class Reload(Message, tag=12):
    """Reads config.toml again."""

    rid: Rid


class Footprint(Message, tag=13):
    """Asks what was measured of `model` (None: of all); with `forget`, also forgets it."""

    rid: Rid
    model: str | None = None
    forget: bool = False


class Record(Message, tag=14):
    """About the recording of requests: `what` is "start", "stop", "status" or "fetch" (from line `since` on)."""

    rid: Rid
    what: str
    since: int = 0


FromClient = (
    Hello
    | Infer
    | Load
    | Release
    | Unload
    | Pin
    | CleanupIdle
    | Query
    | Cancel
    | Ping
    | Bye
    | Reload
    | Footprint
    | Record
)

# ---------------------------------------------------------------- broker → client


class Welcome(Message, tag=1):
    """`handoff`: the path of the lifeline socket, or None where memory cannot be shared.

    `inline_limit_bytes`: the largest message that carries frames itself.
    """

    handoff: str | None
    arena_limit_bytes: int
    boot: str
    inline_limit_bytes: int = MAX_MESSAGE_BYTES


class Result(Message, tag=2):
    """The body is a `ResultBody`. `arena`: the id of the worker's arena that it refers to, or 0.

    `request`: as in `Error`.
    """

    rid: int
    arena: int = 0
    request: int = 0
    timings: Timings = UNKNOWN


class Error(Message, tag=3):
    """`held`: the slots of the request are still being read; `LifelineSettled` will follow.

    `request`: the broker's own number for it, to be explained by; 0 when it never got one.
    """

    rid: int
    code: str
    message: str
    retryable: bool = False
    retry_after: float | None = None
    held: bool = False
    request: int = 0

    def exception(self) -> errors.ZooError:
        """An unknown code becomes a plain `ZooError`."""
        kind = errors.BY_CODE.get(self.code, errors.ZooError)
        return kind(self.message, retryable=self.retryable, retry_after=self.retry_after, request=self.request)


class Value(Message, tag=4):
    """The answer to everything that is not an inference."""

    rid: int
    value: Any = None


FromBroker = Welcome | Result | Error | Value

# ---------------------------------------------------------------- broker → worker


class Job(Item):
    """One request of a batch; the next `parts` parts of the message are its body and buffers.

    `arenas`: the only ones that its frames may name. `inline`: the client shares no memory, put large results into
    the message.
    """

    id: int
    arenas: tuple[int, ...] = ()
    inline: bool = False
    parts: int = 1


class Dispatch(Message, tag=1):
    """Run these, together if you can. `suspect`: say the input's fingerprint on the lifeline first (there is just
    one). `refuse`: fingerprints not to be run.
    """

    jobs: tuple[Job, ...]
    suspect: bool = False
    refuse: tuple[bytes, ...] = ()


# ---------------------------------------------------------------- worker → broker


class Loaded(Message, tag=1):
    """The model is ready. `peak_mb`: the allocator's own peak, 0 where unknown. `stand_in`: its weights are one.

    `max_batch`: how many requests may come in one `Dispatch`. `copied`: it was made from the copy that was given. The
    body, where there is one, are the model's labels (`pack_labels`).
    """

    load_seconds: float
    peak_mb: float = 0.0
    stand_in: bool = False
    max_batch: int = 1
    copied: bool = False


class Shortage(Item):
    """What is known of an allocation that failed: what the process used by then, and what it asked for. 0: unknown."""

    used_mb: float = 0.0
    asked_mb: float = 0.0


class LoadError(Message, tag=2):
    """`short`: memory ran out, and the worker waits to be ended, with all that it holds. `retryable`: a load may
    succeed later without anything being changed.
    """

    code: str
    message: str
    short: Shortage | None = None
    retryable: bool = True


class Outcome(Item):
    """How one request ended: with a result body of its own in the message, or with `code` and `message`.

    `offsets`: the slots of this worker's own arena that the body refers to. `short`: memory ran out, though it was run
    alone.
    """

    id: int
    offsets: tuple[int, ...] = ()
    code: str = ""
    message: str = ""
    short: Shortage | None = None


class Done(Message, tag=3):
    """A batch is through: the outcomes in the order of its jobs, then the body of each that succeeded.

    `halved`: memory did not suffice for all of it at once. `grown`: the process uses more than when it last said so.
    `seconds`: to read the batch, to run the adapter's `predict`, to pack what it answered.
    """

    outcomes: tuple[Outcome, ...]
    halved: bool = False
    grown: bool = False
    seconds: tuple[float, float, float] = (0.0, 0.0, 0.0)


FromWorker = Loaded | LoadError | Done

# ---------------------------------------------------------------- on the lifelines


class LifelineAttach(Message, tag=1):
    """First packet of a connection: who this is. `key`: a session, or a worker's routing id."""

    role: str  # "client" or "worker"
    key: bytes


class LifelineArena(Message, tag=2):
    """With a descriptor. Towards the broker: an offer (`id` 0). From it: another process's arena to map."""

    id: int = 0


class LifelineAccepted(Message, tag=3):
    """The offer was taken, under this id (0: the attach was)."""

    id: int


class LifelineRefused(Message, tag=4):
    code: str
    message: str


class LifelineGone(Message, tag=5):
    """Arena `id` will not be referred to any more."""

    id: int


class LifelineReleased(Message, tag=6):
    """The reader is done with the slot at `offset` of arena `id`."""

    id: int
    offset: int


class LifelineSettled(Message, tag=7):
    """No worker reads the slots of request `rid` any more (see `Error.held`)."""

    rid: int


class LifelineFingerprint(Message, tag=8):
    """Worker: this is the digest of the input I am about to run."""

    id: int
    digest: bytes


class LifelineChannel(Message, tag=9):
    """Worker, with a descriptor: the broker's end of the channel (see `zoo.wire.channel`)."""


class LifelineCopy(Message, tag=10):
    """With a descriptor. From a worker: a copy of the model that it has loaded. Towards one: the copy to begin with.

    `why`: without a descriptor: the model has no copy, and why.
    """

    why: str = ""


class LifelineBye(Message, tag=11):
    """Client: my session is over. The line stays until I have given back the results that I still look at."""


LifelineMessage = (
    LifelineAttach
    | LifelineArena
    | LifelineAccepted
    | LifelineRefused
    | LifelineGone
    | LifelineReleased
    | LifelineSettled
    | LifelineFingerprint
    | LifelineChannel
    | LifelineCopy
    | LifelineBye
)

# ---------------------------------------------------------------- coding

_encode = msgspec.msgpack.Encoder().encode
T = TypeVar("T")


def pack(message: Message) -> bytes:
    """A header's bytes, version byte first."""
    return _VERSION_BYTE + _encode(message)


def _reader(decoder: msgspec.msgpack.Decoder[T], limit: int = MAX_HEADER_BYTES) -> Callable[[bytes], T]:
    """What reads headers of one kind. It raises ProtocolMismatch for a wrong version and for anything unreadable."""
    decode = decoder.decode

    def read(raw: bytes) -> T:
        if raw[:1] != _VERSION_BYTE:
            said = raw[0] if raw else "nothing"
            raise errors.ProtocolMismatch(
                f"the other side speaks protocol version {said}, this side version {VERSION}; "
                "install the same release of the zoo on both sides"
            )
        if len(raw) > limit:
            raise errors.ProtocolMismatch(f"a header of {len(raw)} bytes; the limit is {limit}")
        try:
            return decode(raw[1:])  # a copy of some bytes: cheaper than a memoryview
        except (msgspec.DecodeError, msgspec.ValidationError, ValueError, RecursionError) as e:
            raise errors.ProtocolMismatch(f"unreadable message: {e}") from None

    return read


_Decoder = msgspec.msgpack.Decoder
unpack_from_client: Callable[[bytes], FromClient] = _reader(_Decoder(FromClient))
unpack_from_broker: Callable[[bytes], FromBroker] = _reader(_Decoder(FromBroker), MAX_VALUE_BYTES)
unpack_from_worker: Callable[[bytes], FromWorker] = _reader(_Decoder(FromWorker))
unpack_dispatch: Callable[[bytes], Dispatch] = _reader(_Decoder(Dispatch))
unpack_lifeline: Callable[[bytes], LifelineMessage] = _reader(_Decoder(LifelineMessage))


def pack_labels(labels: list[str]) -> bytes:
    """The body of a `Loaded`."""
    return _encode(labels)


_labels: _Decoder[list[str]] = _Decoder(Annotated[list[str], msgspec.Meta(max_length=MAX_LABELS)])


def unpack_labels(raw: bytes) -> list[str]:
    """Raises ProtocolMismatch for what is no list of texts, or more than a model may have."""
    if len(raw) > MAX_LABELS_BYTES:
        raise errors.ProtocolMismatch(f"labels of {len(raw)} bytes; the limit is {MAX_LABELS_BYTES}")
    try:
        return _labels.decode(raw)
    except (msgspec.DecodeError, msgspec.ValidationError, ValueError, RecursionError) as e:
        raise errors.ProtocolMismatch(f"unreadable labels: {e}") from None
