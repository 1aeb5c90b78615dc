"""Packets over a Unix SEQPACKET socket, with the descriptors that go with them (SCM_RIGHTS)."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Sequence
from typing import Any

Packet = tuple[bytes, list[tuple[int, int, bytes]], int, Any]  # what `recvmsg` gives
MAX_FDS = 4
ANCILLARY = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
CLOEXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)  # Linux: what is received is close-on-exec from the start


def send(sock: socket.socket, data: bytes, fds: Sequence[int] = (), flags: int = 0) -> None:
    """Sends one packet. The descriptors stay the caller's to close.

    Raises:
        BlockingIOError: the other side does not read (non-blocking sockets only). OSError: it is gone.
    """
    if fds:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
        sock.sendmsg([data], [rights], flags | socket.MSG_NOSIGNAL)
    else:
        sock.send(data, flags | socket.MSG_NOSIGNAL)


def descriptors(packet: Packet) -> list[int]:
    """The descriptors of a received packet: from now on the caller's to close."""
    fds = array.array("i")
    for level, kind, payload in packet[1]:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    return list(fds)


def close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
