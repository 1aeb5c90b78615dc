"""What is read of a CUDA device, with a stand-in for NVML that fails in every way at every call."""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from broker.memory.measuring import Measuring, Reading
from broker.memory.meters import CudaMeter, Figures, Machine, NoReading, open_devices
from broker.memory.nvml import Gpu, visible
from broker.scheduler.capacity.ledger import Device
from tests.fake_nvml import Nvml
from tests.support import wait_until

A, B, C = "GPU-aaaa-1111", "GPU-aabb-2222", "GPU-cccc-3333"
MEMORY, LIST, HANDLE = "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetHandleByUUID"

State = dict[str, Any]


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> State:
    """Of the stand-in, which is the `pynvml` of this test."""
    state: State = {"gpus": [{"uuid": A}, {"uuid": B}]}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(lambda: state))  # type: ignore[arg-type]
    return state


@pytest.fixture
def nvml(state: State) -> Nvml:
    found: Any = sys.modules["pynvml"]
    assert isinstance(found, Nvml)
    return found


@pytest.fixture
def meter(state: State) -> CudaMeter:
    return Machine().meter("cuda:0")


def test_a_device_tells_its_memory_and_its_processes(meter: CudaMeter, state: State) -> None:
    state["gpus"][0]["others_mb"] = 700
    assert meter.read([os.getpid()]) == Figures(700, 8000, {}, frozenset())


@pytest.mark.parametrize("error", [3, 4, 999, 15, "boom"])
def test_a_driver_that_never_lists_processes_is_no_error(meter: CudaMeter, state: State, error: Any) -> None:
    state["errors"] = {LIST: error}
    figures = meter.read([1])
    assert (figures.used_mb, figures.own_mb, figures.listed) == (0, {}, None)
    assert "which process" in figures.untold


@pytest.mark.parametrize("error", [3, 4])
def test_a_device_that_never_tells_its_memory_is_no_error(meter: CudaMeter, state: State, error: int) -> None:
    state["errors"] = {MEMORY: error}
    figures = meter.read([1])
    assert (figures.used_mb, figures.total_mb, figures.listed) == (None, None, frozenset())
    assert "how much memory is used" in figures.untold
    state["gpus"][0]["total_mb"] = 0
    state["errors"] = {}
    assert meter.read([1]).used_mb is None


@pytest.mark.parametrize("call", [MEMORY, LIST])
@pytest.mark.parametrize("error", [1, 3, 15, 999, "boom"])
def test_an_error_of_what_has_worked_is_one(meter: CudaMeter, state: State, call: str, error: Any) -> None:
    meter.read([1])
    state["errors"] = {f"{call} {A}": error}
    with pytest.raises(NoReading, match="NVML: "):
        meter.read([1])
    state["errors"] = {}
    meter.renew()
    assert meter.read([1]).used_mb == 0


@pytest.mark.parametrize("error", [15, 999, "boom"])
def test_a_device_that_fails_from_the_beginning_has_no_reading(meter: CudaMeter, state: State, error: Any) -> None:
    for call in (HANDLE, MEMORY):
        state["errors"] = {call: error}
        with pytest.raises(NoReading):
            meter.read([1])


def test_nvml_is_opened_anew_once_for_all_devices(state: State, nvml: Nvml) -> None:
    machine = Machine()
    one, other = machine.meter("cuda:0"), machine.meter("cuda:1")
    one.read(())
    other.read(())
    assert nvml.inits == 1
    one.renew()
    assert nvml.inits == 2
    other.renew()
    assert nvml.inits == 2, "that has been done"
    assert other.read(()).total_mb == 8000


@pytest.mark.parametrize("call", ["nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetUUID"])
@pytest.mark.parametrize("error", [9, 12, "boom"])
def test_a_machine_without_a_device_says_why(state: State, call: str, error: Any) -> None:
    state["errors"] = {call: error}
    machine = Machine()
    assert machine.uuids == []
    assert {9: "Driver Not Loaded", 12: "Library Not Found", "boom": "boom"}[error] in machine.why_none
    with pytest.raises(LookupError, match="no CUDA device 'cuda:0' on this machine: NVML"):
        open_devices([Device("cuda:0", "cuda", 1.0)], Machine())


def test_a_machine_without_nvml_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pynvml" in Machine().why_none


# ---------------------------------------------------------------- which device


MIG = (Gpu(A, ("MIG-1", "MIG-2")), Gpu(B))
PLAIN = (Gpu(A), Gpu(B), Gpu(C))


