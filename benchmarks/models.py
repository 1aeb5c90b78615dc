"""What the models cost through the zoo, as ratios to direct calls of their libraries.

`python -m benchmarks.models [--quick] [NAME…]`. Checkpoints are random ones of the published sizes
(`benchmarks/published.py`), the frame is 1080p and lies in the arena, each model looks at the part of it that is its
business. Zoo and library (`benchmarks/direct.py`, a process of its own) take turns with one thread each, and every
ratio is the median over the turns of the pair's ratio. Measured are

* a warm request to a call of the library, by wall time and by CPU: of client, broker and worker together;
* eight crops as one request to eight requests, once per architecture;
* the peak of private memory: what is a process's alone, at most, on both sides VmHWM less the pages that it shares;
* an event of three persons through `enrich`, eight models, to the sum of the eight direct calls: all on one core, and
  the zoo on two.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import zoo
from benchmarks import common, scene
from zoo.config.reading import load_config

SHIPPED = Path(__file__).resolve().parent.parent / "config.toml"
GOAL, MEMORY_GOAL = 1.10, 1.10
EVENT_GOALS = {"one_core": 1.15, "two_cores": 1.0}
TURN_S = 0.15  # at least, of calls in one turn of one side
MOST_BATCH_MS = 10_000  # for eight crops, both ways: of larger networks, on a CPU, arithmetic is all there is


class Asked(NamedTuple):
    """What is measured: `architecture` in words, the boxes that are asked about (None: the whole frame), options."""

    architecture: str
    boxes: list[scene.Box] | None = None
    options: dict[str, Any] | None = None


ASKED = {
    "coco-detector": Asked("RT-DETRv2 R18"),
    "threat-detection-yolov8n": Asked("YOLOv8n"),
    "yolo11-face": Asked("YOLO11n", [(50, 395, 245, 650)]),
    "yolo11-license-plate": Asked("YOLO11n", [scene.BUS]),
    "yolov8n-pose": Asked("YOLOv8n-pose"),
    "yolo-world-s": Asked("YOLOv8s-worldv2", None, {"prompts": ["delivery van", "parcel", "ladder"]}),
    # A random network sees damage everywhere, and masks of a hundred boxes take longer than the network.
    "vehicle-damage-detection": Asked("YOLO11x-seg", [scene.BUS], {"max_det": 10}),
    "violence-detection": Asked("ViT-B/16"),
    "vit-age-classifier": Asked("ViT-B/16", [scene.FACE]),
    "vit-gender-classifier": Asked("ViT-B/16", [scene.FACE]),
    "weather-classification": Asked("SigLIP-B/16"),
    "pet-classifier": Asked("ResNet-18", [scene.BUS]),
    "vehicle-segment-classification": Asked("ResNet-50", [scene.BUS]),
    "clip-vit-l": Asked("CLIP ViT-L/14", scene.PERSONS[:1]),
    "fashion-clip": Asked("CLIP ViT-B/32", scene.PERSONS[:1]),
    "xclip-base": Asked("X-CLIP-B/32, 8 frames"),
    "osnet-x0-25": Asked("OSNet x0.25", scene.PERSONS[:1]),
    "vitpose-small": Asked("ViTPose+-S", scene.PERSONS[:1]),
    "segformer-b2-clothes": Asked("SegFormer-B2", scene.PERSONS[:1]),
    "depth-anything-v2-small": Asked("Depth Anything V2 S"),
    "paddleocr": Asked("PP-OCR, one line", [scene.SIGN], {"mode": "line"}),
    "brisque-quality": Asked("BRISQUE"),
}
QUICK = ["yolo11-face", "pet-classifier", "fashion-clip", "osnet-x0-25", "paddleocr"]
VIDEO = "xclip-base"

# Of a person's event by config.toml those that look at the persons, and two at the frame; the others wait for a face,
# or for more than one frame.
CONFIG = """
[broker]
device = "cpu"
vram_budget_gb = 64
worker_threads = 1
load_timeout = 120
dispatch_timeout = 120
idle_seconds = 3600
weights_dir = "{weights}"

