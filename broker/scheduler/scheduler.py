"""The scheduler: `handle(event, now) -> actions`. A pure state machine, and the only place that decides.

Every decision about models, requests, leases and room is made in this folder, and nothing else is: no sockets, clocks,
processes, logging or threads. Time comes in with the event; what is to be done goes out as actions.

Theory of operation. `handle` applies the event to the state and marks what it touched. Then it settles: it applies a
short list of rules, in a fixed order, until nothing is marked any more. An event's handler calls no rule, and a rule
calls no handler.

    for each model whose queue, workers or leases have changed (the files are in `parts/`):
        retire      what config.toml wants no more goes, unless it is held                        reload.py
        attend      its workers get what is next in its queue; what it then lacks is a demand     dispatch.py
        grow        an extra worker, where its queue is long and room is free                     scaling.py
    when room may have come or gone on a device:
        relieve     where more is charged than may be, idle workers go                            allocator.py
        end_guesses loads that no request waits for end, if any demand waits                      scaling.py
        allocate    each demand gets room, claims what is coming back, or waits                   allocator.py
    when all of that is at rest:
        anticipate  free room is used for what will probably be asked for next                    scaling.py
        wind_down   at the end of the broker, what is left is answered and killed                 ending.py

A request that finds its model loaded goes to a worker in the same `handle`, or waits in the model's queue until one has
a place. One that finds it not loaded waits in the queue, too, and makes the model a `Demand`. `capacity/placement.py`
decides for each demand, those that wait longest first: start it where there is room; else evict idle workers, if that
suffices; else wait, and after a while have busy workers yield; never touch what is leased, pinned or at work. Whatever
happens, the request's deadline ends the wait: every accepted request is answered exactly once (`answering.py`).

The parts share one `Registry`, which holds the state. Each gets the registry and the parts below it when it is made, in
the order of `Scheduler.__init__`; none knows a part above it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from broker.scheduler import events
from broker.scheduler.capacity.ledger import Device
from broker.scheduler.parts.admission import Admission
from broker.scheduler.parts.allocator import Allocator
from broker.scheduler.parts.answering import Answers
from broker.scheduler.parts.dispatch import Dispatcher
from broker.scheduler.parts.ending import WindingDown
from broker.scheduler.parts.failures import Failures
from broker.scheduler.parts.holding import Holding
from broker.scheduler.parts.lifecycle import Lifecycle
from broker.scheduler.parts.measurements import Measurements
from broker.scheduler.parts.overview import Overview
from broker.scheduler.parts.reload import Reconfiguration
from broker.scheduler.parts.reports import Reports
from broker.scheduler.parts.scaling import Scaling
from broker.scheduler.parts.shortages import Shortages
from broker.scheduler.parts.wakeups import Wakeups
from broker.scheduler.registry import LOOK_EVERY_S, Registry
from broker.scheduler.soundness import Unsound, faults
from broker.scheduler.state import Model, Request
from broker.scheduler.story.journal import Turned
from zoo.config.schema import BrokerConfig, ModelConfig

QUIET = {  # they mark by themselves whether room has to be looked for: late words of a worker change nothing
    events.Asked, events.WorkerReady, events.WorkerLoadFailed, events.WorkerDone, events.WorkerSaid,
    events.WorkerExited, events.MemoryBack, events.MemoryStuck,
}  # fmt: skip
MOST_ROUNDS = 10_000  # a few settle it; the bound is against a bug, not a need


class Scheduler:
    """See the module's docstring. Not thread-safe: one caller, one event at a time.

    `registry` is for looking at. `look_every_s`: the least between two looks for room because of usage alone.
    """

    def __init__(
        self,
        config: BrokerConfig,
        devices: list[Device],
        models: list[ModelConfig],
        *,
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        r = self.registry = Registry(config, devices, models)
        r.look_every_s = look_every_s
        answers = Answers(r)
        lifecycle = Lifecycle(r, answers)
        dispatch = Dispatcher(r, answers, lifecycle)
        admission = Admission(r, answers, lifecycle)
        holding = Holding(r, answers, lifecycle)
        failures = Failures(r, answers, lifecycle)
        shortages = Shortages(r, answers, lifecycle, failures, admission)
        reports = Reports(r, answers, lifecycle, failures, shortages)
        measurements = Measurements(r)
        reload = Reconfiguration(r, answers, lifecycle)
        scaling = Scaling(r, lifecycle)
        allocator = Allocator(r, answers, lifecycle, admission)
        ending = WindingDown(r, answers)
        wakeups = Wakeups(r, answers, holding, failures, dispatch)
        self._ending = ending
        self._for_each_model = (reload.retire, dispatch.attend, scaling.grow)
        self._for_room = (allocator.relieve, scaling.end_guesses, allocator.allocate)
        self._at_rest = (scaling.anticipate, ending.wind_down)
        self._handlers = self._own = _handlers(admission, holding, reports, measurements, reload, wakeups, ending)
        self.next_wakeup = wakeups.next
        self._ask(admission, holding, Overview(r))

    def _ask(self, admission: Admission, holding: Holding, overview: Overview) -> None:
        """What may be asked about the scheduler. Advice: it may be otherwise after the next event."""
        r = self.registry
        self.models, self.ledger, self.story, self.evictions = r.models, r.ledger, r.story, r.evictions
        self.workers, self.unnamed_errors = r.workers, r.unnamed_errors
        self.is_cold, self.trouble, self.no_such_model = admission.is_cold, admission.trouble, admission.no_such_model
        self.explain, self.explain_request = overview.explain, overview.explain_request
        self.decided, self.waiting, self.times = overview.decided, overview.waiting, overview.times
        self.decisions, self.session_of = overview.decisions, overview.session_of
        self.status, self.processes, self.resident = overview.status, overview.processes, overview.resident
        self.footprints, self.unreturned_mb, self.room = overview.footprints, r.unreturned_mb, overview.room
        self.awaits, self.is_measured, self.loaded_in = overview.awaits, overview.is_measured, overview.loaded_in
        self.is_loading, self.is_idle = overview.is_loading, overview.is_idle
        self.idle_workers = holding.idle_workers

    @property
    def stopping(self) -> bool:
        return self.registry.stopping

    @property
    def learnt(self) -> int:
        """Counts changes of what is remembered of any model's memory."""
        return self.registry.learnt

    # ------------------------------------------------------------ the machine

    def handle(self, event: events.Event, now: float) -> list[events.Action]:
        """Takes one event, gives what is to be done, in order. What an error leaves behind, `take_actions` gives."""
        r = self.registry
        r.now = now
        if type(event) not in QUIET:
            r.look = True
        try:
            self._handlers[type(event)](event)
            self._settle()
        except Exception:
            self._mark_all()
            raise
        out, r.out = r.out, []
        return out

    def settle(self) -> list[events.Action]:
        """Applies the rules again, after an error: what it left undone is done."""
        try:
            self._settle()
        except Exception:
            self._mark_all()
            raise
        return self.take_actions()

    def _mark_all(self) -> None:
        """What was under way when an error came is not known."""
        self.registry.touched.update(dict.fromkeys(self.models.values()))
        self.registry.look = True

    def _settle(self) -> None:
        """Applies the rules until nothing is marked any more."""
        r = self.registry
        for _ in range(MOST_ROUNDS):
            if r.touched:
                model, _ = r.touched.popitem()
                for rule in self._for_each_model:
                    rule(model)
            elif r.look and not r.stage:
                r.look = False
                for look in self._for_room:
                    look()
            elif r.asked_last or r.absent or r.stage:
                for last in self._at_rest:
                    last()
                if not r.touched and (r.stage or not r.look):
                    return
            else:
                return
        raise RuntimeError(f"the scheduler does not come to rest: {list(r.touched)}, look: {r.look}")

    def take_actions(self) -> list[events.Action]:
        """What is decided and not done yet."""
        r = self.registry
        out, r.out = r.out, []
        return out

    def overhear(
        self,
        answered: Callable[[Request | Turned], None] | None,
        kinds: Mapping[type, Callable[[Any], None]],
    ) -> None:
        """Who listens from now on, in the place of those before: `answered` gets each request that is answered, `kinds`
        each event of a kind before it is handled. Nothing is paid for it while nothing listens.
        """
        self.registry.journal.hear(answered)
        self._handlers = {
            kind: _both(kinds[kind], handler) if kind in kinds else handler for kind, handler in self._own.items()
        }

    def leased(self, lease: int) -> Model | None:
        """What a lease holds; None: it has ended, or never was."""
        return self.registry.leases.get(lease)

    def check(self) -> None:
        """Checks every invariant that the state shows, see `soundness.py`. Changes nothing; some 0.3 ms with 20 models.

        Raises:
            Unsound: with all that does not hold.
        """
        wrong = faults(self.registry, self._ending.grace_ends)
        if wrong:
            raise Unsound(wrong)


