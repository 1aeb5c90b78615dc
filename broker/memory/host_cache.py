"""Copies of loaded models in host memory, by which they come back without being read and parsed. Keeps descriptors.

A copy is a sealed memfd that a worker of ours has made of the model that it had loaded (`workers/copies.py`). It is
given to a worker of the same model, weights, options and device, and to no other, so it is trusted as far as the
model's own code and weights are, and no further. All together never have more than `limit_bytes`: the ones that were
not used for longest go first.

It is used with the very same adapter code, and never given to or taken from a client. Copies are host memory beside
every budget. One that a worker cannot use is dropped and the weights are loaded; one on which a process died or hung
fails that load, and the next has no copy.
"""

from __future__ import annotations

import fcntl
import os
from collections import OrderedDict

import msgspec

from zoo.wire import arena


class ModelCopy(msgspec.Struct, frozen=True):
    """`version`: of weights, adapter and options, as in `footprints.version`."""

    version: str
    fd: int
    size: int


class Copies:
    """By (model, device)."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._kept: OrderedDict[tuple[str, str], ModelCopy] = OrderedDict()  # not used for longest first
        self._none: dict[tuple[str, str], str] = {}  # the version of which no copy can be made

    @property
    def used_bytes(self) -> int:
        return sum(kept.size for kept in list(self._kept.values()))

    def models(self) -> dict[str, float]:
        """MB by model, the ones used last first."""
        found: dict[str, float] = {}
        for (model, _), kept in reversed(self._kept.items()):
            found[model] = round(found.get(model, 0.0) + kept.size / (1 << 20), 1)
        return found

    def wanted_bytes(self, model: str, device: str, version: str) -> int:
        """The largest copy that is wanted of the model; 0 when none is, or none can be made."""
        return 0 if self._none.get((model, device)) == version else self.limit_bytes

    def get(self, model: str, device: str, version: str) -> int | None:
        """The descriptor of its copy, which stays ours. One of another version is dropped."""
        kept = self._kept.get((model, device))
        if kept is None:
            return None
        if kept.version != version:
            self.drop(model, device)
            return None
        self._kept.move_to_end((model, device))
        return kept.fd

    def keep(self, model: str, device: str, version: str, fd: int) -> int:
        """Takes over a copy, and drops what there is no room for any more. Gives its size in bytes.

        Raises:
            ArenaRefused: a seal is missing, or it is larger than all copies may be; it is closed then.
        """
        try:
            size = arena.check_sealed(fd, self.limit_bytes)
            if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE:
                raise arena.ArenaRefused("a copy lacks the seal WRITE")
        except arena.ArenaRefused:
            os.close(fd)
            raise
        self.drop(model, device)
        self._kept[model, device] = ModelCopy(version, fd, size)
        self.resize(self.limit_bytes)
        return size

    def give_up(self, model: str, device: str, version: str) -> bool:
        """No copy can be made of this version. False when that was known."""
        known = self._none.get((model, device)) == version
        self._none[model, device] = version
        return not known

    def resize(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        while self.used_bytes > limit_bytes:
            self.drop(*next(iter(self._kept)))

    def drop(self, model: str, device: str) -> None:
        """Its memory is free when no worker maps it any more."""
        kept = self._kept.pop((model, device), None)
        if kept is not None:
            os.close(kept.fd)

    def forget(self, model: str) -> None:
        """The model is gone, or will be loaded otherwise from now on."""
        for key in [key for key in {*self._kept, *self._none} if key[0] == model]:
            self.drop(*key)
            self._none.pop(key, None)

    def close(self) -> None:
        self.resize(0)
