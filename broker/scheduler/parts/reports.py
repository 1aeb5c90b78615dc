"""What workers report, and what is seen of them: loaded, through with a batch, ended, memory back.

The late words of a worker that is gone, or of a load that was given up, change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from broker.scheduler.events import (
    Deliver,
    Finished,
    MemoryBack,
    MemoryShort,
    MemoryStuck,
    Settled,
    WorkerDone,
    WorkerExited,
    WorkerLoadFailed,
    WorkerReady,
    WorkerSaid,
)
from broker.scheduler.parts.answering import Answers
from broker.scheduler.parts.failures import Failures
from broker.scheduler.parts.lifecycle import Lifecycle
from broker.scheduler.parts.shortages import Shortages
from broker.scheduler.registry import Registry
from broker.scheduler.state import End, Move, Phase, Request, State, Worker
from zoo.errors import BY_CODE
from zoo.timings import Timings

Spent = tuple[float, float, float, float]  # the moment when the worker began; seconds of reading, running, packing


@dataclass
class Reports:
    """See the module's docstring."""

    _r: Registry
    _answers: Answers
    _lifecycle: Lifecycle
    _failures: Failures
    _shortages: Shortages

    # ------------------------------------------------------------ loads

    def ready(self, e: WorkerReady) -> None:
        r, worker = self._r, self._r.workers.get(e.worker)
        if worker is None or worker.state is not State.LOADING:
            return
        model, condemned = worker.model, worker.phase is Phase.CONDEMNED
        r.move(worker, Move.READY)
        if model.primary.state is State.LOADING:  # this one was started later, and is there sooner
            self._lifecycle.promote(worker)
        worker.max_batch = max(1, e.max_batch)
        model.config.available = True
        model.failures.clear()
        r.doubts.loaded(worker.device)
        model.loads += 1
        worker.loaded_at = worker.last_used = r.now
        worker.watch_at = float("inf")
        worker.load_seconds = r.now - worker.started_at
        model.least_load_s = min(model.least_load_s, worker.load_seconds)
        r.tell(worker.name, "loaded", worker=worker.number, seconds=round(worker.load_seconds, 3), mb=worker.mb)
        if worker.primary:
            self._answers.grant_waiting(model)
        if condemned and not worker.held:
            self._lifecycle.drain(worker, "unload was asked for while it was loading")
        elif worker.primary:
            self._answers.refuse_unloads(model)

    def load_failed(self, e: WorkerLoadFailed) -> None:
        worker = self._r.workers.get(e.worker)
        if worker is None or worker.state is not State.LOADING:
            return
        if e.short is not None:
            self._shortages.load_ran_out(worker, e.short, e.message, Move.KILL)
        else:
            self._failures.fail_load(worker, e.code, e.message, Move.KILL, retryable=e.retryable)

    # ------------------------------------------------------------ work

    def done(self, e: WorkerDone) -> None:
        """A batch is through."""
        r, worker = self._r, self._r.workers.get(e.worker)
        if worker is None or not worker.runs(e.outcomes):
            return  # else it answers a batch that was not sent
        now, model, batch = r.now, worker.model, worker.inflight
        size = len(batch)
        spent = _spent(worker, batch[0], e.seconds, now)
        worker.inflight, worker.ahead = worker.ahead, []
        r.running -= size
        worker.took((now - worker.dispatched_at) / size)
        worker.dispatched_at = worker.last_used = now
        worker.requests += size
        model.requests += size
        r.touched[model] = None
        if e.halved:
            self._shortages.smaller_batches(worker, size)
        elif worker.batch_limit.most:
            self._shortages.batch_went_well(worker, size)
        for request, outcome in zip(batch, e.outcomes, strict=True):
            self._answer(worker, request, outcome, spent)
        r.usage_changed()

    def _answer(self, worker: Worker, request: Request, outcome: Finished, spent: Spent) -> None:
        if not request.running:  # answered long ago (deadline, cancel, client gone)
            self._r.out.append(Settled(request.id, worker.number, outcome.body))
        elif outcome.error is None:
            timings = _timings(worker, request, spent, self._r.now)
            self._answers.finish(request, Deliver(request.id, outcome.body, worker.number, timings))
        elif outcome.short is not None:
            self._shortages.request_ran_out(worker, request, outcome.short, outcome.error[1])
        else:
            code = outcome.error[0] if outcome.error[0] in BY_CODE else "inference_failed"
            self._answers.refuse(request, code, outcome.error[1])

    def said(self, e: WorkerSaid) -> None:
        worker = self._r.workers.get(e.worker)
        for request in worker.inflight if worker is not None else ():
            if request.id == e.request:
                request.digest = e.digest

    # ------------------------------------------------------------ ends

    def exited(self, e: WorkerExited) -> None:
        r, worker = self._r, self._r.workers.get(e.worker)
        if worker is None:
            return
        batch, ahead = worker.inflight, worker.ahead
        worker.inflight, worker.ahead = [], []
        r.running -= len(batch)
        self._answers.take_back(worker, ahead)
        r.touched[worker.model] = None
        if worker.state is State.LOADING and e.starved:
            self._shortages.load_ran_out(worker, MemoryShort(), f"its process ended ({e.how})", Move.EXIT)
        elif worker.state is State.LOADING:
            cause = f"its process ended while loading ({e.how})"
            self._failures.fail_load(worker, "load_failed", cause, Move.EXIT)
        elif worker.answers:
            self._lifecycle.end(worker, Move.EXIT, End.OUT_OF_MEMORY if e.starved else End.CRASHED)
            worker.model.crashes += 1
            running = [request.id for request in batch]
            r.tell(worker.name, "crashed", worker=e.worker, running=running, how=e.how)
            if e.starved:
                self._shortages.process_ran_out(worker, batch)
        for request in batch:
            self._failures.crashed_under(request, e)

    def memory_back(self, e: MemoryBack) -> None:
        if self._r.ledger.of(e.worker) is None or not self._has_ended(e.worker):
            return
        self._r.ledger.release(e.worker)
        self._r.look = True
        if e.worker in self._r.workers:
            self._lifecycle.gone(e.worker)

    def memory_stuck(self, e: MemoryStuck) -> None:
        charge = self._r.ledger.of(e.worker)
        if charge is not None and e.worker in self._r.workers and self._has_ended(e.worker):
            name = self._r.workers[e.worker].model.name
            self._r.tell(name, "memory stuck", device=charge.device, mb=charge.mb)
            self._lifecycle.gone(e.worker)

    def _has_ended(self, number: int) -> bool:
        """What was killed and has no memory has ended, though its exit may not have been seen; others live."""
        worker = self._r.workers.get(number)
        if worker is not None and worker.inflight and worker.phase is Phase.ENDING:
            self.exited(WorkerExited(number, "its memory came back"))
        return worker is None or worker.phase is Phase.ENDING


# ---------------------------------------------------------------- where the time went


def _spent(worker: Worker, first: Request, seconds: tuple[float, float, float], now: float) -> Spent:
    """When the worker began with its batch, and for how long it was at it. More than it had is not believed.

    One that had the batch lying ahead began when it had sent off the one before, a little before that was heard.
    """
    begun = worker.dispatched_at
    read, ran, packed = seconds
    if read >= 0.0 and ran >= 0.0 and packed >= 0.0 and (sooner := now - (read + ran + packed)) >= first.sent:
        return (sooner if sooner < begun else begun), read, ran, packed
    return begun, 0.0, 0.0, 0.0


def _timings(worker: Worker, request: Request, spent: Spent, now: float) -> Timings:
    since, load = request.since, 0.0
    begun, read, ran, packed = spent
    if worker.loaded_at > since:  # it waited for that load, from its own beginning or from the load's
        load = worker.loaded_at - (since if since > worker.started_at else worker.started_at)
    return Timings(begun - since - load, load, ran, now - since, read, packed)
