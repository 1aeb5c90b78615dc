"""Lets libzmq accept one connection at a time, and none when there is no descriptor for it.

libzmq accepts whatever comes, and ends the whole process when `accept` finds no free descriptor (on ipc; on tcp it
spins). No option of it limits that, `unbind` cuts off connected clients, and counting from outside comes too late: a
burst is accepted faster than another thread can look. So its listener is watched with EPOLLONESHOT in libzmq's own
epoll set: after one connection the kernel reports no more of them until the gate opens again. What has to wait does so
in the listener's backlog, where it costs no descriptor.

libzmq never changes the registration of a listener after it was made, so ours stays. Where the set cannot be found (a
libzmq that polls in another way), everything is accepted, as ever.

It also stops accepting when hardly a descriptor is left, whatever uses them. Renaming the socket's file away and back
was tried: too late after a burst.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import resource
import select

from zoo.system.kernel import libc

log = logging.getLogger("zoo.broker")

TRIES_S = 2.0  # libzmq's thread takes a listener over a moment after it has been made
LAST_FREE = 16  # descriptors that no connection may take, should the shares of the others not have been kept to
_EPOLL_CTL_MOD = 3
_WATCHED = re.compile(r"^tfd:\s*(\d+) events:\s*[0-9a-f]+ data:\s*([0-9a-f]+)", re.M)


class _Event(ctypes.Structure):
    _pack_ = 1 if os.uname().machine == "x86_64" else 0
    _fields_ = [("events", ctypes.c_uint32), ("data", ctypes.c_uint64)]


class Gate:
    """Of the listener that libzmq has at the moment."""

    def __init__(self) -> None:
        self._listener = -1
        self._epoll, self._data = -1, 0
        self._find_until = 0.0  # 0: there is nothing to find any more
        self._open = False  # one more may come in, and has not

    def listens(self, listener: int, now: float) -> None:
        """libzmq has a new listener."""
        self._listener, self._epoll, self._find_until = listener, -1, now + TRIES_S

    def passed(self) -> None:
        """One has come in, or its news may have been lost: opened again, nothing changes for the kernel."""
        self._open = False

    def look(self, full: bool, now: float) -> None:
        """Opens the gate for one more, unless all places are taken (`full`) or descriptors run short."""
        if self._find_until:
            self._find(now)
        if self._epoll < 0:
            return
        if self._is_short():
            self._open = not self._watch(select.EPOLLONESHOT)
        elif not self._open and not full:
            self._open = self._watch(select.EPOLLIN | select.EPOLLONESHOT)

    def _find(self, now: float) -> None:
        self._epoll, self._data = _watching(self._listener)
        if self._epoll >= 0 and self._watch(select.EPOLLONESHOT):
            self._find_until, self._open = 0.0, False
        elif now > self._find_until:
            self._epoll, self._find_until = -1, 0.0
            log.warning("libzmq's listener was not found: a flood of connections may use up all descriptors")
        else:
            self._epoll = -1

    def _is_short(self) -> bool:
        """Whether hardly any descriptor is left: the kernel gives the lowest number that is free."""
        try:
            lowest = os.dup(self._listener)
        except OSError:
            return True
        os.close(lowest)
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return soft != resource.RLIM_INFINITY and lowest >= soft - LAST_FREE

    def _watch(self, events: int) -> bool:
        """False: the kernel refused, which leaves everything as it was."""
        event = _Event(events, self._data)
        changed: int = libc.epoll_ctl(self._epoll, _EPOLL_CTL_MOD, self._listener, ctypes.byref(event))
        return changed == 0


def _watching(listener: int) -> tuple[int, int]:
    """The epoll set of this process that watches the listener, and what it says about it; (-1, 0) if there is none."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") != "anon_inode:[eventpoll]":
                continue
            with open(f"/proc/self/fdinfo/{name}") as file:
                watched = _WATCHED.findall(file.read())
        except OSError:
            continue
        for fd, data in watched:
            if int(fd) == listener:
                return int(name), int(data, 16)
    return -1, 0
