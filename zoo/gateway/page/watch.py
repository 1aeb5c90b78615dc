"""One look at the broker for all who watch the page: once a second while there are any, else every ten seconds, so
that what was decided in the last hour is known when a viewer comes.

Each look makes one message, a line of JSON, with what has changed since the one before. Viewers wait for the next
version and take its line; one who has missed a version, or is new, gets everything. So a slow one holds no memory, and
ten cost the broker as much as one.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from zoo.client.aio import AsyncClient
from zoo.errors import InvalidInput, QueueFull, ZooError
from zoo.gateway.page import snapshot
from zoo.gateway.page.history import History
from zoo.gateway.refusals import log
from zoo.top import figures

EVERY_S = 1.0
QUIET_S = 10.0  # where no one watches
SELDOM = 5  # looks from one question for the models to the next
LOOK_S = 2.0  # a broker that has not answered by then is said not to answer
MOST_VIEWERS = 64
PAGES = 20  # of decisions in one look


class PageWatch:
    """See the module's docstring.

    Args:
        zoo: the gateway's own client.
        clock: gives Unix time.

    Attributes:
        viewers: how many watch.
    """

    def __init__(self, zoo: AsyncClient, clock: Callable[[], float] = time.time) -> None:
        self._zoo = zoo
        self._clock = clock
        self.viewers = 0
        self._history = History()
        self._boot = ""
        self._read = 0  # decisions of that broker
        self._seen: figures.Seen | None = None
        self._rows: dict[str, figures.Shown] = {}
        self._models: list[dict[str, Any]] = []
        self._looks = 0
        self._trouble = "the broker has not been asked yet"
        self._sections: snapshot.Sections = {}
        self._version = 0
        self._line = b""
        self._turned = asyncio.Event()  # set, and replaced, with each version
        self._wanted = asyncio.Event()
        self._over = False

    # ------------------------------------------------------------ looking

    async def run(self) -> None:
        """Looks, for ever."""
        try:
            while True:
                await self.look()
                self._wanted.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(EVERY_S if self.viewers else QUIET_S):
                        await self._wanted.wait()
        finally:
            self._over = True
            self._turned.set()

    def look_now(self) -> None:
        """Something was done, and is to be seen."""
        self._models = []
        self._wanted.set()

    async def look(self) -> None:
        """Looks, and tells what it saw."""
        known = self._history.count
        try:
            async with asyncio.timeout(LOOK_S):
                overview = await self._ask_decisions()
                made = await self._ask(overview) if self.viewers else {}
        except (ZooError, TimeoutError) as e:
            self._lost(str(e) or f"the broker has not answered within {LOOK_S:g} s")
            made = {}
        except Exception as e:  # of a look; the next one may go well
            log.error("the page's look at the broker failed", exc_info=e)
            return
        else:
            self._trouble = ""
        self._history.forget(
            self._clock(), (row["name"] for row in self._models) if self._models else self._history.last
        )
        self._tell({**made, "trouble": self._trouble, "whole_from": self._history.whole_from}, known)

    def _lost(self, why: str) -> None:
        if not self._trouble and self._boot:
            self._note("broker gone", why)
        self._trouble, self._models = why, []

    def _note(self, kind: str, text: str) -> None:
        self._history.add([{"at": self._clock(), "model": "", "kind": kind, "text": text}])

    async def _ask(self, overview: dict[str, Any]) -> snapshot.Sections:
        """All the rest."""
        zoo = self._zoo
        if not self._models or self._looks % SELDOM == 0:
            self._models = await zoo.models()
        self._looks += 1
        status, processes = await zoo.get_status(), await zoo.processes()
        before = self._seen
        self._seen = figures.Seen(self._clock(), status, processes, self._models)
        same = before is not None and before.status["broker"]["boot"] == status["broker"]["boot"]
        seconds = self._seen.at - before.at if before is not None and same else 0.0
        rows = figures.rows(self._seen, self._rows if same and seconds < QUIET_S else None, seconds)
        self._rows = {row.name: row for row in rows}
        return snapshot.sections(self._seen, rows, overview, self._history.last)

    async def _ask_decisions(self) -> dict[str, Any]:
        """Puts those that are new into the history; gives the last answer."""
        overview: dict[str, Any] = {}
        for _ in range(PAGES):
            try:
                overview = await self._zoo.overview(since=self._read)
            except InvalidInput:  # a broker of an earlier release
                return {}
            if overview["boot"] != self._boot:  # another broker counts anew
                again, self._boot, self._read = bool(self._boot), overview["boot"], 0
                if again:
                    self._note("broker started", "another broker answers")
                    continue
            self._history.add(overview["lines"], missed=overview.get("missed", False))
            self._read = overview["next"]
            if not overview["more"]:
                break
        return overview

    # ------------------------------------------------------------ telling

    def _tell(self, found: snapshot.Sections, known: int) -> None:
        """A new version, with what is not as it was. `known`: decisions that were told already."""
        changed = {name: value for name, value in found.items() if self._sections.get(name) != value}
        self._sections |= changed
        self._version += 1
        self._line = self._packed(changed, known)
        turned, self._turned = self._turned, asyncio.Event()
        turned.set()

    def _packed(self, changed: snapshot.Sections, known: int) -> bytes:
        decisions = self._history.since(known)
        return msgspec.json.encode({"at": round(self._clock(), 3), **changed, "decisions": decisions}) + b"\n"

    def check_room(self) -> None:
        """Raises QueueFull: too many watch."""
        if self.viewers >= MOST_VIEWERS:
            raise QueueFull(f"{self.viewers} watch this page already; close one")

    async def lines(self, first: dict[str, Any]) -> AsyncIterator[bytes]:
        """For one viewer: everything, with `first`, and then what changes. Ends with the gateway."""
        self.viewers += 1
        try:
            turned = self._turned
            if self.viewers == 1:
                self.look_now()
                await turned.wait()
            version = -1
            while not self._over:
                if self._version != version:
                    follows = self._version == version + 1 and version > 0
                    line = self._line if follows else self._packed({**first, **self._sections, "whole": True}, 0)
                    version = self._version
                    yield line
                else:
                    await self._turned.wait()
        finally:
            self.viewers -= 1
