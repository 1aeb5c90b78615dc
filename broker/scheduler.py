"""The scheduler: `handle(event, now) -> actions`. A pure state machine, and the only place that decides.

What lives here: every decision about models, requests, leases and room. What never does: sockets, clocks,
processes, logging, threads. Time comes in with the event; what is to be done goes out as actions.

Theory of operation. A request either finds its model LOADED and is dispatched at once, or waits in the model's
queue and makes the model *wanted*: how it then gets its room is told in `room.py`, and how a model comes to have
several workers in `instances.py`.

Every accepted request is answered exactly once: `_finish` is the only way out, and it takes the request off
the books. A request that was answered while a worker still reads its frames (deadline, cancel) stays known to
its model as `inflight` until the worker lets go, and `Settled` says so.
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Callable
from typing import Any

from broker import batches, limits, turns
from broker.journal import Journal, Turned
from broker.ledger import EPSILON_MB, Device
from broker.queue import Queue
from broker.residency import Peak, Request, Residency
from broker.shortage import Shortages
from broker.states import (
    Action,
    Answer,
    Asked,
    Deliver,
    DeviceSeen,
    Dispatch,
    Event,
    Forget,
    IdleCleanup,
    KillWorker,
    Kind,
    Measured,
    MemoryBack,
    MemoryStuck,
    Move,
    Pinned,
    Reconfigured,
    Refuse,
    Released,
    Remembered,
    SessionClosed,
    Settled,
    Shortage,
    ShutDown,
    State,
    Stop,
    Tick,
    Withdrawn,
    WorkerDone,
    WorkerExited,
    WorkerLoadFailed,
    WorkerReady,
    WorkerSaid,
)
from broker.story import Line
from broker.timers import Due, Entry
from zoo.config import BrokerConfig, ModelConfig
from zoo.errors import BY_CODE

BACKOFF_FIRST_S, BACKOFF_MOST_S = 1.0, 300.0
SERVICE_WEIGHT = 0.2  # of the newest in the averages of how long a request takes, and how soon the next one comes


class _Session:
    __slots__ = ("leases", "requests")

    def __init__(self) -> None:
        self.requests: set[int] = set()
        self.leases: set[int] = set()


def _numbers(batch: list[Request]) -> str:
    return f"request{'s' if len(batch) > 1 else ''} {', '.join(str(request.id) for request in batch)}"


class Scheduler(Shortages):
    """See the module's docstring. Not thread-safe: one caller, one event at a time."""

    def __init__(self, config: BrokerConfig, devices: list[Device], models: list[ModelConfig]) -> None:
        super().__init__(config, devices, models)
        self.sessions: dict[bytes, _Session] = {}
        self.requests: dict[int, Request] = {}
        self._leases: dict[int, Residency] = {}
        self._running = 0  # answered or not, requests that a worker reads
        self._lease_ids = itertools.count(1)
        self._seq = itertools.count(1)
        self._drained = False
        self._now = 0.0  # of the event at hand
        self.journal = Journal()
        self._batch_numbers = itertools.count(1)
        self._grace_ends = 0.0
        self._stopped = False
        self._leaving = False  # some model takes on nobody new, or did
        self._handlers: dict[type, Callable[[Any, float], None]] = {
            Asked: self._asked,
            Released: self._released,
            Withdrawn: self._withdrawn,
            SessionClosed: self._session_closed,
            Pinned: self._pinned,
            IdleCleanup: self._idle_cleanup,
            WorkerReady: self._worker_ready,
            WorkerLoadFailed: self._worker_load_failed,
            WorkerDone: self._worker_done,
            WorkerSaid: self._worker_said,
            WorkerExited: self._worker_exited,
            Remembered: self._remembered,
            Measured: self._measured,
            DeviceSeen: self._device_seen,
            Reconfigured: self._reconfigured,
            MemoryBack: self._memory_back,
            MemoryStuck: self._memory_stuck,
            Tick: self._tick,
            ShutDown: self._shut_down,
        }

    # ------------------------------------------------------------ the machine's face

    def handle(self, event: Event, now: float) -> list[Action]:
        """Takes one event, gives what is to be done, in order."""
        self._now = now
        self._handlers[type(event)](event, now)
        if self.stopping:
            self._wind_down(now)
        elif self._asked_last:
            self._load_ahead(now)
        out, self._out = self._out, []
        return out

    def next_wakeup(self) -> float | None:
        """When a Tick is due at the latest, or None."""
        self.timers.sweep(self._stale)
        return self.timers.next(self._stale)

    def is_measured(self, worker: int) -> bool:
        """True when the worker's model has been measured at work on its device (advice, like `is_cold`)."""
        model = self._workers.get(worker)
        peak = model.first.peaks.get(model.device) if model is not None else None
        return peak is not None and peak.worked

    @property
    def is_loading(self) -> bool:
        """True while some model is (advice, like `is_cold`)."""
        return any(model.state is State.LOADING for model in self._moving.values())

    @property
    def is_idle(self) -> bool:
        """True when nothing is loading or at work (advice, like `is_cold`)."""
        return not self._running and not self.is_loading

    def loaded_in(self, worker: int) -> float | None:
        """How many seconds the load of a worker took that is ready and may stay."""
        model = self._workers.get(worker)
        return model.load_seconds if model is not None and model.state is State.LOADED else None

    def is_cold(self, name: str) -> bool:
        """True when a request for the model would need a load (advice for the caller, decides nothing)."""
        model = self.models.get(name)
        return model is not None and model.state not in (State.LOADED, State.LOADING, State.DRAINING)

    # ------------------------------------------------------------ requests come in

    def _asked(self, e: Asked, now: float) -> None:
        model = self.models.get(e.model)
        warm = model is not None and model.state is State.LOADED and not model.queue.live and e.deadline > now
        if not warm or self.stopping or self._leaving:
            refusal = self._why_not(e, model, now)
            if refusal is not None:
                self._tell_refusal(refusal, model, now)
                self.journal.add(Turned(e.request, now, e.model, refusal))
                self._out.append(refusal)
                return
        assert model is not None
        request = Request(
            e.request, e.session, model, e.kind, e.deadline, e.priority, e.payload, e.keep_alive,
            next(self._seq), now,
        )  # fmt: skip
        if e.kind is Kind.UNLOAD:
            self._ask_unload(request, now)
            return
        model.unasked = model.misguessed = False
        if self._habitual:
            self.habits.asked(model.name, now)
            self._asked_last = model.name if self.config.prefetch else ""
        if model.state is State.LOADED:
            if e.kind is not Kind.INFER:
                self._grant(request, now)
                self._serve(model, now)  # a preload's keep_alive counts from now
                if self._tense:
                    self._room_may_exist(now)  # not from a leased model: whoever waits must look elsewhere
                return
            self._register(request)
            if not model.inflight and not model.queue.live and model.last_used > model.loaded_at:
                gap = now - model.last_used
                model.gap_s = gap if model.gap_s == math.inf else model.gap_s + SERVICE_WEIGHT * (gap - model.gap_s)
            at_once = not model.queue.live and not model.config.max_delay_ms
            if at_once and (worker := self._place(model, request)) is not None:
                self._dispatch(worker, [request], now)
            else:
                request.found, request.behind = State.LOADED, model.queue.live
                model.queue.push(request)
                if not model.ahead or model.others:  # it may have come in before a suspect, which has to run alone
                    self._serve(model, now)
                self._grow(model, now)
            if self._tense:  # being used, it may not be the one to go any more
                self._usage_changed(now)
            return
        self._register(request)
        request.found, request.behind = model.state, model.waiting
        if model.state is State.DRAINING:
            model.later.push(request)
            return
        model.queue.push(request)
        if model.state is not State.LOADING:
            self._wanted.setdefault(model.name, model)
            self._advance(now)

    def _why_not(self, e: Asked, model: Residency | None, now: float) -> Refuse | None:
        def no(code: str, text: str, after: float | None = None) -> Refuse:
            return Refuse(e.request, code, text, after is not None or BY_CODE[code].retryable, after)

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
        if e.deadline <= now:
            return no("deadline_exceeded", f"the request for {model.name} had no time left when it came in")
        if now < model.retry_at and model.state in (State.FAILED, State.EVICTING):
            wait = model.retry_at - now
            return no(
                "load_failed",
                f"{model.name} failed to load ({model.failure}); the next try is possible in {wait:.1f} s",
                wait,
            )
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

    def no_such_model(self, name: str) -> str:
        near = difflib.get_close_matches(name, self.models, 1)
        hint = f"; did you mean {near[0]!r}?" if near else "; `zoo ls` lists the models"
        return f"there is no model {name!r}{hint}"

    def _ever_fits(self, model: Residency) -> bool:
        budgets = {name: self.ledger.devices[name].budget_mb for name in self.devices_for(model)}
        return any(model.need_mb(name) <= mb + EPSILON_MB for name, mb in budgets.items())

    def _too_large(self, model: Residency) -> str:
        names = self.devices_for(model)
        need, most = min(map(model.need_mb, names)), max(self.ledger.devices[name].budget_mb for name in names)
        where = f" of {model.config.device}" if model.config.device else ""
        return f"{model.name} needs {need:g} MB, the whole budget{where} is {most:g} MB"

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
            session = self.sessions[request.session] = _Session()
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
        self._out.append(
            Dispatch(model.worker, [(r.id, r.payload) for r in batch], batch[0].alone, tuple(model.first.quarantine))
        )

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

    # ------------------------------------------------------------ requests go out

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
                self._wanted.pop(model.name, None)
                model.unblock()
                model.claim = 0
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
            self.sessions.setdefault(request.session, _Session()).leases.add(value)
        answer = Answer(request.id, value)
        if request.id in self.requests:
            self._finish(request, answer)
        else:
            self._answer(request, answer)

    def _tidy(self, key: bytes, session: _Session) -> None:
        if not session.requests and not session.leases:
            self.sessions.pop(key, None)

    # ------------------------------------------------------------ leases, pins, sessions

    def _released(self, e: Released, now: float) -> None:
        model = self._leases.get(e.lease)
        if model is not None and model.leases.get(e.lease) == e.session:
            self._end_lease(e.lease, now)
            session = self.sessions[e.session]
            session.leases.discard(e.lease)
            self._tidy(e.session, session)
            self._room_may_exist(now)

    def _end_lease(self, lease: int, now: float) -> None:
        model = self._leases.pop(lease)
        model.leases.pop(lease, None)
        model.last_used = now
        self._retire(model, now)
        if model.state is State.LOADED and not model.leases and not model.inflight and not model.queue.live:
            self._became_idle(model, now)

    def _pinned(self, e: Pinned, now: float) -> None:
        model = self.models.get(e.model)
        if model is None or model.removed or model.pinned == e.on:
            return
        model.pinned = e.on
        model.unasked = False
        self.story.tell(now, model.name, "pinned: it will not be evicted" if e.on else "unpinned", "pinned")
        if e.on and model.state is State.DRAINING:
            self._move(model, Move.KEEP)
            self._refuse_unloads(model)
            self._next_life(model)
            self._grant_waiting(model, now)
            self._serve(model, now)
        elif not e.on and model.state is State.LOADED:
            self._serve(model, now)
            self._retire(model, now)
        self._room_may_exist(now)

    def _withdrawn(self, e: Withdrawn, now: float) -> None:
        request = self.requests.get(e.request)
        if request is not None:
            self._refuse(request, "cancelled", "withdrawn by the caller", held=request.running)
            self._after_loss(request.model, now)

    def _session_closed(self, e: SessionClosed, now: float) -> None:
        session = self.sessions.pop(e.session, None)
        if session is None:
            return
        touched: dict[str, Residency] = {}
        for number in list(session.requests):
            request = self.requests[number]
            touched[request.model.name] = request.model
            self._finish(request, Forget(number))
        for lease in session.leases:
            self._end_lease(lease, now)
        if session.leases or touched:
            self.story.tell(
                now, "",
                f"a client went away: {len(session.leases)} leases released, "
                f"{len(session.requests) or 'no'} requests dropped",
                "client gone", leases=len(session.leases), requests=len(session.requests),
            )  # fmt: skip
        for model in touched.values():
            self._after_loss(model, now)
        self._room_may_exist(now)

    def _after_loss(self, model: Residency, now: float) -> None:
        """Somebody who waited for the model is gone: another may be first in its queue now, or another model."""
        if model.state is State.LOADING:
            if not model.waiting:
                self.story.tell(now, model.name, "the load goes on with nobody waiting for it", "for nobody")
        elif model.state in (State.LOADED, State.DRAINING):
            self._serve(model, now)
        self._room_may_exist(now)

    # ------------------------------------------------------------ unloading and idling

    def _ask_unload(self, request: Request, now: float) -> None:
        model = request.model
        if model.leases or model.pinned:
            text = f"{model.name} is in use ({model.reasons()}); not unloaded"
            self._answer(request, Refuse(request.id, "model_in_use", text))
            return
        if model.state in (State.UNLOADED, State.FAILED) and not model.others:
            self._answer(request, Answer(request.id, False))
            return
        self._register(request)
        model.unloads.append(request)
        if model.state is State.LOADING:
            model.unload_when_loaded = True
        elif model.state is State.LOADED:
            self._drain(model, "unload was asked for", now)
            self._room_may_exist(now)

    def _drain(self, model: Residency, why: str, now: float) -> None:
        self._stay_small(model)
        self._part(model, 0, why, now)
        self._move(model, Move.DRAIN)
        model.yielding = False
        self.story.tell(now, model.name, f"draining: {why} ({model.reasons()})", "draining")
        self._serve(model, now)

    def _refuse_unloads(self, model: Residency) -> None:
        for request in list(model.unloads):
            self._refuse(request, "model_in_use", f"{model.name} is in use ({model.reasons()}); not unloaded")

    def _next_life(self, model: Residency) -> None:
        """What came while the model drained may be served now."""
        for request in model.later.all():
            model.later.drop(request)
            model.queue.push(request)

    def _grant_waiting(self, model: Residency, now: float) -> None:
        for request in model.queue.all():
            if request.deadline <= now:
                self._too_late(request, "while the model was getting ready", now)
            elif request.kind is not Kind.INFER:
                self._grant(request, now)

    def _became_idle(self, model: Residency, now: float) -> None:
        """Nothing runs and nothing waits; leases and pins may remain."""
        if model.state is State.DRAINING:
            self._evict(model, "unload was asked for", now)
            return
        if model.state is not State.LOADED or model.referenced:
            return
        if model.keep_alive == 0:
            self._evict(model, "the last reference went, keep_alive = 0", now)
        else:
            self._arm_idle(model, model.last_used + self._idle_limit(model))

    def _arm_idle(self, model: Residency, when: float) -> None:
        if when < model.idle_at:
            model.idle_at = when
            self.timers.add(when, Due.IDLE, model.number)

    def _idle_limit(self, model: Residency) -> float:
        if model.keep_alive is not None:
            return model.keep_alive
        own = model.config.idle_seconds
        return self.config.idle_seconds if own is None else own

    def _idle_timer(self, model: Residency, now: float) -> None:
        model.idle_at = math.inf  # its one entry that counts has just fired
        if model.state is not State.LOADED or model.referenced or model.queue.live:
            return
        left = model.last_used + self._idle_limit(model) - now
        if left <= 0:
            self._evict(model, f"idle for {now - model.last_used:.1f} s", now)
            self._room_may_exist(now)
        else:
            self._arm_idle(model, now + left)

    def idle_models(self, idle_seconds: float, now: float) -> list[str]:
        """Which models `IdleCleanup` would evict now; a further worker counts as one, by its name in `processes`."""
        return [
            m.name
            for m in (*self.further.values(), *self.models.values())
            if m.state is State.LOADED and not m.referenced and not m.queue.live and now - m.last_used >= idle_seconds
        ]

    def _idle_cleanup(self, e: IdleCleanup, now: float) -> None:
        for name in self.idle_models(e.idle_seconds, now):
            model = self._named(name)
            self._evict(model, f"clean-up: idle for {now - model.last_used:.1f} s", now)
        self._room_may_exist(now)

    # ------------------------------------------------------------ workers report

    def _of(self, worker: int) -> Residency | None:
        """The model of a living worker; None for the late words of one that was replaced."""
        model = self._workers.get(worker)
        return model if model is not None and model.worker == worker else None

    def _worker_ready(self, e: WorkerReady, now: float) -> None:
        model = self._of(e.worker)
        if model is None or model.state is not State.LOADING:
            return
        self._move(model, Move.READY)
        if model.first.state is State.LOADING:  # it was asked for later, and is there sooner
            self._step_down(model.first, now)
            model = model.first
        model.max_batch = max(1, e.max_batch)
        model.config.available = True
        model.failures, model.failure, model.retry_at = 0, "", 0.0
        model.second_load = False
        if model.first is not model:
            model.first.further_failures, model.first.further_at = 0, 0.0
        model.first.failed_on = ""
        self._doubts.loaded(model.device)
        model.first.loads += 1
        model.loaded_at = model.last_used = now
        model.watched = 0
        model.load_seconds = now - model.started_at
        model.first.least_load_s = min(model.first.least_load_s, model.load_seconds)
        model.least_service_s = 0.0
        seconds = round(model.load_seconds, 3)
        text = f"loaded in {seconds:.2f} s"
        self.story.tell(now, model.name, text, "loaded", worker=model.worker, seconds=seconds, mb=model.mb)
        self._grant_waiting(model, now)
        unload, model.unload_when_loaded = model.unload_when_loaded, False
        if unload and not (model.leases or model.pinned):
            self._drain(model, "unload was asked for while it was loading", now)
        else:
            self._refuse_unloads(model)
            self._serve(model, now)
        self._room_may_exist(now)

    def _worker_load_failed(self, e: WorkerLoadFailed, now: float) -> None:
        model = self._of(e.worker)
        if model is None or model.state is not State.LOADING:
            return
        if e.short is not None:
            self._load_ran_out(model, e.short, e.message, Move.KILL, now)
        else:
            self._fail_load(model, e.code, e.message, Move.KILL, now)

    def _fail_load(self, model: Residency, code: str, cause: str, move: Move, now: float) -> None:
        model = self._step_down(model, now)
        first = model.first
        self._move(model, move)
        if move is Move.KILL:
            self._out.append(KillWorker(model.worker))
        model.failed_load = True
        model.second_load = False
        failures = 1 + (first.failures if first is model else first.further_failures)
        back_off = min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2 ** (failures - 1))
        text = f"load failed: {cause}; no further try for {back_off:g} s"
        self.story.tell(now, model.name, text, "load failed", failures=failures, retry_seconds=back_off)
        self._load_failed_on(model.device, first, now)
        if first is model:
            model.failures, model.failure, model.retry_at = failures, cause, now + back_off
            if code not in BY_CODE:
                code = "load_failed"
            for request in model.queue.all():
                self._refuse(request, code, f"{model.name} could not be loaded: {cause}", after=back_off)
        else:  # the model goes on with the workers that it has
            first.further_failures, first.further_at = failures, now + back_off
        self._room_may_exist(now)  # the device may load another one

    def _worker_done(self, e: WorkerDone, now: float) -> None:
        model = self._of(e.worker)
        if model is None:
            return
        batch = model.inflight
        if [request.id for request in batch] != [outcome.request for outcome in e.outcomes]:
            return
        model.inflight, model.ahead = model.ahead, []
        self._running -= len(batch)
        took = (now - model.dispatched_at) / len(batch)
        model.service_s += (SERVICE_WEIGHT if model.service_s else 1.0) * (took - model.service_s)
        model.least_service_s = min(model.least_service_s or took, took)
        model.dispatched_at = model.last_used = now
        model.requests += len(batch)
        if model.first is not model:
            model.first.requests += len(batch)
        if e.halved:
            self._smaller_batches(model, len(batch), now)
        elif model.batch_limit:
            self._larger_batches(model, len(batch), now)
        for request, outcome in zip(batch, e.outcomes, strict=True):
            if not request.running:  # answered long ago (deadline, cancel, client gone)
                self._out.append(Settled(request.id, e.worker, outcome.body))
            elif outcome.error is None:
                self._finish(request, Deliver(request.id, outcome.body, e.worker))
            elif outcome.short is not None:
                self._request_ran_out(model, request, outcome.short, outcome.error[1], now)
            else:
                code = outcome.error[0] if outcome.error[0] in BY_CODE else "inference_failed"
                self._refuse(request, code, outcome.error[1])
        if model.state is State.LOADED or model.state is State.DRAINING:
            self._serve(model, now)
            self._grow(model.first, now)
        if model.short:
            self._room_may_exist(now)
        else:
            self._usage_changed(now)

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

    def _worker_said(self, e: WorkerSaid, now: float) -> None:
        model = self._of(e.worker)
        if model is not None:
            for request in model.inflight:
                if request.id == e.request:
                    request.digest = e.digest

    def _worker_exited(self, e: WorkerExited, now: float) -> None:
        model = self._of(e.worker)
        if model is None:
            return
        batch, model.inflight = model.inflight, []
        self._running -= len(batch)
        self._take_back_ahead(model)
        if model.state is State.LOADING and e.starved:
            self._load_ran_out(model, Shortage(), f"its process ended ({e.how})", Move.EXIT, now)
        elif model.state is State.LOADING:
            self._fail_load(model, "load_failed", f"its process ended while loading ({e.how})", Move.EXIT, now)
        elif model.state in (State.LOADED, State.DRAINING):
            self._stay_small(model)
            model = self._step_down(model, now)
            self._move(model, Move.EXIT)
            model.first.crashes += 1
            self.story.tell(
                now, model.name,
                f"its process ended ({e.how})" + (f" while running {_numbers(batch)}" if batch else ""),
                "crashed", worker=e.worker, running=[request.id for request in batch],
            )  # fmt: skip
            if e.starved:
                self._process_ran_out(model, batch, now)
        for request in batch:
            if request.running:
                self._crashed_under(model, request, e, now)
            else:
                self._out.append(Settled(request.id, e.worker))
        self._go_on_without(model, now)

    def _go_on_without(self, model: Residency, now: float) -> None:
        """A worker has ended: whoever waits is served by the others, or by the model's next life."""
        model = model.first
        if self.stopping and model.state not in (State.LOADED, State.DRAINING):
            for waiting in model.queue.all():  # there is no next life to wait for
                self._turn_away(waiting)
        if model.waiting and model.state in (State.UNLOADED, State.EVICTING, State.FAILED):
            self._wanted.setdefault(model.name, model)
        self._serve(model, now)
        self._room_may_exist(now)

    def _crashed_under(self, model: Residency, request: Request, e: WorkerExited, now: float) -> None:
        request.crashes += 1
        if request.crashes == 1 and now < request.deadline:
            request.alone = True
            self._wait_again(request)
            text = f"request {request.id} is tried once more, alone, on another process"
            self.story.tell(now, model.name, text, "retried", request=request.id)
            return
        text = f"{request.model.name}'s process ended under this request, {request.crashes} times ({e.how})"
        if request.digest is not None and request.crashes > 1:
            request.model.refuse_from_now_on(request.digest)
            text += "; the same input will be refused from now on"
            quarantined = f"input {request.digest.hex()[:12]} killed two processes: quarantined"
            self.story.tell(now, model.name, quarantined, "quarantined", request=request.id)
        self._refuse(request, "out_of_memory" if e.starved else "worker_crashed", text, retryable=False)

    # ------------------------------------------------------------ memory

    def _remembered(self, e: Remembered, now: float) -> None:
        model = self.models.get(e.model)
        if model is not None and self.config.footprint == "measured":
            model.version, model.peaks, model.least_load_s = e.version, dict(e.peaks), math.inf
            self._room_may_exist(now)

    def _measured(self, e: Measured, now: float) -> None:
        """A charge is corrected to what was seen. Peaks never shrink: what a model took once, it may take again."""
        model = self._of(e.worker)
        charge = self.ledger.of(e.worker)
        if model is None or charge is None or self.config.footprint == "declared":
            return
        seen = float(math.ceil(e.mb - EPSILON_MB))  # whole megabytes: not every page is worth a decision
        if model.state is State.EVICTING:  # on its way out, and its model may have other weights by now
            need = max(charge.mb, seen)
        else:
            known = model.first.peaks.get(model.device, Peak(0.0))
            peak = Peak(max(known.mb, seen), known.worked or e.worked)
            if peak != known:
                model.first.peaks[model.device] = peak
                self.learnt += 1
            need = min(model.need_mb(model.device), max(charge.mb, seen))  # what it is yet to get room for, it has not
        if need == charge.mb:
            return
        self.ledger.recharge(e.worker, need)
        model.mb = need
        self.story.tell(
            now, model.name,
            f"measured: uses {seen:g} MB on {model.device}, charged {need:g} instead of {charge.mb:g} MB "
            f"(declared {model.config.vram_mb:g})",
            "measured", device=model.device, worker=e.worker, seen_mb=seen, mb=need, before_mb=charge.mb,
        )  # fmt: skip
        self._room_may_exist(now)

    def _device_seen(self, e: DeviceSeen, now: float) -> None:
        if self.config.footprint == "declared" or e.device not in self.ledger.devices:
            return
        before, budget = self.ledger.limit_mb(e.device), self.ledger.devices[e.device].budget_mb
        self.ledger.allow(e.device, max(0.0, e.total_mb - e.others_mb - self.config.reserve_mb))
        limit = self.ledger.limit_mb(e.device)
        if (before < budget) != (limit < budget):
            self.story.tell(
                now, "",
                f"other programs use {e.others_mb:g} of {e.device}'s {e.total_mb:g} MB, {self.config.reserve_mb:g} are "
                f"kept free: {limit:g} of the budget's {budget:g} MB may be charged",
                "limited", device=e.device, others_mb=e.others_mb, limit_mb=limit,
            )  # fmt: skip
        if limit != before:
            self._room_may_exist(now)

    def _memory_back(self, e: MemoryBack, now: float) -> None:
        charge = self.ledger.release(e.worker)
        if charge is not None:
            self._gone(e.worker, now)
            self._room_may_exist(now)

    def _memory_stuck(self, e: MemoryStuck, now: float) -> None:
        charge = self.ledger.of(e.worker)
        if charge is not None:
            self.story.tell(
                now, charge.model,
                f"its process is gone but {charge.mb:g} MB on {charge.device} have not come back; they stay charged",
                "memory stuck", device=charge.device, mb=charge.mb,
            )  # fmt: skip
            self._gone(e.worker, now)
            self._room_may_exist(now)

    def _gone(self, worker: int, now: float) -> None:
        """The worker's life is over."""
        model = self._workers.pop(worker, None)
        if model is None or model.worker != worker:
            return
        self._move(model, Move.FAILED if model.failed_load else Move.FREED)
        if model.first is not model:
            self._forget(model)
            model = model.first
        else:
            model.worker, model.device = 0, ""
            if not model.leases:  # leases outlive a crash, and so does what they asked for
                model.keep_alive = None
            model.failed_load = model.yielding = False
            self._next_life(model)
        if not model.worker and not model.others:
            for request in list(model.unloads):
                self._finish(request, Answer(request.id, True))
        self._retire(model, now)
        if model.queue.live and not model.worker:
            self._wanted.setdefault(model.name, model)
            if model.retry_at > now:
                self._look_again(model.retry_at)

    # ------------------------------------------------------------ time

    def _stale(self, entry: Entry) -> bool:
        when, due, key = entry
        if due == Due.DEADLINE:
            return key not in self.requests
        if due == Due.WATCH:
            return key not in self._workers
        if due == Due.IDLE:
            return key not in self._numbered or when != self._numbered[key].idle_at
        if due == Due.BATCH:
            return key not in self._numbered or when != self._numbered[key].leaves_at
        return due == Due.LOOK and when != self._look_at

    def _dispatch_timeout(self, model: Residency) -> float:
        own = model.config.dispatch_timeout
        return self.config.dispatch_timeout if own is None else own

    def _tick(self, _: Tick, now: float) -> None:
        look = False
        lost: dict[str, Residency] = {}
        while (entry := self.timers.pop_due(now)) is not None:
            if self._stale(entry):
                continue
            due, key = entry[1], entry[2]
            if due == Due.DEADLINE:
                request = self.requests.get(key)
                if request is not None:
                    self._expire(request, now)
                    lost[request.model.name] = request.model
            elif due == Due.WATCH:
                self._watch(key, now)
            elif due == Due.IDLE:
                self._idle_timer(self._numbered[key], now)
            elif due == Due.BATCH:
                model = self._numbered[key]
                model.leaves_at = math.inf
                if model.state is State.LOADED:
                    self._serve(model, now)
            elif due == Due.LOOK:
                look = True
        for model in lost.values():
            self._after_loss(model, now)
        if look:
            self._look_at = math.inf
            self._room_may_exist(now)

    def _expire(self, request: Request, now: float) -> None:
        model = request.model
        if request.kind is Kind.UNLOAD:
            doing = f"while it was being unloaded ({model.reasons()})"
        elif request.running:
            doing = "while it was running"
        elif model.short:
            doing = f"while it waited for more memory: {model.blocked or 'it is coming back'}"
        elif model.state in (State.LOADED, State.DRAINING):
            doing = f"in the queue behind {model.waiting - 1} others"
        elif model.state is State.LOADING:
            doing = f"while the model was loading (for {now - model.started_at:.1f} s so far)"
        else:
            doing = f"while the model waited for room: {model.blocked or 'memory is coming back'}"
        self._too_late(request, doing, now)

    def _too_late(self, request: Request, doing: str, now: float) -> None:
        self._refuse(
            request,
            "deadline_exceeded",
            f"{request.model.name}: the deadline passed after {now - request.since:.2f} s, {doing}",
            held=request.running,
        )

    def _watch(self, worker: int, now: float) -> None:
        """A worker's timer: is what it does taking too long?"""
        model = self._of(worker)
        if model is None or model.watched != worker:
            return
        if model.state is State.LOADING:
            limit = self.config.load_timeout
            if now >= model.started_at + limit:
                self._fail_load(model, "load_failed", f"it took longer than load_timeout ({limit:g} s)", Move.KILL, now)
            else:  # there is more time than there was
                self.timers.add(model.started_at + limit, Due.WATCH, worker)
        elif model.state in (State.LOADED, State.DRAINING):
            model.watched = 0
            if not model.inflight:
                return
            limit = self._dispatch_timeout(model)
            if now >= model.dispatched_at + limit:
                self._hung(model, limit, now)
            else:
                model.watched = worker
                self.timers.add(model.dispatched_at + limit, Due.WATCH, worker)

    def _hung(self, model: Residency, limit: float, now: float) -> None:
        self._stay_small(model)
        model = self._step_down(model, now)
        self._move(model, Move.KILL)
        model.first.crashes += 1
        batch = model.inflight
        text = f"killed: {_numbers(batch)} ran longer than dispatch_timeout ({limit:g} s)"
        self.story.tell(now, model.name, text, "killed", worker=model.worker, running=[r.id for r in batch])
        self._out.append(KillWorker(model.worker, gentle=True))
        self._take_back_ahead(model)
        # Of several, who is to blame shows when the process is gone and each is tried alone, see `_crashed_under`.
        if len(batch) == 1 and batch[0].running:
            self._refuse(
                batch[0],
                "worker_hung",
                f"{model.first.name} did not answer within dispatch_timeout ({limit:g} s) and was killed",
                held=True,
            )
        self._go_on_without(model, now)

    # ------------------------------------------------------------ live changes

    def _reconfigured(self, e: Reconfigured, now: float) -> None:
        """Takes over a new configuration. Nobody in use is ended for it: what has to go, goes when it is let go."""
        if self.stopping:
            return
        for name, text in e.changes:
            self.story.tell(now, name, text, "changed")
        self.config = e.broker
        self._take_policy()
        for device, mb in e.budgets.items():
            self.ledger.set_budget(device, mb)
        given = {config.name: config for config in e.models}
        for model in list(self.models.values()):
            config = given.pop(model.name, None)
            if config is None:
                model.removed, model.pinned = True, False
            else:
                self._take_over(model, config, restart=model.name in e.restart)
        for name, config in given.items():
            model = self.models[name] = Residency(config, next(self._model_numbers))
            self._numbered[model.number] = model
        self._leaving = False
        for model in list(self.models.values()):
            self._retire(model, now)
            self._leaving = self._leaving or model.leaving
            if model.state is State.LOADED:
                self._serve(model, now)  # by the new max_delay_ms and idle_seconds
        for worker, model in self._workers.items():
            began = model.started_at if model.state is State.LOADING else model.dispatched_at
            limit = self.config.load_timeout if model.state is State.LOADING else self._dispatch_timeout(model)
            self.timers.add(max(now, began + limit), Due.WATCH, worker)
        self._room_may_exist(now)

    def _take_over(self, model: Residency, config: ModelConfig, *, restart: bool) -> None:
        before = model.config
        config.available = before.available
        model.removed = False
        if model.claim and config.device not in ("", model.claim_on):
            model.claim = 0
        if config.pinned != before.pinned or not config.enabled:
            model.pinned = config.pinned and config.enabled
            model.unasked = model.unasked and not model.pinned
        if restart:
            model.failures, model.failure, model.retry_at = 0, "", 0.0  # the mistake may have been there
            model.further_failures, model.further_at = 0, 0.0
            model.quarantine.clear()
        for worker in (model, *model.others):
            worker.config = config
            if worker.worker and (restart or config.device not in ("", worker.device)):
                worker.outdated = True
            charge = self.ledger.of(worker.worker)
            if charge is not None and worker.state is not State.EVICTING and config.vram_mb != before.vram_mb:
                worker.mb = worker.need_mb(worker.device)
                self.ledger.recharge(worker.worker, worker.mb)

    def _retire(self, model: Residency, now: float) -> None:
        """A model that is not to go on as it is goes, unless somebody holds it: what it has accepted is finished."""
        ending = model.leaving or model.outdated
        self._part(model, 0 if ending else model.config.max_instances - 1, "config.toml wants fewer workers", now)
        if not ending:
            return
        if model.state is State.LOADED and not (model.leases or model.pinned):
            why = (
                "removed from config.toml" if model.removed else "disabled" if model.leaving else "its settings changed"
            )
            self._drain(model, why, now)
        elif model.state is State.LOADING:
            model.unload_when_loaded = True
        if model.leaving:
            code = "model_not_found" if model.removed else "model_disabled"
            rest = [] if model.state in (State.LOADED, State.DRAINING) else model.queue.all()
            for request in [*rest, *model.later.all()]:
                self._refuse(request, code, f"{model.name} is not in config.toml any more, or disabled there")
        if model.removed and not model.leases and not model.worker and not model.others:
            del self.models[model.name], self._numbered[model.number]
            self._wanted.pop(model.name, None)
            self._yielding.discard(model.name)

    # ------------------------------------------------------------ the end

    def _shut_down(self, e: ShutDown, now: float) -> None:
        if self.stopping:
            return
        self.stopping = True
        self.story.tell(now, "", f"shutting down: at most {e.grace:g} s for what is running", "stopping")
        self.timers.add(now + e.grace, Due.GRACE)
        self._grace_ends = now + e.grace
        for request in list(self.requests.values()):
            model = request.model
            served = model.state in (State.LOADED, State.DRAINING) and request.queue is not model.later
            if request.kind is not Kind.INFER or not served:
                self._turn_away(request)
        for model in self._workers.values():
            self._stay_small(model)
            if model.state is State.LOADED and model.queue.live:  # nobody comes to keep them company any more
                self._serve(model, now)
        for name in sorted(self._yielding):  # nobody is waiting for their room any more
            model = self._named(name)
            model.yielding = False
            if model.state is State.LOADED:
                self._serve(model, now)
        self._yielding = set()

    def _turn_away(self, request: Request) -> None:
        self._refuse(request, "broker_unreachable", "the broker is shutting down", after=1.0, held=request.running)

    def _wind_down(self, now: float) -> None:
        if self._drained:
            if not self._workers and not self._stopped:
                self._stopped = True
                self._out.append(Stop())
            return
        if self.requests and now < self._grace_ends:
            return
        self._drained = True
        for request in list(self.requests.values()):
            self._turn_away(request)
        for model in list(self._workers.values()):
            if model.state is not State.EVICTING:
                model.leases.clear()
                self._move(model, Move.KILL)
                self._out.append(KillWorker(model.worker))
        self._leases.clear()
        for key, session in list(self.sessions.items()):
            session.leases.clear()
            self._tidy(key, session)
        self._wind_down(now)

    # ------------------------------------------------------------ what it looks like

    def explain(self, model: str | None = None) -> list[Line]:
        """The last decisions; of one model, also what became of its requests that had to wait or were refused."""
        lines = self.story.about(model)
        return lines if model is None else sorted([*lines, *self.journal.about(model)], key=lambda line: line.at)

    def explain_request(self, number: int) -> list[Line] | None:
        """The story of a request that is under way, or one of the last; None when it is neither."""
        request = self.requests.get(number) or self.journal.find(number)
        return None if request is None else self.journal.tell(request, self.story, self.requests.values())

    def status(self, now: float) -> dict[str, Any]:
        """Counts and megabytes; the names are public (see DESIGN)."""
        budget = sum(d.budget_mb for d in self.ledger.devices.values())
        used = sum(self.ledger.used_mb(name) for name in self.ledger.devices)
        loaded = [m for m in self.models.values() if m.state in (State.LOADED, State.DRAINING)]
        pending = [m.name for m in self.models.values() if m.state is State.LOADING]
        pending += [name for name, m in self._wanted.items() if not m.short and name not in pending]
        return {
            "vram_budget_mb": round(budget, 3),
            "vram_used_mb": round(used, 3),
            "vram_available_mb": round(max(0.0, budget - used), 3),
            "vram_utilization_percent": round(100 * used / budget, 2) if budget else 0.0,
            "loaded_models": [
                {
                    "name": m.name,
                    "vram_mb": sum(w.mb for w in (m, *m.others) if w.state is not State.EVICTING),
                    "declared_mb": m.config.vram_mb,
                    "measured_mb": m.measured_mb(m.device),
                    "priority": m.config.priority.name,
                    "last_used": max(w.last_used for w in (m, *m.others)),
                    "workers": len(m.answering),
                }
                for m in loaded
            ],
            "registered_models": list(self.models),
            "pending_loads": pending,
            "devices": [
                {
                    "name": d.name,
                    "kind": d.kind,
                    "budget_mb": round(d.budget_mb, 3),
                    "used_mb": round(self.ledger.used_mb(d.name), 3),
                    "limit_mb": round(self.ledger.limit_mb(d.name), 3),
                    "free_mb": round(max(0.0, self.ledger.free_mb(d.name)), 3),
                    "overrun_mb": round(self.ledger.overrun_mb(d.name), 3),
                    "unreturned_mb": round(self.unreturned_mb(d.name), 3),
                }
                for d in self.ledger.devices.values()
            ],
            "leases": len(self._leases),
            "requests": len(self.requests),
            "running": self._running,
            "workers": len(self._workers),
            "stopping": self.stopping,
        }

    def processes(self) -> list[dict[str, Any]]:
        """One row per living worker."""
        return [
            {
                "name": m.name,
                "state": m.state.value,
                "worker": worker,
                "device": m.device,
                "vram_mb": m.mb,
                "declared_mb": m.config.vram_mb,
                "measured_mb": m.measured_mb(m.device),
                "priority": m.config.priority.name,
                "pinned": m.pinned,
                "leases": len(m.leases),
                "inflight": len(m.inflight),
                "queued": m.waiting,
                "requests": m.requests,
                "last_used": m.last_used,
                "load_seconds": round(m.load_seconds, 3),
            }
            for worker, m in self._workers.items()
        ]

    def queue_of(self, name: str) -> Queue:
        return self.models[name].queue
