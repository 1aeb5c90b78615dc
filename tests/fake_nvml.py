"""A stand-in for NVML, and a broker that has it: `python -m tests.fake_nvml` for `python -m zoo.broker`.

What it says is in the file `nvml.json` beside config.toml, which may change at any time:

    gpus       [{"uuid", "total_mb" = 8000, "others_mb" = 0, "parts": [UUIDs of its MIG], "models": [names there]}]
    use_mb     model → MB that each of its processes uses (100)
    processes  "ours" (the driver's figures), "foreign" (another container's), "unsized" (WSL) or "none"
    errors     function, or "function UUID" → an NVML code, or "boom" for an exception of another kind
    delays     the same → seconds
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from zoo import broker

MB = 1 << 20
WORDS = {
    1: "Uninitialized",
    3: "Not Supported",
    4: "Insufficient Permissions",
    6: "Not Found",
    9: "Driver Not Loaded",
    12: "NVML Shared Library Not Found",
    15: "GPU is lost",
    999: "Unknown Error",
}


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(WORDS[value])
        self.value = value


class Nvml:
    """The functions of `pynvml` that the broker calls. `state()`: see the module's docstring."""

    def __init__(self, state: Callable[[], dict[str, Any]]) -> None:
        self._state = state
        self._open = 0
        self.inits = 0

    def _enter(self, call: str, uuid: str = "") -> dict[str, Any]:
        state = self._state()
        for name in (call, f"{call} {uuid}"):
            time.sleep(state.get("delays", {}).get(name, 0.0))
            error = state.get("errors", {}).get(name)
            if error == "boom":
                raise RuntimeError("boom")
            if error is not None:
                raise NVMLError(error)
        if not self._open and call != "nvmlInit":
            raise NVMLError(1)
        return state

    def nvmlInit(self) -> None:
        self._enter("nvmlInit")
        self._open += 1
        self.inits += 1

    def nvmlShutdown(self) -> None:
        self._enter("nvmlShutdown")
        self._open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self._enter("nvmlDeviceGetCount").get("gpus", []))

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        uuid: str = self._enter("nvmlDeviceGetHandleByIndex")["gpus"][index]["uuid"]
        return uuid

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        state = self._enter("nvmlDeviceGetHandleByUUID", uuid)
        if not any(uuid in (gpu["uuid"], *gpu.get("parts", ())) for gpu in state["gpus"]):
            raise NVMLError(6)
        return uuid

    def nvmlDeviceGetUUID(self, handle: str) -> str:
        self._enter("nvmlDeviceGetUUID", handle)
        return handle

    def nvmlDeviceGetMigMode(self, handle: str) -> list[int]:
        self._enter("nvmlDeviceGetMigMode", handle)
        if "parts" not in self._gpu(handle):
            raise NVMLError(3)
        return [1, 1]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: str) -> int:
        self._enter("nvmlDeviceGetMaxMigDeviceCount", handle)
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: str, index: int) -> str:
        self._enter("nvmlDeviceGetMigDeviceHandleByIndex", handle)
        parts: list[str] = self._gpu(handle)["parts"]
        if index >= len(parts):
            raise NVMLError(6)
        return parts[index]

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        self._enter("nvmlDeviceGetMemoryInfo", handle)
        gpu = self._gpu(handle)
        used = gpu.get("others_mb", 0) + sum(mb for _, mb in self._ours(handle))
        return SimpleNamespace(used=int(used * MB), total=int(gpu.get("total_mb", 8000) * MB))

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[SimpleNamespace]:
        state = self._enter("nvmlDeviceGetComputeRunningProcesses", handle)
        how = state.get("processes", "ours")
        shift = 4_000_000 if how == "foreign" else 0
        return [
            SimpleNamespace(pid=pid + shift, usedGpuMemory=None if how == "unsized" else int(mb * MB))
            for pid, mb in self._ours(handle)
            if how != "none"
        ]

    def _gpu(self, uuid: str) -> dict[str, Any]:
        gpus: list[dict[str, Any]] = self._state()["gpus"]
        return next(gpu for gpu in gpus if uuid in (gpu["uuid"], *gpu.get("parts", ())))

    def _ours(self, uuid: str) -> list[tuple[int, float]]:
        """Workers of this process that have been told their model."""
        use, models = self._state().get("use_mb", {}), self._gpu(uuid).get("models")
        parents: dict[int, int] = {}
        names: dict[int, str] = {}
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                head, _, rest = Path(f"/proc/{entry}/stat").read_text().rpartition(")")
            except OSError:
                continue
            if rest.split()[0] not in "ZX":
                parents[int(entry)], names[int(entry)] = int(rest.split()[1]), head.partition("(")[2]
        found = []
        for pid, name in names.items():
            model = name.removeprefix("zoo:")
            near = {parents[pid], parents.get(parents[pid], 0)}
            if model != name and os.getpid() in near and (models is None or model in models):
                found.append((pid, float(use.get(model, 100))))
        return found


def _file() -> dict[str, Any]:
    state: dict[str, Any] = json.loads(Path("nvml.json").read_text())
    return state


if __name__ == "__main__":
    sys.modules["pynvml"] = Nvml(_file)  # type: ignore[assignment]
    sys.exit(broker.main())
