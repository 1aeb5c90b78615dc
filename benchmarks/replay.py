"""Which eviction policy costs how much: `python -m benchmarks.replay`. The broker's own scheduler, in virtual time.

Every trace is replayed twice. *In order*: first come, first served, one request at a time, where all that matters is
who was evicted; compared with plain LRU (the same scheduler, all models of one priority), the naive policy, and what a
clairvoyant would do. *As it comes*: each event at its time, several requests of it under way, models that are loaded
first, queues served in bursts; the naive policy and first come, first served are the baselines of its waiting times.

`--quick` replays two hours instead of a day. Results go to benchmarks/results/replay.json and .png.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from typing import Any

import msgspec

from benchmarks import clairvoyant, common, naive, traces
from benchmarks.traces import DAY_S, HOUR_S, Trace
from benchmarks.world import World
from broker.ledger import Device
from broker.scheduler import Scheduler
from broker.states import Asked, Kind, MemoryBack, Outcome, StartWorker, WorkerDone, WorkerExited, WorkerReady
from zoo.config import BrokerConfig, ModelConfig, ModelPriority

SEED = 1


def load_seconds(models: list[ModelConfig]) -> tuple[dict[str, float], list[str]]:
    """How long each model's load takes, and for which of them that was measured.

    Measured: fork + load + ready of benchmarks.gpu. Else assumed: 0.3 s + 1 s per 1,000 MB. What benchmarks.swap
    measures are stand-ins on a processor: their loads are not those of the megabytes that config.toml declares.
    """
    assumed = {m.name: 0.3 + m.vram_mb / 1000 for m in models}
    file = common.RESULTS / "gpu.json"
    swaps = json.loads(file.read_text()).get("swap", {}) if file.exists() else {}
    measured = {
        name: sum(swaps[name]["parts_ms"][part] for part in ("fork", "load", "ready")) / 1000
        for name in assumed
        if "parts_ms" in swaps.get(name, {})
    }
    return {**assumed, **measured}, sorted(measured)


def replay(trace: Trace) -> dict[str, Any]:
    load_s, measured = load_seconds(trace.models)
    requests = trace.requests()
    equal = [msgspec.structs.replace(m, priority=ModelPriority.MEDIUM) for m in trace.models]
    in_order = {
        "priority": World(trace, load_s, in_order=True).run().summary(),
        "adaptive": World(trace, load_s, in_order=True, eviction="adaptive").run().summary(),
        "lru": World(trace, load_s, in_order=True, models=equal).run().summary(),
        "naive": naive.replay(trace, load_s).summary(),
    }
    bounds = {}
    for name, by_priority in (("clairvoyant, bound to priority", True), ("clairvoyant, free", False)):
        seconds, loads = clairvoyant.load_time(
            requests, trace.models, trace.budget_mb, load_s, by_priority=by_priority
        )  # fmt: skip
        bounds[name] = {"loads": loads, "load_s": round(seconds, 1)}
    begun = time.perf_counter()
    as_it_comes = {policy: World(trace, load_s, eviction=policy).run().summary() for policy in ("priority", "adaptive")}
    return {
        "events": len(trace.events),
        "requests": len(requests),
        "loads_measured": measured,
        "replay_s": round((time.perf_counter() - begun) / len(as_it_comes), 2),
        "in_order": in_order,
        "bounds": bounds,
        "as_it_comes": as_it_comes,
    }


def scheduler_cost(models: int = 1000, queued: int = 10_000, events: int = 3_000) -> dict[str, float]:
    """Microseconds per event with many models and a long queue of requests for the loaded ones."""
    zoo = [ModelConfig(name=f"m{i}", vram_mb=10) for i in range(models)]
    s = Scheduler(BrokerConfig(max_queue=queued), [Device("gpu0", "cuda", 10.0 * models)], zoo)
    draw, number, worker_of = random.Random(SEED), 0, {}
    for m in zoo:
        number += 1
        pending = s.handle(Asked(number, b"c", m.name, Kind.PRELOAD, 1e9), 0.0)
        worker_of[m.name] = next(a.worker for a in pending if isinstance(a, StartWorker))
        s.handle(WorkerReady(worker_of[m.name]), 0.0)
    for _ in range(queued):
        number += 1
        s.handle(Asked(number, b"c", draw.choice(zoo).name, Kind.INFER, 1e9), 0.0)
    took: list[float] = []
    busy = [m for m in s.models.values() if m.inflight]
    for i in range(events):
        model = busy[i % len(busy)]
        number += 1
        done = WorkerDone(model.worker, [Outcome(r.id) for r in model.inflight])
        for event in (done, Asked(number, b"c", model.name, Kind.INFER, 1e9)):
            begun = time.perf_counter()
            s.handle(event, 1.0 + i * 1e-3)
            s.next_wakeup()
            took.append((time.perf_counter() - begun) * 1e6)
    swaps: list[float] = []
    for i in range(0, models - 1, 5):
        model = s.models[zoo[i].name]
        begun = time.perf_counter()
        s.handle(WorkerExited(model.worker, "ended"), 100.0)
        s.handle(MemoryBack(model.worker or worker_of[model.name]), 100.0)
        swaps.append((time.perf_counter() - begun) * 1e6 / 2)
        if model.worker:
            s.handle(WorkerReady(model.worker), 100.0)
    return {
        "models": models,
        "queued": queued,
        "median_us": round(statistics.median(took), 2),
        "p99_us": round(sorted(took)[len(took) * 99 // 100], 2),
        "exit_and_restart_median_us": round(statistics.median(swaps), 2),
    }


def goals(found: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = [("camera trace", "default / bound", "adaptive / free", "LRU / free", "default / adaptive")]
    for mix in traces.MIXES:
        order, bounds = found[mix]["in_order"], found[mix]["bounds"]
        free, bound = bounds["clairvoyant, free"]["load_s"], bounds["clairvoyant, bound to priority"]["load_s"]
        default, adaptive, lru = (order[p]["load_s"] for p in ("priority", "adaptive", "lru"))
        rows.append((mix, f"{default / bound:.2f}", f"{adaptive / free:.2f}", f"{lru / free:.2f}",
                     f"{default / adaptive:.1f}"))  # fmt: skip
    return [*rows, ("to reach", "<= 1.10", "<= 1.45", "", ">= 2 on the street")]


def tables(found: dict[str, Any]) -> str:
    head = ("trace", "served", "policy", "loads", "load s", "hits", "p50 s", "p95 s", "p99 s", "missed", "busy")
    rows = [head]
    for name, one in found.items():
        for served, policies in (("in order", one["in_order"]), ("as it comes", one["as_it_comes"])):
            rows += [
                (name, served, policy, str(f["loads"]), f"{f['load_s']:.0f}", f"{f['hit_ratio']:.3f}",
                 f"{f['wait_p50_s']:.2f}", f"{f['wait_p95_s']:.2f}", f"{f['wait_p99_s']:.2f}", str(f["missed"]),
                 f"{f['busy_share']:.3f}")
                for policy, f in policies.items()
            ]  # fmt: skip
        rows += [(name, "in order", bound, str(f["loads"]), f"{f['load_s']:.0f}", *[""] * 6)
                 for bound, f in one["bounds"].items()]  # fmt: skip
    return common.table(rows)


def plot(found: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(traces.MIXES), figsize=(13, 3.6))
    for axis, mix in zip(axes, traces.MIXES, strict=True):
        bars = {p: f["load_s"] for p, f in found[mix]["in_order"].items()}
        bars |= {name.replace("clairvoyant, ", "foresight,\n"): f["load_s"] for name, f in found[mix]["bounds"].items()}
        axis.bar(range(len(bars)), list(bars.values()), color=["C0", "C1", "C7", "C7", "C2", "C2"])
        axis.set_xticks(range(len(bars)), list(bars), rotation=75, fontsize=7)
        axis.set_title(f"{mix}: seconds of loading", fontsize=9)
    figure.tight_layout()
    figure.savefig(common.RESULTS / "replay.png", dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="two hours instead of a day, nothing is saved")
    arguments = parser.parse_args()
    seconds = 2 * HOUR_S if arguments.quick else DAY_S
    part = 0.1 if arguments.quick else 1.0
    replayed = [traces.cameras(mix, SEED, seconds=seconds) for mix in traces.MIXES]
    replayed += [
        traces.zipf(SEED, requests=int(20_000 * part)),
        traces.round_robin(SEED, requests=int(4_000 * part)),
        traces.bursts(SEED, count=int(100 * part)),
    ]
    found = {trace.name: replay(trace) for trace in replayed}
    cost = scheduler_cost()
    measured = sorted({name for one in found.values() for name in one["loads_measured"]})
    print(tables(found))
    print()
    print(common.table(goals(found)))
    print(f"\nscheduler, {cost['models']} models, {cost['queued']} queued: {cost['median_us']} us per event (median)")
    print(f"footprints: as declared. Load times measured for {', '.join(measured) or 'none'}; "
          "else assumed, 0.3 s + 1 s per 1,000 MB")  # fmt: skip
    if not arguments.quick:
        common.save("replay", {"traces": found, "scheduler": cost})
        plot(found)


if __name__ == "__main__":
    main()
