"""The HTTP port of the metrics: one thread, a bounded number of connections, each for a bounded time.

A scrape is one small request and one answer. A connection that does not send its request soon is closed, and so is the
oldest one when there are too many: what waits in silence never keeps a scrape out, nor costs the broker a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, make_wsgi_app

from broker.descriptors import METRICS
from zoo.errors import ConfigError

log = logging.getLogger("zoo.metrics")

BACKLOG = 16
HEAD_BYTES = 8 << 10  # of a request; a body is never read
HEAD_S = 5.0  # from the connection to the end of its request
ANSWER_S = 10.0  # for the other side to take its answer


class Exposition:
    """Serves a registry at `address` ("HOST:PORT").

    Raises:
        ConfigError: it cannot listen there.
    """

    def __init__(self, registry: CollectorRegistry, address: str) -> None:
        self._app: Callable[..., Any] = make_wsgi_app(registry)
        self.connections: dict[asyncio.StreamWriter, None] = {}  # oldest first
        host, _, port = address.rpartition(":")
        try:
            self._listener = _listen(host or "127.0.0.1", int(port))
        except (OSError, OverflowError) as e:
            raise ConfigError(f"metrics: cannot listen on {address}: {e}") from None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Closes all connections."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5.0)

    # ------------------------------------------------------------ in the thread

    def _run(self) -> None:
        loop = self._loop
        try:
            start = asyncio.start_server(self._connected, sock=self._listener, limit=HEAD_BYTES, backlog=BACKLOG)
            server = loop.run_until_complete(start)
            loop.run_forever()
            server.close()
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
        except Exception:
            log.exception("the metrics are not served any more")
        finally:
            self._listener.close()
            loop.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections[writer] = None
        if len(self.connections) > METRICS:
            oldest = next(iter(self.connections))
            del self.connections[oldest]
            oldest.transport.abort()
        try:
            async with asyncio.timeout(HEAD_S):
                head = await reader.readuntil(b"\r\n\r\n")
            writer.write(self._answer(head))
            async with asyncio.timeout(ANSWER_S):
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            pass
        finally:
            self.connections.pop(writer, None)
            writer.transport.abort()

    def _answer(self, head: bytes) -> bytes:
        said: list[tuple[str, list[tuple[str, str]]]] = []
        body = b""
        with contextlib.suppress(ValueError):
            body = b"".join(self._app(_environment(head), lambda *first: said.append(first)))
        status, headers = said[0] if said else ("400 Bad Request", [])
        lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers)]
        lines += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
        return "\r\n".join(lines).encode("latin-1") + body


def _listen(host: str, port: int) -> socket.socket:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((host, port), family=family, backlog=BACKLOG)


def _environment(head: bytes) -> dict[str, str]:
    """What the WSGI application looks at. Raises ValueError for what is no request."""
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    path, _, query = target.partition("?")
    found = {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query}
    for line in lines:
        name, _, value = line.partition(":")
        if name.lower() in ("accept", "accept-encoding"):
            found["HTTP_" + name.upper().replace("-", "_")] = value.strip()
    return found
