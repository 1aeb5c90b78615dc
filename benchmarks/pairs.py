"""This checkout against another one, in turns: `python -m benchmarks.pairs OTHER [--pairs 20] [--parts …]`.

OTHER is the root of another checkout, such as a git worktree of an earlier commit. A pair is one short measurement of
each, in alternating order, so that a host that slows down slows both. The figure to quote is the median of the pairs'
ratios this / other, with its 95 % interval by the sign test (binomial, no assumption about the noise).

Each pair has processes of its own: two brokers of one and the same checkout differ by up to 5 % in the CPU time of a
request for as long as they live, by where the system happened to place their memory. Both are compiled first.

The parts:

* `requests`: latency (`…_us`), throughput (`four_us`: time per request with four callers), and CPU time per request of
  the broker and of the client.
* `loads`: a toy model's load, a process forked for it first and then by one that stands by, and its unload.
* `scheduler`: time per event, by each checkout's own `benchmarks/scheduler.py`, in a new process each time.
* `start`: imports of the client, of the broker, and the start of a broker until it answers.

A pair of all parts takes about half a minute.
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
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from benchmarks import common

PARTS = {"requests": 2, "loads": 1, "scheduler": 1, "start": 1}  # part → measurements in each pair
CONFIG = """
[broker]
device = "cpu"
footprint = "declared"
standby = {standby}
worker_threads = 1

[[models]]
name = "peek"
adapter = "benchmarks.adapters:SlowToLoad"
options = {{ seconds = 0.0 }}
vram_mb = 10
"""
CLIENT = """
import json, statistics, sys, threading, time
import numpy as np
import zoo
from zoo import Client

