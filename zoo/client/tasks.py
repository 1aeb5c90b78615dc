"""How the tasks of an event loop wait: the driver of `AsyncClient`.

A session has one plain ZeroMQ socket, and the loop watches its descriptor: no reader task, no thread, and so nothing
that could be left pending. ZeroMQ signals that descriptor on edges, so every use of the socket is followed by
`LoopWatch.drain`, which takes everything that is there.

A caller that waits has a future. One that stops waiting (cancelled, out of time) withdraws its requests, and their
slots stay taken until the broker says that no worker reads them any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
import types
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, ParamSpec, TypeVar

import zmq

from zoo.client import frames, session
from zoo.client.calls import Steps
from zoo.client.dealer import Dealer
from zoo.client.depot import Depot
from zoo.client.exchange import Waiter
from zoo.client.link import Link, client_closed, forked, went_away
from zoo.config.address import Address
from zoo.errors import BrokerUnreachable, DeadlineExceeded, ZooError
from zoo.wire import multipart, protocol

BURST = 64  # answers taken in before other tasks have their turn
SLOT_POLL_S = 0.002

P = ParamSpec("P")
T = TypeVar("T")


def awaits(wait: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Steps[T]]:
    """Makes steps of a coroutine."""

    def steps(*args: P.args, **kwargs: P.kwargs) -> Steps[T]:
        return (yield from wait(*args, **kwargs).__await__())

    return steps


class Opening(Generic[T]):
    """Something to be awaited, or to be entered with `async with`."""

    def __init__(self, steps: Steps[T], leave: Callable[[T], Awaitable[None] | None]) -> None:
        self._steps = steps
        self._leave = leave

    def __await__(self) -> Steps[T]:
        return self._steps

    async def __aenter__(self) -> T:
        self._made = await self
        return self._made

    async def __aexit__(self, *_: object) -> None:
        left = self._leave(self._made)
        if left is not None:
            await left


@types.coroutine
def run(steps: Steps[T]) -> Steps[T]:
    """A call's steps, to be awaited."""
    return (yield from steps)


class LoopWatch:
    """An event loop's watch over the socket of a session, and the callers that wait for what comes out of it."""

    def __init__(self, link: Link, sock: zmq.Socket[bytes], loop: asyncio.AbstractEventLoop) -> None:
        self.dealer = Dealer(link, sock, contextlib.nullcontext())
        self.link = link
        self.loop = loop
        self._asleep: dict[Waiter, asyncio.Future[None]] = {}
        self._pid = os.getpid()
        self._fd: int = sock.getsockopt(zmq.FD)  # type: ignore[assignment]
        self._line_fd = link.fileno()
        loop.add_reader(self._fd, self.drain)
        if self._line_fd >= 0:
            loop.add_reader(self._line_fd, self.look)

    @property
    def usable(self) -> bool:
        return self._fd >= 0 and not self.link.dead

    async def sleep(self, waiter: Waiter, until: float) -> None:
        """Returns when something came for the waiter, or at that time."""
        self.drain()
        if waiter.came or waiter.error is not None:
            return
        woken = self._asleep[waiter] = self.loop.create_future()
        timer = self.loop.call_later(until - time.monotonic(), _wake, woken)
        try:
            await woken
        finally:
            timer.cancel()
            self._asleep.pop(waiter, None)

    def drain(self) -> None:
        for _ in range(BURST):
            if self._fd < 0:
                return
            try:
                waiter = self.dealer.take(multipart.NOBLOCK)
            except zmq.ZMQError:
                return
            except ZooError as e:  # the two sides do not understand each other
                self.close(e)
                return
            except BaseException:  # out of a signal handler
                if self.dealer.torn:  # what comes next cannot be read
                    self.close(BrokerUnreachable("a signal handler broke into the exchange with the broker; try again"))
                raise
            if waiter is not None and (woken := self._asleep.get(waiter)) is not None:
                _wake(woken)
            if self.link.dead:
                self.close(BrokerUnreachable("the broker does not know this session any more; try again"))
        self.loop.call_soon(self.drain)

    def look(self) -> None:
        """The lifeline has something to say."""
        if self._fd >= 0 and not self.link.look():
            self.close(went_away())

    def say(self, *messages: protocol.Message) -> None:
        """Sends what no caller waits for, if it can be sent."""
        if self._fd >= 0 and not self.loop.is_closed():
            with contextlib.suppress(BrokerUnreachable):
                self.dealer.say(*messages)
            self.loop.call_soon(self.drain)

    def close(self, why: ZooError) -> None:
        """Ends the link; the callers that wait get `why`."""
        fd, self._fd = self._fd, -1
        if fd < 0 or self._pid != os.getpid():
            return  # in the child of a fork, loop, socket and line are the parent's
        if not self.loop.is_closed():
            self.loop.remove_reader(fd)
            if self._line_fd >= 0:
                self.loop.remove_reader(self._line_fd)
        self.dealer.sock.close()
        session.end(self.link, why)
        for woken in self._asleep.values():
            if not self.loop.is_closed():
                _wake(woken)

    def abandon(self) -> None:
        """Ends the link of a client that is garbage; the collector may run in any thread."""
        why = BrokerUnreachable("this client was dropped", retryable=False)
        try:
            if self._pid != os.getpid() or self.loop.is_closed():
                self.close(why)
            else:
                self.loop.call_soon_threadsafe(self.close, why)
        except RuntimeError:
            self.close(why)  # the loop was closed just now


