"""The story: the last decisions, one line each, with the arithmetic. What `zoo explain` and the log show.

Kept by the scheduler itself, so that what it says is what was decided, not what was guessed from outside. A line is
data; it becomes a sentence when it is read (`sentences.py`).

Refusals may come by the thousand: of one kind and model there is one line a second, which counts the others.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from typing import Any

import msgspec

from broker.scheduler.story.sentences import SENTENCES

KEEP = 2000
OFTEN_S = 1.0  # what may happen thousands of times a second is told once in so long


class Line(msgspec.Struct, frozen=True):
    """One decision.

    Attributes:
        at: on the scheduler's clock.
        model: the name of the model or worker that it is about, or "".
        kind: what was decided, in a word: loading, loaded, evicted, spared, refused, waits, killed, retried, …
        fields: what its sentence is made of; numbers by names that end in their unit. `others`: further models.
    """

    at: float
    model: str
    kind: str
    fields: dict[str, Any] = {}

    @property
    def text(self) -> str:
        """The whole of it, in words."""
        return SENTENCES[self.kind](**self.fields)

    @property
    def models(self) -> set[str]:
        """All that it is about."""
        return {name.partition("#")[0] for name in (self.model, *self.fields.get("others", ()))}


class Story:
    def __init__(self, keep: int = KEEP) -> None:
        self._lines: deque[Line] = deque(maxlen=keep)
        self._often: dict[tuple[str, str, str], tuple[float, int]] = {}
        self.count = 0  # lines ever told; a reader that remembers it can ask for what is new

    def tell(self, at: float, model: str, kind: str, **fields: Any) -> None:
        self._lines.append(Line(at, model, kind, fields))
        self.count += 1

    def tell_once(self, at: float, model: str, kind: str, code: str, **fields: Any) -> None:
        """The same of one model within `OFTEN_S` is only counted, and the next line says how many there were."""
        last, missed = self._often.get((kind, model, code), (-math.inf, 0))
        if at < last + OFTEN_S:
            self._often[kind, model, code] = last, missed + 1
            return
        self._often[kind, model, code] = at, 0
        self.tell(at, model, kind, code=code, untold=missed, **fields)

    def about(self, model: str | None = None) -> list[Line]:
        """`model`: only the lines that are about it or one of its extra workers ("NAME#2")."""
        return [line for line in self._lines if model is None or model in line.models]

    def since(self, count: int) -> list[Line]:
        """Lines told after `count` was read (those still kept)."""
        new = min(self.count - count, len(self._lines))
        return [self._lines[i] for i in range(len(self._lines) - new, len(self._lines))]

    def page(self, count: int, most: int) -> tuple[list[Line], int]:
        """The oldest `most` lines told after `count` was read (those still kept), and the count to go on from."""
        oldest = self.count - len(self._lines)
        first = min(max(count, oldest), self.count)
        lines = list(itertools.islice(self._lines, first - oldest, first - oldest + most))
        return lines, first + len(lines)
