"""Where the broker listens: the claim on an endpoint, who may connect to it, and its files while the broker runs.

Programs that clean temporary folders delete what looks old, sockets in use included. So the broker keeps its files
fresh, and makes anew what was removed all the same; clients that are connected stay so.

The default endpoint lies in $XDG_RUNTIME_DIR, which a service manager, a cron job or `su` may not set. A broker there
leaves a link in the folder where a client without the variable looks; a client takes it from its own user only.
"""

from __future__ import annotations

import contextlib
import grp
import logging
import os
import re
import socket
from collections.abc import Callable

from broker.front import listening
from zoo.config.address import user_id
from zoo.config.endpoint import default_endpoints
from zoo.errors import ConfigError
from zoo.system import unix

log = logging.getLogger("zoo.broker")

BACKLOG = 256
TOUCH_S = 600.0  # cleaners take what has not been used for hours or days


class Place:
    """A claimed endpoint.

    Attributes:
        front: the path of the ZeroMQ socket, "" with tcp://. handoff: where lifelines connect.
        gid: the group that may connect beside this user, or None.
    """

    def __init__(self, front: str, handoff: str, lock: listening.Lock, gid: int | None, link: str) -> None:
        self.front = front
        self.handoff = handoff
        self.gid = gid
        self._lock = lock
        self._link = link  # to `front`, or "" for none
        self._bound: dict[str, listening.Identity | None] = {}
        self._touch_at = 0.0
        self._told: set[str] = set()

    def listen(self, path: str, kind: int) -> socket.socket:
        """A listener at `front` or `handoff`, private from the first moment. Raises OSError."""
        made = listening.listen(path, kind, BACKLOG, self.gid)
        self._bound[path] = listening.identity(path)
        return made

    def admits(self, sock: socket.socket) -> bool:
        """Whether the process at the other end of a Unix socket may be a client."""
        return unix.is_own(sock) or (self.gid is not None and unix.is_in_group(sock, self.gid))

    def keep(self, now: float, again: Callable[[str], None]) -> None:
        """Called now and then: keeps the files fresh and restores what was removed.

        Args:
            again: binds one of the sockets again, whose path it is given. Clients that are connected stay so.
        """
        if now >= self._touch_at:
            self._touch_at = now + TOUCH_S
            self._touch()
        if not self._try(self._lock.path, self._lock.keep):
            return
        if self._link:
            listening.link(self._link, self.front)
        for path, own in list(self._bound.items()):
            if listening.identity(path) != own:
                self._try(path, lambda path=path: self._restore(path, again))  # type: ignore[misc]

    def _restore(self, path: str, again: Callable[[str], None]) -> None:
        listening.clear(path, path)  # a socket that was left there by a process that has ended
        again(path)
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
            if listening.identity(path) == own:
                with contextlib.suppress(OSError):
                    os.utime(path, follow_symlinks=False)

    def release(self) -> None:
        if self._link:
            listening.unlink(self._link, self.front)
        for path, own in self._bound.items():
            listening.remove(path, own)
        self._lock.release()


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
        path = default_endpoints()[0].removeprefix("ipc://") + re.sub(r"[^\w.-]+", "-", endpoint.removeprefix("tcp"))
        front = ""
    gid = _group(group) if group else None
    listening.own_folder(os.path.dirname(path), gid)
    lock = listening.Lock(f"{path}.lock", endpoint, gid)
    handoff = f"{path}.handoff"
    try:
        for stale in filter(None, (front, handoff)):
            listening.clear(stale, endpoint)
    except ConfigError:
        lock.release()
        raise
    return Place(front, handoff, lock, gid, _link(front))


def _link(front: str) -> str:
    """Where the link to a broker at the default endpoint belongs, "" where no client would look for one."""
    first, *others = (where.removeprefix("ipc://") for where in default_endpoints())
    if front == first and others:
        with contextlib.suppress(ConfigError):
            listening.own_folder(os.path.dirname(others[-1]))
            listening.link(others[-1], front)
            return others[-1]
    return ""


def _group(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError(
            f"broker.group: there is no group {name!r} on this machine; `groupadd {name}` makes it"
        ) from None
