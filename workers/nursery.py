"""The nursery: the process that every worker is forked from, with the model libraries imported once.

It imports, forks when the broker asks for a worker, and reaps: nothing else. No tensor operation, no thread, no CUDA. A
parent that has run one multi-threaded operation leaves children that hang in their first one.

It is given a socket when it is started, and no name in any file system. It ends with its broker; workers outlive it.
An import may do anything to the process that it happens in, so the broker is told each module's name before. One that
is not installed is skipped: its models then fail to load with that very ImportError as the cause.

Its heap is frozen once, after the imports. Freezing in each worker after its load was tried: 235 ms a
start.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import sys
import threading
import traceback
import warnings
from typing import NoReturn

from workers import process
from zoo.system import kernel
from zoo.wire import launch

WORKER = "workers.runtime"


def main(fd: int) -> NoReturn:
    """Entered in a fresh interpreter with its end of the socket pair. Never returns."""
    try:
        sock = socket.socket(fileno=fd)
        Forks(sock, _prepare(sock)).serve()
    except OSError:  # the broker is gone
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    os._exit(1)  # without the libraries' farewells: a line for each object that one of them has leaked


def _prepare(sock: socket.socket) -> int:
    """Until it can fork. Gives the pipe that ends it with its broker."""
    kernel.set_name("zoo-nursery")
    for number in (*process.ASKED_TO_END, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    process.confine()
    kernel.become_subreaper()
    for stream in (sys.stdout, sys.stderr):  # pipes to the broker: what is printed is to be read now
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    sys.argv[:] = ["zoo"]
    order = launch.take(sock, launch.ORDERS)
    if order is None:
        os._exit(0)
    prepare, (pipe, folder) = order
    assert isinstance(prepare, launch.Prepare)
    process.die_with(pipe, group=False)
    try:
        os.fchdir(folder)
        os.getcwd()  # fails in a folder that was removed, and so would libraries that ask for it
    except OSError:
        os.chdir("/")
    os.close(folder)
    warm_up(sock, prepare.modules)
    launch.send(sock, launch.Prepared())
    return pipe


def warm_up(sock: socket.socket, modules: tuple[str, ...]) -> None:
    """Imports them, and sets what they made aside for good: a collection in a worker then neither looks at the
    libraries' half a million objects (0.2 s) nor copies the pages that it shares with the nursery by marking them.
    """
    gc.disable()  # one collection at the end instead of hundreds on the way
    for name in (WORKER, *modules):
        launch.send(sock, launch.Importing(name))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(name)
        except BaseException as e:  # a library that is broken here must not take the others down
            print(f"{name} is not preloaded: {type(e).__name__}: {e}", file=sys.stderr)
        if threading.active_count() > 1:  # a fork would have one thread of these, and their locks as they were
            launch.send(sock, launch.Unfit(name, "it starts a thread when it is imported"))
            os._exit(1)
    gc.collect()
    gc.freeze()
    gc.enable()


class Forks:
    """The prepared nursery: forks and reaps."""

    def __init__(self, sock: socket.socket, pipe: int) -> None:
        self._sock = sock
        self._pipe = pipe
        self._workers: set[int] = set()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def serve(self) -> NoReturn:
        """Until the broker is gone.

        Raises:
            OSError: it is.
        """
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self._wake_read:
                    with contextlib.suppress(BlockingIOError):
                        os.read(fd, 4096)
                    self._reap()
                elif (order := launch.take(self._sock, launch.ORDERS)) is not None:
                    assert isinstance(order[0], launch.Fork)
                    self._fork(order[0].seat, order[1])
                else:
                    os._exit(0)

    def _fork(self, seat: launch.Seat, fds: list[int]) -> None:
        try:
            if len(fds) != 2:
                raise OSError("the nursery has no file descriptor left")
            pid = os.fork()
        except OSError as e:
            launch.send(self._sock, launch.Refused(seat.key, e.strerror or str(e)))
        else:
            if pid == 0:
                self._become_worker(seat, *fds)
            self._workers.add(pid)
            pidfds: list[int] = []
            with contextlib.suppress(OSError):
                pidfds.append(os.pidfd_open(pid))  # it cannot be another's: only this process reaps it
            launch.send(self._sock, launch.Forked(seat.key, pid), pidfds)
            fds += pidfds
        for fd in fds:
            os.close(fd)

    def _become_worker(self, seat: launch.Seat, pipe: int, printed: int) -> NoReturn:
        try:
            kernel.set_name("zoo-standby")
            os.setsid()  # a process group of its own: what it starts is killed with it
            process.die_with(pipe, group=True)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            process.outlive_drain()
            process.volunteer()
            kernel.become_subreaper()  # what its adapter orphans stays its own, and comes to the nursery at its end
            self._sock.close()
            for fd in (self._pipe, self._wake_read, self._wake_write):
                os.close(fd)
            for stream in (1, 2):
                os.dup2(printed, stream)
            os.close(printed)
            importlib.import_module(WORKER).main(seat)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)

    def _reap(self) -> None:
        ended: list[tuple[int, int]] = []
        with contextlib.suppress(ChildProcessError):
            while (one := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                pid = one.si_pid
                if pid in self._workers:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.killpg(pid, signal.SIGKILL)  # before it is reaped: until then the number is its own
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                if pid in self._workers:
                    self._workers.discard(pid)
                    ended.append((pid, status))
        self._end_orphans()
        for pid, status in ended:
            launch.send(self._sock, launch.Ended(pid, status))

    def _end_orphans(self) -> None:
        """What a worker that has ended leaves behind in sessions of its own: every child here that is no worker."""
        with contextlib.suppress(OSError):
            for pid in kernel.children():
                if pid not in self._workers:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, signal.SIGKILL)
