"""Loads that fail, processes that end or hang under a request, and inputs that are to blame for it.

An end or a hang takes back what the worker had: what had not begun waits again, what was at work is tried once more,
alone, so that blame is never in doubt. Several requests of a hung batch are not to blame together: each is tried alone
when the process is gone.
"""

from __future__ import annotations

from dataclasses import dataclass

from broker.scheduler.capacity.doubts import DOUBT_S, MODELS_IN_DOUBT
from broker.scheduler.events import Settled, WorkerExited
from broker.scheduler.parts.answering import Answers
from broker.scheduler.parts.lifecycle import Lifecycle
from broker.scheduler.registry import Registry
from broker.scheduler.state import End, Guess, Move, Request, State, Worker
from zoo.errors import BY_CODE


@dataclass
class Failures:
    """See the module's docstring."""

    _r: Registry
    _answers: Answers
    _lifecycle: Lifecycle

    # ------------------------------------------------------------ loads

    def fail_load(self, worker: Worker, code: str, cause: str, move: Move, *, retryable: bool = True) -> None:
        """The load is not tried again for a while, and what waits for it alone is refused."""
        model = worker.model
        ran_out = code == "out_of_memory"
        self._lifecycle.end(worker, move, End.OUT_OF_MEMORY if ran_out else End.LOAD_FAILED)
        extra, guessed = not worker.primary, model.guess is Guess.OPEN
        if guessed:
            model.guess = Guess.WRONG
        failures, wait = model.failures.add(
            cause, self._r.now, extra=extra, guessed=guessed, permanent=not retryable
        )  # fmt: skip
        self._r.tell(worker.name, "load failed", cause=cause, failures=failures, retry_seconds=wait)
        model.failures.device = worker.device
        if self._r.doubts.failed(worker.device, model.name, self._r.now):
            self._r.tell("", "in doubt", device=worker.device, seconds=DOUBT_S, models=MODELS_IN_DOUBT)
        if extra:  # the model goes on with the workers that it has
            return
        code = code if code in BY_CODE else "load_failed"
        can = BY_CODE[code].retryable and retryable
        for request in model.queue.all():
            text = f"{model.name} could not be loaded: {cause}"
            self._answers.refuse(request, code, text, retryable=can, after=wait)

    # ------------------------------------------------------------ processes

    def crashed_under(self, request: Request, e: WorkerExited) -> None:
        """The process has ended while the request was at work in it."""
        if not request.running:
            self._r.out.append(Settled(request.id, e.worker))
            return
        name = request.model.name
        request.crashes += 1
        if request.crashes == 1 and self._r.now < request.deadline:
            request.alone = True
            self._answers.wait_again(request)
            self._r.tell(name, "retried", request=request.id)
            return
        text = f"{name}'s process ended under this request, {request.crashes} times ({e.how})"
        if request.digest is not None and request.crashes > 1:
            text += self._quarantine(request, request.digest, "killed")
        self._answers.refuse(request, "out_of_memory" if e.starved else "worker_crashed", text, retryable=False)

    def _quarantine(self, request: Request, digest: bytes, what: str) -> str:
        request.model.quarantine.refuse(digest)
        self._r.tell(request.model.name, "quarantined", request=request.id, input=digest.hex()[:12], what=what)
        return "; the same input will be refused from now on"

    def watch(self, worker: Worker) -> None:
        """A worker's timer: is what it does taking too long?"""
        r = self._r
        loading = worker.state is State.LOADING
        if not (loading or (worker.answers and worker.inflight)):
            return
        limit = r.config.load_timeout if loading else r.dispatch_timeout(worker.model)
        until = limit + (worker.started_at if loading else worker.dispatched_at)
        if r.now < until:
            self._lifecycle.watch(worker, until)
        elif loading:
            self.fail_load(worker, "load_failed", f"it took longer than load_timeout ({limit:g} s)", Move.KILL)
        else:
            self._hung(worker, limit)

    def _hung(self, worker: Worker, limit: float) -> None:
        r, model, batch = self._r, worker.model, worker.inflight
        self._lifecycle.end(worker, Move.KILL, End.HUNG, gentle=True)
        model.crashes += 1
        r.tell(worker.name, "killed", worker=worker.number, running=[q.id for q in batch], limit_seconds=limit)
        ahead, worker.ahead = worker.ahead, []
        self._answers.take_back(worker, ahead)
        for request in model.queue.all():
            request.alone = True
        model.quarantine.be_wary(r.now)
        if len(batch) != 1:
            return
        refused = ""
        if batch[0].digest is not None:  # it was a suspect
            refused = self._quarantine(batch[0], batch[0].digest, "hung")
        if batch[0].running:
            text = f"{model.name} did not answer within dispatch_timeout ({limit:g} s) and was killed{refused}"
            self._answers.refuse(batch[0], "worker_hung", text, held=True)
