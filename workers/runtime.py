"""One worker: waits to be told its model, loads it, answers one dispatch (a batch of requests) at a time, and goes
when its broker goes.

Two threads. The main one blocks on its channel to the broker and runs the adapter. The other blocks on the lifeline: it
takes in arenas, takes back result slots, and ends the process at end-of-file, also while the adapter computes.
(If the adapter holds the interpreter's lock for good, the kernel ends us: see `workers.process.die_with`.)
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import socket
import sys
import threading
import time
import traceback
from collections import deque
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import numpy as np

from workers import copies, encoded, fresh, inputs, memory
from workers.answers import check
from workers.batch import MAX_CAUSE, Task, cause, predict
from workers.models.base import Adapter
from workers.process import show_device
from zoo import results
from zoo.config import adapters
from zoo.errors import (
    InferenceFailed,
    InvalidInput,
    LoadFailed,
    ModelUnavailable,
    OutOfMemory,
    Quarantined,
    ZooError,
)
from zoo.system.kernel import set_name
from zoo.weights import inventory
from zoo.weights.source import Published
from zoo.wire import arena, lifeline, payload, protocol
from zoo.wire.channel import Channel
from zoo.wire.launch import Launch, Seat

RESULT_ARENA_BYTES = 32 << 20
MARGIN_BYTES = 64 << 10  # of a result, for what is not its arrays
ARENA_WAIT_S = 5.0
COPY_AFTER_S = 0.05  # without a request
MAX_WHY = 500  # characters: one packet of a lifeline


class Lifeline:
    """The worker's end of its lifeline: other people's arenas, and its own for results."""

    def __init__(self, seat: Seat) -> None:
        self._sock = lifeline.connect(seat.handoff, timeout=10.0)
        self._sock.settimeout(None)
        self._limit = seat.arena_limit_bytes
        self._arenas: dict[int, arena.MappedArena] = {}
        self._gone: deque[int] = deque(maxlen=1024)  # will not come (again): not waited for
        self._own: arena.OwnedArena | None = None
        self._copy: int | None = None
        self._news = threading.Condition()
        self.recent = inputs.Recent()
        lifeline.send(self._sock, protocol.LifelineAttach("worker", seat.key))
        threading.Thread(target=self._listen, name="lifeline", daemon=True).start()

    def _listen(self) -> None:
        try:
            while (packet := lifeline.receive(self._sock)) is not None:
                self._take(*packet)
        except OSError:
            pass
        except BaseException:
            traceback.print_exc()
        _exit(0)  # the broker is gone

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
            elif isinstance(message, protocol.LifelineCopy):
                self._copy = fd
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

    def offer_channel(self, theirs: socket.socket) -> None:
        """Hands over the broker's end of the channel."""
        lifeline.send(self._sock, protocol.LifelineChannel(), theirs.fileno())
        theirs.close()

    def take_copy(self) -> int | None:
        """The descriptor of the copy that the broker has announced; None if it does not come."""
        with self._news:
            self._news.wait_for(lambda: self._copy is not None, ARENA_WAIT_S)
            return self._copy

    def offer_copy(self, fd: int) -> None:
        lifeline.send(self._sock, protocol.LifelineCopy(), fd)

    def refuse_copy(self, why: str) -> None:
        lifeline.send(self._sock, protocol.LifelineCopy(why))

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
        found = fresh.import_module(module)
    except (OSError, MemoryError):
        raise
    except Exception as e:  # a library that is not there, a mistake in the adapter: no retry mends it
        why = str(e) if isinstance(e, ImportError) else cause(e)
        raise LoadFailed(f"adapter {adapter!r} cannot be imported: {why}", retryable=False) from e
    if not hasattr(found, name):
        raise LoadFailed(f"adapter {adapter!r}: the module {module!r} has no {name!r}", retryable=False)
    return getattr(found, name)


def _pull(model: str, published: Published, target: Path) -> None:
    """Fetches missing weights, which config.toml has asked for (`auto_pull`)."""
    from zoo.weights.pull import pull  # the network's modules: only for those who use it
    from zoo.weights.transfer import Watch

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


