"""What both clients share: the link to one life of a broker, requests out, answers in.

A link is opened with `Hello` and, where memory can be shared, a lifeline (`open_link`; nothing else here waits on
ZeroMQ). It ends when the lifeline does; the client then opens a new one on its next call. Late answers (to
requests somebody gave up on) go through `Reader.late`, so that slots and leases are given back and nothing is lost.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import secrets
import select
import socket
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np
import zmq

from zoo import arena, frames, lifeline, payload, peers, protocol
from zoo.address import Address, find_address
from zoo.config import ModelPriority, endpoint_problem
from zoo.curve import read_key
from zoo.errors import AccessDenied, BrokerUnreachable, InvalidInput, ProtocolMismatch, QueueFull, ZooError

_MEDIUM = int(ModelPriority.MEDIUM)
LOOK_S = 0.02
GRACE_S = 1.0  # past its deadline, a request's answer is still waited for this long
HANDSHAKE_S = 5.0
HELLO_S = 1.0  # an unanswered Hello is said again: the broker that took it may be gone
BYE_MS = 300  # how long a closing client tries to say so, where no lifeline says it
POLL_MS = 100  # how often a waiting client looks whether its broker is still there


class _Borrowed:
    """Memory of a worker's arena that arrays look at; the slot goes back when the last of them is dropped."""

    __slots__ = ("__array_interface__", "_arena", "_link", "_mapping", "_offset")

    def __init__(self, link: Link, number: int, mapping: _Mapping, offset: int, shape: tuple[int, ...], dtype: str):
        self.__array_interface__ = {
            "data": (mapping.address + offset, True),
            "shape": shape,
            "typestr": dtype,
            "version": 3,
        }
        self._link, self._arena, self._mapping, self._offset = link, number, mapping, offset

    def __del__(self) -> None:
        self._link.give_back(self._arena, self._offset)


class _Mapping:
    def __init__(self, mapped: arena.MappedArena) -> None:
        self.mapped = mapped
        self.address: int = np.frombuffer(mapped.memory, np.uint8).__array_interface__["data"][0]


