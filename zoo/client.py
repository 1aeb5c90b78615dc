"""`Client`: the zoo for ordinary, threaded code.

One client may be shared by any number of threads. Each thread gets a ZeroMQ socket of its own, so that a call
costs no hand-over between threads; the arena, the lifeline and the session are shared.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar

import zmq

from zoo import arena, frames, protocol, session, wire
from zoo.enrich import Plan, read_table
from zoo.enrichment import Enrichment
from zoo.errors import BrokerUnreachable, DeadlineExceeded, InvalidInput, ZooError
from zoo.event import Event
from zoo.frames import Boxes, Frame

WITHDRAW_S = 2.0  # the broker's answer to a Cancel is waited for at most this long

T = TypeVar("T")
_Pending = dict[int, tuple[str, frames.Outgoing | None]]  # by rid: the model asked, and what its answer sets free


class _Channel:
    """One thread's socket on one link. `lock` is held while a call uses it: nobody else closes it meanwhile."""

    def __init__(self, link: session.Link, sock: zmq.Socket[bytes]) -> None:
        self.link = link
        self.sock = sock
        self.reader = session.Reader(link)
        self.lock = threading.RLock()
        self.thread = threading.current_thread()


class Lease:
    """Keeps a model loaded: reference-counted, never evicted while held. Callable like `Client.infer`."""

    def __init__(self, client: Client, model: str, number: int, link: session.Link) -> None:
        self.model = model
        self._client = client
        self._number = number
        self._link: session.Link | None = link

    def __call__(self, frame: Any, **how: Any) -> Any:
        return self._client.infer(self.model, frame, **how)

    def release(self) -> None:
        """Gives the lease back; again is harmless, and so is a broker that is gone (it kept no leases)."""
        link, self._link = self._link, None
        if link is not None:
            self._client._release(self._number, link)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.release()


