"""Where lines of the log leave the process: a bounded queue, and a thread that writes it to a descriptor.

The reader of standard error may be slow, stuck or gone, and a write would then wait for it with the whole broker. Here
only the thread waits. What the queue has no room for is dropped and counted, and the count is said as soon as
something can be written again.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable

MOST_BYTES = 4 << 20  # what may wait
MOST_LINES = 20_000
PAUSE_S = 0.1  # after a write that failed (a full disk, a closed pipe), so that nothing spins


class Outlet:
    """`dropped`: lines that were never written. `note` makes the line about them, from their number."""

    def __init__(self, fd: int, note: Callable[[int], str]) -> None:
        self.dropped = 0
        self._note = note
        self._fd = fd
        self._untold = 0
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._news = threading.Condition()  # re-entrant: an object that dies in here may have something to say
        self._busy = False
        self._begun = False  # a line is partly written
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def put(self, line: str) -> None:
        """Takes one line, without its line break. Never waits for the reader, never raises."""
        try:
            raw = line.encode("utf-8", "backslashreplace") + b"\n"
            with self._news:
                if len(self._waiting) >= MOST_LINES or self._bytes + len(raw) > MOST_BYTES:
                    self._lose()
                    return
                self._waiting.append(raw)
                self._bytes += len(raw)
                self._news.notify()
        except (MemoryError, RuntimeError):
            self.dropped += 1

    def flush(self, seconds: float) -> bool:
        """Waits until everything is written, at most so long. False when something is left."""
        with self._news:
            return self._news.wait_for(lambda: not self._waiting and not self._busy, seconds)

    def _lose(self) -> None:
        self.dropped += 1
        self._untold += 1

    # ------------------------------------------------------------ in the thread

    def _run(self) -> None:
        while True:
            with self._news:
                self._busy = False
                self._news.notify_all()
                self._news.wait_for(lambda: bool(self._waiting))
                self._busy = True
                line = self._waiting.popleft()
                self._bytes -= len(line)
                untold, self._untold = self._untold, 0
            if untold and not self._write(self._note(untold).encode("utf-8", "backslashreplace") + b"\n"):
                with self._news:
                    self._untold += untold
            if not self._write(line):
                with self._news:
                    self._lose()
                time.sleep(PAUSE_S)

    def _write(self, line: bytes) -> bool:
        """False when it could not be written. One that was cut off is ended before the next begins."""
        rest = memoryview(b"\n" + line if self._begun else line)
        try:
            while rest:
                try:
                    written = os.write(self._fd, rest)
                except BlockingIOError:  # the other side has made it non-blocking
                    select.select([], [self._fd], [], 1.0)
                    continue
                self._begun = True
                rest = rest[written:]
        except (OSError, ValueError):
            return False
        self._begun = False
        return True
