"""Which eviction policy costs how much: `python -m benchmarks.replay`. The broker's own scheduler, in virtual time.

Every trace is replayed twice. *In order*: first come, first served, one request at a time, where all that matters is
who was evicted; compared with plain LRU and GDSF, the naive policy, what a clairvoyant would do, and a proven lower
bound (`bound.py`), which holds for requests that are answered in the order asked. *As it comes*: each event at its
time, several requests of it under way, models that are loaded first, queues served in bursts; the naive policy and
first come, first served are the baselines of its waiting times.

`--gentd26 FILE` replays real requests as well; `gentd26.py` says where to get the file. `--quick` replays two hours
instead of a day. Results go to benchmarks/results/replay.json and .png; without the file, what was measured with it
stays there.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from benchmarks import bound, clairvoyant, common, gentd26, naive, plain, scheduler, traces
from benchmarks.traces import DAY_S, Trace
from benchmarks.world import World
from zoo.config.schema import ModelConfig

SEED = 1
POLICIES = ("priority", "adaptive")
LOAD = 0.7
TO_REACH = {"day": 1.45, "night": 1.55, "street": 1.45, "mixed": 1.45, "GenTD26, 8 fit": 1.50}


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
    asked = requests, trace.models, trace.budget_mb, load_s
    in_order = {
        "priority": World(trace, load_s, in_order=True).run().summary(),
        "adaptive": World(trace, load_s, in_order=True, eviction="adaptive").run().summary(),
        "naive": naive.replay(trace, load_s).summary(),
    }
    compared = {
        "LRU": plain.lru(*asked),
        "GDSF": plain.gdsf(*asked),
        "foresight, bound to priority": clairvoyant.load_time(*asked, by_priority=True),
        "foresight, free": clairvoyant.load_time(*asked, by_priority=False),
    }
    begun = time.perf_counter()
    as_it_comes = {policy: World(trace, load_s, eviction=policy).run().summary() for policy in POLICIES}
    as_it_comes["priority, prefetch"] = World(trace, load_s, prefetch=True).run().summary()
    return {
        "events": len(trace.events),
        "requests": len(requests),
        "loads_measured": measured,
        "replay_s": round((time.perf_counter() - begun) / len(as_it_comes), 2),
        "in_order": in_order,
        "compared": {
            name: {"loads": loads, "load_s": round(seconds, 1)} for name, (seconds, loads) in compared.items()
        },
        "bound_s": round(bound.load_time(*asked), 1),
        "as_it_comes": as_it_comes,
    }


def under_load(mix: str, share: float, seconds: float) -> dict[str, Any]:
    """The mix at a steady rate at which foresight, in order, would keep the device busy for `share` of the time."""
    a_day = 500.0
    for _ in range(3):
        trace = traces.cameras(mix, SEED, a_day=a_day, seconds=seconds, steady=True)
        load_s, _ = load_seconds(trace.models)
        a_day *= share * seconds / clairvoyant.busy_s(trace, load_s)
    met = clairvoyant.met(trace, load_s)
    found: dict[str, Any] = {"events_a_day": round(a_day), "events": len(trace.events), "met_by_foresight": len(met)}
    for policy in POLICIES:
        figures = World(trace, load_s, eviction=policy).run()
        found[policy] = {**figures.summary(), "late_but_met_by_foresight": len(figures.late & met)}
    return found


def goals(found: dict[str, Any], loaded: dict[str, Any]) -> list[tuple[str, ...]]:
    """Camera traces against what is to be reached."""
    rows = [("camera trace", "default / foresight bound to priority", "default / adaptive", "p95 / naive's: default",
             "adaptive", f"late at {LOAD:.0%} load, but not by foresight: default", "adaptive")]  # fmt: skip
    for mix in traces.MIXES:
        order, compared, comes = found[mix]["in_order"], found[mix]["compared"], found[mix]["as_it_comes"]
        default, adaptive = (order[p]["load_s"] for p in POLICIES)
        rows.append((
            mix, f"{default / compared['foresight, bound to priority']['load_s']:.2f}", f"{default / adaptive:.1f}",
            *(f"{comes[p]['wait_p95_s'] / order['naive']['wait_p95_s']:.2f}" for p in POLICIES),
            *(f"{loaded[mix][p]['late_but_met_by_foresight']}" for p in POLICIES),
        ))  # fmt: skip
    return [*rows, ("to reach", "<= 1.10", ">= 2 on the street", "<= 0.50", "<= 0.50", "0", "0")]


def distances(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """Seconds spent loading as multiples of the bound, requests answered in the order asked."""
    rows = [("trace", "bound s", "priority", "adaptive", "LRU", "GDSF", "foresight, free", "adaptive / best plain",
             "adaptive, to reach")]  # fmt: skip
    for name, one in found.items():
        order = {policy: one["in_order"][policy]["load_s"] for policy in POLICIES}
        other = {policy: figures["load_s"] for policy, figures in one["compared"].items()}
        rows.append((
            name, f"{one['bound_s']:.0f}",
            *(f"{s / one['bound_s']:.2f}" for s in (*order.values(), other["LRU"], other["GDSF"])),
            f"{other['foresight, free'] / one['bound_s']:.2f}",
            f"{order['adaptive'] / min(other['LRU'], other['GDSF']):.2f}",
            f"<= {TO_REACH[name]:.2f}" if name in TO_REACH else "",
        ))  # fmt: skip
    return [*rows, ("to reach", *[""] * 6, "<= 1.02", "")]


def tables(found: dict[str, Any]) -> str:
    head = (
        "trace",
        "served",
        "policy",
        "loads",
        "load s",
        "x bound",
        "hits",
        "p50 s",
        "p95 s",
        "p99 s",
        "missed",
        "busy",
    )
    rows = [head]
    for name, one in found.items():

        def times(figures: dict[str, float], bound_s: float = one["bound_s"]) -> str:
            return f"{figures['load_s'] / bound_s:.2f}"

        for served, policies in (("in order", one["in_order"]), ("as it comes", one["as_it_comes"])):
            rows += [
                (name, served, policy, str(f["loads"]), f"{f['load_s']:.0f}", times(f) if served == "in order" else "",
                 f"{f['hit_ratio']:.3f}", f"{f['wait_p50_s']:.2f}", f"{f['wait_p95_s']:.2f}", f"{f['wait_p99_s']:.2f}",
                 str(f["missed"]), f"{f['busy_share']:.3f}")
                for policy, f in policies.items()
            ]  # fmt: skip
        rows += [(name, "in order", policy, str(f["loads"]), f"{f['load_s']:.0f}", times(f), *[""] * 6)
                 for policy, f in one["compared"].items()]  # fmt: skip
        rows.append((name, "in order", "bound", "", f"{one['bound_s']:.0f}", "1.00", *[""] * 6))
    return common.table(rows)


def plot(found: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(traces.MIXES), figsize=(13, 3.6))
    for axis, mix in zip(axes, traces.MIXES, strict=True):
        one = found[mix]
        bars = {policy: f["load_s"] for policy, f in [*one["in_order"].items(), *one["compared"].items()]}
        bars = {name.replace("foresight, ", "foresight,\n"): seconds for name, seconds in bars.items()}
        axis.bar(range(len(bars)), list(bars.values()), color=["C0", "C1", "C7", "C7", "C7", "C2", "C2"])
        axis.axhline(one["bound_s"], color="C3", linewidth=1)
        axis.set_xticks(range(len(bars)), list(bars), rotation=75, fontsize=7)
        axis.set_title(f"{mix}: seconds of loading; line: proven bound", fontsize=9)
    figure.tight_layout()
    figure.savefig(common.RESULTS / "replay.png", dpi=80)


def shipped(part: float = 1.0) -> list[Trace]:
    """The invented traces, or a part of each."""
    return [
        *(traces.cameras(mix, SEED, seconds=part * DAY_S) for mix in traces.MIXES),
        traces.zipf(SEED, requests=int(20_000 * part)),
        traces.round_robin(SEED, requests=int(4_000 * part)),
        traces.bursts(SEED, count=int(400 * part)),
    ]


def real(file: Path) -> list[Trace]:
    asks = gentd26.read(file)
    return [gentd26.trace(asks, fit, equal=equal) for equal in (True, False) for fit in gentd26.FIT]


def saved() -> dict[str, Any]:
    """What was measured with real requests last time."""
    file = common.RESULTS / "replay.json"
    found = json.loads(file.read_text())["traces"] if file.exists() else {}
    return {name: one for name, one in found.items() if name.startswith("GenTD26")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="two hours instead of a day, nothing is saved")
    parser.add_argument("--gentd26", type=Path, metavar="FILE", help=f"also replay real requests: {gentd26.SOURCE}")
    arguments = parser.parse_args()
    part = 1 / 12 if arguments.quick else 1.0
    replayed = shipped(part) + (real(arguments.gentd26) if arguments.gentd26 else [])
    found = {trace.name: replay(trace) for trace in replayed}
    loaded = {mix: under_load(mix, LOAD, part * DAY_S / 6) for mix in traces.MIXES}
    cost = scheduler.cost()
    measured = sorted({name for one in found.values() for name in one["loads_measured"]})
    print(tables(found))
    print()
    print(
        "seconds spent loading / a proven lower bound, which holds for requests that are answered in the order asked:"
    )
    print(common.table(distances(found)))
    print()
    print(common.table(goals(found, loaded)))
    adversarial = found["round robin"]
    ours, naives = adversarial["as_it_comes"]["priority"], adversarial["in_order"]["naive"]
    ratio = naives["duration_s"] / ours["duration_s"]
    longest = max(f["wait_max_s"] for one in found.values() for f in one["as_it_comes"].values())
    print(f"\nround robin: {ratio:.1f} times the naive policy's requests per second; to reach: >= 5")
    print(f"longest wait, as it comes, on any trace: {longest:.1f} s of the deadline's 30")
    print(f"scheduler, {cost['models']} models, {cost['queued']} queued: {cost['median_us']} us per event (median), "
          f"{cost['contested_median_us']} with a model waiting for room; to reach: <= 20")  # fmt: skip
    print(f"footprints: as declared. Load times measured for {', '.join(measured) or 'none'}; "
          "else assumed, 0.3 s + 1 s per 1,000 MB")  # fmt: skip
    if not arguments.quick:
        common.save("replay", {"traces": {**saved(), **found}, "under_load": loaded, "scheduler": cost})
        plot(found)


if __name__ == "__main__":
    main()
