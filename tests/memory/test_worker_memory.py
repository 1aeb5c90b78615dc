"""What means that memory ran out, what does not, and what a worker then does with a batch; and who killed a process."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.memory import oom_killer
from workers import inputs, memory
from workers.batch import Task, predict
from workers.models.base import Input, Spec
from zoo.errors import InvalidInput, LoadFailed
from zoo.wire import protocol


def made(module: str, name: str, base: type[Exception] = Exception) -> type[Exception]:
    return type(name, (base,), {"__module__": module})


CUDA = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.20 GiB is "
    "free. Including non-PyTorch memory, this process has 17.50 GiB memory in use. Of the allocated memory …"
)
CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
CONV = "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node. Failed to "

RAN_OUT: list[tuple[Exception, float]] = [
    (made("torch", "OutOfMemoryError", RuntimeError)(CUDA), 2560),
    (made("torch", "AcceleratorError", RuntimeError)("CUDA error: out of memory"), 0),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), 0),
    (RuntimeError(f"{CPU}8589934592 bytes. Error code 12 (Cannot allocate memory)"), 8192),
    (RuntimeError("std::bad_alloc"), 0),
    (made("onnxruntime.capi.onnxruntime_pybind11_state", "RuntimeException")(
        f"{CONV}allocate memory for requested buffer of size 104857600"), 100),
    (made("cv2", "error")("(-4:Insufficient memory) Failed to allocate 3145728 bytes in function 'OutOfMemory'"), 3),
    (MemoryError(), 0),
    (MemoryError("Unable to allocate 298. GiB for an array with shape (200000, 200000) and data type float64"), 305152),
    (MemoryError("Unable to allocate 8.00 EiB for an array with shape (1152921504606846976,)"), 1e9),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), 0),
]  # fmt: skip


@pytest.mark.parametrize(("error", "asked_mb"), RAN_OUT, ids=lambda x: type(x).__name__ if x else "")
def test_memory_that_ran_out_is_recognised_and_what_was_asked_for_is_read(error: Exception, asked_mb: float) -> None:
    short = memory.shortage(error, "cpu")
    assert short is not None
    assert short.asked_mb == pytest.approx(asked_mb)
    assert short.used_mb > 1
    wrapped = LoadFailed("the weights cannot be read")
    wrapped.__cause__ = error
    assert memory.shortage(wrapped, "cpu") is not None


@pytest.mark.parametrize(
    "error",
    [RuntimeError("expected scalar type Float but found Half"), ValueError("out of memory cards"), OSError("disk full"),
     LoadFailed("out of memory"), KeyError("memory")],
    ids=repr,
)  # fmt: skip
def test_other_errors_are_other_errors(error: Exception) -> None:
    assert memory.shortage(error, "cpu") is None


def test_what_an_adapter_says_itself_is_believed() -> None:
    error = InvalidInput("frame: it is too large")
    error.__cause__ = MemoryError()
    assert memory.shortage(error, "cpu") is None


def test_growth_is_told_once() -> None:
    growth = memory.Growth("cpu")
    assert not growth.is_news()
    ballast = np.ones(96 << 20, np.uint8)  # more than malloc ever takes from pages that are here already
    assert growth.is_news()
    assert not growth.is_news()
    del ballast


class Narrow:
    """Takes `most` inputs at once, and none of those that are 9."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.calls: list[int] = []

    def load(self, spec: Spec, device: str) -> None: ...

    def predict(self, items: list[Input]) -> list[Any]:
        self.calls.append(len(items))
        if len(items) > self.most or any(item.array == 9 for item in items):
            raise MemoryError("Unable to allocate 7.00 MiB for an array")
        return [{"value": int(item.array)} for item in items]


def tasks(*requests: list[int]) -> list[Task]:
    made = [Task(protocol.Job(number)) for number, _ in enumerate(requests)]
    for task, values in zip(made, requests, strict=True):
        task.given = inputs.Given([Input(np.array(value), {}) for value in values], None)
    return made


def test_a_batch_is_halved_until_it_fits() -> None:
    model, batch = Narrow(2), tasks([0], [1, 2], [3], [4])
    assert predict(model, "narrow", "cpu", batch) is True
    assert model.calls == [5, 2, 3, 1, 2]
    assert [[answer["value"] for answer in task.answers] for task in batch] == [[0], [1, 2], [3], [4]]


def test_who_runs_out_alone_fails_alone() -> None:
    batch = tasks([0], [9], [1])
    assert predict(Narrow(8), "narrow", "cpu", batch) is True
    assert [task.error and task.error[0] for task in batch] == [None, "out_of_memory", None]
    assert batch[1].error == (
        "out_of_memory",
        "narrow: memory ran out: MemoryError: Unable to allocate 7.00 MiB for an array",
    )
    assert batch[1].short is not None
    assert batch[1].short.asked_mb == 7
    assert predict(Narrow(8), "narrow", "cpu", tasks([9])) is False
    assert predict(Narrow(8), "narrow", "cpu", tasks([0], [1])) is False


# ---------------------------------------------------------------- the kernel's count


@pytest.fixture
def count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], object]:
    file = tmp_path / "memory.events"
    monkeypatch.setattr(oom_killer, "counters", lambda: iter([tmp_path / "missing", file]))

    def write(kills: int) -> None:
        file.write_text(f"low 0\noom 7\noom_kill {kills}\noom_group_kill 0\n")

    write(3)
    return write


def test_a_kill_that_was_counted_accounts_for_one_process(count: Callable[[int], object]) -> None:
    killer = oom_killer.OomKiller()
    assert killer.struck() is False
    count(5)
    killer.watch()  # between the death and the news of it
    assert [killer.struck() for _ in range(3)] == [True, True, False]
    killer.watch()
    count(6)
    assert [killer.struck() for _ in range(2)] == [True, False]


def test_old_kills_explain_no_new_one(count: Callable[[int], object]) -> None:
    killer = oom_killer.OomKiller()
    count(4)
    killer.watch()
    killer.watch()
    assert killer.struck() is False


def test_without_a_count_nothing_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(oom_killer, "counters", lambda: iter([tmp_path / "missing"]))
    assert oom_killer.OomKiller().struck() is None


def test_a_count_that_cannot_be_read_for_a_moment_explains_no_kill(
    count: Callable[[int], object], tmp_path: Path
) -> None:
    killer = oom_killer.OomKiller()
    for broken in (lambda file: file.unlink(), lambda file: file.write_text("oom_kill many\n")):
        broken(tmp_path / "memory.events")
        killer.watch()
        killer.watch()
        assert killer.struck() is None
        count(3)
        assert killer.struck() is False


def test_this_kernel_counts() -> None:
    assert oom_killer.OomKiller().struck() is False
