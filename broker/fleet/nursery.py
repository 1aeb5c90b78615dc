"""One life of the nursery, as the broker sees it: a process at the other end of a socket, and what it has said.

It is started with nothing but an inherited descriptor: no name in a file system, nothing of this process's environment
that is not handed to it (`environment.py`), and a working directory that is held by descriptor (the configuration's
folder, or `/`). So it is started again in the very same way. The broker sends it a seat and two pipes; it answers with
a process id and a pidfd, and later with the exit status.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence

import msgspec

from broker.fleet.printed import Printed
from zoo.system import program
from zoo.wire import launch

log = logging.getLogger("zoo.nursery")

MOST_UNANSWERED = 16  # forks in its socket; all others wait here


class Nursery:
    """Started when it is made, which may raise OSError and then leaves nothing behind.

    Attributes:
        printed: what it prints.
        importing: the module that it is importing; "" before the first and after the last.
        prepared: all imports are done, forks are answered at once.
        unfit: (module, why) if it has said that it must not import that one.
        since: when it last began or finished something (monotonic seconds).
        sent: forks that it has not answered.
        alive: it has not been seen to end.
        hung: it was killed because it did.
    """

    def __init__(self, modules: list[str], environment: dict[str, str], folder: int, now: float) -> None:
        self.importing = ""
        self.prepared = False
        self.unfit: tuple[str, str] | None = None
        self.since = now
        self.sent: set[bytes] = set()
        self.alive = True
        self.hung = False
        with contextlib.ExitStack() as short, contextlib.ExitStack() as kept:
            self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            kept.callback(self.sock.close)
            short.callback(theirs.close)
            self.sock.setblocking(False)
            pipe, self._pipe = os.pipe2(os.O_CLOEXEC)  # only writer: see `workers.process.die_with`
            kept.callback(os.close, self._pipe)
            short.callback(os.close, pipe)
            printed, output = os.pipe2(os.O_CLOEXEC)
            self.printed = Printed(printed, log, lambda: ("", 0))
            kept.callback(self.printed.close)
            short.callback(os.close, output)
            os.set_blocking(printed, False)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", launch.NURSERY, str(theirs.fileno()), *_paths()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                cwd="/",
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
            self.pid = self._process.pid
            kept.callback(self._reap)
            self.pidfd = os.pidfd_open(self.pid)
            kept.callback(os.close, self.pidfd)
            launch.send(self.sock, launch.Prepare(tuple(modules)), [pipe, folder])
            kept.pop_all()

    @property
    def has_memory(self) -> bool:
        """False from the moment that the kernel takes its memory down, which is before the process counts as ended."""
        if not self.alive:
            return False
        try:
            with open(f"/proc/{self.pid}/statm", "rb") as file:
                return int(file.read().split()[0]) > 0
        except (OSError, ValueError, IndexError):
            return False

    @property
    def takes_more(self) -> bool:
        return self.prepared and len(self.sent) < MOST_UNANSWERED

    def fork(self, seat: launch.Seat, ends: Sequence[int], now: float) -> bool:
        """Asks for a worker, with its ends of its pipes. False when that cannot be sent now."""
        try:
            launch.send(self.sock, launch.Fork(seat), ends)
        except OSError:
            return False
        if not self.sent:
            self.since = now
        self.sent.add(seat.key)
        return True

    def hear(self, now: float) -> tuple[launch.FromNursery, list[int]] | None:
        """The next thing that it has said; None when there is nothing, or never will be.

        Raises:
            EOFError: it has closed its end, or said what makes no sense.
        """
        try:
            report = launch.take(self.sock, launch.REPORTS)
        except BlockingIOError:
            return None
        except (OSError, msgspec.DecodeError) as e:
            raise EOFError(str(e)) from None
        if report is None:
            raise EOFError
        self.since = now
        match report[0]:
            case launch.Importing(module):
                self.importing = module
            case launch.Prepared():
                self.importing, self.prepared = "", True
            case launch.Unfit(module, why):
                self.unfit = (module, why)
            case launch.Forked(key) | launch.Refused(key):
                self.sent.discard(key)
        return report

    def kill(self) -> None:
        """It ends now, and is reaped later."""
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def end(self) -> int:
        """Ends it, if need be, reaps it and gives its descriptors back. Its exit status, negative for a signal."""
        status = self._reap()
        self.alive = False
        self.printed.finish()
        self.sock.close()
        os.close(self._pipe)
        os.close(self.pidfd)
        return status

    def _reap(self) -> int:
        self._process.kill()
        return self._process.wait()


def _paths() -> list[str]:
    """Where modules are found here, as absolute names: the nursery has another working directory."""
    paths = []
    for path in sys.path:
        with contextlib.suppress(OSError):  # relative, in a folder that was removed
            paths.append(os.path.abspath(path))
    here = program.ROOT
    return list(dict.fromkeys(paths if here in paths else [*paths, here]))
