"""Lets libzmq accept one connection at a time, and none when there is no descriptor for it.

libzmq accepts whatever comes, and ends the whole process when `accept` finds no free descriptor (on ipc; on tcp it
spins). No option of it limits that, `unbind` cuts off connected clients, and counting from outside comes too late: a
burst is accepted faster than another thread can look. So its listener is watched with EPOLLONESHOT in libzmq's own
epoll set: after one connection the kernel says no more of it until `let_in` is called again. What has to wait does so
in the listener's backlog, where it costs no descriptor.

libzmq never changes the registration of a listener after it was made, so ours stays. Where the set cannot be found (a
libzmq that polls in another way), everything is accepted, as ever.
"""

from __future__ import annotations

import ctypes
import os
import re
import select

_EPOLL_CTL_MOD = 3
_WATCHED = re.compile(r"^tfd:\s*(\d+) events:\s*[0-9a-f]+ data:\s*([0-9a-f]+)", re.M)


class _Event(ctypes.Structure):
    _pack_ = 1 if os.uname().machine == "x86_64" else 0
    _fields_ = [("events", ctypes.c_uint32), ("data", ctypes.c_uint64)]


class Gate:
    """Of one listener, by its descriptor.

    Attributes:
        works: False: the listener was not found in any epoll set, and accepts whatever comes.
    """

    def __init__(self, listener: int) -> None:
        self._listener = listener
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._epoll, self._data = _find(listener)
        self.works = self._epoll >= 0 and self.let_in()

    def let_in(self) -> bool:
        """One more connection may be accepted. False: the kernel refused, which leaves everything as it was."""
        return self._watch(select.EPOLLIN | select.EPOLLONESHOT)

    def shut(self) -> bool:
        """None may be accepted, until `let_in`."""
        return self._watch(select.EPOLLONESHOT)

    def _watch(self, events: int) -> bool:
        event = _Event(events, self._data)
        changed: int = self._libc.epoll_ctl(self._epoll, _EPOLL_CTL_MOD, self._listener, ctypes.byref(event))
        return changed == 0


def _find(listener: int) -> tuple[int, int]:
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
