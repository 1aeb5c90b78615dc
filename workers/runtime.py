"""One worker: loads one model, answers one dispatch at a time, and goes when its broker goes.

Two threads. The main one blocks on the ZeroMQ socket and runs the adapter. The other blocks on the lifeline: it
takes in arenas, takes back result slots, and ends the process at end-of-file, also while the adapter computes.
(If the adapter holds the interpreter's lock for good, the kernel ends us with our parent.)
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from workers import inputs
from workers.models.base import Model
from workers.process import die_with_parent, set_name
from zoo import arena, lifeline, payload, protocol, results, weights, wire
from zoo.errors import InferenceFailed, InvalidInput, LoadFailed, ModelUnavailable, ZooError
from zoo.launch import Launch
from zoo.source import Published

RESULT_ARENA_BYTES = 32 << 20
MAX_RESULT_BYTES = protocol.MAX_MESSAGE_BYTES - (1 << 20)
ARENA_WAIT_S = 5.0


class Lifeline:
    """The worker's end of its lifeline: other people's arenas, and its own for results."""

    def __init__(self, launch: Launch) -> None:
        self._sock = lifeline.connect(launch.handoff, timeout=10.0)
        self._sock.settimeout(None)
        self._limit = launch.arena_limit_bytes
        self._arenas: dict[int, arena.MappedArena] = {}
        self._gone: deque[int] = deque(maxlen=1024)  # will not come (again): not waited for
        self._own: arena.OwnedArena | None = None
        self._news = threading.Condition()
        self.recent = inputs.Recent()
        lifeline.send(self._sock, protocol.LifelineAttach("worker", launch.key))
        threading.Thread(target=self._listen, name="lifeline", daemon=True).start()

    def _listen(self) -> None:
        try:
            while (packet := lifeline.receive(self._sock)) is not None:
                self._take(*packet)
        except OSError:
            pass
        except BaseException:
            traceback.print_exc()
        os._exit(0)  # the broker is gone

    def _take(self, message: protocol.LifelineMessage, fd: int | None) -> None:
        with self._news:
            if isinstance(message, protocol.LifelineArena) and fd is not None:
                try:
                    self._arenas[message.id] = arena.MappedArena(fd, self._limit)
                except (arena.ArenaRefused, OSError) as e:
                    print(f"worker: arena {message.id} cannot be mapped: {e}", file=sys.stderr, flush=True)
                    self._gone.append(message.id)
            elif isinstance(message, protocol.LifelineGone):
                self._arenas.pop(message.id, None)
                self.recent.forget()
                self._gone.append(message.id)
            elif isinstance(message, protocol.LifelineReleased) and self._own is not None:
                self._own.give_back(message.offset)
            elif isinstance(message, protocol.LifelineRefused):
                print(f"worker: {message.message}", file=sys.stderr, flush=True)
            self._news.notify_all()

    def arena(self, number: int) -> arena.MappedArena:
        """Raises InvalidInput when the broker never sent that arena."""
        found = self._arenas.get(number)
        if found is None:
            with self._news:
                self._news.wait_for(lambda: number in self._arenas or number in self._gone, ARENA_WAIT_S)
                found = self._arenas.get(number)
            if found is None:
                raise InvalidInput(f"frame: arena {number} is not one that this client shared")
        return found

    def say_digest(self, request: int, digest: bytes) -> None:
        """In the kernel's hands when this returns: it survives what the input may do to us."""
        lifeline.send(self._sock, protocol.LifelineFingerprint(request, digest))

    def place(self, value: np.ndarray) -> int | None:
        """Copies a large result into our own arena and gives its offset. None: it is small, or there is no room."""
        if value.nbytes <= protocol.INLINE_RESULT_BYTES:
            return None
        if self._own is None:
            own = arena.OwnedArena(min(RESULT_ARENA_BYTES, self._limit), "zoo-results")
            lifeline.send(self._sock, protocol.LifelineArena(), own.fd)
            own.close()
            self._own = own
        offset = self._own.take(value.nbytes)
        if offset is None:
            return None
        target = np.frombuffer(self._own.memory, value.dtype, value.size, offset).reshape(value.shape)
        np.copyto(target, value)
        return offset

    def take_back(self, offsets: list[int]) -> None:
        """Slots of a result that will not be sent."""
        for offset in offsets:
            if self._own is not None:
                self._own.give_back(offset)


def _import_adapter(adapter: str) -> Any:
    module, _, name = adapter.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as e:
        raise LoadFailed(f"adapter {adapter!r} cannot be imported: {e}") from e
    except AttributeError:
        raise LoadFailed(f"adapter {adapter!r}: the module {module!r} has no {name!r}") from None


def _pull(model: str, published: Published, target: Path) -> None:
    """Fetches missing weights, which config.toml has asked for (`auto_pull`)."""
    from zoo.pull import pull  # the network's modules: only for those who use it
    from zoo.transfer import Watch

    def note(text: str) -> None:
        print(f"worker: {model}: {text}", file=sys.stderr, flush=True)

    note(f"fetching its weights from {published.source}")
    try:
        report = pull(model, published, target, watch=Watch(note=note))
    except ModelUnavailable as e:
        if e.retryable:  # after the scheduler's back-off, from where it stopped
            raise LoadFailed(str(e)) from e
        raise
    note(f"fetched {report.size:,} bytes")


def _cause(e: BaseException) -> str:
    text = str(e).strip() or "no message"
    return text if isinstance(e, ZooError) else f"{type(e).__name__}: {text}"


