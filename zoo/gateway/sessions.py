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
        session, replaced = self._by_name.get(name), None
        if session is None:
            replaced = self._make_room()
            session = self._by_name[name] = CallerSession(self.client())
        session.users += 1
        try:
            if replaced is not None:
                await replaced.client.close()
            yield session.client
        finally:
            session.users -= 1
            session.left_at = time.monotonic()

    def _make_room(self) -> CallerSession | None:
        """The session whose place another may take, which is to be closed; None where there is room."""
        if len(self._by_name) < self._config.max_callers:
            return None
        unused = [(session.left_at, name) for name, session in self._by_name.items() if not session.users]
        if not unused:
            raise QueueFull(
                f"{self._config.max_callers} other callers are at it; try again, or raise max_callers of [gateway]"
            )
        return self._by_name.pop(min(unused)[1])

    def client(self) -> AsyncClient:
        """One more client of the same broker, for a door that keeps one of its own."""
        return AsyncClient(self._endpoint, arena_mb=self._config.arena_mb)

    async def tidy(self) -> None:
        """Closes what is unused, for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self._close([name for name in self._by_name if self._is_unused(name)])

    def _is_unused(self, name: str) -> bool:
        session = self._by_name.get(name)
        return session is not None and not session.users and session.left_at < time.monotonic() - UNUSED_S

    async def _close(self, names: list[str], *, all_of_them: bool = False) -> None:
        """What has happened to a session while others were closed is looked at again."""
        for name in names:
            if all_of_them or self._is_unused(name):
                await self._by_name.pop(name).client.close()

    async def close(self) -> None:
        """All of them; no request is under way any more."""
        await self._close(list(self._by_name), all_of_them=True)
