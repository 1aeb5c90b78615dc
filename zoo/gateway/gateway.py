"""What every door has at hand: the configuration, who calls, and a session of the broker for each caller."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from litestar import Request

from zoo.client.aio import AsyncClient
from zoo.config.schema import ZooConfig
from zoo.errors import BrokerUnreachable, InvalidInput, ZooError
from zoo.gateway import access, forms, incoming, tracing
from zoo.gateway.access import Callers, KnownCaller, Rights
from zoo.gateway.metrics import DoorMetrics
from zoo.gateway.page.watch import PageWatch
from zoo.gateway.sessions import Sessions

HttpRequest = Request[Any, Any, Any]
TRIALS = 4  # pictures at once: each is in memory as a whole
READY_S = 2.0  # a broker that has not answered by then is not ready


class Gateway:
    """One per process; handlers of HTTP get it as their argument `gateway`.

    Attributes:
        config: the whole configuration, of which `config.gateway` is ours.
        sessions: see `Sessions`. own: the gateway's own session, for questions that no caller pays for.
        waiting: of all forms, see `zoo/gateway/forms.py`.
        metrics: of all doors; those that do not speak HTTP count there themselves.
        watch: what the page shows. trials: for pictures that are tried there.
        tracing: None where it is off.
    """

    def __init__(self, config: ZooConfig, endpoint: str | None = None) -> None:
        """Raises ConfigError: the tokens cannot be read."""
        table = config.gateway
        self.config = config
        self.callers = Callers(table, config.resolve(table.tokens) if table.tokens else None)
        self.sessions = Sessions(table, endpoint or config.endpoint)
        self.own = self.sessions.client()
        self.waiting = forms.WaitingFiles(table.max_body_bytes)
        self.metrics = DoorMetrics(lambda: len(self.sessions))
        self.watch = PageWatch(self.own)
        self.trials = asyncio.Semaphore(TRIALS)
        self.tracing = tracing.begin()

    def admit(self, request: HttpRequest, rights: Rights, key: str | None = None) -> KnownCaller:
        """The caller, who has at least these rights.

        Args:
            key: a token from elsewhere than the headers, such as a field of a form.

        Raises:
            Unauthorized, NotAllowed.
        """
        token = key or access.sent_token(request.headers)  # type: ignore[arg-type]
        caller = self.callers.find(request.client.host if request.client else None, token)
        caller.need(rights)
        return caller

    @contextlib.asynccontextmanager
    async def session(self, request: HttpRequest, rights: Rights, key: str | None = None) -> AsyncIterator[AsyncClient]:
        """`admit`, and the caller's own client of the broker."""
        async with self.sessions.of(self.admit(request, rights, key).name) as zoo:
            yield zoo

    def body(self, request: HttpRequest) -> incoming.Incoming:
        """The body of the request. Raises BodyTooLarge: its header says so already."""
        said = request.headers.get("content-length")
        if said is not None and not (said.isascii() and said.isdecimal()):
            raise InvalidInput("Content-Length: not a number")
        table = self.config.gateway
        encoding = request.headers.get("content-encoding", "").strip().lower()
        return incoming.Incoming(
            request.receive,
            None if said is None else int(said),
            table.max_body_bytes,
            table.body_seconds,
            "" if encoding == "identity" else encoding,
        )

    async def answer(self, request: HttpRequest, call: Coroutine[Any, Any, Any]) -> Any:
        """The value of a call to the broker, withdrawn when the other side goes. The body has to be read before."""
        return await incoming.unless_gone(request.receive, call)

    async def readiness(self) -> str:
        """ "" where the broker answers; else why it does not."""
        try:
            async with asyncio.timeout(READY_S):
                await self.own.get_status()
        except TimeoutError:
            return f"the broker has not answered within {READY_S:g} s"
        except ZooError as e:
            return str(e) or BrokerUnreachable.code
        return ""

    async def close(self) -> None:
        await self.sessions.close()
        await self.own.close()
        if self.tracing is not None:
            self.tracing.close()
