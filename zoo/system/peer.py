"""Which process is at the other end of a Unix socket: what the kernel noted when it connected (SO_PEERCRED)."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from typing import NamedTuple

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
