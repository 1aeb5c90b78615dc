"""The channel between the broker and one worker: messages of several parts over a Unix stream socket.

The worker makes a pair of sockets and hands one end over on its lifeline, so no other process can ever speak on it, and
what it says there comes after what it said when it attached. A plain socket, not ZeroMQ, because both ends are ours
and none of what ZeroMQ brings is needed on this hop (reconnecting, routing, queues of its own): its two extra threads,
one on each side, cost more than everything else about a request.

A message is a count of parts and the length of each, as little-endian 32-bit numbers, and then the parts.

Without ZeroMQ here, four clients of one model went from 0.62 to 0.75 of the floor's throughput.
"""

from __future__ import annotations

import mmap
import select
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any

from zoo.errors import ProtocolMismatch
from zoo.wire import protocol

RECEIVE_BYTES = 64 << 10
MAX_PARTS = 1 << 15
MAX_TOTAL_BYTES = 2 * protocol.MAX_MESSAGE_BYTES  # of one message
LARGE_BYTES = 1 << 20  # a message from this size on is read into memory of its own
IOV_MOST = 64  # buffers given to the kernel at once
_WORD = struct.Struct("<I")


class Channel:
    """One end. The broker's is non-blocking (`send`, `take`), a worker's waits (`send`, `receive`).

    Args:
        limit: bytes of one message that comes.
        room: asked before a large message is taken in; while it says no, nothing more is read.

    Attributes:
        reserved: what `room` has agreed to, and this end has not given out yet.
        stalled: there is no room now.
    """

    def __init__(
        self, sock: socket.socket, limit: int = MAX_TOTAL_BYTES, room: Callable[[int], bool] = lambda _: True
    ) -> None:
        self._limit = limit
        self._room = room
        self._large: _Large | None = None
        self.reserved = 0
        self.stalled = False
        self.sock = sock
        self.fd = sock.fileno()
        self._read = bytearray()
        self._unsent: list[memoryview] = []

    def send(self, parts: Sequence[bytes]) -> bool:
        """Sends one message.

        Returns:
            False when the other side does not read fast enough: the rest is kept, call `flush` when it can be written.

        Raises:
            OSError: the other side is gone.
        """
        buffers: list[bytes | memoryview] = [_head(parts), *parts]
        if self._unsent or len(buffers) > IOV_MOST:
            self._unsent += [memoryview(b) for b in buffers if b]
            return self.flush()
        try:
            sent = self.sock.sendmsg(buffers, (), socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = 0
        if sent == sum(map(len, buffers)):
            return True
        self._unsent = _after(buffers, sent)
        return self.flush()

    def flush(self) -> bool:
        """Sends what had to wait; False when something still does. A socket that waits is through when this returns."""
        while self._unsent:
            try:
                sent = self.sock.sendmsg(self._unsent[:IOV_MOST], (), socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return False
            self._unsent = _after(self._unsent, sent)
        return True

    def receive(self) -> list[bytes] | None:
        """Waits for one message; None at end-of-file.

        Raises:
            ProtocolMismatch: what comes cannot be a message. OSError.
        """
        while (parts := self._parse()) is None:
            if not self._fill():
                return None
        return parts

    def _fill(self) -> int:
        """Reads once, straight into a large message where one has begun. Gives the bytes read; 0 at end-of-file."""
        if self._large is not None:
            count = self.sock.recv_into(self._large.rest())
            self._large.filled += count
            return count
        data = self.sock.recv(RECEIVE_BYTES)
        self._read += data
        return len(data)

    def is_quiet(self, seconds: float) -> bool:
        """True when nothing has come for so long."""
        if self._read or self._large is not None:
            return False
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return not poll.poll(seconds * 1000)

    def take(self) -> list[list[bytes]] | None:
        """The messages that one look brings, then others have their turn; None when there is nothing to read.

        Raises:
            ConnectionError: at end-of-file, and for nonsense.
        """
        if self.stalled:
            self.stalled = False
        else:
            try:
                count = self._fill()
            except (BlockingIOError, InterruptedError):
                return None
            if not count:
                raise ConnectionError("end of file")
        messages = []
        try:
            while (parts := self._parse()) is not None:
                messages.append(parts)
        except ProtocolMismatch as e:
            raise ConnectionError(str(e)) from None
        return messages if messages or not self.stalled else None

    def _begin(self, sizes: tuple[int, ...], at: int) -> None:
        """A large message has begun, in the bytes that were read from `at` on."""
        large = _Large(sizes)
        if not self._room(large.size):
            self.stalled = True
            return
        self.reserved += large.size
        large.memory[: len(self._read) - at] = self._read[at:]
        large.filled = len(self._read) - at
        self._read.clear()
        self._large = large

    def given_out(self) -> int:
        """What was reserved for messages that `take` has given, and is not any more."""
        size, self.reserved = self.reserved, self._large.size if self._large is not None else 0
        return size - self.reserved

    def close(self) -> None:
        self.sock.close()

    def _parse(self) -> list[bytes] | None:
        """The first message of what was read, if it is all there."""
        if self._large is not None:
            if self._large.filled < self._large.size:
                return None
            large, self._large = self._large, None
            return large.parts()
        raw = self._read
        if len(raw) < _WORD.size:
            return None
        (count,) = _WORD.unpack_from(raw)
        if not 1 <= count <= MAX_PARTS:
            raise ProtocolMismatch(f"a message of {count} parts")
        at = (1 + count) * _WORD.size
        if len(raw) < at:
            return None
        sizes = struct.unpack_from(f"<{count}I", raw, _WORD.size)
        if max(sizes) > protocol.MAX_MESSAGE_BYTES:
            raise ProtocolMismatch(f"a part of {max(sizes)} bytes")
        total = sum(sizes)
        if total > self._limit:
            raise ProtocolMismatch(f"a message of {total} bytes; the limit is {self._limit}")
        end = at + total
        if len(raw) < end:
            if total >= LARGE_BYTES:
                self._begin(sizes, at)
            return None
        parts = []
        for size in sizes:
            parts.append(bytes(raw[at : at + size]))
            at += size
        del raw[:end]
        return parts


class _Large:
    """A large message on its way in: read once, into memory that goes back to the kernel with the last of its parts."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self._sizes = sizes
        self.size = sum(sizes)
        self.memory = memoryview(mmap.mmap(-1, self.size))
        self.filled = 0

    def rest(self) -> memoryview:
        """Where the next bytes go; not too many, so that others have their turn."""
        return self.memory[self.filled : self.filled + LARGE_BYTES]

    def parts(self) -> list[Any]:
        """Small parts as bytes, the others as views."""
        made: list[Any] = []
        at = 0
        memory = self.memory.toreadonly()
        for size in self._sizes:
            part = memory[at : at + size]
            made.append(bytes(part) if size <= RECEIVE_BYTES else part)
            at += size
        return made


def _head(parts: Sequence[bytes]) -> bytes:
    return struct.pack(f"<{1 + len(parts)}I", len(parts), *map(len, parts))


def _after(buffers: Sequence[bytes | memoryview], sent: int) -> list[memoryview]:
    """What is left of the buffers after so many bytes of them."""
    left: list[memoryview] = []
    for buffer in buffers:
        if sent >= len(buffer):
            sent -= len(buffer)
        elif buffer:
            left.append(memoryview(buffer)[sent:])
            sent = 0
    return left
