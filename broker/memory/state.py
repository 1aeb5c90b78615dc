"""Small JSON files in `state_dir`, by which a broker knows what the one before it knew. It works without them.

A file is replaced as a whole, so it is never half written. One that a later release wrote, or that is damaged, is set
aside with a warning; one that cannot be written costs a single warning, and the next broker starts without it.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from zoo.system import files

log = logging.getLogger("zoo.broker")

MAX_BYTES = 16 << 20
AGAIN_S = 60.0  # a change in the order of use alone is written down so often
T = TypeVar("T")


class StateFile(Generic[T]):
    """The file `name` in a folder, which holds a value of the type `kind`."""

    def __init__(self, folder: Path, name: str, kind: type[T]) -> None:
        self._file = folder / name
        self._kind = kind
        self._warned = False

    def read(self) -> T | None:
        """None when there is no file that can be used."""
        try:
            return msgspec.json.decode(files.read_regular(self._file, MAX_BYTES), type=self._kind)
        except FileNotFoundError:
            pass
        except OSError as e:
            log.warning("%s cannot be read, the broker starts without it: %s", self._file, e.strerror or e)
        except (ValueError, RecursionError) as e:  # msgspec's errors are ValueErrors
            self._set_aside(str(e))
        return None

    def write(self, value: T) -> None:
        """What cannot be written is logged once."""
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.write_whole(self._file, msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n")
        except OSError as e:
            if not self._warned:
                log.warning("%s cannot be kept for the next broker: %s", self._file, e.strerror or e)
            self._warned = True

    def _set_aside(self, why: str) -> None:
        aside = self._file.with_name(f"{self._file.name}.aside")
        try:
            os.replace(self._file, aside)
        except OSError as e:
            log.warning("%s cannot be used (%s), nor set aside: %s", self._file, why, e.strerror or e)
        else:
            log.warning("%s cannot be used (%s); it is now %s, and is not used", self._file, why, aside)


class ResidentFile:
    """Which models were loaded when the broker ended, for `restore = true`.

    `note` is told what is loaded, the last used first; `earlier` is what the broker before noted last.
    """

    def __init__(self, folder: Path) -> None:
        self._file = StateFile(folder, "resident.json", list[str])
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
