"""What a process has to itself, from /proc: the broker reads it of its workers, a worker of itself.

That is its unique set size without the arenas of others. The kernel counts the pages of a shared mapping as a process's
own as soon as no other process maps them. So it is with a client's arena, from when the client is gone until the worker
lets go of it. An arena of another process is known by its mapping: shared, of a memfd, and read-only. What the process
made itself it maps writable, and a copy of a model privately: both count.

With 840 mappings and 850 MB, one reading takes 12 ms without any arena mapped and 19 ms with one.

Of a copy, pages that are only read count too, as the worker is the only process to map them: a model is charged the
same whichever way it was loaded, although killing it does not give back the pages of a copy that stays.
"""

from __future__ import annotations

import re

MEMFD = b" /memfd:"
PRIVATE = re.compile(rb"Private_(?:Clean|Dirty): +(\d+)")
OTHERS = re.compile(rb"[0-9a-f]+-[0-9a-f]+ r-[-x]s ")  # readable, not writable, shared
HEADER = re.compile(rb"\n[0-9a-f]+-[0-9a-f]+ ")


def unique_mb(pid: int) -> float | None:
    """What ending the process would give back of host memory, in MB; None when that cannot be read, or it is gone."""
    try:
        if not _maps_others(pid):
            text = _read(pid, "smaps_rollup")
            if not _maps_others(pid):  # none came meanwhile
                return _kb(text) / 1024 if text else None
        text = _read(pid, "smaps")  # each mapping with its name: the sums of the rollup do not say whose pages they are
    except (OSError, ValueError):
        return None
    return (_kb(text) - others_kb(text)) / 1024 if text else None


def others_kb(smaps: bytes) -> int:
    """What the kernel counts as the process's own of the arenas that others made."""
    kb, at = 0, 0
    while (at := smaps.find(MEMFD, at)) >= 0:
        head, at = smaps.rfind(b"\n", 0, at) + 1, at + 1
        if OTHERS.match(smaps, head):
            end = HEADER.search(smaps, at)
            kb += _kb(smaps[at : end.start() if end else len(smaps)])
    return kb


def _maps_others(pid: int) -> bool:
    maps = _read(pid, "maps")
    return MEMFD in maps and any(MEMFD in line and OTHERS.match(line) for line in maps.splitlines())


def _kb(text: bytes) -> int:
    return sum(map(int, PRIVATE.findall(text)))


def _read(pid: int, name: str) -> bytes:
    with open(f"/proc/{pid}/{name}", "rb", buffering=0) as f:
        parts = []
        while part := f.read(1 << 20):
            parts.append(part)
    return b"".join(parts)
