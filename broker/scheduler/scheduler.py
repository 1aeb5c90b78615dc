"""The scheduler: `handle(event, now) -> actions`. A pure state machine, and the only place that decides.

What lives here: every decision about models, requests, leases and room. What never does: sockets, clocks,
processes, logging, threads. Time comes in with the event; what is to be done goes out as actions.

Theory of operation. A request either finds its model LOADED and is dispatched at once, or waits in the model's
queue and makes the model *wanted*: how it then gets its room is told in `room.py`, and how a model comes to have
several workers in `instances.py`.

Every accepted request is answered exactly once: `_finish` is the only way out, and it takes the request off
the books. A request that was answered while a worker still reads its frames (deadline, cancel) stays known to
its model as `inflight` until the worker lets go, and `Settled` says so.

It is one machine in storeys, each a file; a storey knows those below it, and says which few calls go up:

    scheduler      takes the events of clients and of time, and says what it all looks like
    reports        what workers say, and what is seen of them
    shortage       memory that ran out
    reconfiguring  a new config.toml
    idling         unloaded, or unused for long enough
    requests       the books: in, to a worker, out
    instances      several workers of one model
    room           who waits for room, who starts, who goes: over ledger, eviction, turns, placement, …
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

from broker.scheduler import figures
from broker.scheduler.capacity.ledger import Device
from broker.scheduler.events import (
    Action,
    Asked,
    DeviceSeen,
    DeviceUnread,
    Event,
    Forget,
    Forgotten,
    IdleCleanup,
    KillWorker,
    Kind,
    Measured,
    MemoryBack,
    MemoryStuck,
    Move,
    Pinned,
    Reconfigured,
    Released,
    Remembered,
    Resident,
    SessionClosed,
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
from broker.scheduler.journal import Turned
from broker.scheduler.queue import Queue
from broker.scheduler.reports import Reports
from broker.scheduler.residency import Peak, Request, Residency
from broker.scheduler.soundness import Unsound, faults
from broker.scheduler.story import Line
from broker.scheduler.timers import Due, Entry
from zoo.config.schema import BrokerConfig, ModelConfig


class Scheduler(Reports):
    """See the module's docstring. Not thread-safe: one caller, one event at a time."""

    def __init__(self, config: BrokerConfig, devices: list[Device], models: list[ModelConfig]) -> None:
        super().__init__(config, devices, models)
        self._seq = itertools.count(1)
        self._drained = False
        self._grace_ends = 0.0
        self._stopped = False
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
            Forgotten: self._forgotten,
            Resident: self._was_resident,
            Measured: self._measured,
            DeviceSeen: self._device_seen,
            DeviceUnread: self._device_unread,
            Reconfigured: self._reconfigured,
            MemoryBack: self._memory_back,
            MemoryStuck: self._memory_stuck,
            Tick: self._tick,
            ShutDown: self._shut_down,
        }

    # ------------------------------------------------------------ the machine's face

    def handle(self, event: Event, now: float) -> list[Action]:
        """Takes one event, gives what is to be done, in order. What an error leaves behind, `take_actions` gives."""
        self._now = now
        self._handlers[type(event)](event, now)
        if self.stopping:
            self._wind_down(now)
        elif self._asked_last:
            self._load_ahead(now)
        elif self._absent:
            self._restore(now)
        return self.take_actions()

    def take_actions(self) -> list[Action]:
        """What is decided and not done yet."""
        out, self._out = self._out, []
        return out

    def check(self) -> None:
        """Checks every invariant that the state shows, see `soundness.py`. Changes nothing; some 0.3 ms with 20 models.

        Raises:
            Unsound: with all that does not hold.
        """
        wrong = faults(self)
        if wrong:
            raise Unsound(wrong)

    def next_wakeup(self) -> float | None:
        """When a Tick is due at the latest, or None."""
        self.timers.sweep(self._stale)
        return self.timers.next(self._stale)

    def awaits(self, worker: int, requests: list[int]) -> bool:
        """False when the worker cannot have answered just these: they are not what it runs (advice, like `is_cold`)."""
        model = self._of(worker)
        return model is None or (bool(requests) and [request.id for request in model.inflight] == requests)

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

    # ------------------------------------------------------------ requests come in

    def _asked(self, e: Asked, now: float) -> None:
        if e.request in self.requests:  # a number is never used twice; the first stands
            return
        model = self.models.get(e.model)
        warm = model is not None and model.state is State.LOADED and not model.queue.live and e.deadline > now
        if not warm or self.stopping or self._leaving or e.kind is Kind.LEASE:
            refusal = self._why_not(e, model, now)
            if refusal is not None:
                self._tell_refusal(refusal, model, now)
                self.journal.add(Turned(e.request, now, e.model, refusal, e.session))
                self._out.append(refusal)
                return
        assert model is not None
        deadline, priority, keep_alive = e.deadline, e.priority, e.keep_alive
        if keep_alive is not None or not 0 <= priority <= figures.PRIORITY_LAST or math.isnan(deadline):
            deadline, priority = figures.moment(deadline, now), figures.priority(priority)
            keep_alive = figures.known_seconds(keep_alive)
        request = Request(
            e.request, e.session, model, e.kind, deadline, priority, e.payload, keep_alive, next(self._seq), now,
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
            if model.quarantine.wary:
                request.alone = model.quarantine.suspects(now)
            if not model.inflight and not model.queue.live and model.last_used > model.loaded_at:
                model.came_back_after(now - model.last_used)
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
        request.alone = e.kind is Kind.INFER and model.quarantine.wary and model.quarantine.suspects(now)
        request.found, request.behind = model.state, model.waiting
        if model.state is State.DRAINING:
            model.later.push(request)
            return
        model.queue.push(request)
        if model.state is not State.LOADING:
            self._wanted.setdefault(model.name, model)
            self._advance(now)

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
            self._keep(model, now)
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
                    look = True  # idle, if all that waited for company is too late
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

    # ------------------------------------------------------------ the end

    def _shut_down(self, e: ShutDown, now: float) -> None:
        grace = figures.known_seconds(e.grace) or 0.0
        if self.stopping:  # told again: sooner, never later
            if now + grace < self._grace_ends:
                self._grace_ends = now + grace
                self.timers.add(self._grace_ends, Due.GRACE)
            return
        self.stopping = True
        self.story.tell(now, "", f"shutting down: at most {grace:g} s for what is running", "stopping")
        self._grace_ends = now + grace
        self.timers.add(self._grace_ends, Due.GRACE)
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
                self._move(model, Move.KILL)
                self._out.append(KillWorker(model.worker))
        for model in self.models.values():
            model.leases.clear()
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

    def decisions(self, model: str | None = None) -> list[Line]:
        """The last decisions that are about no single request."""
        return [line for line in self.story.about(model) if "request" not in line.fields]

    def session_of(self, number: int) -> bytes | None:
        """Whose a request is that `explain_request` knows."""
        request = self.requests.get(number) or self.journal.find(number)
        return request.session if request is not None else None

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

    def resident(self) -> list[str]:
        """Models that are loaded, the last used first."""
        loaded = [m for m in self.models.values() if m.state in (State.LOADED, State.DRAINING)]
        return [m.name for m in sorted(loaded, key=lambda m: -m.last_used)]

    def footprints(self, name: str) -> list[dict[str, Any]]:
        """What is known of a model's memory, one row per device that it may be loaded on."""
        model = self.models[name]
        found = {device: model.peaks.get(device, Peak(0.0)) for device in self.devices_for(model)}
        return [
            {
                "name": name,
                "device": device,
                "declared_mb": model.config.vram_mb,
                "measured_mb": model.measured_mb(device),
                "charged_mb": model.need_mb(device),
                "worked": peak.worked,
                "lives_mb": list(peak.lives),
            }
            for device, peak in found.items()
        ]

    def queue_of(self, name: str) -> Queue[Request]:
        return self.models[name].queue
