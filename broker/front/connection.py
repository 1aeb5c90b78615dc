"""One connection to the front socket, as far as it is known: what several files of this folder note about it.

libzmq owns the descriptor. It is looked at here, and used by `Door.cut` only, which makes sure that it is still the
same connection's.
"""

from __future__ import annotations

import array
import fcntl
import termios
import time
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Connection:
    """A connection.

    Attributes:
        fd: libzmq's descriptor. inode: of the socket; no other connection has it while we look.
        pid: of the process at the other end; 0 while nothing has asked, -1 where the kernel does not know.
        identity: the routing id of what came by it; empty while nothing has.
        since: when it was first seen.
        refused: when it was told that there is no place for it; 0: it was not.
        ended: it has been cut off.
        suspect: bytes of the process's growth that were put down to it (see `pressure.py`).
        out: bytes of answers given to libzmq since it was last seen to have read all (see `outgoing.py`).
    """

    fd: int
    inode: int
    pid: int = 0
    identity: bytes = b""
    since: float = field(default_factory=time.monotonic)
    refused: float = 0.0
    ended: bool = False
    suspect: int = 0
    out: int = 0

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
