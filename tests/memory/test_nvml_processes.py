"""A broker whose NVML lacks something, fails, or is slow, with real processes. See `tests/fake_nvml.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import zoo
from tests.support import ROOT, Running, tables, toy, wait_until

FRAME = np.zeros((8, 8, 3), np.uint8)
A, B = "GPU-aaaa-1111", "GPU-bbbb-2222"
MEMORY, LIST, HANDLE = "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetHandleByUUID"
KEYS: dict[str, Any] = {
    "module": "tests.fake_nvml", "device": "cuda", "footprint": "measured", "state_dir": "state", "vram_budget_gb": 1.0,
}  # fmt: skip

Start = Callable[..., Running]


def slow(*values: Any) -> Any:
    """A case of a test for the long run: the others of the test go the same way."""
    return pytest.param(*values, marks=pytest.mark.slow)


class Zoo:
    """A broker, and what its NVML says."""

    def __init__(self, broker: Start, models: list[dict[str, Any]] | str, **keys: Any) -> None:
        self._said: dict[str, Any] = {"gpus": keys.pop("gpus", [{"uuid": A}]), **keys.pop("says", {})}
        self.running = broker(models, start=False, **{**KEYS, **keys})
        self.say()

    def say(self, **more: Any) -> None:
        self._said |= more
        new = self.running.folder / "new"
        new.write_text(json.dumps(self._said))
        os.replace(new, self.running.folder / "nvml.json")

    def client(self) -> zoo.Client:
        if self.running.process is None:
            self.running.start()
        return self.running.client()

    def log(self) -> str:
        return self.running.log()


def ps(client: zoo.Client, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(row for row in client.processes() if row["name"] == name)
    return found


def device(client: zoo.Client, n: int = 0) -> dict[str, Any]:
    row: dict[str, Any] = client.get_status()["devices"][n]
    return row


def test_a_process_is_charged_what_nvml_tells(broker: Start) -> None:
    machine = Zoo(broker, [toy("a", vram_mb=50)], says={"use_mb": {"a": 333}})
    client = machine.client()
    client.infer("a", FRAME)
    assert ps(client, "a")["vram_mb"] == ps(client, "a")["used_mb"] == 333
    wait_until(lambda: device(client)["device_used_mb"] == 333, what="the device shows it")
    client.unload("a")
    wait_until(lambda: device(client)["device_used_mb"] == 0, what="and that it is gone")
    assert "NVML" not in machine.log()


@pytest.mark.parametrize("processes", ["foreign", "unsized", "none"])
def test_without_figures_of_processes_a_load_is_the_rise_of_the_whole_device(broker: Start, processes: str) -> None:
    machine = Zoo(
        broker,
        [toy("a", vram_mb=50, options={"load_seconds": 0.3})],
        says={"use_mb": {"a": 333}, "processes": processes},
    )
    client = machine.client()
    wait_until(lambda: device(client)["device_used_mb"] == 0, what="read before the load")
    client.infer("a", FRAME)
    wait_until(lambda: ps(client, "a")["vram_mb"] == 333 or None, what="charged")
    assert ps(client, "a")["used_mb"] is None, "unknown, and not 0"
    client.unload("a")
    assert device(client)["used_mb"] == 0


@pytest.mark.parametrize("errors", [{MEMORY: 3, LIST: 3}, slow({MEMORY: 3}), slow({LIST: 3})])
def test_what_a_device_never_tells_is_warned_of_once_and_the_device_serves(
    broker: Start, errors: dict[str, int]
) -> None:
    machine = Zoo(broker, [toy("a", vram_mb=600), toy("b", vram_mb=600)], says={"errors": errors})
    client = machine.client()
    for name in ("a", "b", "a"):
        client.infer(name, FRAME)
    if LIST in errors and MEMORY in errors:
        assert ps(client, "a")["vram_mb"] == 600, "as declared"
        assert ps(client, "a")["used_mb"] is None
    if MEMORY in errors:
        assert device(client)["device_used_mb"] is device(client)["device_total_mb"] is None
        said = subprocess.run(
            [sys.executable, "-m", "zoo.cli", "status", "--endpoint", machine.running.endpoint],
            capture_output=True, text=True, check=True, cwd=ROOT,
        )  # fmt: skip
        assert "unknown of unknown in use by all" in said.stdout
    time.sleep(1.2)  # housekeeping has looked again
    wait_until(lambda: machine.log().count("never tells") == 1)
    wait_until(lambda: "Not Supported" in machine.log())


@pytest.mark.parametrize(
    ("call", "error"),
    [(MEMORY, 15), (LIST, "boom")]
    + [slow(MEMORY, error) for error in (3, 999, "boom")]
    + [slow(LIST, error) for error in (3, 15, 999)],
)
def test_an_error_of_a_device_that_worked_stops_new_loads_there_and_nothing_else(
    broker: Start, call: str, error: Any
) -> None:
    models = [toy("a", device="cuda:0"), toy("b", device="cuda:0"), toy("c", device="cuda:1")]
    gpus = [{"uuid": A, "models": ["a", "b"]}, {"uuid": B, "models": ["c"]}]
    devices = tables("devices", [{"name": f"cuda:{n}", "kind": "cuda", "budget_gb": 1} for n in (0, 1)])
    machine = Zoo(broker, tables("models", models) + devices, gpus=gpus)
    client = machine.client()
    client.infer("a", FRAME)
    machine.say(errors={f"{call} {A}": error})
    wait_until(lambda: "cuda:0 cannot be read" in machine.log(), what="noticed")
    assert device(client)["device_used_mb"] is None
    client.infer("a", FRAME)
    client.infer("c", FRAME)
    with pytest.raises(zoo.DeadlineExceeded, match="nothing is started on cuda:0: NVML: "):
        client.infer("b", FRAME, timeout=0.5)
    assert any("nothing is started on cuda:0" in line for line in client.explain("b"))
    machine.say(errors={})
    client.infer("b", FRAME)
    wait_until(lambda: "cuda:0 can be read again" in machine.log())
    assert device(client)["device_used_mb"] is not None


def test_memory_is_not_back_while_the_device_cannot_be_read(broker: Start) -> None:
    machine = Zoo(broker, [toy("a", vram_mb=100)])
    client = machine.client()
    client.infer("a", FRAME)
    machine.say(errors={MEMORY: 15})
    wait_until(lambda: "cannot be read" in machine.log(), what="noticed")
    os.kill(ps(client, "a")["pid"], 9)
    wait_until(lambda: ps(client, "a")["state"] == "evicting", what="gone")
    assert device(client)["used_mb"] == 100
    machine.say(errors={})
    wait_until(lambda: device(client)["used_mb"] == 0, what="seen free")


@pytest.mark.slow
def test_a_slow_driver_delays_no_warm_request_and_no_start_for_long(broker: Start) -> None:
    machine = Zoo(broker, [toy("a", vram_mb=100), toy("b", vram_mb=1000)])
    client = machine.client()
    client.infer("a", FRAME)
    wait_until(lambda: device(client)["device_used_mb"] == 100, what="read")
    machine.say(delays={MEMORY: 2.0})
    end, slowest, calls = time.monotonic() + 5, 0.0, 0
    while time.monotonic() < end:
        began, calls = time.monotonic(), calls + 1
        client.infer("a", FRAME, **({"do": "grow", "mb": 8} if calls < 10 else {}))
        slowest = max(slowest, time.monotonic() - began)
    assert slowest < 1, "while each call of the driver takes 2 s"
    client.infer("b", FRAME)  # takes the room of the other
    assert device(client)["used_mb"] == 1000


@pytest.mark.slow
def test_a_driver_that_hangs_is_gone_on_without(broker: Start) -> None:
    machine = Zoo(broker, [toy("a", vram_mb=600), toy("b", vram_mb=600)], says={"use_mb": {"a": 600, "b": 600}})
    client = machine.client()
    client.infer("a", FRAME)
    machine.say(delays={MEMORY: 60.0})
    client.infer("b", FRAME)
    assert any("goes by what is charged alone" in line for line in client.explain())
    machine.running.stop()


# ---------------------------------------------------------------- which device


def shown(machine: Zoo, name: str) -> dict[str, Any]:
    names = ["CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"]
    found: dict[str, Any] = machine.client().infer(name, FRAME, do="environment", names=names)
    return found


@pytest.mark.parametrize(
    ("setting", "uuid"),
    [(None, A), ("1,0", B), ("GPU-b", B), ("MIG-2", "MIG-2"), slow("1", B), slow(B, B), slow("0,5", A)],
)
def test_a_worker_sees_the_device_that_is_measured_and_no_other(broker: Start, setting: str | None, uuid: str) -> None:
    gpus = [{"uuid": A}, {"uuid": B}, {"uuid": "GPU-c", "parts": ["MIG-1", "MIG-2"]}]
    says = {"errors": {f"{MEMORY} {other}": 15 for other in {A, B, "GPU-c", "MIG-1", "MIG-2"} - {uuid}}}
    environment = {} if setting is None else {"CUDA_VISIBLE_DEVICES": setting}
    machine = Zoo(broker, [toy("a")], gpus=gpus, says=says, environment=environment)
    expected = {"device": "cuda:0", "CUDA_VISIBLE_DEVICES": uuid, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert shown(machine, "a") == expected
    assert device(machine.client())["device_total_mb"] == 8000, "read, of that device"


def test_the_second_device_is_the_second_that_is_visible(broker: Start) -> None:
    devices = tables("devices", [{"name": f"cuda:{n}", "kind": "cuda", "budget_gb": 1} for n in (0, 1)])
    models = [toy("a", device="cuda:0"), toy("b", device="cuda:1")]
    machine = Zoo(
        broker,
        tables("models", models) + devices,
        gpus=[{"uuid": A}, {"uuid": B}],
        environment={"CUDA_VISIBLE_DEVICES": "1,0"},
    )
    assert [shown(machine, name)["CUDA_VISIBLE_DEVICES"] for name in ("a", "b")] == [B, A]
    assert shown(machine, "b")["device"] == "cuda:0"


def test_on_the_cpu_a_worker_sees_no_device(broker: Start) -> None:
    machine = Zoo(broker, [toy("a")], device="cpu")
    assert shown(machine, "a")["CUDA_VISIBLE_DEVICES"] == ""


NONE = [
    ({"environment": {"CUDA_VISIBLE_DEVICES": ""}}, "CUDA_VISIBLE_DEVICES='' hides all 1"),
    ({"environment": {"CUDA_VISIBLE_DEVICES": "-1"}}, "CUDA_VISIBLE_DEVICES='-1' hides all 1"),
    ({"says": {"errors": {"nvmlInit": 9}}}, "Driver Not Loaded"),
    ({"says": {"errors": {"nvmlInit": 12}}}, "NVML Shared Library Not Found"),
    ({"says": {"errors": {"nvmlDeviceGetCount": 4}}}, "Insufficient Permissions"),
    ({"gpus": []}, "NVML finds no device"),
]


@pytest.mark.parametrize(("keys", "why"), [*NONE[:1], *NONE[-2:], *(slow(*one) for one in NONE[1:-2])])
def test_auto_falls_to_the_cpu_and_says_why(broker: Start, keys: dict[str, Any], why: str) -> None:
    machine = Zoo(broker, [toy("a")], device="auto", **keys)
    assert shown(machine, "a")["device"] == "cpu"
    (line,) = [line for line in machine.log().splitlines() if "loaded on the CPU" in line]
    assert "WARNING" in line
    assert why in line


@pytest.mark.parametrize(("keys", "why"), NONE)
def test_cuda_that_is_not_there_is_refused_and_says_why(broker: Start, keys: dict[str, Any], why: str) -> None:
    machine = Zoo(broker, [toy("a")], **keys)
    machine.running.start(wait=False)
    assert machine.running.process is not None
    assert machine.running.process.wait(30) != 0
    wait_until(lambda: "there is no CUDA device 'cuda:0' on this machine" in machine.log())
    wait_until(lambda: why in machine.log())
    assert "Traceback" not in machine.log()
