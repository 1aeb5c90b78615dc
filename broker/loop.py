"""What the broker waits for, and what it does when that is there. One thread, and nothing else in it ever waits.

Everything that is not a ZeroMQ socket sits in one epoll set, which the poller watches as a single descriptor, so that
the cost of a turn does not grow with clients or models.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from functools import partial

import zmq

from broker.guard import Guard

Act = Callable[[], object]


class Loop:
    """Descriptors, each with what to do when it is readable, and what is to blame for an error then (`guard.py`)."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._acts: dict[int, tuple[Act, Act | None]] = {}
        self._epoll = select.epoll()
        self._poller = zmq.Poller()
        self._poller.register(self._epoll.fileno(), zmq.POLLIN)
        self._sock: zmq.Socket[bytes] | None = None
        self._hear: Act = lambda: None
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def hear(self, sock: zmq.Socket[bytes], act: Act) -> None:
        """`act` takes one message from the ZeroMQ socket; it deals with its own errors."""
        self._poller.register(sock, zmq.POLLIN)
        self._sock, self._hear = sock, act

    def watch(self, fd: int, act: Act, blame: Act | None = None) -> None:
        """`blame`: what to do when `act` has raised."""
        self._epoll.register(fd, select.EPOLLIN)
        self._acts[fd] = act, blame

    def watches(self, fd: int) -> bool:
        return fd in self._acts

    def await_room(self, fd: int, *, reading: bool, writing: bool) -> None:
        """Also acts when the descriptor can be written (`writing`), or only then."""
        self._epoll.modify(fd, (select.EPOLLIN if reading else 0) | (select.EPOLLOUT if writing else 0))

    def forget(self, fd: int) -> None:
        """To be called before the descriptor is closed."""
        if self._acts.pop(fd, None) is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    def turn(self, due: float) -> None:
        """Waits until something is there, or until `due` (monotonic seconds), and does what follows."""
        wait = due - time.monotonic()
        for source, _ in self._poller.poll(math.ceil(wait * 1000) if wait > 0 else 0):
            if source is self._sock:  # one message a turn: no client waits for another's burst
                self._hear()
            else:
                for fd, _ in self._epoll.poll(0):
                    self._act(fd)

    def _act(self, fd: int) -> None:
        found = self._acts.get(fd)
        if found is None:  # it was closed by what came before it in the same turn
            return
        act, blame = found
        try:
            act()
        except Exception as e:
            self._guard.failed("what a descriptor brought", e, blame)

    # ------------------------------------------------------------ signals

    def hear_signals(self, numbers: Iterable[int], act: Act) -> None:
        """`act` reads `signals()`. Raises ValueError in another thread than the main one."""
        self.watch(self._wake_read, act)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, lambda *_: None)

    def signals(self) -> bytes:
        """The numbers of those that have come."""
        try:
            return os.read(self._wake_read, 64)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        self._guard.run("closing the loop", self._epoll.close)
        for fd in (self._wake_read, self._wake_write):
            self._guard.run("closing the loop", partial(os.close, fd))
