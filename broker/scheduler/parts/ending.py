"""The end: nothing new is taken, what runs gets its time, then every request is answered and every worker killed."""

from __future__ import annotations

from dataclasses import dataclass

from broker.scheduler.events import KillWorker, Kind, ShutDown, Stop
from broker.scheduler.parts.answering import Answers
from broker.scheduler.registry import Lifetime, Registry
from broker.scheduler.state import End, Move, Phase, peaks
from broker.scheduler.state.timers import GRACE


@dataclass
class WindingDown:
    """`grace_ends`: when what runs has had its time."""

    _r: Registry
    _answers: Answers
    grace_ends: float = 0.0

    def shut_down(self, e: ShutDown) -> None:
        r = self._r
        grace = peaks.known_seconds(e.grace) or 0.0
        if r.stopping:  # told again: sooner, never later
            if r.now + grace < self.grace_ends:
                self._set_grace(grace)
            return
        r.stage = Lifetime.STOPPING
        r.tell("", "stopping", seconds=grace)
        self._set_grace(grace)
        for request in list(r.requests.values()):
            model = request.model
            served = model.primary.answers and request.queue is not model.later
            if request.kind is not Kind.INFER or not served:
                self._answers.turn_away(request)
        for worker in list(r.workers.values()):
            worker.short = []
            if worker.phase is Phase.YIELDING:  # no model waits for its room any more
                r.move(worker, Move.RESUME)
            r.touched[worker.model] = None

    def _set_grace(self, grace: float) -> None:
        self.grace_ends = self._r.now + grace
        self._r.timers.add(self.grace_ends, GRACE)

    def wind_down(self) -> None:
        """The rule of the end."""
        r = self._r
        if r.stage is Lifetime.STOPPING and not (r.requests and r.now < self.grace_ends):
            self._kill_all()
        if r.stage is Lifetime.KILLED and not r.workers:
            r.stage = Lifetime.STOPPED
            r.out.append(Stop())

    def _kill_all(self) -> None:
        r = self._r
        r.stage = Lifetime.KILLED
        for request in list(r.requests.values()):
            self._answers.turn_away(request)
        for worker in list(r.workers.values()):
            if worker.phase is not Phase.ENDING:
                worker.model.ends[End.SHUTDOWN] += 1
                r.move(worker, Move.KILL)
                r.out.append(KillWorker(worker.number))
        for model in r.models.values():
            model.leases.clear()
        r.leases.clear()
        for key, session in list(r.sessions.items()):
            session.leases.clear()
            self._answers.forget_empty(key, session)
