"""The processes: started by the nursery, killed, and known to be gone.

Nothing here waits: requests and answers are packets on the nursery's socket, ends are descriptors that become readable.
What follows is told as `news()`, which `fileno()` announces.

Theory of operation. The nursery is the workers' parent: it reaps them and says how they ended. When it has died, they
are this process's children (it is a subreaper, as the nursery is) and reaped here; a new nursery is started in the same
way, at once the first time and then after a pause that doubles up to a minute. Starts wait until it is prepared. A
start that was in its hands when it died is given back as `Lost`, to be made again under another name: it is no failed
load. Every worker holds the read end of a pipe whose only writer is here: closing that, as this process's end does, has
the kernel kill its whole process group.

A module whose import has ended the nursery, has taken too long, or has started a thread is left out of the next
preload. A user's own adapter is never preloaded: each process imports its file as it is then. What an adapter leaves in
a session of its own is found and ended when its worker has ended; only if broker and nursery are killed together may it
live on.

The nursery is ours, because process life is what this project is for. The standard library's forkserver was tried
first: its socket lies in a temporary folder, one refused `fork` ends it and every worker with it, and when it has died
it is started again without its environment. Here a refused fork is that start's failure alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import time
from collections import Counter, deque
from pathlib import Path
from typing import NamedTuple

import msgspec

from broker.fleet.nursery import Nursery
from broker.fleet.printed import Printed
from broker.loop import Loop
from zoo.system import kernel
from zoo.wire import launch

log = logging.getLogger("zoo.pool")
worker_log = logging.getLogger("zoo.worker")

BY_SIGKILL = "killed by SIGKILL"  # as `Child.reap` says it
IMPORT_LIMIT_S = 120.0  # for one module
ANSWER_LIMIT_S = 15.0  # for a fork, or the news of an end, once prepared
STEADY_S = 30.0  # a nursery that has lived for so long is started again at once
PAUSE_FIRST_S, PAUSE_MOST_S = 1.0, 60.0
FAILURES_MOST = 3  # nurseries in a row that were never prepared: then starts fail, not wait
KILLED_BY_CHANCE = (signal.SIGKILL, signal.SIGTERM)  # by the kernel for want of memory, by an operator
BURST = 64
END_LIMIT_S = 3.0
UNKNOWN = -1000  # no exit status: its parent was gone


class Child(msgspec.Struct, eq=False):
    """A worker's process.

    Attributes:
        pidfd: -1 when there was no descriptor for one.
        pipe: the only writer of its lifeline's pipe: see the module's docstring.
        code: its exit status, once known.
        gone_at: when it was seen to have ended (monotonic seconds); 0: it was not.
        printed: what it prints.
    """

    key: bytes
    pid: int
    pidfd: int
    pipe: int
    printed: Printed
    nursery: Nursery
    code: int | None = None
    gone_at: float = 0.0

    @property
    def shares_pages(self) -> bool:
        """The nursery that it was forked from still has the pages of both. Without that they count as its own."""
        return self.nursery.has_memory

    def signal(self, number: int, *, group: bool = True) -> None:
        """To the whole process group by default, so that what the adapter started goes too."""
        if self.code is not None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self.pidfd >= 0:
                signal.pidfd_send_signal(self.pidfd, number)
            else:
                os.kill(self.pid, number)  # it is not reaped, or was in this very moment
            if group:
                os.killpg(self.pid, number)

    def has_ended(self) -> bool:
        """Also when it is not known yet how."""
        return self.code is not None or (self.pidfd >= 0 and _is_readable(self.pidfd))

    def reap(self) -> str | None:
        """How it ended, in words; None until that is known."""
        if self.code is None:
            return None
        return "ended together with the nursery" if self.code == UNKNOWN else _how(self.code)

    def close(self) -> None:
        """Ends it, if need be, and gives its descriptors back. What it printed is logged."""
        self.printed.finish()
        for fd in (self.pipe, self.pidfd):
            if fd >= 0:
                os.close(fd)
        self.pipe = self.pidfd = -1


class Started(NamedTuple):
    """A worker runs."""

    key: bytes
    child: Child


class Failed(NamedTuple):
    """No worker could be started for this seat."""

    key: bytes
    why: str


class Lost(NamedTuple):
    """The nursery died while it was to fork this one: nothing of it is left, and it is not the start's fault."""

    key: bytes


