"""Lifelines: Unix SEQPACKET connections that carry descriptors, and whose end-of-file means "that process is gone".

One packet is one `Lifeline…` message of `zoo.wire.protocol`, with at most one descriptor. Descriptors that arrive
in excess are closed, never leaked.
"""

from __future__ import annotations

import array
import os
import socket
from collections import deque
from typing import Any

from zoo.errors import ProtocolMismatch
from zoo.wire import protocol

Raw = tuple[bytes, list[tuple[int, int, bytes]], int, Any]  # what `recvmsg` gives
PACKET_BYTES = 4096
_MAX_FDS = 4
_ANCILLARY = socket.CMSG_SPACE(_MAX_FDS * array.array("i").itemsize)
# Linux: the received descriptors are close-on-exec from the start.
_FLAGS = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


def send(sock: socket.socket, message: protocol.Message, fd: int | None = None, flags: int = 0) -> None:
    """Sends one packet.

    Raises:
        BlockingIOError: the other side does not read (non-blocking sockets only).
        OSError: the connection is gone.
    """
    data = protocol.pack(message)
    if fd is None:
        sock.send(data, flags | socket.MSG_NOSIGNAL)
    else:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))
        sock.sendmsg([data], [rights], flags | socket.MSG_NOSIGNAL)


def receive(sock: socket.socket, flags: int = 0) -> tuple[protocol.LifelineMessage, int | None] | None:
    """One packet and its descriptor (the caller's to close), or None at end-of-file.

    Raises:
        BlockingIOError: nothing there (non-blocking). OSError: the connection is gone.
        ProtocolMismatch: an unreadable packet; its descriptors are already closed.
    """
    return parse(sock.recvmsg(PACKET_BYTES, _ANCILLARY, flags | _FLAGS))


def take(sock: socket.socket, into: deque[Raw]) -> None:
    """Receives one packet, without waiting, for `parse`. In one call into C: it is kept if a signal handler raises."""
    into.extend(map(sock.recvmsg, (PACKET_BYTES,), (_ANCILLARY,), (socket.MSG_DONTWAIT | _FLAGS,)))


def parse(packet: Raw) -> tuple[protocol.LifelineMessage, int | None] | None:
    """See `receive`."""
    data, ancillary, how, _ = packet
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    try:
        if not data:
            for extra in fds:
                os.close(extra)
            return None
        if how & socket.MSG_TRUNC:
            raise ProtocolMismatch(f"a lifeline packet has at most {PACKET_BYTES} bytes")
        message = protocol.unpack_lifeline(data)
    except BaseException:
        for extra in fds:
            os.close(extra)
        raise
    for extra in fds[1:]:
        os.close(extra)
    return message, (fds[0] if fds else None)


def connect(path: str, timeout: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(timeout)
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock
