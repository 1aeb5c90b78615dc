"""Messages from clients: read, checked, and turned into events of the scheduler or answered at once.

What concerns one request becomes an event; its answer follows as an action. Questions about the broker are answered
from what its parts know anyway. What a client may not ask, or asks wrongly, is answered with a typed error.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from broker.core import Core
from broker.fleet.roster import WorkerProcess
from broker.front import access, inline, misread
from broker.front.clients import FULL_RETRY_S, Clients, ClientSession
from broker.front.front import Front
from broker.front.handoff import Handoff
from broker.memory.footprints import Learnt
from broker.recording.recorder import Recorder
from broker.scheduler.events import Asked, IdleCleanup, Kind, Pinned, Released
from broker.status import Views
from zoo.errors import InvalidInput, ModelNotFound, ProtocolMismatch, QueueFull, ZooError
from zoo.weights import catalogue
from zoo.wire import protocol

log = logging.getLogger("zoo.broker")

INFER = Kind.INFER
NONSENSE_LOGGED = 100
LONGEST_REQUEST_S = 24 * 3600.0
LONGEST_NAME = 64

Parts = list[bytes]


@dataclass(eq=False)
class Intake:
    """`workers`: by number. `reload`: reads the configuration again."""

    core: Core
    front: Front
    handoff: Handoff
    clients: Clients
    workers: Mapping[int, WorkerProcess]
    views: Views
    learnt: Learnt
    recorder: Recorder
    reload: Callable[[], list[str]]

    def __post_init__(self) -> None:
        self._scheduler = self.core.scheduler
        self._access = self.front.access
        self._spoken = self.front.door.by_identity
        self._boot = os.urandom(8).hex()
        self._nonsense = 0
        self._asks: dict[type, Callable[[bytes, ClientSession, Any, Parts], None]] = {
            protocol.Infer: self._infer,
            protocol.Load: self._load,
            protocol.Release: self._release,
            protocol.Unload: self._unload,
            protocol.Cancel: self._cancel,
            protocol.Ping: lambda *_: None,
            protocol.Bye: lambda _i, session, _m, _p: self.clients.end(session),
        }
        self._questions: dict[type, Callable[[ClientSession, Any], Any]] = {
            protocol.Pin: self._pin,
            protocol.CleanupIdle: self._cleanup_idle,
            protocol.Query: self._query,
            protocol.Reload: self._reload,
            protocol.Footprint: self._footprint,
            protocol.Record: self._record,
        }

    def hear(self) -> None:
        """Takes one message. An error on the way costs the client that sent it its session."""
        parts: Parts = []
        try:
            parts, source = self.front.take()
            self._take(parts, source)
        except Exception as e:
            self.core.guard.failed("a client's message", e, lambda: self.clients.end_talking(parts))

    def problem(self, name: str) -> str | None:
        """Why the model cannot be loaded as things stand, as far as one look at the disk tells."""
        model = self._scheduler.models.get(name)
        return catalogue.problem(self.core.config, model.config) if model is not None else None

    # ------------------------------------------------------------ one message

    def _take(self, parts: Parts, source: Any) -> None:
        """`source`: a frame of the message, to find the connection that it came by."""
        identity = parts[0]
        is_new = identity not in self._spoken
        if is_new:
            self.front.door.spoke(identity, source)
        try:
            if not 2 <= len(parts) <= 1 + protocol.MAX_PARTS:
                raise ProtocolMismatch(f"a message of {len(parts)} parts")
            message = protocol.unpack_from_client(parts[1])
        except ProtocolMismatch as e:
            self._complain(identity, parts, e)
            return
        session = self.clients.sessions.get(identity[: protocol.SESSION_BYTES])
        try:
            if type(message) is protocol.Hello:
                self._hello(identity, message, source)
            elif session is None:
                self._unknown(identity, message, source)
            elif is_new and self.front.door.is_crowding(session.key):
                self.front.door.refuse(identity)
                shares = self.front.shares
                text = shares.full("connections of one client", shares.sockets)
                raise QueueFull(text, retry_after=FULL_RETRY_S)
            else:
                session.heard = time.monotonic()
                ask = self._asks.get(type(message))
                if ask is not None:
                    ask(identity, session, message, parts)
                else:
                    value = self._questions[type(message)](session, message)
                    self.front.send(identity, protocol.Value(_rid(message), value))
        except ZooError as e:
            text = str(e)[: protocol.MAX_TEXT]
            self._count(getattr(message, "model", None), e.code)
            self.front.send(identity, protocol.Error(_rid(message), e.code, text, e.retryable, e.retry_after))

    def _complain(self, identity: bytes, parts: Parts, error: ProtocolMismatch) -> None:
        """Answers a message that cannot be read, and logs it, until it is clear that there is no end to them."""
        self._nonsense += 1
        if self._nonsense <= NONSENSE_LOGGED:
            log.warning("unreadable message from a client: %s", error)
        rid, code, text = misread.complaint(parts[1] if len(parts) > 1 else b"", error)
        self._count(None, code)
        self.front.send(identity, protocol.Error(rid, code, text[: protocol.MAX_TEXT]))

    def _count(self, model: str | None, code: str) -> None:
        """An answer with an error, for the metrics: only names that are registered, so that these stay few."""
        name = model if model is not None and model in self._scheduler.models else ""
        self.front.refused[name, code] += 1

    def _is_revoked(self, source: Any) -> bool:
        """Whether it came by a connection of a client whose CURVE key was taken away since."""
        return not self._access.knows(access.curve_key(source))

    def _hello(self, identity: bytes, message: protocol.Hello, source: Any) -> None:
        if self._is_revoked(source):
            self.front.cut(identity)
            return
        key = message.session
        if len(key) != protocol.SESSION_BYTES or not identity.startswith(key):
            size = protocol.SESSION_BYTES
            raise ProtocolMismatch(f"a session key has {size} bytes and begins the socket's routing id")
        try:
            self.clients.open(message, access.curve_key(source))
        except QueueFull:
            self.front.door.refuse(identity)
            raise
        handoff = None if self.core.config.endpoint.startswith("tcp://") else self.handoff.path
        welcome = protocol.Welcome(handoff, self.handoff.limit, self._boot, self.front.inline.most_one)
        self.front.send(identity, welcome)

    def _unknown(self, identity: bytes, message: protocol.FromClient, source: Any) -> None:
        """It is of no session that is known."""
        if self._is_revoked(source):
            self.front.cut(identity)
        elif rid := _rid(message):
            self.front.send(identity, protocol.Error(rid, "broker_unreachable", protocol.UNKNOWN_SESSION, True))

    # ------------------------------------------------------------ requests for a model

    def _infer(self, identity: bytes, session: ClientSession, m: protocol.Infer, parts: Parts) -> None:
        if len(m.arenas) > protocol.MAX_ARENAS:
            raise InvalidInput(f"arenas: {len(m.arenas)} of them, at most {protocol.MAX_ARENAS} go into one request")
        for number in m.arenas:
            if not self.handoff.owned_by(number, session.key):
                raise InvalidInput(f"frame: arena {number} is not one that this client shared")
        if not 0 <= m.priority <= 3:
            raise InvalidInput(f"priority: {m.priority} is not between 0 (first) and 3 (last)")
        size = len(parts[2]) if len(parts) == 3 else sum(map(len, parts[2:]))
        if size > inline.FREE_BYTES:
            self.front.inline.check(size, session.held)
            self.front.door.arrived(identity, size)
        else:
            size = 0
        payload = (m.arenas, session.line is None, parts[2:])
        self._ask(identity, session, m, INFER, m.priority, payload, size=size)

    def _load(self, identity: bytes, session: ClientSession, m: protocol.Load, _: Parts) -> None:
        if m.keep_alive is not None and not 0 <= m.keep_alive < math.inf:
            raise InvalidInput(f"keep_alive: {m.keep_alive} is not a number of seconds")
        kind = Kind.LEASE if m.lease else Kind.PRELOAD
        self._ask(identity, session, m, kind, keep_alive=m.keep_alive)

    def _unload(self, identity: bytes, session: ClientSession, m: protocol.Unload, _: Parts) -> None:
        self._access.require(session, "unload")
        self._ask(identity, session, m, Kind.UNLOAD)

    def _ask(
        self,
        identity: bytes,
        session: ClientSession,
        m: protocol.Infer | protocol.Load | protocol.Unload,
        kind: Kind,
        priority: int = 2,
        payload: Any = None,
        keep_alive: float | None = None,
        size: int = 0,
    ) -> None:
        model = m.model
        if len(model) > LONGEST_NAME:
            text = f"there is no model {model[:LONGEST_NAME]!r}…; names have at most {LONGEST_NAME} characters"
            raise ModelNotFound(text)
        seconds = m.timeout_ms / 1000 if m.timeout_ms > 0 else self.core.config.broker.request_timeout
        deadline = time.monotonic() + min(seconds, LONGEST_REQUEST_S)
        problem = None
        if self._scheduler.is_cold(model):
            problem = self.problem(model)
            self.learnt.recall(model)
        request = self.clients.route(identity, session, m.rid, size)
        self.core.submit(Asked(request, session.key, model, kind, deadline, priority, payload, keep_alive, problem))

    def _cancel(self, identity: bytes, session: ClientSession, m: protocol.Cancel, _: Parts) -> None:
        if not self.clients.withdraw(identity, session, m.rid) and m.lost:
            self.clients.take_back(session, m.rid)

    def _release(self, identity: bytes, session: ClientSession, m: protocol.Release, _: Parts) -> None:
        self.core.submit(Released(session.key, m.lease))
        if m.rid:
            self.front.send(identity, protocol.Value(m.rid))

    # ------------------------------------------------------------ questions, answered at once

    def _pin(self, session: ClientSession, m: protocol.Pin) -> None:
        self._access.require(session, "pin" if m.on else "unpin")
        self._known(m.model)
        self.core.submit(Pinned(m.model, m.on))

    def _reload(self, session: ClientSession, _: protocol.Reload) -> list[str]:
        self._access.require(session, "reload")
        return self.reload()

    def _footprint(self, session: ClientSession, m: protocol.Footprint) -> list[dict[str, Any]]:
        models = self._scheduler.models
        names = [n for n, known in models.items() if not known.removed] if m.model is None else [self._known(m.model)]
        if m.forget:
            self._access.require(session, "footprint --forget")
        self.learnt.recall_cold(names)
        for name in names if m.forget else ():
            self.learnt.forget(name)
        return [row for name in names for row in self._scheduler.footprints(name)]

    def _record(self, session: ClientSession, m: protocol.Record) -> dict[str, Any]:
        self._access.require(session, "record")
        return self.recorder.ask(m.what, m.since)

    def _cleanup_idle(self, session: ClientSession, m: protocol.CleanupIdle) -> list[str]:
        self._access.require(session, "cleanup_idle_models")
        if not 0 <= m.idle_seconds < math.inf:
            raise InvalidInput(f"idle_seconds: {m.idle_seconds} is not a number of seconds")
        names = [worker.name for worker in self._scheduler.idle_workers(m.idle_seconds, time.monotonic())]
        self.core.submit(IdleCleanup(m.idle_seconds))
        return names

    def _query(self, session: ClientSession, m: protocol.Query) -> Any:
        config = self.core.config
        match m.what:
            case "status":
                status = self.views.status(config, self._boot, len(self.clients.sessions))
                return {**status, "internal_errors": self.core.guard.errors}
            case "models":
                return self.views.models(config, None if m.model is None else self._known(m.model))
            case "ps":
                return self.views.processes(self.workers)
            case "explain":
                return self.views.explain(m.model, None if self._access.is_operator(session) else session.key)
            case "overview":
                return {**self.views.overview(m.since, self._named(session)), "boot": self._boot}
            case "enrich":
                return self.views.enrich(config)
            case "room":
                return {**self._scheduler.room(), "boot": self._boot}
            case "logs":
                self._access.require(session, "logs")
                model = None if m.model is None else self._known(m.model)
                return {**self.views.logs(model, m.since), "boot": self._boot}
            case _:
                raise InvalidInput(
                    f"what: {m.what!r} is none of status, models, ps, explain, overview, enrich, room, logs"
                )

    def _named(self, session: ClientSession) -> dict[bytes, tuple[str, int]]:
        """The sessions that this one may be told of, by program and process: all of them, or itself."""
        told = self.clients.sessions.values() if self._access.is_operator(session) else (session,)
        return {one.key: (one.client, one.pid) for one in told}

    def _known(self, name: str) -> str:
        """Raises ModelNotFound for a model that is not registered, or not any more."""
        model = self._scheduler.models.get(name)
        if model is None or model.removed:
            raise ModelNotFound(self._scheduler.no_such_model(name[:LONGEST_NAME]))
        return name


def _rid(message: protocol.FromClient) -> int:
    """The client's number for the request; 0 where there is none."""
    return getattr(message, "rid", 0)
