"""All workers' processes by number and by key, and the reserve: as many wait for a model as is configured.

Every worker is forked before it is told its model, by one message on its channel. So one that waits and one that has to
be forked first are the same thing, only further on. A process that waits takes 26 to 31 ms off each start, whatever the
model: the fork, its lifeline and its channel. It has run no tensor operation and opened no device, and has about 2 MB
to itself, which no model is charged: `standby` is 1 by default. Tried and left: mapping the libraries' pages ahead in
it. That takes 0.2 s, saves at most 0.04 s of the load, and 2.4 GB of shared pages then count as that process's own.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections import deque

import msgspec

from broker.core import Core
from broker.fleet.pool import Child, Pool
from broker.front.handoff import Handoff, LifelineEnd
from zoo.wire.channel import Channel
from zoo.wire.launch import Launch, Seat


def new_key() -> bytes:
    return b"w-" + os.urandom(12)


class WorkerProcess(msgspec.Struct, eq=False):
    """A process that runs a model, or waits for one.

    Attributes:
        number: the scheduler's; negative while it waits to be given a model.
        key: the name under which it was forked, and attaches its lifeline.
        version: of the model's weights when it was started.
        copied: it was given a copy, and has not said yet whether that was of use.
        forks: how often the nursery was asked for it.
        held: messages of it that wait until it was measured, the first of them what it is measured for.
        told: it has been sent `launch`.
        loaded: it has said how its load went.
        nonsense: it has said what none of ours would say; it is being killed, and not listened to any more.
        unsent: it is slow to read, and something waits to be sent.
        worked: it has run a request.
        killed_at: when it was told to end (monotonic seconds); 0: it was not.
        term_until: until then it may end by itself after SIGTERM.
    """

    number: int
    key: bytes = msgspec.field(default_factory=new_key)
    model: str = ""
    device: str = ""
    version: str = ""
    launch: Launch | None = None
    forks: int = 1
    child: Child | None = None
    channel: Channel | None = None
    line: LifelineEnd | None = None
    arena: int = 0
    held: list[list[bytes]] = []
    copied: bool = False
    told: bool = False
    loaded: bool = False
    stand_in: bool = False
    nonsense: bool = False
    unsent: bool = False
    worked: bool = False
    killed_at: float = 0.0
    term_until: float = 0.0

    def kill(self) -> None:
        """Ends it at once; if it is only being forked, as soon as it exists."""
        self.killed_at = self.killed_at or time.monotonic()
        if self.child is not None:
            self.child.signal(signal.SIGKILL)


PAUSE_FIRST_S, PAUSE_MOST_S = 1.0, 60.0


class Standby:
    """`waiting`: the numbers of the processes that wait, oldest first."""

    def __init__(self) -> None:
        self.waiting: deque[int] = deque()
        self._pause = PAUSE_FIRST_S
        self._not_before = 0.0

    def lacks(self, wanted: int, now: float) -> int:
        """How many to fork: none for a while after one has died unused, or the machine would do nothing else."""
        return max(0, wanted - len(self.waiting)) if now >= self._not_before else 0

    def take(self) -> int | None:
        """The process that has waited for longest, not to be handed out again; None when none waits."""
        return self.waiting.popleft() if self.waiting else None

    def used(self) -> None:
        """One was given a model: whatever was wrong is over."""
        self._pause = PAUSE_FIRST_S

    def lost(self, number: int, now: float) -> None:
        """One has died unused: the next is forked after a pause that doubles each time."""
        if number in self.waiting:
            self.waiting.remove(number)
        self._not_before = now + self._pause
        self._pause = min(2 * self._pause, PAUSE_MOST_S)


FORKS_MOST = 3  # for one worker, when nurseries die of them or just then


class Roster:
    """See the module's docstring."""

    def __init__(self, core: Core, pool: Pool, handoff: Handoff) -> None:
        self.by_number: dict[int, WorkerProcess] = {}
        self.by_key: dict[bytes, WorkerProcess] = {}
        self._core = core
        self._pool = pool
        self._handoff = handoff
        self._standby = Standby()
        self._forked = itertools.count(1)

    @property
    def is_short(self) -> bool:
        return len(self._standby.waiting) < self._core.config.broker.standby

    def refill(self) -> None:
        """Sees to it that as many wait as should. Not while a model is loading: a fork would slow that."""
        scheduler = self._core.scheduler
        if scheduler.stopping or scheduler.is_loading():
            return
        wanted = self._core.config.broker.standby
        for _ in range(self._standby.lacks(wanted, time.monotonic())):
            self._standby.waiting.append(self._fork().number)
        while len(self._standby.waiting) > wanted and (number := self._standby.take()) is not None:
            self.end(self.by_number[number])

    def employ(self, number: int) -> WorkerProcess:
        """A process for the scheduler's worker of that number: one that waits, however far it is, or else a new one."""
        while (waiting := self._standby.take()) is not None:
            worker = self.by_number[waiting]
            if worker.child is None or not worker.child.has_ended():  # the news of its end may be on the way to us
                self._standby.used()
                break
        else:
            worker = self._fork()
        self.by_number[number] = self.by_number.pop(worker.number)
        worker.number = number
        return worker

    def lost(self, worker: WorkerProcess) -> None:
        """It has ended, or could not be started, before it was given a model."""
        self._standby.lost(worker.number, time.monotonic())

    def fork_again(self, worker: WorkerProcess) -> None:
        """Under another name: whatever the first fork has brought about is dead, and its name with it."""
        worker.told = worker.loaded = False
        worker.forks += 1
        del self.by_key[worker.key]
        worker.key = new_key()
        self.by_key[worker.key] = worker
        self._start(worker)

    def end(self, worker: WorkerProcess) -> None:
        """Ends it at once, or has its start fail while it waits for the nursery."""
        worker.kill()
        if worker.child is None:
            self._pool.cancel(worker.key)  # if it is too late for that, it is killed as soon as it exists

    def remove(self, worker: WorkerProcess) -> None:
        self.by_number.pop(worker.number, None)
        self.by_key.pop(worker.key, None)

    def _fork(self) -> WorkerProcess:
        worker = WorkerProcess(-next(self._forked))
        self.by_number[worker.number] = worker
        self.by_key[worker.key] = worker
        self._start(worker)
        return worker

    def _start(self, worker: WorkerProcess) -> None:
        self._pool.start(Seat(worker.key, self._handoff.path, self._handoff.limit))
