"""Requests on the books: who is turned away, who goes to a worker, how each is answered. The scheduler's part of it.

Theory of operation. What was accepted is in `requests` until `_finish`, which is the only way out, and gives exactly
one answer. Whichever worker of a model has a place is given the next batch (`_serve`); what a worker will not get to
waits again. A request that was answered while its worker still reads its frames stays in the worker's `inflight`.

Pure, like all of the scheduler.
"""

from __future__ import annotations

import difflib
import itertools

from broker.scheduler import batches, limits
from broker.scheduler.capacity import turns
from broker.scheduler.capacity.ledger import EPSILON_MB, Device
from broker.scheduler.events import Action, Answer, Asked, Dispatch, Kind, Refuse, Settled, State
from broker.scheduler.instances import Instances
from broker.scheduler.journal import Journal
from broker.scheduler.residency import Request, Residency
from broker.scheduler.timers import Due
from zoo.config.schema import BrokerConfig, ModelConfig
from zoo.errors import BY_CODE

NAME_MOST = 200  # characters of a model's name that an answer repeats


class Session:
    """A client: its unanswered requests and its leases, by number."""

    __slots__ = ("leases", "requests")

    def __init__(self) -> None:
        self.requests: set[int] = set()
        self.leases: set[int] = set()


class Requests(Instances):
    """See the module's docstring.

    Attributes:
        _running: answered or not, requests that a worker reads.
        _now: of the event at hand.
    """

    def __init__(self, config: BrokerConfig, devices: list[Device], models: list[ModelConfig]) -> None:
        super().__init__(config, devices, models)
        self.sessions: dict[bytes, Session] = {}
        self.requests: dict[int, Request] = {}
        self.journal = Journal()
        self._leases: dict[int, Residency] = {}
        self._lease_ids = itertools.count(1)
        self._batch_numbers = itertools.count(1)
        self._running = 0
        self._now = 0.0

    def _became_idle(self, model: Residency, now: float) -> None:
        """Nothing runs and nothing waits: see `idling.py`."""
        raise NotImplementedError

    def _why_not(self, e: Asked, model: Residency | None, now: float) -> Refuse | None:
        def no(code: str, text: str, after: float | None = None, *, for_good: bool = False) -> Refuse:
            can = not for_good and (after is not None or BY_CODE[code].retryable)
            return Refuse(e.request, code, text, can, after)

        if self.stopping:
            return no("broker_unreachable", "the broker is shutting down", 1.0)
        held = model is not None and model.state is State.LOADED and bool(model.leases) and e.kind is Kind.INFER
        if model is None or (model.removed and e.kind is not Kind.UNLOAD and not held):
            return no("model_not_found", self.no_such_model(e.model))
        if e.kind is Kind.UNLOAD:
            return None
        if not model.config.enabled and not held:
            return no("model_disabled", f"{model.name} has enabled = false in config.toml")
        if e.problem is not None and self.is_cold(model.name):
            return no("model_unavailable", e.problem)
        if self.is_cold(model.name) and not self._ever_fits(model):
            return no("model_too_large", f"{self._too_large(model)}; nothing was evicted")
        if not e.deadline > now:
            return no("deadline_exceeded", f"the request for {model.name} had no time left when it came in")
        if now < model.retry_at and model.state in (State.FAILED, State.EVICTING):
            wait = model.retry_at - now
            return no(
                "load_failed",
                f"{model.name} failed to load ({model.failure}); the next try is possible in {wait:.1f} s",
                wait,
                for_good=model.permanent,
            )
        if e.kind is Kind.LEASE and (has := self._holds(e.session)) >= self.config.max_leases_per_client:
            return no("queue_full", limits.too_many_leases(has, self.config.max_leases_per_client))
        waits = e.kind is Kind.INFER or model.state is not State.LOADED
        if waits and model.waiting >= self.config.max_queue:
            return no("queue_full", *limits.model_is_full(model, self.config.max_queue, now))
        if waits and (unanswered := self._unanswered(e.session)) >= self.config.max_queue_per_client:
            return no("queue_full", *limits.client_is_full(model, unanswered, self.config.max_queue_per_client, now))
        return None

    def _tell_refusal(self, refusal: Refuse, model: Residency | None, now: float) -> None:
        name = model.name if model is not None else ""
        text = f"refused request {refusal.request}: {refusal.message}"
        self.story.tell_once(now, name, text, "refused", refusal.code, request=refusal.request)

    def _unanswered(self, session: bytes) -> int:
        found = self.sessions.get(session)
        return len(found.requests) if found is not None else 0

    def _holds(self, session: bytes) -> int:
        """Leases that the client has, or has asked for."""
        found = self.sessions.get(session)
        if found is None:
            return 0
        return len(found.leases) + sum(self.requests[number].kind is Kind.LEASE for number in found.requests)

    def no_such_model(self, name: str) -> str:
        if len(name) > NAME_MOST:  # none of ours; nor is it worth comparing, or keeping
            return f"there is no model {name[:NAME_MOST]!r}…; `zoo ls` lists the models"
        near = difflib.get_close_matches(name, self.models, 1)
        hint = f"; did you mean {near[0]!r}?" if near else "; `zoo ls` lists the models"
        return f"there is no model {name!r}{hint}"

    def is_cold(self, name: str) -> bool:
        """True when a request for the model would need a load (advice for the caller, decides nothing)."""
        model = self.models.get(name)
        return model is not None and model.state not in (State.LOADED, State.LOADING, State.DRAINING)

    def _ever_fits(self, model: Residency) -> bool:
        budgets = {name: self.ledger.devices[name].budget_mb for name in self.devices_for(model)}
        return any(model.need_mb(name) <= mb + EPSILON_MB for name, mb in budgets.items())

    def _too_large(self, model: Residency) -> str:
        names = self.devices_for(model)
        need, most = min(map(model.need_mb, names)), max(self.ledger.devices[name].budget_mb for name in names)
        where = f" of {model.config.device}" if model.config.device else ""
        return f"{model.name} needs {need:g} MB, the whole budget{where} is {most:g} MB"

    def trouble(self, name: str, now: float) -> str | None:
        """What a request for the model would be refused for, as far as this machine's own state goes."""
        model = self.models[name]
        if not model.config.enabled or not self.is_cold(name):
            return None
        if not self._ever_fits(model):
            return self._too_large(model)
        if model.failure and model.state in (State.FAILED, State.EVICTING):
            wait = model.retry_at - now
            then = f"in {wait:.0f} s" if wait > 0 else "with the next request"
            lasting = ", though nothing but a change of the model or its files will help" if model.permanent else ""
            return f"the last load failed ({model.failure}); the next try is possible {then}{lasting}"
        return None

    def _outgrown(self, model: Residency) -> None:
        for request in model.queue.all():
            self._refuse(request, "model_too_large", self._too_large(model))

    def _give_up_hopeless(self, model: Residency, now: float) -> None:
        while (request := model.queue.head()) is not None and now >= turns.hopeless_from(request):
            left, fastest = request.deadline - now, model.least_load_s
            text = f"{model.name} is not loaded, its fastest load took {fastest:.2f} s, and {left:.2f} s are left"
            waited = f"; it waited: {model.blocked}" if model.blocked else ""
            self._refuse(request, "deadline_exceeded", text + waited)

    def _register(self, request: Request) -> None:
        self.requests[request.id] = request
        session = self.sessions.get(request.session)
        if session is None:
            session = self.sessions[request.session] = Session()
        session.requests.add(request.id)
        self.timers.add(request.deadline, Due.DEADLINE, request.id)

    def _next_batch(self, model: Residency, now: float) -> list[Request]:
        """Who goes to the worker next, out of the queue."""
        queue = model.first.queue
        most = batches.most(model)
        batch: list[Request] = []
        while len(batch) < most and (request := queue.head()) is not None:
            if request.deadline <= now + model.least_service_s:  # and its client keeps its turn
                self._too_late(request, f"in the queue before {queue.live - 1} others", now)
                continue
            if request.alone and (batch or model.inflight):
                break
            queue.pop()
            batch.append(request)
            if request.alone:
                break
        return batch

    def _dispatch(self, model: Residency, batch: list[Request], now: float) -> None:
        model.last_used = now
        self._running += len(batch)
        if not model.inflight:
            model.inflight = batch
            model.dispatched_at = now
        else:
            model.ahead = batch
        number = next(self._batch_numbers)
        for request in batch:
            request.running = True
            request.sent, request.worker, request.batch = now, model.worker, number
        if model.watched != model.worker:
            model.watched = model.worker
            self.timers.add(now + self._dispatch_timeout(model), Due.WATCH, model.worker)
        refuse = tuple(model.first.quarantine.refused)
        self._out.append(Dispatch(model.worker, [(r.id, r.payload) for r in batch], batch[0].alone, refuse))

    def _dispatch_timeout(self, model: Residency) -> float:
        own = model.config.dispatch_timeout
        return self.config.dispatch_timeout if own is None else own

    def _serve(self, model: Residency, now: float) -> None:
        """Whichever worker of the model has a place gets the next batch, or has nothing left to do."""
        model = model.first
        while (request := model.queue.head()) is not None and (worker := self._place(model, request)) is not None:
            if (leaves_at := batches.leaves_at(model)) > now and not (self._wanted or self.stopping):
                self._await_company(model, leaves_at)
                break
            if batch := self._next_batch(worker, now):
                self._dispatch(worker, batch, now)
        for worker in (*model.others, model):
            if not worker.inflight and not worker.queue.live:
                self._became_idle(worker, now)

    def _await_company(self, model: Residency, until: float) -> None:
        if model.leaves_at != until:
            model.leaves_at = until
            self.timers.add(until, Due.BATCH, model.number)

    def _finish(self, request: Request, action: Action) -> None:
        """The one way out: the answer, and off the books."""
        del self.requests[request.id]
        session = self.sessions.get(request.session)
        if session is not None:
            session.requests.discard(request.id)
            self._tidy(request.session, session)
        model = request.model
        if request.queue is not None:
            request.queue.drop(request)
            growing, model.short = bool(model.short), [r for r in model.short if r is not request]
            if not model.waiting or (growing and not model.short):
                self._wants_no_more(model)
        elif request.kind is Kind.UNLOAD:
            model.unloads.remove(request)
        request.running = False
        request.payload = None
        self._answer(request, action)

    def _answer(self, request: Request, action: Action) -> None:
        request.ended, request.outcome = self._now, action if type(action) is Refuse else type(action)
        self.journal.add(request)
        self._out.append(action)

    def _refuse(
        self,
        request: Request,
        code: str,
        text: str,
        *,
        retryable: bool | None = None,
        after: float | None = None,
        held: bool = False,
    ) -> None:
        can = BY_CODE[code].retryable if retryable is None else retryable
        request.model.errors += 1
        refusal = Refuse(request.id, code, text, can, after, held)
        if code != "cancelled":
            self._tell_refusal(refusal, request.model, self._now)
        self._finish(request, refusal)

    def _too_late(self, request: Request, doing: str, now: float) -> None:
        self._refuse(
            request,
            "deadline_exceeded",
            f"{request.model.name}: the deadline passed after {now - request.since:.2f} s, {doing}",
            held=request.running,
        )

    def _turn_away(self, request: Request) -> None:
        self._refuse(request, "broker_unreachable", "the broker is shutting down", after=1.0, held=request.running)

    def _grant(self, request: Request, now: float) -> None:
        """The model is loaded: a lease or preload is answered. `request` may not be on the books yet."""
        model = request.model
        model.last_used = now
        value = None
        if request.keep_alive is not None:
            model.keep_alive = request.keep_alive
        if request.kind is Kind.LEASE:
            value = next(self._lease_ids)
            model.leases[value] = request.session
            self._leases[value] = model
            self.sessions.setdefault(request.session, Session()).leases.add(value)
        answer = Answer(request.id, value)
        if request.id in self.requests:
            self._finish(request, answer)
        else:
            self._answer(request, answer)

    def _tidy(self, key: bytes, session: Session) -> None:
        if not session.requests and not session.leases:
            self.sessions.pop(key, None)

    def _take_back_ahead(self, model: Residency) -> None:
        """The worker will not get to its next batch, which is not to blame and waits again."""
        batch, model.ahead = model.ahead, []
        self._running -= len(batch)
        for request in batch:
            if request.running:
                self._wait_again(request)
            else:
                self._out.append(Settled(request.id, model.worker))

    def _wait_again(self, request: Request) -> None:
        request.running = False
        request.model.queue.push(request)
