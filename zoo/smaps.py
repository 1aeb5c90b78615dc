"""What a process has to itself, from /proc: the broker reads it of its workers, a worker of itself."""

from __future__ import annotations


def unique_mb(pid: int) -> float | None:
    """Unique set size of a process in MB (/proc/PID/smaps_rollup); None when it is gone."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as f:
            kb = sum(int(line.split()[1]) for line in f if line.startswith((b"Private_Clean", b"Private_Dirty")))
    except (OSError, ValueError):
        return None
    return kb / 1024
