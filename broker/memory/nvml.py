"""NVML: opened, opened again when it has failed, and which of its devices CUDA shows a worker.

What `CUDA_VISIBLE_DEVICES` hides does not exist for the broker. CUDA's numbers and NVML's are not the same ones, so a
device is known by its UUID, and a worker is given the UUID of its own. A number in `CUDA_VISIBLE_DEVICES` counts in the
order of the PCI bus, as `nvidia-smi` does; CUDA's own default, the fastest first, is not known to NVML.

On one H200 (driver 580.159.04, CUDA 13.0) the list of devices was CUDA's own for seven settings of
`CUDA_VISIBLE_DEVICES`; tests/gpu checks it.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import msgspec


class Unavailable(Exception):
    """There is no CUDA device, and why, in NVML's words."""


class Gpu(msgspec.Struct, frozen=True):
    """`parts`: UUIDs of its MIG instances, which CUDA shows in its place; empty where it is not divided."""

    uuid: str
    parts: tuple[str, ...] = ()


def words(error: BaseException) -> str:
    return str(error) or type(error).__name__


class Nvml:
    """NVML, initialised. May be used by several threads.

    Attributes:
        calls: the functions of the library.
        generation: counts how often it was opened.

    Raises:
        Unavailable: it cannot be used.
    """

    def __init__(self) -> None:
        try:
            import pynvml

            pynvml.nvmlInit()
        except Exception as e:
            raise Unavailable(f"NVML cannot be used: {words(e)}") from e
        self.calls: Any = pynvml
        self.generation = 1
        self._lock = threading.Lock()
        self._handles: dict[str, Any] = {}

    def renew(self, seen: int) -> None:
        """Opens NVML again, unless that has been done since `generation` was `seen`. Raises what NVML raises."""
        with self._lock:
            if self.generation == seen:
                with contextlib.suppress(Exception):
                    self.calls.nvmlShutdown()
                self.calls.nvmlInit()
                self._handles = {}
                self.generation += 1

    def handle(self, uuid: str) -> Any:
        """Of a GPU, or of a part of one. Raises what NVML raises."""
        handles = self._handles
        if uuid not in handles:
            handles[uuid] = self.calls.nvmlDeviceGetHandleByUUID(uuid)
        return handles[uuid]

    def gpus(self) -> list[Gpu]:
        """All there are, in the order of the PCI bus.

        Raises:
            Unavailable: they cannot be listed.
        """
        nvml, found = self.calls, []
        try:
            for index in range(nvml.nvmlDeviceGetCount()):
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                found.append(Gpu(_text(nvml.nvmlDeviceGetUUID(handle)), self._parts(handle)))
        except Exception as e:
            raise Unavailable(f"NVML cannot list the devices: {words(e)}") from e
        return found

    def _parts(self, handle: Any) -> tuple[str, ...]:
        nvml = self.calls
        try:
            if nvml.nvmlDeviceGetMigMode(handle)[0] != 1:
                return ()
            most = nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
        except Exception:  # most devices cannot be divided, and say so by an error
            return ()
        parts = []
        for n in range(most):
            with contextlib.suppress(Exception):  # there is none of that number
                parts.append(_text(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, n))))
        return tuple(parts)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def visible(gpus: list[Gpu], setting: str | None) -> list[str]:
    """UUIDs of the devices that CUDA shows, in its order: "cuda:N" is the one at N.

    As CUDA reads its setting: the first entry that names no device ends the list, one that is named twice empties it,
    a UUID may be cut short. A GPU that is divided stands for its parts.
    """
    if setting is None:
        return [uuid for gpu in gpus for uuid in gpu.parts or (gpu.uuid,)]
    chosen: list[tuple[str, ...]] = []
    for entry in setting.split(","):
        found = _named(gpus, entry.strip())
        if found is None:
            break
        if found in chosen:
            return []
        chosen.append(found)
    return [uuid for uuids in chosen for uuid in uuids]


def _named(gpus: list[Gpu], entry: str) -> tuple[str, ...] | None:
    if entry.startswith("MIG-"):
        parts = [part for gpu in gpus for part in gpu.parts if part.startswith(entry)]
        return (parts[0],) if len(parts) == 1 else None
    if entry.startswith("GPU-"):
        whole = [gpu for gpu in gpus if gpu.uuid.startswith(entry)]
    else:
        number = _number(entry)
        whole = gpus[number : number + 1] if number is not None else []
    return (whole[0].parts or (whole[0].uuid,)) if len(whole) == 1 else None


def _number(entry: str) -> int | None:
    """What it begins with, as `strtoul` reads it; None for no number, or one below 0."""
    digits = entry.removeprefix("+")
    end = next((n for n, c in enumerate(digits) if c not in "0123456789"), len(digits))
    return int(digits[:end]) if end else None
