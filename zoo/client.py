"""`Client`: the zoo for ordinary, threaded code.

One client may be shared by any number of threads. Each thread gets a ZeroMQ socket of its own, so that a call
costs no hand-over between threads; the arena, the lifeline and the session are shared.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import zmq

from zoo import arena, frames, protocol, session
from zoo.config import client_endpoint, endpoint_problem
from zoo.errors import BrokerUnreachable, DeadlineExceeded, InvalidInput, ZooError
from zoo.frames import Boxes, Frame


class _Channel:
    """One thread's socket on one link."""

    def __init__(self, link: session.Link, sock: zmq.Socket[bytes]) -> None:
        self.link = link
        self.sock = sock
        self.reader = session.Reader(link)


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
        self.endpoint = endpoint or client_endpoint()
        problem = endpoint_problem(self.endpoint)
        if problem:
            raise InvalidInput(f"endpoint: {problem}")
        if not isinstance(arena_mb, int) or arena_mb < 1:
            raise InvalidInput(f"arena_mb: {arena_mb!r} is not a positive number of megabytes")
        self.timeout = session.check_timeout(timeout, timeout)
        self._arena_bytes = arena_mb << 20
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
        return self._infer_all(list(dict.fromkeys(models)), frame, boxes, color, timeout, priority, options)

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
        while True:
            try:
                outgoing = store.outgoing(frame, boxes, color, options)
                break
            except frames.NoRoom:
                self._wait_for_slot(channel.link, store, deadline)
        pending: dict[int, str] = {}
        try:
            arenas = outgoing.arenas
            for model in models:
                rid = next(self._rids)
                outgoing.keep()
                pending[rid] = model
                header = protocol.Infer(rid, model, session.remaining_ms(deadline), rank, arenas)
                self._send(channel, (protocol.pack(header), outgoing.body, *outgoing.buffers))
            return self._collect(channel, pending, outgoing, deadline)
        finally:
            outgoing.drop()

    def _wait_for_slot(self, link: session.Link, store: frames.Store, deadline: float) -> None:
        link.look()
        left = deadline - time.monotonic()
        if left <= 0 or store.shared is None:
            raise session.arena_full(store.shared)
        store.shared.wait_for_slot(min(left, 0.005))

    def frame(self, shape: tuple[int, ...], dtype: str = "uint8") -> Frame:
        """An empty frame in shared memory: fill `.array`, send it as often as you like, leave the `with` block."""
        deadline = time.monotonic() + self.timeout
        channel = self._channel(deadline, self.timeout)
        store = self._frames(channel.link)
        while True:
            try:
                slot, array = store.empty(tuple(int(n) for n in shape), dtype)
                return Frame(slot, array)
            except frames.NoRoom:
                self._wait_for_slot(channel.link, store, deadline)

    # ------------------------------------------------------------ models

    def load(self, model: str, *, keep_alive: float | None = None, timeout: float | None = None) -> Lease:
        """Loads a model and keeps it: use it as a context manager, or call `.release()`.

        Args:
            keep_alive: seconds it stays after the last reference; 0 unloads it at once; None: its idle time.
        """
        seconds = session.check_timeout(timeout, self.timeout)
        keep = session.check_keep_alive(keep_alive)
        number, link = self._call(
            lambda rid, end: protocol.Load(rid, model, session.remaining_ms(end), True, keep), seconds
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

    def explain(self, model: str | None = None) -> list[str]:
        """The last decisions, one line each, with the arithmetic."""
        return list(self._query("explain", model))

    def _query(self, what: str, model: str | None = None) -> Any:
        return self._call(lambda rid, _: protocol.Query(rid, what, model), self.timeout)[0]

    def close(self) -> None:
        """Gives everything back: leases, slots, memory. The client cannot be used any more."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._quit.set()
            if self._pid == os.getpid():
                self._drop_link()
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

    def _call(self, make: Any, seconds: float) -> tuple[Any, session.Link]:
        deadline = time.monotonic() + seconds
        channel = self._channel(deadline, seconds)
        rid = next(self._rids)
        self._send(channel, (protocol.pack(make(rid, deadline)),))
        outcome = self._collect(channel, {rid: ""}, None, deadline)[""]
        if isinstance(outcome, ZooError):
            raise outcome
        return outcome, channel.link

    def _send(self, channel: _Channel, parts: tuple[Any, ...]) -> None:
        try:
            channel.sock.send_multipart(parts, zmq.NOBLOCK)
        except zmq.Again:
            raise BrokerUnreachable("the broker does not take messages; too many are under way") from None
        except zmq.ZMQError as e:
            raise BrokerUnreachable(f"the connection cannot be used: {e}") from None

    def _collect(
        self, channel: _Channel, pending: dict[int, str], outgoing: frames.Outgoing | None, deadline: float
    ) -> dict[str, Any]:
        """Waits for the answers; whatever ends the waiting, no slot is given back too early or never."""
        link, sock = channel.link, channel.sock
        outcomes: dict[str, Any] = {}
        try:
            while pending:
                try:
                    parts = sock.recv_multipart()
                except zmq.Again:
                    self._still_there(link, deadline)
                    continue
                except zmq.ZMQError as e:
                    raise BrokerUnreachable(f"this client was closed while it waited ({e})") from None
                message = protocol.unpack_from_broker(parts[0])
                rid = getattr(message, "rid", 0)
                name = pending.pop(rid, None)
                outcome = channel.reader.outcome(message, parts) if rid else None
                if name is None:
                    if isinstance(message, protocol.Error) and message.held:
                        continue
                    if rid:
                        link.settle(rid)
                    elif isinstance(message, protocol.Error):
                        raise message.exception()
                    continue
                if outgoing is not None:
                    if isinstance(message, protocol.Error) and message.held:
                        link.hold(rid, outgoing)
                    else:
                        outgoing.drop()
                if isinstance(outcome, BrokerUnreachable) and not link.look():
                    raise outcome
                outcomes[name] = outcome
        except BaseException as e:
            for rid in pending:
                if outgoing is not None:
                    link.hold(rid, outgoing)
                if not link.dead and not isinstance(e, DeadlineExceeded | BrokerUnreachable):
                    self._send(channel, (protocol.pack(protocol.Cancel(rid)),))
            if link.dead:
                for rid in pending:
                    link.settle(rid)
            if isinstance(e, ZooError) and outcomes:
                return outcomes | dict.fromkeys(pending.values(), e)
            raise
        return outcomes

    def _still_there(self, link: session.Link, deadline: float) -> None:
        if not link.look():
            raise BrokerUnreachable("the broker went away while the request was under way; try again")
        if time.monotonic() > deadline + session.GRACE_S:
            raise DeadlineExceeded("the broker itself did not answer in time")

    # ------------------------------------------------------------ links and sockets

    def _channel(self, deadline: float, seconds: float) -> _Channel:
        channel: _Channel | None = getattr(self._local, "channel", None)
        if channel is not None and channel.link is self._link and channel.link.look():
            return channel
        if self._pid != os.getpid():
            raise BrokerUnreachable("a client does not survive a fork; make a new one in the child")
        if not self._lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise session.unreachable(self.endpoint, seconds)
        try:
            if self._closed:
                raise BrokerUnreachable("this client is closed", retryable=False)
            if self._link is None or not self._link.look():
                self._drop_link()
                channel = self._open(deadline, seconds)
            else:
                channel = _Channel(self._link, self._socket(self._link.key, next(self._link.sockets)))
            self._channels.append(channel)
            self._local.channel = channel
            return channel
        finally:
            self._lock.release()

    def _socket(self, key: bytes, number: int) -> zmq.Socket[bytes]:
        sock: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        try:
            session.configure(sock, session.routing_id(key, number), self.endpoint)
            sock.setsockopt(zmq.RCVTIMEO, session.POLL_MS)
            sock.connect(self.endpoint)
        except BaseException:
            session.close_quietly(sock)
            raise
        return sock

    def _open(self, deadline: float, seconds: float) -> _Channel:
        """Says Hello and waits, within the deadline, for whoever serves the endpoint."""
        key = session.new_key()
        sock = self._socket(key, 0)
        try:
            sock.send(session.hello(key))
            while True:
                try:
                    parts = sock.recv_multipart()
                except zmq.Again:
                    if time.monotonic() > deadline:
                        raise session.unreachable(self.endpoint, seconds) from None
                    continue
                message = protocol.unpack_from_broker(parts[0])
                if isinstance(message, protocol.Error):
                    raise message.exception()
                if isinstance(message, protocol.Welcome):
                    break
            link = session.Link(key, message)
        except BaseException:
            session.close_quietly(sock)
            raise
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

    def _drop_link(self) -> None:
        link, self._link = self._link, None
        channels, self._channels = self._channels, []
        for channel in channels:
            if link is not None and not link.shares_memory and not link.dead:
                self._send(channel, (protocol.pack(protocol.Bye()),))
                channel.sock.setsockopt(zmq.LINGER, 200)
            channel.sock.close()
        if link is not None:
            link.close()

    def _keep_alive(self, link: session.Link) -> None:
        """Without a lifeline, a session lives by its messages."""

        def ping() -> None:
            sock = self._socket(link.key, next(link.sockets))
            try:
                while not link.dead and not self._quit.wait(protocol.PING_S):
                    sock.send(protocol.pack(protocol.Ping()), zmq.NOBLOCK)
            except zmq.ZMQError:
                pass
            finally:
                session.close_quietly(sock)

        self._pinger = threading.Thread(target=ping, name="zoo-ping", daemon=True)
        self._pinger.start()