@pytest.mark.parametrize(
    ("gpus", "setting", "found"),
    [
        (PLAIN, None, [A, B, C]),
        (PLAIN, "1", [B]),
        (PLAIN, "0,1", [A, B]),
        (PLAIN, "1,0", [B, A]),
        (PLAIN, " 2 , 0 ", [C, A]),
        (PLAIN, "", []),
        (PLAIN, "-1", []),
        (PLAIN, "NoDevFiles", []),
        (PLAIN, "0,-1,1", [A]),
        (PLAIN, "0,7,1", [A]),
        (PLAIN, "1,1", []),
        (PLAIN, "0,x,1", [A]),
        (PLAIN, "2gpu", [C]),
        (PLAIN, "\u0661", []),
        (PLAIN, A, [A]),
        (PLAIN, "GPU-c", [C]),
        (PLAIN, f"{C},{A}", [C, A]),
        (PLAIN, "GPU-aa", []),
        (PLAIN, "GPU-cc,GPU-zz,GPU-aaaa", [C]),
        (MIG, None, ["MIG-1", "MIG-2", B]),
        (MIG, "MIG-2", ["MIG-2"]),
        (MIG, "MIG-2,MIG-1", ["MIG-2", "MIG-1"]),
        (MIG, "1", [B]),
        (MIG, "0", ["MIG-1", "MIG-2"]),
        (MIG, "MIG-", []),
        ((), "0", []),
    ],
)
def test_what_is_visible_is_what_cuda_shows(gpus: Sequence[Gpu], setting: str | None, found: list[str]) -> None:
    assert visible(list(gpus), setting) == found


def test_a_hidden_device_does_not_exist(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    state["gpus"][1]["others_mb"] = 55
    meter = Machine().meter("cuda:0")
    assert (meter.cuda, meter.read(()).used_mb) == (B, 55)
    with pytest.raises(LookupError, match="1 are there, as far as CUDA_VISIBLE_DEVICES='1' shows them"):
        Machine().meter("cuda:1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert Machine().why_none == "CUDA_VISIBLE_DEVICES='-1' hides all 2 that are there"


def test_a_part_of_a_device_is_measured_by_itself(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    state["gpus"][0]["parts"] = ["MIG-1", "MIG-2"]
    state["errors"] = {f"{MEMORY} {A}": 3}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-2")
    meter = Machine().meter("cuda:0")
    assert (meter.cuda, meter.read(()).total_mb) == ("MIG-2", 8000)


# ---------------------------------------------------------------- the thread


class Script:
    """A meter that does what it is told: `act()` before each answer."""

    cuda: str | None = None

    def __init__(self) -> None:
        self.act: Callable[[], object] = lambda: None
        self.renewed = 0
        self.asked: list[tuple[list[int], list[int]]] = []

    def read(self, pids: Sequence[int], more: Sequence[int] = ()) -> Figures:
        self.asked.append((list(pids), list(more)))
        self.act()
        return Figures(1.0, 2.0, {})

    def renew(self) -> None:
        self.renewed += 1


def taken(measuring: Measuring, most: int = 1) -> list[Reading]:
    found: list[Reading] = []
    wait_until(lambda: found.extend(measuring.take()) or len(found) >= most, what="readings come")
    return found


def test_a_look_that_is_asked_for_begins_after_that() -> None:
    script, before = Script(), time.monotonic()
    measuring = Measuring({"d": script})
    measuring.ask("d", [7], [8, 9])
    (reading,) = taken(measuring)
    assert reading.figures == Figures(1.0, 2.0, {})
    assert before <= reading.began <= reading.ended <= time.monotonic()
    assert script.asked == [([7], [8, 9])]
    measuring.close()


def test_what_is_asked_for_during_a_look_is_the_next_one() -> None:
    script, gate, inside = Script(), threading.Event(), threading.Event()
    measuring = Measuring({"d": script})
    script.act = lambda: (inside.set(), gate.wait(10))
    measuring.ask("d", [1])
    assert inside.wait(10)
    for pid in (2, 3):
        measuring.ask("d", [pid])
    asked = time.monotonic()
    wait_until(lambda: measuring.is_slow("d"), what="nothing waits for it any more")
    gate.set()
    first, second = taken(measuring, 2)
    assert first.began < asked < second.began
    assert script.asked == [([1], []), ([2, 3], [])]
    measuring.close()


def test_a_look_that_fails_is_a_reading_and_the_meter_is_opened_anew() -> None:
    script = Script()
    measuring = Measuring({"d": script})

    def fail() -> None:
        raise RuntimeError("no more")

    script.act = fail
    measuring.ask("d")
    (reading,) = taken(measuring)
    assert (reading.figures, reading.why) == (None, "no more")
    measuring.ask("d")
    (reading,) = taken(measuring)
    assert script.renewed == 1
    script.act = lambda: None
    measuring.ask("d")
    (reading,) = taken(measuring)
    assert reading.figures is not None
    measuring.ask("d")
    taken(measuring)
    assert script.renewed == 2, "not once it has worked again"
    measuring.close()


def test_a_device_that_hangs_holds_up_no_other_and_no_end() -> None:
    hanging, other, gate = Script(), Script(), threading.Event()
    hanging.act = gate.wait
    measuring = Measuring({"d": hanging, "e": other})
    for device in ("d", "e"):
        measuring.ask(device)
    (reading,) = taken(measuring)
    assert reading.device == "e"
    measuring.close()
    gate.set()


def test_every_error_at_every_call_of_a_look_is_survived_by_its_thread(state: State) -> None:
    calls = (MEMORY, LIST, HANDLE, "nvmlInit", "nvmlShutdown")
    measuring = Measuring({"d": Machine().meter("cuda:0")})
    for call, error in itertools.product(calls, (15, "boom")):
        state["errors"] = {call: error, MEMORY: error}
        measuring.ask("d")
        assert taken(measuring)[0].figures is None
        state["errors"] = {}
        measuring.ask("d")
        assert taken(measuring)[0].figures is not None
    measuring.close()
