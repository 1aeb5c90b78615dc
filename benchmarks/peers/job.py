"""The job itself: a camera trace, and models that do not fit the budget together.

Three ways to do it (`contenders.py`): the zoo; models loaded and dropped in the caller's own process, least recently
used first; Ray Serve's model multiplexing, whose limit is a number of models: as many as fit whichever they are, and as
many as fit on average. `python -m benchmarks.peers.job NAME FOLDER` runs one of them in its environment, `measure` all.

The trace is that of `benchmarks/traces.py`, at a tenth of its megabytes and a fifth of its times. A model is a file of
layers, read into private memory; an answer reads a part of them, and is checked. A load takes the 0.3 s + 1 s per
1,000 MB that are assumed everywhere here, one at a time, for there is one disk and one bus. There is no GPU: what a
CUDA context costs, and what an allocator of its own keeps, is not in here.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks import common
from benchmarks.peers import servers, work

MB_SHARE, TIME_SHARE = 0.1, 0.2
LAYER_MB = 4.0
CONTENDERS = {  # name → environment
    "zoo": "",
    'zoo, eviction = "adaptive"': "",
    "one process, LRU": "",
    "Ray Serve, multiplexed, as many as always fit": "ray",
    "Ray Serve, multiplexed, as many as fit on average": "ray",
}


class Weights:
    """A loaded model. Layers of several sizes, as networks have them; the last value is its number."""

    def __init__(self, folder: Path, name: str) -> None:
        with (folder / "disk").open("ab") as disk, (folder / f"{name}.weights").open("rb") as file:
            fcntl.flock(disk, fcntl.LOCK_EX)
            begun = time.monotonic()
            sizes = np.fromfile(file, np.int64, int(np.fromfile(file, np.int64, 1)[0]))
            self._layers = [np.fromfile(file, np.float32, int(size)) for size in sizes]
            mb = sizes.sum() * 4 / 1_000_000 / MB_SHARE
            time.sleep(max(0.0, (0.3 + mb / 1000) * TIME_SHARE - (time.monotonic() - begun)))

    def __call__(self, given: np.ndarray) -> np.ndarray:
        read = sum(float(layer.sum()) for layer in self._layers[::4])
        return np.array([work.few(given)[0], self._layers[-1][-1], read], np.float32)


def write(folder: Path, name: str, mb: float, number: int) -> None:
    draw = np.random.default_rng(number)
    sizes = [int(draw.uniform(0.05, 2.0) * LAYER_MB * 250_000) for _ in range(max(1, round(mb / LAYER_MB)))]
    with (folder / f"{name}.weights").open("wb") as file:
        np.array([len(sizes), *sizes], np.int64).tofile(file)
        for size in sizes:
            np.full(size, number, np.float32).tofile(file)


class Contender(Protocol):
    def place(self, frame: np.ndarray) -> Any: ...
    def infer(self, model: str, frame: Any) -> np.ndarray: ...
    def drop_all(self) -> None: ...


# ------------------------------------------------------------ all of them, from outside


def trace_of(seed: int, seconds: float) -> dict[str, Any]:
    """The busiest stretch of a mixed day whose events take so many seconds here."""
    from benchmarks import traces  # the zoo's own environment alone can read config.toml

    day = traces.cameras("mixed", seed)
    length = seconds / TIME_SHARE
    begin = max((e.at for e in day.events[::20]), key=lambda at: sum(at <= e.at < at + length for e in day.events))
    events = [e for e in day.events if begin <= e.at < begin + length]
    return {
        "models": {m.name: max(1.0, m.vram_mb * MB_SHARE) for m in day.models},
        "priorities": {m.name: m.priority.name for m in day.models},
        "budget_mb": day.budget_mb * MB_SHARE,
        "deadline_s": day.deadline_s * TIME_SHARE,
        "events": [((e.at - begin) * TIME_SHARE, [step.model for step in e.steps]) for e in events],
    }


def measure(names: list[str], seconds: float) -> dict[str, Any]:
    trace = trace_of(5, seconds)
    found: dict[str, Any] = {}
    with servers.adopting(), common.folder() as where:
        for number, (name, mb) in enumerate(trace["models"].items()):
            write(Path(where), name, mb, number)
        for name in names:
            folder = Path(where) / f"run-{len(found)}"
            folder.mkdir()
            (folder / "trace.json").write_text(json.dumps({**trace, "weights": where}))
            try:
                found[name] = summary(run(name, folder), trace)
            except servers.Failed as e:
                found[name] = {"failed": str(e)}
    return {"trace": {key: trace[key] for key in ("budget_mb", "deadline_s")}, "found": found}


def run(name: str, folder: Path) -> dict[str, Any]:
    """What `replay` tells, and the memory of all its processes in MB: before the trace, at most, and after a goodbye to
    all models."""
    process = servers.Process(CONTENDERS[name], "job", [name, str(folder)], folder / "log", {})
    try:
        seen = {step: watched(process, folder / step) for step in ("ready", "done", "dropped")}
    finally:
        process.end()
    told: dict[str, Any] = json.loads((folder / "done").read_text())
    before = seen["ready"][-1]
    return {**told, "peak_mb": max(seen["done"]) - before, "left_mb": seen["dropped"][-1] - before}


def watched(process: servers.Process, until: Path) -> list[float]:
    """Memory until a step is done, and once more."""
    seen, end = [], time.monotonic() + 120
    while not until.exists():
        if process.ended or time.monotonic() > end:
            raise servers.Failed(f"no {until.name}: {process.told()}")
        seen.append(anonymous_mb(process.pids()))
        time.sleep(0.1)
    time.sleep(0.3)
    return [*seen, anonymous_mb(process.pids())]


def anonymous_mb(pids: list[int]) -> float:
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:"))
    return total / 1024


def summary(told: dict[str, Any], trace: dict[str, Any]) -> dict[str, Any]:
    waits = sorted(told["waits"])
    return {
        "asked": sum(len(models) for _, models in trace["events"]),
        "answered": len(waits) - len(told["faults"]),
        "in_time": sum(wait <= trace["deadline_s"] for wait in waits),
        "p50_s": waits[len(waits) // 2],
        "p95_s": waits[int(len(waits) * 0.95)],
        "peak_mb": told["peak_mb"],
        "left_mb": told["left_mb"],
        "faults": told["faults"][:3],
    }


# ------------------------------------------------------------ one of them, in its own environment


class Asked:
    """What became of a trace: seconds from the event to each answer."""

    def __init__(self, contender: Contender, numbers: dict[str, int], deadline_s: float) -> None:
        self._contender, self._numbers, self._deadline_s = contender, numbers, deadline_s
        self.waits: list[float] = []
        self.faults: list[str] = []

    def event(self, at: float, models: list[str], frame: np.ndarray) -> None:
        placed = self._contender.place(frame)
        with ThreadPoolExecutor(4) as four:  # of an event; zoo/enrichment does the same
            list(four.map(lambda model: self._one(at, model, frame, placed), models))

    def _one(self, at: float, model: str, frame: np.ndarray, placed: Any) -> None:
        try:
            answer = self._contender.infer(model, placed)
            if not np.allclose(answer[:2], [work.few(frame)[0], self._numbers[model]], rtol=1e-4):
                self.faults.append(f"{model}: {answer}")
            self.waits.append(time.monotonic() - at)
        except Exception as e:
            self.faults.append(f"{model}: {type(e).__name__}")
            self.waits.append(float("inf"))


def replay(contender: Contender, trace: dict[str, Any]) -> dict[str, Any]:
    frame = work.picture()
    models = list(trace["models"])
    asked = Asked(contender, {name: i for i, name in enumerate(models)}, trace["deadline_s"])
    start = time.monotonic() + 0.2
    callers = []
    for at, names in trace["events"]:
        time.sleep(max(0.0, start + at - time.monotonic()))
        callers.append(threading.Thread(target=asked.event, args=(start + at, names, frame)))
        callers[-1].start()
    for caller in callers:
        caller.join()
    return {"waits": asked.waits, "faults": asked.faults, "end_s": time.monotonic() - start}


def main() -> None:
    name, where = sys.argv[1], Path(sys.argv[2])
    trace = json.loads((where / "trace.json").read_text())
    from benchmarks.peers.contenders import started

    contender = started(name, Path(trace["weights"]), where, trace)
    for step, do in (("ready", None), ("done", lambda: replay(contender, trace)), ("dropped", contender.drop_all)):
        said = json.dumps(do() if do else None)
        (where / f"{step}.new").write_text(said)
        (where / f"{step}.new").rename(where / step)
        time.sleep(1.0)  # for the other to look at the memory
    os._exit(0)


if __name__ == "__main__":
    main()
