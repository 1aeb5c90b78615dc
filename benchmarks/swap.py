"""Swapping one model for another, part by part, against a new interpreter that imports the same libraries.

`python -m benchmarks.swap [--quick]`. The budget holds one model, so each request evicts, starts, loads and answers.
The broker is the real one; a subclass that exists only here notes when its events and actions come by. New
interpreters take their turns between the swaps, so that a host that slows down slows both.

Two interpreters are measured: one that imports everything the nursery has imported (`all`), and one that imports
only what this one model needs (`own`), which then also loads and answers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import numpy as np

import zoo
from benchmarks import common
from broker.scheduler import events
from broker.service import Service
from zoo.config.reading import load_config
from zoo.config.schema import ZooConfig
from zoo.wire import protocol

GOAL = 15.0
MODULES = ("workers.runtime", "workers.models.yolo", "workers.models.classify")  # what the nursery imports here
MODELS = {
    "yolo11-face": ("workers.models.yolo", "Detector", "yolo11-face/model.pt"),
    "pet-classifier": ("workers.models.classify", "ImageClassifier", "pet-classifier"),
}
PARTS = {
    "ask": "request → decision",
    "kill": "decision → process gone",
    "memory": "process gone → memory back",
    "fork": "start → worker told its model",
    "load": "adapter.load",
    "ready": "rest until the broker knows",
    "answer": "first answer",
}
CONFIG = """
[broker]
device = "{device}"
vram_budget_gb = {budget_gb}
footprint = "declared"
weights_dir = "{weights}"
"""
MODEL = '[[models]]\nname = "{}"\nadapter = "{}:{}"\npath = "{}"\nvram_mb = {}\ntrust_pickle = true\n'
DECLARED_MB = {"cpu": 600, "cuda": 1200}


def frame() -> np.ndarray:
    """1080p, the same every time."""
    return np.random.default_rng(0).integers(0, 255, (1080, 1920, 3), np.uint8)


# ------------------------------------------------------------ the broker, with a stop-watch

MOMENTS = {
    events.KillWorker: "kill",
    events.WorkerExited: "exited",
    events.MemoryBack: "memory",
    events.StartWorker: "start",
    events.WorkerReady: "ready",
}


class Traced(Service):
    """Writes [monotonic seconds, moment, seconds that adapter.load took] lines to a file."""

    def __init__(self, config: ZooConfig, trace: Path) -> None:
        self._trace = trace.open("w", buffering=1)
        super().__init__(config)
        core = self._core
        for action in (events.KillWorker, events.StartWorker):
            core.actions[action] = self._noted(MOMENTS[action], core.actions[action])

    def _note(self, moment: str, load_seconds: float = 0.0) -> None:
        self._trace.write(json.dumps([time.monotonic(), moment, load_seconds]) + "\n")

    def _noted(self, moment: str, act: Callable[[Any], None]) -> Callable[[Any], None]:
        def noted(action: Any) -> None:
            self._note(moment)
            act(action)

        return noted

    def run(self) -> int:
        """Notes events as well, and what passes the channels: a worker's launch, and its word that it is ready."""
        channels, scheduler = self._fleet._channels, self._core.scheduler
        handle, send, heard = scheduler.handle, channels.send, channels.heard

        def noted_handle(event: events.Event, now: float) -> list[events.Action]:
            if type(event) in MOMENTS and type(event) is not events.WorkerReady:
                self._note(MOMENTS[type(event)])
            return handle(event, now)

        def noted_send(worker: Any, parts: tuple[bytes, ...]) -> None:
            if worker.told and not worker.loaded:
                self._note("told")
            send(worker, parts)

        def noted_heard(worker: Any, parts: list[bytes], measured: bool = False) -> None:
            message = protocol.unpack_from_worker(parts[0])
            if isinstance(message, protocol.Loaded):
                self._note("ready", message.load_seconds)
            heard(worker, parts, measured)

        scheduler.handle = noted_handle  # type: ignore[method-assign, assignment]
        channels.send, channels.heard = noted_send, noted_heard  # type: ignore[method-assign, assignment]
        return super().run()


SERVE = "import sys; from benchmarks import swap; swap.serve(*sys.argv[1:])"


def serve(config: str, trace: str) -> NoReturn:
    Traced(load_config(config), Path(trace)).run()
    os._exit(0)


