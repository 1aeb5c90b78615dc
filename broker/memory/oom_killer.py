"""Was it the kernel's out-of-memory killer? Reads its counter, where there is one; decides nothing.

A worker that ended by a SIGKILL which the broker did not send may have been chosen by the kernel. The control group
that the broker and its workers share counts how many of its processes were; where it does not, the whole machine's
count is read. A kill that was not counted came from another process.

Of the machine's count, another program's end within the same second may be taken for the worker's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from broker.memory.container import CGROUPS, own_groups


def counters() -> Iterator[Path]:
    """Files that may hold a line `oom_kill N`, the most telling first."""
    for controllers, path in own_groups():
        if not controllers:
            yield Path("/", CGROUPS, path.lstrip("/"), "memory.events")
        elif "memory" in controllers:
            yield Path("/", CGROUPS, "memory", path.lstrip("/"), "memory.oom_control")
    yield Path("/proc/vmstat")


class OomKiller:
    """Kills since the last reading but one, so that none is missed between the death and the news of it."""

    def __init__(self) -> None:
        self._file = next((file for file in counters() if _count(file) is not None), None)
        self._before = self._last = self._count() or 0

    def watch(self) -> None:
        """To be called every second or so: what was killed before the last call is none of ours, or is known."""
        count = self._count()
        if count is not None:  # else it cannot be read for a moment: what was known stands
            self._before, self._last = self._last, count

    def struck(self) -> bool | None:
        """A process has just ended by SIGKILL: is there a kill that accounts for it? None where none are counted."""
        count = self._count()
        if count is None:
            return None
        if count <= self._before:
            return False
        self._before += 1  # one kill accounts for one process
        self._last = max(self._last, self._before)
        return True

    def _count(self) -> int | None:
        return _count(self._file) if self._file is not None else None


def _count(file: Path) -> int | None:
    try:
        lines = file.read_text().splitlines()
    except (OSError, ValueError):
        return None
    for line in lines:
        name, _, count = line.partition(" ")
        if name == "oom_kill" and count.strip().isdecimal():
            return int(count)
    return None
