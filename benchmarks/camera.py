"""A 1080p frame as NV12, which is half as large, to the same frame as RGB.

`python -m benchmarks.camera [--quick]`. The two are sent in turn, call by call, and each ratio is the median over the
turns of the ratio of the turn's medians. Asked are models that look at nothing (what sending takes), at a crop, and at
one pixel of the frame (which is converted for it), and a YOLO11n with random weights at 640, on one thread. In all rows
but the first, copies come from eight buffers in turn, as a camera's do: one alone stays in the processor's caches. A
camera gives NV12, so the last rows compare with a caller who makes RGB of it first.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

import zoo
from benchmarks import common, scene
from benchmarks.latency import timed
from workers.models import standins

DETECTOR = "yolo11-face"
CONFIG = """
[broker]
device = "cpu"
vram_budget_gb = 64
worker_threads = 1
idle_seconds = 3600
weights_dir = "{weights}"

[[models]]
name = "blind"
adapter = "benchmarks.adapters:Blind"
vram_mb = 10

[[models]]
name = "corner"
adapter = "benchmarks.adapters:Corner"
vram_mb = 10

[[models]]
name = "{detector}"
adapter = "workers.models.yolo:Detector"
path = "{path}"
trust_pickle = true
vram_mb = 500
"""
BOX = [(50, 395, 245, 905)]  # a person
BUFFERS = 8


class Pair(NamedTuple):
    """Two calls that take turns. `goal`: of the ratio of the second to the first; None where none is set."""

    label: str
    rgb: Callable[[], Any]
    nv12: Callable[[], Any]
    calls: int
    goal: float | None = None


def as_nv12(rgb: np.ndarray) -> np.ndarray:
    """(H * 3/2, W), by OpenCV's I420, whose U and V are put in turn."""
    height, width = rgb.shape[:2]
    i420 = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2YUV_I420)
    chroma = i420[height:].reshape(2, -1).T.reshape(-1, width)
    return np.concatenate([i420[:height], chroma])


def pairs(client: zoo.Client, rgb: np.ndarray, nv12: np.ndarray, n: int) -> list[Pair]:
    ask = client.infer
    in_arena, half = client.frame(rgb.shape), client.frame(nv12.shape)
    in_arena.array[:], half.array[:] = rgb, nv12
    colours, halves, given = (itertools.cycle([one.copy() for _ in range(BUFFERS)]) for one in (rgb, nv12, nv12))

    def plain(model: str, **how: Any) -> Any:
        return ask(model, next(colours), **how)

    def sent(model: str, **how: Any) -> Any:
        return ask(model, next(halves), color="nv12", **how)

    def converted(model: str) -> Any:
        return ask(model, cv2.cvtColor(next(given), cv2.COLOR_YUV2RGB_NV12))

    few = max(4, n // 8)
    return [
        Pair("copied in, the same array", lambda: ask("blind", rgb), lambda: ask("blind", nv12, color="nv12"), n, 0.8),
        Pair("copied in", lambda: plain("blind"), lambda: sent("blind"), n, 0.8),
        Pair("in the arena", lambda: ask("blind", in_arena), lambda: ask("blind", half, color="nv12"), n),
        Pair("copied in, a crop", lambda: plain("corner", boxes=BOX), lambda: sent("corner", boxes=BOX), n),
        Pair("copied in, one pixel", lambda: plain("corner"), lambda: sent("corner"), n),
        Pair("copied in, YOLO11n", lambda: plain(DETECTOR), lambda: sent(DETECTOR), few, 1.03),
        Pair("one pixel, to converting first", lambda: converted("corner"), lambda: sent("corner"), n),
        Pair("YOLO11n, to converting first", lambda: converted(DETECTOR), lambda: sent(DETECTOR), few),
    ]


def measure(of: list[Pair], turns: int) -> dict[str, list[tuple[float, float]]]:
    """By label, medians of each turn in microseconds: (RGB, NV12)."""
    found: dict[str, list[tuple[float, float]]] = {pair.label: [] for pair in of}
    for turn in range(turns + 1):
        for pair in of:
            calls = [(timed(pair.rgb, 1)[0], timed(pair.nv12, 1)[0]) for _ in range(pair.calls)]
            if turn:  # the first warms up
                whole, half = zip(*calls, strict=True)
                found[pair.label].append((statistics.median(whole), statistics.median(half)))
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    args = parser.parse_args(argv)
    turns, n = (5, 60) if args.quick else (15, 150)
    rgb = scene.frame()
    nv12 = as_nv12(rgb)
    with common.folder() as where:
        relative, build = standins.STANDINS[DETECTOR]
        standins.place(build, Path(where) / relative, DETECTOR)
        config = CONFIG.format(weights=where, detector=DETECTOR, path=relative)
        with common.broker(config, where) as (endpoint, _), zoo.Client(endpoint, timeout=60) as client:
            asked = pairs(client, rgb, nv12, n)
            found = measure(asked, turns)
    rows: list[tuple[str, ...]] = [("1080p", "RGB, us", "NV12, us", "ratio", "to reach")]
    figures: dict[str, Any] = {}
    for pair in asked:
        ratio = statistics.median(half / whole for whole, half in found[pair.label])
        whole, half = (statistics.median(v) for v in zip(*found[pair.label], strict=True))
        figures[pair.label] = {"rgb_us": whole, "nv12_us": half, "ratio": ratio, "goal": pair.goal}
        rows.append((pair.label, f"{whole:.0f}", f"{half:.0f}", f"{ratio:.2f}", f"<= {pair.goal}" if pair.goal else ""))
    print(common.table(rows))
    if not args.quick:
        common.save("camera", figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