{models}
[enrich]
timeout = 120

[[enrich.rules]]
for = ["person"]
models = {persons}

[[enrich.rules]]
for = ["*"]
models = {frame}
on = "frame"
"""
OF_PERSONS = [
    "threat-detection-yolov8n", "fashion-clip", "segformer-b2-clothes", "vitpose-small", "osnet-x0-25",
    "depth-anything-v2-small",
]  # fmt: skip
OF_THE_FRAME = ["weather-classification", "violence-detection"]


class Took(NamedTuple):
    """Seconds."""

    wall: float
    cpu: float


Pairs = list[tuple[Took, Took]]


# ------------------------------------------------------------ the two sides


class Direct:
    """A process that calls a library."""

    def __init__(self, model: zoo.ModelConfig, weights: Path) -> None:
        options = {**model.options, **(ASKED[model.name].options or {})}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.direct", model.adapter, str(weights / model.path), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.pid = self._process.pid
        self._frames_mb = math.prod(scene.SHAPE) / (1 << 20) * (8 if model.name == VIDEO else 1)

    def __call__(self, boxes: list[scene.Box] | None, n: int = 1) -> Took:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([boxes, n]), file=self._process.stdin, flush=True)
        return Took(*json.loads(self._process.stdout.readline()))

    def peak_mb(self) -> float:
        """Without the frames, which a worker has in shared memory."""
        return common.private_peak_mb(self.pid) - self._frames_mb

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)


class Zoo:
    """A client with the scene in its arena."""

    def __init__(self, client: zoo.Client, broker: int) -> None:
        self.client = client
        self._broker = broker
        self._video = [client.frame(scene.SHAPE) for _ in range(8)]
        for frame, picture in zip(self._video, scene.video(scene.frame()), strict=True):
            frame.array[:] = picture
        self.frame = self._video[0]

    def worker(self, name: str) -> int:
        """Its process id."""
        return int(next(row["pid"] for row in self.client.processes() if row["name"] == name))

    def __call__(self, name: str, boxes: list[scene.Box] | None, n: int = 1) -> Took:
        return self._timed(name, [boxes] * n)

    def one_by_one(self, name: str, boxes: list[scene.Box]) -> Took:
        return self._timed(name, [[box] for box in boxes])

    def _timed(self, name: str, requests: list[list[scene.Box] | None]) -> Took:
        frame = self._video if name == VIDEO and requests[0] is None else self.frame
        options = ASKED[name].options or {}
        pids = [os.getpid(), self._broker, self.worker(name)]
        cpu, wall = sum(map(common.cpu_seconds, pids)), time.perf_counter()
        for boxes in requests:
            self.client.infer(name, frame, boxes=boxes, **options)
        wall = time.perf_counter() - wall
        return Took(wall, sum(map(common.cpu_seconds, pids)) - cpu)

    def event(self) -> float:
        """Seconds of wall time."""
        started = time.perf_counter()
        found = self.client.enrich(self.frame, [("person", box) for box in scene.PERSONS])
        wall = time.perf_counter() - started
        missing = [*found.missing.values(), *(e for one in found.detections for e in one.missing.values())]
        if missing:
            raise SystemExit(f"the event lacks an answer: {missing[0]}")
        return wall


# ------------------------------------------------------------ turns


def in_turns(one: Callable[[], Took], other: Callable[[], Took], seconds: float, least: int) -> Pairs:
    """(one, other) until so many seconds have passed, at least so often; who goes first changes every time."""
    pairs: Pairs = []
    end = time.monotonic() + seconds
    while len(pairs) < least or time.monotonic() < end:
        if len(pairs) % 2:
            second = other()
            pairs.append((one(), second))
        else:
            first = one()
            pairs.append((first, other()))
    return pairs


def ratio(pairs: Pairs, what: str = "wall") -> float:
    return statistics.median(getattr(a, what) / getattr(b, what) for a, b in pairs)


def medians_ms(pairs: Pairs, n: int = 1) -> tuple[float, float]:
    """Of both sides, milliseconds of wall time per call."""
    one, other = (statistics.median(took.wall for took in side) / n * 1000 for side in zip(*pairs, strict=True))
    return one, other


def measure(zoo_side: Zoo, direct: Direct, name: str, seconds: float) -> dict[str, Any]:
    """A warm request against a call of the library. The model is loaded, and stays."""
    boxes = ASKED[name].boxes
    direct(boxes)
    n = max(1, round(TURN_S / direct(boxes).wall))
    pairs = in_turns(lambda: zoo_side(name, boxes, n), lambda: direct(boxes, n), seconds, 3)
    mine, base = medians_ms(pairs, n)
    return {
        "architecture": ASKED[name].architecture,
        "zoo_ms": mine,
        "direct_ms": base,
        "ratio": ratio(pairs),
        "cpu_ratio": ratio(pairs, "cpu"),
        "goal": GOAL,
        "turns": len(pairs),
        "calls_per_turn": n,
    }


def measure_batch(zoo_side: Zoo, name: str, seconds: float) -> dict[str, Any]:
    """Eight crops of all sorts as one request, against one request each."""
    zoo_side(name, scene.CROPS)
    pairs = in_turns(lambda: zoo_side(name, scene.CROPS), lambda: zoo_side.one_by_one(name, scene.CROPS), seconds, 2)
    together, alone = medians_ms(pairs)
    return {"together_ms": together, "alone_ms": alone, "ratio": ratio(pairs), "cpu_ratio": ratio(pairs, "cpu")}


def measure_event(zoo_side: Zoo, direct: dict[str, Direct], broker: int, turns: int) -> dict[str, Any]:
    """The eight direct calls one after another on one core, the zoo on one, and the zoo on two, in turns."""
    names = [*OF_PERSONS, *OF_THE_FRAME]
    for name in names:
        zoo_side.client.get_model(name)
    pids = [os.getpid(), broker, *map(zoo_side.worker, names), *(direct[name].pid for name in names)]
    cores = sorted(os.sched_getaffinity(0))

    def calls() -> float:
        return sum(direct[name](scene.PERSONS if name in OF_PERSONS else None).wall for name in names)

    sides: dict[str, tuple[Callable[[], float], int]] = {
        "direct": (calls, 1), "one_core": (zoo_side.event, 1), "two_cores": (zoo_side.event, 2),
    }  # fmt: skip
    zoo_side.event()  # the workers are new
    seconds: dict[str, list[float]] = {key: [] for key, (_, count) in sides.items() if count <= len(cores)}
    for _ in range(turns):
        for key, taken in seconds.items():
            side, count = sides[key]
            with common.on_cores(pids, cores[:count]):
                taken.append(side())
    base = seconds.pop("direct")
    figures: dict[str, Any] = {"models": names, "turns": turns, "direct_ms": statistics.median(base) * 1000}
    for key, taken in seconds.items():
        paired = statistics.median(mine / its for mine, its in zip(taken, base, strict=True))
        figures[key] = {"zoo_ms": statistics.median(taken) * 1000, "ratio": paired, "goal": EVENT_GOALS[key]}
    return figures


# ------------------------------------------------------------ the run


@contextlib.contextmanager
def running(weights: Path) -> Iterator[tuple[Zoo, int]]:
    """A broker with config.toml's models, and a client."""
    text = SHIPPED.read_text()
    models = text[text.index("[[models]]") : text.index("[enrich]\n")]
    config = CONFIG.format(
        weights=weights, models=models, persons=json.dumps(OF_PERSONS), frame=json.dumps(OF_THE_FRAME)
    )
    with (
        common.folder() as where,
        common.broker(config, where) as (endpoint, broker),
        zoo.Client(endpoint, timeout=120, arena_mb=128) as client,
    ):
        yield Zoo(client, broker), broker


