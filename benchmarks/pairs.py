"""This checkout against another one, in turns: `python -m benchmarks.pairs OTHER [--pairs 20]`.

OTHER is the root of another checkout, such as a git worktree of an earlier commit. Each has a broker of its own that
stays up, and a client process; a pair is one short measurement of each, in alternating order, so that a host that slows
down slows both. The figure to quote is the median of the pairs' ratios this / other, with its 95 % interval by the
sign test (binomial, no assumption about the noise).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import common

CONFIG = """
[broker]
device = "cpu"
footprint = "declared"

[[models]]
name = "peek"
adapter = "benchmarks.adapters:SlowToLoad"
options = { seconds = 0.0 }
vram_mb = 10
"""
CLIENT = """
import json, os, statistics, sys, threading, time
import numpy as np
from zoo import Client

endpoint, broker, root = sys.argv[1], int(sys.argv[2]), sys.argv[3]
import zoo
assert zoo.__file__.startswith(root), zoo.__file__
TICK = os.sysconf("SC_CLK_TCK")
frame, small = np.zeros((1080, 1920, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)

def cpu():
    fields = open(f"/proc/{broker}/stat").read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK

def p50(call, count):
    took = []
    for _ in range(count):
        at = time.perf_counter()
        call()
        took.append(time.perf_counter() - at)
    return statistics.median(took) * 1e6

def four(client, seconds):
    counts, end = [0] * 4, time.monotonic() + seconds
    def work(n):
        while time.monotonic() < end:
            client.infer("peek", small)
            counts[n] += 1
    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    return sum(counts)

with Client(endpoint, timeout=60.0) as client:
    client.get_model("peek")
    with client.frame(frame.shape) as shared:
        for line in sys.stdin:
            before, at = cpu(), time.monotonic()
            done = four(client, 1.0)
            told = {
                "arena_us": p50(lambda: client.infer("peek", shared), 300),
                "copied_us": p50(lambda: client.infer("peek", frame), 200),
                "small_us": p50(lambda: client.infer("peek", small), 300),
                "four_us": 1e6 / done,
                "broker_cpu_us": (cpu() - before) * 1e6 / (done + 800),
            }
            print(json.dumps(told), flush=True)
"""


class Side:
    """One checkout: its broker and its client."""

    def __init__(self, root: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.toml").write_text(CONFIG)
        env = {**os.environ, "PYTHONPATH": str(root)}
        endpoint = f"ipc://{folder}/b"
        with open(folder / "log", "wb") as log:
            self._broker = subprocess.Popen(
                [sys.executable, "-m", "zoo.broker", "--config", "config.toml", "--endpoint", endpoint],
                cwd=folder, env=env, stderr=log, stdout=log,
            )  # fmt: skip
        self._client = subprocess.Popen(
            [sys.executable, "-c", CLIENT, endpoint, str(self._broker.pid), str(root)],
            cwd=folder, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def measure(self) -> dict[str, float]:
        assert self._client.stdin is not None
        assert self._client.stdout is not None
        self._client.stdin.write("\n")
        self._client.stdin.flush()
        told: dict[str, float] = json.loads(self._client.stdout.readline())
        return told

    def close(self) -> None:
        assert self._client.stdin is not None
        self._client.stdin.close()
        self._client.wait()
        self._broker.terminate()
        self._broker.wait()


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """Median, and the bounds that hold it in 95 of 100 cases."""
    ordered, n = sorted(ratios), len(ratios)
    below, tail = 0, 0.0
    while tail + math.comb(n, below) / 2**n <= 0.025:
        tail += math.comb(n, below) / 2**n
        below += 1
    below = max(0, below - 1)
    return statistics.median(ordered), ordered[below], ordered[n - 1 - below]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("other", type=Path, help="root of the other checkout")
    parser.add_argument("--pairs", type=int, default=20)
    args = parser.parse_args()
    here = Path(__file__).resolve().parent.parent
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="zoo-p-", dir="/tmp") as name:
        sides = [Side(root, Path(name) / str(n)) for n, root in enumerate((here, args.other.resolve()))]
        try:
            for side in sides:
                side.measure()  # warm
            for pair in range(args.pairs):
                order = sides if pair % 2 else sides[::-1]
                told = {id(side): side.measure() for side in order}
                for key, value in told[id(sides[0])].items():
                    found.setdefault(key, []).append(value / told[id(sides[1])][key])
        finally:
            for side in sides:
                side.close()
    result: dict[str, Any] = {"pairs": args.pairs, "this_to_other": {}}
    for key, ratios in found.items():
        middle, low, high = interval(ratios)
        result["this_to_other"][key] = [round(x, 3) for x in (middle, low, high)]
        print(f"{key:16} {middle:.3f}  ({low:.3f} to {high:.3f})")
    common.save("pairs", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
