"""Which models were loaded when the broker ended: a small file in `state_dir`, for `restore = true`. Never decides."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import msgspec

from zoo.system import files

log = logging.getLogger("zoo.broker")

FILE = "resident.json"
MAX_BYTES = 1 << 20
AGAIN_S = 60.0  # the order of use alone is written down so often


class ResidentFile:
    """`note` is told what is loaded, the last used first; `earlier` is what the broker before noted last."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE
        self._noted: list[str] | None = None
        self._noted_at = 0.0

    def earlier(self) -> list[str]:
        """Empty when there is no file, or none that can be read."""
        try:
            return msgspec.json.decode(files.read_regular(self._file, MAX_BYTES), type=list[str])
        except FileNotFoundError:
            return []
        except (OSError, ValueError, RecursionError) as e:
            log.warning("what was loaded earlier cannot be read from %s: %s", self._file, e)
            return []

    def note(self, names: list[str], *, at_last: bool = False) -> None:
        """A folder that cannot be written to costs the memory of the next life alone."""
        now = time.monotonic()
        same = self._noted is not None and set(names) == set(self._noted)
        if names == self._noted or (same and now < self._noted_at + AGAIN_S and not at_last):
            return
        self._noted, self._noted_at = names, now
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.write_whole(self._file, msgspec.json.encode(names))
        except OSError as e:
            log.warning("what is loaded cannot be noted in %s: %s", self._file, e)
