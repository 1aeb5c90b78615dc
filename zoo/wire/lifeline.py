"""Lifelines: Unix SEQPACKET connections that carry descriptors, and whose end-of-file means "that process is gone".

One packet is one `Lifeline…` message of `zoo.wire.protocol`, with at most one descriptor. Descriptors that arrive
in excess are closed, never leaked.
"""

from __future__ import annotations

import socket
from collections import deque

from zoo.errors import ProtocolMismatch
from zoo.system import unix
from zoo.wire import protocol

PACKET_BYTES = 4096
Raw = unix.Packet  # what `take` keeps for `parse`


def send(sock: socket.socket, message: protocol.Message, fd: int | None = None, flags: int = 0) -> None:
    """Sends one packet.

    Raises:
        BlockingIOError: the other side does not read (non-blocking sockets only).
        OSError: the connection is gone.
    """
    unix.send(sock, protocol.pack(message), () if fd is None else (fd,), flags)


def receive(sock: socket.socket, flags: int = 0) -> tuple[protocol.LifelineMessage, int | None] | None:
    """One packet and its descriptor (the caller's to close), or None at end-of-file.

    Raises:
        BlockingIOError: nothing there (non-blocking). OSError: the connection is gone.
        ProtocolMismatch: an unreadable packet; its descriptors are already closed.
    """
    return parse(sock.recvmsg(PACKET_BYTES, unix.ANCILLARY, flags | unix.CLOEXEC))


def take(sock: socket.socket, into: deque[Raw]) -> None:
    """Receives one packet, without waiting, for `parse`. In one call into C: it is kept if a signal handler raises."""
    flags = socket.MSG_DONTWAIT | unix.CLOEXEC
    into.extend(map(sock.recvmsg, (PACKET_BYTES,), (unix.ANCILLARY,), (flags,)))


def parse(packet: Raw) -> tuple[protocol.LifelineMessage, int | None] | None:
    """See `receive`."""
    data, _, how, _ = packet
    fds = unix.descriptors(packet)
    try:
        if not data:
            unix.close(fds)
            return None
        if how & socket.MSG_TRUNC:
            raise ProtocolMismatch(f"a lifeline packet has at most {PACKET_BYTES} bytes")
        message = protocol.unpack_lifeline(data)
    except BaseException:
        unix.close(fds)
        raise
    unix.close(fds[1:])
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
