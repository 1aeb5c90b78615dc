"""The file of a recording: lines at its end, bounded, whatever becomes of the disk.

When it has half of its bound it becomes `FILE.1`, in the place of the one before, and a new one begins. What cannot be
written is lost to the file and counted, and it is tried again after a while.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from pathlib import Path

from zoo.system import files

log = logging.getLogger("zoo.broker")

RETRY_S = 10.0  # after a write that failed


class RecordFile:
    """Where lines go. Of the recorder's thread alone, but for `problem`, which anyone may read.

    Attributes:
        problem: why nothing is written now; "" where it is.
        lost: lines that were not written.
    """

    def __init__(self, path: Path, most_bytes: int) -> None:
        self.path = path
        self.problem = ""
        self.lost = 0
        self._half = most_bytes // 2
        self._fd = -1
        self._size = 0
        self._again_at = 0.0

    def write(self, lines: list[bytes]) -> bool:
        """True: what follows has to begin with the state of things, since a new file begins, or lines were lost."""
        if time.monotonic() < self._again_at:
            self.lost += len(lines)
            return False
        try:
            if self._fd < 0:
                self._open()
            data = b"".join(lines)
            while data:
                data = data[os.write(self._fd, data) :]
            self._size = os.fstat(self._fd).st_size
            if self._size >= self._half:
                self.close()
                os.replace(self.path, f"{self.path}.1")
        except OSError as e:
            self._failed(e, len(lines))
            return False
        if self.problem:
            log.info("the recording %s is written again, %d lines are missing in it", self.path, self.lost)
            self.problem = ""
            return True
        return self._fd < 0

    def _open(self) -> None:
        """Lines go to its end. One that was torn is ended first."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = files.no_link(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        if os.fstat(self._fd).st_size:
            os.write(self._fd, b"\n")
        else:
            os.fchmod(self._fd, 0o600)

    def _failed(self, error: OSError, lines: int) -> None:
        self.lost += lines
        self.close()
        self._again_at = time.monotonic() + RETRY_S
        why = error.strerror or str(error)
        if why != self.problem:
            log.error("the recording %s cannot be written, it goes on in memory alone: %s", self.path, why)
        self.problem = why

    def close(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1
