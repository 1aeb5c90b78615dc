"""What was decided in the last hour, and the last decision about each model. Pure: no clock, no broker."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, NamedTuple

KEEP_S = 3600.0
KEEP = 4000  # decisions; where more come in an hour, the oldest are dropped
LONGEST = 300  # characters of one
SHOWN = {
    "loading", "loaded", "load failed", "evicted", "draining", "crashed", "killed", "dropped", "ahead", "restored",
    "growing", "pinned", "memory stuck", "out of memory", "limited", "overdrawn", "fits again", "unread", "read again",
    "in doubt", "changed", "stopping", "broker started", "broker gone",
}  # fmt: skip
# What says why a model is where it is. The rest, such as a measurement, is about something else.
PLACING = {
    "loading", "loaded", "load failed", "evicted", "draining", "crashed", "killed", "dropped", "memory stuck", "waits",
    "yields",
}  # fmt: skip


class Decision(NamedTuple):
    """`at`: Unix time. `model`: without the number of an extra worker; "": of none."""

    number: int
    at: float
    model: str
    kind: str
    text: str


class History:
    """Decisions have numbers from 1 on, in the order of their coming.

    Attributes:
        last: by model, of the kinds that place it.
        count: of all that came.
        whole_from: since when all of them are kept (Unix time; 0: for as long as is kept).
    """

    def __init__(self) -> None:
        self.last: dict[str, Decision] = {}
        self.count = 0
        self.whole_from = 0.0
        self._missed = False
        self._kept: deque[Decision] = deque(maxlen=KEEP)

    def add(self, lines: Iterable[Mapping[str, Any]], *, missed: bool = False) -> None:
        """Lines of `overview`. `missed`: some before them are not known."""
        self._missed |= missed
        for line in lines:
            name, kind, text = line["model"].partition("#")[0], line["kind"], line["text"]
            cut = text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
            if self._missed:
                self.whole_from, self._missed = line["at"], False
            if kind in PLACING and name:
                self.last[name] = Decision(0, line["at"], name, kind, cut)
            if kind in SHOWN:
                self.count += 1
                if len(self._kept) == KEEP:
                    self.whole_from = self._kept[1].at
                self._kept.append(Decision(self.count, line["at"], name, kind, cut))

    def forget(self, now: float, registered: Iterable[str]) -> None:
        """What is older than an hour, and models that are registered no more."""
        while self._kept and self._kept[0].at < now - KEEP_S:
            self._kept.popleft()
        names = set(registered)
        for name in [name for name in self.last if name not in names]:
            del self.last[name]

    def since(self, number: int) -> list[Decision]:
        """Those after this one that are still kept, the oldest first."""
        new = min(self.count - number, len(self._kept))
        return list(islice(self._kept, len(self._kept) - new, None)) if new > 0 else []
