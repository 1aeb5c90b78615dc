"""What processes and devices really use. Reads only; decides nothing.

Host memory is counted as a process's unique set size: what killing it gives back. CUDA memory comes from NVML.
"""

from __future__ import annotations

from typing import Any, Protocol

from broker.container import Container
from broker.ledger import Device
from zoo.smaps import unique_mb

MB = 1 << 20


class Meter(Protocol):
    """`used_mb(pid)`: the process's own memory on the device, None where the driver does not say."""

    def used_mb(self, pid: int) -> float | None: ...

    def device_mb(self) -> tuple[float, float]:
        """(used, total) of the whole device."""

    def released(self, pid: int) -> bool:
        """The device does not show the (ended) process any more."""


def _ended(pid: int) -> bool:
    """The process is gone, or a zombie: its memory is free either way."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            return f.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except (OSError, IndexError):
        return True


class HostMeter:
    """Host memory: the machine's, or what a container leaves of it."""

    def __init__(self, container: Container | None = None) -> None:
        self._container = container or Container()

    def used_mb(self, pid: int) -> float | None:
        return unique_mb(pid)

    def device_mb(self) -> tuple[float, float]:
        return self._container.memory_mb()

    def released(self, pid: int) -> bool:
        return _ended(pid)


class CudaMeter:
    """One CUDA device, through NVML."""

    def __init__(self, nvml: Any, index: int) -> None:
        self._nvml = nvml
        self._handle = nvml.nvmlDeviceGetHandleByIndex(index)

    def used_mb(self, pid: int) -> float | None:
        for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle):
            if process.pid == pid and process.usedGpuMemory is not None:
                return float(process.usedGpuMemory) / MB
        return None

    def device_mb(self) -> tuple[float, float]:
        memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
        return memory.used / MB, memory.total / MB

    def released(self, pid: int) -> bool:
        listed = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        return all(process.pid != pid for process in listed)


def _nvml() -> Any | None:
    """NVML, initialised; None where there is no NVIDIA driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return pynvml if pynvml.nvmlDeviceGetCount() > 0 else None
    except Exception:  # no library, no driver, no device: all the same to us
        return None


def open_devices(devices: list[Device]) -> dict[str, Meter]:
    """A meter per device.

    Raises:
        LookupError: a CUDA device is configured that this machine does not have.
    """
    meters: dict[str, Meter] = {}
    nvml = _nvml() if any(d.kind == "cuda" for d in devices) else None
    for device in devices:
        if device.kind == "cpu":
            meters[device.name] = HostMeter()
            continue
        index = int(device.name.partition(":")[2] or 0)
        if nvml is None or index >= nvml.nvmlDeviceGetCount():
            raise LookupError(f"there is no CUDA device {device.name!r} on this machine")
        meters[device.name] = CudaMeter(nvml, index)
    return meters


def has_cuda() -> bool:
    return _nvml() is not None
