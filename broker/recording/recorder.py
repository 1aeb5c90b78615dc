"""What the broker keeps of its own requests, for `zoo advise`: while it is told to, and bounded, in memory and a file.

While nothing is recorded, nothing is paid for it: the scheduler's journal and story have no listener. While something
is, a request costs one more call and an append (0.6 us); a thread makes lines of what was appended and writes them
(`zoo/recording.py` says what they hold). What that thread meets, a full disk or a folder that is gone, is logged once,
and costs lines of the file alone: what is kept in memory goes on, and the file does when it can be written again.

When the file has half of the bound, it becomes `FILE.1` in the place of the one before, and a new one begins. In memory
the oldest lines go. So that what is left can be read, the state of things is written down anew every quarter.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from typing import Any, Literal

from broker.core import Core
from broker.memory.host_cache import Copies
from broker.recent import LogRing
from broker.recording.file import RecordFile
from broker.scheduler.capacity.ledger import Device
from broker.scheduler.events import Forget, Refuse, Released, SessionClosed
from broker.scheduler.state import Model, Request
from broker.scheduler.story.journal import Turned
from broker.scheduler.story.story import Line
from zoo import recording
from zoo.errors import InvalidInput

log = logging.getLogger("zoo.broker")

WRITE_S = 0.25  # between two turns of the thread
CLOSE_S = 1.0
WAITING_MOST = 50_000  # what the thread has not come to yet
MB = 1 << 20
DIGITS = 6
IN_MEMORY = 0.4  # a line of some 110 bytes takes two and a half times as many there
LINES_AT_ONCE = 2000
NO_MODELS: frozenset[str] = frozenset()
ENDS = {"evicted", "crashed", "killed", "load failed"}  # kinds of the story


class Recorder:
    """Of the loop's thread, but for `_run` and what it calls.

    Args:
        copies: of models in host memory.
    """

    def __init__(self, core: Core, copies: Copies) -> None:
        self._core = core
        self._copies = copies
        self._thread: threading.Thread | None = None
        self._ring = LogRing(1, 1)
        self._file: RecordFile | None = None
        self._waiting: deque[tuple[float, Any]] = deque()  # with the moment that its part began
        self._requests = self._dropped = 0
        self._began = self._wall = 0.0
        self._part = ""
        self._config = core.config
        self._stopping = threading.Event()
        self._wants_state = False  # said by the thread, heard by the loop

    @property
    def on(self) -> bool:
        return self._thread is not None

    # ------------------------------------------------------------ what clients ask

    def ask(self, what: str, since: int) -> dict[str, Any]:
        """Raises InvalidInput."""
        match what:
            case "start":
                self.start()
            case "stop":
                self.stop()
            case "fetch":
                lines, number, more = self._ring.since(since, None)
                return {**self.status(), "lines": lines, "next": number, "more": more}
            case "status":
                pass
            case _:
                raise InvalidInput(f"what: {what!r} is not one of start, stop, status, fetch")
        return self.status()

    def status(self) -> dict[str, Any]:
        file = self._file
        return {
            "recording": self.on,
            "since": self._wall,
            "requests": self._requests,
            "pending": len(self._waiting),
            "dropped": self._dropped + (file.lost if file is not None else 0),
            "file": os.fspath(file.path) if file is not None else None,
            "problem": file.problem if file is not None else "",
        }

    # ------------------------------------------------------------ begin and end

    def start(self) -> None:
        """Again is harmless. What was recorded before is dropped from memory, and stays in the file."""
        if self.on:
            return
        broker = self._core.config.broker
        most = int(broker.record_mb * MB)
        self._ring = LogRing(1 << 62, int(most * IN_MEMORY))
        self._file = RecordFile(self._core.config.resolve(broker.record), most) if broker.record else None
        self._waiting, self._stopping = deque(), threading.Event()  # the thread before may still be at its own
        self._requests = self._dropped = 0
        self._begin_part()
        self._core.overhears = self._hear_line
        self._core.scheduler.overhear(self._hear_request, {Released: self._released, SessionClosed: self._closed})
        run = self._waiting, self._stopping, self._ring, self._file, most
        self._thread = threading.Thread(target=self._run, args=run, name="record", daemon=True)
        self._thread.start()
        log.info("requests are recorded%s", f" in {self._file.path}" if self._file is not None else "")

    def stop(self) -> None:
        """Again is harmless. What was recorded stays until the next start; the thread ends by itself."""
        if not self.on:
            return
        self._thread = None
        self._core.overhears = None
        self._core.scheduler.overhear(None, {})
        self._stopping.set()
        log.info("requests are recorded no more, %d were", self._requests)

    def close(self) -> None:
        """And waits for what is still to be written, a moment."""
        thread = self._thread
        self.stop()
        if thread is not None:
            thread.join(CLOSE_S)

    def tick(self) -> None:
        """To be called every second or so."""
        if not self.on:
            return
        if self._core.config is not self._config:
            self._begin_part()
        elif self._wants_state:
            self._wants_state = False
            self._put(self._state())

    def _begin_part(self) -> None:
        self._config = self._core.config
        self._began, self._wall = time.monotonic(), time.time()
        self._part = os.urandom(6).hex()
        self._wants_state = False
        self._put(self._state(first=True))

    # ------------------------------------------------------------ what happens

    def _put(self, what: Any) -> None:
        if len(self._waiting) < WAITING_MOST:
            self._waiting.append((self._began, what))
        else:
            self._dropped += 1

    def _hear_request(self, request: Request | Turned) -> None:
        self._requests += 1
        self._put(request)

    def _hear_line(self, line: Line) -> None:
        at, name = max(0.0, line.at - self._began), line.model.partition("#")[0]
        if line.kind in ENDS:
            self._put(recording.RecordedEnd(at, name, line.kind))
        elif line.kind == "pinned":
            self._put(recording.RecordedPin(at, name, line.fields["on"]))

    def loaded(self, number: int, model: str, seconds: float | None, copied: bool) -> None:
        """A worker has become ready."""
        worker = self._core.scheduler.workers.get(number)
        if self.on and seconds is not None and worker is not None:
            at = time.monotonic() - self._began
            self._put(recording.RecordedLoad(at, model, number, seconds, copied, worker.max_batch))

    def _released(self, e: Released) -> None:
        model = self._core.scheduler.leased(e.lease)
        if model is not None and model.leases[e.lease] == e.session:
            self._let_go(model, e.session)

    def _closed(self, e: SessionClosed) -> None:
        for model in self._core.scheduler.models.values():
            for session in list(model.leases.values()):
                if session == e.session:
                    self._let_go(model, session)

    def _let_go(self, model: Model, session: bytes) -> None:
        at = time.monotonic() - self._began
        self._put(recording.RecordedRelease(at, model.name, _number(session)))

    # ------------------------------------------------------------ the state of things

    def _state(self, first: bool = False) -> recording.PartBegun:
        config, scheduler, now = self._core.config, self._core.scheduler, time.monotonic()
        ledger, copied = scheduler.ledger, self._copies.models()
        return recording.PartBegun(
            recording.VERSION,
            self._part,
            self._wall,
            0.0 if first else now - self._began,
            recording.kept_of_broker(config.broker),
            [_device(d, ledger.limit_mb(d.name)) for d in ledger.devices.values()],
            [_known(model, ledger.devices, model.name in copied, now) for model in scheduler.models.values()],
        )

    # ------------------------------------------------------------ in the thread

    def _run(
        self, waiting: deque[tuple[float, Any]], stopping: threading.Event, ring: LogRing, file: RecordFile | None,
        most: int,
    ) -> None:  # fmt: skip
        since_state = 0
        ended = False
        while not ended:
            ended = stopping.wait(WRITE_S)
            lines: list[bytes] = []
            while waiting and len(lines) < LINES_AT_ONCE:
                began, what = waiting[0]
                if isinstance(what, recording.PartBegun):
                    since_state = 0
                line = self._encoded(what, began)
                if line:
                    lines.append(line)
                    ring.put(line[:-1].decode(), NO_MODELS)
                    since_state += len(line)
                waiting.popleft()  # only now: what is not pending any more can be fetched
            ended = ended and not waiting
            anew = bool(lines) and file is not None and file.write(lines)
            if anew or since_state > most * IN_MEMORY / 4:
                self._wants_state = True
        if file is not None:
            file.close()

    def _encoded(self, what: Any, began: float) -> bytes:
        """Nothing for what is of no use: a request for a model that there is not."""
        if isinstance(what, Turned) and what.model not in self._core.scheduler.models:
            return b""
        try:
            return recording.encode(_line(what, began)) + b"\n"
        except Exception as e:  # one line is not worth the thread
            log.warning("a line of the recording could not be made: %s: %s", type(e).__name__, e)
            return b""


def _device(device: Device, limit_mb: float) -> recording.KnownDevice:
    kind: Literal["cpu", "cuda"] = "cpu" if device.kind == "cpu" else "cuda"
    return recording.KnownDevice(device.name, kind, device.budget_mb, max(0.0, min(device.budget_mb, limit_mb)))


def _known(model: Model, devices: dict[str, Any], copied: bool, now: float) -> recording.KnownModel:
    primary = model.primary
    mb = max(map(model.need_mb, model.allowed(devices)), default=model.config.vram_mb)
    config = recording.kept_of_model(model.config, mb=mb, pinned=model.pinned)
    on = [worker.device for worker in model.answering]
    unused = max(0.0, now - primary.last_used) if on else 0.0
    load_s = primary.load_seconds if primary.load_seconds > 0 else 0.0
    return recording.KnownModel(config, load_s, primary.max_batch, copied, on, unused)


def _number(session: bytes) -> int:
    """The same for one client in one broker, and nothing to find it by."""
    return hash(session) & 0xFFFFFFFF


def _line(what: Any, began: float) -> Any:
    if isinstance(what, Request):
        return _request(what, began)
    if isinstance(what, Turned):
        at = round(max(0.0, what.at - began), DIGITS)
        return recording.RecordedRequest(at, 0.0, what.model, "infer", 2, 0.0, _number(what.session), what.refusal.code)
    return what


def _request(request: Request, began: float) -> recording.RecordedRequest:
    outcome = request.outcome
    said = outcome.code if isinstance(outcome, Refuse) else "forgotten" if outcome is Forget else ""
    since = request.since
    return recording.RecordedRequest(
        round(max(0.0, since - began), DIGITS),
        round(max(0.0, request.ended - since), DIGITS),
        request.model.name,
        request.kind.value,
        request.priority,
        round(min(max(0.0, request.deadline - since), recording.MOST_S), DIGITS),
        _number(request.session),
        said,
        round(request.sent - since, DIGITS) if request.batch else -1.0,
        request.worker,
        request.batch,
        request.keep_alive,
    )
