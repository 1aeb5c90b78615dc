"""The channel between the broker and one worker: messages of several parts over a Unix stream socket.

The worker makes a pair of sockets and hands one end over on its lifeline, so nobody else can ever speak on it, and
what it says there comes after what it said when it attached. A plain socket, not ZeroMQ, because both ends are ours
and none of what ZeroMQ brings is needed on this hop (reconnecting, routing, queues of its own): its two extra threads,
one on each side, cost more than everything else about a request.

A message is a count of parts and the length of each, as little-endian 32-bit numbers, and then the parts.
"""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Sequence

from zoo import protocol
from zoo.errors import ProtocolMismatch

RECEIVE_BYTES = 64 << 10
MAX_PARTS = 1 << 15
IOV_MOST = 64  # buffers given to the kernel at once
_WORD = struct.Struct("<I")


class Channel:
    """One end. The broker's is non-blocking (`send`, `take`), a worker's waits (`send`, `receive`)."""

    def __init__(self, sock: socket.socket) -> None:
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
            data = self.sock.recv(RECEIVE_BYTES)
            if not data:
                return None
            self._read += data
        return parts

    def is_quiet(self, seconds: float) -> bool:
        """True when nothing has come for so long."""
        if self._read:
            return False
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return not poll.poll(seconds * 1000)

    def take(self) -> list[list[bytes]] | None:
        """The messages that one look brings, then others have their turn; None when there is nothing to read.

        Raises:
            ConnectionError: at end-of-file, and for nonsense.
        """
        try:
            data = self.sock.recv(RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return None
        if not data:
            raise ConnectionError("end of file")
        self._read += data
        messages = []
        try:
            while (parts := self._parse()) is not None:
                messages.append(parts)
        except ProtocolMismatch as e:
            raise ConnectionError(str(e)) from None
        return messages

    def close(self) -> None:
        self.sock.close()

    def _parse(self) -> list[bytes] | None:
        """The first message of what was read, if it is all there."""
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
        end = at + sum(sizes)
        if len(raw) < end:
            return None
        parts = []
        for size in sizes:
            parts.append(bytes(raw[at : at + size]))
            at += size
        del raw[:end]
        return parts


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
