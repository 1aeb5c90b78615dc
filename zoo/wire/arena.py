"""Sealed shared memory: one memfd per owner, cut into slots.

The owner makes the memory, reserves every page (so no reader can meet SIGBUS), maps it writable and then seals
it SHRINK | GROW | FUTURE_WRITE | SEAL. From that moment the kernel itself guarantees that only the owner can write
it, that it cannot be shrunk under a reader, and that these guarantees cannot be taken back. There are no names and
nothing to clean up: the memory is freed when the last process closes it.

Slots are reused last-in first-out, so that the next frame lands in pages the caches still hold.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import threading
import time
from collections.abc import Iterable

PAGE = mmap.PAGESIZE
PIECE = 64 << 20  # bytes reserved between two looks at the clock
SEAL = {
    "SHRINK": fcntl.F_SEAL_SHRINK,
    "GROW": fcntl.F_SEAL_GROW,
    "FUTURE_WRITE": 0x10,  # linux/fcntl.h; Python's fcntl lacks the name before 3.13
    "SEAL": fcntl.F_SEAL_SEAL,
}
SEALS = sum(SEAL.values())


class ArenaRefused(ValueError):
    """The offered descriptor is not a sealed arena, or is larger than allowed."""


def check_sealed(fd: int, limit_bytes: int) -> int:
    """The size in bytes of a sealed arena that another process handed over.

    Raises:
        ArenaRefused: a seal is missing, it is not a memfd that can be read, it is empty, it exceeds
            `limit_bytes`, or its pages are not reserved (so that reading it could end in SIGBUS).
    """
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as e:
        raise ArenaRefused("not a memfd: it has no seals") from e
    if missing := [name for name, bit in SEAL.items() if not seals & bit]:
        raise ArenaRefused(f"the arena lacks the seals {', '.join(missing)}")
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
        raise ArenaRefused("the descriptor cannot be read from")
    made = os.fstat(fd)
    size = made.st_size
    if size == 0:
        raise ArenaRefused("the arena is empty")
    if size > limit_bytes:
        raise ArenaRefused(f"the arena has {size >> 20} MB, the limit is {limit_bytes >> 20} MB")
    if made.st_blocks * 512 < size:  # the seals forbid punching holes later
        raise ArenaRefused("the arena's pages are not reserved (posix_fallocate)")
    return size


class SlotAllocator:
    """Cuts `size` bytes into page-aligned slots. Pure arithmetic, no memory and no lock of its own.

    A freed slot goes on a stack for its size and is the next one handed out for that size. Only when neither
    such a slot nor fresh space is left are adjacent free slots joined.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._top = 0
        self._free: dict[int, list[int]] = {}
        self._used: dict[int, int] = {}

    def take(self, nbytes: int) -> int | None:
        """The offset of a slot of at least `nbytes`, or None when there is no room now."""
        want = max(1, -(-nbytes // PAGE)) * PAGE
        stack = self._free.get(want)
        if stack:
            offset = stack.pop()
        elif self._top + want <= self.size:
            offset = self._top
            self._top += want
        else:
            self._join()
            found = self._first_fit(want)
            if found is None:
                return None
            offset = found
        self._used[offset] = want
        return offset

    def give_back(self, offset: int) -> bool:
        """Returns a slot; False (and nothing changes) when `offset` is not a slot in use."""
        size = self._used.pop(offset, None)
        if size is None:
            return False
        self._free.setdefault(size, []).append(offset)
        return True

    def offsets(self) -> list[int]:
        """Of every slot in use."""
        return list(self._used)

    def rebuilt(self, used: Iterable[int]) -> SlotAllocator:
        """Another one, in which these slots of this one are in use and everything else is free."""
        made = SlotAllocator(self.size)
        for offset in sorted(used):
            if offset > made._top:
                made._free.setdefault(offset - made._top, []).append(made._top)
            made._used[offset] = self._used[offset]
            made._top = offset + self._used[offset]
        return made

    def _join(self) -> None:
        """Adjacent free slots become one; those after the last slot in use become fresh space."""
        joined = self.rebuilt(self._used)
        self._top, self._free = joined._top, joined._free

    def _first_fit(self, want: int) -> int | None:
        if self._top + want <= self.size:
            self._top += want
            return self._top - want
        for size in sorted(s for s, offsets in self._free.items() if s >= want and offsets):
            offset = self._free[size].pop()
            if size > want:
                self._free.setdefault(size - want, []).append(offset + want)
            return offset
        return None


class Reservation:
    """Memory for an arena, reserved piece by piece, so that a caller can be gone when its time is up.

    Attributes:
        size: in whole pages. fd: the memory; -1 once an arena has taken it over.

    Raises:
        OSError: no memory, or no descriptor.
    """

    def __init__(self, size: int, name: str = "zoo-arena") -> None:
        self.size = -(-size // PAGE) * PAGE
        self._done = 0
        self.fd = -1
        self.fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, self.size)

    def go_on(self, deadline: float) -> bool:
        """Reserves memory until it is done (True), or until the deadline."""
        while self._done < self.size:
            if time.monotonic() >= deadline:
                return False
            piece = min(PIECE, self.size - self._done)
            os.posix_fallocate(self.fd, self._done, piece)
            self._done += piece
        return True

    def __del__(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class OwnedArena:
    """Memory that this process made and alone can write. Safe to share among threads.

    Attributes:
        fd: the sealed descriptor to pass to readers.
        memory: the writable mapping.
        id: the number the broker gave it, or 0 while it is not registered.
    """

    def __init__(self, size: int, name: str = "zoo-arena", made: Reservation | None = None) -> None:
        self.fd = -1
        if made is None:
            made = Reservation(size, name)
            made.go_on(math.inf)
        self.size = made.size
        self.id = 0
        self.fd, made.fd = made.fd, -1
        try:
            self.memory = mmap.mmap(
                self.fd,
                self.size,
                flags=mmap.MAP_SHARED | mmap.MAP_POPULATE,
                prot=mmap.PROT_READ | mmap.PROT_WRITE,
            )
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, SEALS)
        except BaseException:
            self.close()
            raise
        self._slots = SlotAllocator(self.size)
        self._lock = threading.Lock()

    def take(self, nbytes: int) -> int | None:
        with self._lock:
            return self._slots.take(nbytes)

    def give_back(self, offset: int) -> bool:
        with self._lock:
            return self._slots.give_back(offset)

    def close(self) -> None:
        """Closes the descriptor; the mapping goes with the last array that still looks at it."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


class MappedArena:
    """A read-only look at another process's sealed arena. Takes over (and closes) `fd`.

    Raises:
        ArenaRefused: see `check_sealed`.
    """

    def __init__(self, fd: int, limit_bytes: int) -> None:
        try:
            self.size = check_sealed(fd, limit_bytes)
            self.memory = mmap.mmap(fd, self.size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ)
        finally:
            os.close(fd)