class Tasks:
    """See `zoo.client.calls.Driver`. One that is garbage ends its session."""

    def __init__(self, endpoint: Address, arena_bytes: int) -> None:
        self._watch: LoopWatch | None = None
        self._endpoint = endpoint
        self.depot = Depot(arena_bytes)
        self._opening = asyncio.Lock()
        self._room = asyncio.Lock()  # of the tasks that wait for a free slot, one; the others queue behind, in order
        self._loop: asyncio.AbstractEventLoop | None = None
        self.quit = session.Flag()
        self._gone = session.Flag()  # of the latest handshake: no call waits for it any more
        self._pid = os.getpid()

    @property
    def crowded(self) -> bool:
        return self._room.locked()

    @property
    def link(self) -> Link | None:
        dealer = self.ready()
        return dealer.link if dealer is not None else None

    # ------------------------------------------------------------ waiting

    @awaits
    async def next(self, dealer: Dealer, waiter: Waiter, deadline: float, until: float) -> tuple[str, Any] | None:
        end = deadline + session.GRACE_S
        if not waiter.came and self._watch is not None and self._watch.dealer is dealer:
            await self._watch.sleep(waiter, min(until, end))
        if waiter.came:
            return waiter.came.pop(0)
        if waiter.error is not None:
            raise waiter.error
        if time.monotonic() >= end:
            raise DeadlineExceeded("the broker itself did not answer in time")
        return None

    @awaits
    async def place(self, dealer: Dealer, store: frames.Store, deadline: float, take: Callable[[], T]) -> T:
        """First come, first served."""
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())), self._room:
                while True:
                    if dealer.link.closed:
                        raise BrokerUnreachable("the broker went away while a slot was waited for; try again")
                    try:
                        return take()
                    except frames.NoRoom:
                        await asyncio.sleep(SLOT_POLL_S)
        except TimeoutError:
            raise store.full() from None

    def withdraw(self, dealer: Dealer, waiter: Waiter, deadline: float) -> None:
        """The answers come all the same, and settle the requests."""
        _, messages = dealer.link.exchange.withdraw(waiter)
        if messages and self._watch is not None and self._watch.dealer is dealer:
            self._watch.say(*messages)

    # ------------------------------------------------------------ sockets

    def ready(self) -> Dealer | None:
        watch = self._watch
        if watch is not None and watch.usable and watch.loop is asyncio.get_running_loop():
            return watch.dealer
        return None

    @awaits
    async def open(self, deadline: float, seconds: float) -> Dealer:
        loop = asyncio.get_running_loop()
        if self._pid != os.getpid():
            raise forked()
        if self._loop is not loop:
            self._move_to(loop)
        try:
            async with _by(deadline), self._opening:
                if self._watch is None or not self._watch.usable:
                    self._watch = await self._connect(loop, deadline, seconds)
                return self._watch.dealer
        except TimeoutError:  # of ours: the executor's threads are all busy, or the machine is
            raise session.unreachable(self._endpoint, seconds) from None

    def _move_to(self, loop: asyncio.AbstractEventLoop) -> None:
        """Goes with the program from one event loop to its next."""
        if self._loop is not None and self._loop.is_running():
            raise BrokerUnreachable(
                "this client serves an event loop that is still running; make one for each loop", retryable=False
            )
        if self._watch is not None:
            self._watch.close(BrokerUnreachable("the event loop of this request has ended"))
            self._watch = None
        self._opening, self._room = asyncio.Lock(), asyncio.Lock()
        self._loop = loop

    async def _connect(self, loop: asyncio.AbstractEventLoop, deadline: float, seconds: float) -> LoopWatch:
        """`session.open_link` in a thread. Should no call wait for it any more, the thread closes what it opened."""
        if self._watch is not None:
            self._watch.close(BrokerUnreachable("the broker does not answer on its lifeline; try again"))
        if self.quit.up:
            raise client_closed()
        gone = self._gone = session.Flag()
        try:
            link, sock = await _in_thread(
                lambda: session.open_link(self._endpoint, seconds, deadline, gone), _close_opened
            )
        except BaseException:
            gone.up = True
            raise
        if gone.up:
            _close_opened((link, sock))
            raise client_closed()
        return LoopWatch(link, sock, loop)

    @awaits
    async def store(self, link: Link, deadline: float) -> frames.Store:
        """In a thread: it touches every page, and waits for the broker."""
        try:
            async with _by(deadline):
                return await _in_thread(lambda: self.depot.get(link, deadline), lambda _: None)
        except TimeoutError:
            raise BrokerUnreachable("this client's arena was not made in time; try again") from None

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        self.quit.up = self._gone.up = True
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close(client_closed())
        if self._pid == os.getpid():
            self.depot.close()
        else:
            self.depot.forget()

    def __del__(self) -> None:
        try:
            watch, self._watch = self._watch, None
            if watch is not None and not sys.is_finalizing():
                self._gone.up = True
                watch.abandon()
                self.depot.close()
        except Exception:
            pass  # not even made, or the interpreter is going


def _by(deadline: float) -> asyncio.Timeout:
    """Raises TimeoutError a little after the deadline, when what is waited for has had its time."""
    return asyncio.timeout(max(0.0, deadline - time.monotonic()) + session.GRACE_S)


async def _in_thread(work: Callable[[], T], undo: Callable[[T], object]) -> T:
    """What `work` gives, in a thread of the executor. When no call waits for it any more, it is undone."""
    working = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(working)
    except BaseException:
        working.add_done_callback(lambda done: done.cancelled() or done.exception() or undo(done.result()))
        raise


def _close_opened(opened: tuple[Link, zmq.Socket[bytes]]) -> None:
    link, sock = opened
    session.close_quietly(sock)
    session.end(link)


def _wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)
