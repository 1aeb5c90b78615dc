"""The clients: their sessions, where the answer to each request goes, and the answers.

A request is known here by a number of the broker's own, its route. The answer to it goes to the socket that asked, and
what the answer gives (a lease, slots of a worker's arena) is noted with the session until the client gives it back.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

import msgspec

from broker.core import Core
from broker.front.front import Front
from broker.front.handoff import Handoff, LifelineEnd, Takes
from broker.scheduler import events
from zoo.errors import AccessDenied, BrokerUnreachable, InvalidInput, QueueFull, ZooError
from zoo.wire import protocol

log = logging.getLogger("zoo.broker")

HELD_S = 2.0  # a session without a lifeline outlives its last connection by so long
FULL_RETRY_S = 1.0
GAVE_KEPT = 256
WENT_WRONG = "an error in the broker, see its log; this client's session has ended, its next call opens another"


class ClientSession(msgspec.Struct, eq=False):
    """A client. Without a `line` it lives by its messages (see `protocol.SESSION_TTL_S`).

    Attributes:
        curve_key: Z85, of a client that came by tcp://.
        heard: when it last said something (monotonic seconds).
        held: bytes of its frames that wait here.
        gave: by rid: the lease, or the slots, of its last answers, in case they do not arrive.
    """

    key: bytes
    pid: int
    client: str
    curve_key: str
    heard: float
    line: LifelineEnd | None = None
    held: int = 0
    gave: dict[int, int | list[tuple[int, int]]] = {}

    def note(self, rid: int, gave: int | list[tuple[int, int]]) -> None:
        """What an answer gives."""
        self.gave[rid] = gave
        if len(self.gave) > GAVE_KEPT:
            del self.gave[next(iter(self.gave))]

    @property
    def uid(self) -> int | None:
        """The user behind its lifeline, as the kernel knows it."""
        return self.line.uid if self.line is not None else None


class Route(msgspec.Struct, eq=False):
    """Where the answer to a request goes. `size`: of what came inline, and is in the account."""

    identity: bytes
    rid: int
    session: ClientSession
    size: int = 0


class Clients:
    """`arena_of`: the arena of a worker's results, 0 for none."""

    def __init__(self, core: Core, front: Front, handoff: Handoff, arena_of: Callable[[int], int]) -> None:
        self._submit = core.submit
        self._front = front
        self._handoff = handoff
        self._shares = front.shares
        self._access = front.access
        self._arena_of = arena_of
        self.sessions: dict[bytes, ClientSession] = {}
        self._routes: dict[int, Route] = {}
        self._by_rid: dict[tuple[bytes, int], int] = {}  # (routing id, the client's number) → ours
        self._next_request = 0
        self._answered: Route | None = None  # the last
        self._takes: Takes = {
            protocol.LifelineArena: self._take_arena,
            protocol.LifelineReleased: lambda line, said, _: handoff.take_back(line, said.id, said.offset),
            protocol.LifelineBye: self._take_bye,
        }
        front.door.has_session = lambda identity: identity[: protocol.SESSION_BYTES] in self.sessions
        front.door.is_known = lambda pid: any(s.line and s.pid == pid for s in list(self.sessions.values()))

    # ------------------------------------------------------------ sessions

    def open(self, message: protocol.Hello, curve_key: str) -> None:
        """A session for a client that says Hello; one that it has stays.

        Raises:
            AccessDenied: another client has that key. QueueFull: there are too many sessions.
        """
        known = self.sessions.get(message.session)
        if known is not None and known.curve_key != curve_key:
            raise AccessDenied("that session is another client's")
        if known is None:
            if (
                len(self.sessions) + sum(line.departed for line in self._handoff.lines.values())
                >= self._shares.sessions
            ):
                what = "clients, with those whose results are still looked at"
                raise QueueFull(self._shares.full(what, self._shares.sessions), retry_after=FULL_RETRY_S)
            name = message.client[:80]
            self.sessions[message.session] = ClientSession(
                message.session, message.pid, name, curve_key, time.monotonic()
            )

    def end(self, session: ClientSession, gone: bool = False) -> None:
        """Gives back all that was the session's; results that its process may still look at only if that is `gone`."""
        if self.sessions.pop(session.key, None) is None:
            return
        self._submit(events.SessionClosed(session.key))
        line, session.line = session.line, None
        if line is not None:
            self._handoff.leave(line, gone)

    def end_silent(self, now: float, *, local: bool) -> None:
        """Ends sessions that no lifeline speaks for: after a long silence, and where clients are `local` soon after
        their last connection has gone.
        """
        alone = [session for session in self.sessions.values() if session.line is None]
        connected = (
            {identity[: protocol.SESSION_BYTES] for identity in list(self._front.door.by_identity)} if alone else ()
        )
        for session in alone:
            silent = now - session.heard
            gone = local and silent > HELD_S and session.key not in connected
            if gone or silent > protocol.SESSION_TTL_S:
                self.end(session)

    def reread_keys(self) -> list[str]:
        """The CURVE keys as they are now; the sessions of those that were taken away end. Raises ConfigError."""
        told = self._access.read()
        for line in told:
            log.info("%s", line)
        for session in list(self.sessions.values()):
            if not self._access.knows(session.curve_key):
                self.end(session)
                self._front.cut(session.key)
        return told

    # ------------------------------------------------------------ lifelines

    def attach(self, line: LifelineEnd, key: bytes) -> bool:
        """The lifeline of a session. False: it is refused, and was told why."""
        session = self.sessions.get(key)
        if session is None or session.line is not None:
            line.send(protocol.LifelineRefused("broker_unreachable", "say Hello first; the session is unknown"))
            return False
        if not self._handoff.attach(line, "client", key):
            return False
        session.line, session.pid, line.takes = line, line.pid, self._takes
        line.send(protocol.LifelineAccepted(0))
        return True

    def lost_line(self, line: LifelineEnd, gone: bool) -> None:
        """Its session ends with it. `gone`: the process at the other end is, and its results are free."""
        session = self.sessions.get(line.key)
        if session is not None and session.line is line:
            self.end(session, gone)
        elif gone or not line.departed:
            self._handoff.close(line)

    def _take_arena(self, line: LifelineEnd, _: protocol.LifelineArena, fd: int | None) -> None:
        number = self._handoff.offer(line, fd)
        if number is not None:
            line.send(protocol.LifelineAccepted(number))

    def _take_bye(self, line: LifelineEnd, _message: protocol.LifelineBye, _fd: int | None) -> None:
        session = self.sessions.get(line.key)
        if session is not None:
            self.end(session)

    # ------------------------------------------------------------ routes

    def route(self, identity: bytes, session: ClientSession, rid: int, size: int = 0) -> int:
        """A number for a request with `size` bytes of frames in its message. Raises InvalidInput."""
        key = (identity, rid)
        if key in self._by_rid:
            raise InvalidInput(f"rid: {rid} is already in use on this socket")
        self._next_request += 1
        self._by_rid[key] = self._next_request
        self._routes[self._next_request] = Route(identity, rid, session, size)
        if size:
            session.held += size
            self._front.inline.held += size
        return self._next_request

    def withdraw(self, identity: bytes, session: ClientSession, rid: int) -> bool:
        """Cancels a request, also one that came by another socket. False: there is none of that number."""
        request = self._by_rid.get((identity, rid))
        if request is None:
            request = self._asked_elsewhere(session, rid)
            if request is None:
                return False
            route = self._routes[request]
            del self._by_rid[route.identity, rid]
            route.identity = identity  # the socket that asked may be closed
            self._by_rid[identity, rid] = request
        self._submit(events.Withdrawn(request))
        return True

    def _asked_elsewhere(self, session: ClientSession, rid: int) -> int | None:
        """The request of that number by any socket of the client."""
        for (identity, number), request in self._by_rid.items():
            if number == rid and identity.startswith(session.key):
                return request
        return None

    def take_back(self, session: ClientSession, rid: int) -> None:
        """What an answer gave that has never arrived."""
        gave = session.gave.pop(rid, ())
        if isinstance(gave, int):
            self._submit(events.Released(session.key, gave))
        elif session.line is not None:
            for slot in gave:
                self._handoff.take_back(session.line, *slot)

    def _route_out(self, request: int) -> Route | None:
        route = self._routes.pop(request, None)
        self._answered = route
        if route is not None:
            key = (route.identity, route.rid)
            if self._by_rid.get(key) == request:
                del self._by_rid[key]
            if route.size:
                route.session.held -= route.size
                self._front.inline.held -= route.size
        return route

    # ------------------------------------------------------------ the scheduler's actions

    def deliver(self, a: events.Deliver) -> None:
        """A result, in the message or in slots of the worker's arena, which the client is given to map."""
        route = self._route_out(a.request)
        offsets, body = a.body
        if not offsets:
            if route is not None:
                self._front.send(route.identity, protocol.Result(route.rid, 0, a.request, a.timings), body)
            return
        arena = self._arena_of(a.worker)
        slots = [(arena, offset) for offset in offsets]
        line = route.session.line if route is not None else None
        if route is None or line is None or not arena or not self._handoff.share(arena, line):
            self._free(slots)
            if route is not None:
                text = "the result is large and this connection cannot share memory"
                self._front.refused["", "inference_failed"] += 1
                self._front.send(route.identity, protocol.Error(route.rid, "inference_failed", text))
            return
        line.results.update(slots)
        route.session.note(route.rid, slots)
        if not self._front.send(route.identity, protocol.Result(route.rid, arena, a.request, a.timings), body):
            line.results.difference_update(slots)
            self._free(slots)

    def _free(self, slots: list[tuple[int, int]]) -> None:
        for slot in slots:
            self._handoff.free(*slot)

    def answer(self, a: events.Answer) -> None:
        route = self._route_out(a.request)
        if route is not None:
            if type(a.value) is int:  # a lease
                route.session.note(route.rid, a.value)
            self._front.send(route.identity, protocol.Value(route.rid, a.value))

    def refuse(self, a: events.Refuse) -> None:
        route = self._routes.get(a.request) if a.held else self._route_out(a.request)
        if route is None:
            return
        if a.held:
            self._by_rid.pop((route.identity, route.rid), None)
        text = a.message[: protocol.MAX_TEXT]
        message = protocol.Error(route.rid, a.code, text, a.retryable, a.retry_after, a.held, a.request)
        self._front.send(route.identity, message)

    def settled(self, a: events.Settled) -> None:
        route = self._route_out(a.request)
        if a.body is not None and a.body[0]:
            arena = self._arena_of(a.worker)
            self._free([(arena, offset) for offset in a.body[0]])
        if route is not None and route.session.line is not None:
            route.session.line.send(protocol.LifelineSettled(route.rid))

    def forget(self, a: events.Forget) -> None:
        self._route_out(a.request)

    # ------------------------------------------------------------ when an error in the broker is due to them

    def end_answered(self, _: object) -> None:
        """An answer could not be given: its client has to learn that it has none."""
        route = self._answered
        if route is not None:
            self._front.send(route.identity, _went_wrong(route.rid))
            self._end_all(route.session.key)

    def end_asking(self, event: events.Asked | events.Released) -> None:
        """What a client asked has led to an error."""
        self._end_all(event.session)

    def end_talking(self, parts: list[Any]) -> None:
        """A message led to an error: its session ends, and with it what the message may have left half done."""
        if len(parts) < 2:
            return
        identity = parts[0]
        with contextlib.suppress(ZooError):
            rid = getattr(protocol.unpack_from_client(parts[1]), "rid", 0)
            if (identity, rid) not in self._by_rid:  # else it is answered with the others
                self._front.send(identity, _went_wrong(rid))
        self._end_all(identity[: protocol.SESSION_BYTES])

    def _end_all(self, key: bytes) -> None:
        """All that the client waits for is answered, and its session ends."""
        session = self.sessions.get(key)
        if session is None:
            return
        routes = {number: route for number, route in self._routes.items() if route.session is session}
        for route in routes.values():
            if (route.identity, route.rid) in self._by_rid:
                self._front.send(route.identity, _went_wrong(route.rid))
        self.end(session)
        for number in routes:
            self._route_out(number)


def _went_wrong(rid: int) -> protocol.Error:
    return protocol.Error(rid, BrokerUnreachable.code, WENT_WRONG, True)
