"""The C library's heap: freed memory of large messages goes back to the kernel.

By itself glibc keeps what was freed of messages below a threshold that grows with them. Nothing is done where the C
library is not glibc.
"""

from __future__ import annotations

import functools
import os

from zoo.system.kernel import libc

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
MMAP_BYTES = 256 << 10  # set at all, it stays: by itself it grows with what is freed, up to 32 MB
ARENAS = 2

_page = os.sysconf("SC_PAGE_SIZE")


def settle() -> None:
    """Once, at start."""
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, MMAP_BYTES)
        libc.mallopt(_M_ARENA_MAX, ARENAS)


def trim() -> None:
    """Gives back what is free in between; takes milliseconds, without the interpreter's lock."""
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


@functools.cache
def _statm() -> int:
    return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)


def resident_bytes() -> int:
    """What this process has in memory; 0 where the kernel does not say. Cheap: the file stays open."""
    try:
        return int(os.pread(_statm(), 128, 0).split()[1]) * _page
    except (OSError, IndexError, ValueError):
        return 0
