"""A request comes in: refused with its reason, answered at once, or accepted to wait for its model.

Requests that are refused because too many wait already are told why, with the arithmetic, and when to come again.

* During back-off a request is refused at once, with the cause and the time of the next try: waiting would turn one
  broken checkpoint into a queue of requests that each use up their deadline.
* `max_queue` bounds what waits for one model. `max_queue_per_client` bounds what one client has unanswered over all
  models, so that it cannot fill a model's queue alone (the default is half of it), and its frames that the broker
  holds are bounded however many models there are. The price: a gateway, one client for many users, needs a larger
  value. `max_leases_per_client` bounds what one client keeps from being evicted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from broker.scheduler.capacity.ledger import EPSILON_MB
from broker.scheduler.events import Answer, Asked, Kind, Refuse
from broker.scheduler.parts.answering import Answers
from broker.scheduler.parts.dispatch import place
from broker.scheduler.parts.lifecycle import Lifecycle
from broker.scheduler.registry import Registry
from broker.scheduler.state import Guess, Model, Phase, Request, State, peaks
from zoo.errors import BY_CODE

INFER, LEASE, UNLOAD, LOADED, NO_GUESS = Kind.INFER, Kind.LEASE, Kind.UNLOAD, State.LOADED, Guess.NONE
RETRY_LEAST_S, RETRY_MOST_S = 0.1, 30.0
NAME_MOST = 200  # characters of a model's name that an answer repeats

No = Callable[..., Refuse]


@dataclass
class Admission:
    """See the module's docstring."""

    _r: Registry
    _answers: Answers
    _lifecycle: Lifecycle

    def asked(self, e: Asked) -> None:
        r, now, kind = self._r, self._r.now, e.kind
        if e.request in r.requests:  # a number is never used twice; the first stands
            return
        model = r.models.get(e.model)
        warm = model is not None and model.primary.state is LOADED and not model.queue.live and e.deadline > now
        if not warm or r.stage or kind is LEASE or model is None or model.removed or not model.config.enabled:
            refusal = self._why_not(e, model)
            if refusal is not None:
                self._answers.turn_down(e.session, refusal, e.model)
                return
            assert model is not None
        deadline, priority, keep_alive = e.deadline, e.priority, e.keep_alive
        if keep_alive is not None or not 0 <= priority <= peaks.PRIORITY_LAST or math.isnan(deadline):
            deadline, priority = peaks.moment(deadline, now), peaks.priority(priority)
            keep_alive = peaks.known_seconds(keep_alive)
        request = Request(
            e.request, e.session, model, kind, deadline, priority, e.payload, keep_alive, next(r.seq), now,
        )  # fmt: skip
        if kind is UNLOAD:
            self._unload(request)
            return
        model.guess = NO_GUESS
        if r.habitual:
            r.habits.asked(model.name)
            r.asked_last = model.name if r.config.prefetch else ""
        if model.primary.state is not LOADED:
            self._wait(request)
        elif kind is not INFER:
            self._answers.grant(request)
            r.usage_changed()
        else:
            self._queue(request)

    def _queue(self, request: Request) -> None:
        """An inference by a model that is loaded."""
        model, now = request.model, self._r.now
        worker, queue = model.primary, model.queue
        self._answers.accept(request)
        if model.quarantine.wary:
            request.alone = model.quarantine.suspects(now)
        if queue.live or model.config.max_delay_ms or (worker.inflight and place(model, request) is None):
            request.found, request.behind = LOADED, queue.live
        if not worker.inflight and not queue.live and worker.last_used > worker.loaded_at:
            model.came_back_after(now - worker.last_used)
        queue.push(request)
        self._r.usage_changed()  # being used, it may not be the one to go any more

    def _wait(self, request: Request) -> None:
        """The model is not loaded."""
        model = request.model
        self._answers.accept(request)
        request.alone = request.kind is Kind.INFER and model.quarantine.wary and model.quarantine.suspects(self._r.now)
        request.found, request.behind = model.state, model.waiting
        (model.later if model.state is State.DRAINING else model.queue).push(request)
        self._r.look = True  # it may be more urgent than what waits for room already

    def _unload(self, request: Request) -> None:
        model, primary = request.model, request.model.primary
        if primary.held:
            self._answers.say(request, self._answers.in_use(request))
            return
        if model.quarantine.lift():
            self._r.tell(model.name, "lifted", why="unload was asked for")
        if not model.workers:
            self._answers.say(request, Answer(request.id, False))
            return
        self._answers.accept(request)
        model.unloads.append(request)
        if primary.state is State.LOADED:
            self._lifecycle.drain(primary, "unload was asked for")
        else:
            self._lifecycle.condemn(primary)

    # ------------------------------------------------------------ why not

    def _why_not(self, e: Asked, model: Model | None) -> Refuse | None:
        def no(code: str, text: str, after: float | None = None, *, for_good: bool = False) -> Refuse:
            can = not for_good and (after is not None or BY_CODE[code].retryable)
            return Refuse(e.request, code, text, can, after)

        if self._r.stopping:
            return no("broker_unreachable", "the broker is shutting down", 1.0)
        held = model is not None and model.state is State.LOADED and bool(model.leases) and e.kind is Kind.INFER
        if model is None or (model.removed and e.kind is not Kind.UNLOAD and not held):
            return no("model_not_found", self.no_such_model(e.model))
        if e.kind is Kind.UNLOAD:
            return None
        if not model.config.enabled and not held:
            return no("model_disabled", f"{model.name} has enabled = false in config.toml")
        return self._impossible(e, model, no) or self._too_many(e, model, no)

    def _impossible(self, e: Asked, model: Model, no: No) -> Refuse | None:
        """It cannot be loaded, or not in time."""
        cold = self.is_cold(model.name)
        if cold and e.problem is not None:
            return no("model_unavailable", e.problem)
        if cold and not self.ever_fits(model):
            return no("model_too_large", f"{self.too_large(model)}; nothing was evicted")
        if not e.deadline > self._r.now:
            return no("deadline_exceeded", f"the request for {model.name} had no time left when it came in")
        wait = model.failures.retry_at - self._r.now
        if wait > 0 and not model.primary.alive:
            then = f"the next try is possible in {max(wait, 0.1):.1f} s"
            text = f"{model.name} failed to load ({model.failures.cause}); {then}"
            return no("load_failed", text, wait, for_good=model.failures.permanent)
        return None

    def _too_many(self, e: Asked, model: Model, no: No) -> Refuse | None:
        """Too many leases are held, or too many requests wait already."""
        config = self._r.config
        session = self._r.sessions.get(e.session)
        unanswered = session.requests if session is not None else ()
        if e.kind is Kind.LEASE and session is not None:
            held = len(session.leases) + sum(self._r.requests[n].kind is Kind.LEASE for n in unanswered)
            if held >= (most := config.max_leases_per_client):
                text = f"this client holds {held} leases already (max_leases_per_client = {most}); release some"
                return no("queue_full", text)
        if e.kind is not Kind.INFER and model.state is State.LOADED:
            return None  # it does not wait
        if model.waiting >= (most := config.max_queue):
            text = f"{model.waiting} requests wait for {model.name} already (max_queue = {most})"
            return no("queue_full", f"{text}: {_work(model, self._r.now)}", retry_after(model, self._r.now))
        if len(unanswered) >= (most := config.max_queue_per_client):
            text = f"this client waits for {len(unanswered)} answers already (max_queue_per_client = {most})"
            work = f"{model.name} has {model.waiting} waiting: {_work(model, self._r.now)}"
            return no("queue_full", f"{text}; {work}", retry_after(model, self._r.now))
        return None

    # ------------------------------------------------------------ questions

    def no_such_model(self, name: str) -> str:
        if len(name) > NAME_MOST:  # no model has such a name; it is not worth to be compared, or kept
            return f"there is no model {name[:NAME_MOST]!r}…; `zoo ls` lists the models"
        import difflib  # only for this message

        near = difflib.get_close_matches(name, self._r.models, 1)
        hint = f"; did you mean {near[0]!r}?" if near else "; `zoo ls` lists the models"
        return f"there is no model {name!r}{hint}"

    def is_cold(self, name: str) -> bool:
        """True when a request for the model would need a load (advice for the caller, decides nothing)."""
        model = self._r.models.get(name)
        return model is not None and not model.primary.alive

    def ever_fits(self, model: Model) -> bool:
        """There is a device whose whole budget would suffice."""
        ledger = self._r.ledger
        return any(
            model.need_mb(name) <= ledger.devices[name].budget_mb + EPSILON_MB for name in model.allowed(ledger.devices)
        )

    def too_large(self, model: Model) -> str:
        names = model.allowed(self._r.ledger.devices)
        need, most = min(map(model.need_mb, names)), max(self._r.ledger.devices[name].budget_mb for name in names)
        where = f" of {model.config.device}" if model.config.device else ""
        return f"{model.name} needs {need:g} MB, the whole budget{where} is {most:g} MB"

    def outgrown(self, model: Model) -> None:
        """It has turned out to need more than any device has: what waits for it is refused."""
        for request in model.queue.all():
            self._answers.refuse(request, "model_too_large", self.too_large(model))

    def trouble(self, name: str, now: float) -> str | None:
        """What a request for the model would be refused for, as far as the scheduler's own state goes."""
        model = self._r.models[name]
        failures = model.failures
        if not model.config.enabled or not self.is_cold(name):
            return None
        if not self.ever_fits(model):
            return self.too_large(model)
        if failures.cause:
            wait = failures.retry_at - now
            then = f"in {max(wait, 1):.0f} s" if wait > 0 else "with the next request"
            lasting = ", though nothing but a change of the model or its files will help" if failures.permanent else ""
            return f"the last load failed ({failures.cause}); the next try is possible {then}{lasting}"
        return None


