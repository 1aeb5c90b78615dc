"""What only a machine with a CUDA device can show. `python -m benchmarks.gpu`; elsewhere it says so and ends.

a. A killed worker gives its device memory back, all of it; `del model; empty_cache()` does not.
b. Workers forked from the nursery before CUDA was initialised compute, and compute right.
c. A swap, part by part, as `benchmarks.swap` measures it.
d. The processes of a full zoo stay within its budget.
e. Megabytes of each model of config.toml, context included, in single and in half precision, and how far its answers
   are from those on the CPU: of networks of the published sizes with random weights (`benchmarks.footprint`).
f. The same models, all in use at once, within a budget that holds a few of them: the most that the device saw in use.
g. What copies in host memory and processes in reserve save of a swap (`benchmarks.warm`).

Each part is written down when it is done; one that fails leaves the others their turn. The tests in tests/gpu hold
the same figures to their limits.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import random
import statistics
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import zoo
from benchmarks import common, footprint, swap, warm

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
        from broker.memory.meters import Machine, open_devices
        from broker.scheduler.capacity.ledger import Device

        self._meter = open_devices([Device(DEVICE, "cuda", 0.0)], Machine())[DEVICE]

    def used_mb(self) -> float:
        return self._meter.read(()).used_mb or 0.0

    def process_mb(self, pid: int) -> float | None:
        """None where the driver does not say."""
        return self._meter.read([pid]).own_mb.get(pid)

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


def uuid() -> str:
    """Of the first device that CUDA shows."""
    from broker.memory.meters import Machine

    return Machine().uuids[0]


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
    with ThreadPoolExecutor() as beside:  # takes nothing of the device
        asked = beside.submit(footprint.answers, weights, "cpu")
        figures, single = footprint.measure(weights, meter)
        halves, half = footprint.measure(weights, meter, half=True)
        on_cpu = asked.result()
    for name, row in figures.items():
        row["distance"] = footprint.distance(single[name], on_cpu[name])
        if name in footprint.NETWORKS:
            row["half_answered_mb"] = halves[name]["answered_mb"]
            row["half_distance"] = footprint.distance(half[name], on_cpu[name])
    return figures


@contextmanager
def watched(meter: Meter) -> Iterator[list[tuple[float, float]]]:
    """(monotonic seconds, MB in use) every few milliseconds, while the block runs."""
    seen: list[tuple[float, float]] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.005):
            seen.append((time.monotonic(), meter.used_mb()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        ended.set()
        watcher.join()


def overbooked(weights: Path, budget_gb: float = 6.0, clients: int = 3, seconds: float = 40.0) -> dict[str, Any]:
    """f. Clients at once, each asking one model after another in an order of its own.

    What a model takes is known when it has been seen at work, so each is asked once before, and that counts apart.
    Those first answers are compared with the CPU's.
    """
    meter = Meter()
    pids: set[int] = set()
    failed: list[str] = []
    took: list[float] = []

    def use(own: zoo.Client, name: str) -> Any:
        started = time.monotonic()
        try:
            return footprint.ask(own, name)
        except zoo.ZooError as e:
            failed.append(f"{name}: {e}")
        finally:
            took.append(time.monotonic() - started)
            pids.update(row["pid"] for row in own.processes())

    def keep_asking(number: int) -> None:
        orders = random.Random(number)
        with zoo.Client(endpoint, timeout=300) as own:
            while time.monotonic() < end:
                use(own, orders.choice(list(footprint.MODELS)))

    first: dict[str, Any] = {}
    with (
        ThreadPoolExecutor() as beside,
        footprint.running(weights, "cuda", keys=f"vram_budget_gb = {budget_gb}\n") as client,
    ):
        asked = beside.submit(footprint.answers, weights, "cpu")  # takes nothing of the device
        endpoint = client.endpoint
        before = meter.used_mb()
        with watched(meter) as learning:
            for name in footprint.MODELS:
                first[name] = use(client, name)
        on_cpu = asked.result()
        took.clear()
        pids.clear()
        began = time.monotonic()
        end = began + seconds
        with watched(meter) as seen:
            users = [threading.Thread(target=keep_asking, args=(number,)) for number in range(clients)]
            for user in users:
                user.start()
            for user in users:
                user.join()
        ended = time.monotonic()
        status = client.get_status()
        rows = client.footprint()
    return {
        "models": len(footprint.MODELS),
        "budget_mb": budget_gb * 1024,
        "most_used_mb": max(mb for _, mb in seen) - before,
        "most_used_while_learning_mb": max(mb for _, mb in learning) - before,
        "charged_at_the_end_mb": status["vram_used_mb"],
        "requests": len(took),
        "failed": failed,
        "processes": len(pids),
        "seconds": ended - began,
        "median_s": statistics.median(took),
        "worst_s": max(took),
        "footprints": rows,
        "distance": {
            name: footprint.distance(answer, on_cpu[name]) for name, answer in first.items() if answer is not None
        },
    }


def swaps_by_copies(weights: Path, turns: int) -> dict[str, Any]:
    """g. By model: `warm.summary`."""
    warm.forget_stand_ins(weights)
    return warm.summary(*warm.measure(weights, turns, DEVICE))


def describe() -> dict[str, Any]:
    """Card, driver and libraries."""
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    names = ("torch", "torchvision", "transformers", "ultralytics", "numpy", "pyzmq", "msgspec", "nvidia-ml-py")
    return {
        "card": pynvml.nvmlDeviceGetName(handle),
        "total_mb": pynvml.nvmlDeviceGetMemoryInfo(handle).total / (1 << 20),
        "driver": pynvml.nvmlSystemGetDriverVersion(),
        "cuda_of_the_driver": pynvml.nvmlSystemGetCudaDriverVersion() / 1000,
        **{name: importlib.metadata.version(name) for name in names},
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer turns of a to d, and nothing is written")
    parser.add_argument("--parts", default="", help="letters, in order (default: abcd with --quick, else all)")
    parser.add_argument("--turns", type=int, help="of c and g (default: 3 with --quick, else 7)")
    parser.add_argument("--weights", type=Path, help="where benchmarks.published has written (default: it does so now)")
    args = parser.parse_args(argv)
    if reason := reason_not_to_run():
        print(f"nothing to measure: {reason}")
        return 0
    wanted = args.parts or ("abcd" if args.quick else "abcdefg")
    turns = args.turns or (3 if args.quick else 7)
    figures: dict[str, Any] = {"device": describe(), "failed": {}}
    with common.folder() as folder, common.folder() as large:
        small, published = Path(folder), args.weights or Path(large)
        if set(wanted) & set("acd"):
            swap.make_weights(small)
        if set(wanted) & set("efg") and not args.weights:
            footprint.make_weights(published)
        parts: dict[str, tuple[str, Callable[[], Any]]] = {
            "a": ("memory", lambda: memory_back(small)),
            "b": ("forks", forks),
            "c": ("swap", lambda: swap.summary(swap.measure(small, turns, DEVICE))),
            "d": ("budget", lambda: within_budget(small)),
            "e": ("models", lambda: models(published)),
            "f": ("overbooked", lambda: overbooked(published)),
            "g": ("warm", lambda: swaps_by_copies(published, turns)),
        }
        for letter in wanted:
            name, part = parts[letter]
            began = time.monotonic()
            try:
                figures[name] = part()
            except Exception as e:
                traceback.print_exc()
                figures["failed"][name] = f"{type(e).__name__}: {e}"
            print(f"({letter} {name}: {time.monotonic() - began:.0f} s)", file=sys.stderr, flush=True)
            if not args.quick:
                common.save("gpu", figures)
    print(tables(figures))
    if not args.quick and "swap" in figures:
        swap.plot(figures["swap"], "gpu-swap")
    return 1 if figures["failed"] else 0


def tables(figures: dict[str, Any]) -> str:
    """Of the parts that there are."""
    rows: list[tuple[str, ...]] = []
    if memory := figures.get("memory"):
        rows += [
            ("device memory above what there was before the load", "MB"),
            ("  loaded, one prediction made", f"{memory['loaded_mb']:.0f}"),
            ("  after the process was killed", f"{memory['left_after_kill_mb']:.0f}"),
            ("  after del model; empty_cache() in a living one", f"{memory['left_after_del_mb']:.0f}"),
        ]
    if forked := figures.get("forks"):
        told = f"{forked['turns']} / {forked['processes']} / {forked['wrong']}"
        rows.append(("workers forked in turn / processes / wrong answers", told))
    if budget := figures.get("budget"):
        told = f"{budget['budget_mb']:.0f} / {budget['charged_mb']:.0f} / {budget['used_mb']:.0f}"
        rows.append(("budget / most charged / most used (MB)", told))
    if many := figures.get("overbooked"):
        told = f"{many['models']} / {many['budget_mb']:.0f} / {many['most_used_mb']:.0f}"
        rows.append(("models in use at once / budget / most used (MB)", told))
        told = f"{many['requests']} / {len(many['failed'])} / {many['processes']}"
        rows.append(("  requests / failed / processes that served them", told))
    parts = [common.table(rows)] if rows else []
    if figures.get("swap"):
        parts.append(swap.tables(figures["swap"]))
    if figures.get("models"):
        parts.append(footprint.table(figures["models"]))
    if figures.get("warm"):
        parts.append(warm.tables(figures["warm"]))
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