class Worker:
    """The loop around one adapter."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.ROUTING_ID, launch.key)
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.setsockopt(zmq.MAXMSGSIZE, protocol.MAX_MESSAGE_BYTES)
        self._stand_in = False
        self._lifeline = Lifeline(launch)
        self._socket.connect(launch.back)

    def run(self) -> None:
        try:
            model, seconds = self._load()
        except BaseException as e:
            code = e.code if isinstance(e, LoadFailed | ModelUnavailable) else LoadFailed.code
            if not isinstance(e, ZooError):
                traceback.print_exc()
            self._send(protocol.LoadError(code, _cause(e)[:2000]))
            self._leave(1)
        gc.collect()  # what the load left over, and only that: the nursery's objects are frozen
        gc.freeze()  # the model's are not looked at again either
        self._send(protocol.Loaded(seconds, stand_in=self._stand_in))
        while True:
            parts = wire.receive(self._socket)
            try:
                dispatch = protocol.unpack_dispatch(parts[0])
            except ZooError as e:
                print(f"worker: {e}", file=sys.stderr, flush=True)
                continue
            self._answer(model, dispatch, parts)

    def _load(self) -> tuple[Model, float]:
        launch = self._launch
        started = time.perf_counter()
        if launch.pull is not None and launch.path is not None and weights.is_missing(Path(launch.path)):
            _pull(launch.model, launch.pull, Path(launch.path))
        self._stand_in = launch.path is not None and weights.is_stand_in(Path(launch.path))
        model: Model = _import_adapter(launch.adapter)()
        model.load(inputs.spec(launch), launch.device)
        return model, time.perf_counter() - started

    def _answer(self, model: Model, dispatch: protocol.Dispatch, parts: list[bytes]) -> None:
        placed: list[int] = []

        def find(number: int) -> arena.MappedArena:
            if number not in dispatch.arenas:  # the broker saw to it that these are the client's own
                raise InvalidInput(f"frame: arena {number} is not one that this request names")
            return self._lifeline.arena(number)

        def place(value: np.ndarray) -> int | None:
            offset = None if dispatch.inline else self._lifeline.place(value)
            if offset is not None:
                placed.append(offset)
            return offset

        try:
            raw_request = parts[1] if len(parts) > 1 else b""
            given = self._lifeline.recent.get(raw_request, dispatch.arenas)
            if given is None:
                body = payload.unpack_request(raw_request)
                given = inputs.read(body, parts[2:], find)
                self._lifeline.recent.keep(raw_request, dispatch.arenas, body, given)
            if dispatch.suspect or dispatch.refuse:
                digest = fingerprint(given)
                if digest in dispatch.refuse:
                    self._send(
                        protocol.Failed(
                            dispatch.id,
                            "quarantined",
                            f"this input killed two processes of {self._launch.model} and is not run again",
                        )
                    )
                    return
                if dispatch.suspect:
                    self._lifeline.say_digest(dispatch.id, digest)
            answers = list(model.predict(given.items)) if given.items else []
            if len(answers) != len(given.items):
                raise RuntimeError(f"the adapter gave {len(answers)} answers for {len(given.items)} inputs")
            if self._stand_in:
                answers = [marked(answer) for answer in answers]
            if given.corners is not None:
                answers = [
                    answer.moved(*corner) if isinstance(answer, results.Result) else answer
                    for answer, corner in zip(answers, given.corners, strict=True)
                ]
            many = given.corners is not None
            raw, offsets = payload.pack_result(payload.ResultBody(answers, many), place)
            if len(raw) > MAX_RESULT_BYTES:
                raise InferenceFailed(f"{self._launch.model}: a result of {len(raw) >> 20} MB is too large to send")
        except ZooError as e:
            self._lifeline.take_back(placed)
            self._send(protocol.Failed(dispatch.id, e.code, str(e)[:2000]))
        except Exception as e:
            traceback.print_exc()
            self._lifeline.take_back(placed)
            self._send(
                protocol.Failed(
                    dispatch.id, "inference_failed", f"{self._launch.model}: the adapter raised {_cause(e)[:2000]}"
                )
            )
        else:
            wire.send(self._socket, (protocol.pack(protocol.Done(dispatch.id, offsets)), raw))

    def _send(self, message: protocol.Message) -> None:
        self._socket.send(protocol.pack(message))

    def _leave(self, status: int) -> None:
        self._socket.close()
        self._context.term()
        os._exit(status)


def marked(answer: results.AnyResult) -> results.AnyResult:
    """The same answer, saying that it comes from a stand-in."""
    if isinstance(answer, dict):
        return {**answer, "stand_in": True}
    answer.stand_in = True
    return answer


def fingerprint(given: inputs.Given) -> bytes:
    """Identifies a request by everything the adapter would see of it."""
    digest = hashlib.blake2b(digest_size=16)
    if given.items:  # one for a frame or a video, or one for each box of a frame
        first = given.items[0]
        for frame in first.frames if first.box is None else [first.whole]:
            digest.update(f"{frame.shape}{frame.dtype}".encode())
            digest.update(np.ascontiguousarray(frame).data)
    for item in given.items:
        digest.update(f"{item.box}{sorted(item.options.items())}".encode())
    return digest.digest()


def main(launch: Launch) -> None:
    """Entered in a fresh fork of the nursery. Never returns."""
    os.setsid()  # its own process group: whatever it starts dies with it
    die_with_parent()
    set_name(f"zoo:{launch.model}")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        Worker(launch).run()
    except (OSError, zmq.ZMQError):
        traceback.print_exc()
    os._exit(1)
