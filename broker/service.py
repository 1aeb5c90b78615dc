"""The service: socket messages, process exits, readings and time in; messages, starts and kills out.

It owns all parts and decides nothing. Whatever happens is told to the scheduler as an event (`Core.submit`), and each
action that the scheduler answers with is done by the part that the table in `_connect` names. Parts are made from the
bottom up; each is given those below it, and knows nothing of those above:

    guard           what an unforeseen error costs
    core            the scheduler, pure, and the way to it and back
    loop            what is waited for
    front, handoff  the clients' socket; lifelines and arenas
    fleet           workers: started, spoken to, killed
    clients         sessions, and where answers go
    intake          what clients ask

One thread and one `zmq.Poller`: asyncio on this path was measured to cost 20 to 45 % of the throughput.
"""

from __future__ import annotations

import logging
import signal
import socket
import time
from functools import partial
from typing import TYPE_CHECKING

from broker import descriptors, ending, heap, labels, status
from broker.core import Core
from broker.fleet.fleet import Fleet
from broker.front import endpoint, front, intake, outgoing
from broker.front.access import Access
from broker.front.clients import Clients
from broker.front.handoff import Handoff
from broker.loop import Loop
from broker.memory import footprints, host_cache, meters, state
from broker.recording import recorder
from broker.scheduler import events
from broker.scheduler.capacity.ledger import Device
from zoo.config import changes, reading, schema
from zoo.errors import ConfigError
from zoo.system import notify

if TYPE_CHECKING:
    from broker.metrics import Metrics

log = logging.getLogger("zoo.broker")

RETRY_S = 0.02  # after an error in the scheduler's own clock
HOUSEKEEPING_S = 1.0
CROWDED_S = 0.05  # between two looks at the connections that keep others waiting
ANSWERS = (events.Deliver, events.Answer, events.Refuse, events.Settled, events.Forget)
OF_A_WORKER = (
    events.SendBatch, events.KillWorker,
    events.WorkerReady, events.WorkerLoadFailed, events.WorkerDone, events.WorkerSaid,
)  # fmt: skip
TRUE_ONCE = (  # said once, and true whatever has raised: the scheduler is told again
    events.ShutDown, events.SessionClosed, events.Withdrawn, events.WorkerExited, events.MemoryBack, events.MemoryStuck,
)  # fmt: skip


