"""How threads wait: the driver of `Client`.

Each thread has a ZeroMQ socket of its own, so that a call costs no hand-over between threads. The session, its lifeline
and the arena are shared. A thread that calls the client in a signal handler, in the middle of a call of its own, gets
another socket for it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import zmq

from zoo.client import frames, session
from zoo.client.calls import Steps
from zoo.client.dealer import Dealer
from zoo.client.depot import Depot
from zoo.client.exchange import Waiter
from zoo.client.link import Link, client_closed, forked
from zoo.config.address import Address
from zoo.errors import BrokerUnreachable, DeadlineExceeded, ZooError
from zoo.system.locks import is_mine, under

WITHDRAW_S = 2.0  # the broker's answer to a Cancel is waited for at most this long, within the caller's deadline
CLOSE_S = 0.5  # how long `close` waits for the calls of other threads to notice
SLOT_POLL_S = 0.005

T = TypeVar("T")
BLOCKS: tuple[()] = ()  # what steps yield that wait by themselves


def run(steps: Steps[T]) -> T:
    """A call's steps, to the end. With this driver they yield nothing.

    What they give is never in an exception: interrupted there, that would keep a frame's slot until garbage is
    collected.
    """
    found: list[T] = []
    for _ in _kept(steps, found):
        raise AssertionError("a call of a thread has yielded")
    return found.pop()


def _kept(steps: Steps[T], found: list[T]) -> Iterator[object]:
    found.append((yield from steps))


class Threads:
    """See `zoo.client.calls.Driver`. One that is garbage ends its session."""

    crowded = False

    def __init__(self, endpoint: Address, arena_bytes: int) -> None:
        self.quit = session.Flag()
        self._endpoint = endpoint
        self.depot = Depot(arena_bytes)
        self._local = threading.local()
        self._lock = threading.RLock()
        self.link: Link | None = None
        self._dealers: dict[Dealer, threading.Thread] = {}
        self._pid = os.getpid()

    # ------------------------------------------------------------ sockets

    def ready(self) -> Dealer | None:
        link = self.link
        for dealer in getattr(self._local, "dealers", ()):
            if dealer.link is link and not is_mine(dealer.lock) and link.seems_well():
                if dealer.torn:
                    dealer.mend()
                return dealer  # type: ignore[no-any-return]
        return None

    def open(self, deadline: float, seconds: float) -> Steps[Dealer]:
        yield from BLOCKS
        if self._pid != os.getpid():
            raise forked()
        if is_mine(self._lock):
            raise BrokerUnreachable("called by a signal handler while its thread connects; try again outside of it")

        def busy() -> Dealer:
            raise session.unreachable(self._endpoint, seconds)

        left = deadline - time.monotonic()
        return under(self._lock, left, lambda: self._new_dealer(deadline, seconds), busy)

    def _new_dealer(self, deadline: float, seconds: float) -> Dealer:
        if self.quit.up:
            raise client_closed()
        mine: list[Dealer] = getattr(self._local, "dealers", [])
        for dealer, thread in list(self._dealers.items()):
            if not thread.is_alive():
                dealer.take_late()
                self._shut(dealer)
            elif dealer in mine and dealer.link is not self.link and not is_mine(dealer.lock):
                self._shut(dealer)
        if self.link is None or not self.link.look():
            self._drop_link(0.0)
            link, sock = session.open_link(self._endpoint, seconds, deadline, self.quit)
            self.link = link
        else:
            link, number = self.link, next(self.link.sockets)
            sock = session.open_socket(link.key, number, link.endpoint)
        dealer = Dealer(link, sock, threading.RLock())
        self._dealers[dealer] = threading.current_thread()
        if self.quit.up:
            self._drop_link(0.0)
            raise client_closed()
        self._local.dealers = [one for one in mine if one in self._dealers] + [dealer]
        return dealer

    def _shut(self, dealer: Dealer, until: float = 0.0) -> None:
        """Closes a socket, unless another thread's call does not leave it in time."""

        def shut() -> None:
            session.close_quietly(dealer.sock)
            self._dealers.pop(dealer, None)

        under(dealer.lock, until - time.monotonic(), shut, lambda: None)

    def store(self, link: Link, deadline: float) -> Steps[frames.Store]:
        yield from BLOCKS
        return self.depot.get(link, deadline)

    # ------------------------------------------------------------ waiting

    def next(self, dealer: Dealer, waiter: Waiter, deadline: float, until: float) -> Steps[tuple[str, Any] | None]:
        yield from BLOCKS
        while not waiter.came:
            if waiter.error is not None:
                raise waiter.error
            try:
                dealer.take()
            except zmq.Again:
                now = time.monotonic()
                if self.quit.up:
                    raise client_closed() from None
                if dealer.link.look() and now > deadline + session.GRACE_S:
                    raise DeadlineExceeded("the broker itself did not answer in time") from None
                if now >= until:
                    return None
            except zmq.ZMQError:
                raise client_closed() from None
        return waiter.came.pop(0)

    def place(self, dealer: Dealer, store: frames.Store, deadline: float, take: Callable[[], T]) -> Steps[T]:
        yield from BLOCKS
        while True:
            if not dealer.link.look():
                raise BrokerUnreachable("the broker went away while a slot was waited for; try again")
            with dealer.lock:
                dealer.take_late()
            try:
                return take()
            except frames.NoRoom:
                left = deadline - time.monotonic()
                if left <= 0 or store.shared is None:
                    raise store.full() from None
                store.shared.wait_for_slot(min(left, SLOT_POLL_S))

    def withdraw(self, dealer: Dealer, waiter: Waiter, deadline: float) -> None:
        """Slots and leases do not hang on this thread making another call: the broker's word on them is waited for."""
        exchange = dealer.link.exchange
        fence, messages = exchange.withdraw(waiter)
        end = min(time.monotonic() + WITHDRAW_S, deadline + session.LAST_S)
        with contextlib.suppress(ZooError, zmq.ZMQError):  # what ended the call is what the caller should see
            if messages and dealer.torn:
                dealer.mend()
            dealer.say(*messages)
            while exchange.awaits(fence) and time.monotonic() < end and dealer.link.look():
                with contextlib.suppress(zmq.Again):
                    dealer.take()

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        self.quit.up = True  # first: a thread may hold the lock while it waits for a broker
        if self._pid != os.getpid():
            self.link, self._dealers = None, {}  # all of it is the parent's
            self.depot.forget()
            return
        until = time.monotonic() + CLOSE_S
        # Whether or not a thread that opens the session lets go of the lock in time: it closes what it has opened.
        under(self._lock, CLOSE_S, lambda: self._end(until), lambda: self._end(until))

    def __del__(self) -> None:
        try:
            if not self.quit.up and not sys.is_finalizing() and self._pid == os.getpid():
                self.quit.up = True
                self._end(0.0)
        except Exception:
            pass  # not even made, or the interpreter is going

    def _end(self, until: float) -> None:
        self._drop_link(until)
        self.depot.close()

    def _drop_link(self, until: float) -> None:
        """Ends the link. Calls under way on it notice by themselves; their threads close their sockets later."""
        link, self.link = self.link, None
        if link is not None:
            session.end(link)
        for dealer in list(self._dealers):
            self._shut(dealer, until)
