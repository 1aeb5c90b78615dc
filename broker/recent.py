"""The last lines of the log, in memory, for `zoo logs`: bounded in number and in bytes, whatever is logged.

The log itself goes to standard error, where a service manager, a container's log or a file keeps it for as long as its
owner likes. What is kept here is there without any of them, in a form of its own, and gone with the broker.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import NamedTuple

MOST_LINES = 5000
MOST_BYTES = 4 << 20
PAGE_BYTES = 256 << 10  # of one answer


class LogLine(NamedTuple):
    """One line. `line` is what `--log-format json` writes. `about`: models."""

    number: int
    line: str
    about: frozenset[str]


class LogRing:
    """Lines have numbers from 1 on, in the order of their coming. Safe among threads."""

    def __init__(self, most_lines: int = MOST_LINES, most_bytes: int = MOST_BYTES) -> None:
        self._lines: deque[LogLine] = deque()
        self._most_lines, self._most_bytes = most_lines, most_bytes
        self._bytes = 0
        self._last = 0
        self._lock = threading.RLock()  # an object that dies in here may have something to log

    def put(self, line: str, about: frozenset[str]) -> None:
        with self._lock:
            self._last += 1
            self._lines.append(LogLine(self._last, line, about))
            self._bytes += len(line)
            while len(self._lines) > self._most_lines or (self._bytes > self._most_bytes and len(self._lines) > 1):
                self._bytes -= len(self._lines.popleft().line)

    def since(self, number: int, model: str | None, most: int = PAGE_BYTES) -> tuple[list[str], int, bool]:
        """Lines after this number that are still kept, the oldest first, of a model or all.

        Gives them, the number to go on from, and whether there are more already. A page has at least one line.
        """
        found: list[str] = []
        with self._lock:
            kept = min(self._last - number, len(self._lines)) if number < self._last else 0
            for at in range(len(self._lines) - kept, len(self._lines)):
                one = self._lines[at]
                if model is None or model in one.about:
                    most -= len(one.line)
                    if found and most < 0:
                        return found, one.number - 1, True
                    found.append(one.line)
            return found, max(number, self._last) if kept else number, False