class Link:
    """One session with one life of a broker.

    Attributes:
        key: the session; routing ids of its sockets begin with it. endpoint: where they connect.
        dead: set once the broker is known to be gone.
        held: slots of requests that were answered, or given up on, while a worker may still read them.
        unwanted: requests for a lease whose callers have given up; should one be granted, it is released.
    """

    def __init__(self, key: bytes, welcome: protocol.Welcome, endpoint: str, owners: frozenset[int]) -> None:
        self.key = key
        self.endpoint = endpoint
        self.boot = welcome.boot
        self.dead = False
        self._look_at = 0.0
        self.held: dict[int, frames.Outgoing] = {}
        self.unwanted: set[int] = set()
        self._settled: set[int] = set()  # by the lifeline, before the answer that says "held" was read
        self.sockets = itertools.count(1)
        self._mappings: dict[int, _Mapping] = {}
        self._unsent: deque[tuple[int, int]] = deque()
        self._lock = threading.RLock()
        self._replies: deque[protocol.LifelineMessage] = deque()
        self._line: socket.socket | None = None
        self._limit = welcome.arena_limit_bytes
        if welcome.handoff is not None and hasattr(socket, "SCM_RIGHTS") and sys.platform == "linux":
            try:
                self._line = lifeline.connect(welcome.handoff, HANDSHAKE_S)
                peers.check_server(self._line, owners, welcome.handoff)
                _links.add(self)
                lifeline.send(self._line, protocol.LifelineAttach("client", key))
                self._line.settimeout(None)
                self._await_reply("the lifeline")
            except OSError as e:
                self.close()
                raise BrokerUnreachable(f"the broker went away while connecting ({e})") from None
            except BaseException:
                self.close()
                raise

    @property
    def shares_memory(self) -> bool:
        return self._line is not None

    def fileno(self) -> int:
        """The lifeline's descriptor: when it is readable, call `look`. -1 when there is none."""
        return self._line.fileno() if self._line is not None else -1

    def register(self, own: arena.OwnedArena) -> None:
        """Hands our arena to this broker; sets its id.

        Raises:
            AccessDenied: it was refused. BrokerUnreachable.
        """
        assert self._line is not None
        with self._lock:
            try:
                lifeline.send(self._line, protocol.LifelineArena(), own.fd)
            except OSError as e:
                self.dead = True
                raise BrokerUnreachable(f"the broker is gone ({e})") from None
            own.id = self._await_reply("the arena")

    def _await_reply(self, what: str) -> int:
        end = time.monotonic() + HANDSHAKE_S
        while True:
            while self._replies:
                reply = self._replies.popleft()
                if isinstance(reply, protocol.LifelineAccepted):
                    return reply.id
                if isinstance(reply, protocol.LifelineRefused):
                    raise (
                        AccessDenied(reply.message)
                        if reply.code == AccessDenied.code
                        else BrokerUnreachable(reply.message)
                    )
            if not self._read(max(0.0, end - time.monotonic())) or self.dead:
                self.dead = True
                raise BrokerUnreachable(f"the broker did not take {what}")

    def _read(self, timeout: float) -> bool:
        """Reads one packet of the lifeline; False when none came in time."""
        line = self._line
        if line is None:
            return False
        if timeout > 0:
            poll = select.poll()
            poll.register(line, select.POLLIN)
            if not poll.poll(timeout * 1000):
                return False
        try:
            packet = lifeline.receive(line, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except (OSError, ProtocolMismatch):
            packet = None
        if packet is None:
            self.dead = True
            return True
        message, fd = packet
        if isinstance(message, protocol.LifelineArena) and fd is not None:
            self._mappings[message.id] = _Mapping(arena.MappedArena(fd, self._limit))
        elif isinstance(message, protocol.LifelineGone):
            self._mappings.pop(message.id, None)  # arrays that still look at it keep it alive
        elif isinstance(message, protocol.LifelineSettled):
            self._settled.add(message.rid)  # in this order: see `hold`
            if message.rid in self.held:
                self._settled.discard(message.rid)
                self.settle(message.rid)
        else:
            self._replies.append(message)
        return True

    def look(self) -> bool:
        """Takes in what lies on the lifeline; False when the broker is gone."""
        self._look_at = time.monotonic() + LOOK_S
        if self._line is not None and self._lock.acquire(blocking=False):
            try:
                while not self.dead and self._read(0.0):
                    pass
                for _ in range(len(self._unsent)):
                    self.give_back(*self._unsent.popleft())
            finally:
                self._lock.release()
        return not self.dead

    def seems_well(self) -> bool:
        """`look()`, but not more often than every `LOOK_S`: this stands before every request."""
        return not self.dead and (time.monotonic() < self._look_at or self.look())

    # ------------------------------------------------------------ results in workers' arenas

    def view(self, number: int, offset: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """An array in a worker's arena. Raises ProtocolMismatch when there is none such."""
        mapping = self._mappings.get(number)
        if mapping is None:
            with self._lock:
                end = time.monotonic() + HANDSHAKE_S
                while number not in self._mappings and not self.dead:
                    if not self._read(max(0.0, end - time.monotonic())):
                        break
                mapping = self._mappings.get(number)
            if mapping is None:
                raise ProtocolMismatch(f"a result refers to arena {number}, which was never handed over")
        payload.view(mapping.mapped.memory, mapping.mapped.size, offset, shape, dtype)  # checks, or raises
        return np.asarray(_Borrowed(self, number, mapping, offset, shape, dtype))

    def give_back(self, number: int, offset: int) -> None:
        """May be called by the garbage collector, in any thread, at any time: never waits, never raises."""
        line = self._line
        if line is None or self.dead:
            return
        try:
            lifeline.send(line, protocol.LifelineReleased(number, offset), flags=socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._unsent.append((number, offset))
        except (OSError, TypeError, AttributeError):
            pass  # the broker is gone, or the interpreter is going

    # ------------------------------------------------------------ slots of answered requests

    def hold(self, rid: int, outgoing: frames.Outgoing) -> None:
        """Keeps the slots until `settle`, or not at all when the news of that was faster than the answer."""
        if self._line is None:
            outgoing.drop()  # nothing is shared, nobody reads it
            return
        self.held[rid] = outgoing
        if rid in self._settled:  # another thread may be taking it from the lifeline just now: whoever is second sees
            self._settled.discard(rid)
            self.settle(rid)

    def answered(self, message: protocol.FromBroker, outgoing: frames.Outgoing) -> None:
        """The answer to a request is there: its slots are free, unless the answer says otherwise."""
        if isinstance(message, protocol.Error) and message.held:
            self.hold(message.rid, outgoing)
        else:
            outgoing.drop()

    def settle(self, rid: int) -> None:
        outgoing = self.held.pop(rid, None)
        if outgoing is not None:
            outgoing.drop()

    def close(self) -> None:
        """The broker then releases all that was this session's."""
        self.dead = True
        line, self._line = self._line, None
        if line is not None:
            line.close()
        for rid in list(self.held):
            self.settle(rid)


class Reader:
    """Decodes answers that come in on one socket."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._arena = 0
        self._decode = payload.result_decoder(self._look_up)

    def _look_up(self, offset: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return self._link.view(self._arena, offset, shape, dtype)

    def outcome(self, message: protocol.FromBroker, parts: list[bytes]) -> Any:
        """What the caller gets; an exception object when the request failed."""
        if isinstance(message, protocol.Error):
            if message.message == protocol.UNKNOWN_SESSION and not self._link.shares_memory:
                self._link.dead = True  # there is no lifeline to tell; the next call says Hello again
            return message.exception()
        if isinstance(message, protocol.Value):
            return message.value
        assert isinstance(message, protocol.Result)
        self._arena = message.arena
        try:
            body = self._decode(parts[1] if len(parts) > 1 else b"")
        except ZooError as e:
            return e
        return body.results if body.many else body.results[0]

    def late(self, message: protocol.FromBroker, parts: list[bytes]) -> protocol.Message | None:
        """Deals with what nobody waits for any more; gives a message to be sent because of it, or None.

        Raises:
            ZooError: it is about no request at all; the broker could not read something that we sent.
        """
        if isinstance(message, protocol.Welcome):
            return None
        if isinstance(message, protocol.Error) and not message.rid:
            raise message.exception()
        if isinstance(message, protocol.Error) and message.held:
            return None  # `LifelineSettled` follows
        self.outcome(message, parts)  # once decoded and dropped, a result's slots go back
        self._link.settle(message.rid)
        if message.rid in self._link.unwanted:
            self._link.unwanted.discard(message.rid)
            if isinstance(message, protocol.Value):
                return protocol.Release(0, message.value)
        return None


# ---------------------------------------------------------------- opening


def open_socket(context: zmq.Context[zmq.Socket[bytes]], key: bytes, number: int, endpoint: str) -> zmq.Socket[bytes]:
    """A connected socket of the session."""
    sock: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    try:
        configure(sock, routing_id(key, number), endpoint)
        sock.setsockopt(zmq.RCVTIMEO, POLL_MS)
        sock.connect(endpoint)
    except BaseException:
        close_quietly(sock)
        raise
    return sock


def open_link(
    context: zmq.Context[zmq.Socket[bytes]], address: Address, seconds: float, deadline: float, gone: threading.Event
) -> tuple[Link, zmq.Socket[bytes]]:
    """Says Hello and waits, within the deadline, for whoever serves the endpoint. The socket is the session's first.

    Raises:
        BrokerUnreachable: nobody answered in time, or `gone` was set. AccessDenied, ProtocolMismatch.
    """
    while True:
        endpoint = peers.find_server(address, deadline, gone)
        if endpoint is None:
            raise unreachable(address, seconds)
        key = new_key()
        sock = open_socket(context, key, 0, endpoint)
        try:
            welcome = _welcome(sock, key, address, seconds, deadline, gone)
            return Link(key, welcome, endpoint, address.owners), sock
        except BrokerUnreachable:  # perhaps it went away between two steps, and another one comes
            close_quietly(sock)
            if time.monotonic() > deadline or gone.wait(POLL_MS / 1000):
                raise
        except BaseException:
            close_quietly(sock)
            raise


def _welcome(
    sock: zmq.Socket[bytes], key: bytes, address: Address, seconds: float, deadline: float, gone: threading.Event
) -> protocol.Welcome:
    said = -math.inf
    while True:
        if time.monotonic() > said + HELLO_S:
            with contextlib.suppress(zmq.Again):
                sock.send(hello(key), zmq.NOBLOCK)
            said = time.monotonic()
        try:
            parts = sock.recv_multipart()
        except zmq.Again:
            if gone.is_set() or time.monotonic() > deadline:
                raise unreachable(address, seconds) from None
            continue
        message = protocol.unpack_from_broker(parts[0])
        if isinstance(message, protocol.Error):
            raise message.exception()
        if isinstance(message, protocol.Welcome):
            return message


_links: weakref.WeakSet[Link] = weakref.WeakSet()


def _in_child() -> None:
    """A fork's copy of a lifeline would keep the session alive after its owner; a client does not survive a fork."""
    for link in list(_links):
        link.dead = True
        line, link._line = link._line, None
        if line is not None:
            line.close()


os.register_at_fork(after_in_child=_in_child)

# ---------------------------------------------------------------- arguments


def new_key() -> bytes:
    return secrets.token_bytes(protocol.SESSION_BYTES)


def routing_id(key: bytes, number: int) -> bytes:
    return key + number.to_bytes(4, "big")


def hello(key: bytes) -> bytes:
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    return protocol.pack(protocol.Hello(key, os.getpid(), name[:80]))


def check_endpoint(endpoint: str | None) -> Address:
    found = find_address(endpoint)
    problem = endpoint_problem(found)
    if problem:
        raise InvalidInput(f"endpoint: {problem}")
    return found


def check_arena_mb(arena_mb: int) -> int:
    """In bytes."""
    if not isinstance(arena_mb, int) or arena_mb < 1:
        raise InvalidInput(f"arena_mb: {arena_mb!r} is not a positive number of megabytes")
    return arena_mb << 20


def check_models(models: Iterable[str]) -> list[str]:
    """Each once, in order."""
    if isinstance(models, str):
        raise InvalidInput(f"models: expected a list of names, got {models!r}")
    return list(dict.fromkeys(models))


def check_timeout(timeout: float | None, default: float) -> float:
    value = default if timeout is None else timeout
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InvalidInput(f"timeout: {value!r} is not a positive number of seconds")
    return float(value)


def check_priority(priority: int | str | None) -> int:
    if priority is None:
        return _MEDIUM
    try:
        return int(ModelPriority[priority] if isinstance(priority, str) else ModelPriority(priority))
    except (KeyError, ValueError):
        raise InvalidInput(f"priority: {priority!r} is not one of CRITICAL, HIGH, MEDIUM, LOW (0 to 3)") from None


def check_keep_alive(keep_alive: float | None) -> float | None:
    if keep_alive is not None and (not isinstance(keep_alive, int | float) or not 0 <= keep_alive < math.inf):
        raise InvalidInput(f"keep_alive: {keep_alive!r} is not a number of seconds")
    return None if keep_alive is None else float(keep_alive)


def remaining_ms(deadline: float) -> int:
    return max(1, int((deadline - time.monotonic()) * 1000))


def configure(sock: Any, identity: bytes, endpoint: str) -> None:
    """Options that every client socket has."""
    sock.setsockopt(zmq.ROUTING_ID, identity)
    sock.setsockopt(zmq.LINGER, 0)
    sock.setsockopt(zmq.SNDHWM, 1000)
    sock.setsockopt(zmq.RCVHWM, 1000)
    sock.setsockopt(zmq.MAXMSGSIZE, protocol.MAX_MESSAGE_BYTES)
    sock.setsockopt(zmq.RECONNECT_IVL, 20)
    sock.setsockopt(zmq.RECONNECT_IVL_MAX, 200)
    if endpoint.startswith("tcp://"):
        folder = os.environ.get("ZOO_CURVE_DIR")
        if not folder:
            raise AccessDenied("tcp:// needs CURVE keys: set ZOO_CURVE_DIR (see `python -m zoo.curve --help`)")
        try:
            server, _ = read_key(os.path.join(folder, "server.key"))
            public, secret = read_key(os.path.join(folder, "client.key_secret"))
        except (OSError, ValueError) as e:
            raise AccessDenied(f"the CURVE keys in {folder} cannot be used: {e}") from None
        if secret is None:
            raise AccessDenied(f"{folder}/client.key_secret holds no secret key")
        sock.curve_serverkey, sock.curve_publickey, sock.curve_secretkey = server, public, secret


def unreachable(endpoint: Address, timeout: float) -> BrokerUnreachable:
    text = f"no broker answers at {endpoint} ({endpoint.how}) within {timeout:g} s; start one with `zoo serve`"
    if endpoint.startswith("tcp://"):
        text += ", or see whether it knows this client's CURVE key"
    return BrokerUnreachable(text)


def arena_full(own: arena.OwnedArena | None) -> QueueFull:
    size = own.size >> 20 if own is not None else 0
    return QueueFull(f"every slot of this client's {size} MB arena is in use; wait for answers, or raise arena_mb")


def close_quietly(sock: Any) -> None:
    with contextlib.suppress(zmq.ZMQError):
        sock.close(0)