class Client:
    """A connection to a zoo.

    Args:
        endpoint: "ipc://…" or "tcp://…"; None takes $ZOO_ENDPOINT, else the configuration's.
        timeout: seconds for each call, unless it brings its own. The first call also waits, within it, for a
            broker that is still starting.
        arena_mb: shared memory for frames under way; made with the first frame.
    """

    def __init__(self, endpoint: str | None = None, *, timeout: float = 30.0, arena_mb: int = 64) -> None:
        self.endpoint = session.check_endpoint(endpoint)
        self.timeout = session.check_timeout(timeout, timeout)
        self._arena_bytes = session.check_arena_mb(arena_mb)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._local = threading.local()
        self._lock = threading.Lock()
        self._link: session.Link | None = None
        self._store: frames.Store | None = None
        self._channels: list[_Channel] = []
        self._rids = itertools.count(1)
        self._pid = os.getpid()
        self._closed = False
        self._pinger: threading.Thread | None = None
        self._quit = threading.Event()

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
        results = self._infer_all([model], frame, boxes, color, timeout, priority, options)
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
        return self._infer_all(session.check_models(models), frame, boxes, color, timeout, priority, options)

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
        seconds = session.check_timeout(timeout, self.timeout)
        rank = session.check_priority(priority)
        deadline = time.monotonic() + seconds
        channel = self._channel(deadline, seconds)
        store = self._frames(channel.link)
        outgoing = self._with_room(channel, store, deadline, store.outgoing, frame, boxes, color, options)
        pending: _Pending = {}
        try:
            with channel.lock:
                try:
                    for model in models:
                        self._send_infer(channel, pending, model, outgoing, rank, deadline)
                except BaseException:
                    self._withdraw(channel, pending)
                    raise
                outcomes = self._collect(channel, pending, deadline)
                return {model: outcomes[model] for model in models}
        finally:
            outgoing.drop()

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
        seconds = session.check_timeout(timeout, self.timeout)
        rank = session.check_priority(priority)
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
        store = self._frames(channel.link)
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
                    self._withdraw(channel, pending)
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
        deadline = time.monotonic() + self.timeout
        channel = self._channel(deadline, self.timeout)
        store = self._frames(channel.link)
        size = tuple(int(n) for n in shape)
        return Frame(*self._with_room(channel, store, deadline, store.empty, size, dtype))

    # ------------------------------------------------------------ models

    def load(self, model: str, *, keep_alive: float | None = None, timeout: float | None = None) -> Lease:
        """Loads a model and keeps it: use it as a context manager, or call `.release()`.

        Args:
            keep_alive: seconds it stays after the last reference; 0 unloads it at once; None: its idle time.
        """
        seconds = session.check_timeout(timeout, self.timeout)
        keep = session.check_keep_alive(keep_alive)
        number, link = self._call(
            lambda rid, end: protocol.Load(rid, model, session.remaining_ms(end), True, keep), seconds, lease=True
        )
        return Lease(self, model, number, link)

    def get_model(self, model: str, *, timeout: float | None = None) -> None:
        """Loads a model without keeping it: from then on it may be evicted like any other."""
        seconds = session.check_timeout(timeout, self.timeout)
        self._call(lambda rid, end: protocol.Load(rid, model, session.remaining_ms(end)), seconds)

    def unload(self, model: str, *, timeout: float | None = None) -> bool:
        """Ends the model's process and returns when its memory is back.

        Work it has accepted is finished first. False: it was not loaded.

        Raises:
            ModelInUse: it is leased or pinned.
        """
        seconds = session.check_timeout(timeout, self.timeout)
        value, _ = self._call(lambda rid, end: protocol.Unload(rid, model, session.remaining_ms(end)), seconds)
        return bool(value)

    def pin(self, model: str) -> None:
        """The model is not evicted any more (it need not be loaded yet)."""
        self._call(lambda rid, _: protocol.Pin(rid, model, True), self.timeout)

    def unpin(self, model: str) -> None:
        self._call(lambda rid, _: protocol.Pin(rid, model, False), self.timeout)

    def cleanup_idle_models(self, idle_seconds: float = 300.0) -> list[str]:
        """Evicts what nobody has used for that long; gives the names."""
        value, _ = self._call(lambda rid, _: protocol.CleanupIdle(rid, float(idle_seconds)), self.timeout)
        return list(value)

    def reload(self) -> list[str]:
        """Has the broker read its config.toml again; gives what has changed, a line each.

        Nobody in use is ended for it: a model that is removed, or whose settings changed, goes when it is let go.

        Raises:
            ConfigError: the file is not valid, and nothing was changed.
        """
        value, _ = self._call(lambda rid, _: protocol.Reload(rid), self.timeout)
        return list(value)

    def _release(self, number: int, link: session.Link) -> None:
        if self._closed or link.dead or link is not self._link:
            return
        try:
            self._call(lambda rid, _: protocol.Release(rid, number), self.timeout)
        except BrokerUnreachable:
            pass  # its leases went with it

    # ------------------------------------------------------------ looking

    def get_status(self) -> dict[str, Any]:
        """Budget, use, and what is loaded. `docs/protocol.md` explains each field."""
        return dict(self._query("status"))

    def models(self) -> list[dict[str, Any]]:
        """Every registered model, and what keeps it from being served, if anything."""
        return list(self._query("models"))

    def processes(self) -> list[dict[str, Any]]:
        """One row per living worker: charged and really used memory, process id, leases, queue."""
        return list(self._query("ps"))

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
        about = None if model_or_request is None else str(model_or_request)
        return list(self._query("explain", about))

    def _query(self, what: str, model: str | None = None, seconds: float | None = None) -> Any:
        return self._call(lambda rid, _: protocol.Query(rid, what, model), seconds or self.timeout)[0]

    def close(self) -> None:
        """Gives everything back: leases, slots, memory. The client cannot be used any more."""
        self._quit.set()  # first: somebody may hold the lock while he waits for a broker
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._pid == os.getpid():
                self._drop_link(wait=1.0)
                if self._store is not None and self._store.shared is not None:
                    self._store.shared.close()
                self._store = None
        if self._pinger is not None:
            self._pinger.join(timeout=2.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # ------------------------------------------------------------ the exchange

    def _call(self, make: Any, seconds: float, *, lease: bool = False) -> tuple[Any, session.Link]:
        deadline = time.monotonic() + seconds
        channel = self._channel(deadline, seconds)
        rid = next(self._rids)
        with channel.lock:
            if lease:
                channel.link.unwanted.add(rid)  # until it is here
            self._send(channel, (protocol.pack(make(rid, deadline)),))
            outcome = self._collect(channel, {rid: ("", None)}, deadline)[""]
            channel.link.unwanted.discard(rid)
        if isinstance(outcome, ZooError):
            raise outcome
        return outcome, channel.link

    def _send(self, channel: _Channel, parts: tuple[Any, ...]) -> None:
        try:
            wire.send(channel.sock, parts)
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
        """Sends one inference; its answer is one of `pending` from then on."""
        rid = next(self._rids)
        header = protocol.Infer(rid, model, session.remaining_ms(deadline), rank, outgoing.arenas)
        self._send(channel, (protocol.pack(header), outgoing.body, *outgoing.buffers))
        outgoing.keep()
        pending[rid] = model, outgoing

    def _collect(self, channel: _Channel, pending: _Pending, deadline: float) -> dict[str, Any]:
        """Waits for the answers; whatever ends the waiting, no slot is given back too early or never."""
        outcomes: dict[str, Any] = {}
        try:
            while pending:
                if (answer := self._next(channel, pending, deadline)) is not None:
                    outcomes[answer[0]] = answer[1]
        except BaseException as e:
            self._withdraw(channel, pending)
            if isinstance(e, ZooError) and outcomes:
                return outcomes | {name: e for name, _ in pending.values()}
            raise
        return outcomes

    def _next(
        self, channel: _Channel, pending: _Pending, deadline: float, until: float = math.inf
    ) -> tuple[str, Any] | None:
        """The next answer, and whose it is; it leaves `pending`. None: it is `until`, or up to `POLL_MS` later."""
        link, sock = channel.link, channel.sock
        while True:
            try:
                parts = wire.receive(sock)
            except zmq.Again:
                self._still_there(link, deadline)
                if time.monotonic() >= until:
                    return None
                continue
            except zmq.ZMQError as e:
                raise BrokerUnreachable(f"this client was closed while it waited ({e})") from None
            message = protocol.unpack_from_broker(parts[0])
            rid = getattr(message, "rid", 0)
            asked = pending.get(rid)
            if asked is None:
                self._late(channel, message, parts)
                continue
            outcome = channel.reader.outcome(message, parts)
            if isinstance(outcome, BrokerUnreachable) and not link.look():
                raise outcome
            del pending[rid]
            name, outgoing = asked
            if outgoing is not None:
                link.answered(message, outgoing)
            return name, outcome

    def _withdraw(self, channel: _Channel, pending: _Pending) -> None:
        """Nobody waits for these any more. Slots and leases do not hang on this thread making another call: the
        broker answers a Cancel at once, and that is waited for."""
        link = channel.link
        for rid, (_, outgoing) in pending.items():
            if outgoing is not None:
                link.hold(rid, outgoing)
        if link.dead:
            for rid in pending:
                link.settle(rid)
            return
        awaited = set(pending)
        end = time.monotonic() + WITHDRAW_S
        try:
            for rid in pending:
                self._send(channel, (protocol.pack(protocol.Cancel(rid)),))
            while awaited and time.monotonic() < end and link.look():
                try:
                    parts = wire.receive(channel.sock)
                except zmq.Again:
                    continue
                message = protocol.unpack_from_broker(parts[0])
                awaited.discard(getattr(message, "rid", 0))
                self._late(channel, message, parts)
        except (ZooError, zmq.ZMQError):
            pass  # what ended the call is what the caller should see

    def _late(self, channel: _Channel, message: protocol.FromBroker, parts: list[bytes]) -> None:
        reply = channel.reader.late(message, parts)
        if reply is not None:
            self._send(channel, (protocol.pack(reply),))

    def _take_late(self, channel: _Channel) -> None:
        """Answers that lie in the socket of a thread that waits for none."""
        while True:
            try:
                parts = wire.receive(channel.sock, wire.NOBLOCK)
                self._late(channel, protocol.unpack_from_broker(parts[0]), parts)
            except (zmq.ZMQError, ZooError):
                return

    def _still_there(self, link: session.Link, deadline: float) -> None:
        if self._closed:
            raise BrokerUnreachable("this client was closed while it waited", retryable=False)
        if not link.look():
            raise BrokerUnreachable("the broker went away while the request was under way; try again")
        if time.monotonic() > deadline + session.GRACE_S:
            raise DeadlineExceeded("the broker itself did not answer in time")

    # ------------------------------------------------------------ links and sockets

    def _channel(self, deadline: float, seconds: float) -> _Channel:
        channel: _Channel | None = getattr(self._local, "channel", None)
        if channel is not None and channel.link is self._link and channel.link.seems_well():
            return channel
        if self._pid != os.getpid():
            raise BrokerUnreachable("a client does not survive a fork; make a new one in the child")
        if not self._lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise session.unreachable(self.endpoint, seconds)
        try:
            if self._closed:
                raise BrokerUnreachable("this client is closed", retryable=False)
            if channel is not None:
                self._shut(channel)
            for other in [c for c in self._channels if not c.thread.is_alive()]:
                self._take_late(other)
                self._shut(other)
            if self._link is None or not self._link.look():
                self._drop_link()
                channel = self._open(deadline, seconds)
            else:
                key, number = self._link.key, next(self._link.sockets)
                channel = _Channel(self._link, session.open_socket(self._context, key, number, self._link.endpoint))
            self._channels.append(channel)
            self._local.channel = channel
            return channel
        finally:
            self._lock.release()

    def _shut(self, channel: _Channel, wait: float = 0.0) -> None:
        """Closes a channel, unless another thread's call does not leave it in time."""
        if channel.lock.acquire(timeout=wait):
            try:
                session.close_quietly(channel.sock)
                if channel in self._channels:
                    self._channels.remove(channel)
            finally:
                channel.lock.release()

    def _open(self, deadline: float, seconds: float) -> _Channel:
        link, sock = session.open_link(self._context, self.endpoint, seconds, deadline, self._quit)
        self._link = link
        if self._store is not None and self._store.shared is not None:
            self._store.shared.id = 0  # the new broker does not know it yet
        if not link.shares_memory:
            self._keep_alive(link)
        return _Channel(link, sock)

    def _frames(self, link: session.Link) -> frames.Store:
        store = self._store
        if store is not None and (store.shared is None or store.shared.id):
            return store
        with self._lock:
            if self._store is None:
                own = arena.OwnedArena(self._arena_bytes) if link.shares_memory else None
                self._store = frames.Store(own)
            shared = self._store.shared
            if shared is not None and not shared.id:
                try:
                    link.register(shared)
                except ZooError:
                    if not link.dead:
                        shared.close()
                        self._store = None
                    raise
            return self._store

    def _drop_link(self, wait: float = 0.0) -> None:
        """Ends the link. Calls under way on it notice by themselves; their threads close their channels later."""
        link, self._link = self._link, None
        if link is not None:
            if not link.shares_memory and not link.dead:
                self._say_bye(link)
            link.close()
        end = time.monotonic() + wait
        for channel in list(self._channels):
            self._shut(channel, max(0.0, end - time.monotonic()))

    def _say_bye(self, link: session.Link) -> None:
        try:
            sock = session.open_socket(self._context, link.key, next(link.sockets), link.endpoint)
            sock.setsockopt(zmq.LINGER, session.BYE_MS)
            sock.send(protocol.pack(protocol.Bye()), zmq.NOBLOCK)
            sock.close()
        except (ZooError, zmq.ZMQError):
            pass  # then its silence says it

    def _keep_alive(self, link: session.Link) -> None:
        """Without a lifeline, a session lives by its messages."""

        def ping() -> None:
            sock = session.open_socket(self._context, link.key, next(link.sockets), link.endpoint)
            try:
                while not link.dead and not self._quit.wait(protocol.PING_S):
                    sock.send(protocol.pack(protocol.Ping()), zmq.NOBLOCK)
            except zmq.ZMQError:
                pass
            finally:
                session.close_quietly(sock)

        self._pinger = threading.Thread(target=ping, name="zoo-ping", daemon=True)
        self._pinger.start()
