"""What the zoo promises about a CUDA device, on a real one. `benchmarks/gpu.py` does the measuring.

NVML decides whether there is one: collecting these tests imports no model library and makes no CUDA context.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import footprint, gpu, swap
from zoo import results

REASON = gpu.reason_not_to_run()
needs_cuda = [pytest.mark.gpu, pytest.mark.timeout(600), pytest.mark.skipif(REASON is not None, reason=str(REASON))]

SHOWN = """
import json, torch
from broker.memory.meters import Machine
shown = [f"GPU-{torch.cuda.get_device_properties(n).uuid}" for n in range(torch.cuda.device_count())]
print(json.dumps([Machine().uuids, shown]))
"""
OWN = """
import json, os, torch
from benchmarks.gpu import Meter
meter = Meter()
before = meter.used_mb()
kept = torch.ones(256 << 20, dtype=torch.uint8, device="cuda")
torch.cuda.synchronize()
print(json.dumps([meter.process_mb(os.getpid()), meter.used_mb() - before]))
"""

LEFT_MB = 16.0  # NVML counts whole pages, and drivers keep a few of them; a CUDA context alone takes 300 MB and more


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    swap.make_weights(folder)
    return folder


class TestOnTheDevice:
    pytestmark = needs_cuda

    @pytest.mark.parametrize("setting", [None, "0", "whole", "start", "", "-1", "7"])
    def test_the_broker_sees_the_devices_that_cuda_shows(self, setting: str | None) -> None:
        uuid = gpu.uuid()
        setting = {"whole": uuid, "start": uuid[:12]}.get(setting or "", setting)
        environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
        if setting is not None:
            environment["CUDA_VISIBLE_DEVICES"] = setting
        done = subprocess.run(
            [sys.executable, "-c", SHOWN], env=environment, stdout=subprocess.PIPE, check=True, text=True
        )
        by_broker, by_cuda = json.loads(done.stdout.splitlines()[-1])
        assert by_broker == by_cuda

    def test_nvml_says_what_a_process_uses(self) -> None:
        """Else footprints would be learnt from the whole device's rise, which other programs move too."""
        done = subprocess.run([sys.executable, "-c", OWN], stdout=subprocess.PIPE, check=True, text=True)
        own, device = json.loads(done.stdout.splitlines()[-1])
        if own is None:
            pytest.skip("this driver does not tell a process's memory")
        assert own == pytest.approx(device, abs=LEFT_MB)

    def test_a_killed_worker_leaves_nothing_on_the_device(self, weights: Path) -> None:
        found = gpu.memory_back(weights)
        assert found["loaded_mb"] > 100, "the load was not seen: does another program use this device?"
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


Answers = dict[str, Any]


@pytest.fixture(scope="module")
def all_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every stand-in, made in a process of its own."""
    folder = tmp_path_factory.mktemp("all")
    subprocess.run([sys.executable, "-m", "workers.models.standins", str(folder)], check=True)
    return folder


@pytest.fixture(scope="module")
def on_cpu(all_weights: Path) -> Answers:
    return footprint.answers(all_weights, "cpu")


@pytest.fixture(scope="module", params=["single", "half"])
def on_the_device(request: pytest.FixtureRequest, all_weights: Path) -> Answers:
    return footprint.answers(all_weights, "cuda", half=request.param == "half")


class TestEveryModel:
    pytestmark = needs_cuda

    @pytest.mark.parametrize("name", footprint.MODELS)
    def test_it_answers_as_on_a_cpu(self, name: str, on_the_device: Answers, on_cpu: Answers) -> None:
        """Within the tolerances of `benchmarks.footprint`."""
        assert footprint.distance(on_the_device[name], on_cpu[name]) <= 1

    def test_each_gives_all_of_its_memory_back(self, all_weights: Path) -> None:
        for name, row in footprint.measure(all_weights, gpu.Meter())[0].items():
            assert row["left_mb"] <= LEFT_MB, name
            if name in footprint.NETWORKS:
                assert row["loaded_mb"] > 100, f"{name} was not seen to load: does another program use this device?"


# ---------------------------------------------------------------- what needs no device


def test_the_parts_of_a_swap_add_up_to_the_whole_of_it() -> None:
    names = ("kill", "exited", "memory", "start", "told", "ready")
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
            "models": {
                "osnet-x0-25": {
                    "declared_mb": 100.0,
                    "loaded_mb": 420.0,
                    "answered_mb": 433.0,
                    "left_mb": 0.0,
                    "distance": 0.03,
                }
            },
        }
    )
    assert "15.0x" in shown
    assert "310" in shown
    assert shown.splitlines()[-1].split() == ["osnet-x0-25", "100", "420", "433", "0", "0.03"]


def detections(*boxes: tuple[float, float, float, float]) -> results.Detections:
    n = len(boxes)
    return results.Detections(
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        scores=np.ones(n, np.float32),
        class_ids=np.zeros(n, np.int32),
        labels=["it"] * n,
    )


def test_answers_that_agree_are_near_and_others_far() -> None:
    rows = [(10.0 * i, 0.0, 10.0 * i + 100, 50.0) for i in range(0, 80, 10)]
    moved = [(x1 + 2, y1, x2 + 2, y2) for x1, y1, x2, y2 in rows]
    found = detections(*rows)
    assert footprint.distance(found, detections(*moved)) == 0
    assert footprint.distance(found, detections(*rows[:6])) == pytest.approx(1)
    assert footprint.distance(detections(*rows[:5]), found) > 1
    assert footprint.distance(found, detections()) > 1
    assert footprint.distance(detections(), detections()) == 0

    unit = np.eye(4, dtype=np.float32)
    assert footprint.distance(results.Embedding(vector=unit[0]), results.Embedding(vector=unit[0])) == 0
    assert footprint.distance(results.Embedding(vector=unit[0]), results.Embedding(vector=unit[1])) > 1

    def classified(score: float) -> results.Classification:
        return results.Classification(labels=["cat", "dog"], scores=np.array([score, 1 - score], np.float32))

    assert footprint.distance(classified(0.7), classified(0.72)) < 1
    assert footprint.distance(classified(0.7), classified(0.8)) > 1
    assert footprint.distance(results.OcrText(text="A", lines=[], scores=unit[0]),
                              results.OcrText(text="B", lines=[], scores=unit[0])) > 1  # fmt: skip


def test_a_part_that_fails_leaves_the_others_their_turn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Path) -> dict[str, float]:
        raise LookupError("the driver is gone")

    monkeypatch.setattr(gpu, "reason_not_to_run", lambda: None)
    monkeypatch.setattr(gpu, "describe", dict)
    monkeypatch.setattr(gpu, "memory_back", fail)
    monkeypatch.setattr(gpu, "forks", lambda: {"turns": 10, "processes": 9, "wrong": 1})
    monkeypatch.setattr(swap, "make_weights", lambda where: None)
    assert gpu.main(["--quick", "--parts", "ab"]) == 1
    shown = capsys.readouterr()
    assert "10 / 9 / 1" in shown.out
    assert "the driver is gone" in shown.err


@pytest.mark.skipif(REASON is None, reason="there is a CUDA device")
def test_without_a_device_the_benchmark_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 0
    assert "no CUDA device" in capsys.readouterr().out
