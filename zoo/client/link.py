"""The link of a client to one life of a broker: its session, its lifeline, and the results that it looks at.

It ends when the lifeline does; the client then opens a new one with its next call. A client that is closed says
`LifelineBye`: leases, requests and arenas are given back, but the line stays, silently, until the last array in a
worker's arena is gone, and with it the slots that the broker keeps for them. A child made by `fork` looks at its
parent's results, and has to copy what it keeps.

A signal handler of the caller's may run between any two steps here, call the client again, or raise. So a packet stays
in `_packets` until it is dealt with, what is done twice is harmless, and no lock is waited for that this very thread
may hold.
"""

from __future__ import annotations

import errno
import itertools
import os
import select
import socket
import sys
import threading
import time
import weakref
from collections import deque

import numpy as np

from zoo.client import peers
from zoo.client.exchange import Exchange
from zoo.errors import AccessDenied, BrokerUnreachable, ProtocolMismatch, ZooError
from zoo.system.locks import is_mine, under
from zoo.wire import arena, arrays, lifeline, protocol

LOOK_S = 0.02
HANDSHAKE_S = 5.0  # within the caller's deadline
VIEW_S = 0.5  # how long the descriptor of a worker's arena is waited for


class _Mapping:
    """A worker's arena as it was handed to us. It is mapped at its first use: what fails then may succeed later."""

    def __init__(self, fd: int, limit: int) -> None:
        self._fd = fd
        self._limit = limit
        self._mapped: arena.MappedArena | None = None
        self._lock = threading.RLock()
        self.address = 0

    def get(self) -> arena.MappedArena:
        """Raises BrokerUnreachable when it cannot be mapped now, ProtocolMismatch when it never can."""
        if self._mapped is not None:
            return self._mapped
        with self._lock:
            if self._mapped is None:
                try:
                    mapped = arena.MappedArena(os.dup(self._fd), self._limit)
                except arena.ArenaRefused as e:
                    raise ProtocolMismatch(f"a result lies in memory that cannot be trusted: {e}") from None
                except (OSError, MemoryError) as e:
                    raise BrokerUnreachable(
                        f"a result's memory cannot be mapped now ({e}); try again, or with more descriptors (ulimit -n)"
                    ) from None
                self.address = np.frombuffer(mapped.memory, np.uint8).__array_interface__["data"][0]
                self._mapped = mapped
                self.close()
        return self._mapped

    def close(self) -> None:
        """Closes the descriptor; what is mapped stays."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class _Borrowed:
    """Memory of a worker's arena that arrays look at; the slot goes back when the last of them is dropped."""

    __slots__ = ("__array_interface__", "_loan", "_offset")

    def __init__(self, loan: Loan, address: int, offset: int, shape: tuple[int, ...], dtype: str):
        self._loan, self._offset = loan, offset
        self.__array_interface__ = {"data": (address + offset, True), "shape": shape, "typestr": dtype, "version": 3}

    def __del__(self) -> None:
        try:
            self._loan.give_back(self._offset)
        except AttributeError:
            pass  # it was not even made: the loan gives it back


