"""Workers from their start to their end: the steps that several parts of the scheduler take.

An unload drains: what was accepted is finished, what comes meanwhile waits for the model's next process. When the
primary worker ends while another lives, that one becomes the primary, by one assignment.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from broker.scheduler.events import Answer, KillWorker, StartWorker
from broker.scheduler.parts.answering import Answers
from broker.scheduler.registry import Registry
from broker.scheduler.state import FAILURES, End, Guess, Model, Move, Phase, State, Worker
from broker.scheduler.state.timers import WATCH


@dataclass
class Lifecycle:
    """See the module's docstring."""

    _r: Registry
    _answers: Answers

    # ------------------------------------------------------------ begin

    def start(self, model: Model, device: str, *, guess: bool = False) -> None:
        """A process of the model. `guess`: it was not asked for."""
        r = self._r
        worker = Worker(model, next(r.worker_numbers), device, before=model.primary)
        model.restarts += model.ended_badly
        model.ended_badly = False
        r.ledger.charge(worker.number, model.name, device, worker.mb)
        if model.workers:
            taken = {other.name for other in model.workers}
            worker.name = next(name for n in itertools.count(2) if (name := f"{model.name}#{n}") not in taken)
        else:
            model.primary = worker
        if guess:
            model.guess = Guess.OPEN
        model.workers.append(worker)
        r.workers[worker.number] = worker
        r.move(worker, Move.START)
        worker.started_at = r.now
        self.watch(worker, r.now + r.config.load_timeout)
        r.tell(
            worker.name, "loading", device=device, worker=worker.number, mb=worker.mb, used_mb=r.ledger.used_mb(device),
            limit_mb=r.ledger.limit_mb(device), waiting=model.waiting,
        )  # fmt: skip
        r.out.append(StartWorker(worker.number, model.name, device))

    def watch(self, worker: Worker, when: float) -> None:
        """Its load, or its batch, is looked at then."""
        worker.watch_at = when
        self._r.timers.add(when, WATCH, worker.number)

    # ------------------------------------------------------------ end

    def evict(self, worker: Worker, cause: End, why: str, **details: object) -> None:
        """Ends an idle worker."""
        if worker.referenced:  # the second promise of the zoo; whatever decided this is wrong
            raise AssertionError(f"{worker.name} is in use ({worker.reasons()}) and was to be evicted")
        r, model = self._r, worker.model
        self.end(worker, Move.KILL, cause)
        model.guess = Guess.WRONG if model.guess is Guess.OPEN else Guess.NONE
        model.evictions += 1
        key = (model.name, model.config.priority.name)
        r.evictions[key] = r.evictions.get(key, 0) + 1
        unused = r.now - worker.last_used
        r.tell(
            worker.name, "evicted", mb=worker.mb, device=worker.device, unused_seconds=round(unused, 3), why=why,
            **details,
        )  # fmt: skip

    def end(self, worker: Worker, move: Move, cause: End, *, gentle: bool = False) -> None:
        """Its process has ended (`Move.EXIT`), or is killed."""
        worker.model.ends[cause] += 1
        worker.model.ended_badly = cause in FAILURES
        self._step_down(worker)
        worker.short = []
        self._r.move(worker, move)
        if move is Move.KILL:
            self._r.out.append(KillWorker(worker.number, gentle))

    def _step_down(self, worker: Worker) -> None:
        """A worker is about to end. If it is the primary of several, another takes its place."""
        model = worker.model
        heirs = [w for w in model.extras if w.state is State.LOADED or w.state is State.LOADING]
        if heirs and worker.primary and (worker.state is State.LOADED or worker.state is State.LOADING):
            self.promote(min(heirs, key=lambda w: w.state is not State.LOADED))

    def promote(self, heir: Worker) -> None:
        """Makes a worker the primary one."""
        model, before = heir.model, heir.model.primary
        model.primary = heir
        heir.name, before.name = before.name, heir.name
        self._r.tell(model.name, "first", worker=heir.number, device=heir.device)

    def drain(self, worker: Worker, why: str) -> None:
        """It takes nothing new, and ends when it is through. With the primary worker, the extra ones go."""
        worker.short = []
        if worker.primary:
            self.end_extras(worker.model, 0, why)
        self._r.move(worker, Move.DRAIN)
        self._r.tell(worker.name, "draining", why=why, reasons=worker.reasons())

    def end_extras(self, model: Model, keep: int, why: str) -> None:
        """Extra workers, but for `keep` of them, finish what they run, and go."""
        for extra in model.extras[max(0, keep) :]:
            if extra.state is State.LOADED:
                self.drain(extra, why)
            else:
                self.condemn(extra)

    def condemn(self, worker: Worker) -> None:
        """A load that goes on, though its model is to be unloaded, or replaced."""
        if worker.phase is Phase.LOADING:
            self._r.move(worker, Move.CONDEMN)

    def keep(self, model: Model) -> None:
        """It was to go, and is pinned now."""
        self._r.move(model.primary, Move.KEEP)
        self._answers.refuse_unloads(model)
        self._next_process(model)
        self._answers.grant_waiting(model)

    def _next_process(self, model: Model) -> None:
        """What came while the model drained may be served now."""
        for request in model.later.all():
            model.later.drop(request)
            model.queue.push(request)

    def gone(self, number: int) -> None:
        """The memory of an ended process is back, or written off: its life is over."""
        r = self._r
        worker = r.workers.pop(number)
        model = worker.model
        r.move(worker, Move.FREED)
        model.workers.remove(worker)
        if worker.primary:
            if not model.leases:  # leases outlive a crash, and so does what they asked for
                model.keep_alive = None
            if model.guess is Guess.OPEN:  # it crashed, or ran out of memory: no reason for another guess
                model.guess = Guess.WRONG
            self._next_process(model)
            if model.workers:  # none of which is to stay
                self.promote(model.workers[0])
                if model.primary.state is State.DRAINING and model.primary.held:
                    self.keep(model)
        if not model.workers:
            for request in list(model.unloads):
                self._answers.finish(request, Answer(request.id, True))