def run(names: list[str], weights: Path, seconds: float, event_turns: int) -> dict[str, Any]:
    configured = {model.name: model for model in load_config(SHIPPED).models}
    figures: dict[str, Any] = {"models": {}, "batch": {}}
    kept: dict[str, Direct] = {}  # those that the event needs again
    with running(weights) as (zoo_side, broker), contextlib.ExitStack() as closing:
        for name in names:
            say(name)
            zoo_side.client.get_model(name)
            zoo_side(name, ASKED[name].boxes, 2)
            # Before the other side is there: both map the same checkpoint, and count what they share for nothing.
            peak_mb = common.private_peak_mb(zoo_side.worker(name))
            direct = Direct(configured[name], weights)
            closing.callback(direct.close)
            found = measure(zoo_side, direct, name, seconds)
            architecture, batch_ms = found["architecture"], 2 * len(scene.CROPS) * found["zoo_ms"]
            if name != VIDEO and batch_ms < MOST_BATCH_MS and architecture not in figures["batch"]:
                figures["batch"][architecture] = measure_batch(zoo_side, name, seconds / 2)
            zoo_side.client.unload(name)
            base_mb = direct.peak_mb()
            found |= {"peak_mb": peak_mb, "direct_peak_mb": base_mb, "memory_ratio": peak_mb / base_mb}
            figures["models"][name] = found
            if event_turns and name in OF_PERSONS + OF_THE_FRAME:
                kept[name] = direct
            else:
                direct.close()
        if event_turns:
            say("an event")
            figures["event"] = measure_event(zoo_side, kept, broker, event_turns)
    return figures