class Exited(NamedTuple):
    """A worker has ended; `reap` says how. The child is to be closed."""

    child: Child


News = Started | Failed | Lost | Exited


class _Start:
    """The pipes of a worker that is yet to be forked. `theirs` are the ends that it gets."""

    def __init__(self) -> None:
        read, self.pipe = os.pipe2(os.O_CLOEXEC)
        try:
            self.output, write = os.pipe2(os.O_CLOEXEC)
        except OSError:
            os.close(read)
            os.close(self.pipe)
            raise
        os.set_blocking(self.output, False)
        self.theirs: tuple[int, ...] = (read, write)

    def hand_over(self) -> None:
        """The other side has its ends."""
        for fd in self.theirs:
            os.close(fd)
        self.theirs = ()

    def close(self) -> None:
        """And with it whatever has been forked: the kernel kills it."""
        self.hand_over()
        os.close(self.pipe)
        os.close(self.output)


class Pool:
    """Starts workers.

    Args:
        modules: to be imported in the nursery.
        environment: of nursery and workers, all of it.
        folder: where they work; "/" if it goes away.

    Attributes:
        left_out: modules that the nursery does not import, and why; the workers that need them import them.
    """

    def __init__(self, loop: Loop, modules: list[str], environment: dict[str, str], folder: Path) -> None:
        self._loop = loop
        self.left_out: dict[str, str] = {}
        self._modules = modules
        self._mark = f"{os.getpid()}-{os.urandom(8).hex()}"
        self._environment = {**environment, launch.MARK: self._mark}
        self._suspects: Counter[str] = Counter()
        self._nursery: Nursery | None = None
        self._closing = False
        self._began = 0.0
        self._pause = 0.0
        self._again_at = 0.0
        self._failures = 0
        self._failure = ""
        self._waiting: deque[launch.Seat] = deque()
        self._starting: dict[bytes, _Start] = {}
        self._children: dict[int, Child] = {}
        self._news: list[News] = []
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self._folder = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            self._folder = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        if not kernel.become_subreaper():
            log.warning("the kernel makes no subreaper of the broker: how a worker ended may stay unknown")
        self._open_nursery()

    def fileno(self) -> int:
        """Readable when there is news."""
        return self._wake

    def start(self, seat: launch.Seat) -> None:
        """`Started`, `Failed` or `Lost` follows."""
        self._waiting.append(seat)
        self._send_waiting()

    def cancel(self, key: bytes) -> None:
        """Has a start that still waits fail. One that is in the nursery's hands comes, and has to be killed."""
        for seat in self._waiting:
            if seat.key == key:
                self._waiting.remove(seat)
                self._tell(Failed(key, "it was ended before it was forked"))
                return

    def news(self) -> list[News]:
        """What has happened, in order."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        news, self._news = self._news, []
        return news

    def watch(self, now: float) -> None:
        """To be called every second or so: starts the nursery again, ends one that hangs."""
        nursery = self._nursery
        if nursery is None:
            if now >= self._again_at:
                self._open_nursery()
        elif not nursery.hung and self._hangs(nursery, now):
            nursery.hung = True
            nursery.kill()
        if nursery is not None:
            nursery.printed.tell_dropped()
        for child in list(self._children.values()):
            child.printed.tell_dropped()
            if child.pidfd < 0 and not child.nursery.alive:
                self._collect(child)
        self._end_orphans()
        self._send_waiting()

    def close(self) -> None:
        """Ends the nursery, whatever that is doing, and all workers, and does not return before they are gone (3 s)."""
        self._closing = True
        for child in self._children.values():
            child.signal(signal.SIGKILL)
        if self._nursery is not None:
            self._nursery.kill()
            self._nursery_ended()
        end = time.monotonic() + END_LIMIT_S
        poll = select.poll()
        for child in self._children.values():
            if child.pidfd >= 0:
                poll.register(child.pidfd, select.POLLIN)
        while self._children and (left := end - time.monotonic()) > 0:
            for fd, _ in poll.poll(left * 1000):
                poll.unregister(fd)
            for child in list(self._children.values()):
                if child.has_ended() or child.pidfd < 0:
                    self._collect(child)
        self._end_orphans()
        for child in [*self._children.values(), *(n.child for n in self._news if isinstance(n, Started | Exited))]:
            child.close()
        self._loop.forget(self._wake)
        os.close(self._wake)
        os.close(self._folder)

    # ------------------------------------------------------------ the nursery

    def _open_nursery(self) -> None:
        now = self._began = time.monotonic()
        modules = [name for name in self._modules if name not in self.left_out]
        try:
            nursery = self._nursery = Nursery(modules, self._environment, self._folder, now)
        except OSError as e:
            self._failed_nursery(f"it cannot be started: {e.strerror or e}", now)
            return
        self._loop.watch(nursery.sock.fileno(), self._hear)
        self._loop.watch(nursery.pidfd, self._nursery_ended)
        self._watch_output(nursery.printed)

    def _hear(self) -> None:
        nursery = self._nursery
        if nursery is None:
            return
        try:
            for _ in range(BURST):
                if (heard := nursery.hear(time.monotonic())) is None:
                    break
                self._heard(nursery, *heard)
        except EOFError:
            self._loop.forget(nursery.sock.fileno())
            nursery.kill()  # its end follows
        self._send_waiting()

    def _heard(self, nursery: Nursery, report: launch.FromNursery, fds: list[int]) -> None:
        match report:
            case launch.Forked(key, pid) if (start := self._starting.pop(key, None)) is not None:
                printed = Printed(start.output, worker_log, lambda: ("", 0))
                child = Child(key, pid, fds.pop() if fds else -1, start.pipe, printed, nursery)
                self._children[pid] = child
                self._watch_output(printed)
                if child.pidfd >= 0:
                    self._loop.watch(child.pidfd, lambda: self._gone(child))
                self._tell(Started(key, child))
            case launch.Refused(key, why) if (start := self._starting.pop(key, None)) is not None:
                start.close()
                self._tell(Failed(key, f"no process could be forked: {why}"))
            case launch.Ended(pid, status) if (ended := self._children.get(pid)) is not None:
                self._ended(ended, status)
            case launch.Prepared():
                self._failures = 0
        for fd in fds:
            os.close(fd)

    def _hangs(self, nursery: Nursery, now: float) -> bool:
        if not nursery.prepared:
            return now - nursery.since > IMPORT_LIMIT_S
        owed = [child.gone_at for child in self._children.values() if child.gone_at and child.nursery is nursery]
        if nursery.sent:
            owed.append(nursery.since)
        return bool(owed) and now - min(owed) > ANSWER_LIMIT_S

    def _nursery_ended(self) -> None:
        nursery, now = self._nursery, time.monotonic()
        if nursery is None:
            return
        with contextlib.suppress(EOFError):  # what it said before it ended comes before its end
            while (heard := nursery.hear(now)) is not None:
                self._heard(nursery, *heard)
        self._loop.forget(nursery.sock.fileno())
        self._loop.forget(nursery.pidfd)
        self._loop.forget(nursery.printed.fd)
        status = nursery.end()
        self._nursery = None
        self._failed_nursery(self._blame(nursery, status), now)
        for key in nursery.sent:
            if (start := self._starting.pop(key, None)) is not None:
                start.close()
                self._tell(Lost(key))
        for child in list(self._children.values()):
            if child.gone_at:
                self._collect(child)
        if not self._closing and now >= self._again_at:
            self._open_nursery()

    def _blame(self, nursery: Nursery, status: int) -> str:
        """What became of it, and of the module that it was importing."""
        how = "it gave no answer" if nursery.hung else _how(status)
        module, why = nursery.unfit or (nursery.importing, "")
        if module not in self._modules:
            return f"it has ended ({how})" + (f" while it imported {module}" if module else "")
        if not why:
            hung = f"its import takes more than {IMPORT_LIMIT_S:g} s"
            why = hung if nursery.hung else f"its import ends it ({how})"
            self._suspects[module] += 1
            if -status in KILLED_BY_CHANCE and not nursery.hung and self._suspects[module] < 2:
                return f"it has ended ({how}) while it imported {module}"
        self.left_out[module] = why
        self._began = 0.0  # with that module out of the way it may well live
        return f"it has ended: {module} is left out from now on, {why}; workers that need it import it themselves"

    def _failed_nursery(self, why: str, now: float) -> None:
        """Says so once, and when there will be another."""
        if now - self._began > STEADY_S:
            self._pause = 0.0
        self._failures += 1
        self._failure = why
        self._again_at = now + self._pause
        if not self._closing:
            again = f"in {self._pause:g} s" if self._pause else "at once"
            log.error("the nursery: %s. Another is started %s; models that are loaded go on", why, again)
        self._pause = min(PAUSE_MOST_S, max(PAUSE_FIRST_S, 2 * self._pause))

    # ------------------------------------------------------------ workers

    def _send_waiting(self) -> None:
        """Gives the nursery what it can take; without one for too long, starts fail."""
        now, nursery = time.monotonic(), self._nursery
        if self._failures >= FAILURES_MOST:
            while self._waiting:
                self._tell(Failed(self._waiting.popleft().key, f"no process could be forked: {self._failure}"))
        while self._waiting and nursery is not None and nursery.takes_more:
            seat = self._waiting[0]
            try:
                start = _Start()
            except OSError as e:
                self._tell(Failed(self._waiting.popleft().key, f"no process could be started: {e.strerror}"))
                continue
            if not nursery.fork(seat, start.theirs, now):
                start.close()
                break
            start.hand_over()
            self._starting[seat.key] = start
            self._waiting.popleft()

    def _gone(self, child: Child) -> None:
        """Its pidfd is readable: it has ended."""
        if child.nursery.alive:
            self._loop.forget(child.pidfd)
            child.gone_at = child.gone_at or time.monotonic()  # the nursery reaps it, and says how it ended
        else:
            self._collect(child)

    def _collect(self, child: Child) -> None:
        """Reaps one whose nursery has died, if it has ended."""
        status = UNKNOWN
        with contextlib.suppress(ChildProcessError):
            if os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)  # before it is reaped: until then the number is its own
            status = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
        self._ended(child, status)
        self._end_orphans()

    def _ended(self, child: Child, status: int) -> None:
        child.code = status
        del self._children[child.pid]
        self._loop.forget(child.pidfd)
        self._loop.forget(child.printed.fd)
        self._tell(Exited(child))

    def _end_orphans(self) -> None:
        """Reaps what has come to this process because its parents are gone; ends it if a worker has made it."""
        with contextlib.suppress(OSError):
            for pid in kernel.children():
                if pid not in self._children and (self._nursery is None or pid != self._nursery.pid):
                    self._end_orphan(pid)

    def _end_orphan(self, pid: int) -> None:
        with contextlib.suppress(OSError):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is None and self._is_ours(pid):
                os.kill(pid, signal.SIGKILL)

    def _is_ours(self, pid: int) -> bool:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return f"{launch.MARK}={self._mark}".encode() in file.read().split(b"\0")

    # ------------------------------------------------------------ what is watched

    def _watch_output(self, printed: Printed) -> None:
        fd = printed.fd

        def look() -> None:
            printed.read()
            if printed.fd < 0:
                self._loop.forget(fd)

        self._loop.watch(fd, look)

    def _tell(self, news: News) -> None:
        self._news.append(news)
        os.eventfd_write(self._wake, 1)


def _how(code: int) -> str:
    """A process has ended, by its exit status: negative for a signal."""
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _is_readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))
