"""The lock by which an endpoint is one broker's: a locked file beside the socket, with the holder's process id in it.

The kernel drops the lock with the process. So a broker that was killed leaves nothing that the next one has to guess
about, and a second broker on the same endpoint is refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat

from broker.front.listening import identity, own_folder
from zoo.errors import ConfigError


class Lock:
    """A locked file. Raises ConfigError when another process holds it, or when it is not a file of our own."""

    def __init__(self, path: str, endpoint: str, gid: int | None) -> None:
        self.path = path
        self._endpoint = endpoint
        self._gid = gid
        self._fd = self._take()

    def _take(self) -> int:
        while True:
            fd = self._open()
            try:
                found = os.fstat(fd)
                if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink > 1:
                    raise ConfigError(
                        f"{self.path} was not made by a broker of this user; remove it, or change the endpoint"
                    )
                if stat.S_IMODE(found.st_mode) & 0o077:
                    os.fchmod(fd, 0o600)
                self._hold(fd)
                if self._is_still(fd):
                    os.ftruncate(fd, 0)
                    os.pwrite(fd, str(os.getpid()).encode(), 0)
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # its last holder removed it between our open and our lock

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
        try:
            return os.open(self.path, flags, 0o600)
        except OSError as e:
            raise ConfigError(f"the endpoint {self._endpoint} cannot be used: {e}") from None

    def _hold(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            raise ConfigError(f"a broker (process {holder}) serves {self._endpoint} already") from None

    def _is_still(self, fd: int) -> bool:
        found = os.fstat(fd)
        return identity(self.path) == (found.st_dev, found.st_ino)

    def keep(self) -> None:
        """Takes it again if the file has gone, its folder too. Raises ConfigError when another broker has it."""
        if not self._is_still(self._fd):
            own_folder(os.path.dirname(self.path), self._gid)
            fd = self._take()
            os.close(self._fd)
            self._fd = fd

    def touch(self) -> None:
        with contextlib.suppress(OSError):
            os.utime(self._fd)

    def release(self) -> None:
        if self._is_still(self._fd):
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        os.close(self._fd)
