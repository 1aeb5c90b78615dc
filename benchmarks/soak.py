"""Does anything grow? `python -m benchmarks.soak [SECONDS]` (3,600 by default): broker and gateway under mixed load.

Models come and go every two seconds, processes die now and then, clients come and go, requests are refused, cancelled
and too late, by the client and over HTTP. Meanwhile memory, descriptors and threads of broker, nursery and gateway,
what they log and write, and the 99th percentile of a warm request are noted, 120 times a run at most.

What is bounded is filled first, by the same load in haste: the kept lines of the log, the last decisions and requests.
The percentile is judged as a ratio to that of a floor (a byte to `cat` and back, after each request): what else the
machine does slows both.

The test. Of each series the second half counts. It has grown if both hold: the whole 95 % confidence interval of its
Theil–Sen slope (the median of the slopes between all pairs of its values) lies above 0, and by that slope it has risen
by more than its allowance (`Series.allowance`). Values of one process are not independent, which makes the interval too
narrow: hence the second condition. Exit status 1 when a series has grown, or an answer was wrong.

The load is paced: about a fifth of a core, so that a machine can do other things beside it. Results go to
benchmarks/results/soak.json.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

import zoo
from benchmarks import common
from zoo.errors import ZooError
from zoo.system.smaps import unique_mb

CONFIG = """
[broker]
device = "cpu"
footprint = "declared"
vram_budget_gb = 0.1
state_dir = "state"
metrics = "127.0.0.1:0"
host_cache_mb = 16
restore = true
record = "state/requests"
record_mb = 1
[gateway]
http = "127.0.0.1:0"
[[models]]
name = "hot"
adapter = "benchmarks.adapters:Corner"
vram_mb = 10
pinned = true
[[models]]
name = "frail"
adapter = "benchmarks.adapters:Frail"
vram_mb = 10
[[models]]
name = "wide"
adapter = "benchmarks.adapters:Wide"
vram_mb = 10
""" + "".join(
    f"""
