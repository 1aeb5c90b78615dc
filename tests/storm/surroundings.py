"""What a broker of the storm is started in: few descriptors, closed streams, a log that is read slowly."""

from __future__ import annotations

import os
import random
import re
import threading
import time
from pathlib import Path
from typing import IO, Any

from tests.support import Running

FEW = [160, 200, 256]  # descriptors
CLOSED = ["sh", "-c", 'exec "$0" "$@" <&- >&-']  # the log needs standard error
BYTES_AT_ONCE, PAUSE_S = 1 << 13, 0.02
ON_PURPOSE = (  # the last lines of tracebacks that adapters of the storm cause
    "as the storm wants it", "zoo.errors.",
)  # fmt: skip


class Tried(Running):
    """A broker whose surroundings are drawn anew at each start."""

    def __init__(self, folder: Path, dice: random.Random, models: list[dict[str, Any]], **keys: Any) -> None:
        super().__init__(folder, models, **keys)
        self._dice = dice
        self._slow = False
        self._readers: list[threading.Thread] = []

    def start(self, *, wait: bool = True) -> Running:
        few = ["prlimit", f"--nofile={self._dice.choice(FEW)}", "--"] if self._dice.random() < 0.4 else []
        self.before = [*few, *(CLOSED if self._dice.random() < 0.4 else [])]
        self._slow = self._dice.random() < 0.4
        return super().start(wait=wait)

    @property
    def surroundings(self) -> str:
        """In words, for the report."""
        return f"{' '.join(self.before[:2])}{' slow log' if self._slow else ''}"

    def _open_log(self) -> IO[bytes]:
        if not self._slow:
            return super()._open_log()
        read, write = os.pipe()
        reader = threading.Thread(target=self._read_slowly, args=(read,), daemon=True)
        reader.start()
        self._readers.append(reader)
        return os.fdopen(write, "wb", 0)

    def _read_slowly(self, fd: int) -> None:
        with super()._open_log() as log:
            while data := os.read(fd, BYTES_AT_ONCE):
                log.write(data)
                log.flush()
                time.sleep(PAUSE_S)
        os.close(fd)

    def close_log(self) -> None:
        """Waits for what is on its way, once the broker has ended."""
        for reader in self._readers:
            reader.join(60.0)


def unforeseen(log: str) -> list[str]:
    """The last lines of tracebacks that nothing in the storm has caused on purpose."""
    found = []
    for traceback in re.split(r"Traceback \(most recent call last\):", log)[1:]:
        last = re.search(r"^.*?(?:Error|Exception|Exit|Interrupt)\b.*$", traceback, re.MULTILINE)
        line = last.group() if last else traceback[:300]
        if not any(known in line for known in ON_PURPOSE):
            found.append(line)
    return found
