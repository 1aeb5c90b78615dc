"""System shared memory that callers have registered.

Such a region is not sealed: its maker may shrink it at any time, and then a process that has it mapped is killed by the
next touch. So it is never mapped here, but read by `pread` into a slot of the arena and written by `pwrite`. A region
belongs to the caller that registered it, and no other sees it. Only for callers on this machine, and only with
`shared_memory = true` in [gateway]: a caller may name any object in /dev/shm that the gateway's user may open.
"""

from __future__ import annotations

import os
import stat
from typing import Any

from zoo.client.frames import Frame
from zoo.errors import InvalidInput

FOLDER = "/dev/shm"
MOST_REGIONS = 64  # of one caller


class Region:
    """`offset`, `size`: the part of the object that is the region, in bytes. Its descriptor closes with it."""

    def __init__(self, name: str, key: str, offset: int, size: int) -> None:
        """Raises InvalidInput: there is no such object, or it is smaller."""
        self.name, self.key, self.offset, self.size = name, key, offset, size
        path = key.removeprefix("/")
        if not path or "/" in path or "\0" in path or path in (".", "..") or len(path) > 255:
            raise InvalidInput(f"key: {key!r:.100} is not the name of a shared memory object")
        try:
            self._fd = os.open(f"{FOLDER}/{path}", os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError) as e:
            raise InvalidInput(f"key: {key!r:.100} cannot be opened: {getattr(e, 'strerror', None) or e}") from None
        found = os.fstat(self._fd)
        if not stat.S_ISREG(found.st_mode) or offset + size > found.st_size:
            raise InvalidInput(f"region {name}: {size} bytes at {offset} are not in {key}, which has {found.st_size}")

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)

    def window(self, tensor: str, offset: int, size: int) -> Window:
        """A part of it. Raises InvalidInput: it is not inside."""
        if offset + size > self.size:
            raise InvalidInput(f"{tensor}: {size} bytes at {offset} are not in region {self.name} of {self.size}")
        return Window(self._fd, f"{tensor}: region {self.name}", self.offset + offset, size)

    @property
    def status(self) -> dict[str, Any]:
        return {"name": self.name, "key": self.key, "offset": self.offset, "byte_size": self.size}


class Window:
    """A part of a region, read from its beginning; the same methods as a body's."""

    def __init__(self, fd: int, what: str, at: int, size: int) -> None:
        self._fd, self._what, self._at, self._end = fd, what, at, at + size

    async def read(self, nbytes: int) -> bytes:
        """Raises InvalidInput: it ends before."""
        made = bytearray(nbytes)
        self._read_into(memoryview(made))
        return bytes(made)

    async def fill(self, frame: Frame) -> None:
        self._read_into(frame.array.reshape(-1).view("u1").data)

    def _read_into(self, target: memoryview) -> None:
        if self._at + len(target) > self._end:
            raise InvalidInput(f"{self._what}: it ends before the tensor does")
        while target:
            try:
                count = os.preadv(self._fd, [target], self._at)
            except OSError as e:
                raise InvalidInput(f"{self._what}: it cannot be read: {e.strerror or e}") from None
            if not count:
                raise InvalidInput(f"{self._what}: its object in shared memory has become smaller")
            self._at += count
            target = target[count:]

    def write(self, data: bytes | memoryview) -> None:
        """Raises InvalidInput: there is not enough of it left."""
        if self._at + len(data) > min(self._end, os.fstat(self._fd).st_size):
            raise InvalidInput(f"{self._what}: {len(data)} bytes of output do not fit")
        left = memoryview(data)
        while left:
            try:
                count = os.pwrite(self._fd, left, self._at)
            except OSError as e:
                raise InvalidInput(f"{self._what}: it cannot be written: {e.strerror or e}") from None
            self._at += count
            left = left[count:]


class Regions:
    """All registered regions, by the caller's name and their own."""

    def __init__(self) -> None:
        self._by_caller: dict[str, dict[str, Region]] = {}

    def register(self, caller: str, name: str, key: str, offset: int, size: int) -> None:
        """Raises InvalidInput: the name is taken, there are too many, or see `Region`."""
        own = self._by_caller.setdefault(caller, {})
        if name in own:
            raise InvalidInput(f"region {name} is registered already; unregister it first")
        if len(own) >= MOST_REGIONS:
            raise InvalidInput(f"region {name}: {MOST_REGIONS} regions are registered, which is the most")
        own[name] = Region(name, key, offset, size)

    def unregister(self, caller: str, name: str | None) -> None:
        """One, or all of the caller's. One that is not there is fine: it is gone."""
        own = self._by_caller.get(caller, {})
        for one in [name] if name is not None else list(own):
            own.pop(one, None)

    def get(self, caller: str, name: str) -> Region:
        """Raises InvalidInput: the caller has registered none of that name."""
        found = self._by_caller.get(caller, {}).get(name)
        if found is None:
            raise InvalidInput(f"shared_memory_region: {name!r:.100} is not registered")
        return found

    def status(self, caller: str, name: str | None) -> list[dict[str, Any]]:
        own = self._by_caller.get(caller, {})
        return [self.get(caller, name).status] if name is not None else [region.status for region in own.values()]
