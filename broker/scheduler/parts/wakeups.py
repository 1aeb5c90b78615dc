"""What becomes due as time passes: deadlines, loads and batches that take too long, idle workers, batching windows."""

from __future__ import annotations

import math
from dataclasses import dataclass

from broker.scheduler.events import Tick
from broker.scheduler.parts.answering import Answers
from broker.scheduler.parts.dispatch import Dispatcher
from broker.scheduler.parts.failures import Failures
from broker.scheduler.parts.holding import Holding
from broker.scheduler.registry import Registry
from broker.scheduler.state import Entry, Model
from broker.scheduler.state.timers import BATCH, DEADLINE, GRACE, LOOK, WATCH


@dataclass
class Wakeups:
    """See the module's docstring."""

    _r: Registry
    _answers: Answers
    _holding: Holding
    _failures: Failures
    _dispatch: Dispatcher

    def next(self) -> float | None:
        """When a Tick is due at the latest, or None."""
        return self._r.timers.next(self._stale)

    def _stale(self, entry: Entry) -> bool:
        """What it was made for is over, or has got another moment."""
        when, due, key = entry
        if due == DEADLINE:
            return key not in self._r.requests
        worker = self._r.workers.get(key)
        if worker is not None:
            return when != (worker.watch_at if due == WATCH else worker.leaves_at if due == BATCH else worker.idle_at)
        return due != GRACE and (due != LOOK or when != self._r.look_at)  # else its worker is gone

    def tick(self, _: Tick) -> None:
        r = self._r
        lost: dict[Model, None] = {}
        while (entry := r.timers.pop_due(r.now)) is not None:
            if self._stale(entry):
                continue
            _when, due, key = entry
            if due == DEADLINE:
                request = r.requests[key]
                self._answers.expire(request)
                lost[request.model] = None
            elif due == LOOK:
                r.look_at = math.inf
            elif due != GRACE:
                self._wake(due, key)
        for model in lost:
            self._holding.tell_unwanted(model)

    def _wake(self, due: int, number: int) -> None:
        """A worker's timer, which is armed no more."""
        worker = self._r.workers[number]
        if due == WATCH:
            worker.watch_at = math.inf
            self._failures.watch(worker)
        elif due == BATCH:
            worker.leaves_at = math.inf
            self._r.touched[worker.model] = None
        else:
            worker.idle_at = math.inf
            if (again := self._holding.idle_for_long(worker)) is not None:
                self._dispatch.arm_idle(worker, again)
