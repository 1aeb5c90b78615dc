"""A session of the broker for each caller, so that limits and turns are the caller's own.

Bounded: where all places are taken, the session that was unused the longest makes room; where all are in use, the
caller is told to come back. A session that is unused for `UNUSED_S` is closed, and its shared memory with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from zoo.client.aio import AsyncClient
from zoo.config.gateway import GatewayConfig
from zoo.errors import QueueFull

UNUSED_S = 60.0
LOOK_S = 5.0


class CallerSession:
    """`users`: requests that use it now. `left_at`: when the last of them ended."""

    def __init__(self, client: AsyncClient) -> None:
        self.client = client
        self.users = 0
        self.left_at = 0.0


class Sessions:
    """See the module's docstring."""

    def __init__(self, config: GatewayConfig, endpoint: str | None) -> None:
        self._config = config
        self._endpoint = endpoint
        self._by_name: dict[str, CallerSession] = {}

    def __len__(self) -> int:
        return len(self._by_name)

    @contextlib.asynccontextmanager
    async def of(self, name: str) -> AsyncIterator[AsyncClient]:
        """The client of a caller. Raises QueueFull: as many callers as there may be are at it."""
        session = self._by_name.get(name) or await self._open(name)
        session.users += 1
        try:
            yield session.client
        finally:
            session.users -= 1
            session.left_at = time.monotonic()

    async def _open(self, name: str) -> CallerSession:
        if len(self._by_name) >= self._config.max_callers:
            idle = [(session.left_at, name) for name, session in self._by_name.items() if not session.users]
            if not idle:
                raise QueueFull(
                    f"{self._config.max_callers} other callers are at it; try again, or raise max_callers of [gateway]"
                )
            await self._close(min(idle)[1])
        made = self._by_name[name] = CallerSession(self.client())
        return made

    def client(self) -> AsyncClient:
        """One more client of the same broker, for a door that keeps one of its own."""
        return AsyncClient(self._endpoint, arena_mb=self._config.arena_mb)

    async def tidy(self) -> None:
        """Closes what is unused, for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            before = time.monotonic() - UNUSED_S
            for name in [name for name, one in self._by_name.items() if not one.users and one.left_at < before]:
                await self._close(name)

    async def _close(self, name: str) -> None:
        await self._by_name.pop(name).client.close()

    async def close(self) -> None:
        for name in list(self._by_name):
            await self._close(name)