class Loan:
    """The slots of one result. Each goes back once: with its last array, or with the loan if no array came of it."""

    __slots__ = ("__weakref__", "_link", "_mapping", "_out", "_seen", "arena")

    def __init__(self, link: Link, number: int, mapping: _Mapping) -> None:
        self.arena = number
        self._link = link
        self._mapping = mapping
        self._seen: set[int] = set()
        self._out: set[int] = set()
        link.loans[id(self)] = weakref.ref(self)

    def view(self, offset: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """A read-only array. Raises InvalidInput when it would not lie in the arena."""
        mapped = self._mapping.get()
        whole = arrays.view(mapped.memory, mapped.size, offset, shape, dtype)  # checks, or raises
        if offset in self._seen:  # the message is read again, or names a slot twice
            return whole
        self._seen.add(offset)
        self._out.add(offset)
        return np.asarray(_Borrowed(self, self._mapping.address, offset, shape, dtype))

    def give_back(self, offset: int) -> None:
        """May be called by the garbage collector, in any thread, at any time: never waits, never raises."""
        if offset in self._out:
            self._link.give_back(self.arena, offset)
            self._out.discard(offset)

    def __del__(self) -> None:
        if not hasattr(self, "_out"):
            return  # it was not even made
        for offset in list(self._out):
            self.give_back(offset)
        self._link.loans.pop(id(self), None)
        if self._link.closed and not self._link.looks_at_results():
            self._link.hang_up()


class Link:
    """One session with one life of a broker.

    Attributes:
        key: the session; routing ids of its sockets begin with it. endpoint: where they connect.
        shares_memory: it has, or had, a lifeline.
        dead: set once the broker is known to be gone, or the client is closed.
        closed: nothing is read or asked any more; see `loans`.
        exchange: its requests.
        loans: of results that arrays still look at.
    """

    def __init__(
        self, key: bytes, welcome: protocol.Welcome, endpoint: str, owners: frozenset[int], deadline: float
    ) -> None:
        self.key = key
        self.endpoint = endpoint
        self.dead = False
        self.closed = False
        self.arena_limit = welcome.arena_limit_bytes
        self.inline_limit = welcome.inline_limit_bytes
        self._look_at = 0.0
        self.loans: dict[int, weakref.ref[Loan]] = {}
        self.sockets = itertools.count(1)
        self._mappings: dict[int, _Mapping] = {}
        self._unsent: deque[tuple[int, int]] = deque()
        self._packets: deque[lifeline.Raw] = deque()
        self._lock = threading.RLock()
        self._replies: deque[protocol.LifelineMessage] = deque()
        self._line: socket.socket | None = None
        self.shares_memory = welcome.handoff is not None and sys.platform == "linux"
        self.exchange = Exchange(self.shares_memory)
        if welcome.handoff is not None and self.shares_memory:
            self._attach(welcome.handoff, owners, deadline)

    def _attach(self, handoff: str, owners: frozenset[int], deadline: float) -> None:
        """Opens the lifeline."""
        try:
            self._line = lifeline.connect(handoff, max(0.01, min(HANDSHAKE_S, deadline - time.monotonic())))
            peers.check_server(self._line, owners, handoff)
            _links.add(self)
            lifeline.send(self._line, protocol.LifelineAttach("client", self.key))
            self._line.setblocking(False)
            self._await_reply("the lifeline", deadline)
        except BaseException as e:
            self.close()
            if not isinstance(e, OSError):
                raise
            if e.errno not in peers.SHORT:
                raise BrokerUnreachable(f"the broker went away while connecting ({e})") from None
            raise BrokerUnreachable(
                f"this process cannot open another connection ({e}); close clients, or raise its limit of descriptors "
                "(ulimit -n)"
            ) from None

    def fileno(self) -> int:
        """The lifeline's descriptor: when it is readable, call `look`. -1 when there is none."""
        return self._line.fileno() if self._line is not None else -1

    def register(self, own: arena.OwnedArena, deadline: float) -> None:
        """Hands our arena to this broker; sets its id.

        Raises:
            AccessDenied: it was refused. BrokerUnreachable.
        """
        if is_mine(self._lock):
            raise BrokerUnreachable("called from within a call of this client (a signal handler?); try again outside")
        under(self._lock, deadline - time.monotonic(), lambda: self._register(own, deadline), _late)

    def _register(self, own: arena.OwnedArena, deadline: float) -> None:
        line = self._line
        if line is None or self.dead:
            raise BrokerUnreachable("the broker went away while the arena was handed over; try again")
        try:
            self._send_arena(line, own, deadline)
            own.id = self._await_reply("the arena", deadline)
        except AccessDenied:
            raise
        except BaseException as e:
            self.dead = True  # a reply may still come, and could not be told from another
            if isinstance(e, OSError) and e.errno is not None:
                raise BrokerUnreachable(f"the broker is gone ({e})") from None
            raise

    def _send_arena(self, line: socket.socket, own: arena.OwnedArena, deadline: float) -> None:
        while True:
            try:
                return lifeline.send(line, protocol.LifelineArena(), own.fd)
            except BlockingIOError:
                if not _ready(line, select.POLLOUT, min(HANDSHAKE_S, deadline - time.monotonic())):
                    raise BrokerUnreachable("the broker does not read its lifeline; try again") from None

    def _await_reply(self, what: str, deadline: float) -> int:
        end = min(deadline, time.monotonic() + HANDSHAKE_S)
        while True:
            while self._replies:
                reply = self._replies.popleft()
                if isinstance(reply, protocol.LifelineAccepted):
                    return reply.id
                if isinstance(reply, protocol.LifelineRefused):
                    denied = reply.code == AccessDenied.code
                    raise AccessDenied(reply.message) if denied else BrokerUnreachable(reply.message)
            if self.dead or (not self._read(max(0.0, end - time.monotonic())) and time.monotonic() >= end):
                self.dead = True
                raise BrokerUnreachable(f"the broker did not take {what} in time; try again")

    def _read(self, timeout: float) -> bool:
        """Reads one packet of the lifeline; False when none came in time."""
        line = self._line
        if line is None:
            self.dead = True
            return True
        try:
            if not self._packets:
                if timeout > 0 and not _ready(line, select.POLLIN, timeout):
                    return False
                lifeline.take(line, self._packets)
            message, fd = lifeline.parse(self._packets[0]) or (None, None)
        except BlockingIOError:
            return False
        except OSError as e:
            if e.errno is None:
                raise  # a signal handler's own, such as TimeoutError
            message = None
        except ProtocolMismatch:
            message = None
        if message is None:
            self.dead = True
            return True
        self._take_in(message, fd)
        self._packets.popleft()
        return True

    def _take_in(self, message: protocol.LifelineMessage, fd: int | None) -> None:
        if isinstance(message, protocol.LifelineArena) and fd is not None:
            if message.id not in self._mappings:
                self._mappings[message.id] = _Mapping(fd, self.arena_limit)
        elif isinstance(message, protocol.LifelineGone):
            mapping = self._mappings.pop(message.id, None)  # arrays that still look at it keep it alive
            if mapping is not None:
                mapping.close()
        elif isinstance(message, protocol.LifelineSettled):
            self.exchange.settled(message.rid)
        else:
            self._replies.append(message)

    def look(self) -> bool:
        """Takes in what lies on the lifeline; False when the broker is gone."""
        self._look_at = time.monotonic() + LOOK_S
        if self._line is not None and not is_mine(self._lock):
            under(self._lock, 0.0, self._take_all, lambda: None)  # else another thread looks
        if self.dead:
            self.exchange.end(went_away())
        return not self.dead

    def _take_all(self) -> None:
        while not self.dead and self._read(0.0):
            pass
        for _ in range(len(self._unsent)):
            self.give_back(*self._unsent.popleft())

    def seems_well(self) -> bool:
        """`look()`, but not more often than every `LOOK_S`: this stands before every request."""
        return not self.dead and (time.monotonic() < self._look_at or self.look())

    def is_unknown(self) -> None:
        """The broker says that it does not know this session; no lifeline tells where there is none."""
        self.dead = self.dead or not self.shares_memory

    # ------------------------------------------------------------ results in workers' arenas

    def lend(self, number: int) -> Loan:
        """What a result in that worker's arena is read by.

        Raises:
            ProtocolMismatch: there is no such arena. BrokerUnreachable: the client is closed, or memory is short.
        """
        mapping = self._mappings.get(number) or self._find(number)
        if mapping is None and not self.closed:
            raise ProtocolMismatch(f"a result refers to arena {number}, which was never handed over")
        loan = Loan(self, number, mapping) if mapping is not None else None
        if loan is None or mapping is None or self.closed:  # in this order: see `close`
            raise BrokerUnreachable("this client was closed before its result was read", retryable=False)
        mapping.get()
        return loan

    def _find(self, number: int) -> _Mapping | None:
        """Reads the lifeline, on which it is sent before the result that lies in it."""

        def read() -> None:
            while number not in self._mappings and not self.dead and self._read(max(0.0, end - time.monotonic())):
                pass

        end = time.monotonic() + VIEW_S
        if not is_mine(self._lock):
            under(self._lock, VIEW_S, read, lambda: None)
        return self._mappings.get(number)

    def give_back(self, number: int, offset: int) -> None:
        """May be called by the garbage collector, in any thread, at any time: never waits, never raises."""
        line = self._line
        if line is None:
            return
        try:
            lifeline.send(line, protocol.LifelineReleased(number, offset), flags=socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._unsent.append((number, offset))
        except (OSError, TypeError, AttributeError):
            pass  # the broker is gone, or the interpreter is going

    # ------------------------------------------------------------ its end

    def close(self, why: ZooError | None = None) -> None:
        """Gives back all that was this session's, at once; what arrays still look at, when they are gone.

        Args:
            why: what the callers that still wait get.
        """
        self.dead = self.closed = True
        line = self._line
        if line is not None and self.looks_at_results():
            try:
                lifeline.send(line, protocol.LifelineBye(), flags=socket.MSG_DONTWAIT)
            except OSError:
                pass  # it is over already, or stands still: then it is cut off for not reading
        if not self.looks_at_results():  # also when the last of them went meanwhile
            self.hang_up()
        self.exchange.end(why or client_closed())

    def looks_at_results(self) -> bool:
        return any(loan() is not None for loan in list(self.loans.values()))

    def hang_up(self) -> None:
        """Ends the lifeline: the broker takes back whatever is left."""
        line, self._line = self._line, None
        if line is not None:
            line.close()
        while self._mappings:
            self._mappings.popitem()[1].close()

    def forget(self) -> None:
        """In the child of a fork: all of this is the parent's, and our copy of the line must not keep it alive."""
        self.dead = self.closed = True
        self._lock = threading.RLock()
        self.exchange.end(forked())
        self.hang_up()


def went_away() -> BrokerUnreachable:
    return BrokerUnreachable("the broker went away while the request was under way; try again")


def client_closed() -> BrokerUnreachable:
    return BrokerUnreachable("this client is closed", retryable=False)


def forked() -> BrokerUnreachable:
    return BrokerUnreachable("a client does not survive a fork; make a new one in the child", retryable=False)


def _late() -> None:
    raise BrokerUnreachable("the broker did not take the arena in time; try again")


def _ready(line: socket.socket, events: int, timeout: float) -> bool:
    poll = select.poll()
    try:
        poll.register(line, events)
    except ValueError:
        raise OSError(errno.EBADF, "the lifeline was closed") from None
    return bool(poll.poll(max(0.0, timeout) * 1000))


_links: weakref.WeakSet[Link] = weakref.WeakSet()


def _in_child() -> None:
    for link in list(_links):
        link.forget()


os.register_at_fork(after_in_child=_in_child)
