"""What workers and the nursery print: taken from a pipe, line by line, into the log.

A pipe each, because a shared descriptor would let one source fill it for all, and it could not be told whose a line is.
However much a source prints, it is never held up by us, nor the broker by it: what is above 50 lines a second is read,
counted and dropped. Carriage returns are progress bars: the last state of a line counts.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

READ_BYTES = 64 << 10
LINE_BYTES = 2000  # of a line; the rest is dropped
LINES_PER_S = 50.0
BURST = 300.0  # lines at once: the stacks of some threads
LAST_READS = 32  # at the end of a source: more than a pipe holds

Source = Callable[[], tuple[str, int]]


class Printed:
    """The read end of one source's pipe.

    Attributes:
        fd: to be watched; -1 when it is closed.
        source: gives (model or "", worker's number or 0) for the log.
    """

    def __init__(self, fd: int, logger: logging.Logger, source: Source) -> None:
        self.fd = fd
        self.source = source
        self._log = logger
        self._rest = b""
        self._cut = False  # the line that `_rest` begins has been logged as far as it will be
        self._tokens = BURST
        self._counted = time.monotonic()
        self._dropped = 0

    def read(self) -> bool:
        """One look. False when there is nothing more now; at the end of the file `fd` is -1 as well."""
        if self.fd < 0:
            return False
        try:
            data = os.read(self.fd, READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self.close()
            return False
        self._take(data)
        return True

    def finish(self) -> None:
        """Logs what is still in the pipe, and closes it."""
        for _ in range(LAST_READS):
            if not self.read():
                break
        self.close()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            rest, self._rest = self._rest, b""
            if rest and not self._cut:
                self._say(rest)
            self.tell_dropped()

    def tell_dropped(self) -> None:
        """To be called now and then: says how many lines were dropped since the last time."""
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            model, worker = self.source()
            text = f"{dropped} more lines were printed and not logged: more than {LINES_PER_S:g} a second"
            self._log.warning("%s", text, extra={"model": model, "worker": worker})

    def _take(self, data: bytes) -> None:
        if self._allowed() < 1.0:  # a flood is counted, not looked at
            lines = data.count(b"\n")
            self._dropped += lines
            if lines:
                self._rest, self._cut = data[data.rfind(b"\n") + 1 :][:LINE_BYTES], False
            return
        first, *others = data.split(b"\n")
        self._rest += first
        for line in others:
            if not self._cut:
                self._say(self._rest)
            self._rest, self._cut = line, False
        if len(self._rest) > LINE_BYTES:
            tail = self._rest.rfind(b"\r", 0, -1) + 1
            if tail:
                self._rest = self._rest[tail:]
            if len(self._rest) > LINE_BYTES:
                if not self._cut:
                    self._say(self._rest)
                self._rest, self._cut = b"", True

    def _allowed(self) -> float:
        now = time.monotonic()
        self._tokens = min(BURST, self._tokens + (now - self._counted) * LINES_PER_S)
        self._counted = now
        return self._tokens

    def _say(self, line: bytes) -> None:
        line = line.rstrip()
        line = line[line.rfind(b"\r") + 1 :]
        if not line:
            return
        if self._tokens < 1.0:
            self._dropped += 1
            return
        self._tokens -= 1.0
        text = line[:LINE_BYTES].decode("utf-8", "backslashreplace") + (" …" if len(line) > LINE_BYTES else "")
        model, worker = self.source()
        self._log.info("%s", text, extra={"model": model, "worker": worker})
