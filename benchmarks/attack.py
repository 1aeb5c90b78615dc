"""What good clients feel of an attack: their p95 during each kind of flood, to calm in the same run.

`python -m benchmarks.attack [--quick] [KIND…]`. Attackers (`tests/flooder.py`) run at the lowest priority, because what
is measured is the broker, not how the kernel shares two cores. Calm and attack take turns.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

import zoo
from benchmarks import common
from benchmarks.latency import SHAPE

ROOT = Path(__file__).resolve().parent.parent
CONFIG = """[broker]
device = "cpu"
footprint = "declared"
[[models]]
name = "toy"
adapter = "tests.toy:Toy"
vram_mb = 10
"""
KINDS = {
    "silent": 2000, "lifelines": 500, "commands": 8, "endless": 4000, "endless-after-hello": 4000, "unread": 1,
    "waiting": 10,
}  # fmt: skip


def asked(client: zoo.Client, frame: zoo.Frame, until: threading.Event, least: int) -> list[float]:
    """Milliseconds of requests, one after the other, until the event, and `least` of them at least."""
    times: list[float] = []
    while len(times) < least or not until.is_set():
        start = time.perf_counter()
        client.infer("toy", frame, do="peek")
        times.append((time.perf_counter() - start) * 1e3)
    return times


def p95(times: list[float]) -> float:
    return float(np.percentile(times, 95))


def attacked(kind: str, endpoint: str, pid: int, client: zoo.Client, frame: zoo.Frame) -> tuple[list[float], float]:
    """Times of requests while attackers are at work, and the most that the broker was resident."""
    command = ["nice", "-n", "19", sys.executable, "-m", "tests.flooder", kind, endpoint[6:], str(KINDS[kind])]
    flooder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    assert flooder.stdout is not None
    done, largest = threading.Event(), [0.0]

    def watch() -> None:
        while not done.wait(0.02):
            largest[0] = max(largest[0], common.resident_mb(pid))

    def wait() -> None:
        flooder.stdout.readline()  # type: ignore[union-attr]
        done.set()

    watchers = [threading.Thread(target=watch), threading.Thread(target=wait)]
    for watcher in watchers:
        watcher.start()
    times = asked(client, frame, done, 200)
    for watcher in watchers:
        watcher.join()
    flooder.communicate(timeout=30)
    return times, largest[0]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one turn")
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    args = parser.parse_args(argv)
    never = threading.Event()
    never.set()
    rows: list[tuple[str, ...]] = [("attack", "p95 calm, ms", "p95 attacked, ms", "ratio", "resident at most, MB")]
    figures: dict[str, dict[str, float]] = {}
    with (
        common.folder() as where,
        common.broker(CONFIG, where) as (endpoint, pid),
        zoo.Client(endpoint, timeout=30, arena_mb=8) as client,
        client.frame(SHAPE) as frame,
    ):
        asked(client, frame, never, 300)
        for kind in args.kinds or KINDS:
            pairs: list[tuple[float, float]] = []
            largest = 0.0
            for _ in range(1 if args.quick else 3):
                calm = p95(asked(client, frame, never, 1000))
                times, resident = attacked(kind, endpoint, pid, client, frame)
                pairs.append((calm, p95(times)))
                largest = max(largest, resident)
            calm, hit = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(b / a for a, b in pairs)
            figures[kind] = {"calm_ms": calm, "attacked_ms": hit, "ratio": ratio, "resident_mb": largest}
            rows.append((kind, f"{calm:.2f}", f"{hit:.2f}", f"{ratio:.1f}", f"{largest:.0f}"))
    print(common.table(rows))
    if not args.quick:
        common.save("attack", figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
