"""What only a machine with a CUDA device can show. `python -m benchmarks.gpu`; elsewhere it says so and ends.

a. A killed worker gives its device memory back, all of it; `del model; empty_cache()` does not.
b. Workers forked from the nursery before CUDA was initialised compute, and compute right.
c. A swap, part by part, as `benchmarks.swap` measures it.
d. The processes of a full zoo stay within its budget.
e. Megabytes of each model of config.toml, context included, in single and in half precision, and how far its answers
   are from those on the CPU: of networks of the published sizes with random weights (`benchmarks.footprint`).

The tests in tests/gpu hold the same figures to their limits.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import zoo
from benchmarks import common, footprint, swap

DEVICE = "cuda:0"
MODULE = "benchmarks.adapters"
KEPT = """
import json, sys
from pathlib import Path
import torch
from benchmarks.gpu import Meter
from workers.models.base import Input, Spec
from workers.models.yolo import Detector
from benchmarks.swap import frame
meter = Meter()
before = meter.used_mb()
model = Detector()
model.load(Spec("kept", Path(sys.argv[1]), trust_pickle=True), "cuda:0")
model.predict([Input(frame(), {})])
loaded = meter.used_mb()
del model
import gc
gc.collect()
torch.cuda.empty_cache()
print(json.dumps([before, loaded, meter.used_mb()]))
"""


class Meter:
    """Device memory in use, by NVML: `Meter()` raises LookupError where there is no CUDA device."""

    def __init__(self) -> None:
        from broker.ledger import Device
        from broker.meters import open_devices

        self._meter = open_devices([Device(DEVICE, "cuda", 0.0)])[DEVICE]

    def used_mb(self) -> float:
        return self._meter.device_mb()[0]

    def process_mb(self, pid: int) -> float | None:
        """None where the driver does not say."""
        return self._meter.used_mb(pid)

    def settled_mb(self, below: float, seconds: float = 10.0) -> float:
        """The use once it is at most `below`, or what it is after so many seconds."""
        end = time.monotonic() + seconds
        while (used := self.used_mb()) > below and time.monotonic() < end:
            time.sleep(0.02)
        return used


def reason_not_to_run() -> str | None:
    """Why nothing can be measured here, without importing torch."""
    try:
        Meter()
    except Exception as e:
        return f"{e}" or type(e).__name__
    return None


def memory_back(weights: Path) -> dict[str, float]:
    """a. Device MB above what there was before the load: loaded, after the kill, and after an in-process `del`."""
    meter = Meter()
    image = swap.frame()
    with (
        common.folder() as where,
        swap.traced_broker(where, "cuda", weights) as (endpoint, _, _),
        zoo.Client(endpoint, timeout=120) as client,
    ):
        before = meter.used_mb()  # the nursery is up and has no context
        client.infer("yolo11-face", image)
        loaded = meter.used_mb()
        client.unload("yolo11-face")
        killed = meter.settled_mb(before)
    done = subprocess.run(
        [sys.executable, "-c", KEPT, str(weights / swap.MODELS["yolo11-face"][2])],
        stdout=subprocess.PIPE,
        check=True,
    )
    kept_before, _, kept = json.loads(done.stdout.splitlines()[-1])
    return memory_figures(before, loaded, killed, kept_before, kept)


def memory_figures(before: float, loaded: float, killed: float, kept_before: float, kept: float) -> dict[str, float]:
    return {
        "loaded_mb": loaded - before,
        "left_after_kill_mb": killed - before,
        "left_after_del_mb": kept - kept_before,
    }


def forks(turns: int = 10, device: str = "cuda") -> dict[str, Any]:
    """b. Workers in turn, each a new process, each multiplying two matrices on the device."""
    pids, wrong = set(), 0
    with common.folder() as where:
        text = (
            f'[broker]\ndevice = "{device}"\nvram_budget_gb = 2\nfootprint = "declared"\npreload = ["torch"]\n'
            f'[[models]]\nname = "product"\nadapter = "{MODULE}:Product"\nvram_mb = 800\n'
        )
        with common.broker(text, where) as (endpoint, _), zoo.Client(endpoint, timeout=120) as client:
            for turn in range(turns):
                given = np.random.default_rng(turn).standard_normal((64, 64)).astype(np.float32)
                answer = client.infer("product", given)
                pids.add(answer["pid"])
                wrong += not np.allclose(answer["product"], given @ given.T, atol=0.05, rtol=0.01)
                client.unload("product")
    return {"turns": turns, "processes": len(pids), "wrong": wrong}


def within_budget(weights: Path) -> dict[str, Any]:
    """d. All models of the bench, called in turn: charged and used, the most that was seen of each."""
    meter = Meter()
    image = swap.frame()
    charged, used, budget = [], [], 0.0
    with (
        common.folder() as where,
        swap.traced_broker(where, "cuda", weights, together=True) as (endpoint, _, _),
        zoo.Client(endpoint, timeout=120) as client,
    ):
        before = meter.used_mb()
        for name in (*swap.MODELS, *swap.MODELS):
            client.infer(name, image)
            status = client.get_status()
            budget = status["vram_budget_mb"]
            charged.append(status["vram_used_mb"])
            by_process = [meter.process_mb(row["pid"]) for row in client.processes()]  # now, not as last seen
            # Drivers in containers do not say whose memory it is; then the whole device's rise is what counts.
            told = [mb for mb in by_process if mb is not None]
            used.append(sum(told) if len(told) == len(by_process) else meter.used_mb() - before)
    return {"budget_mb": budget, "charged_mb": max(charged), "used_mb": max(used)}


def models(weights: Path) -> dict[str, dict[str, float]]:
    """e. By model: `footprint.measure`, the same in half precision, and the distance of both from the CPU's answers."""
    meter = Meter()
    figures: dict[str, dict[str, float]] = footprint.measure(weights, meter)
    halves = footprint.measure(weights, meter, half=True)
    on_cpu = footprint.answers(weights, "cpu")
    single, half = (footprint.answers(weights, "cuda", half=how) for how in (False, True))
    for name, row in figures.items():
        row["distance"] = footprint.distance(single[name], on_cpu[name])
        if name in footprint.NETWORKS:
            row["half_answered_mb"] = halves[name]["answered_mb"]
            row["half_distance"] = footprint.distance(half[name], on_cpu[name])
    return figures


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer turns, and nothing is written")
    args = parser.parse_args(argv)
    if reason := reason_not_to_run():
        print(f"nothing to measure: {reason}")
        return 0
    with common.folder() as folder, common.folder() as large:
        weights = Path(folder)
        swap.make_weights(weights)
        if not args.quick:
            footprint.make_weights(Path(large))
        figures: dict[str, Any] = {
            "memory": memory_back(weights),
            "forks": forks(),
            "swap": swap.summary(swap.measure(weights, 3 if args.quick else 9, DEVICE)),
            "budget": within_budget(weights),
            "models": {} if args.quick else models(Path(large)),
        }
    print(tables(figures))
    if not args.quick:
        common.save("gpu", figures)
        swap.plot(figures["swap"], "gpu-swap")
    return 0


def tables(figures: dict[str, Any]) -> str:
    memory, forked, budget = figures["memory"], figures["forks"], figures["budget"]
    rows: list[tuple[str, ...]] = [
        ("device memory above what there was before the load", "MB"),
        ("  loaded, one prediction made", f"{memory['loaded_mb']:.0f}"),
        ("  after the process was killed", f"{memory['left_after_kill_mb']:.0f}"),
        ("  after del model; empty_cache() in a living one", f"{memory['left_after_del_mb']:.0f}"),
        ("workers forked in turn / processes / wrong answers",
         f"{forked['turns']} / {forked['processes']} / {forked['wrong']}"),
        ("budget / most charged / most used (MB)",
         f"{budget['budget_mb']:.0f} / {budget['charged_mb']:.0f} / {budget['used_mb']:.0f}"),
    ]  # fmt: skip
    parts = [common.table(rows), swap.tables(figures["swap"])]
    if figures["models"]:
        parts.append(footprint.table(figures["models"]))
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
