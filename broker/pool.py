"""The processes: starting them from the nursery, killing them, and learning that they are gone.

Starting goes through the standard library's forkserver, which blocks until the nursery has forked: seconds while
the nursery still imports its libraries. So one thread of its own does nothing but start processes, and tells the
loop through an eventfd. Killing and reaping are the loop's.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import queue
import signal
import threading
from collections import deque
from multiprocessing import forkserver
from multiprocessing.popen_forkserver import Popen
from pathlib import Path

import msgspec

from zoo import launch

log = logging.getLogger("zoo.pool")

BY_SIGKILL = "killed by SIGKILL"  # as `Child.reap` says it


class Child:
    """A worker's process. `sentinel` becomes readable when it has ended."""

    __slots__ = ("_popen", "pid", "pidfd", "sentinel")

    def __init__(self, popen: Popen) -> None:
        self._popen = popen
        self.pid: int = popen.pid
        self.sentinel: int = popen.sentinel
        try:
            self.pidfd = os.pidfd_open(self.pid)
        except OSError:
            self.pidfd = -1  # it has ended already

    def signal(self, number: int) -> None:
        """To the whole process group, so that what the adapter started goes too."""
        if self.pidfd < 0:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def reap(self) -> str | None:
        """How it ended, in words; None while it lives."""
        code = self._popen.poll()
        if code is None:
            return None
        if code < 0:
            try:
                name = signal.Signals(-code).name
            except ValueError:
                name = str(-code)
            return f"killed by {name}"
        return "its nursery ended" if code == 255 else f"exit status {code}"

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # grandchildren that outlived it
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
        if self._popen.finalizer is not None:
            self._popen.finalizer()  # closes the sentinel


class Pool:
    """Starts workers.

    Attributes:
        started: (key of its seat, Child or the reason why not), filled by the thread; `fileno()` becomes readable.
    """

    def __init__(self, preload: list[str]) -> None:
        self.started: deque[tuple[bytes, Child | str]] = deque()
        self._preload = preload
        self._closing = False
        self._wanted: queue.SimpleQueue[launch.Seat | None] = queue.SimpleQueue()
        self._news = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._context = multiprocessing.get_context("forkserver")
        self._thread = threading.Thread(target=self._run, name="starter", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        return self._news

    def start(self, seat: launch.Seat) -> None:
        self._wanted.put(seat)

    def take_started(self) -> list[tuple[bytes, Child | str]]:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._news)
        taken = []
        while self.started:
            taken.append(self.started.popleft())
        return taken

    def close(self) -> None:
        """Ends the thread and the nursery, whatever that is doing: it may be importing for seconds."""
        self._closing = True
        self._kill_nursery()  # the thread may be waiting for it
        self._wanted.put(None)
        self._thread.join(timeout=5.0)
        os.close(self._news)

    def _kill_nursery(self) -> None:
        """And with it whoever it has forked since somebody looked."""
        nursery: int | None = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
        if nursery is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(nursery, signal.SIGKILL)

    # ------------------------------------------------------------ in the thread

    def _run(self) -> None:
        self._open_nursery()
        while (seat := self._wanted.get()) is not None:
            outcome: Child | str
            try:
                process = self._context.Process(
                    target=launch.enter,
                    args=(launch.WORKER_MODULE, msgspec.msgpack.encode(seat)),
                    name="worker",
                )
                outcome = Child(Popen(process))
            except Exception as e:
                if self._closing:
                    break
                log.exception("cannot start a process")
                outcome = f"no process could be started: {type(e).__name__}: {e}"
            self.started.append((seat.key, outcome))
            os.eventfd_write(self._news, 1)
        self._kill_nursery()  # it may have been started since
        forkserver._forkserver._stop()  # type: ignore[attr-defined]

    def _open_nursery(self) -> None:
        """Starts the forkserver now, so that its imports are done when the first model is wanted."""
        here = str(Path(launch.__file__).resolve().parent.parent)
        paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
        given = {
            "ZOO_NURSERY_OF": str(os.getpid()),
            "ZOO_PRELOAD": ",".join(self._preload),
            "PYTHONPATH": os.pathsep.join(paths),
        }
        before = {key: os.environ.get(key) for key in given}
        os.environ.update(given)
        try:
            forkserver.set_forkserver_preload([launch.NURSERY_MODULE])
            forkserver.ensure_running()
        except Exception:
            log.exception("the nursery could not be started")
        finally:
            for key, value in before.items():
                if value is None:
                    os.environ.pop(key, None)
                else:
                    os.environ[key] = value
