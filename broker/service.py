"""The service: socket messages, process exits, readings and time in; messages, starts and kills out.

It owns all parts and decides nothing. Whatever happens is told to the scheduler as an event (`_submit`), and each
action that the scheduler answers with is done by the part that `_actions` names. Parts are made from the bottom up;
each is given those below it, and `_submit`, and knows nothing of those above:

    loop, guard     what is waited for; what an unforeseen error costs
    scheduler       every decision, pure
    front, handoff  the clients' socket; lifelines and arenas
    fleet           workers: started, spoken to, killed
    clients         sessions, and where answers go
    intake          what clients ask
    lifelines       what clients and workers say beside requests

An error while an event or an action is dealt with is met here: `_amends` says what is to blame for it.
"""

from __future__ import annotations

import logging
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from broker import descriptors, ending, heap
from broker.configuration import Configuration, devices_of
from broker.ending import Ending
from broker.fleet.fleet import Fleet
from broker.front import endpoint, outgoing
from broker.front.clients import Clients
from broker.front.front import Front
from broker.front.handoff import Handoff
from broker.front.intake import Intake
from broker.front.keyring import Keyring
from broker.guard import Guard
from broker.lifelines import Lifelines
from broker.loop import Loop
from broker.memory import meters, resident
from broker.memory.host_cache import Copies
from broker.memory.learnt import Learnt
from broker.metrics import Metrics
from broker.reload import Reloader
from broker.scheduler.events import (
    Action,
    Answer,
    Asked,
    Deliver,
    Event,
    Forget,
    KillWorker,
    LoadedEarlier,
    MemoryBack,
    MemoryStuck,
    Refuse,
    Released,
    SendBatch,
    SessionClosed,
    Settled,
    ShutDown,
    StartWorker,
    Stop,
    Tick,
    Withdrawn,
    WorkerDone,
    WorkerExited,
    WorkerLoadFailed,
    WorkerReady,
    WorkerSaid,
)
from broker.scheduler.scheduler import Scheduler
from broker.scheduler.soundness import Unsound
from broker.status import Views
from zoo.config.schema import ZooConfig
from zoo.errors import ConfigError

log = logging.getLogger("zoo.broker")

RETRY_S = 0.02  # after an error in the scheduler's own clock
HOUSEKEEPING_S = 1.0
CROWDED_S = 0.05  # between two looks at who keeps others waiting
TOLD_ONCE = (
    ShutDown,
    SessionClosed,
    Withdrawn,
    WorkerExited,
    MemoryBack,
    MemoryStuck,
)  # true: said again after an error
TROUBLE = {
    "load failed", "crashed", "killed", "quarantined", "overdrawn", "memory stuck", "out of memory", "unread",
}  # kinds  # fmt: skip