class Service:
    """One broker. `run()` returns when it has been told to stop and everything has ended.

    Args:
        endpoint_given: stands over what the configuration says.
        notifier: of the service manager, if any.
        checks: every invariant of the scheduler is checked after each event (`--debug`).

    Raises:
        ConfigError: the configuration or the endpoint cannot be used here. OSError.
    """

    def __init__(
        self,
        config: schema.ZooConfig,
        endpoint_given: str = "",
        notifier: notify.Notifier | None = None,
        *,
        checks: bool = False,
    ) -> None:
        limit = descriptors.raise_limit()
        heap.settle()
        self._stop = False
        self._housekeeping_at = 0.0
        self._endpoint_given = endpoint_given
        self._notifier = notifier or notify.Notifier({})
        config.broker.endpoint = endpoint_given or config.broker.endpoint
        shares = descriptors.divide(
            limit,
            descriptors.in_use(),
            sum(model.max_instances for model in config.models),
            config.broker.standby,
            metrics=bool(config.broker.metrics),
            local=not config.endpoint.startswith("tcp://"),
        )
        machine = meters.Machine()
        devices = devices_of(config, machine)
        try:
            self._meters = meters.open_devices(devices, machine)
        except LookupError as e:
            raise ConfigError(str(e)) from None
        self._core = core = Core(config, devices, checks)
        self._run = core.guard.run
        self._loop = Loop(core.guard)
        keys = config.resolve(config.broker.curve_dir) if config.broker.curve_dir else None
        access = Access(keys, bool(config.broker.group))
        self._place = place = endpoint.claim(config.endpoint, config.broker.group, config.broker.user)
        try:
            self._front = front.Front(config, place, shares, access)
            listen, limit = partial(place.listen, kind=socket.SOCK_SEQPACKET), config.broker.arena_limit_mb << 20
            self._handoff = Handoff(place.handoff, limit, self._loop, listen, shares, place.admits)
        except (OSError, ConfigError) as e:  # zmq.ZMQError is neither
            place.release()
            raise e if isinstance(e, ConfigError) else ConfigError(f"cannot listen on {config.endpoint}: {e}") from None
        try:
            self._connect(config)
        except Exception:  # such as metrics that cannot be served: a client must not find sockets where no broker is
            place.release()
            raise

    def _connect(self, config: schema.ZooConfig) -> None:
        """Makes the parts that use sockets and processes, and says which of them does what for the scheduler."""
        core, loop, handoff = self._core, self._loop, self._handoff
        self._copies = copies = host_cache.Copies(int(config.broker.host_cache_mb * meters.MB))
        self._metrics: Metrics | None = None
        if config.broker.metrics:
            from broker.metrics import Metrics  # with Prometheus and asyncio: a quarter of a broker's start

            self._metrics = Metrics(core.scheduler, copies, core.guard, config.broker.metrics)
        self._learnt = learnt = footprints.Learnt(core)
        self._recorder = recorder.Recorder(core, copies)
        self._labels = known = labels.Labels(core)
        self._fleet = fleet = Fleet(core, loop, handoff, self._meters, copies, known, self._loaded)
        self._clients = clients = Clients(core, self._front, handoff, fleet.arena_of)
        observed = None
        if self._metrics is not None:
            self._metrics.watch(self._front, handoff, clients.sessions, fleet.usage.gauge)
            observed = self._metrics.latencies
        views = status.Views(core.scheduler, fleet.usage.gauge, copies, known)
        self._intake = intake.Intake(
            core, self._front, handoff, clients, fleet.workers, views, learnt, self._recorder, self.reload
        )
        handoff.roles = {"client": clients, "worker": fleet}
        self._resident = state.ResidentFile(config.state)
        core.actions = {
            events.StartWorker: fleet.start,
            events.KillWorker: fleet.kill,
            events.SendBatch: fleet.dispatch if observed is None else observed.sending(fleet.dispatch),
            events.Deliver: clients.deliver if observed is None else observed.delivering(clients.deliver),
            events.Answer: clients.answer,
            events.Refuse: clients.refuse,
            events.Settled: clients.settled,
            events.Forget: clients.forget,
            events.Stop: self._do_stop,
        }
        core.amends = {
            events.StartWorker: fleet.start_failed,
            **dict.fromkeys(ANSWERS, clients.end_answered),
            **dict.fromkeys((events.Asked, events.Released), clients.end_asking),
            **dict.fromkeys(OF_A_WORKER, fleet.distrust),
            **dict.fromkeys(TRUE_ONCE, core.submit),
        }
        loop.hear(self._front.sock, self._intake.hear)
        fleet.open()
        if config.broker.record:
            self._recorder.start()
        learnt.recall_cold(core.scheduler.models)

    def _summary(self) -> str:
        scheduler = self._core.scheduler
        devices = ", ".join(f"{d.name} {d.budget_mb:g} MB" for d in scheduler.ledger.devices.values())
        return f"serving on {self._core.config.endpoint}, {len(scheduler.models)} models, {devices}"

    # ------------------------------------------------------------ the loop

    def run(self) -> int:
        """Serves until it is told to stop. Gives the exit status: 0, or 1 when its books were found to be wrong."""
        self._loop.hear_signals((signal.SIGTERM, signal.SIGINT, signal.SIGHUP), self._hear_signals)
        log.info("%s", self._summary())
        if self._core.config.broker.restore:
            self._run("bringing back what was loaded", self._bring_back)
        self._notifier.ready(self._summary())
        try:
            while not self._stop and not self._core.ending.is_over(time.monotonic()):
                try:
                    due = self._due()
                    self._loop.turn(due)
                    if time.monotonic() >= due:
                        self._time_passes()
                except Exception as e:
                    self._core.guard.failed("a turn of the loop", e)
        finally:
            signal.set_wakeup_fd(-1)
            self._notifier.stopping()
            limit = ending.within(ending.CLOSE_S, 1, self._place.release)
            self.close()
            limit.cancel()
        return 1 if self._core.unsound else 0

    def _due(self) -> float:
        """When there is something to do at the latest, whatever happens."""
        now = time.monotonic()
        try:
            due = self._core.scheduler.next_wakeup()
        except Exception as e:  # what comes from descriptors, such as the word to stop, is heard all the same
            self._core.guard.failed("the scheduler's next turn", e)
            due = now + RETRY_S
        soonest = self._fleet.due(now)
        if self._housekeeping_at < soonest:
            soonest = self._housekeeping_at
        if due is not None and due < soonest:
            soonest = due
        if not self._front.outgoing.is_empty:
            soonest = min(soonest, now + outgoing.TICK_S)
        return min(soonest, now + CROWDED_S) if self._handoff.crowded else soonest

    def _time_passes(self) -> None:
        now = time.monotonic()
        run = self._run  # each on its own
        self._core.submit(events.Tick())
        self._fleet.tick(now)
        if not self._front.outgoing.is_empty:
            run("sending what waits for clients", lambda: self._front.outgoing.flush(now))
        if self._handoff.crowded:
            run("closing nameless lifelines", lambda: self._handoff.end_nameless(now))
        if now >= self._housekeeping_at:
            self._housekeeping_at = now + HOUSEKEEPING_S
            self._notifier.alive()
            self._fleet.housekeeping(now)
            run("writing down footprints", self._learnt.write_down)
            run("writing down labels", self._labels.write_down)
            run("noting what is loaded", self._note_resident)
            run("recording", self._recorder.tick)
            run("ending silent sessions", lambda: self._clients.end_silent(now, local=bool(self._place.front)))
            run("closing nameless lifelines", lambda: self._handoff.end_nameless(now))
            run("writing to slow lifelines", self._handoff.tend)
            run("keeping the endpoint", lambda: self._place.keep(now, self._listen_again))

    def _hear_signals(self) -> None:
        numbers = self._loop.signals()
        if any(n in (signal.SIGTERM, signal.SIGINT) for n in numbers):
            drain = 0.0 if self._core.scheduler.stopping else self._core.config.broker.drain_seconds
            self._run("noting what is loaded", lambda: self._note_resident(at_last=True))
            self._notifier.stopping()
            self._core.shut_down(drain)
        elif signal.SIGHUP in numbers:
            self._notifier.reloading()
            try:
                self.reload()
            except ConfigError as e:
                log.error("the configuration stays as it is: %s", e)
            finally:
                self._notifier.ready(self._summary())

    def reload(self) -> list[str]:
        """Reads config.toml and the CURVE keys again; gives what has changed.

        Raises:
            ConfigError: something is not valid, and nothing was changed.
        """
        core = self._core
        if core.config.file is None:
            raise ConfigError("this broker was started without a config.toml: there is nothing to read again")
        read = reading.load_config(core.config.file)
        read.broker.endpoint = self._endpoint_given or read.broker.endpoint
        found = changes.compare(core.config, read, self._fleet.editions.take_edited(read.models))
        keys = self._clients.reread_keys()
        if not found.lines:
            return keys
        core.config = found.config
        broker, budgets = found.config.broker, {d.name: d.budget_gb * schema.MB_PER_GB for d in found.config.devices}
        budgets = budgets or dict.fromkeys(self._meters, broker.vram_budget_gb * schema.MB_PER_GB)
        core.submit(events.Reconfigured(broker, budgets, found.config.models, found.restart, found.lines))
        models = core.scheduler.models
        self._copies.resize(int(broker.host_cache_mb * meters.MB))
        for name in found.restart.union(name for name in self._copies.models() if name not in models):
            self._copies.forget(name)
        self._learnt.recall_cold(models)
        return found.text() + keys

    def _loaded(self, number: int, model: str, seconds: float | None, copied: bool) -> None:
        """A worker has become ready, or (None) has come too late with it."""
        if self._metrics is not None:
            self._metrics.loaded(model, seconds)
        self._recorder.loaded(number, model, seconds, copied)

    def _listen_again(self, path: str) -> None:
        """A socket's file was removed (see `Place.keep`)."""
        if path == self._place.front:
            self._front.bind()
        else:
            self._handoff.listen_again()

    def _do_stop(self, _: events.Stop) -> None:
        self._stop = True

    def close(self) -> None:
        """Leaves nothing behind, also when it is called in the middle of something."""
        closes = (
            self._learnt.write_down,
            self._labels.write_down,
            self._recorder.close,
            *((self._metrics.close,) if self._metrics is not None else ()),
            self._fleet.close,
            self._handoff.shut,
            self._copies.close,
            self._front.door.close,
            self._front.access.stop,
            self._front.close,
            self._loop.close,
            self._place.release,
        )
        for close in closes:
            self._run("closing the broker", close)

    # ------------------------------------------------------------ what was loaded before

    def _bring_back(self) -> None:
        """What was loaded when the broker before ended, but for what cannot be."""
        models = self._core.scheduler.models
        names = [name for name in self._resident.earlier() if name in models and not self._intake.problem(name)]
        self._learnt.recall_cold(names)
        self._core.submit(events.LoadedEarlier(names))

    def _note_resident(self, *, at_last: bool = False) -> None:
        if self._core.config.broker.restore and not self._core.scheduler.stopping:
            self._resident.note(self._core.scheduler.resident(), at_last=at_last)


def devices_of(config: schema.ZooConfig, machine: meters.Machine) -> list[Device]:
    """The devices of a configuration, "auto" resolved; says in the log why that is not CUDA."""
    if config.devices:
        return [Device(d.name, d.kind, d.budget_gb * schema.MB_PER_GB) for d in config.devices]
    kind = config.broker.device
    if kind == "auto":
        kind = "cuda" if machine.uuids else "cpu"
        if kind == "cpu":
            log.warning("models are loaded on the CPU, as no CUDA device can be used: %s", machine.why_none)
    name = "cuda:0" if kind == "cuda" else "cpu"
    return [Device(name, kind, config.broker.vram_budget_gb * schema.MB_PER_GB)]
