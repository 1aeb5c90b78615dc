"""`Client`: the zoo for ordinary, threaded code.

One client may be shared by any number of threads. Each thread gets a ZeroMQ socket of its own, so that a call
costs no hand-over between threads; the arena, the lifeline and the session are shared.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar

import zmq

from zoo.client import checks, depot, frames, session
from zoo.client.enrich import Plan, read_table
from zoo.client.event import Event
from zoo.client.frames import Boxes, Frame
from zoo.client.link import Link
from zoo.enrichment import Enrichment
from zoo.errors import BrokerUnreachable, DeadlineExceeded, InvalidInput, ProtocolMismatch, ZooError
from zoo.system.locks import is_mine
from zoo.wire import moments, multipart, protocol

WITHDRAW_S = 2.0  # the broker's answer to a Cancel is waited for at most this long, within the caller's deadline
CLOSE_S = 0.5  # how long `close` waits for the calls of other threads to notice

T = TypeVar("T")


class _Channel:
    """One thread's socket on one link. `lock` is held while a call uses it: nobody else closes it meanwhile."""

    def __init__(self, link: Link, sock: zmq.Socket[bytes]) -> None:
        self.link = link
        self.lock = threading.RLock()
        self.thread = threading.current_thread()
        self.use(sock)

    def use(self, sock: zmq.Socket[bytes]) -> None:
        self.sock = sock
        self.outbox = multipart.Outbox(sock)
        self.inbox = multipart.Inbox(sock)
        self.reader = session.Reader(self.link, self.inbox)

    @property
    def torn(self) -> bool:
        """A signal handler raised in the middle of sending or receiving; see `multipart.Inbox`."""
        return self.inbox.torn or self.outbox.torn


class Lease:
    """Keeps a model loaded: reference-counted, never evicted while held. Callable like `Client.infer`.

    A broker that is started again knows no leases. The next call of the lease takes it again, within the call's own
    time; until then `lost` is true, and the model may be evicted. A lease that is garbage is given back.

    Attributes:
        model: its name.
    """

    def __init__(self, client: Client, model: str, keep_alive: float | None) -> None:
        self.model = model
        self._client = client
        self._keep_alive = keep_alive
        self._grant: tuple[Link, int] | None = None  # the session it was granted in, and its number there
        self._released = False

    @property
    def lost(self) -> bool:
        """The broker that granted it is gone, and it was not taken again yet."""
        grant = self._grant
        return not self._released and grant is not None and not grant[0].look()

    def granted(self, link: Link, number: int) -> None:
        self._grant = link, number

    def __call__(self, frame: Any, **how: Any) -> Any:
        return self._client._infer_leased(self, frame, how)

    def release(self) -> None:
        """Gives the lease back; again is harmless, and so is a broker that is gone (it kept no leases)."""
        grant, self._released = self._grant, True
        if grant is not None:
            self._client._release(*grant)
            self._grant = None  # only now: if that was interrupted, it goes back with the object

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.release()

    def __del__(self) -> None:
        try:
            if self._grant is not None:
                session.give_back_lease(*self._grant)
        except Exception:
            pass  # the interpreter is going, and the lease with it


_Pending = dict[int, tuple[str, frames.Outgoing | Lease | None]]  # by rid: the model asked, what its answer is for