def say(what: str) -> None:
    print(f"{what} …", file=sys.stderr, flush=True)


def tables(figures: dict[str, Any]) -> str:
    rows: list[tuple[str, ...]] = [
        ("a warm request", "", "zoo ms", "direct ms", "ratio", "by CPU", "peak MB", "direct MB", "ratio")
    ]
    for name, f in figures["models"].items():
        rows.append(
            (name, f["architecture"], f"{f['zoo_ms']:.1f}", f"{f['direct_ms']:.1f}", f"{f['ratio']:.2f}",
             f"{f['cpu_ratio']:.2f}", f"{f['peak_mb']:.0f}", f"{f['direct_peak_mb']:.0f}", f"{f['memory_ratio']:.2f}")
        )  # fmt: skip
    rows.append(("to reach", "", "", "", f"<= {GOAL}", f"<= {GOAL}", "", "", f"<= {MEMORY_GOAL}"))
    parts = [common.table(rows)]
    rows = [("eight crops", "as one request, ms", "as eight, ms", "ratio", "by CPU")]
    for architecture, f in figures["batch"].items():
        rows.append(
            (
                architecture,
                f"{f['together_ms']:.0f}",
                f"{f['alone_ms']:.0f}",
                f"{f['ratio']:.2f}",
                f"{f['cpu_ratio']:.2f}",
            )
        )
    parts.append(common.table(rows))
    if event := figures.get("event"):
        rows = [
            ("an event: 8 models, 3 persons", "ms", "ratio", "to reach"),
            ("direct calls, one after another, on one core", f"{event['direct_ms']:.0f}", "", ""),
        ]
        for key, words in (("one_core", "enrich on one core"), ("two_cores", "enrich on two")):
            if f := event.get(key):
                rows.append((words, f"{f['zoo_ms']:.0f}", f"{f['ratio']:.2f}", f"<= {f['goal']}"))
        parts.append(common.table(rows))
    return "\n\n".join(parts)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few models and turns, no event")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these models, and no event")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.names if name not in ASKED]:
        parser.error(f"no model {unknown[0]!r}; there are: {', '.join(ASKED)}")
    names = args.names or (QUICK if args.quick else list(ASKED))
    whole = names == list(ASKED)
    with common.folder() as folder:
        say("making checkpoints")
        command = [sys.executable, "-m", "benchmarks.published", folder, *names]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f"the checkpoints could not be made:\n{done.stderr}")
        figures = run(names, Path(folder), 3.0 if args.quick else 5.0, 4 if whole else 0)
    print(tables(figures))
    if whole:
        common.save("models", figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
