"""Unix sockets: which process is at the other end (SO_PEERCRED), and packets that carry descriptors (SCM_RIGHTS)."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

Packet = tuple[bytes, list[tuple[int, int, bytes]], int, Any]  # what `recvmsg` gives
MAX_FDS = 4
ANCILLARY = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
CLOEXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)  # Linux: what is received is close-on-exec from the start
_UCRED = struct.Struct("3i")
_SO_PEERGROUPS = 59  # Linux; the socket module does not name it
_MOST_GROUPS = 256  # of one process: `getsockopt` gives at most 1,024 bytes


class Credentials(NamedTuple):
    """Of the process that connected, or of the one that listens where this side has connected."""

    pid: int
    uid: int
    gid: int


def credentials(sock: socket.socket) -> Credentials:
    """Raises OSError when the kernel does not tell."""
    return Credentials._make(_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


def is_own(sock: socket.socket) -> bool:
    """Whether the other end is a process of this user's, or of root's."""
    return credentials(sock).uid in (os.geteuid(), 0)


def is_in_group(sock: socket.socket, gid: int) -> bool:
    """Whether the process at the other end was in the group, by its first one or by the others, when it connected."""
    if credentials(sock).gid == gid:
        return True
    groups = array.array("I")
    with contextlib.suppress(OSError):  # in more groups than this has room for
        groups.frombytes(sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MOST_GROUPS * groups.itemsize))
    return gid in groups


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