def _both(first: Callable[[Any], None], then: Callable[[Any], None]) -> Callable[[Any], None]:
    def both(event: Any) -> None:
        first(event)
        then(event)

    return both


def _handlers(
    admission: Admission,
    holding: Holding,
    reports: Reports,
    measurements: Measurements,
    reload: Reconfiguration,
    wakeups: Wakeups,
    ending: WindingDown,
) -> dict[type, Callable[[Any], None]]:
    """Which part takes which event."""
    return {
        events.Asked: admission.asked,
        events.Released: holding.released,
        events.Withdrawn: holding.withdrawn,
        events.SessionClosed: holding.closed,
        events.Pinned: holding.pinned,
        events.IdleCleanup: holding.clean_up,
        events.WorkerReady: reports.ready,
        events.WorkerLoadFailed: reports.load_failed,
        events.WorkerDone: reports.done,
        events.WorkerSaid: reports.said,
        events.WorkerExited: reports.exited,
        events.MemoryBack: reports.memory_back,
        events.MemoryStuck: reports.memory_stuck,
        events.Remembered: measurements.remembered,
        events.Forgotten: measurements.forgotten,
        events.LoadedEarlier: measurements.loaded_earlier,
        events.Measured: measurements.measured,
        events.DeviceSeen: measurements.device_seen,
        events.DeviceUnread: measurements.device_unread,
        events.Reconfigured: reload.reconfigured,
        events.Tick: wakeups.tick,
        events.ShutDown: ending.shut_down,
    }
