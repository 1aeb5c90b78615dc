"""The gateway's process: one event loop for HTTP and for the doors that have sockets of their own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from zoo.config.schema import ZooConfig
from zoo.errors import ConfigError
from zoo.gateway import app
from zoo.gateway.doors import frigate
from zoo.gateway.gateway import Gateway
from zoo.system.notify import Notifier

Life = Callable[[Gateway], Coroutine[Any, Any, None]]
LIVES: Sequence[Life] = (
    frigate.serve,
)  # of the doors that do not speak HTTP; each returns at once where it is not configured

HEAD_S = 10.0  # for the head of a request, and of the first one of a connection
HEAD_BYTES = 1 << 20  # of a head, and of what comes with it in one read
ANSWER_S = 60.0  # for the other side to take an answer
KEEP_ALIVE_S = 75.0  # longer than the pools of usual clients keep a connection
UNREAD_S = 30.0  # how long the other side may take nothing at all: the kernel ends the connection
ALIVE_S = 1.0  # between two words to the service manager
GRACE_S = 5.0  # for requests under way when the process is to end

log = logging.getLogger("zoo.gateway")


class PatientHttp(HttpToolsProtocol):
    """A connection whose heads come in time and are of bounded size, and whose answers are taken in time."""

    _late: asyncio.TimerHandle | None = None  # while a head is awaited
    _unread: asyncio.TimerHandle | None = None  # while an answer is not taken
    _head = 0  # bytes of it, or more: of all that came with it

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._watch()

    def on_headers_complete(self) -> None:
        self._unwatch()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._late is not None:
            self._head += len(data)
            if self._head > HEAD_BYTES:
                self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(ANSWER_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._taken()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        self._taken()
        super().connection_lost(exc)

    def _taken(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _watch(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(HEAD_S, self.transport.abort)

    def _unwatch(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
            self._head = 0


class HttpServer(uvicorn.Server):
    """Leaves signals to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(config: ZooConfig, endpoint: str | None, notifier: Notifier) -> None:
    """Serves until SIGTERM or SIGINT. Raises ConfigError: what is configured cannot be served."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    gateway = Gateway(config, endpoint)
    found: BaseExceptionGroup[ConfigError] | None = None
    listener = listen(config.gateway.address) if config.gateway.address is not None else None
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(life(gateway)) for life in LIVES]
            await asyncio.sleep(
                0
            )  # a door whose endpoint cannot be had raises in its first step, before HTTP is served
            for task in tasks:
                if task.done():
                    task.result()
            tasks.append(group.create_task(gateway.sessions.tidy()))
            if listener is not None:
                tasks.append(group.create_task(gateway.watch.run()))
                server = http_server(gateway)
                group.create_task(server.serve([listener]))
                host, port = listener.getsockname()[:2]
                said = f"the gateway is serving on http://{f'[{host}]' if ':' in host else host}:{port}"
            else:
                said = "the gateway is serving no HTTP"
            log.info("%s", said)
            notifier.ready(said)
            tasks.append(group.create_task(_tell_alive(notifier)))
            await stop.wait()
            notifier.stopping()
            if listener is not None:
                server.should_exit = True
            for task in tasks:
                task.cancel()
    except* ConfigError as wrong:
        found = wrong
    finally:
        await gateway.close()
    if found is not None:
        raise _first(found)


def _first(group: BaseExceptionGroup[ConfigError]) -> ConfigError:
    """The error within."""
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


async def _tell_alive(notifier: Notifier) -> None:
    while notifier.watched:
        notifier.alive()
        await asyncio.sleep(ALIVE_S)


def http_server(gateway: Gateway) -> HttpServer:
    table = gateway.config.gateway
    return HttpServer(
        uvicorn.Config(
            app.make(gateway),
            http=PatientHttp,
            ws="none",
            lifespan="on",
            proxy_headers=False,  # an address that a header claims is no address
            server_header=False,
            access_log=False,
            log_config=None,
            limit_concurrency=table.max_connections,
            timeout_keep_alive=int(KEEP_ALIVE_S),
            timeout_graceful_shutdown=int(GRACE_S),
        )
    )


def listen(address: tuple[str, int]) -> socket.socket:
    """Raises ConfigError: the address cannot be had."""
    host, port = address
    sock = None
    try:
        family, kind, proto, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, proto)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNREAD_S * 1000))
        sock.bind(where)
        sock.listen(1024)
    except OSError as e:
        if sock is not None:
            sock.close()
        raise ConfigError(f"gateway.http: {host}:{port} cannot be listened on: {e.strerror or e}") from None
    sock.setblocking(False)
    return sock