endpoint, broker, root = sys.argv[1], int(sys.argv[2]), sys.argv[3]
assert zoo.__file__.startswith(root), zoo.__file__
CLOCK = (~broker << 3) | 2  # clock_getcpuclockid(3), which the standard library lacks
frame, small = np.zeros((1080, 1920, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)

def seconds(call):
    at = time.perf_counter()
    call()
    return time.perf_counter() - at

def p50(call, count):
    return statistics.median([seconds(call) for _ in range(count)]) * 1e6

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

def requests(client):
    before, own = time.clock_gettime(CLOCK), time.process_time()
    with client.frame(frame.shape) as shared:
        arena = p50(lambda: client.infer("peek", shared), 300)
    copied = p50(lambda: client.infer("peek", frame), 200)
    little = p50(lambda: client.infer("peek", small), 300)
    at = time.monotonic()
    done = four(client, 1.0)
    four_us = (time.monotonic() - at) / done * 1e6
    return {
        "arena_us": arena, "copied_us": copied, "small_us": little, "four_us": four_us,
        "broker_cpu_us": (time.clock_gettime(CLOCK) - before) * 1e6 / (done + 800),
        "client_cpu_us": (time.process_time() - own) * 1e6 / (done + 800),
    }

def loads(client):
    unloaded, loaded = [], []
    for _ in range(3 if PAUSE else 7):
        unloaded.append(seconds(lambda: client.unload("peek")))
        if PAUSE:
            time.sleep(PAUSE)  # until another process stands by
        loaded.append(seconds(lambda: client.get_model("peek")))
    return {"unload_ms": statistics.median(unloaded) * 1e3, "load_ms": statistics.median(loaded) * 1e3}

with Client(endpoint, timeout=60.0) as client:
    client.get_model("peek")
    for line in sys.stdin:
        part, PAUSE = line.split()[0], float(line.split()[1])
        client.infer("peek", small)
        print(json.dumps({"requests": requests, "loads": loads}[part](client)), flush=True)
"""
SCHEDULER = "import json; from benchmarks import scheduler; print(json.dumps(scheduler.cost()))"
IMPORT = "import json, sys, time; at = time.perf_counter(); {}; print((time.perf_counter() - at) * 1e3)"


class Side:
    """One checkout: its brokers and clients, without a process in reserve and with one."""

    def __init__(self, root: Path, compiled: Path, folder: Path, part: str) -> None:
        self.root, self._folder = root, folder
        self._env = {**os.environ, "PYTHONPATH": str(root), "PYTHONPYCACHEPREFIX": str(compiled)}
        self._processes: list[subprocess.Popen[Any]] = []
        self._clients: dict[int, subprocess.Popen[str]] = {}
        for standby in (0, 1):
            (folder / str(standby)).mkdir(parents=True)
            (folder / str(standby) / "config.toml").write_text(CONFIG.format(standby=standby))
            if part == "loads" or (part == "requests" and standby):
                self._clients[standby] = self._client(folder / str(standby))

    def _broker(self, folder: Path) -> subprocess.Popen[bytes]:
        with open(folder / "log", "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "zoo.broker", "--config", "config.toml", "--endpoint", f"ipc://{folder}/b"],
                cwd=folder, env=self._env, stderr=log, stdout=log,
            )  # fmt: skip

    def _client(self, folder: Path) -> subprocess.Popen[str]:
        broker = self._broker(folder)
        self._processes.append(broker)
        client = subprocess.Popen(
            [sys.executable, "-c", CLIENT, f"ipc://{folder}/b", str(broker.pid), str(self.root)],
            cwd=folder, env=self._env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._processes.insert(0, client)
        return client

    def _told(self, standby: int, part: str, pause: float = 0.0) -> dict[str, float]:
        client = self._clients[standby]
        _stream(client.stdin).write(f"{part} {pause}\n")
        _stream(client.stdin).flush()
        told: dict[str, float] = json.loads(_stream(client.stdout).readline())
        return told

    def _printed(self, code: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=self._folder, env=self._env, stdout=subprocess.PIPE, check=True, text=True
        )
        return json.loads(done.stdout)

    def requests(self) -> dict[str, float]:
        return self._told(1, "requests")

    def loads(self) -> dict[str, float]:
        forked, waiting = self._told(0, "loads"), self._told(1, "loads", 1.2)
        return {
            "load_forked_ms": forked["load_ms"],
            "load_standby_ms": waiting["load_ms"],
            "unload_ms": forked["unload_ms"],
        }

    def scheduler(self) -> dict[str, float]:
        told: dict[str, float] = self._printed(SCHEDULER)
        return {f"event_{name}": value for name, value in told.items() if name.endswith("_us")}

    def start(self) -> dict[str, float]:
        begun = time.perf_counter()
        broker = self._broker(self._folder / "0")
        code = f"from zoo import Client; c = Client('ipc://{self._folder}/0/b', timeout=30); c.get_status(); print(0)"
        self._printed(code)
        took = time.perf_counter() - begun
        broker.terminate()
        broker.wait()
        return {
            "import_client_ms": self._printed(IMPORT.format("from zoo import Client")),
            "import_broker_ms": self._printed(IMPORT.format("import broker.service")),
            "broker_answers_ms": took * 1e3,
        }

    def close(self) -> None:
        for client in self._clients.values():
            _stream(client.stdin).close()
        for process in self._processes:  # clients first
            if process.stdin is None:
                process.terminate()
            process.wait()


def _stream(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """Median, and the bounds that hold it in 95 of 100 cases."""
    ordered, n = sorted(ratios), len(ratios)
    below, tail = 0, 0.0
    while tail + math.comb(n, below) / 2**n <= 0.025:
        tail += math.comb(n, below) / 2**n
        below += 1
    below = max(0, below - 1)
    return statistics.median(ordered), ordered[below], ordered[n - 1 - below]


def measure(roots: tuple[Path, Path], parts: list[str], pairs: int) -> dict[str, list[tuple[float, float]]]:
    """Figure → its pairs (this, other)."""
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="zoo-p-", dir="/tmp") as name:
        compiled = [compile_packages(root, Path(name) / f"compiled{n}") for n, root in enumerate(roots)]
        for part in parts:
            for pair in range(pairs):
                folders = [Path(name) / f"{part}{pair}-{n}" for n in (0, 1)]
                sides = [Side(*which, part) for which in zip(roots, compiled, folders, strict=True)]
                try:
                    for key, values in _pair([getattr(side, part) for side in sides], PARTS[part], pair % 2).items():
                        found.setdefault(key, []).append(values)
                finally:
                    for side in sides:
                        side.close()
    return found


def _pair(calls: list[Callable[[], dict[str, float]]], times: int, first: int) -> dict[str, tuple[float, float]]:
    """Figure → its median of so many measurements of each of the two, in turns."""
    for call in calls:
        call()  # warm
    told: list[list[dict[str, float]]] = [[], []]
    for turn in range(first, first + times):
        for n in (0, 1) if turn % 2 else (1, 0):
            told[n].append(calls[n]())
    this, other = ({key: statistics.median(one[key] for one in side) for key in side[0]} for side in told)
    return {key: (value, other[key]) for key, value in this.items()}


def compile_packages(root: Path, compiled: Path) -> Path:
    """A process that has to compile its modules starts later, whatever it does then."""
    command = [sys.executable, "-m", "compileall", "-q", "zoo", "broker", "workers", "benchmarks"]
    subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPYCACHEPREFIX": str(compiled)}, check=True)
    return compiled


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="root of the other checkout")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    args = parser.parse_args()
    here = Path(__file__).resolve().parent.parent
    found = measure((here, args.other.resolve()), args.parts, args.pairs)
    result: dict[str, Any] = {"pairs": args.pairs, "this_to_other": {}}
    rows = [("figure", "this", "other", "ratio", "95 % interval")]
    for key, values in found.items():
        this, other = (statistics.median(side) for side in zip(*values, strict=True))
        middle, low, high = interval([a / b for a, b in values])
        result["this_to_other"][key] = {
            "ratio": [round(x, 3) for x in (middle, low, high)], "this": round(this, 2), "other": round(other, 2),
        }  # fmt: skip
        rows.append((key, f"{this:.1f}", f"{other:.1f}", f"{middle:.3f}", f"{low:.3f} to {high:.3f}"))
    print(common.table(rows))
    common.save("pairs", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
