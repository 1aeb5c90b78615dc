"""What the zoo promises about a CUDA device, on a real one. `benchmarks/gpu.py` does the measuring.

NVML decides whether there is one: collecting these tests imports no model library and makes no CUDA context.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import gpu, swap

REASON = gpu.reason_not_to_run()
needs_cuda = [pytest.mark.gpu, pytest.mark.timeout(600), pytest.mark.skipif(REASON is not None, reason=str(REASON))]

LEFT_MB = 16.0  # NVML counts whole pages, and drivers keep a few of them; a CUDA context alone takes 300 MB and more


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    swap.make_weights(folder)
    return folder


class TestOnTheDevice:
    pytestmark = needs_cuda

    def test_a_killed_worker_leaves_nothing_on_the_device(self, weights: Path) -> None:
        found = gpu.memory_back(weights)
        assert found["loaded_mb"] > 100, "the load was not seen: is somebody else using this device?"
        assert found["left_after_kill_mb"] <= LEFT_MB
        assert found["left_after_del_mb"] > found["left_after_kill_mb"] + 100, "the context stays with the process"

    def test_ten_workers_forked_in_turn_compute_and_are_right(self) -> None:
        assert gpu.forks(10) == {"turns": 10, "processes": 10, "wrong": 0}

    def test_a_swap_is_much_faster_than_a_new_interpreter(self, weights: Path) -> None:
        for name, figures in swap.summary(swap.measure(weights, 3, gpu.DEVICE)).items():
            # Half of the bench's goal: tests share their machine.
            assert figures["ratio_imports_all"] > swap.GOAL / 2, (name, figures)

    def test_a_full_zoo_stays_within_its_budget(self, weights: Path) -> None:
        found = gpu.within_budget(weights)
        assert found["charged_mb"] <= found["budget_mb"]
        assert found["used_mb"] <= found["budget_mb"]


# ---------------------------------------------------------------- what needs no device


def test_the_parts_of_a_swap_add_up_to_the_whole_of_it() -> None:
    names = ("kill", "exited", "memory", "start", "attached", "ready")
    moments = {name: (10.0 + i / 10, 0.0) for i, name in enumerate(names, 1)}
    moments["ready"] = (moments["ready"][0], 0.04)
    parts = swap.parts_of(10.0, 11.0, moments)
    assert set(parts) == set(swap.PARTS)
    assert sum(parts.values()) == pytest.approx(1000.0)
    assert parts["load"] == pytest.approx(40.0)
    assert parts["memory"] == pytest.approx(200.0)


def test_tables_show_medians_of_ratios() -> None:
    slow = {"imports": 3000.0, "load": 100.0, "answer": 50.0}
    quick = [dict.fromkeys(swap.PARTS, ms / len(swap.PARTS)) for ms in (100.0, 200.0, 400.0)]
    found: swap.Measured = {name: {"swap": quick, "own": [slow] * 3, "all": [slow] * 3} for name in swap.MODELS}
    figures = swap.summary(found)
    assert figures["yolo11-face"]["ratio_imports_all"] == pytest.approx(15.0)
    assert figures["yolo11-face"]["swap_ms"] == pytest.approx(200.0)
    shown = gpu.tables(
        {
            "memory": gpu.memory_figures(500.0, 900.0, 502.0, 500.0, 810.0),
            "forks": {"turns": 10, "processes": 10, "wrong": 0},
            "budget": {"budget_mb": 2400.0, "charged_mb": 2400.0, "used_mb": 1000.0},
            "swap": figures,
        }
    )
    assert "15.0x" in shown
    assert "310" in shown


@pytest.mark.skipif(REASON is None, reason="there is a CUDA device")
def test_without_a_device_the_benchmark_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 0
    assert "no CUDA device" in capsys.readouterr().out
