"""The service's part about clients: what they ask becomes events, and the scheduler's answers find their way back."""

from __future__ import annotations

import contextlib
import logging
import math
import secrets
import time
from collections.abc import Callable
from typing import Any

import msgspec
import zmq

from broker.fleet.crew import Crew
from broker.front import misread
from broker.front.departed import Departed
from broker.front.handoff import Line
from broker.front.inline import FREE_BYTES, InlineBytes
from broker.front.keyring import curve_key
from broker.front.outgoing import LOOK_BYTES, Outgoing
from broker.front.roles import Roles
from broker.scheduler.events import (
    Answer,
    Asked,
    Deliver,
    Forget,
    IdleCleanup,
    Kind,
    Pinned,
    Refuse,
    Released,
    SessionClosed,
    Settled,
    Withdrawn,
)
from broker.status import Views
from zoo.config.schema import ZooConfig
from zoo.errors import BrokerUnreachable, InvalidInput, ModelNotFound, ProtocolMismatch, QueueFull, ZooError
from zoo.weights import catalogue
from zoo.wire import multipart, protocol

log = logging.getLogger("zoo.broker")

NONSENSE_LOGGED = 100
FULL_RETRY_S = 1.0
GAVE_KEPT = 256
WENT_WRONG = "an error in the broker, see its log; this client's session has ended, its next call opens another"
LONGEST_REQUEST_S = 24 * 3600.0


class Session:
    """A client. Without a `line` it lives by its messages (see `protocol.SESSION_TTL_S`)."""

    __slots__ = ("client", "curve_key", "gave", "heard", "held", "key", "line", "pid", "results")

    def __init__(self, key: bytes, pid: int, client: str, now: float) -> None:
        self.key = key
        self.pid = pid
        self.client = client
        self.heard = now
        self.line: Line | None = None
        self.curve_key = ""  # with tcp://
        self.held = 0  # bytes of its frames that wait here
        self.results: set[tuple[int, int]] = set()  # (arena, offset) of workers' slots that it looks at
        self.gave: dict[int, int | list[tuple[int, int]]] = {}  # by rid: the lease, or the slots, of its last answers

    def note(self, rid: int, gave: int | list[tuple[int, int]]) -> None:
        """What an answer gives, in case it does not arrive."""
        self.gave[rid] = gave
        if len(self.gave) > GAVE_KEPT:
            del self.gave[next(iter(self.gave))]

    @property
    def uid(self) -> int | None:
        """The user behind its lifeline, as the kernel knows it."""
        return self.line.uid if self.line is not None else None


class _Route(msgspec.Struct, eq=False):
    """Where the answer to a request goes."""

    identity: bytes
    rid: int
    session: Session
    size: int = 0  # of what came inline, and is in the account