class Client:
    """A connection to a zoo.

    Args:
        endpoint: "ipc://…" or "tcp://…"; None takes $ZOO_ENDPOINT, else the configuration's.
        timeout: seconds for each call, unless it brings its own. The first call also waits, within it, for a
            broker that is still starting.
        arena_mb: shared memory for frames under way; made with the first frame.
    """

    def __init__(self, endpoint: str | None = None, *, timeout: float = 30.0, arena_mb: int = 64) -> None:
        self._closed = True  # until all is there
        self.endpoint = checks.check_endpoint(endpoint)
        self.timeout = checks.check_timeout(timeout, timeout)
        self._depot = depot.Depot(checks.check_arena_mb(arena_mb))
        self._local = threading.local()
        self._lock = threading.RLock()
        self._link: Link | None = None
        self._channels: list[_Channel] = []
        self._rids = itertools.count(1)
        self._pid = os.getpid()
        self._pinger: threading.Thread | None = None
        self._quit = session.Flag()
        self._closed = False

    @property
    def _store(self) -> frames.Store | None:
        return self._depot.store

    # ------------------------------------------------------------ inference

    def infer(
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
        """One answer of one model; loads it if need be.

        Args:
            frame: HxWx3 uint8 array, `Frame`, JPEG or PNG bytes, or a list of them (video).
            boxes: (n, 4) xyxy in pixels; the worker crops, the answer is a list with one result per box, in
                coordinates of the frame. Boxes are grown to whole pixels and clipped to the frame.
            color: order of the array's channels, "rgb" or "bgr" (OpenCV).
            timeout: seconds until `DeadlineExceeded`.
            priority: within the model's queue, CRITICAL (first) to LOW.
            options: for the adapter, JSON-like.

        Raises:
            ZooError: see `zoo.errors`; `retryable` says whether the same call may succeed later.
        """
        results = self._infer_all([checks.check_model(model)], frame, boxes, color, timeout, priority, options)
        outcome = results[model]
        if isinstance(outcome, ZooError):
            raise outcome
        return outcome

    def infer_many(
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
        return self._infer_all(checks.check_models(models), frame, boxes, color, timeout, priority, options)

    def _infer_all(
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
        channel = self._channel(deadline, seconds)
        store = self._frames(channel.link, deadline)
        outgoing = self._with_room(channel, store, deadline, store.outgoing, frame, boxes, color, options)
        pending: _Pending = {}
        try:
            with channel.lock:
                try:
                    for model in models:
                        self._send_infer(channel, pending, model, outgoing, rank, deadline)
                except BaseException:
                    self._withdraw(channel, pending, deadline)
                    raise
                outcomes = self._collect(channel, pending, deadline)
                return {model: outcomes[model] for model in models}
        finally:
            outgoing.drop()

    def _infer_leased(self, lease: Lease, frame: Any, how: dict[str, Any]) -> Any:
        """Takes the lease again if the broker that granted it is gone."""
        grant = lease._grant
        if grant is None or lease._released or self._closed:
            return self.infer(lease.model, frame, **how)
        seconds = checks.check_timeout(how.get("timeout"), self.timeout)
        deadline = time.monotonic() + seconds
        if self._channel(deadline, seconds).link is not grant[0]:
            again = self.load(
                lease.model, keep_alive=lease._keep_alive, timeout=max(0.001, deadline - time.monotonic())
            )
            if lease._grant is grant:
                lease._grant, again._grant = again._grant, None
            else:
                again.release()  # another thread has taken it again, or it was released meanwhile
            how = {**how, "timeout": max(0.001, deadline - time.monotonic())}
        return self.infer(lease.model, frame, **how)

    def enrich(
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
        """What the right models say about each detection, by the broker's table (`docs/enrich.md`).

        The frame is written once; each model is asked once, with all of its boxes. What fails, or is not there in
        time, is missing from the answer with its reason, and takes nothing else along.

        Args:
            frame: as for `infer`; of a list, a video, the detections belong to the last frame.
            detections: `Detections`, `Keypoints` of a pose detector, or a list of (label, box), (label, box, score)
                or dicts with these keys.
            suspicious: whether this event is, which some models wait for.
            min_score: detections below it are left alone; None takes the table's.
            timeout: seconds for the whole event; None takes the table's.
            color, priority: as for `infer`.

        Raises:
            InvalidInput: an argument is wrong. A box that makes no sense is not: it is missing its answers.
            BrokerUnreachable: no broker has answered at all. (AccessDenied, ProtocolMismatch: it refused us.)
        """
        seconds = checks.check_timeout(timeout, self.timeout)
        rank = checks.check_priority(priority)
        event = Event(frame, detections, suspicious, min_score)
        started = time.monotonic()
        plan = Plan(read_table(self._table(seconds)), event, started, timeout)
        try:
            self._carry_out(plan, color, rank)
        except InvalidInput:
            raise
        except ZooError as e:
            plan.fail(e, time.monotonic())
        return plan.result(time.monotonic())

    def _table(self, seconds: float) -> Any:
        try:
            return self._query("enrich", seconds=seconds)
        except DeadlineExceeded as e:
            raise BrokerUnreachable(str(e)) from None

    def _carry_out(self, plan: Plan, color: str, rank: int) -> None:
        """Asks and answers until the plan is done. Whatever ends it before, what is under way is withdrawn."""
        if plan.done:
            return
        channel = self._channel(plan.deadline, plan.deadline - time.monotonic())
        store = self._frames(channel.link, plan.deadline)
        placed = self._with_room(channel, store, plan.deadline, store.place, plan.frames, color)
        pending: _Pending = {}
        try:
            with channel.lock:
                try:
                    while not plan.done:
                        for ask in plan.take(time.monotonic()):
                            outgoing = store.compose(placed if ask.video else placed[-1:], ask.boxes, ask.options)
                            self._send_infer(channel, pending, ask.model, outgoing, rank, plan.deadline)
                        if not plan.done and (answer := self._next(channel, pending, plan.deadline, plan.wake)):
                            plan.answer(*answer, time.monotonic())
                except BaseException:
                    self._withdraw(channel, pending, plan.deadline)
                    raise
        finally:
            for one in placed:
                one.slot.drop()

    def _with_room(
        self, channel: _Channel, store: frames.Store, deadline: float, take: Callable[..., T], *what: Any
    ) -> T:
        """`take(*what)`; while the arena is full, waits for slots."""
        while True:
            try:
                return take(*what)
            except frames.NoRoom:
                self._wait_for_slot(channel, store, deadline)

    def _wait_for_slot(self, channel: _Channel, store: frames.Store, deadline: float) -> None:
        if not channel.link.look():
            raise BrokerUnreachable("the broker went away while a slot was waited for; try again")
        with channel.lock:
            self._take_late(channel)
        left = deadline - time.monotonic()
        if left <= 0 or store.shared is None:
            raise session.arena_full(store.shared)
        store.shared.wait_for_slot(min(left, 0.005))

    def frame(self, shape: tuple[int, ...], dtype: str = "uint8") -> Frame:
        """An empty frame in shared memory: fill `.array`, send it as often as you like, leave the `with` block."""
        size = checks.check_shape(shape)
        deadline = time.monotonic() + self.timeout
        channel = self._channel(deadline, self.timeout)
        store = self._frames(channel.link, deadline)
        return Frame(self._with_room(channel, store, deadline, store.empty, size, dtype))

    # ------------------------------------------------------------ models

    def load(self, model: str, *, keep_alive: float | None = None, timeout: float | None = None) -> Lease:
        """Loads a model and keeps it: use it as a context manager, or call `.release()`.

        Args:
            keep_alive: seconds it stays after the last reference; 0 unloads it at once; None: its idle time.
        """
        seconds = checks.check_timeout(timeout, self.timeout)
        name, keep = checks.check_model(model), checks.check_keep_alive(keep_alive)
        lease = Lease(self, name, keep)
        self._call(lambda rid, end: protocol.Load(rid, name, session.remaining_ms(end), True, keep), seconds, lease)
        return lease

    def get_model(self, model: str, *, timeout: float | None = None) -> None:
        """Loads a model without keeping it: from then on it may be evicted like any other."""
        seconds, name = checks.check_timeout(timeout, self.timeout), checks.check_model(model)
        self._call(lambda rid, end: protocol.Load(rid, name, session.remaining_ms(end)), seconds)

    def unload(self, model: str, *, timeout: float | None = None) -> bool:
        """Ends the model's process and returns when its memory is back.

        Work it has accepted is finished first. False: it was not loaded.

        Raises:
            ModelInUse: it is leased or pinned.
        """
        seconds, name = checks.check_timeout(timeout, self.timeout), checks.check_model(model)
        return bool(self._call(lambda rid, end: protocol.Unload(rid, name, session.remaining_ms(end)), seconds))

    def pin(self, model: str) -> None:
        """The model is not evicted any more (it need not be loaded yet)."""
        name = checks.check_model(model)
        self._call(lambda rid, _: protocol.Pin(rid, name, True), self.timeout)

    def unpin(self, model: str) -> None:
        name = checks.check_model(model)
        self._call(lambda rid, _: protocol.Pin(rid, name, False), self.timeout)

    def cleanup_idle_models(self, idle_seconds: float = 300.0) -> list[str]:
        """Evicts what nobody has used for that long; gives the names."""
        idle = checks.check_seconds("idle_seconds", idle_seconds)
        return list(self._call(lambda rid, _: protocol.CleanupIdle(rid, idle), self.timeout))

    def footprint(self, model: str | None = None, *, forget: bool = False) -> list[dict[str, Any]]:
        """What the broker knows of a model's memory (None: of each), a row per device, in megabytes.

        With `forget`, what was measured no longer counts: the next process is charged what config.toml declares, until
        it is measured.

        Raises:
            ModelNotFound, AccessDenied.
            ProtocolMismatch: the broker is of a release that does not know this.
        """
        return list(self._call(lambda rid, _: protocol.Footprint(rid, model, forget), self.timeout))

    def reload(self) -> list[str]:
        """Has the broker read its config.toml again; gives what has changed, a line each.

        Nobody in use is ended for it: a model that is removed, or whose settings changed, goes when it is let go.

        Raises:
            ConfigError: the file is not valid, and nothing was changed.
        """
        return list(self._call(lambda rid, _: protocol.Reload(rid), self.timeout))

    def _release(self, link: Link, number: int) -> None:
        if self._closed or link.dead or link is not self._link:
            return
        try:
            self._call(lambda rid, _: protocol.Release(rid, number), self.timeout)
        except BrokerUnreachable:
            pass  # its leases went with it

    # ------------------------------------------------------------ looking

    def get_status(self) -> dict[str, Any]:
        """Budget, use, and what is loaded. `docs/protocol.md` explains each field.

        `last_used` of a loaded model is ISO 8601 in UTC, such as "2024-01-15T10:30:00Z".
        """
        return moments.readable_status(self._query("status"))

    def models(self) -> list[dict[str, Any]]:
        """Every registered model, and what keeps it from being served, if anything."""
        return list(self._query("models"))

    def processes(self) -> list[dict[str, Any]]:
        """One row per living worker: charged and used memory, process id, leases, queue. `last_used`: as above."""
        return moments.readable(self._query("ps"))

    def explain(self, model_or_request: str | int | None = None) -> list[str]:
        """Why: the last decisions, one line each, with the arithmetic.

        Args:
            model_or_request: a model: what concerns it, and its last requests that had to wait or were refused. A
                request, by its number (the `request` of an error, or from a line): when it came in, what it waited
                for, where it went, how it ended. None: everything.

        Raises:
            ModelNotFound: with a suggestion.
            InvalidInput: the request is neither under way nor one of the last.
        """
        return list(self._query("explain", checks.check_about(model_or_request)))

    def _query(self, what: str, model: str | None = None, seconds: float | None = None) -> Any:
        return self._call(lambda rid, _: protocol.Query(rid, what, model), seconds or self.timeout)

    def close(self) -> None:
        """Gives everything back: leases, slots, memory. The client cannot be used any more.

        Results that it gave stay as they are; their memory goes back with the last of their arrays.
        """
        self._quit.up = self._closed = True  # first: a thread may hold the lock while it waits for a broker
        if self._pid != os.getpid():
            self._forget()
            return
        end = time.monotonic() + CLOSE_S
        waits = not is_mine(self._lock)  # else this is a signal handler, and what it interrupted sees `_closed`
        try:
            if waits:
                self._lock.acquire(timeout=CLOSE_S)
            self._drop_link(end)
            self._depot.close()
        finally:
            try:
                if waits:
                    self._lock.release()
            except RuntimeError:
                pass  # it was not got in time: that thread closes what it has opened
        pinger = self._pinger
        if pinger is not None and pinger is not threading.current_thread():
            pinger.join(timeout=CLOSE_S)

    def __del__(self) -> None:
        try:
            if not self._closed and not sys.is_finalizing() and self._pid == os.getpid():
                self._quit.up = self._closed = True
                self._drop_link(0.0)
                self._depot.close()
        except Exception:
            pass  # not even made, or the interpreter is going

    def _forget(self) -> None:
        """In the child of a fork: everything here is the parent's."""
        self._link = None
        self._channels = []
        self._depot.forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # ------------------------------------------------------------ the exchange

    def _call(self, make: Callable[[int, float], protocol.Message], seconds: float, lease: Lease | None = None) -> Any:
        deadline = time.monotonic() + seconds
        channel = self._channel(deadline, seconds)
        rid = next(self._rids)
        pending: _Pending = {rid: ("", lease)}
        with channel.lock:
            if lease is not None:
                channel.link.unwanted.add(rid)  # until it is here
            try:
                self._send(channel, (protocol.pack(make(rid, deadline)),))
            except BaseException:
                self._withdraw(channel, pending, deadline)
                raise
            outcome = self._collect(channel, pending, deadline)[""]
            channel.link.unwanted.discard(rid)
        if isinstance(outcome, ZooError):
            raise outcome
        return outcome

    def _send(self, channel: _Channel, parts: tuple[Any, ...]) -> None:
        try:
            channel.outbox.send(parts)
        except zmq.Again:
            raise BrokerUnreachable("the broker does not take messages; too many are under way") from None
        except zmq.ZMQError as e:
            raise BrokerUnreachable(f"the connection cannot be used: {e}") from None

    def _send_infer(
        self,
        channel: _Channel,
        pending: _Pending,
        model: str,
        outgoing: frames.Outgoing,
        rank: int,
        deadline: float,
    ) -> None:
        """Sends one inference; its answer is one of `pending` from then on, and before: see `_withdraw`."""
        outgoing.check(channel.link.inline_limit)
        rid = next(self._rids)
        header = protocol.pack(protocol.Infer(rid, model, session.remaining_ms(deadline), rank, outgoing.arenas))
        outgoing.keep()
        pending[rid] = model, outgoing
        self._send(channel, (header, outgoing.body, *outgoing.buffers))

    def _collect(self, channel: _Channel, pending: _Pending, deadline: float) -> dict[str, Any]:
        """Waits for the answers; whatever ends the waiting, no slot is given back too early or never."""
        outcomes: dict[str, Any] = {}
        try:
            while pending:
                if (answer := self._next(channel, pending, deadline)) is not None:
                    outcomes[answer[0]] = answer[1]
        except BaseException as e:
            left = [name for name, _ in pending.values()]
            self._withdraw(channel, pending, deadline)
            if isinstance(e, ZooError) and outcomes:
                return outcomes | dict.fromkeys(left, e)
            raise
        return outcomes

    def _next(
        self, channel: _Channel, pending: _Pending, deadline: float, until: float = math.inf
    ) -> tuple[str, Any] | None:
        """The next answer, and whose it is; it leaves `pending`. None: it is `until`, or up to `POLL_MS` later."""
        link, inbox = channel.link, channel.inbox
        while True:
            try:
                parts = inbox.peek()
            except zmq.Again:
                self._still_there(link, deadline)
                if time.monotonic() >= until:
                    return None
                continue
            except zmq.ZMQError as e:
                raise BrokerUnreachable(f"this client was closed while it waited ({e})", retryable=False) from None
            message = self._read(channel, parts)
            asked = pending.get(getattr(message, "rid", 0))
            if asked is None:
                self._late(channel, message, parts)
                continue
            outcome = channel.reader.outcome(message, parts)
            if isinstance(outcome, BrokerUnreachable) and not link.look():
                raise outcome
            name, holder = asked
            if isinstance(holder, Lease) and isinstance(message, protocol.Value):
                holder.granted(link, message.value)
            del pending[getattr(message, "rid", 0)]
            if isinstance(holder, frames.Outgoing):
                link.answered(message, holder)
            inbox.done()
            return name, outcome

    def _read(self, channel: _Channel, parts: list[bytes]) -> protocol.FromBroker:
        try:
            return protocol.unpack_from_broker(parts[0])
        except ProtocolMismatch:
            channel.inbox.done()
            raise

    def _withdraw(self, channel: _Channel, pending: _Pending, deadline: float) -> None:
        """No call waits for these any more. Slots and leases do not hang on this thread making another call: the
        broker answers a Cancel at once, and that is waited for. Then it answers a question; a request that has no
        answer by then was never sent, or its answer was lost with a torn socket."""
        link, rids = channel.link, list(pending)
        while pending:
            rid, (_, holder) = pending.popitem()
            if isinstance(holder, frames.Outgoing):
                link.hold(rid, holder)
        if link.dead:
            for rid in rids:
                link.settle(rid)
            return
        fence = next(self._rids)
        unanswered = link.fences[fence] = set(rids)
        end = min(time.monotonic() + WITHDRAW_S, deadline + session.LAST_S)
        try:
            if channel.torn:
                self._mend(channel)
            for rid in tuple(unanswered):
                self._send(channel, (protocol.pack(protocol.Cancel(rid)),))
            self._send(channel, (protocol.pack(protocol.Release(fence, 0)),))
            while fence in link.fences and time.monotonic() < end and link.look():
                try:
                    parts = channel.inbox.peek()
                except zmq.Again:
                    continue
                self._late(channel, self._read(channel, parts), parts)
            if fence not in link.fences:
                for rid in unanswered:
                    self._send(channel, (protocol.pack(protocol.Cancel(rid, lost=True)),))
        except (ZooError, zmq.ZMQError):
            pass  # what ended the call is what the caller should see

    def _mend(self, channel: _Channel) -> None:
        """Another socket in place of one that is torn. What lies unread in that one is lost."""
        reply = None
        if (parts := channel.inbox.at_hand()) is not None:
            with contextlib.suppress(ZooError):
                reply = channel.reader.late(self._read(channel, parts), parts)
        session.close_quietly(channel.sock)
        number = next(channel.link.sockets)
        channel.use(session.open_socket(channel.link.key, number, channel.link.endpoint))
        if reply is not None:
            self._send(channel, (protocol.pack(reply),))

    def _late(self, channel: _Channel, message: protocol.FromBroker, parts: list[bytes]) -> None:
        """The message at hand is for no call. Raises ZooError when it says that nothing we say is understood."""
        try:
            reply = channel.reader.late(message, parts)
            if reply is not None:
                self._send(channel, (protocol.pack(reply),))
        except ZooError:
            channel.inbox.done()
            raise
        channel.inbox.done()

    def _take_late(self, channel: _Channel) -> None:
        """Answers that lie in the socket of a thread that waits for none."""
        while True:
            try:
                parts = channel.inbox.peek(multipart.NOBLOCK)
                self._late(channel, self._read(channel, parts), parts)
            except (zmq.ZMQError, ZooError):
                return

    def _still_there(self, link: Link, deadline: float) -> None:
        if self._closed:
            raise BrokerUnreachable("this client was closed while it waited", retryable=False)
        if not link.look():
            raise BrokerUnreachable("the broker went away while the request was under way; try again")
        if time.monotonic() > deadline + session.GRACE_S:
            raise DeadlineExceeded("the broker itself did not answer in time")

    # ------------------------------------------------------------ links and sockets

    def _channel(self, deadline: float, seconds: float) -> _Channel:
        """This thread's; in a signal handler another one than that of the call which it interrupted."""
        link = self._link
        mine: list[_Channel] = getattr(self._local, "channels", [])
        for channel in mine:
            if channel.link is link and not is_mine(channel.lock) and link.seems_well():
                if channel.torn:
                    self._mend(channel)
                return channel
        if self._pid != os.getpid():
            raise BrokerUnreachable("a client does not survive a fork; make a new one in the child", retryable=False)
        if is_mine(self._lock):
            raise BrokerUnreachable("called by a signal handler while its thread connects; try again outside of it")
        try:
            if not self._lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
                raise session.unreachable(self.endpoint, seconds)
            return self._new_channel(mine, deadline, seconds)
        finally:
            try:
                self._lock.release()
            except RuntimeError:
                pass  # it was not got

    def _new_channel(self, mine: list[_Channel], deadline: float, seconds: float) -> _Channel:
        if self._closed:
            raise BrokerUnreachable("this client is closed", retryable=False)
        for channel in [c for c in mine if c.link is not self._link and not is_mine(c.lock)]:
            self._shut(channel)
        for other in [c for c in self._channels if not c.thread.is_alive()]:
            self._take_late(other)
            self._shut(other)
        if self._link is None or not self._link.look():
            self._drop_link(0.0)
            channel = self._open(deadline, seconds)
        else:
            key, number = self._link.key, next(self._link.sockets)
            channel = _Channel(self._link, session.open_socket(key, number, self._link.endpoint))
        self._channels.append(channel)
        if self._closed:
            self._drop_link(0.0)
            raise BrokerUnreachable("this client is closed", retryable=False)
        self._local.channels = [c for c in mine if c in self._channels] + [channel]
        return channel

    def _shut(self, channel: _Channel, until: float = 0.0) -> None:
        """Closes a channel, unless another thread's call does not leave it in time."""
        try:
            if channel.lock.acquire(timeout=max(0.0, until - time.monotonic())):
                session.close_quietly(channel.sock)
                if channel in self._channels:
                    self._channels.remove(channel)
        finally:
            try:
                channel.lock.release()
            except RuntimeError:
                pass  # it was not got

    def _open(self, deadline: float, seconds: float) -> _Channel:
        link, sock = session.open_link(self.endpoint, seconds, deadline, self._quit)
        self._link = link
        if not link.shares_memory:
            self._keep_alive(link)
        return _Channel(link, sock)

    def _frames(self, link: Link, deadline: float = math.inf) -> frames.Store:
        return self._depot.ready(link) or self._depot.get(link, min(deadline, time.monotonic() + checks.FOREVER_S))

    def _drop_link(self, until: float) -> None:
        """Ends the link. Calls under way on it notice by themselves; their threads close their channels later."""
        link, self._link = self._link, None
        if link is not None:
            if not link.shares_memory and not link.dead:
                session.say(link, protocol.Bye())
            link.close()
        for channel in list(self._channels):
            self._shut(channel, until)

    def _keep_alive(self, link: Link) -> None:
        """Without a lifeline, a session lives by its messages."""
        self._pinger = threading.Thread(target=_ping, args=(link,), name="zoo-ping", daemon=True)
        try:
            self._pinger.start()
        except RuntimeError as e:
            self._pinger = None
            raise BrokerUnreachable(f"this process cannot start a thread ({e})") from None


def _ping(link: Link) -> None:
    """Until the link ends. It must not hold the client: a client that is garbage ends the link."""
    sock = None
    try:
        sock = session.open_socket(link.key, next(link.sockets), link.endpoint)
        due = 0.0
        while not link.dead:
            if time.monotonic() >= due:
                sock.send(protocol.pack(protocol.Ping()), zmq.NOBLOCK)
                due = time.monotonic() + protocol.PING_S
            time.sleep(min(0.1, protocol.PING_S))
    except (zmq.ZMQError, BrokerUnreachable):
        pass  # then its requests keep the session alive, or the broker ends it and the next call opens another
    finally:
        session.close_quietly(sock)
