"""What processes and devices really use. Reads only; decides nothing. May block: threads call it, never the loop.

Host memory is counted as a process's unique set size: what killing it gives back. CUDA memory comes from NVML.
What a device does not tell is None, and no error: some never tell anything (`Figures`). An error of a device that has
told before is raised, as `NoReading`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from broker.memory.container import Container
from broker.memory.nvml import Nvml, Unavailable, visible, words
from broker.scheduler.capacity.ledger import Device
from zoo.system.smaps import unique_mb

MB = 1 << 20
SAMPLING_S = 0.005  # the most that reading one process after another may take, or one of them if that is longer
NEVER = {3, 4, 13, 25, 26}  # NVML: not supported, no permission, function not found, version mismatch, deprecated


class NoReading(Exception):
    """It could be read before, or may be soon."""


class Figures(msgspec.Struct, frozen=True):
    """One look at a device.

    Attributes:
        used_mb, total_mb: of the whole device; None where it never tells.
        own_mb: process id → MB of its own on the device, of those that were asked for and are told.
        listed: processes that the device shows; None where it lists none.
        untold: what it never tells, in words; "" where it tells everything.
        free_at_end: a process that has ended has no memory any more. Else a driver may take its time.
    """

    used_mb: float | None
    total_mb: float | None
    own_mb: dict[int, float]
    listed: frozenset[int] | None = None
    untold: str = ""
    free_at_end: bool = False


class Meter(Protocol):
    """`cuda`: the UUID by which a worker is shown the device, None for host memory."""

    cuda: str | None

    def read(self, pids: Sequence[int], more: Sequence[int] = ()) -> Figures:
        """Looks at the device and at `pids`; at `more` as far as time allows, the first first.

        Raises:
            NoReading, or anything else that a library or the system raises.
        """

    def renew(self) -> None:
        """The last reading failed: opens anew what may need it. Raises like `read`."""


class HostMeter:
    """Host memory: the machine's, or what a container leaves of it."""

    cuda: str | None = None

    def __init__(self, container: Container | None = None) -> None:
        self._container = container or Container()

    def read(self, pids: Sequence[int], more: Sequence[int] = ()) -> Figures:
        used, total = self._container.memory_mb()  # first: what grows meanwhile is then ours, not others'
        own_mb = {}
        end = time.monotonic() + SAMPLING_S
        for pid in dict.fromkeys((*pids, *more)):
            if pid not in pids and time.monotonic() >= end:
                break
            if (mb := unique_mb(pid)) is not None:
                own_mb[pid] = mb
        return Figures(used, total, own_mb, frozenset(), free_at_end=True)

    def renew(self) -> None: ...


class CudaMeter:
    """One CUDA device, through NVML. `cuda`: its UUID."""

    def __init__(self, nvml: Nvml, uuid: str) -> None:
        self.cuda: str | None = uuid
        self._uuid = uuid
        self._nvml = nvml
        self._generation = 0  # of NVML, at the last reading
        self._told: set[str] = set()  # what it has told before

    def renew(self) -> None:
        self._nvml.renew(self._generation)

    def read(self, pids: Sequence[int], more: Sequence[int] = ()) -> Figures:
        self._generation = self._nvml.generation
        try:
            return self._read({*pids, *more})
        except NoReading:
            if self._nvml.generation == self._generation:
                raise
        return self._read({*pids, *more})  # another device's trouble had NVML opened anew

    def _read(self, pids: set[int]) -> Figures:
        calls, untold = self._nvml.calls, []
        try:
            handle = self._nvml.handle(self._uuid)
        except Exception as e:
            raise NoReading(f"NVML: {words(e)}") from e
        memory, why = self._ask("memory", lambda: calls.nvmlDeviceGetMemoryInfo(handle))
        used, total = (memory.used / MB, memory.total / MB) if memory is not None else (0.0, 0.0)
        if total <= 0:
            untold.append(f"how much memory is used ({why or 'NVML says that it has none'})")
        processes, why = self._ask("processes", lambda: calls.nvmlDeviceGetComputeRunningProcesses(handle))
        if processes is None:
            untold.append(f"which process uses how much ({why})")
        own_mb: dict[int, float] = {}
        for process in processes or ():
            mb = process.usedGpuMemory
            if process.pid in pids and isinstance(mb, int) and 0 <= mb / MB <= (total or float("inf")):
                own_mb[process.pid] = own_mb.get(process.pid, 0.0) + mb / MB
        return Figures(
            used if total > 0 else None,
            total if total > 0 else None,
            own_mb,
            frozenset(process.pid for process in processes) if processes is not None else None,
            " and ".join(untold),
        )

    def _ask(self, what: str, call: Any) -> tuple[Any, str]:
        """(what NVML says, "") or (None, why it never does)."""
        try:
            said = call()
        except Exception as e:
            never = getattr(e, "value", None) in NEVER or isinstance(e, AttributeError | TypeError)
            # Not every driver lists processes, and those that do not say so by many different errors.
            if what not in self._told and (never or what == "processes"):
                return None, f"NVML: {words(e)}"
            raise NoReading(f"NVML: {words(e)}") from e
        self._told.add(what)
        return said, ""


class Machine:
    """The devices that there are. NVML is opened when it is first needed.

    Attributes:
        uuids: of the CUDA devices; "cuda:N" is the one at N.
        why_none: in words, where there is none; "" where there are some.
    """

    def __init__(self) -> None:
        self._setting = os.environ.get("CUDA_VISIBLE_DEVICES")
        self._nvml: Nvml | None = None
        self._why_none = ""

    @functools.cached_property
    def uuids(self) -> list[str]:
        try:
            self._nvml = Nvml()
            gpus = self._nvml.gpus()
        except Unavailable as e:
            self._why_none = str(e)
            return []
        found = visible(gpus, self._setting)
        if not gpus:
            self._why_none = "NVML finds no device"
        elif not found:
            self._why_none = f"CUDA_VISIBLE_DEVICES={self._setting!r} hides all {len(gpus)} that are there"
        return found

    @property
    def why_none(self) -> str:
        return "" if self.uuids else self._why_none

    def meter(self, name: str) -> CudaMeter:
        """Of a CUDA device.

        Raises:
            LookupError: there is none of that name.
        """
        index = 0
        with contextlib.suppress(ValueError):
            index = int(name.partition(":")[2] or 0)
        if 0 <= index < len(self.uuids) and self._nvml is not None:
            return CudaMeter(self._nvml, self.uuids[index])
        why = self.why_none
        if not why:
            why = f"{len(self.uuids)} are there"
            if self._setting is not None:
                why += f", as far as CUDA_VISIBLE_DEVICES={self._setting!r} shows them"
        raise LookupError(f"there is no CUDA device {name!r} on this machine: {why}")


def open_devices(devices: list[Device], machine: Machine) -> dict[str, Meter]:
    """A meter per device.

    Raises:
        LookupError: a CUDA device is configured that this machine does not have, or does not show; says why.
    """
    meters: dict[str, Meter] = {}
    for device in devices:
        if device.kind == "cpu":
            meters[device.name] = HostMeter()
        else:
            meters[device.name] = machine.meter(device.name)
    return meters
