"""All workers' processes by number and by key, and the reserve: as many wait for a model as is configured."""

from __future__ import annotations

import itertools
import time

from broker.core import Core
from broker.fleet.pool import Pool
from broker.fleet.process import WorkerProcess, new_key
from broker.fleet.standby import Standby
from broker.front.handoff import Handoff
from zoo.wire.launch import Seat

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
        return len(self._standby) < self._core.config.broker.standby

    def refill(self) -> None:
        """Sees to it that as many wait as should. Not while a model is loading: a fork would slow that."""
        scheduler = self._core.scheduler
        if scheduler.stopping or scheduler.is_loading():
            return
        wanted = self._core.config.broker.standby
        for _ in range(self._standby.lacks(wanted, time.monotonic())):
            self._standby.add(self._fork().number)
        while len(self._standby) > wanted and (number := self._standby.take()) is not None:
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
