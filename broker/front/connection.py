"""One connection to the front socket, as far as it is known: what several files of this folder note about it.

libzmq owns the descriptor, and may close it at any moment; its number then is another connection's. The inode of a
socket is not used again while we look: by it, a duplicate is known to be of the connection that is meant.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import socket
import termios
import time
from dataclasses import dataclass, field

from zoo.system.unix import credentials


@dataclass(slots=True, eq=False)
class Connection:
    """A connection.

    Attributes:
        fd: libzmq's descriptor. inode: of the socket.
        identity: the routing id of what came by it; empty while nothing has.
        since: when it was first seen.
        refused: when it was told that there is no place for it; 0: it was not.
        ended: it has been cut off.
        suspect: bytes of the process's growth that were put down to it (see `pressure.py`).
        out: bytes of answers given to libzmq since it was last seen to have read all (see `outgoing.py`).
    """

    fd: int
    inode: int
    identity: bytes = b""
    since: float = field(default_factory=time.monotonic)
    refused: float = 0.0
    ended: bool = False
    suspect: int = 0
    out: int = 0

    def is_still(self, fd: int) -> bool:
        """Whether a descriptor is this connection's."""
        try:
            return os.fstat(fd).st_ino == self.inode
        except OSError:
            return False

    @property
    def pid(self) -> int:
        """The process at the other end; 0 where the kernel does not know."""
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self.fd)) as sock:
            if sock.family == socket.AF_UNIX and self.is_still(sock.fileno()):
                return credentials(sock).pid
        return 0

    def end(self) -> bool:
        """Cuts it off: libzmq meets its end, and tells of it. False: it has gone already."""
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self.fd)) as sock:
            if self.is_still(sock.fileno()):
                self.ended = True
                sock.shutdown(socket.SHUT_RDWR)
        return self.ended

    def unread(self) -> int:
        """Bytes that wait in the kernel for libzmq to read them."""
        return self._ask(termios.FIONREAD)

    def unsent(self) -> int:
        """Bytes in the kernel that the other side has not read yet."""
        return self._ask(termios.TIOCOUTQ)

    def _ask(self, what: int) -> int:
        answer = array.array("i", [0])
        try:
            fcntl.ioctl(self.fd, what, answer)
        except OSError:
            return 0
        return answer[0]
