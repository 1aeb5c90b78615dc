"""The C library's heap: freed memory of large messages goes back to the kernel."""

from __future__ import annotations

import ctypes
import os
from typing import Any

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
MMAP_BYTES = 256 << 10  # set at all, it stays: by itself it grows with what is freed, up to 32 MB
ARENAS = 2

_statm = -1
_page = os.sysconf("SC_PAGE_SIZE")


def _libc() -> Any:
    return ctypes.CDLL(None)


def settle() -> None:
    """Once, at start. Does nothing where the C library is not glibc."""
    mallopt = getattr(_libc(), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, MMAP_BYTES)
        mallopt(_M_ARENA_MAX, ARENAS)


def trim() -> None:
    """Gives back what is free in between; takes milliseconds, without the interpreter's lock."""
    give_back = getattr(_libc(), "malloc_trim", None)
    if give_back is not None:
        give_back(0)


def resident_bytes() -> int:
    """What this process has in memory; 0 where the kernel does not say. Cheap: the file stays open."""
    global _statm
    try:
        if _statm < 0:
            _statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        return int(os.pread(_statm, 128, 0).split()[1]) * _page
    except (OSError, IndexError, ValueError):
        return 0
