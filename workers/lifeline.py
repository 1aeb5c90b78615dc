"""The lifeline of a worker: arenas come in by it, slots of results come back, and its end is the end of the process.

A thread of its own blocks on it, so that the process ends with its broker while the adapter computes. (If the adapter
holds the interpreter's lock for good, the kernel ends the process: see `workers.process.die_with`.) Arrays of a result
that exceed 64 KB lie in the worker's own sealed arena; smaller ones travel inline.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections import deque

import numpy as np

from workers import inputs, process
from zoo.errors import InvalidInput
from zoo.wire import arena, launch, lifeline, protocol

RESULT_ARENA_BYTES = 32 << 20
ARENA_WAIT_S = 5.0


class WorkerLifeline:
    """The worker's end of its lifeline: the arenas of clients, and its own for results."""

    def __init__(self, seat: launch.Seat) -> None:
        self._sock = lifeline.connect(seat.handoff, timeout=10.0)
        self._sock.settimeout(None)
        self._limit = seat.arena_limit_bytes
        self._arenas: dict[int, arena.MappedArena] = {}
        self._gone: deque[int] = deque(maxlen=1024)  # will not come (again): not waited for
        self._own: arena.OwnedArena | None = None
        self._copy: int | None = None
        self._news = threading.Condition()
        self.recent = inputs.Recent()
        self.send(protocol.LifelineAttach("worker", seat.key))
        threading.Thread(target=self._listen, name="lifeline", daemon=True).start()

    def _listen(self) -> None:
        try:
            while (packet := lifeline.receive(self._sock)) is not None:
                self._take(*packet)
        except OSError:
            pass
        except BaseException:
            traceback.print_exc()
        process.exit_now(0)  # the broker is gone

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

    def send(self, message: protocol.LifelineMessage, fd: int | None = None) -> None:
        """In the kernel's hands when this returns: it survives whatever the process does next."""
        lifeline.send(self._sock, message, fd)

    def take_copy(self) -> int | None:
        """The descriptor of the copy that the broker has announced; None if it does not come."""
        with self._news:
            self._news.wait_for(lambda: self._copy is not None, ARENA_WAIT_S)
            return self._copy

    def place(self, value: np.ndarray) -> int | None:
        """Copies a large array into the own arena and gives its offset; None if it is small, or no slot is free."""
        if value.nbytes <= protocol.INLINE_RESULT_BYTES:
            return None
        if self._own is None:
            own = arena.OwnedArena(min(RESULT_ARENA_BYTES, self._limit), "zoo-results")
            self.send(protocol.LifelineArena(), own.fd)
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
