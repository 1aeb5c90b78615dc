"""Where the broker listens: the claim on an endpoint, and who may reach it.

A claim is a lock on a file beside the socket. The kernel drops it with the process, so a broker that was killed
leaves nothing that a new one would have to guess about, and a second broker on the same endpoint is told so. Programs
that clean temporary folders know nothing of that: the broker keeps its files fresh, and makes anew what was removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import logging
import os
import re
import socket
import stat
from collections.abc import Callable

from broker.front import listening
from broker.front.listening import Identity, identity
from broker.front.signpost import Signpost
from zoo.config.address import user_id
from zoo.config.schema import default_endpoint, default_endpoints
from zoo.errors import ConfigError
from zoo.system import peer

log = logging.getLogger("zoo.broker")

BACKLOG = 256
TOUCH_S = 600.0  # cleaners take what has not been used for hours or days
HIDDEN = ".hidden"


class Place:
    """A claimed endpoint.

    Attributes:
        front: the path of the ZeroMQ socket, "" with tcp://. handoff: where lifelines connect.
        gid: the group that may connect beside this user, or None.
    """

    def __init__(self, front: str, handoff: str, lock: Lock, gid: int | None, signpost: Signpost | None) -> None:
        self.front = front
        self.handoff = handoff
        self.gid = gid
        self._lock = lock
        self._signpost = signpost
        self._bound: dict[str, Identity | None] = {}
        self._hidden = False
        self._touch_at = 0.0
        self._told: set[str] = set()

    def listen(self, path: str, kind: int) -> socket.socket:
        """A listener at `front` or `handoff`, private from the first moment. Raises OSError."""
        made = listening.listen(path, kind, BACKLOG, self.gid)
        self._bound[path] = identity(path)
        return made

    def admits(self, sock: socket.socket) -> bool:
        """Whether the process at the other end of a Unix socket may be a client."""
        return peer.is_own(sock) or (self.gid is not None and peer.is_in_group(sock, self.gid))

    def hide(self) -> None:
        """Takes the front socket's name away: who is connected stays so, others wait until `reveal`."""
        if self.front and not self._hidden and identity(self.front) == self._bound.get(self.front):
            with contextlib.suppress(OSError):
                os.rename(self.front, self.front + HIDDEN)
                self._hidden = True

    def reveal(self) -> None:
        """Undoes `hide`. Should the name be another's by now, it stays hidden."""
        if self._hidden and identity(self.front) is None:
            with contextlib.suppress(OSError):
                os.rename(self.front + HIDDEN, self.front)
            self._hidden = False  # should it have been removed meanwhile, `keep` makes a new one

    def keep(self, now: float, again: Callable[[str], None]) -> None:
        """Called now and then: keeps the files fresh and restores what was removed.

        Args:
            again: binds one of the sockets again, whose path it is given. Who is connected stays connected.
        """
        if now >= self._touch_at:
            self._touch_at = now + TOUCH_S
            self._touch()
        if not self._try(self._lock.path, self._lock.keep):
            return
        if self._signpost is not None:
            self._signpost.put()
        for path, own in list(self._bound.items()):
            if identity(self._name(path)) != own:
                self._try(path, lambda path=path: self._restore(path, again))  # type: ignore[misc]

    def _name(self, path: str) -> str:
        return path + HIDDEN if self._hidden and path == self.front else path

    def _restore(self, path: str, again: Callable[[str], None]) -> None:
        listening.clear(path, path)  # a socket that was left there by a process that has ended
        again(path)
        if self._hidden and path == self.front:
            self._hidden = False
        log.warning("%s had been removed; it is there again", path)

    def _try(self, path: str, what: Callable[[], None]) -> bool:
        """Does it, or says once why it cannot be done."""
        try:
            what()
        except (OSError, ConfigError) as e:
            if path not in self._told:
                self._told.add(path)
                log.error("%s was removed and cannot be restored; new clients will not find this broker: %s", path, e)
            return False
        self._told.discard(path)
        return True

    def _touch(self) -> None:
        self._lock.touch()
        for path, own in self._bound.items():
            if identity(self._name(path)) == own:
                with contextlib.suppress(OSError):
                    os.utime(self._name(path), follow_symlinks=False)

    def release(self) -> None:
        if self._signpost is not None:
            self._signpost.remove()
        for path, own in self._bound.items():
            listening.remove(self._name(path), own)
        self._lock.release()


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


def claim(endpoint: str, group: str = "", user: str = "") -> Place:
    """Takes an endpoint for this process.

    Args:
        group: the Unix group whose members may connect too.
        user: the account that clients expect the broker to have; "" is any.

    Raises:
        ConfigError: another broker serves it, its folder cannot be used, or this process is not that user's.
    """
    if user and user_id(user) != os.geteuid():
        raise ConfigError(f"broker.user is {user!r}, but this process is user {os.geteuid()}'s: start it as {user}")
    if endpoint.startswith("ipc://"):
        path = front = os.path.abspath(endpoint.removeprefix("ipc://"))
    else:  # workers and lifelines are local all the same, under a name that a broker after a killed one finds again
        path = default_endpoint().removeprefix("ipc://") + re.sub(r"[^\w.-]+", "-", endpoint.removeprefix("tcp"))
        front = ""
    gid = _group(group) if group else None
    own_folder(os.path.dirname(path), gid)
    lock = Lock(f"{path}.lock", endpoint, gid)
    handoff = f"{path}.handoff"
    try:
        for stale in ([front, front + HIDDEN] if front else []) + [handoff]:
            listening.clear(stale, endpoint)
    except ConfigError:
        lock.release()
        raise
    return Place(front, handoff, lock, gid, _signpost(front))


def _signpost(front: str) -> Signpost | None:
    """For a broker at the default endpoint of its own surroundings, which others of its user may not share."""
    first, *others = (where.removeprefix("ipc://") for where in default_endpoints())
    if front != first or not others:
        return None
    with contextlib.suppress(ConfigError):
        own_folder(os.path.dirname(others[-1]))
        made = Signpost(others[-1], front)
        made.put()
        return made
    return None


def _group(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError(
            f"broker.group: there is no group {name!r} on this machine; `groupadd {name}` makes it"
        ) from None


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