class Service:
    """One broker. `run()` returns when it has been told to stop and everything has ended.

    Args:
        endpoint_given: stands over what the configuration says.
        checks: every invariant of the scheduler is checked after each event (`--debug`).

    Raises:
        ConfigError: the configuration or the endpoint cannot be used here. OSError.
    """

    def __init__(self, config: ZooConfig, endpoint_given: str = "", *, checks: bool = False) -> None:
        limit = descriptors.raise_limit()
        heap.settle()
        self._checks = checks
        self._stop = False
        self._unsound = False  # the scheduler contradicts itself; the broker winds down and ends with status 1
        self._told = 0  # lines of the story that are in the log
        self._housekeeping_at = 0.0
        self._ending = Ending()
        self._guard = guard = Guard(self._go_on_or_end)
        self._configuration = configuration = Configuration(config, endpoint_given)
        config = configuration.now
        shares = descriptors.divide(
            limit,
            descriptors.in_use(),
            sum(model.max_instances for model in config.models),
            config.broker.standby,
            metrics=bool(config.broker.metrics),
            local=not config.endpoint.startswith("tcp://"),
        )
        machine = meters.Machine()
        charged = devices_of(config, machine)
        try:
            devices = meters.open_devices(charged, machine)
        except LookupError as e:
            raise ConfigError(str(e)) from None
        self._scheduler = scheduler = Scheduler(config.broker, charged, config.models)
        self._keyring = keyring = Keyring(config.resolve(config.broker.curve_dir)) if config.broker.curve_dir else None
        self._loop = loop = Loop(guard)
        self._place = place = endpoint.claim(config.endpoint, config.broker.group, config.broker.user)
        try:
            self._front = front = Front(config, place, shares, keyring)
            self._handoff = handoff = Handoff(
                place.handoff,
                config.broker.arena_limit_mb << 20,
                partial(place.listen, kind=socket.SOCK_SEQPACKET),
                shares,
                place.admits,
                loop.forget,
            )
        except (OSError, ConfigError) as e:  # zmq.ZMQError is neither
            place.release()
            raise ConfigError(
                str(e) if isinstance(e, ConfigError) else f"cannot listen on {config.endpoint}: {e}"
            ) from None
        submit = self._submit
        self._copies = copies = Copies(int(config.broker.host_cache_mb * meters.MB))
        self._metrics = Metrics(scheduler, copies, guard, config.broker.metrics)
        self._learnt = learnt = Learnt(configuration, scheduler, submit)
        self._fleet = fleet = Fleet(
            configuration, scheduler, devices, copies, self._metrics, handoff, loop, guard, submit
        )
        self._clients = clients = Clients(front, handoff, shares, keyring, fleet.arena_of, submit)
        self._reload = Reloader(
            configuration, scheduler, devices, fleet.editions, copies, learnt, keyring, clients, submit
        )
        views = Views(scheduler, fleet.usage, copies)
        self._intake = Intake(
            configuration, scheduler, front, handoff, shares, keyring, clients, fleet.workers, views, learnt,
            self._reload, guard, submit,
        )  # fmt: skip
        self._lifelines = Lifelines(loop, handoff, clients, fleet)
        self._resident = resident.ResidentFile(config.state)
        self._actions: dict[type, Callable[[Any], None]] = {
            StartWorker: fleet.start,
            KillWorker: fleet.kill,
            SendBatch: fleet.dispatch,
            Deliver: clients.deliver,
            Answer: clients.answer,
            Refuse: clients.refuse,
            Settled: clients.settled,
            Forget: clients.forget,
            Stop: self._do_stop,
        }
        self._amends: dict[type, Callable[[Any], None]] = {
            StartWorker: fleet.start_failed,
            KillWorker: fleet.kill_failed,
            **dict.fromkeys((Deliver, Answer, Refuse, Settled, Forget), lambda _: clients.end_answered()),
            **dict.fromkeys((Asked, Released), lambda event: clients.end_asking(event.session)),
            **dict.fromkeys(
                (SendBatch, WorkerReady, WorkerLoadFailed, WorkerDone, WorkerSaid),
                lambda event: fleet.distrust(event.worker),
            ),
            **dict.fromkeys(TOLD_ONCE, submit),
        }
        loop.hear(front.sock, self._intake.hear)
        fleet.open()
        for name in scheduler.models:
            learnt.recall(name)

    # ------------------------------------------------------------ the loop

    def run(self) -> int:
        """Serves until it is told to stop. Gives the exit status: 0, or 1 when its books were found to be wrong."""
        self._loop.hear_signals((signal.SIGTERM, signal.SIGINT, signal.SIGHUP), self._hear_signals)
        log.info("serving on %s, %s", self._configuration.now.endpoint, self._describe())
        if self._configuration.now.broker.restore:
            self._guard.run("bringing back what was loaded", self._bring_back)
        try:
            while not self._stop and not self._ending.is_over(time.monotonic()):
                try:
                    due = self._due()
                    self._loop.turn(due)
                    if time.monotonic() >= due:
                        self._time_passes()
                except Exception as e:
                    self._guard.failed("a turn of the loop", e)
        finally:
            signal.set_wakeup_fd(-1)
            limit = ending.within(ending.CLOSE_S, 1, self._place.release)
            self.close()
            limit.cancel()
        return 1 if self._unsound else 0

    def _due(self) -> float:
        """When there is something to do at the latest, whatever happens."""
        now = time.monotonic()
        try:
            due = self._scheduler.next_wakeup()
        except Exception as e:  # what comes from descriptors, such as the word to stop, is heard all the same
            self._guard.failed("the scheduler's next turn", e)
            due = now + RETRY_S
        soonest = min(self._housekeeping_at, self._fleet.due(now))
        if due is not None and due < soonest:
            soonest = due
        if not self._front.outgoing.is_empty:
            soonest = min(soonest, now + outgoing.TICK_S)
        return min(soonest, now + CROWDED_S) if self._lifelines.crowded else soonest

    def _time_passes(self) -> None:
        now = time.monotonic()
        run = self._guard.run  # each on its own
        self._submit(Tick())
        self._fleet.tick(now)
        if not self._front.outgoing.is_empty:
            run("sending what waits for clients", lambda: self._front.outgoing.flush(now))
        if self._lifelines.crowded:
            run("closing nameless lifelines", lambda: self._lifelines.end_nameless(now))
        if now >= self._housekeeping_at:
            self._housekeeping_at = now + HOUSEKEEPING_S
            self._fleet.housekeeping(now)
            run("writing down footprints", self._learnt.write_down)
            run("noting what is loaded", self._note_resident)
            run("ending silent sessions", lambda: self._clients.end_silent(now, local=bool(self._place.front)))
            run("closing nameless lifelines", lambda: self._lifelines.end_nameless(now))
            run("ending lifelines that were cut off", self._lifelines.end_cut_off)
            run("writing to slow lifelines", self._handoff.flush)
            run("keeping the endpoint", lambda: self._place.keep(now, self._listen_again))

    def _hear_signals(self) -> None:
        numbers = self._loop.signals()
        if any(n in (signal.SIGTERM, signal.SIGINT) for n in numbers):
            drain = 0.0 if self._scheduler.stopping else self._configuration.now.broker.drain_seconds
            self._ending.begin(drain, time.monotonic())
            self._guard.run("noting what is loaded", lambda: self._note_resident(at_last=True))
            self._submit(ShutDown(drain))
        elif signal.SIGHUP in numbers:
            try:
                self._reload()
            except ConfigError as e:
                log.error("the configuration stays as it is: %s", e)

    def _listen_again(self, path: str) -> None:
        """A socket's file was removed (see `Place.keep`)."""
        if path == self._place.front:
            self._front.bind()
        else:
            self._lifelines.listen_again()

    def close(self) -> None:
        """Leaves nothing behind, also when it is called in the middle of something."""
        closes = (
            self._learnt.write_down,
            self._metrics.close,
            self._fleet.close,
            self._handoff.shut,
            self._copies.close,
            self._front.door.close,
            self._keyring.stop if self._keyring is not None else lambda: None,
            self._front.close,
            self._loop.close,
            self._place.release,
        )
        for close in closes:
            self._guard.run("closing the broker", close)

    def _describe(self) -> str:
        devices = ", ".join(f"{d.name} {d.budget_mb:g} MB" for d in self._scheduler.ledger.devices.values())
        return f"{len(self._scheduler.models)} models, {devices}"

    # ------------------------------------------------------------ events in, actions out

    def _submit(self, event: Event) -> None:
        """Tells the scheduler what has happened, and does what it answers."""
        try:
            actions = self._scheduler.handle(event, time.monotonic())
        except Exception as e:
            self._do(self._scheduler.take_actions())
            self._failed(event, e)
            return
        self._do(actions)
        if self._scheduler.story.count != self._told:
            self._tell()
        if self._checks:
            self._guard.run("an event", self._scheduler.check)

    def _do(self, actions: list[Action]) -> None:
        """Does each, whatever becomes of the others."""
        do = self._actions
        for action in actions:
            try:
                do[type(action)](action)
            except Exception as e:
                self._failed(action, e)

    def _do_stop(self, _: Stop) -> None:
        self._stop = True

    def _failed(self, what: Event | Action, error: Exception) -> None:
        """An event or action has raised."""
        amend = self._amends.get(type(what))
        self._guard.failed(type(what).__name__, error, None if amend is None else lambda: amend(what))

    def _go_on_or_end(self) -> None:
        """After an internal error: an unsound broker takes nothing new, finishes what runs, and ends."""
        try:
            self._scheduler.check()
        except Unsound as e:
            if self._unsound:
                return
            self._unsound = True
            grace = self._configuration.now.broker.drain_seconds
            self._ending.begin(grace, time.monotonic())
            log.critical("the scheduler contradicts itself, this broker ends: %s", "; ".join(e.wrong))
            self._submit(ShutDown(grace))

    def _tell(self) -> None:
        """Logs the lines of the scheduler's story that are new."""
        for line in self._scheduler.story.since(self._told):
            level = logging.WARNING if line.kind in TROUBLE else logging.INFO
            log.log(level, "%s%s", f"{line.model}: " if line.model else "", line.text, extra={"line": line})
        self._told = self._scheduler.story.count

    # ------------------------------------------------------------ what was loaded before

    def _bring_back(self) -> None:
        """What was loaded when the broker before ended, but for what cannot be."""
        models = self._scheduler.models
        names = [name for name in self._resident.earlier() if name in models and not self._intake.problem(name)]
        for name in names:
            self._learnt.recall(name)
        self._submit(LoadedEarlier(names))

    def _note_resident(self, *, at_last: bool = False) -> None:
        if self._configuration.now.broker.restore and not self._scheduler.stopping:
            self._resident.note(self._scheduler.resident(), at_last=at_last)