class Worker:
    """The loop around one adapter, once the broker has said which. Until then everything waits that needs no model."""

    _launch: Launch

    def __init__(self, seat: Seat) -> None:
        self._stand_in = False
        self._max_batch = 1
        self._copied = False
        self._copy_wanted = False
        self._copy: copies.Copy | None = None
        self._lifeline = Lifeline(seat)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._channel = Channel(ours)
        self._lifeline.offer_channel(theirs)

    def run(self) -> None:
        if (told := self._channel.receive()) is None:
            return  # the broker has no use for us any more
        self._launch = msgspec.msgpack.decode(told[0], type=Launch)
        set_name(f"zoo:{self._launch.model}")
        show_device(self._launch.visible)
        try:
            model, seconds = self._load()
        except BaseException as e:
            code = e.code if isinstance(e, LoadFailed | ModelUnavailable) else LoadFailed.code
            retryable = e.retryable if isinstance(e, ZooError) else LoadFailed.retryable
            short = memory.shortage(e, self._launch.device)
            if short is not None:
                code = OutOfMemory.code
            elif not isinstance(e, ZooError):
                traceback.print_exc()
            self._send(protocol.LoadError(code, cause(e)[:MAX_CAUSE], short, retryable))
            if short is not None:
                self._channel.receive()  # to be ended: until then the broker can see what it took
            _exit(1)
        gc.collect()  # what the load left over, and only that: the nursery's objects are frozen
        gc.freeze()  # the model's are not looked at again either
        growth = memory.Growth(self._launch.device)
        self._send(protocol.Loaded(seconds, stand_in=self._stand_in, max_batch=self._max_batch, copied=self._copied))
        self._copy_wanted = self._launch.copy_bytes > 0 and not self._copied
        while (parts := self._receive(model)) is not None:
            self._answer(model, growth, protocol.unpack_dispatch(parts[0]), parts)

    def _load(self) -> tuple[Adapter, float]:
        launch = self._launch
        started = time.perf_counter()
        path = Path(os.fsdecode(launch.path)) if launch.path is not None else None
        if launch.pull is not None and path is not None and inventory.is_missing(path):
            _pull(launch.model, launch.pull, path)
        model = self._read_copy() if launch.copied else None
        self._copied = model is not None
        if path is not None:  # the files of a copy have been looked at when it was made
            self._stand_in = inventory.is_stand_in(path, quick=self._copied)
        if model is None:
            model = _import_adapter(launch.adapter)()
            self._load_weights(model, path)
        self._max_batch = getattr(model, "max_batch", 1)
        if not isinstance(self._max_batch, int) or self._max_batch < 1:
            raise LoadFailed(
                f"{launch.adapter}: max_batch is {self._max_batch!r}, not a number of requests", retryable=False
            )
        return model, time.perf_counter() - started

    def _load_weights(self, model: Adapter, path: Path | None) -> None:
        """What one of the zoo's adapters meets in a checkpoint is the checkpoint's, and stays as it is."""
        launch = self._launch
        try:
            model.load(inputs.spec(launch), launch.device)
        except (ZooError, OSError, MemoryError):
            raise
        except Exception as e:
            ours = path is not None and launch.adapter.startswith(adapters.OURS)
            if not ours or memory.shortage(e, launch.device) is not None or type(e).__name__ == "AcceleratorError":
                raise
            raise LoadFailed(f"{launch.model}: {path} cannot be served: {cause(e)}", retryable=False) from e

    def _read_copy(self) -> Adapter | None:
        """The model out of the copy that came with the launch; None, and a word about it, when that cannot be done."""
        try:
            fd = self._lifeline.take_copy()
            if fd is None:
                raise TimeoutError("it did not come")
            _import_adapter(self._launch.adapter)  # as its file is now, before the copy asks for it
            model: Adapter = copies.read(fd, self._launch.threads)
        except Exception as e:
            print(f"worker: {self._launch.model}: its copy is of no use: {cause(e)}", file=sys.stderr, flush=True)
            return None
        return model

    def _receive(self, model: Adapter) -> list[bytes] | None:
        """The next dispatch. While there is none, the copy that is wanted of the model is made, a piece at a time."""
        while self._copy_wanted and self._channel.is_quiet(COPY_AFTER_S if self._copy is None else 0.0):
            try:
                if self._copy is None:
                    self._copy = copies.Copy(model, self._launch.copy_bytes)
                elif self._copy.write():
                    self._lifeline.offer_copy(self._copy.fd)
                    self._copy.close()
                    self._copy_wanted = False
            except (copies.Uncopyable, OSError) as e:
                if self._copy is not None:
                    self._copy.close()
                self._lifeline.refuse_copy(str(e)[:MAX_WHY])
                self._copy_wanted = False
        return self._channel.receive()

    def _answer(self, model: Adapter, growth: memory.Growth, dispatch: protocol.Dispatch, parts: list[bytes]) -> None:
        waiting: deque[tuple[Task, list[bytes]]] = deque()
        at = 1
        for job in dispatch.jobs:
            waiting.append((Task(job), parts[at : at + job.parts]))
            at += job.parts
        halved = False
        outcomes: list[protocol.Outcome] = []
        bodies: list[bytes] = []
        while waiting:
            tasks = self._read_some(model, dispatch, waiting)
            readable = [task for task in tasks if task.error is None]
            if readable and predict(model, self._launch.model, self._launch.device, readable):
                halved = True
            for task in tasks:
                body, offsets = self._pack(task, sum(map(len, bodies)))
                if task.error is not None:
                    outcomes.append(protocol.Outcome(task.job.id, (), *task.error, task.short))
                else:
                    outcomes.append(protocol.Outcome(task.job.id, offsets))
                    bodies.append(body)
                task.done()  # before more is decoded
        self._channel.send((protocol.pack(protocol.Done(tuple(outcomes), halved, growth.is_news())), *bodies))

    def _read_some(
        self, model: Adapter, dispatch: protocol.Dispatch, waiting: deque[tuple[Task, list[bytes]]]
    ) -> list[Task]:
        """As many of the requests that wait as may be decoded, and looked at by the model, at once; at least one."""
        tasks: list[Task] = []
        room = encoded.MAX_REQUEST_PIXELS
        while waiting and room > 0:
            task, parts = waiting[0]
            try:
                self._read(task, dispatch, parts, room if tasks else None, getattr(model, "max_frames", None))
            except inputs.Wait:
                break
            waiting.popleft()
            tasks.append(task)
            room -= inputs.pixels_of(task.given)
        return tasks

    def _read(
        self, task: Task, dispatch: protocol.Dispatch, parts: list[bytes], room: int | None, max_frames: int | None
    ) -> None:
        """Finds the request's frames; sees to it that no input is run that has killed before.

        Raises:
            inputs.Wait: there is no room for them now.
        """
        job = task.job

        def find(number: int) -> arena.MappedArena:
            if number not in job.arenas:  # the broker saw to it that these are the client's own
                raise InvalidInput(f"frame: arena {number} is not one that this request names")
            return self._lifeline.arena(number)

        try:
            raw = parts[0] if parts else b""
            given = self._lifeline.recent.get(raw, job.arenas)
            if given is None:
                body = payload.unpack_request(raw)
                given = inputs.read(body, parts[1:], find, room=room, max_frames=max_frames)
                self._lifeline.recent.keep(raw, job.arenas, body, given)
            task.given = given
            if dispatch.suspect or dispatch.refuse:
                digest = fingerprint(given)
                if digest in dispatch.refuse:
                    raise Quarantined("this input killed two processes, or hung them, and is not run again")
                if dispatch.suspect:
                    self._lifeline.say_digest(job.id, digest)
        except inputs.Wait:
            raise
        except Exception as e:
            task.fail(e, self._launch.model, self._launch.device)

    def _pack(self, task: Task, before: int) -> tuple[bytes, tuple[int, ...]]:
        """The result's bytes and the slots that they refer to; nothing for a task that failed, or fails here.

        `before`: bytes of the results before it in the same message.
        """
        placed: list[int] = []
        inline = 0
        most = self._launch.inline_bytes - MARGIN_BYTES
        left = 2 * self._launch.inline_bytes - MARGIN_BYTES - before

        def place(value: np.ndarray) -> int | None:
            nonlocal inline
            offset = None if task.job.inline else self._lifeline.place(value)
            if offset is not None:
                placed.append(offset)
                return offset
            inline += value.nbytes
            if inline > most:  # before it is copied: the parts of a depth map cost nothing until then
                raise InvalidInput(
                    f"{'frame' if task.given.corners is None else 'boxes'}: the answer has more than the "
                    f"{most >> 20} MB that can be sent; ask about less at once, or raise [broker] max_inline_mb"
                )
            if inline > left:
                raise InferenceFailed(
                    f"the answers of its batch together have more than {2 * most >> 20} MB; ask again"
                )
            return None

        if task.error is not None:
            return b"", ()
        try:
            answers, corners = task.answers, task.given.corners
            for answer in answers:
                check(answer)
            if self._stand_in:
                answers = [marked(answer) for answer in answers]
            if corners is not None:
                answers = [
                    answer.moved(*corner) if isinstance(answer, results.TypedResult) else answer
                    for answer, corner in zip(answers, corners, strict=True)
                ]
            raw, offsets = payload.pack_result(payload.ResultBody(answers, corners is not None), place)
            if len(raw) > min(most, left) + MARGIN_BYTES // 2:
                raise InferenceFailed(f"a result of {len(raw) >> 20} MB is too large to send")
        except Exception as e:
            self._lifeline.take_back(placed)
            if isinstance(e, UnicodeError):
                e = InferenceFailed(f"the adapter answered a text that UTF-8 cannot say: {e}")
            task.fail(e, self._launch.model, self._launch.device)
            return b"", ()
        return raw, offsets

    def _send(self, message: protocol.Message) -> None:
        self._channel.send((protocol.pack(message),))


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


def main(seat: Seat) -> NoReturn:
    """Entered in a fresh fork of the nursery."""
    try:
        Worker(seat).run()
    except (OSError, ZooError):
        traceback.print_exc()
    _exit(1)


def _exit(status: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)
