"""The service loop: sockets, process exits and timers in; messages, starts and kills out.

It turns what happens into the scheduler's events and the scheduler's actions into deeds, and decides nothing
itself. One thread, one `zmq.Poller`; everything that is not a ZeroMQ socket sits in one epoll set, which the
poller watches as a single descriptor, so that the cost of a turn does not grow with clients or models.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import secrets
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec
import zmq

from broker import endpoint, footprints, meters
from broker.copies import Copies
from broker.gauge import Gauge
from broker.handoff import Handoff, Line
from broker.ledger import Device
from broker.metrics import Metrics
from broker.oom import OomKiller
from broker.pool import BY_SIGKILL, Child, Pool
from broker.residency import MOST_MB
from broker.scheduler import Scheduler
from broker.standby import Standby
from broker.states import (
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
    Outcome,
    Pinned,
    Reconfigured,
    Refuse,
    Released,
    Remembered,
    SessionClosed,
    Settled,
    Shortage,
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
from broker.views import Views
from zoo import catalogue, changes, protocol, wire
from zoo.arena import ArenaRefused
from zoo.channel import Channel
from zoo.config import MB_PER_GB, ZooConfig, load_config
from zoo.errors import ConfigError, InvalidInput, ModelNotFound, ProtocolMismatch, ZooError
from zoo.launch import Launch, Seat

log = logging.getLogger("zoo.broker")

NONSENSE_LOGGED = 100
HIGH_WATER = 4096
TERM_GRACE_S = 1.0
MEMORY_BACK_POLL_S = 0.02
MEMORY_BACK_LIMIT_S = 10.0
HOUSEKEEPING_S = 1.0
SAMPLING_S = 0.005  # of each HOUSEKEEPING_S goes into measuring workers, or one of them
TROUBLE = {
    "load failed",
    "crashed",
    "killed",
    "quarantined",
    "overdrawn",
    "memory stuck",
    "out of memory",
}  # kinds of decisions
LONGEST_REQUEST_S = 24 * 3600.0
CARRYING = (protocol.LifelineArena, protocol.LifelineChannel, protocol.LifelineCopy)  # a descriptor
UNTOLD = "somebody else, or the kernel because memory ran out (its log would say so)"


class _Session:
    """A client. Without a `line` it lives by its messages (see `protocol.SESSION_TTL_S`)."""

    __slots__ = ("client", "heard", "key", "line", "pid", "results")

    def __init__(self, key: bytes, pid: int, client: str, now: float) -> None:
        self.key = key
        self.pid = pid
        self.client = client
        self.heard = now
        self.line: Line | None = None
        self.results: set[tuple[int, int]] = set()  # (arena, offset) of workers' slots that it looks at


class _Route(msgspec.Struct, eq=False):
    """Where the answer to a request goes."""

    identity: bytes
    rid: int
    session: _Session


class _Worker:
    """A process.

    Attributes:
        number: the scheduler's; negative while it waits to be given a model.
        version: of the model's weights when it was started.
        copied: it was given a copy, and has not said yet whether that was of use.
    """

    __slots__ = (
        "arena", "channel", "child", "copied", "device", "key", "killed_at", "launch", "line", "model", "number",
        "stand_in", "term_until", "unsent", "version", "worked",
    )  # fmt: skip

    def __init__(self, number: int, key: bytes) -> None:
        self.number = number
        self.key = key
        self.model = ""
        self.device = ""
        self.version = ""
        self.launch: Launch | None = None
        self.copied = False
        self.child: Child | None = None
        self.channel: Channel | None = None
        self.line: Line | None = None
        self.arena = 0
        self.stand_in = False
        self.unsent = False
        self.worked = False
        self.killed_at = 0.0
        self.term_until = 0.0


def devices_of(config: ZooConfig) -> list[Device]:
    """The devices of a configuration, "auto" resolved."""
    if config.devices:
        return [Device(d.name, d.kind, d.budget_gb * MB_PER_GB) for d in config.devices]
    kind = config.broker.device
    if kind == "auto":
        kind = "cuda" if meters.has_cuda() else "cpu"
    name = "cuda:0" if kind == "cuda" else "cpu"
    return [Device(name, kind, config.broker.vram_budget_gb * MB_PER_GB)]


class Service:
    """One broker. `run()` returns when it has been told to stop and everything has ended."""

    def __init__(self, config: ZooConfig, endpoint_given: str = "") -> None:
        self._endpoint_given = endpoint_given  # it stands over what the file says
        self.config = self._with_endpoint(config)
        devices = devices_of(config)
        try:
            self.meters = meters.open_devices(devices)
        except LookupError as e:
            raise ConfigError(str(e)) from None
        self.scheduler = Scheduler(config.broker, devices, config.models)
        self.gauge = Gauge(self.meters)
        self.copies = Copies(int(config.broker.host_cache_mb * meters.MB))
        self.oom_killer = OomKiller()
        self.views = Views(self.scheduler, self.gauge, self.meters, self.copies)
        self._footprints = footprints.Store(config.state) if self._measures else None
        self._learnt = 0
        self.boot = secrets.token_hex(8)
        self._told = 0
        self._sessions: dict[bytes, _Session] = {}
        self._routes: dict[int, _Route] = {}
        self._by_route: dict[tuple[bytes, int], int] = {}
        self._workers: dict[int, _Worker] = {}
        self._by_key: dict[bytes, _Worker] = {}
        self._standby = Standby()
        self._forked = itertools.count(1)
        self._next_request = 0
        self._ending: dict[int, float] = {}  # worker → since when; 0: reported as stuck, looked for ever after
        self._terminating: set[int] = set()
        self._nonsense = 0
        self._stop = False
        self._watch: dict[int, Callable[[], object]] = {}
        self._housekeeping_at = 0.0
        self._cores = os.cpu_count() or 1

        self.place = endpoint.claim(config.endpoint)
        self._context = zmq.Context()
        self._front = self._router(config.endpoint)
        self.handoff = Handoff(self.place.handoff, config.broker.arena_limit_mb << 20)
        self._epoll = select.epoll()
        self._add(self.handoff.fileno(), self._accept)
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._add(self._wake_read, self._woken)
        if str(config.base) not in sys.path:
            sys.path.append(str(config.base))  # adapters may lie beside config.toml
        self.pool = Pool(_preload(config))
        self._add(self.pool.fileno(), self._started)
        self._refill()
        self.metrics = Metrics(self.scheduler, self.copies, config.broker.metrics)
        self._actions: dict[type, Callable[[Any], None]] = {
            StartWorker: self._do_start,
            KillWorker: self._do_kill,
            Dispatch: self._do_dispatch,
            Deliver: self._do_deliver,
            Answer: self._do_answer,
            Refuse: self._do_refuse,
            Settled: self._do_settled,
            Forget: self._do_forget,
            Stop: self._do_stop,
        }
        for name in self.scheduler.models:
            self._recall(name)
        self._asks: dict[type, Callable[[bytes, _Session, Any, list[bytes]], None]] = {
            protocol.Infer: self._infer,
            protocol.Load: self._load,
            protocol.Release: self._release,
            protocol.Unload: self._unload,
            protocol.Pin: self._pin,
            protocol.CleanupIdle: self._cleanup_idle,
            protocol.Query: self._query,
            protocol.Cancel: self._cancel,
            protocol.Reload: self._reload,
            protocol.Ping: lambda *_: None,
            protocol.Bye: lambda _i, session, _m, _p: self._end_session(session),
        }

    def _router(self, where: str) -> zmq.Socket[bytes]:
        sock: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        sock.setsockopt(zmq.ROUTER_MANDATORY, 1)
        sock.setsockopt(zmq.LINGER, 0)
        sock.setsockopt(zmq.SNDHWM, HIGH_WATER)
        sock.setsockopt(zmq.RCVHWM, HIGH_WATER)
        sock.setsockopt(zmq.MAXMSGSIZE, protocol.MAX_MESSAGE_BYTES)
        if where.startswith("tcp://"):
            endpoint.secure(self._context, sock, self.config.resolve(self.config.broker.curve_dir))
        try:
            sock.bind(where)
        except zmq.ZMQError as e:
            raise ConfigError(f"cannot listen on {where}: {e}") from None
        endpoint.restrict(where)
        return sock

    # ------------------------------------------------------------ the loop

    def run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._front, zmq.POLLIN)
        poller.register(self._epoll.fileno(), zmq.POLLIN)
        epoll_fd = self._epoll.fileno()
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        log.info("serving on %s, %s", self.config.endpoint, self._describe())
        front, receive = self._front, wire.receive
        try:
            while not self._stop:
                due = self._due()
                for source, _ in poller.poll(max(0, math.ceil((due - time.monotonic()) * 1000))):
                    if source is front:  # one message each a turn: nobody waits for another's burst
                        self._from_client(receive(front))
                    elif source == epoll_fd:
                        for fd, _ in self._epoll.poll(0):
                            self._run_watch(fd)
                if time.monotonic() >= due:
                    self._time_passes()
        finally:
            signal.set_wakeup_fd(-1)
            self.close()

    def _due(self) -> float:
        """When there is something to do at the latest, whatever happens."""
        due = self.scheduler.next_wakeup()
        soonest = self._housekeeping_at if due is None or due > self._housekeeping_at else due
        if self._terminating or any(self._ending.values()):
            soonest = min(soonest, time.monotonic() + MEMORY_BACK_POLL_S)
        return soonest

    def _time_passes(self) -> None:
        now = time.monotonic()
        self._handle(Tick())
        if self._terminating:
            self._escalate(now)
        if any(self._ending.values()):
            self._look_for_memory(now)
        if now >= self._housekeeping_at:
            self._housekeeping_at = now + HOUSEKEEPING_S
            self.oom_killer.watch()
            self._look_for_memory(now)
            self._sample()
            self._refill()
            for session in list(self._sessions.values()):
                if session.line is None and now - session.heard > protocol.SESSION_TTL_S:
                    self._end_session(session)
            for line in self.handoff.nameless(now):
                self._close_line(line)
            self.handoff.flush()

    def _handle(self, event: Event) -> None:
        actions = self.scheduler.handle(event, time.monotonic())
        do = self._actions
        for action in actions:
            do[type(action)](action)
        if self.scheduler.story.count != self._told:
            self._tell()

    def _tell(self) -> None:
        for line in self.scheduler.story.since(self._told):
            level = logging.WARNING if line.kind in TROUBLE else logging.INFO
            log.log(level, "%s%s", f"{line.model}: " if line.model else "", line.text, extra={"line": line})
        self._told = self.scheduler.story.count

    def _add(self, fd: int, act: Callable[[], object]) -> None:
        self._epoll.register(fd, select.EPOLLIN)
        self._watch[fd] = act

    def _drop(self, fd: int) -> None:
        if self._watch.pop(fd, None) is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    def _run_watch(self, fd: int) -> None:
        act = self._watch.get(fd)
        if act is not None:  # a line may have been closed by what came before it in the same turn
            act()

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            numbers = os.read(self._wake_read, 64)
            if any(n in (signal.SIGTERM, signal.SIGINT) for n in numbers):
                again = self.scheduler.stopping
                self._handle(ShutDown(0.0 if again else self.config.broker.drain_seconds))
            elif signal.SIGHUP in numbers:
                try:
                    self.reload()
                except ConfigError as e:
                    log.error("the configuration stays as it is: %s", e)

    def close(self) -> None:
        """Leaves nothing behind, also when it is called in the middle of something."""
        for worker in self._workers.values():
            if worker.child is not None:
                worker.child.signal(signal.SIGKILL)
        self._remember()
        self.metrics.close()
        self.pool.close()
        for worker in self._workers.values():
            if worker.child is not None:
                worker.child.close()
        self.handoff.shut()
        for worker in self._workers.values():
            self._close_channel(worker)
        self.gauge.close()
        self.copies.close()
        self._front.close()
        endpoint.stop_security(self._context)
        self._context.term()
        self._epoll.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
        self.place.release()

    # ------------------------------------------------------------ clients ask

    def _from_client(self, parts: list[bytes]) -> None:
        identity = parts[0]
        try:
            if not 2 <= len(parts) <= 1 + protocol.MAX_PARTS:
                raise ProtocolMismatch(f"a message of {len(parts)} parts")
            message = protocol.unpack_from_client(parts[1])
        except ProtocolMismatch as e:
            self._complain("unreadable message from a client: %s", e)
            self._to_client(identity, protocol.Error(0, e.code, str(e)[: protocol.MAX_TEXT]))
            return
        if type(message) is protocol.Hello:
            self._hello(identity, message)
            return
        session = self._sessions.get(identity[: protocol.SESSION_BYTES])
        if session is None:
            rid = getattr(message, "rid", 0)
            if rid:
                self._to_client(
                    identity,
                    protocol.Error(rid, "broker_unreachable", protocol.UNKNOWN_SESSION, True),
                )
            return
        session.heard = time.monotonic()
        try:
            self._asks[type(message)](identity, session, message, parts)
        except ZooError as e:
            rid = getattr(message, "rid", 0)
            text = str(e)[: protocol.MAX_TEXT]
            self._to_client(identity, protocol.Error(rid, e.code, text, e.retryable, e.retry_after))

    def _complain(self, text: str, *what: object) -> None:
        """Logs nonsense that somebody sent, until it is clear that there is no end to it."""
        self._nonsense += 1
        if self._nonsense <= NONSENSE_LOGGED:
            log.warning(text, *what)

    def _hello(self, identity: bytes, message: protocol.Hello) -> None:
        key = message.session
        if len(key) != protocol.SESSION_BYTES or not identity.startswith(key):
            text = f"a session key has {protocol.SESSION_BYTES} bytes and begins the socket's routing id"
            self._to_client(identity, protocol.Error(0, "protocol_mismatch", text))
            return
        if key not in self._sessions:
            self._sessions[key] = _Session(key, message.pid, message.client[:80], time.monotonic())
        handoff = None if self.config.endpoint.startswith("tcp://") else self.place.handoff
        self._to_client(identity, protocol.Welcome(handoff, self.handoff.limit, self.boot))

    def _route(self, identity: bytes, session: _Session, rid: int) -> int:
        key = (identity, rid)
        if key in self._by_route:
            raise InvalidInput(f"rid: {rid} is already in use on this socket")
        self._next_request += 1
        self._by_route[key] = self._next_request
        self._routes[self._next_request] = _Route(identity, rid, session)
        return self._next_request

    def _ask(
        self,
        identity: bytes,
        session: _Session,
        rid: int,
        model: str,
        kind: Kind,
        timeout_ms: int,
        priority: int = 2,
        payload: Any = None,
        keep_alive: float | None = None,
    ) -> None:
        if len(model) > 64:
            raise ModelNotFound(f"there is no model {model[:64]!r}…; names have at most 64 characters")
        now = time.monotonic()
        seconds = timeout_ms / 1000 if timeout_ms > 0 else self.config.broker.request_timeout
        problem = None
        if self.scheduler.is_cold(model):
            problem = self._problem(model)
            self._recall(model)
        request = self._route(identity, session, rid)
        self._handle(
            Asked(
                request,
                session.key,
                model,
                kind,
                now + min(seconds, LONGEST_REQUEST_S),
                priority,
                payload,
                keep_alive,
                problem,
            )
        )

    def _problem(self, name: str) -> str | None:
        """Why the model cannot be loaded as things stand, as far as one look at the disk tells."""
        model = self.scheduler.models.get(name)
        return catalogue.problem(self.config, model.config) if model is not None else None

    def _infer(self, identity: bytes, session: _Session, m: protocol.Infer, parts: list[bytes]) -> None:
        if len(m.arenas) > protocol.MAX_ARENAS:
            raise InvalidInput(f"arenas: {len(m.arenas)} of them, at most {protocol.MAX_ARENAS} go into one request")
        for number in m.arenas:
            if not self.handoff.owned_by(number, session.key):
                raise InvalidInput(f"frame: arena {number} is not one that this client shared")
        if not 0 <= m.priority <= 3:
            raise InvalidInput(f"priority: {m.priority} is not between 0 (first) and 3 (last)")
        payload = (m.arenas, session.line is None, parts[2:])
        self._ask(identity, session, m.rid, m.model, Kind.INFER, m.timeout_ms, m.priority, payload)

    def _load(self, identity: bytes, session: _Session, m: protocol.Load, _: list[bytes]) -> None:
        if m.keep_alive is not None and not 0 <= m.keep_alive < math.inf:
            raise InvalidInput(f"keep_alive: {m.keep_alive} is not a number of seconds")
        kind = Kind.LEASE if m.lease else Kind.PRELOAD
        self._ask(identity, session, m.rid, m.model, kind, m.timeout_ms, keep_alive=m.keep_alive)

    def _release(self, identity: bytes, session: _Session, m: protocol.Release, _: list[bytes]) -> None:
        self._handle(Released(session.key, m.lease))
        if m.rid:
            self._to_client(identity, protocol.Value(m.rid))

    def _unload(self, identity: bytes, session: _Session, m: protocol.Unload, _: list[bytes]) -> None:
        self._ask(identity, session, m.rid, m.model, Kind.UNLOAD, m.timeout_ms)

    def _pin(self, identity: bytes, session: _Session, m: protocol.Pin, _: list[bytes]) -> None:
        model = self.scheduler.models.get(m.model)
        if model is None or model.removed:
            raise ModelNotFound(self.scheduler.no_such_model(m.model[:64]))
        self._handle(Pinned(m.model, m.on))
        self._to_client(identity, protocol.Value(m.rid))

    def _reload(self, identity: bytes, session: _Session, m: protocol.Reload, _: list[bytes]) -> None:
        self._to_client(identity, protocol.Value(m.rid, self.reload()))

    def _cleanup_idle(self, identity: bytes, session: _Session, m: protocol.CleanupIdle, _: list[bytes]) -> None:
        if not 0 <= m.idle_seconds < math.inf:
            raise InvalidInput(f"idle_seconds: {m.idle_seconds} is not a number of seconds")
        names = self.scheduler.idle_models(m.idle_seconds, time.monotonic())
        self._handle(IdleCleanup(m.idle_seconds))
        self._to_client(identity, protocol.Value(m.rid, names))

    def _cancel(self, identity: bytes, session: _Session, m: protocol.Cancel, _: list[bytes]) -> None:
        asked = self.scheduler.sessions.get(session.key)
        for request in tuple(asked.requests) if asked is not None else ():
            if self._routes[request].rid == m.rid:
                self._handle(Withdrawn(request))
                return

    def _query(self, identity: bytes, session: _Session, m: protocol.Query, _: list[bytes]) -> None:
        if m.what == "status":
            value: Any = self.views.status(self.config, self.boot, len(self._sessions))
        elif m.what == "models":
            value = self.views.models(self.config)
        elif m.what == "ps":
            value = self.views.processes(self._workers)
        elif m.what == "explain":
            value = self.views.explain(m.model)
        elif m.what == "enrich":
            value = self.views.enrich(self.config)
        else:
            raise InvalidInput(f"what: {m.what!r} is not one of status, models, ps, explain, enrich")
        self._to_client(identity, protocol.Value(m.rid, value))

    def _to_client(self, identity: bytes, message: protocol.Message, *rest: bytes) -> bool:
        """False when it cannot be delivered: the client is gone, or does not read its answers."""
        try:
            wire.send(self._front, (identity, protocol.pack(message), *rest))
        except zmq.ZMQError as e:
            if e.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            return False
        return True

    # ------------------------------------------------------------ workers report

    def _read_channel(self, number: int) -> bool:
        """Takes what a worker says, and goes on with what it has been too slow to read. False: there was nothing."""
        worker = self._workers.get(number)
        if worker is None or worker.channel is None:
            return False
        try:
            if worker.unsent and worker.channel.flush():
                self._watch_writing(worker, False)
            messages = worker.channel.take()
        except OSError as e:
            self._lost_channel(worker, e)
            return False
        for parts in messages or ():
            if number > 0:  # whoever waits for a model has nothing to say
                self._from_worker(number, parts)
        return messages is not None

    def _lost_channel(self, worker: _Worker, why: OSError) -> None:
        """Its end has closed: it is ending, or talks nonsense and has to."""
        log.debug("the channel of worker %d of %s: %s", worker.number, worker.model, why)
        self._close_channel(worker)
        if worker.child is not None:
            worker.child.signal(signal.SIGKILL)

    def _close_channel(self, worker: _Worker) -> None:
        channel, worker.channel = worker.channel, None
        if channel is not None:
            self._drop(channel.fd)
            channel.close()

    def _watch_writing(self, worker: _Worker, on: bool) -> None:
        assert worker.channel is not None
        worker.unsent = on
        self._epoll.modify(worker.channel.fd, select.EPOLLIN | (select.EPOLLOUT if on else 0))

    def _tell_worker(self, worker: _Worker, parts: tuple[bytes, ...]) -> None:
        assert worker.channel is not None
        try:
            if not worker.channel.send(parts) and not worker.unsent:
                self._watch_writing(worker, True)
        except OSError as e:
            self._lost_channel(worker, e)

    def _from_worker(self, number: int, parts: list[bytes]) -> None:
        try:
            message = protocol.unpack_from_worker(parts[0])
        except ProtocolMismatch as e:
            log.warning("unreadable message from worker %d: %s", number, e)
            return
        kind = type(message)
        if kind is protocol.Done:
            bodies = iter(parts[1:])
            try:
                outcomes = [
                    Outcome(o.id, None, (o.code, o.message), _short(o.short))
                    if o.code
                    else Outcome(o.id, (o.offsets, next(bodies)))
                    for o in message.outcomes  # type: ignore[union-attr]
                ]
            except StopIteration:
                log.warning("worker %d sent fewer results than it said", number)
                return
            worker = self._workers[number]
            first, worker.worked = not worker.worked, True
            # Unknown, it may be evicted in the very next moment; grown, it holds what others may be about to be given.
            if message.grown or (first and not self.scheduler.is_measured(number)):  # type: ignore[union-attr]
                self._measure(number)
            if any(outcome.short is not None for outcome in outcomes):
                self._look_at(worker.device)
            self._handle(WorkerDone(number, outcomes, message.halved))  # type: ignore[union-attr]
            if len(self._standby) < self.config.broker.standby and self.scheduler.is_idle:
                self._refill()
        elif kind is protocol.Loaded:
            self._workers[number].stand_in = message.stand_in  # type: ignore[union-attr]
            self.gauge.loaded(number)
            self._handle(WorkerReady(number, message.max_batch))  # type: ignore[union-attr]
            self._used_copy(self._workers[number], message.copied)  # type: ignore[union-attr]
            self.metrics.loaded(self._workers[number].model, self.scheduler.loaded_in(number))
            self._report(number)
        elif kind is protocol.LoadError:
            assert isinstance(message, protocol.LoadError)
            if message.short is not None:
                self._measure(number)
                self._look_at(self._workers[number].device)
            self._handle(WorkerLoadFailed(number, message.code, message.message, _short(message.short)))

    def _used_copy(self, worker: _Worker, used: bool) -> None:
        """A copy that was given and did not lead to a loaded model is not given again."""
        if used:
            log.info("%s: made of its copy", worker.model)
        elif worker.copied:
            log.warning("%s: the copy of it that was kept is of no use and dropped", worker.model)
            self.copies.drop(worker.model, worker.device)
        worker.copied = False

    # ------------------------------------------------------------ processes

    def _fork(self) -> _Worker:
        """Has a process made that waits for its model."""
        worker = _Worker(-next(self._forked), b"w-" + secrets.token_bytes(12))
        self._workers[worker.number] = worker
        self._by_key[worker.key] = worker
        self.pool.start(Seat(worker.key, self.place.handoff, self.handoff.limit))
        return worker

    def _refill(self) -> None:
        """Sees to it that as many wait in reserve as should. Not while a model is loading: a fork would slow that."""
        if self.scheduler.stopping or self.scheduler.is_loading:
            return
        now, wanted = time.monotonic(), self.config.broker.standby
        for _ in range(self._standby.lacks(wanted, now)):
            self._standby.add(self._fork().number)
        while len(self._standby) > wanted and (number := self._standby.take()) is not None:
            self._do_kill(KillWorker(number))

    def _employ(self, number: int) -> _Worker:
        """A process for the scheduler's worker of that number: one that waits, however far it is, or else a new one."""
        while (waiting := self._standby.take()) is not None:
            worker = self._workers[waiting]
            if worker.child is None or worker.child.reap() is None:  # the news of its end may be on the way to us
                self._standby.used()
                break
        else:
            worker = self._fork()
        self._workers[number] = self._workers.pop(worker.number)
        worker.number = number
        return worker

    def _started(self) -> None:
        for key, outcome in self.pool.take_started():
            worker = self._by_key.get(key)
            if worker is None:
                if isinstance(outcome, Child):
                    outcome.signal(signal.SIGKILL)
                    outcome.close()
                continue
            if isinstance(outcome, str):
                number = worker.number
                self._forget_worker(number)
                if number < 0:
                    self._standby.lost(number, time.monotonic())
                    continue
                self._handle(WorkerExited(number, outcome))
                self.gauge.forget(number)
                self._handle(MemoryBack(number))
                continue
            worker.child = outcome
            if worker.number > 0:
                self.gauge.born(worker.number, outcome.pid)
            self._add(outcome.sentinel, lambda w=worker: self._ended(w.number))  # type: ignore[misc]
            if worker.killed_at:
                outcome.signal(signal.SIGKILL)

    def _ended(self, number: int) -> None:
        worker = self._workers[number]
        assert worker.child is not None
        how = worker.child.reap()
        if how is None:
            return
        starved = None
        if how == BY_SIGKILL and not worker.killed_at:
            starved = self.oom_killer.struck()
            how += ", by " + {True: "the kernel: memory ran out", False: "somebody else", None: UNTOLD}[starved]
        while self._read_channel(number):  # what it said before it ended comes before its end
            pass
        if number > 0:
            self.gauge.end(number, worker.line.fd if worker.line is not None else None)
        if worker.line is not None:
            self._close_line(worker.line)
        self._drop(worker.child.sentinel)
        worker.child.close()
        self._forget_worker(number)
        if number < 0:
            if not worker.killed_at:
                log.warning("a process that waited for a model has ended: %s", how)
                self._standby.lost(number, time.monotonic())
            return
        self._used_copy(worker, False)
        self._handle(WorkerExited(number, how, starved is True))
        self._ending[number] = time.monotonic()
        self._look_for_memory(time.monotonic())

    def _forget_worker(self, number: int) -> None:
        worker = self._workers.pop(number, None)
        if worker is not None:
            self._close_channel(worker)
            self._by_key.pop(worker.key, None)
            self._terminating.discard(number)

    def _look_for_memory(self, now: float) -> None:
        for number, since in list(self._ending.items()):
            if self.gauge.back(number):
                del self._ending[number]
                self._handle(MemoryBack(number))
            elif since and now - since > MEMORY_BACK_LIMIT_S:
                self._ending[number] = 0.0
                self._handle(MemoryStuck(number))

    def _escalate(self, now: float) -> None:
        for number in list(self._terminating):
            worker = self._workers[number]
            if now >= worker.term_until and worker.child is not None:
                self._terminating.discard(number)
                worker.child.signal(signal.SIGKILL)

    # ------------------------------------------------------------ configuration

    def _with_endpoint(self, config: ZooConfig) -> ZooConfig:
        if self._endpoint_given:
            config.broker.endpoint = self._endpoint_given
        return config

    def reload(self) -> list[str]:
        """Reads the file again; gives what has changed.

        Raises:
            ConfigError: it is not valid, and nothing was changed.
        """
        if self.config.file is None:
            raise ConfigError("this broker was started without a config.toml: there is nothing to read again")
        found = changes.compare(self.config, self._with_endpoint(load_config(self.config.file)))
        if not found.lines:
            return []
        self.config = found.config
        broker, budgets = self.config.broker, {d.name: d.budget_gb * MB_PER_GB for d in self.config.devices}
        if not budgets:
            budgets = dict.fromkeys(self.meters, broker.vram_budget_gb * MB_PER_GB)
        self._handle(Reconfigured(broker, budgets, self.config.models, found.restart, found.lines))
        self.copies.resize(int(broker.host_cache_mb * meters.MB))
        for name in {*found.restart, *(name for name in self.copies.models() if name not in self.scheduler.models)}:
            self.copies.forget(name)
        for name in list(self.scheduler.models):
            if self.scheduler.is_cold(name):
                self._recall(name)
        return found.text()

    # ------------------------------------------------------------ memory

    @property
    def _measures(self) -> bool:
        return self.config.broker.footprint == "measured"

    def _measure(self, number: int) -> None:
        """Reads what a worker uses, and tells the scheduler."""
        if self._measures:
            self.gauge.read(number)
            self._report(number)

    def _report(self, number: int) -> None:
        if self._measures and (mb := self.gauge.seen_mb(number)):
            self._handle(Measured(number, mb, self._workers[number].worked and self.gauge.is_told(number)))

    def _sample(self) -> None:
        """Looks at a few workers, and at what everybody else uses."""
        end = time.monotonic() + SAMPLING_S
        for number in self.gauge.stalest():
            if number in self._workers:
                self._measure(number)
            if time.monotonic() >= end:
                break
        for device in self.meters:
            self._look_at(device)
        self._remember()

    def _look_at(self, device: str) -> None:
        """Reads what everybody else uses of the device, and tells the scheduler."""
        if self._measures and (seen := self.gauge.others(device)) is not None:
            self._handle(DeviceSeen(device, *seen))

    def _recall(self, name: str) -> None:
        """Sees to it that the scheduler knows what was measured of the weights that lie there now, and no others."""
        if self._footprints is not None:
            model = self.scheduler.models[name]
            weights = footprints.version(self.config, model.config)
            if weights != model.version:
                self._handle(Remembered(name, weights, self._footprints.recall(name, weights)))

    def _remember(self) -> None:
        """Writes down what is new."""
        if self._footprints is not None and self._learnt != self.scheduler.learnt:
            self._learnt = self.scheduler.learnt
            for model in self.scheduler.models.values():
                if model.peaks:
                    self._footprints.known[model.name] = footprints.Known(model.version, dict(model.peaks))
            self._footprints.save()

    # ------------------------------------------------------------ lifelines

    def _accept(self) -> None:
        for line in self.handoff.accept():
            self._add(line.fd, lambda ln=line: self._read_line(ln))  # type: ignore[misc]

    def _read_line(self, line: Line) -> None:
        if self.handoff.lines.get(line.fd) is not line:
            return
        try:
            for message, fd in self.handoff.receive(line):
                self._line_says(line, message, fd)
        except ConnectionError:
            self._lost_line(line)

    def _line_says(self, line: Line, message: protocol.LifelineMessage, fd: int | None) -> None:
        if fd is not None and type(message) not in CARRYING:
            os.close(fd)
        if isinstance(message, protocol.LifelineAttach):
            if not self._attach(line, message):
                raise ConnectionError("refused")
        elif not line.key:
            if fd is not None and type(message) in CARRYING:
                os.close(fd)
            raise ConnectionError("it did not say who it is")
        elif isinstance(message, protocol.LifelineArena):
            number = self.handoff.offer(line, fd)
            if number is not None:
                if line.role == "worker":
                    self._by_key[line.key].arena = number
                else:
                    line.send(protocol.LifelineAccepted(number))
        elif isinstance(message, protocol.LifelineChannel):
            self._open_channel(line, fd)
        elif isinstance(message, protocol.LifelineCopy):
            self._take_copy(line, message.why, fd)
        elif isinstance(message, protocol.LifelineReleased) and line.role == "client":
            session = self._sessions.get(line.key)
            if session is not None and (message.id, message.offset) in session.results:
                session.results.discard((message.id, message.offset))
                self._free_result(message.id, message.offset)
                if message.id not in self.handoff.arenas and not self._still_read(line.key, message.id):
                    line.send(protocol.LifelineGone(message.id))
        elif isinstance(message, protocol.LifelineFingerprint) and line.role == "worker":
            self._handle(WorkerSaid(self._by_key[line.key].number, message.id, message.digest[:64]))

    def _open_channel(self, line: Line, fd: int | None) -> None:
        worker = self._by_key.get(line.key) if line.role == "worker" else None
        if fd is None or worker is None or worker.channel is not None:
            if fd is not None:
                os.close(fd)
            raise ConnectionError("it offered a channel that nobody asked for")
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        worker.channel = Channel(sock)
        self._add(sock.fileno(), lambda: self._read_channel(worker.number))
        self._brief(worker)

    def _take_copy(self, line: Line, why: str, fd: int | None) -> None:
        """A worker offers a copy of its model, or says why there is none."""
        worker = self._by_key.get(line.key) if line.role == "worker" else None
        model = self.scheduler.models.get(worker.model) if worker is not None else None
        if worker is None or model is None or footprints.version(self.config, model.config) != worker.version:
            if fd is not None:
                os.close(fd)  # of weights that are not there any more
            return
        if fd is None:
            if self.copies.give_up(worker.model, worker.device, worker.version):
                log.info("%s: no copy of it can be kept, it is always loaded from its weights: %s", worker.model, why)
            return
        try:
            size = self.copies.keep(worker.model, worker.device, worker.version, fd)
            log.info("%s: a copy of it is kept in host memory, %d MB", worker.model, size >> 20)
        except ArenaRefused as e:
            log.info("%s: its copy is not kept: %s", worker.model, e)

    def _attach(self, line: Line, message: protocol.LifelineAttach) -> bool:
        if message.role == "client":
            session = self._sessions.get(message.key)
            if session is None or session.line is not None:
                line.send(protocol.LifelineRefused("broker_unreachable", "say Hello first; the session is unknown"))
                return False
            if not self.handoff.attach(line, message):
                return False
            session.line, session.pid = line, line.pid
            line.send(protocol.LifelineAccepted(0))
            return True
        worker = self._by_key.get(message.key)
        if message.role != "worker" or worker is None or not self.handoff.attach(line, message):
            return False
        worker.line = line
        return True

    def _lost_line(self, line: Line) -> None:
        session = self._sessions.get(line.key) if line.role == "client" else None
        if session is not None and session.line is line:
            self._end_session(session)
        else:
            if line.role == "worker" and (worker := self._by_key.get(line.key)) is not None:
                worker.line = None  # its exit follows
            self._close_line(line)

    def _close_line(self, line: Line) -> None:
        if line.role == "worker" and line.key in self._by_key:
            with contextlib.suppress(ConnectionError):  # what it said last counts (a fingerprint, an arena)
                for message, fd in self.handoff.receive(line):
                    self._line_says(line, message, fd)
        self._drop(line.fd)
        self.handoff.close(line, self._still_read)

    def _end_session(self, session: _Session) -> None:
        if self._sessions.pop(session.key, None) is None:
            return
        self._handle(SessionClosed(session.key))
        for arena, offset in session.results:
            self._free_result(arena, offset)
        session.results.clear()
        if session.line is not None:
            line, session.line = session.line, None
            self._close_line(line)

    def _still_read(self, session: bytes, arena: int) -> bool:
        """Whether the client has results in that arena, or on their way to it."""
        found = self._sessions.get(session)
        return found is not None and any(number == arena for number, _ in found.results)

    def _free_result(self, arena: int, offset: int) -> None:
        """The worker may use the slot again."""
        found = self.handoff.arenas.get(arena)
        line = self.handoff.by_key.get(found.owner) if found is not None else None
        if line is not None:
            line.send(protocol.LifelineReleased(arena, offset))

    # ------------------------------------------------------------ deeds

    def _do_start(self, a: StartWorker) -> None:
        config = self.scheduler.models[a.model].config
        self.gauge.start(a.worker, a.device)
        worker = self._employ(a.worker)
        worker.model, worker.device = a.model, a.device
        if worker.child is not None:
            self.gauge.born(a.worker, worker.child.pid)
        path = self.config.weights(config)
        worker.launch = Launch(
            model=a.model,
            adapter=config.adapter,
            path=str(path) if path is not None else None,
            category=config.category,
            options=config.options,
            trust_pickle=config.trust_pickle,
            device=a.device if self.scheduler.ledger.devices[a.device].kind == "cuda" else "cpu",
            threads=self.config.broker.worker_threads or max(1, self._cores // 4),
            pull=config.published if self.config.broker.auto_pull and config.published.fetchable else None,
        )
        self._brief(worker)

    def _brief(self, worker: _Worker) -> None:
        """Tells a process its model, as soon as there is a model to tell and a channel to tell it by."""
        if worker.launch is None or worker.channel is None or worker.line is None:
            return
        launch, worker.launch = worker.launch, None
        if self.copies.limit_bytes and (model := self.scheduler.models.get(worker.model)) is not None:
            worker.version = footprints.version(self.config, model.config)
            fd = self.copies.get(worker.model, worker.device, worker.version)
            worker.copied = fd is not None and worker.line.send(protocol.LifelineCopy(), fd)
            wanted = 0 if fd is not None else self.copies.wanted_bytes(worker.model, worker.device, worker.version)
            launch = msgspec.structs.replace(launch, copied=worker.copied, copy_bytes=wanted)
        self._tell_worker(worker, (msgspec.msgpack.encode(launch),))

    def _do_kill(self, a: KillWorker) -> None:
        worker = self._workers.get(a.worker)
        if worker is None:
            return
        worker.killed_at = time.monotonic()
        if worker.child is None:
            return  # killed as soon as it exists, see _started
        if a.gentle:
            worker.term_until = worker.killed_at + TERM_GRACE_S
            self._terminating.add(a.worker)
            worker.child.signal(signal.SIGTERM)
        else:
            worker.child.signal(signal.SIGKILL)

    def _do_dispatch(self, a: Dispatch) -> None:
        worker = self._workers.get(a.worker)
        if worker is None or worker.channel is None:
            return  # it has ended; its exit is on the way to the scheduler
        line = worker.line
        jobs, bodies = [], []
        for request, (arenas, inline, parts) in a.batch:
            for number in arenas:
                if line is None or (number not in line.given and not self.handoff.share(number, line)):
                    break  # the worker then refuses the frame by itself, or is gone
            jobs.append(protocol.Job(request, arenas, inline, len(parts)))
            bodies += parts
        header = protocol.pack(protocol.Dispatch(tuple(jobs), a.suspect, a.refuse))
        self._tell_worker(worker, (header, *bodies))

    def _route_out(self, request: int) -> _Route | None:
        route = self._routes.pop(request, None)
        if route is not None:
            key = (route.identity, route.rid)
            if self._by_route.get(key) == request:
                del self._by_route[key]
        return route

    def _do_deliver(self, a: Deliver) -> None:
        route = self._route_out(a.request)
        offsets, body = a.body
        if route is None:
            return
        arena = 0
        session = route.session
        if offsets:
            arena = self._result_arena(a.worker)
            line = session.line
            if line is None or not arena or not self.handoff.share(arena, line):
                self._give_back_result(a.worker, offsets)
                text = "the result is large and this connection cannot share memory"
                self._to_client(route.identity, protocol.Error(route.rid, "inference_failed", text))
                return
            session.results.update((arena, offset) for offset in offsets)
        if not self._to_client(route.identity, protocol.Result(route.rid, arena), body) and offsets:
            session.results.difference_update((arena, offset) for offset in offsets)
            self._give_back_result(a.worker, offsets)

    def _result_arena(self, number: int) -> int:
        """The worker's arena; its offer lies on the lifeline when it is not known yet."""
        worker = self._workers.get(number)
        if worker is None:
            return 0
        if not worker.arena and worker.line is not None:
            self._read_line(worker.line)
        return worker.arena

    def _give_back_result(self, number: int, offsets: tuple[int, ...]) -> None:
        arena = self._result_arena(number)
        for offset in offsets:
            self._free_result(arena, offset)

    def _do_answer(self, a: Answer) -> None:
        route = self._route_out(a.request)
        if route is not None:
            self._to_client(route.identity, protocol.Value(route.rid, a.value))

    def _do_refuse(self, a: Refuse) -> None:
        route = self._routes.get(a.request) if a.held else self._route_out(a.request)
        if route is None:
            return
        if a.held:
            self._by_route.pop((route.identity, route.rid), None)
        text = a.message[: protocol.MAX_TEXT]
        message = protocol.Error(route.rid, a.code, text, a.retryable, a.retry_after, a.held, a.request)
        self._to_client(route.identity, message)

    def _do_settled(self, a: Settled) -> None:
        route = self._route_out(a.request)
        if a.body is not None and a.body[0]:
            self._give_back_result(a.worker, a.body[0])
        if route is not None and route.session.line is not None:
            route.session.line.send(protocol.LifelineSettled(route.rid))

    def _do_forget(self, a: Forget) -> None:
        self._route_out(a.request)

    def _do_stop(self, _: Stop) -> None:
        self._stop = True

    def _describe(self) -> str:
        devices = ", ".join(f"{d.name} {d.budget_mb:g} MB" for d in self.scheduler.ledger.devices.values())
        return f"{len(self.scheduler.models)} models, {devices}"


def _short(said: protocol.Shortage | None) -> Shortage | None:
    """What no device could hold is not believed."""
    if said is None:
        return None
    return Shortage(*(mb if 0 <= mb <= MOST_MB else 0.0 for mb in (said.used_mb, said.asked_mb)))


def _preload(config: ZooConfig) -> list[str]:
    """Modules for the nursery: the adapters that come with the zoo (a user's own code is not run there)."""
    wanted: dict[str, None] = dict.fromkeys(config.broker.preload)
    for model in config.models:
        module = model.adapter.partition(":")[0]
        if model.enabled and module.startswith("workers.models."):
            wanted[module] = None
    return list(wanted)