class Clients(Crew):
    """See the module's docstring."""

    def __init__(self, config: ZooConfig, endpoint_given: str = "") -> None:
        super().__init__(config, endpoint_given)
        self.views = Views(self.scheduler, self.usage, self.copies)
        self.boot = secrets.token_hex(8)
        self.roles = Roles(self.keyring, bool(config.broker.group))
        self._sessions: dict[bytes, Session] = {}
        self._spoken = self.door.by_identity
        self._inline = InlineBytes(self.config.broker.max_inline_mb, self.config.broker.inline_budget_mb)
        self._outbox = Outgoing(self._inline, self._put, self.door.cut)
        self.door.has_session = lambda identity: identity[: protocol.SESSION_BYTES] in self._sessions
        self.door.is_known = lambda pid: any(s.line is not None and s.pid == pid for s in list(self._sessions.values()))
        self.departed = Departed()
        self._routes: dict[int, _Route] = {}
        self._by_route: dict[tuple[bytes, int], int] = {}
        self._next_request = 0
        self._routed: _Route | None = None  # the last that was answered
        self._nonsense = 0
        self._actions |= {
            Deliver: self._do_deliver,
            Answer: self._do_answer,
            Refuse: self._do_refuse,
            Settled: self._do_settled,
            Forget: self._do_forget,
        }
        self._amends |= dict.fromkeys((Deliver, Answer, Refuse, Settled, Forget), self._end_routed)
        self._amends |= dict.fromkeys((Asked, Released), self._end_asking)
        self._amends |= dict.fromkeys((SessionClosed, Withdrawn), self._handle)  # true, and said only once
        self._asks: dict[type, Callable[[bytes, Session, Any, list[bytes]], None]] = {
            protocol.Infer: self._infer,
            protocol.Load: self._load,
            protocol.Release: self._release,
            protocol.Unload: self._unload,
            protocol.Pin: self._pin,
            protocol.CleanupIdle: self._cleanup_idle,
            protocol.Query: self._query,
            protocol.Cancel: self._cancel,
            protocol.Reload: self._reload,
            protocol.Footprint: self._footprint,
            protocol.Ping: lambda *_: None,
            protocol.Bye: lambda _i, session, _m, _p: self._end_session(session),
        }

    def reload(self) -> list[str]:
        """Reads config.toml again: see `service.py`."""
        raise NotImplementedError

    # ------------------------------------------------------------ what they ask

    def _from_client(self, parts: list[bytes], source: Any = None) -> None:
        """`source`: a frame of the message, to find the connection that it came by."""
        identity = parts[0]
        is_new = identity not in self._spoken
        if is_new:
            self.door.spoke(identity, source)
        try:
            if not 2 <= len(parts) <= 1 + protocol.MAX_PARTS:
                raise ProtocolMismatch(f"a message of {len(parts)} parts")
            message = protocol.unpack_from_client(parts[1])
        except ProtocolMismatch as e:
            self._complain("unreadable message from a client: %s", e)
            rid, code, text = misread.complaint(parts[1] if len(parts) > 1 else b"", e)
            self._to_client(identity, protocol.Error(rid, code, text[: protocol.MAX_TEXT]))
            return
        if type(message) is protocol.Hello:
            self._hello(identity, message, source)
            return
        session = self._sessions.get(identity[: protocol.SESSION_BYTES])
        if session is None:
            rid = getattr(message, "rid", 0)
            if self._is_revoked(source):
                self._cut(identity)
            elif rid:
                self._to_client(
                    identity,
                    protocol.Error(rid, "broker_unreachable", protocol.UNKNOWN_SESSION, True),
                )
            return
        if is_new and self.door.is_crowding(session.key):
            rid, text = getattr(message, "rid", 0), self.shares.full("connections of one client", self.shares.sockets)
            self._to_client(identity, protocol.Error(rid, QueueFull.code, text, True, FULL_RETRY_S))
            self.door.refuse(identity)
            return
        session.heard = time.monotonic()
        try:
            self._asks[type(message)](identity, session, message, parts)
        except ZooError as e:
            rid = getattr(message, "rid", 0)
            text = str(e)[: protocol.MAX_TEXT]
            self._to_client(identity, protocol.Error(rid, e.code, text, e.retryable, e.retry_after))

    def _complain(self, text: str, *what: object) -> None:
        """Logs nonsense that a client sent, until it is clear that there is no end to it."""
        self._nonsense += 1
        if self._nonsense <= NONSENSE_LOGGED:
            log.warning(text, *what)

    def _is_revoked(self, source: Any) -> bool:
        """Whether it came by a connection of a client whose CURVE key was taken away since."""
        return self.keyring is not None and bool(key := curve_key(source)) and key not in self.keyring.clients

    def _cut(self, prefix: bytes) -> None:
        """Ends the connections whose routing ids begin so."""
        for identity, peer in list(self._spoken.items()):
            if identity.startswith(prefix):
                self.door.cut(peer)

    def _hello(self, identity: bytes, message: protocol.Hello, source: Any) -> None:
        if self._is_revoked(source):
            self._cut(identity)
            return
        key = message.session
        if len(key) != protocol.SESSION_BYTES or not identity.startswith(key):
            text = f"a session key has {protocol.SESSION_BYTES} bytes and begins the socket's routing id"
            self._to_client(identity, protocol.Error(0, "protocol_mismatch", text))
            return
        own = curve_key(source) if self.keyring is not None else ""
        if key in self._sessions and self._sessions[key].curve_key != own:
            self._to_client(identity, protocol.Error(0, "access_denied", "that session is another client's"))
            return
        if key not in self._sessions:
            if len(self._sessions) + len(self.departed) >= self.shares.sessions:
                text = self.shares.full("clients, with those whose results are still looked at", self.shares.sessions)
                self._to_client(identity, protocol.Error(0, QueueFull.code, text, True, FULL_RETRY_S))
                self.door.refuse(identity)
                return
            session = self._sessions[key] = Session(key, message.pid, message.client[:80], time.monotonic())
            session.curve_key = own
        handoff = None if self.config.endpoint.startswith("tcp://") else self.place.handoff
        self._to_client(identity, protocol.Welcome(handoff, self.handoff.limit, self.boot, self._inline.most_one))

    def _route(self, identity: bytes, session: Session, rid: int, size: int = 0) -> int:
        key = (identity, rid)
        if key in self._by_route:
            raise InvalidInput(f"rid: {rid} is already in use on this socket")
        self._next_request += 1
        self._by_route[key] = self._next_request
        self._routes[self._next_request] = _Route(identity, rid, session, size)
        if size:
            session.held += size
            self._inline.held += size
        return self._next_request

    def _ask(
        self,
        identity: bytes,
        session: Session,
        rid: int,
        model: str,
        kind: Kind,
        timeout_ms: int,
        priority: int = 2,
        payload: Any = None,
        keep_alive: float | None = None,
        size: int = 0,
    ) -> None:
        if len(model) > 64:
            raise ModelNotFound(f"there is no model {model[:64]!r}…; names have at most 64 characters")
        now = time.monotonic()
        seconds = timeout_ms / 1000 if timeout_ms > 0 else self.config.broker.request_timeout
        problem = None
        if self.scheduler.is_cold(model):
            problem = self._problem(model)
            self._recall(model)
        request = self._route(identity, session, rid, size)
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

    def _infer(self, identity: bytes, session: Session, m: protocol.Infer, parts: list[bytes]) -> None:
        if len(m.arenas) > protocol.MAX_ARENAS:
            raise InvalidInput(f"arenas: {len(m.arenas)} of them, at most {protocol.MAX_ARENAS} go into one request")
        for number in m.arenas:
            if not self.handoff.owned_by(number, session.key):
                raise InvalidInput(f"frame: arena {number} is not one that this client shared")
        if not 0 <= m.priority <= 3:
            raise InvalidInput(f"priority: {m.priority} is not between 0 (first) and 3 (last)")
        size = len(parts[2]) if len(parts) == 3 else sum(map(len, parts[2:]))
        if size > FREE_BYTES:
            self._inline.check(size, session.held)
            self.door.arrived(identity, size)
        else:
            size = 0
        payload = (m.arenas, session.line is None, parts[2:])
        self._ask(identity, session, m.rid, m.model, Kind.INFER, m.timeout_ms, m.priority, payload, size=size)

    def _load(self, identity: bytes, session: Session, m: protocol.Load, _: list[bytes]) -> None:
        if m.keep_alive is not None and not 0 <= m.keep_alive < math.inf:
            raise InvalidInput(f"keep_alive: {m.keep_alive} is not a number of seconds")
        kind = Kind.LEASE if m.lease else Kind.PRELOAD
        self._ask(identity, session, m.rid, m.model, kind, m.timeout_ms, keep_alive=m.keep_alive)

    def _release(self, identity: bytes, session: Session, m: protocol.Release, _: list[bytes]) -> None:
        self._handle(Released(session.key, m.lease))
        if m.rid:
            self._to_client(identity, protocol.Value(m.rid))

    def _unload(self, identity: bytes, session: Session, m: protocol.Unload, _: list[bytes]) -> None:
        self.roles.require(session, "unload")
        self._ask(identity, session, m.rid, m.model, Kind.UNLOAD, m.timeout_ms)

    def _pin(self, identity: bytes, session: Session, m: protocol.Pin, _: list[bytes]) -> None:
        self.roles.require(session, "pin" if m.on else "unpin")
        model = self.scheduler.models.get(m.model)
        if model is None or model.removed:
            raise ModelNotFound(self.scheduler.no_such_model(m.model[:64]))
        self._handle(Pinned(m.model, m.on))
        self._to_client(identity, protocol.Value(m.rid))

    def _reload(self, identity: bytes, session: Session, m: protocol.Reload, _: list[bytes]) -> None:
        self.roles.require(session, "reload")
        self._to_client(identity, protocol.Value(m.rid, self.reload()))

    def _footprint(self, identity: bytes, session: Session, m: protocol.Footprint, _: list[bytes]) -> None:
        models = self.scheduler.models
        if m.model is not None and (m.model not in models or models[m.model].removed):
            raise ModelNotFound(self.scheduler.no_such_model(m.model[:64]))
        names = [name for name, known in models.items() if not known.removed] if m.model is None else [m.model]
        if m.forget:
            self.roles.require(session, "footprint --forget")
        for name in names:
            if self.scheduler.is_cold(name):
                self._recall(name)
            if m.forget:
                self._forget_footprint(name)
        rows = [row for name in names for row in self.scheduler.footprints(name)]
        self._to_client(identity, protocol.Value(m.rid, rows))

    def _cleanup_idle(self, identity: bytes, session: Session, m: protocol.CleanupIdle, _: list[bytes]) -> None:
        self.roles.require(session, "cleanup_idle_models")
        if not 0 <= m.idle_seconds < math.inf:
            raise InvalidInput(f"idle_seconds: {m.idle_seconds} is not a number of seconds")
        names = self.scheduler.idle_models(m.idle_seconds, time.monotonic())
        self._handle(IdleCleanup(m.idle_seconds))
        self._to_client(identity, protocol.Value(m.rid, names))

    def _cancel(self, identity: bytes, session: Session, m: protocol.Cancel, _: list[bytes]) -> None:
        asked = self.scheduler.sessions.get(session.key)
        for request in tuple(asked.requests) if asked is not None else ():
            route = self._routes[request]
            if route.rid == m.rid:
                self._reroute(request, route, identity)
                self._handle(Withdrawn(request))
                return
        if m.lost:
            self._take_back(session, m.rid)

    def _reroute(self, request: int, route: _Route, identity: bytes) -> None:
        """The socket that asked may be closed."""
        if (identity, route.rid) not in self._by_route:
            self._by_route.pop((route.identity, route.rid), None)
            route.identity = identity
            self._by_route[identity, route.rid] = request

    def _take_back(self, session: Session, rid: int) -> None:
        """What an answer gave that has never arrived."""
        gave = session.gave.pop(rid, ())
        if isinstance(gave, int):
            self._handle(Released(session.key, gave))
        else:
            for slot in gave:
                if slot in session.results:
                    session.results.discard(slot)
                    self._free_result(*slot)

    def _query(self, identity: bytes, session: Session, m: protocol.Query, _: list[bytes]) -> None:
        if m.what == "status":
            value: Any = self.views.status(self.config, self.boot, len(self._sessions))
            value["internal_errors"] = self.guard.errors
        elif m.what == "models":
            value = self.views.models(self.config)
        elif m.what == "ps":
            value = self.views.processes(self._workers)
        elif m.what == "explain":
            value = self.views.explain(m.model, None if self.roles.is_operator(session) else session.key)
        elif m.what == "enrich":
            value = self.views.enrich(self.config)
        else:
            raise InvalidInput(f"what: {m.what!r} is not one of status, models, ps, explain, enrich")
        self._to_client(identity, protocol.Value(m.rid, value))

    # ------------------------------------------------------------ what they are answered

    def _to_client(self, identity: bytes, message: protocol.Message, *rest: bytes) -> bool:
        """False when it cannot be delivered: the client is gone, or does not read its answers."""
        parts = (identity, protocol.pack(message), *rest)
        peer = self._spoken.get(identity)
        if peer is not None:
            size = len(parts[1])
            for part in rest:
                size += len(part)
            if peer.out + size > LOOK_BYTES:
                return self._outbox.put(peer, parts, size)
            peer.out += size
        try:
            return self._put(parts)
        except zmq.Again:
            return peer is not None and self._outbox.put(peer, parts, 0)

    def _put(self, parts: tuple[Any, ...]) -> bool:
        """Gives a message to libzmq. False: the connection is gone. Raises zmq.Again."""
        try:
            multipart.send(self._front, parts)
        except zmq.ZMQError as e:
            if e.errno != zmq.EHOSTUNREACH:
                raise
            return False
        return True

    def _route_out(self, request: int) -> _Route | None:
        route = self._routes.pop(request, None)
        self._routed = route
        if route is not None:
            key = (route.identity, route.rid)
            if self._by_route.get(key) == request:
                del self._by_route[key]
            if route.size:
                route.session.held -= route.size
                self._inline.held -= route.size
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
            slots = [(arena, offset) for offset in offsets]
            session.results.update(slots)
            session.note(route.rid, slots)
        if not self._to_client(route.identity, protocol.Result(route.rid, arena), body) and offsets:
            session.results.difference_update((arena, offset) for offset in offsets)
            self._give_back_result(a.worker, offsets)

    def _do_answer(self, a: Answer) -> None:
        route = self._route_out(a.request)
        if route is not None:
            if type(a.value) is int:  # a lease
                route.session.note(route.rid, a.value)
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

    # ------------------------------------------------------------ when an error in the broker is due to them

    def _end_routed(self, _: object) -> None:
        """An answer could not be given: its client has to learn that it has none."""
        route = self._routed
        if route is not None:
            self._to_client(route.identity, protocol.Error(route.rid, BrokerUnreachable.code, WENT_WRONG, True))
            self._refuse_to_go_on(route.session)

    def _end_asking(self, e: Any) -> None:
        session = self._sessions.get(e.session)
        if session is not None:
            self._refuse_to_go_on(session)

    def _end_talking(self, parts: list[Any]) -> None:
        """A message led to an error: its session ends, and with it what the message may have left half done."""
        if len(parts) < 2:
            return
        session = self._sessions.get(parts[0][: protocol.SESSION_BYTES])
        with contextlib.suppress(ZooError):
            rid = getattr(protocol.unpack_from_client(parts[1]), "rid", 0)
            if (parts[0], rid) not in self._by_route:  # else it is answered with the others
                self._to_client(parts[0], protocol.Error(rid, BrokerUnreachable.code, WENT_WRONG, True))
        if session is not None:
            self._refuse_to_go_on(session)

    def _refuse_to_go_on(self, session: Session) -> None:
        """All that the client waits for is answered, and its session ends."""
        routes = {number: route for number, route in self._routes.items() if route.session is session}
        for route in routes.values():
            if (route.identity, route.rid) in self._by_route:
                self._to_client(route.identity, protocol.Error(route.rid, BrokerUnreachable.code, WENT_WRONG, True))
        self._end_session(session)
        for number in routes:
            self._route_out(number)

    # ------------------------------------------------------------ when they go

    def _reread_keys(self) -> list[str]:
        """The CURVE keys as they are now; the sessions of those that were taken away end. Raises ConfigError."""
        if self.keyring is None:
            return []
        told = self.keyring.read()
        for line in told:
            log.info("%s", line)
        for session in list(self._sessions.values()):
            if session.curve_key and session.curve_key not in self.keyring.clients:
                self._end_session(session)
                self._cut(session.key)
        return told

    def _end_session(self, session: Session, gone: bool = False) -> None:
        """Gives back all that was the session's; results that a process may still look at only if it is `gone`."""
        if self._sessions.pop(session.key, None) is None:
            return
        self._handle(SessionClosed(session.key))
        line, session.line = session.line, None
        results, session.results = session.results, set()
        if line is not None and results and not gone:
            self.departed.keep(session.key, results)
            self.handoff.disown(line, self._still_read)
            line.depart()
            return
        for arena, offset in results:
            self._free_result(arena, offset)
        if line is not None:
            self._close_line(line)

    def _still_read(self, session: bytes, arena: int) -> bool:
        """Whether the client has results in that arena, or on their way to it."""
        found = self._sessions.get(session)
        return found is not None and any(number == arena for number, _ in found.results)
