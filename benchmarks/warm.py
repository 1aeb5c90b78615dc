"""What standby processes and copies in host memory save of a swap, part by part.

`python -m benchmarks.warm [--quick]`. Four brokers, with and without each of them, take turns with the same swaps, so
that a host that slows down slows all alike; what is reported are ratios within a turn. The models have the published
sizes and random weights, in the page cache.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import zoo
from benchmarks import common, swap
from zoo.weights.inventory import marker

MODELS = {
    **swap.MODELS,
    "vit-age-classifier": ("workers.models.classify", "ImageClassifier", "vit-age-classifier"),
}
VARIANTS = {  # keys of [broker]
    "neither": "standby = 0",
    "standby": "standby = 1",
    "copies": "standby = 0\nhost_cache_mb = 2000",
    "both": "standby = 1\nhost_cache_mb = 2000",
}

Measured = dict[str, dict[str, list[dict[str, float]]]]  # model → variant → the parts of a swap, a dictionary a turn


def measure(weights: Path, turns: int, device: str = "cpu") -> tuple[Measured, dict[str, float]]:
    """Swaps in turns, and the MB of each model's copy."""
    image = swap.frame()
    found: Measured = {name: {variant: [] for variant in VARIANTS} for name in MODELS}
    with contextlib.ExitStack() as stack:
        brokers = {}
        for variant, keys in VARIANTS.items():
            where = stack.enter_context(common.folder())
            opened = swap.traced_broker(where, device, weights, models=MODELS, keys=keys)
            endpoint, trace, _ = stack.enter_context(opened)
            brokers[variant] = stack.enter_context(zoo.Client(endpoint, timeout=60)), trace
        for variant, (client, _) in brokers.items():
            for name in MODELS:
                client.infer(name, image)
                while "host_cache" in VARIANTS[variant] and name not in client.get_status()["host_cache"]["models"]:
                    time.sleep(0.01)
        for _ in range(turns):
            for name in MODELS:
                for variant, (client, trace) in brokers.items():
                    found[name][variant].append(swap.swap(client, name, image, trace))
        copies = brokers["copies"][0].get_status()["host_cache"]["models"]
    return found, copies


def summary(measured: Measured, copies: dict[str, float]) -> dict[str, Any]:
    """Per model and variant: median parts and total in ms, and how many times as long a swap takes with neither."""
    out: dict[str, Any] = {}
    for name, of in measured.items():
        totals = {variant: [sum(row.values()) for row in rows] for variant, rows in of.items()}
        out[name] = {"copy_mb": copies[name], "turns": len(totals["neither"])}
        for variant, rows in of.items():
            pairs = zip(totals["neither"], totals[variant], strict=True)
            out[name][variant] = {
                "swap_ms": statistics.median(totals[variant]),
                "parts_ms": swap.median_parts(rows),
                "gain": statistics.median(plain / mine for plain, mine in pairs),
            }
    return out


def tables(figures: dict[str, Any]) -> str:
    out = []
    for name, of in figures.items():
        rows: list[tuple[str, ...]] = [(f"{name} ({of['copy_mb']:.0f} MB), ms (median)", *VARIANTS)]
        for part, meaning in swap.PARTS.items():
            rows.append((f"  {meaning}", *(f"{of[variant]['parts_ms'][part]:.1f}" for variant in VARIANTS)))
        rows.append(("all of it", *(f"{of[variant]['swap_ms']:.0f}" for variant in VARIANTS)))
        rows.append(("with neither / this", *(f"{of[variant]['gain']:.2f}x" for variant in VARIANTS)))
        out.append(common.table(rows))
    return "\n\n".join(out)


def forget_stand_ins(weights: Path) -> None:
    """A worker reads a stand-in once more, to see that it is one; what is published is no stand-in."""
    for _, _, path in MODELS.values():
        marker(weights / path).unlink(missing_ok=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer turns, and nothing is written")
    args = parser.parse_args(argv)
    with common.folder() as weights:
        subprocess.run([sys.executable, "-m", "benchmarks.published", weights, *MODELS], check=True)
        forget_stand_ins(Path(weights))
        figures = summary(*measure(Path(weights), 3 if args.quick else 11))
    print(tables(figures))
    if not args.quick:
        common.save("warm", figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