@contextlib.contextmanager
def traced_broker(
    where: str,
    device: str,
    weights: Path,
    together: bool = False,
    models: dict[str, tuple[str, str, str]] = MODELS,
    keys: str = "",
) -> Iterator[tuple[str, Path, int]]:
    """A broker whose budget holds one model (or all of them): its endpoint, its trace, its process id.

    Args:
        models: name → module, adapter, path.
        keys: further lines of `[broker]`.
    """
    each = DECLARED_MB[device.partition(":")[0]]
    endpoint = f"ipc://{where}/zoo"
    budget_gb = round(each * (len(models) if together else 1.5) / 1024, 3)
    text = CONFIG.format(device=device.partition(":")[0], budget_gb=budget_gb, weights=weights)
    text = text.replace("[broker]", f'[broker]\nendpoint = "{endpoint}"\n{keys}')
    for name, (module, adapter, path) in models.items():
        text += MODEL.format(name, module, adapter, path, each)
    file, trace = Path(where) / "config.toml", Path(where) / "trace"
    file.write_text(text)
    process = subprocess.Popen([sys.executable, "-c", SERVE, str(file), str(trace)])
    try:
        with zoo.Client(endpoint, timeout=30) as client:
            client.get_status()
        yield endpoint, trace, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def parts_of(asked: float, answered: float, moments: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Milliseconds of each part of one swap; they add up to the whole of it.

    Args:
        asked, answered: when the client asked and had its answer, on the clock of `moments`.
        moments: moment → (when, seconds of adapter.load).
    """
    at = {name: when for name, (when, _) in moments.items()}
    load = moments["ready"][1]
    seconds = {
        "ask": at["kill"] - asked,
        "kill": at["exited"] - at["kill"],
        "memory": at["start"] - at["exited"],
        "fork": at["told"] - at["start"],
        "load": load,
        "ready": at["ready"] - at["told"] - load,
        "answer": answered - at["ready"],
    }
    return {name: value * 1000 for name, value in seconds.items()}


def read_moments(trace: Path, since: float) -> dict[str, tuple[float, float]]:
    """What the broker noted after `since`: moment → (when, seconds of adapter.load)."""
    found: dict[str, tuple[float, float]] = {}
    for line in trace.read_text().splitlines():
        when, moment, load_seconds = msgspec.json.decode(line.encode(), type=tuple[float, str, float])
        if when >= since:
            found[moment] = (when, load_seconds)
    return found


def swap(client: zoo.Client, model: str, image: np.ndarray, trace: Path) -> dict[str, float]:
    asked = time.monotonic()
    client.infer(model, image, timeout=60)
    answered = time.monotonic()
    return parts_of(asked, answered, read_moments(trace, asked))


# ------------------------------------------------------------ a new interpreter

FRESH = """
import json, sys, time
modules, adapter, path, device = json.loads(sys.argv[1])
import importlib
found = [importlib.import_module(m) for m in modules]
imported = loaded = answered = time.monotonic()
if adapter:
    from pathlib import Path
    from benchmarks.swap import frame
    from workers.models.base import Input, Spec
    image = frame()
    begin = time.monotonic()
    model = getattr(found[-1], adapter)()
    model.load(Spec("fresh", Path(path), threads=1, trust_pickle=True), device)
    loaded = imported + time.monotonic() - begin
    begin = time.monotonic()
    model.predict([Input(image, {})])
    answered = loaded + time.monotonic() - begin
print(json.dumps([imported, loaded, answered]))
"""


def fresh(modules: tuple[str, ...], adapter: str = "", path: str = "", device: str = "cpu") -> dict[str, float]:
    """Milliseconds from the start of a new interpreter: its imports, then `adapter`'s load and first answer."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", FRESH, json.dumps([modules, adapter, path, device])],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    imported, loaded, answered = json.loads(done.stdout.splitlines()[-1])
    return {
        "imports": (imported - started) * 1000,
        "load": (loaded - imported) * 1000,
        "answer": (answered - loaded) * 1000,
    }


# ------------------------------------------------------------ the run

Measured = dict[str, dict[str, list[dict[str, float]]]]  # model → swap, own, all → one dictionary a turn


def measure(weights: Path, turns: int, device: str = "cpu") -> Measured:
    """Swaps and new interpreters in turns; the first turn of each warms the page cache and is not kept."""
    image = frame()
    found: Measured = {name: {"swap": [], "own": [], "all": []} for name in MODELS}
    with (
        common.folder() as where,
        traced_broker(where, device, weights) as (endpoint, trace, _),
        zoo.Client(endpoint, timeout=60) as client,
    ):
        for name in MODELS:  # the nursery has imported, and the last one is in
            client.infer(name, image)
        for turn in range(turns + 1):
            everything = fresh(MODULES)
            for name, (module, adapter, path) in MODELS.items():
                own = fresh(("workers.runtime", module), adapter, str(weights / path), device)
                swapped = swap(client, name, image, trace)
                if turn:
                    found[name]["own"].append(own)
                    found[name]["all"].append(everything)
                    found[name]["swap"].append(swapped)
    return found


def median_parts(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def summary(measured: Measured) -> dict[str, Any]:
    """Per model: median parts and totals in ms; ratios are medians of each turn's own ratio."""
    out: dict[str, Any] = {}
    for name, of in measured.items():
        totals = [sum(row.values()) for row in of["swap"]]

        def ratio(others: list[float], totals: list[float] = totals) -> float:
            return statistics.median(other / mine for other, mine in zip(others, totals, strict=True))

        out[name] = {
            "swap_ms": statistics.median(totals),
            "swap_worst_ms": max(totals),
            "parts_ms": median_parts(of["swap"]),
            "new_interpreter_ms": {
                "imports_all": statistics.median(row["imports"] for row in of["all"]),
                **{f"own_{part}": value for part, value in median_parts(of["own"]).items()},
            },
            "ratio_imports_all": ratio([row["imports"] for row in of["all"]]),
            "ratio_imports_own": ratio([row["imports"] for row in of["own"]]),
            "ratio_own_with_load_and_answer": ratio([sum(row.values()) for row in of["own"]]),
            "goal": GOAL,
            "turns": len(totals),
        }
    return out


def tables(figures: dict[str, Any]) -> str:
    names = list(figures)
    rows: list[tuple[str, ...]] = [("one swap, ms (median)", *names)]
    for part, meaning in PARTS.items():
        rows.append((f"  {meaning}", *(f"{figures[n]['parts_ms'][part]:.1f}" for n in names)))
    rows.append(("all of it", *(f"{figures[n]['swap_ms']:.0f}" for n in names)))
    rows.append(("  the worst", *(f"{figures[n]['swap_worst_ms']:.0f}" for n in names)))
    for key, meaning in (
        ("imports_all", "new interpreter: imports of the nursery"),
        ("own_imports", "new interpreter: imports for this model only"),
        ("own_load", "  its load"),
        ("own_answer", "  its first answer"),
    ):
        rows.append((meaning, *(f"{figures[n]['new_interpreter_ms'][key]:.0f}" for n in names)))
    for key, meaning in (
        ("ratio_imports_all", f"imports of the nursery / swap (goal {GOAL:g})"),
        ("ratio_imports_own", "imports for this model / swap"),
        ("ratio_own_with_load_and_answer", "the same + load + first answer / swap"),
    ):
        rows.append((meaning, *(f"{figures[n][key]:.1f}x" for n in names)))
    return common.table(rows)


def plot(figures: dict[str, Any], name: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 3.2), width_ratios=(3, 2))
    models = list(figures)
    base = np.zeros(len(models))
    for part, meaning in PARTS.items():
        values = np.array([figures[m]["parts_ms"][part] for m in models])
        left.barh(models, values, left=base, label=meaning)
        base += values
    left.set(xlabel="ms", title="one swap")
    left.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=4)
    y = np.arange(len(models))
    right.barh(y + 0.2, [figures[m]["swap_ms"] for m in models], 0.35, label="swap")
    base = np.zeros(len(models))
    for key, meaning in (("own_imports", "imports"), ("own_load", "load"), ("own_answer", "first answer")):
        values = np.array([figures[m]["new_interpreter_ms"][key] for m in models])
        right.barh(y - 0.2, values, 0.35, left=base, label=f"new interpreter: {meaning}")
        base += values
    right.set(yticks=y, yticklabels=models, xlabel="ms", title="against a new interpreter")
    right.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2)
    figure.tight_layout()
    figure.savefig(common.RESULTS / f"{name}.png", dpi=90, bbox_inches="tight")


def make_weights(where: Path) -> None:
    """Stand-ins, in a process of their own: the libraries stay out of this one."""
    subprocess.run([sys.executable, "-m", "workers.models.standins", str(where), *MODELS], check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer turns, and nothing is written")
    args = parser.parse_args(argv)
    with common.folder() as weights:
        make_weights(Path(weights))
        figures = summary(measure(Path(weights), 3 if args.quick else 7))
    print(tables(figures))
    if not args.quick:
        common.save("swap", figures)
        plot(figures, "swap")
    return 0


if __name__ == "__main__":
    sys.exit(main())