# ---------------------------------------------------------------- how long it would take


def retry_after(model: Model, now: float) -> float:
    """Seconds until the requests before a new one have been served, as far as is known, within bounds."""
    return min(max(_load_s(model, now) + _before(model) * _each_s(model), RETRY_LEAST_S), RETRY_MOST_S)


def _before(model: Model) -> int:
    return model.waiting + sum(len(worker.inflight) + len(worker.ahead) for worker in model.workers)


def _each_s(model: Model) -> float:
    """How long one keeps those behind it waiting: several workers share the queue."""
    return model.primary.service_s / max(1, len(model.answering))


def _load_s(model: Model, now: float) -> float:
    """What is left of a load that takes as long as the last one did."""
    worker = model.primary
    if worker.answers:
        return 0.0
    loading = worker.phase in (Phase.LOADING, Phase.CONDEMNED)
    return max(0.0, worker.load_seconds - (now - worker.started_at if loading else 0.0))


def _work(model: Model, now: float) -> str:
    count, load, each = _before(model), _load_s(model, now), _each_s(model)
    parts = ([f"a load of {load:.2f} s"] if load else []) + [f"{count} x {each * 1000:.3g} ms"]
    known = f"{' + '.join(parts)} = {load + count * each:.2f} s of work"
    return known if each else "how long one takes is not known yet"
