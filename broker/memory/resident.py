"""Which models were loaded when the broker ended: a small file in `state_dir`, for `restore = true`. Never decides."""

from __future__ import annotations

import time
from pathlib import Path

from broker.memory.state import StateFile

FILE = "resident.json"
AGAIN_S = 60.0  # a change in the order of use alone is written down so often


class ResidentFile:
    """`note` is told what is loaded, the last used first; `earlier` is what the broker before noted last."""

    def __init__(self, folder: Path) -> None:
        self._file = StateFile(folder, FILE, list[str])
        self._noted: list[str] | None = None
        self._noted_at = 0.0

    def earlier(self) -> list[str]:
        """Empty when nothing is known."""
        return self._file.read() or []

    def note(self, names: list[str], *, at_last: bool = False) -> None:
        now = time.monotonic()
        same = self._noted is not None and set(names) == set(self._noted)
        if names == self._noted or (same and now < self._noted_at + AGAIN_S and not at_last):
            return
        self._noted, self._noted_at = names, now
        self._file.write(names)