[[models]]
name = "turn{i}"
adapter = "benchmarks.adapters:SlowToLoad"
vram_mb = 40
options = {{ seconds = 0.02 }}
"""
    for i in range(4)
)
LONGEST_S, SHORTEST_S = 30.0, 2.0  # between two looks
LOOKS = 120
SMALL = np.full((224, 224, 3), 7, np.uint8)
LINES = 5500  # more than the broker keeps of its log
CONFIDENCE = 0.95
LEAST = 6  # values of which a slope is taken


@dataclass
class Series:
    """One quantity over time. `allowance`: by how much it may rise within half a run, in its unit; `share`: or by so
    much of its median, whichever is more.
    """

    unit: str
    allowance: float
    share: float = 0.0
    at: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, at: float, value: float) -> None:
        self.at.append(at)
        self.values.append(value)

    def judge(self) -> dict[str, Any]:
        """What the second half shows, per hour."""
        at, values = (np.asarray(one[len(one) // 2 :], float) for one in (self.at, self.values))
        if len(values) < LEAST:
            return {"unit": self.unit, "values": len(values), "grown": False}
        slope, _, low, high = stats.theilslopes(values, at, CONFIDENCE)
        rise = slope * (at[-1] - at[0])
        allowed = max(self.allowance, self.share * float(np.median(values)))
        return {
            "unit": self.unit, "values": len(values), "first": round(self.values[0], 3),
            "median": round(float(np.median(values)), 3), "last": round(self.values[-1], 3),
            "slope_per_hour": round(slope * 3600, 3),
            "interval_per_hour": [round(low * 3600, 3), round(high * 3600, 3)], "rise": round(float(rise), 3),
            "allowed": round(allowed, 3) if allowed < math.inf else None, "grown": bool(low > 0 and rise > allowed),
        }  # fmt: skip


# ---------------------------------------------------------------- the load


class Load:
    """What clients do, each kind in a thread of its own and at a pace of its own, until `stop`.

    Attributes:
        counts: by kind of request, and by the code of each error.
        wrong: what should not have happened.
    """

    def __init__(self, endpoint: str, port: int) -> None:
        self.endpoint, self.port = endpoint, port
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.stop = threading.Event()
        self._times: list[float] = []
        self._floors: list[float] = []
        self._cat = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self._client = zoo.Client(endpoint, timeout=30, arena_mb=32)
        self._draw = random.Random(1)
        kinds = ((self._warm, 0.05), (self._turn, 2.0), (self._over_http, 0.4), (self._odd, 0.5))
        self._threads = [threading.Thread(target=self._pace, args=kind) for kind in kinds]

    def fill(self) -> None:
        """What the broker keeps of its past, so that it does not grow into its bounds later."""
        lines, n = 0, 0
        while lines < LINES:
            for _ in range(50):
                n += 1
                self._turn(n)
                self._warm(n)
                self._odd(n)
                self._over_http(n)
            more = True
            while more:
                page = self._client.logs(since=lines)
                lines, more = page["next"], page["more"]
        self.p99_ms()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join()
        self._client.close()
        self._cat.communicate()

    def p99_ms(self) -> tuple[float, float] | None:
        """Of the warm requests since the last call, and of the floor."""
        times, floors, self._times, self._floors = self._times, self._floors, [], []
        count = min(len(times), len(floors))
        return (1000 * sorted(times)[count * 99 // 100], 1000 * sorted(floors)[count * 99 // 100]) if count else None

    def _pace(self, what: Callable[[int], None], every_s: float) -> None:
        for n in itertools.count():
            if self.stop.wait(every_s * self._draw.uniform(0.5, 1.5)):
                return
            try:
                what(n)
                self.counts[what.__name__.strip("_")] += 1
            except ZooError as e:
                self.counts[e.code] += 1
                if not e.retryable:
                    self.wrong.append(f"{what.__name__}: {e}")
            except Exception as e:
                self.wrong.append(f"{what.__name__}: {type(e).__name__}: {e}")

    # ------------------------------------------------------------ kinds of load

    def _warm(self, n: int) -> None:
        begun = time.perf_counter()
        answer = self._client.infer("hot", SMALL)
        self._times.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        assert self._cat.stdin is not None
        assert self._cat.stdout is not None
        self._cat.stdin.write(b".")
        self._cat.stdout.read(1)
        self._floors.append(time.perf_counter() - begun)
        self._check(answer == {"value": 7}, f"hot answered {answer}")

    def _turn(self, n: int) -> None:
        """A model that is not there: another is evicted for it, since two of four fit."""
        self._check(self._client.infer(f"turn{n % 4}", SMALL) == {"value": 7}, "a model that came back answered wrong")

    def _over_http(self, n: int) -> None:
        body = json.dumps({"inputs": [{"name": "image", "shape": [2, 2, 3], "datatype": "UINT8", "data": [7] * 12}]})
        asks = [
            ("POST", "/v2/models/hot/infer", body, 200), ("GET", "/v2/models/hot", None, 200),
            ("POST", "/v2/models/nothing/infer", body, 404), ("GET", "/metrics", None, 200),
            ("POST", "/v2/models/hot/infer", "{", 400), ("POST", "/v2/models/hot/infer", body, 200),
        ]  # fmt: skip
        method, path, given, status = asks[n % len(asks)]
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, given, {"Content-Type": "application/json"} if given else {})
            response = connection.getresponse()
            said = response.read()
            self._check(response.status == status, f"{method} {path}: {response.status} {said[:200]!r}")
        finally:
            connection.close()

    def _odd(self, n: int) -> None:
        odd = (
            self._comes_and_goes, self._leases, self._too_late, self._refused, self._wide, self._looks, self._frame,
        )  # fmt: skip
        odd[n % len(odd)](n)
        if n % 60 == 30:
            self._dies(n)

    def _comes_and_goes(self, n: int) -> None:
        with zoo.Client(self.endpoint, timeout=30, arena_mb=2) as client:
            client.infer("hot", SMALL)

    def _leases(self, n: int) -> None:
        with self._client.load(f"turn{n % 4}") as lease:
            lease(SMALL)

    def _too_late(self, n: int) -> None:
        with contextlib.suppress(ZooError):
            self._client.infer(f"turn{(n + 2) % 4}", SMALL, timeout=0.002)

    def _refused(self, n: int) -> None:
        for model, options in (("nothing", {}), ("hot", {"boxes": [[0, 0, float("nan"), 1]]})):
            try:
                self._client.infer(model, SMALL, **options)
                self.wrong.append(f"{model} with {options} was answered")
            except (zoo.ModelNotFound, zoo.InvalidInput):
                pass

    def _wide(self, n: int) -> None:
        kept = [self._client.infer("wide", SMALL)["field"] for _ in range(3)]
        self._check(all(int(one[-1, -1]) == 7 for one in kept), "a large result is not what was sent")

    def _looks(self, n: int) -> None:
        for look in (self._client.get_status, self._client.models, self._client.explain, self._client.logs):
            look()

    def _frame(self, n: int) -> None:
        with self._client.frame((1080, 1920, 3)) as frame:
            frame.array[0, 0, 0] = 7
            self._client.infer_many(frame, ["hot", "wide"])

    def _dies(self, n: int) -> None:
        with contextlib.suppress(zoo.WorkerCrashed):
            unseen = np.frombuffer(os.urandom(192), np.uint8).reshape(8, 8, 3)  # else it is quarantined
            self._client.infer("frail", unseen)
            self.wrong.append("a model answered that should have died")

    def _check(self, ok: bool, what: str) -> None:
        if not ok:
            self.wrong.append(what)


# ---------------------------------------------------------------- what is looked at


class Look:
    """At processes by name, and at the files that they write."""

    def __init__(self, pids: dict[str, int], logs: dict[str, Path], state: Path) -> None:
        self._pids, self._logs, self._state = pids, logs, state
        self._sizes: dict[str, tuple[float, int]] = {}
        self.series = {
            **{f"{name}: resident": Series("MB", 1.0, 0.005) for name in pids},
            **{f"{name}: its own": Series("MB", 0.5, 0.005) for name in pids},
            **{f"{name}: descriptors": Series("", 1.0) for name in pids},
            **{f"{name}: threads": Series("", 0.5) for name in pids},
            **{f"{name}: log": Series("KB a minute", 2.0, 0.2) for name in logs},
            "state_dir": Series("KB", 64.0, 0.1),  # with the file of the recording, which is emptied now and then
            "p99 of a warm request": Series("ms", math.inf),
            "p99 of the floor": Series("ms", math.inf),
            "p99 to the floor's": Series("times", 0.5, 0.5),
        }

    def take(self, at: float, p99_ms: tuple[float, float] | None) -> None:
        for name, pid in self._pids.items():
            self.series[f"{name}: resident"].add(at, common.resident_mb(pid))
            self.series[f"{name}: its own"].add(at, unique_mb(pid) or 0.0)
            self.series[f"{name}: descriptors"].add(at, len(os.listdir(f"/proc/{pid}/fd")))
            self.series[f"{name}: threads"].add(at, len(os.listdir(f"/proc/{pid}/task")))
        for name, file in self._logs.items():
            before, size = self._sizes.get(name), file.stat().st_size
            self._sizes[name] = at, size
            if before is not None:
                self.series[f"{name}: log"].add(at, (size - before[1]) / 1024 / (at - before[0]) * 60)
        self.series["state_dir"].add(at, sum(f.stat().st_size for f in self._state.rglob("*") if f.is_file()) / 1024)
        if p99_ms is not None:
            own, floor = p99_ms
            self.series["p99 of a warm request"].add(at, own)
            self.series["p99 of the floor"].add(at, floor)
            self.series["p99 to the floor's"].add(at, own / floor)

    def cpu_seconds(self) -> float:
        return sum(map(common.cpu_seconds, self._pids.values()))


@contextlib.contextmanager
def running(module: str, config: Path, endpoint: str, said: str) -> Iterator[tuple[int, Path, str]]:
    """A program of the zoo's: its process, the file of its log, and what follows `said` in it."""
    file = config.parent / f"{module}.log"
    with open(file, "wb") as log:
        command = [sys.executable, "-m", module, "--config", str(config), "--endpoint", endpoint]
        process = subprocess.Popen(command, stderr=log)
    try:
        while not (found := re.search(said + r"(\S*)", file.read_text())):
            if process.poll() is not None:
                raise RuntimeError(f"{module} has ended: {file.read_text()}")
            time.sleep(0.05)
        yield process.pid, file, found[1]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def nursery_of(broker: int) -> int:
    """The process id of a broker's nursery."""
    for pid in Path(f"/proc/{broker}/task/{broker}/children").read_text().split():
        if b"nursery" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return int(pid)
    raise LookupError("the broker has no nursery")


