"""The story: the last decisions, one line each, with the arithmetic. What `zoo explain` shows.

Kept by the scheduler itself, so that what it says is what was decided, not what somebody guessed from outside.
"""

from __future__ import annotations

from collections import deque

import msgspec

KEEP = 2000


class Line(msgspec.Struct, frozen=True, gc=False):
    """`at`: on the scheduler's clock."""

    at: float
    model: str
    text: str


class Story:
    def __init__(self, keep: int = KEEP) -> None:
        self._lines: deque[Line] = deque(maxlen=keep)
        self.count = 0  # lines ever told; a reader that remembers it can ask for what is new

    def tell(self, at: float, model: str, text: str) -> None:
        self._lines.append(Line(at, model, text))
        self.count += 1

    def about(self, model: str | None = None) -> list[Line]:
        return [line for line in self._lines if model is None or line.model == model]

    def since(self, count: int) -> list[Line]:
        """Lines told after `count` was read (those still kept)."""
        new = min(self.count - count, len(self._lines))
        return [self._lines[i] for i in range(len(self._lines) - new, len(self._lines))] if new > 0 else []
