"""Requests from being accepted to being answered: exactly one answer each.

What was accepted is in `requests` of the registry until `finish`, which is the only way out. A request that was
answered while its worker still reads its frames (deadline passed, cancelled) stays in the worker's `inflight`, and
`Settled` is said when the worker is through.

A load is not stopped when the last request that waits for it goes: most of the work is done, and the next request finds
the model loaded. The story says so.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from broker.scheduler.events import Action, Answer, Kind, Refuse, Settled
from broker.scheduler.registry import Registry
from broker.scheduler.state import Model, Request, Session, State, Worker
from broker.scheduler.state.timers import DEADLINE
from broker.scheduler.story.journal import Turned
from zoo.errors import BY_CODE

UNLOAD = Kind.UNLOAD


@dataclass
class Answers:
    """See the module's docstring."""

    _r: Registry
    _lease_numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    # ------------------------------------------------------------ in

    def accept(self, request: Request) -> None:
        r = self._r
        r.requests[request.id] = request
        session = r.sessions.get(request.session)
        if session is None:
            session = r.sessions[request.session] = Session()
        session.requests.add(request.id)
        r.timers.add(request.deadline, DEADLINE, request.id)
        r.touched[request.model] = None

    def turn_down(self, session: bytes, refusal: Refuse, name: str) -> None:
        """A request for `name` that is not accepted."""
        self._tell(refusal, name if name in self._r.models else "")
        model = self._r.models.get(name)
        (self._r.unnamed_errors if model is None else model.errors)[refusal.code] += 1
        self._r.journal.add(Turned(refusal.request, self._r.now, name, refusal, session))
        self._r.out.append(refusal)

    # ------------------------------------------------------------ out

    def finish(self, request: Request, action: Action) -> None:
        """The one way out: the answer, and the request is known no more."""
        r, model = self._r, request.model
        del r.requests[request.id]
        session = r.sessions.get(request.session)
        if session is not None:
            session.requests.discard(request.id)
            self.forget_empty(request.session, session)
        if request.queue is not None:
            request.queue.drop(request)
            short = model.primary.short
            if short:
                model.primary.short = [other for other in short if other is not request]
        elif request.kind is UNLOAD:
            model.unloads.remove(request)
        request.running = False
        request.payload = None
        r.touched[model] = None
        self.say(request, action)

    def say(self, request: Request, action: Action) -> None:
        """The answer to a request that was accepted, or never had to wait."""
        request.ended = self._r.now
        if type(action) is Refuse:
            request.outcome = action
            request.model.errors[action.code] += 1
        else:
            request.outcome = type(action)
        self._r.journal.add(request)
        self._r.out.append(action)

    def refuse(
        self,
        request: Request,
        code: str,
        text: str,
        *,
        retryable: bool | None = None,
        after: float | None = None,
        held: bool = False,
    ) -> None:
        """`held`: a worker still reads its frames."""
        can = BY_CODE[code].retryable if retryable is None else retryable
        refusal = Refuse(request.id, code, text, can, after, held)
        if code != "cancelled":
            self._tell(refusal, request.model.name)
        self.finish(request, refusal)

    def _tell(self, refusal: Refuse, name: str) -> None:
        self._r.story.tell_once(
            self._r.now, name, "refused", refusal.code, request=refusal.request, message=refusal.message
        )

    def expire(self, request: Request) -> None:
        """Its deadline has passed."""
        model, demand = request.model, self._r.demands.get(request.model.name)
        waits = demand.why if demand is not None else ""
        if request.kind is Kind.UNLOAD:
            doing = f"while it was being unloaded ({model.primary.reasons()})"
        elif request.running:
            doing = "while it was running"
        elif model.primary.short:
            doing = f"while it waited for more memory: {waits or 'it is coming back'}"
        elif model.primary.answers:
            doing = f"in the queue behind {model.waiting - 1} others"
        elif model.state is State.LOADING:
            doing = f"while the model was loading (for {self._r.now - model.primary.started_at:.1f} s so far)"
        else:
            doing = f"while the model waited for room: {waits or 'memory is coming back'}"
        self.too_late(request, doing)

    def too_late(self, request: Request, doing: str) -> None:
        text = f"{request.model.name}: the deadline passed after {self._r.now - request.since:.2f} s, {doing}"
        self.refuse(request, "deadline_exceeded", text, held=request.running)

    def out_of_time(self, request: Request, least_s: float, others: int) -> None:
        """Its turn has come, and its deadline has passed, or comes before an answer can."""
        left = request.deadline - self._r.now
        if left <= 0:
            self.too_late(request, f"in the queue before {others} others")
            return
        what = f"{request.model.name}: {left:.2f} s are left until the deadline, and an answer takes {least_s:.2f} s"
        self.refuse(request, "deadline_exceeded", f"{what} at least: give it more time", held=request.running)

    def turn_away(self, request: Request) -> None:
        self.refuse(request, "broker_unreachable", "the broker is shutting down", after=1.0, held=request.running)

    def in_use(self, request: Request) -> Refuse:
        model = request.model
        text = f"{model.name} is in use ({model.primary.reasons()}); not unloaded"
        return Refuse(request.id, "model_in_use", text)

    def refuse_unloads(self, model: Model) -> None:
        """It is in use, after all."""
        for request in list(model.unloads):
            refusal = self.in_use(request)
            self._tell(refusal, model.name)
            self.finish(request, refusal)

    # ------------------------------------------------------------ leases

    def grant(self, request: Request) -> None:
        """The model is loaded: a lease or preload is answered, which need not have been accepted before."""
        r, model = self._r, request.model
        model.primary.last_used = r.now
        r.touched[model] = None
        value = None
        if request.keep_alive is not None:
            model.keep_alive = request.keep_alive
        if request.kind is Kind.LEASE:
            value = next(self._lease_numbers)
            model.leases[value] = request.session
            r.leases[value] = model
            r.sessions.setdefault(request.session, Session()).leases.add(value)
        answer = Answer(request.id, value)
        if request.id in r.requests:
            self.finish(request, answer)
        else:
            self.say(request, answer)

    def grant_waiting(self, model: Model) -> None:
        """The model is loaded (again)."""
        for request in model.queue.all():
            if request.deadline <= self._r.now:
                self.too_late(request, "while the model was getting ready")
            elif request.kind is not Kind.INFER:
                self.grant(request)

    def end_lease(self, lease: int) -> None:
        model = self._r.leases.pop(lease)
        model.leases.pop(lease, None)
        model.primary.last_used = self._r.now
        self._r.touched[model] = None

    def forget_empty(self, key: bytes, session: Session) -> None:
        """A client that has neither requests nor leases need not be known."""
        if not session.requests and not session.leases:
            self._r.sessions.pop(key, None)

    # ------------------------------------------------------------ back from a worker

    def take_back(self, worker: Worker, batch: list[Request]) -> None:
        """The worker will not get to a batch: its requests wait again."""
        self._r.running -= len(batch)
        for request in batch:
            if request.running:
                self.wait_again(request)
            else:
                self._r.out.append(Settled(request.id, worker.number))

    def wait_again(self, request: Request) -> None:
        request.running = False
        request.model.queue.push(request)
        self._r.touched[request.model] = None