def soak(where: Path, seconds: float) -> dict[str, Any]:
    config = where / "config.toml"
    config.write_text(CONFIG)
    (where / "state").mkdir()
    endpoint = f"ipc://{where}/zoo"
    with (
        running("zoo.broker", config, endpoint, r"serving on ") as (broker, broker_log, _),
        running("zoo.gateway", config, endpoint, r"serving on http://127.0.0.1:") as (gateway, gateway_log, port),
    ):
        load = Load(endpoint, int(port))
        load.fill()
        pids = {"broker": broker, "nursery": nursery_of(broker), "gateway": gateway}
        look = Look(pids, {"broker": broker_log, "gateway": gateway_log}, where / "state")
        before = broker_log.read_text().count(": evicted, ")
        begun, cpu = time.monotonic(), look.cpu_seconds()
        load.start()
        try:
            every_s = min(LONGEST_S, max(SHORTEST_S, seconds / LOOKS))
            while (at := time.monotonic() - begun) < seconds and not load.stop.wait(every_s):
                look.take(time.monotonic() - begun, load.p99_ms())
        finally:
            load.end()
        return {
            "seconds": round(at), "requests": dict(load.counts), "wrong": load.wrong,
            "evictions": broker_log.read_text().count(": evicted, ") - before,
            "cores": round((look.cpu_seconds() - cpu) / at, 3),
            "series": {name: series.judge() for name, series in look.series.items()},
        }  # fmt: skip


def rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    head = ("series", "unit", "first", "median", "last", "per hour (95 %)", "rise", "allowed", "")
    return [head, *(
        (name, s["unit"], f"{s['first']:g}", f"{s['median']:g}", f"{s['last']:g}",
         f"{s['slope_per_hour']:g} ({s['interval_per_hour'][0]:g} to {s['interval_per_hour'][1]:g})", f"{s['rise']:g}",
         "" if s["allowed"] is None else f"{s['allowed']:g}",
         "GROWN" if s["grown"] else "" if s["allowed"] is None else "flat")
        if "first" in s else (name, s["unit"], *[""] * 6, f"{s['values']} values are too few")
        for name, s in found["series"].items()
    )]  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("seconds", nargs="?", type=float, default=3600.0)
    parser.add_argument("--save", action="store_true", help="also where it takes less than an hour")
    args = parser.parse_args(argv)
    with common.folder() as where:
        found = soak(Path(where), args.seconds)
    print(common.table(rows(found)))
    print(
        f"\n{found['seconds']} s, {found['requests']}, {found['evictions']} evictions; "
        f"broker, nursery and gateway used {found['cores']} of a core"
    )
    for what, count in Counter(found["wrong"]).most_common():
        print(f"wrong, {count} times: {what}")
    if args.save or args.seconds >= 3600:
        common.save("soak", found)
    grown = [name for name, series in found["series"].items() if series["grown"]]
    print("grown: " + ", ".join(grown) if grown else "nothing has grown")
    return 1 if grown or found["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
