"""What holds a model, and what lets it go: leases, pins, clients that go away, idle time."""

from __future__ import annotations

from dataclasses import dataclass

from broker.scheduler.events import Forget, IdleCleanup, Pinned, Released, SessionClosed, Withdrawn
from broker.scheduler.parts.answering import Answers
from broker.scheduler.parts.lifecycle import Lifecycle
from broker.scheduler.registry import Registry
from broker.scheduler.state import End, Guess, Model, State, Worker


@dataclass
class Holding:
    """See the module's docstring."""

    _r: Registry
    _answers: Answers
    _lifecycle: Lifecycle

    def released(self, e: Released) -> None:
        model = self._r.leases.get(e.lease)
        if model is not None and model.leases.get(e.lease) == e.session:
            self._answers.end_lease(e.lease)
            session = self._r.sessions[e.session]
            session.leases.discard(e.lease)
            self._answers.forget_empty(e.session, session)

    def withdrawn(self, e: Withdrawn) -> None:
        request = self._r.requests.get(e.request)
        if request is not None:
            self._answers.refuse(request, "cancelled", "withdrawn by the caller", held=request.running)
            self.tell_unwanted(request.model)

    def closed(self, e: SessionClosed) -> None:
        session = self._r.sessions.pop(e.session, None)
        if session is None:
            return
        models: dict[Model, None] = {}
        for number in list(session.requests):
            request = self._r.requests[number]
            models[request.model] = None
            self._answers.finish(request, Forget(number))
        for lease in session.leases:
            self._answers.end_lease(lease)
        if session.leases or models:
            leases, requests = len(session.leases), len(session.requests)
            self._r.tell("", "client gone", leases=leases, requests=requests)
        for model in models:
            self.tell_unwanted(model)

    def tell_unwanted(self, model: Model) -> None:
        """A request for the model is gone. A load goes on, though no request waits for it."""
        if model.state is State.LOADING and not model.waiting:
            self._r.tell(model.name, "unwanted")

    def pinned(self, e: Pinned) -> None:
        model = self._r.models.get(e.model)
        if model is None or model.removed or model.pinned == e.on:
            return
        model.pinned = e.on
        if model.guess is Guess.OPEN:
            model.guess = Guess.NONE
        self._r.touched[model] = None
        self._r.tell(model.name, "pinned", on=e.on)
        if e.on and model.state is State.DRAINING:
            self._lifecycle.keep(model)

    # ------------------------------------------------------------ idle models

    def idle_workers(self, idle_seconds: float, now: float) -> list[Worker]:
        """Those that `IdleCleanup` would evict, extra workers first."""
        models = self._r.models.values()
        found = [extra for model in models for extra in model.extras] + [model.primary for model in models]
        return [worker for worker in found if worker.evictable and now - worker.last_used >= idle_seconds]

    def clean_up(self, e: IdleCleanup) -> None:
        for worker in self.idle_workers(e.idle_seconds, self._r.now):
            self._lifecycle.evict(worker, End.IDLE, f"clean-up: idle for {self._r.now - worker.last_used:.1f} s")

    def idle_for_long(self, worker: Worker) -> float | None:
        """A worker's idle timer. Ends it if it has been idle for long enough; else gives when to look again."""
        if not worker.evictable:
            return None
        due = worker.last_used + self._r.idle_limit(worker.model)
        if self._r.now < due:
            return due
        self._lifecycle.evict(worker, End.IDLE, f"idle for {self._r.now - worker.last_used:.1f} s")
        return None
