"""The files of Unix sockets: private from their first moment, removed by their maker only, in a folder of our own.

A locked file beside the socket, with the holder's process id in it, makes an endpoint one broker's. The kernel drops
the lock with the process. So a broker that was killed leaves nothing that the next one has to guess about, and a second
broker on the same endpoint is refused.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import socket
import stat

from zoo.errors import ConfigError
from zoo.system import unix

Identity = tuple[int, int]  # device, inode


def identity(path: str) -> Identity | None:
    """Which file lies there (a link is itself); None when there is none that can be looked at."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def listen(path: str, kind: int, backlog: int, group: int | None = None) -> socket.socket:
    """A listening socket, close-on-exec and non-blocking, at a path where nothing lies.

    Linux gives a socket's file the mode of the socket itself, less the umask: set before `bind`, there is no moment
    at which another user could connect. With `group`, that group may connect too, once the file belongs to it.

    Raises:
        OSError: it cannot be made there; nothing is left.
    """
    made = socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC)
    bound = False
    try:
        os.fchmod(made.fileno(), 0o600)
        made.bind(path)
        bound = True
        if group is not None:
            os.chown(path, -1, group, follow_symlinks=False)
            os.chmod(path, 0o660)
        made.listen(backlog)
        made.setblocking(False)
    except BaseException:
        made.close()
        if bound:
            with contextlib.suppress(OSError):
                os.unlink(path)
        raise
    return made


def listener_of(path: str) -> int | None:
    """The process that listens at a socket's file, 0 when it cannot be told which; None when no process does."""
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        with socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as probe:
            try:
                probe.connect(path)
            except OSError as e:
                if e.errno in (errno.ECONNREFUSED, errno.ENOENT):
                    return None
                if e.errno == errno.EPROTOTYPE:  # it is of the other kind
                    continue
                return 0  # alive, and its queue is full
            return unix.credentials(probe).pid
    return 0


def clear(path: str, endpoint: str) -> None:
    """Removes the socket, or the link to one, that a broker left which was killed.

    Raises:
        ConfigError: what lies there is no socket, or another user's, or a process listens at it.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as e:
        raise ConfigError(f"the endpoint {endpoint} cannot be used: {e}") from None
    if not stat.S_ISSOCK(found.st_mode) and not stat.S_ISLNK(found.st_mode):
        raise ConfigError(f"{path} is not a socket; move it away, or choose another endpoint than {endpoint}")
    if found.st_uid != os.geteuid():
        raise ConfigError(f"{path} belongs to user {found.st_uid}; choose another endpoint than {endpoint}")
    holder = listener_of(path)
    if holder is not None:
        raise ConfigError(f"a broker (process {holder or 'unknown'}) serves {endpoint} already; its lock was removed")
    remove(path, (found.st_dev, found.st_ino))


def remove(path: str, own: Identity | None) -> None:
    """Unlinks a file if it is still the one that it was."""
    if own is not None and identity(path) == own:
        with contextlib.suppress(OSError):
            os.unlink(path)


def link(path: str, target: str) -> None:
    """Makes a link if it is not there. What cannot be linked is left: the broker has an endpoint without it."""
    with contextlib.suppress(OSError, ConfigError):
        if not _leads(path, target):
            clear(path, path)
            os.symlink(target, path)


def unlink(path: str, target: str) -> None:
    """Removes a link if it still leads to the target."""
    if _leads(path, target):
        with contextlib.suppress(OSError):
            os.unlink(path)


def _leads(path: str, target: str) -> bool:
    try:
        return os.readlink(path) == target
    except OSError:
        return False


def own_folder(folder: str, gid: int | None = None) -> None:
    """Makes the folder (0700, or 0750 with a group), or sees that it is fit: ours or root's, and no other writes in it.

    Raises:
        ConfigError: it is not.
    """
    try:
        made = not os.path.lexists(folder)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        found = os.lstat(folder)
        if made and gid is not None:
            os.chown(folder, -1, gid, follow_symlinks=False)
            os.chmod(folder, 0o750)
            return
    except OSError as e:
        if isinstance(e, FileExistsError) or e.errno == errno.ENOTDIR:
            raise ConfigError(f"{folder} is not a folder; choose another endpoint") from None
        raise ConfigError(f"the folder of the endpoint cannot be used: {e}") from None
    if stat.S_ISLNK(found.st_mode):
        raise ConfigError(f"{folder} is a symbolic link; name the folder itself in the endpoint")
    shared = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if found.st_uid not in (os.geteuid(), 0) or (shared and not found.st_mode & stat.S_ISVTX):
        raise ConfigError(f"{folder} belongs to another user, or others may write in it; use a folder of your own")
    if gid is not None and not found.st_mode & (stat.S_IXGRP if found.st_gid == gid else stat.S_IXOTH):
        name = grp.getgrgid(gid).gr_name
        raise ConfigError(f"the group {name} may not enter {folder}: `chgrp {name} {folder} && chmod 750 {folder}`")


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
