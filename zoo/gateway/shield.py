"""Around every request of HTTP: from where it may come, and the headers of its answer.

* `Host` has to be an address, this machine's name, or one of `hosts`: a page whose name was made to lead here (DNS
  rebinding) sends its own name.
* `Origin`, which browsers send with what a page does, has to be this very server: a page elsewhere must not press
  buttons here. There is no CORS.
* Answers carry a content security policy that loads nothing from elsewhere and allows no script within the page's text,
  and the request's id: that of `X-Request-ID`, or one of ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import secrets
import socket
import time
from collections.abc import Iterable
from typing import Any

import msgspec
from litestar.datastructures import MutableScopeHeaders
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from zoo.gateway.metrics import DoorMetrics
from zoo.gateway.refusals import NotAllowed, Refusal, describe, log
from zoo.gateway.tracing import Tracing

ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,64}\Z")
REFUSED_BYTES, REFUSED_S = 64 << 20, 0.5  # of a body that is too large, read and dropped before that is answered
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Shield:
    """ASGI middleware: see the module's docstring.

    Args:
        hosts: names that are ours, beside those of this machine.
        metrics: where answers are counted.
        tracing: None where it is off.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str], metrics: DoorMetrics, tracing: Tracing | None) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing
        self._hosts = {"localhost", socket.gethostname().lower(), *(host.lower() for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        given = dict(scope["headers"])
        sent_id = given.get(b"x-request-id", b"")
        request_id = sent_id.decode() if ID.match(sent_id) else secrets.token_hex(8)
        scope["state"]["request_id"] = request_id
        status = 0
        span = self._tracing.request(scope["method"], scope["path"], given) if self._tracing is not None else None

        async def reply(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if status == 413:
                    await _take_some(receive)
                headers = MutableScopeHeaders.from_message(message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers["X-Request-ID"] = request_id
            await send(message)

        try:
            problem = self._problem(given)
            if problem is not None:
                await _refuse(describe(problem), reply)
            else:
                await self._app(scope, receive, reply)
        finally:
            handler: Any = scope.get("route_handler")
            door = handler.opt.get("door", "other") if handler is not None else "none"
            self._metrics.count(door, status, time.monotonic() - began)
            if span is not None:
                span.end(status, scope.get("path_template", ""), door, request_id)
            log.debug("%s %s %s: %d", request_id, scope["method"], scope["path"], status)

    def _problem(self, headers: dict[bytes, bytes]) -> NotAllowed | None:
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if b"host" in headers and not self._ours(host):  # programs of old send none; browsers always do
            return NotAllowed(f"Host: {host!r:.100} is not a name of this server; add it to hosts of [gateway]")
        origin = headers.get(b"origin")
        if origin is not None and origin.decode("latin-1").lower().partition("://")[2] != host:
            return NotAllowed("Origin: this request was made by a page of another server")
        return None

    def _ours(self, host: str) -> bool:
        name = re.sub(r":\d{1,5}\Z", "", host)
        if name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
        except ValueError:
            return False
        return True


async def _take_some(receive: Receive) -> None:
    """Of a body that is refused: one who is still sending when the connection ends may never read the answer."""
    taken = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(REFUSED_S):
            while taken < REFUSED_BYTES:
                message = await receive()
                if message["type"] != "http.request" or not message["more_body"]:
                    return
                taken += len(message["body"])


async def _refuse(refusal: Refusal, send: Send) -> None:
    body = msgspec.json.encode({"error": refusal.text, "code": refusal.code})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send(
        {"type": "http.response.start", "status": refusal.status, "headers": [*headers, (b"connection", b"close")]}
    )
    await send({"type": "http.response.body", "body": body, "more_body": False})
