"""`AsyncClient`: the zoo for asyncio. Every call of `Client`, with `await`.

One client may be shared by any number of tasks of one event loop. A link has one plain ZeroMQ socket, and the loop
watches its descriptor: no reader task, no thread, and so nothing that could be left pending. ZeroMQ signals that
descriptor on edges, so whoever has touched the socket takes everything that is there (`_Channel.drain`).

What waits is a future per request; whoever stops waiting (cancelled, out of time) withdraws the request, and its
slots stay taken until the broker says that nobody reads them any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from typing import Any, Generic, NamedTuple, Self, TypeVar

import zmq

from zoo.client import checks, depot, frames, session
from zoo.client.enrich import Plan, read_table
from zoo.client.event import Event
from zoo.client.frames import Boxes, Frame
from zoo.client.link import Link
from zoo.enrichment import Enrichment
from zoo.errors import BrokerUnreachable, DeadlineExceeded, InvalidInput, ZooError
from zoo.wire import moments, multipart, protocol

BURST = 64  # answers taken in before other tasks have their turn
ROOM_POLL_S = 0.002

T = TypeVar("T")
_Rids = dict[int, tuple[str, asyncio.Future[Any]]]  # what one call has under way: the model asked, and its outcome


class _Waiting(NamedTuple):
    """A request under way. The future gets the outcome, never an exception: nobody may be left to fetch it."""

    future: asyncio.Future[Any]
    outgoing: frames.Outgoing | None = None
    lease: AsyncLease | None = None


class _Lost(NamedTuple):
    """An outcome that no answer brought: the link ended, or time was up and the broker said nothing."""

    error: ZooError


class _Channel:
    """The socket of one link, and who waits for what comes out of it."""

    def __init__(self, link: Link, sock: zmq.Socket[bytes], loop: asyncio.AbstractEventLoop) -> None:
        self.link = link
        self.loop = loop
        self.waiting: dict[int, _Waiting] = {}
        self._sock = sock
        self._outbox = multipart.Outbox(sock)
        self._inbox = multipart.Inbox(sock)
        self._reader = session.Reader(link, self._inbox)
        self._pid = os.getpid()
        self._fd: int = sock.getsockopt(zmq.FD)  # type: ignore[assignment]
        self._line_fd = link.fileno()
        self._ping: asyncio.TimerHandle | None = None
        loop.add_reader(self._fd, self.drain)
        if self._line_fd >= 0:
            loop.add_reader(self._line_fd, self.look)
        else:
            self._ping = loop.call_later(protocol.PING_S, self._say_alive)

    @property
    def open(self) -> bool:
        return self._fd >= 0

    @property
    def usable(self) -> bool:
        return self._fd >= 0 and not self.link.dead

    def ask(self, rid: int, waiting: _Waiting, parts: tuple[Any, ...]) -> None:
        """Sends a request. Raises BrokerUnreachable."""
        self._send(parts)
        if waiting.outgoing is not None:
            waiting.outgoing.keep()
        self.waiting[rid] = waiting
        self.drain()

    def _send(self, parts: tuple[Any, ...]) -> None:
        try:
            self._outbox.send(parts)
        except zmq.Again:
            raise BrokerUnreachable("the broker does not take messages; too many are under way") from None
        except zmq.ZMQError as e:
            raise BrokerUnreachable(f"the connection cannot be used: {e}") from None

    def look(self) -> None:
        """The lifeline has something to say."""
        if self.open and not self.link.look():
            self.close(BrokerUnreachable("the broker went away while the request was under way; try again"))

    def drain(self) -> None:
        for _ in range(BURST):
            if not self.open:
                return
            try:
                parts = self._inbox.peek(multipart.NOBLOCK)
            except zmq.ZMQError:
                return
            except BaseException:  # out of a signal handler: what comes next cannot be read
                self.close(BrokerUnreachable("a signal handler broke into the exchange with the broker; try again"))
                raise
            try:
                self._take(protocol.unpack_from_broker(parts[0]), parts)
            except ZooError as e:  # the two sides do not understand each other
                self.close(e)
            self._inbox.done()
        if self.open:
            self.loop.call_soon(self.drain)

    def _take(self, message: protocol.FromBroker, parts: list[bytes]) -> None:
        waiting = self.waiting.pop(getattr(message, "rid", 0), None)
        if waiting is None:
            reply = self._reader.late(message, parts)
            if reply is not None:
                self._send((protocol.pack(reply),))
            return
        outcome = self._reader.outcome(message, parts)
        if waiting.outgoing is not None:
            self.link.answered(message, waiting.outgoing)
        if waiting.lease is not None and isinstance(message, protocol.Value):
            waiting.lease.granted(self, message.value)  # it goes back with the lease, if no caller takes that
        if not waiting.future.done():
            waiting.future.set_result(outcome)
        if self.link.dead:
            self.close(BrokerUnreachable("the broker does not know this session any more; try again"))

    def withdraw(self, rids: Iterable[int]) -> None:
        """Nobody waits for these any more. Their answers come all the same, and settle them."""
        for rid in rids:
            waiting = self.waiting.pop(rid, None)
            if waiting is None:
                continue
            if waiting.outgoing is not None:
                self.link.hold(rid, waiting.outgoing)
            if waiting.lease is not None:
                self.link.unwanted.add(rid)
            self._try(protocol.Cancel(rid))

    def _say_alive(self) -> None:
        self._ping = self.loop.call_later(protocol.PING_S, self._say_alive)
        self._try(protocol.Ping())

    def _try(self, message: protocol.Message) -> None:
        """Sends what has no answer of its own, if it can be sent."""
        if self.open:
            with contextlib.suppress(BrokerUnreachable):
                self._send((protocol.pack(message),))
            self.loop.call_soon(self.drain)

    def close(self, why: ZooError) -> None:
        """Ends the link; whoever waits gets `why`."""
        if not self.open:
            return
        fd, self._fd = self._fd, -1
        if self._pid != os.getpid():
            self.waiting.clear()
            return  # in the child of a fork: loop, socket and line are the parent's
        if not self.loop.is_closed():
            self.loop.remove_reader(fd)
            if self._line_fd >= 0:
                self.loop.remove_reader(self._line_fd)
            if self._ping is not None:
                self._ping.cancel()
        if self._ping is not None and not self.link.dead:
            self._sock.setsockopt(zmq.LINGER, session.BYE_MS)
            with contextlib.suppress(BrokerUnreachable):
                self._send((protocol.pack(protocol.Bye()),))
        self._sock.close()
        self.link.close()
        for waiting in self.waiting.values():
            if waiting.outgoing is not None:
                waiting.outgoing.drop()
            if not waiting.future.done() and not self.loop.is_closed():
                waiting.future.set_result(_Lost(why))
        self.waiting.clear()

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


class _Opening(Generic[T]):
    """Something to be awaited, or to be entered with `async with`."""

    def __init__(self, make: Callable[[], Coroutine[Any, Any, T]], leave: Callable[[T], Awaitable[None]]) -> None:
        self._make = make
        self._leave = leave
        self._value: T | None = None

    def __await__(self) -> Generator[Any, None, T]:
        return self._make().__await__()

    async def __aenter__(self) -> T:
        self._value = await self._make()
        return self._value

    async def __aexit__(self, *_: object) -> None:
        value, self._value = self._value, None
        if value is not None:
            await self._leave(value)


class AsyncLease:
    """Keeps a model loaded: reference-counted, never evicted while held. Callable like `AsyncClient.infer`.

    What becomes of it when the broker is started again: see `Lease`.

    Attributes:
        model: its name.
    """

    def __init__(self, client: AsyncClient, model: str, keep_alive: float | None) -> None:
        self.model = model
        self._client = client
        self._keep_alive = keep_alive
        self._grant: tuple[_Channel, int] | None = None  # where it was granted, and its number there
        self._released = False

    @property
    def lost(self) -> bool:
        """The broker that granted it is gone, and it was not taken again yet."""
        grant = self._grant
        return not self._released and grant is not None and not grant[0].link.look()

    def granted(self, channel: _Channel, number: int) -> None:
        self._grant = channel, number

    async def __call__(self, frame: Any, **how: Any) -> Any:
        return await self._client._infer_leased(self, frame, how)

    async def release(self) -> None:
        """Gives the lease back; again is harmless, and so is a broker that is gone (it kept no leases)."""
        grant, self._released = self._grant, True
        if grant is None or not grant[0].usable or grant[0].loop is not asyncio.get_running_loop():
            self._grant = None
            return
        channel, number = grant
        try:
            await self._client._ask(channel, lambda rid, _: protocol.Release(rid, number), self._client.timeout)
        except BrokerUnreachable:
            pass  # its leases went with it
        self._grant = None  # only now: if that was cancelled, it goes back with the object

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.release()

    def __del__(self) -> None:
        try:
            if self._grant is not None:
                session.give_back_lease(self._grant[0].link, self._grant[1])
        except Exception:
            pass  # the interpreter is going, and the lease with it


class AsyncClient:
    """A connection to a zoo, for the tasks of one event loop.

    Args:
        endpoint: "ipc://…" or "tcp://…"; None takes $ZOO_ENDPOINT, else the configuration's.
        timeout: seconds for each call, unless it brings its own. The first call also waits, within it, for a
            broker that is still starting.
        arena_mb: shared memory for frames under way; made with the first frame.
    """

    def __init__(self, endpoint: str | None = None, *, timeout: float = 30.0, arena_mb: int = 64) -> None:
        self._channel: _Channel | None = None
        self.endpoint = checks.check_endpoint(endpoint)
        self.timeout = checks.check_timeout(timeout, timeout)
        self._depot = depot.Depot(checks.check_arena_mb(arena_mb))
        self._opening = asyncio.Lock()
        self._room = asyncio.Lock()  # of the tasks that wait for a free slot, one; the others queue behind, in order
        self._loop: asyncio.AbstractEventLoop | None = None
        self._rids = itertools.count(1)
        self._quit = session.Flag()
        self._gone = session.Flag()  # of the latest handshake: no call waits for it any more
        self._pid = os.getpid()

    @property
    def _store(self) -> frames.Store | None:
        return self._depot.store

    # ------------------------------------------------------------ inference

    async def infer(
        self,
        model: str,
        frame: Any,
        *,
        boxes: Boxes | None = None,
        color: str = "rgb",
        timeout: float | None = None,
        priority: int | str | None = None,
        **options: Any,
    ) -> Any:
        """One answer of one model; loads it if need be. Arguments and errors are those of `Client.infer`."""
        results = await self._infer_all([checks.check_model(model)], frame, boxes, color, timeout, priority, options)
        outcome = results[model]
        if isinstance(outcome, ZooError):
            raise outcome
        return outcome

    async def infer_many(
        self,
        frame: Any,
        models: Iterable[str],
        *,
        boxes: Boxes | None = None,
        color: str = "rgb",
        timeout: float | None = None,
        priority: int | str | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """The same frame to several models at once; it is written once. A failure is that model's value."""
        names = checks.check_models(models)
        return await self._infer_all(names, frame, boxes, color, timeout, priority, options)

    async def _infer_all(
        self,
        models: list[str],
        frame: Any,
        boxes: Boxes | None,
        color: str,
        timeout: float | None,
        priority: int | str | None,
        options: dict[str, Any],
    ) -> dict[str, Any]:
        seconds = checks.check_timeout(timeout, self.timeout)
        rank = checks.check_priority(priority)
        deadline = time.monotonic() + seconds
        channel, store = await self._shared(deadline, seconds)
        outgoing = await self._with_room(channel, store, deadline, lambda: store.outgoing(frame, boxes, color, options))
        rids: _Rids = {}
        try:
            for model in models:
                self._send_infer(channel, rids, model, outgoing, rank, deadline)
            return await self._collect(channel, rids, deadline)
        except BaseException:
            channel.withdraw(rids)
            raise
        finally:
            outgoing.drop()

    async def _infer_leased(self, lease: AsyncLease, frame: Any, how: dict[str, Any]) -> Any:
        """Takes the lease again if the broker that granted it is gone."""
        grant = lease._grant
        if grant is None or lease._released or self._quit.up:
            return await self.infer(lease.model, frame, **how)
        seconds = checks.check_timeout(how.get("timeout"), self.timeout)
        deadline = time.monotonic() + seconds
        if await self._open(deadline, seconds) is not grant[0]:
            left = max(0.001, deadline - time.monotonic())
            again = await self.load(lease.model, keep_alive=lease._keep_alive, timeout=left)
            if lease._grant is grant:
                lease._grant, again._grant = again._grant, None
            else:
                await again.release()  # another task has taken it again, or it was released meanwhile
            how = {**how, "timeout": max(0.001, deadline - time.monotonic())}
        return await self.infer(lease.model, frame, **how)

    def _send_infer(
        self, channel: _Channel, rids: _Rids, model: str, outgoing: frames.Outgoing, rank: int, deadline: float
    ) -> None:
        """Sends one inference; its answer is one of `rids` from then on."""
        outgoing.check(channel.link.inline_limit)
        rid = next(self._rids)
        header = protocol.Infer(rid, model, session.remaining_ms(deadline), rank, outgoing.arenas)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        parts = (protocol.pack(header), outgoing.body, *outgoing.buffers)
        channel.ask(rid, _Waiting(future, outgoing), parts)
        rids[rid] = model, future

    async def enrich(
        self,
        frame: Any,
        detections: Any,
        *,
        suspicious: bool = False,
        color: str = "rgb",
        min_score: float | None = None,
        timeout: float | None = None,
        priority: int | str | None = None,
    ) -> Enrichment:
        """What the right models say about each detection. Arguments and errors are those of `Client.enrich`."""
        seconds = checks.check_timeout(timeout, self.timeout)
        rank = checks.check_priority(priority)
        event = Event(frame, detections, suspicious, min_score)
        started = time.monotonic()
        plan = Plan(read_table(await self._table(seconds)), event, started, timeout)
        try:
            await self._carry_out(plan, color, rank)
        except InvalidInput:
            raise
        except ZooError as e:
            plan.fail(e, time.monotonic())
        return plan.result(time.monotonic())

    async def _table(self, seconds: float) -> Any:
        try:
            return await self._query("enrich", seconds=seconds)
        except DeadlineExceeded as e:
            raise BrokerUnreachable(str(e)) from None

    async def _carry_out(self, plan: Plan, color: str, rank: int) -> None:
        """Asks and answers until the plan is done. Whatever ends it before, what is under way is withdrawn."""
        if plan.done:
            return
        channel, store = await self._shared(plan.deadline, plan.deadline - time.monotonic())
        placed = await self._with_room(channel, store, plan.deadline, lambda: store.place(plan.frames, color))
        rids: _Rids = {}
        try:
            while not plan.done:
                for ask in plan.take(time.monotonic()):
                    outgoing = store.compose(placed if ask.video else placed[-1:], ask.boxes, ask.options)
                    self._send_infer(channel, rids, ask.model, outgoing, rank, plan.deadline)
                if not plan.done:
                    for model, outcome in await self._some(rids, plan.deadline, plan.wake):
                        plan.answer(model, outcome, time.monotonic())
        except BaseException:
            channel.withdraw(rids)
            raise
        finally:
            for one in placed:
                one.slot.drop()

    async def _some(self, rids: _Rids, deadline: float, until: float) -> list[tuple[str, Any]]:
        """The answers that have come, which leave `rids`; waits for one. None of them: it is `until`.

        Raises:
            ZooError: the link ended, or the broker itself did not answer in time.
        """
        end = deadline + session.GRACE_S
        left = max(0.0, min(end, until) - time.monotonic())
        if rids:
            await asyncio.wait([future for _, future in rids.values()], timeout=left, return_when="FIRST_COMPLETED")
        else:
            await asyncio.sleep(left)
        done = {rid: (model, future.result()) for rid, (model, future) in rids.items() if future.done()}
        came = {rid: answer for rid, answer in done.items() if not isinstance(answer[1], _Lost)}
        if done and not came:
            raise next(iter(done.values()))[1].error
        if not done and time.monotonic() >= end:
            raise DeadlineExceeded("the broker itself did not answer in time")
        for rid in came:
            del rids[rid]
        return list(came.values())

    async def _collect(self, channel: _Channel, rids: _Rids, deadline: float) -> dict[str, Any]:
        def time_is_up() -> None:
            for _, future in rids.values():
                if not future.done():
                    future.set_result(_Lost(DeadlineExceeded("the broker itself did not answer in time")))
            channel.withdraw(rids)

        left = deadline + session.GRACE_S - time.monotonic()
        timer = asyncio.get_running_loop().call_later(left, time_is_up)
        try:
            outcomes = {name: await future for name, future in rids.values()}
        finally:
            timer.cancel()
        lost = [outcome.error for outcome in outcomes.values() if isinstance(outcome, _Lost)]
        if lost and len(lost) == len(outcomes):
            raise lost[0]
        return {name: o.error if isinstance(o, _Lost) else o for name, o in outcomes.items()}

    async def _with_room(self, channel: _Channel, store: frames.Store, deadline: float, take: Callable[[], T]) -> T:
        """What `take` gives; while the arena is full, waits for its turn, first come, first served."""
        if not self._room.locked():
            try:
                return take()
            except frames.NoRoom:
                pass
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())), self._room:
                while True:
                    if not channel.open:
                        raise BrokerUnreachable("the broker went away while a slot was waited for; try again")
                    try:
                        return take()
                    except frames.NoRoom:
                        await asyncio.sleep(ROOM_POLL_S)
        except TimeoutError:
            raise session.arena_full(store.shared) from None

    def frame(self, shape: tuple[int, ...], dtype: str = "uint8") -> _Opening[Frame]:
        """An empty frame in shared memory: fill `.array`, send it as often as you like, leave the block.

        `async with zoo.frame(shape) as f`, or `f = await zoo.frame(shape)` and `f.close()` (or a plain `with f:`).
        """

        async def make() -> Frame:
            size = checks.check_shape(shape)
            deadline = time.monotonic() + self.timeout
            channel, store = await self._shared(deadline, self.timeout)
            return Frame(await self._with_room(channel, store, deadline, lambda: store.empty(size, dtype)))

        async def leave(frame: Frame) -> None:
            frame.close()

        return _Opening(make, leave)

    # ------------------------------------------------------------ models

    def load(
        self, model: str, *, keep_alive: float | None = None, timeout: float | None = None
    ) -> _Opening[AsyncLease]:
        """Loads a model and keeps it: `async with zoo.load(name) as lease`, or await it and call `.release()`.

        Args:
            keep_alive: seconds it stays after the last reference; 0 unloads it at once; None: its idle time.
        """

        async def make() -> AsyncLease:
            seconds = checks.check_timeout(timeout, self.timeout)
            name, keep = checks.check_model(model), checks.check_keep_alive(keep_alive)
            deadline = time.monotonic() + seconds
            channel = await self._open(deadline, seconds)
            lease = AsyncLease(self, name, keep)
            left = deadline - time.monotonic()
            await self._ask(
                channel,
                lambda rid, end: protocol.Load(rid, name, session.remaining_ms(end), True, keep),
                left,
                lease,
            )
            return lease

        return _Opening(make, AsyncLease.release)

    async def get_model(self, model: str, *, timeout: float | None = None) -> None:
        """Loads a model without keeping it: from then on it may be evicted like any other."""
        seconds, name = checks.check_timeout(timeout, self.timeout), checks.check_model(model)
        await self._call(lambda rid, end: protocol.Load(rid, name, session.remaining_ms(end)), seconds)

    async def unload(self, model: str, *, timeout: float | None = None) -> bool:
        """Ends the model's process and returns when its memory is back. False: it was not loaded.

        Raises:
            ModelInUse: it is leased or pinned.
        """
        seconds, name = checks.check_timeout(timeout, self.timeout), checks.check_model(model)
        return bool(await self._call(lambda rid, end: protocol.Unload(rid, name, session.remaining_ms(end)), seconds))

    async def pin(self, model: str) -> None:
        """The model is not evicted any more (it need not be loaded yet)."""
        name = checks.check_model(model)
        await self._call(lambda rid, _: protocol.Pin(rid, name, True), self.timeout)

    async def unpin(self, model: str) -> None:
        name = checks.check_model(model)
        await self._call(lambda rid, _: protocol.Pin(rid, name, False), self.timeout)

    async def cleanup_idle_models(self, idle_seconds: float = 300.0) -> list[str]:
        """Evicts what nobody has used for that long; gives the names."""
        idle = checks.check_seconds("idle_seconds", idle_seconds)
        return list(await self._call(lambda rid, _: protocol.CleanupIdle(rid, idle), self.timeout))

    async def footprint(self, model: str | None = None, *, forget: bool = False) -> list[dict[str, Any]]:
        """What the broker knows of a model's memory: see `Client.footprint`."""
        return list(await self._call(lambda rid, _: protocol.Footprint(rid, model, forget), self.timeout))

    async def reload(self) -> list[str]:
        """Has the broker read its config.toml again; gives what has changed, a line each.

        Raises:
            ConfigError: the file is not valid, and nothing was changed.
        """
        return list(await self._call(lambda rid, _: protocol.Reload(rid), self.timeout))

    # ------------------------------------------------------------ looking

    async def get_status(self) -> dict[str, Any]:
        """Budget, use, and what is loaded. `docs/protocol.md` explains each field.

        `last_used` of a loaded model is ISO 8601 in UTC, such as "2024-01-15T10:30:00Z".
        """
        return moments.readable_status(await self._query("status"))

    async def models(self) -> list[dict[str, Any]]:
        """Every registered model, and what keeps it from being served, if anything."""
        return list(await self._query("models"))

    async def processes(self) -> list[dict[str, Any]]:
        """One row per living worker: charged and used memory, process id, leases, queue. `last_used`: as above."""
        return moments.readable(await self._query("ps"))

    async def explain(self, model_or_request: str | int | None = None) -> list[str]:
        """Why: the last decisions, one line each, with the arithmetic.

        Args:
            model_or_request: a model: what concerns it, and its last requests that had to wait or were refused. A
                request, by its number (the `request` of an error, or from a line): when it came in, what it waited
                for, where it went, how it ended. None: everything.

        Raises:
            ModelNotFound: with a suggestion.
            InvalidInput: the request is neither under way nor one of the last.
        """
        return list(await self._query("explain", checks.check_about(model_or_request)))

    async def _query(self, what: str, model: str | None = None, seconds: float | None = None) -> Any:
        return await self._call(lambda rid, _: protocol.Query(rid, what, model), seconds or self.timeout)

    async def close(self) -> None:
        """Gives everything back: leases, slots, memory. The client cannot be used any more.

        Results that it gave stay as they are; their memory goes back with the last of their arrays.
        """
        self._quit.up = self._gone.up = True
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close(BrokerUnreachable("this client was closed while it waited", retryable=False))
        if self._pid == os.getpid():
            self._depot.close()
        else:
            self._depot.forget()

    def __del__(self) -> None:
        try:
            channel, self._channel = self._channel, None
            if channel is not None and not sys.is_finalizing():
                self._gone.up = True
                channel.abandon()
                self._depot.close()
        except Exception:
            pass  # not even made, or the interpreter is going

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # ------------------------------------------------------------ the exchange

    async def _call(self, make: Callable[[int, float], protocol.Message], seconds: float) -> Any:
        deadline = time.monotonic() + seconds
        channel = await self._open(deadline, seconds)
        return await self._ask(channel, make, deadline - time.monotonic())

    async def _ask(
        self,
        channel: _Channel,
        make: Callable[[int, float], protocol.Message],
        seconds: float,
        lease: AsyncLease | None = None,
    ) -> Any:
        deadline = time.monotonic() + seconds
        rid = next(self._rids)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        channel.ask(rid, _Waiting(future, None, lease), (protocol.pack(make(rid, deadline)),))
        try:
            outcome = (await self._collect(channel, {rid: ("", future)}, deadline))[""]
        except BaseException:
            channel.withdraw([rid])
            raise
        if isinstance(outcome, ZooError):
            raise outcome
        return outcome

    # ------------------------------------------------------------ links

    async def _open(self, deadline: float, seconds: float) -> _Channel:
        """The link there is, or a new one."""
        channel = self._channel
        loop = asyncio.get_running_loop()
        if channel is not None and channel.usable and channel.loop is loop:
            return channel
        if self._pid != os.getpid():
            raise BrokerUnreachable("a client does not survive a fork; make a new one in the child", retryable=False)
        if self._loop is not loop:
            self._move_to(loop)
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                await self._opening.acquire()
        except TimeoutError:
            raise session.unreachable(self.endpoint, seconds) from None
        try:
            if self._quit.up:
                raise BrokerUnreachable("this client is closed", retryable=False)
            if self._channel is None or not self._channel.usable:
                if self._channel is not None:
                    self._channel.close(BrokerUnreachable("the broker does not answer on its lifeline; try again"))
                link, sock = await self._handshake(deadline, seconds)
                self._channel = _Channel(link, sock, loop)
            return self._channel
        finally:
            self._opening.release()

    def _move_to(self, loop: asyncio.AbstractEventLoop) -> None:
        """Goes with the program from one event loop to its next."""
        if self._loop is not None and self._loop.is_running():
            raise BrokerUnreachable(
                "this client serves an event loop that is still running; make one for each loop", retryable=False
            )
        if self._loop is not None:
            if self._channel is not None:
                self._channel.close(BrokerUnreachable("the event loop of this request has ended"))
            self._channel = None
            self._opening, self._room = asyncio.Lock(), asyncio.Lock()
        self._loop = loop

    async def _handshake(self, deadline: float, seconds: float) -> tuple[Link, zmq.Socket[bytes]]:
        """`session.open_link` in a thread. Should no call wait for it any more, the thread closes what it opened."""
        gone = self._gone = session.Flag()
        opening = asyncio.get_running_loop().run_in_executor(
            None, lambda: session.open_link(self.endpoint, seconds, deadline, gone)
        )
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic()) + session.GRACE_S):
                link, sock = await asyncio.shield(opening)
        except BaseException as e:
            gone.up = True
            opening.add_done_callback(_close_opened)
            if isinstance(e, TimeoutError):  # of ours: the executor's threads are all busy, or the machine is
                raise session.unreachable(self.endpoint, seconds) from None
            raise
        if gone.up or self._quit.up:
            session.close_quietly(sock)
            link.close()
            raise BrokerUnreachable("this client is closed", retryable=False)
        return link, sock

    async def _shared(self, deadline: float, seconds: float) -> tuple[_Channel, frames.Store]:
        """The link, and where frames for it go."""
        channel = await self._open(deadline, seconds)
        store = self._depot.ready(channel.link)
        if store is None:  # in a thread: it touches every page, and waits for the broker
            making = asyncio.get_running_loop().run_in_executor(None, self._depot.get, channel.link, deadline)
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic()) + session.GRACE_S):
                    store = await asyncio.shield(making)
            except BaseException as e:
                making.add_done_callback(_take_note)
                if isinstance(e, TimeoutError):
                    raise BrokerUnreachable("this client's arena was not made in time; try again") from None
                raise
        return channel, store


def _close_opened(opening: asyncio.Future[tuple[Link, zmq.Socket[bytes]]]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        link, sock = opening.result()
        session.close_quietly(sock)
        link.close()


def _take_note(made: asyncio.Future[Any]) -> None:
    """No call waits for it any more, and what became of it the next call finds out."""
    if not made.cancelled():
        made.exception()
