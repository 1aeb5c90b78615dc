"""What a broker writes down of its requests, for `zoo advise`: lines of JSON. The broker writes, `read` reads.

Nothing of frames, options or answers is in it, and no name of a client: model, moments, priority, deadline, outcome. A
recording has parts. Each begins with a line that says what the broker was told and what was loaded then (`PartBegun`);
the moments of what follows are seconds since it. A new part begins when a broker starts to record, and when its
configuration changes. Further such lines within a part make what is left readable by itself when its beginning was
dropped, because the recording had outgrown its bound.

A file may be torn (a full disk, a power cut) or written by anyone. Lines that cannot be read are left out and counted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec

from zoo.config.schema import BrokerConfig, ModelConfig
from zoo.errors import InvalidInput
from zoo.system import files

VERSION = 1
MOST_LINE_BYTES = 4 << 20  # a part's first line, of some thousand models
MOST_BYTES = 256 << 20
MOST_S = 366 * 86400.0
UNREADABLE = 0.1  # of its lines: such a file is no recording

Seconds = Annotated[float, msgspec.Meta(ge=0, le=MOST_S)]
Megabytes = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Text = Annotated[str, msgspec.Meta(max_length=100)]
Outcome = Annotated[str, msgspec.Meta(max_length=40)]

# keys that decide what the scheduler does; no path, address or account is recorded
OF_THE_BROKER = (
    "vram_budget_gb", "reserve_mb", "footprint", "idle_seconds", "request_timeout", "load_timeout", "dispatch_timeout",
    "drain_seconds", "max_queue", "max_queue_per_client", "max_leases_per_client", "concurrent_loads", "eviction",
    "patience_seconds", "prefetch", "standby", "host_cache_mb",
)  # fmt: skip
OF_A_MODEL = (
    "name", "vram_mb", "priority", "enabled", "pinned", "idle_seconds", "dispatch_timeout", "device", "max_instances",
    "max_delay_ms",
)  # fmt: skip


class KnownDevice(msgspec.Struct, frozen=True):
    """A device. `limit_mb`: what of its budget could be charged, as others used the device too."""

    name: Text
    kind: Literal["cuda", "cpu"]
    budget_mb: Megabytes
    limit_mb: Megabytes


class KnownModel(msgspec.Struct, frozen=True):
    """What the broker knew of a model.

    Attributes:
        config: with the megabytes that its next process is charged, and pinned as it was.
        load_s: its last load; 0: there was none.
        max_batch: of its adapter, where it was loaded.
        copied: a copy of it was in host memory.
        loaded_on: the devices of its workers that answer.
        unused_s: since its last use, where it is loaded.
    """

    config: ModelConfig
    load_s: Seconds = 0.0
    max_batch: Count = 1
    copied: bool = False
    loaded_on: list[Text] = []
    unused_s: Seconds = 0.0


class _Recorded(msgspec.Struct, array_like=True, gc=False):
    pass


class PartBegun(_Recorded, tag="begun"):
    """The state of things. `part`: its name, never used twice. `wall`: Unix time. `at`: seconds since the part began:
    0 in its first line, more in those by which what is left of it can be read.
    """

    version: int
    part: Text
    wall: float
    at: Seconds
    broker: BrokerConfig
    devices: list[KnownDevice]
    models: list[KnownModel]

    @property
    def continues(self) -> bool:
        return self.at > 0


class RecordedRequest(_Recorded, tag="request"):
    """A request, when it was answered.

    Attributes:
        at: when it came in. took: until its answer.
        kind: of `Kind`.
        deadline_s: from `at` on.
        session: the same number: the same client.
        outcome: "" for success, else the error's code; "forgotten": its client went away.
        sent_s: from `at` until it was sent to a worker; -1: it never was.
        worker, batch: where it was sent, and with which others.
    """

    at: Seconds
    took: Seconds
    model: Text
    kind: Literal["infer", "lease", "preload", "unload"]
    priority: Annotated[int, msgspec.Meta(ge=0, le=3)]
    deadline_s: Seconds
    session: Count
    outcome: Outcome = ""
    sent_s: Annotated[float, msgspec.Meta(ge=-1, le=MOST_S)] = -1.0
    worker: Count = 0
    batch: Count = 0
    keep_alive: Seconds | None = None


class RecordedLoad(_Recorded, tag="load"):
    """A worker became ready. `copied`: from a copy in host memory."""

    at: Seconds
    model: Text
    worker: Count
    seconds: Seconds
    copied: bool = False
    max_batch: Count = 1


class RecordedEnd(_Recorded, tag="end"):
    """A worker ended, or its load failed. `how`: as the story says: evicted, crashed, killed, load failed."""

    at: Seconds
    model: Text
    how: Outcome


class RecordedRelease(_Recorded, tag="release"):
    """A lease ended."""

    at: Seconds
    model: Text
    session: Count


class RecordedPin(_Recorded, tag="pin"):
    at: Seconds
    model: Text
    on: bool


RecordedLine = PartBegun | RecordedRequest | RecordedLoad | RecordedEnd | RecordedRelease | RecordedPin

encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(RecordedLine).decode


def kept_of_broker(config: BrokerConfig) -> BrokerConfig:
    """The keys that decide what the scheduler does."""
    return BrokerConfig(**{key: getattr(config, key) for key in OF_THE_BROKER})


def kept_of_model(config: ModelConfig, *, mb: float, pinned: bool) -> ModelConfig:
    kept = {key: getattr(config, key) for key in OF_A_MODEL}
    return ModelConfig(**{**kept, "vram_mb": mb, "pinned": pinned})


# ---------------------------------------------------------------- reading


class RecordingPart(msgspec.Struct):
    """From one first line to the next.

    Attributes:
        began: its first line.
        unreadable: lines of the whole recording that were left out. parts: of the whole recording.
    """

    began: PartBegun
    requests: list[RecordedRequest] = []
    loads: list[RecordedLoad] = []
    ends: list[RecordedEnd] = []
    releases: list[RecordedRelease] = []
    pins: list[RecordedPin] = []
    unreadable: int = 0
    parts: int = 1

    @property
    def seconds(self) -> float:
        """From its first line to its last answer."""
        return max((r.at + r.took for r in self.requests), default=self.began.at) - self.began.at


def read(path: str | os.PathLike[str]) -> RecordingPart:
    """The part of a recording with the most requests, of `path` and the older half beside it (`path.1`).

    Raises:
        InvalidInput: it cannot be read, is no recording, or holds no request.
    """
    lines: list[bytes] = []
    for name in (f"{os.fspath(path)}.1", os.fspath(path)):
        try:
            lines += files.read_regular(name, MOST_BYTES).split(b"\n")
        except OSError as e:
            if name == os.fspath(path):
                raise InvalidInput(f"{name} cannot be read: {e.strerror or e}") from None
    return parse(lines, os.fspath(path))


def parse(lines: Iterable[bytes], name: str) -> RecordingPart:
    """`read`, of lines. `name`: for messages."""
    found: list[RecordingPart] = []
    count = bad = 0
    for line in lines:
        if not line.strip():
            continue
        count += 1
        try:
            said = _line(line)
        except (msgspec.DecodeError, msgspec.ValidationError, ValueError, RecursionError):
            bad += 1
            continue
        if isinstance(said, PartBegun):
            if said.version != VERSION:
                raise InvalidInput(f"{name}: a recording of version {said.version}; this release reads {VERSION}")
            if not (found and said.continues and said.part == found[-1].began.part):
                found.append(RecordingPart(said))
        elif found:
            _enter(found[-1], said)
    if not found or bad > UNREADABLE * count:
        raise InvalidInput(
            f"{name} is no recording (`zoo record fetch FILE` writes one): {bad} of {count} lines cannot be read"
        )
    part = max(map(_in_order, found), key=lambda part: (len(part.requests), part.began.wall))
    if not part.requests:
        raise InvalidInput(f"{name}: no request was recorded; record for as long as is to be judged")
    part.unreadable, part.parts = bad, len(found)
    return part


def _line(line: bytes) -> RecordedLine:
    if len(line) > MOST_LINE_BYTES:
        raise ValueError("too long")
    said: RecordedLine = _decode(line)
    if isinstance(said, PartBegun):
        names, devices = [m.config.name for m in said.models], [d.name for d in said.devices]
        if len({*names}) < len(names) or len({*devices}) < len(devices) or not devices:
            raise ValueError("a name twice, or no device")
        for model in said.models:
            if not {model.config.device, *model.loaded_on} <= {"", *devices}:
                raise ValueError("a device that is not there")
    return said


def _enter(part: RecordingPart, said: RecordedLine) -> None:
    match said:
        case RecordedRequest():
            part.requests.append(said)
        case RecordedLoad():
            part.loads.append(said)
        case RecordedEnd():
            part.ends.append(said)
        case RecordedRelease():
            part.releases.append(said)
        case RecordedPin():
            part.pins.append(said)


def _in_order(part: RecordingPart) -> RecordingPart:
    """Only what is about models that are known; each list by time."""
    names = {model.config.name for model in part.began.models}
    for of in ("requests", "loads", "ends", "releases", "pins"):
        lines = [line for line in getattr(part, of) if line.model in names and line.at >= part.began.at]
        setattr(part, of, sorted(lines, key=lambda line: line.at))
    return part
