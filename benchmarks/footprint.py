"""Each model of config.toml by itself: what it takes of a device's memory, and whether it answers there as on a CPU.

`benchmarks.gpu` records both for CUDA with networks of the published sizes; tests/gpu holds the answers of the
stand-ins to the tolerances here.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import zoo
from benchmarks import common, scene
from zoo import results
from zoo.config.reading import load_config
from zoo.config.schema import ModelConfig

MODELS = {model.name: model for model in load_config(Path(__file__).parents[1] / "config.toml").models}
NETWORKS = [name for name, model in MODELS.items() if model.path]  # what can run in half precision
VIDEO = "xclip-base"

FEWER = {"vehicle-damage-detection": {"max_det": 10}}  # a mask of the scene is 2 MB, an answer at most 32

# How far an answer may be from that of a CPU, which computes in single precision. CUDA's convolutions round to the
# eleven bits of TF32 by default, as many as half precision has, and random weights carry rounding on from layer to
# layer.
PROBABILITY = 0.05
COSINE = 0.01  # short of 1
DEPTH = 0.02  # of the largest
PIXELS = 0.05  # share of those in another class
POINT = 4.0  # pixels, the median of all
OVERLAP, UNPAIRED = 0.8, 0.25  # two boxes are one from this intersection over union on; share that have no partner
QUALITY = 0.5  # of 100


class Meter(Protocol):
    """What says how much memory of the device is in use."""

    def used_mb(self) -> float: ...

    def settled_mb(self, below: float, seconds: float = 10.0) -> float: ...


@contextlib.contextmanager
def running(weights: Path, device: str, *, half: bool = False, keys: str = "") -> Iterator[zoo.Client]:
    """A broker with all models on "cuda" or "cpu", and a client. It knows nothing of earlier brokers.

    Args:
        half: networks in half precision.
        keys: further lines of `[broker]`.
    """
    rows = [_table(model, half=half and model.name in NETWORKS) for model in MODELS.values()]
    with (
        common.folder() as where,
        common.broker(
            f'[broker]\ndevice = "{device}"\nweights_dir = "{weights}"\nstate_dir = "{where}/state"\n'
            f"load_timeout = 300\ndispatch_timeout = 120\n{keys}" + "".join(rows),
            where,
        ) as (endpoint, _),
        zoo.Client(endpoint, timeout=300) as client,
    ):
        yield client


def _table(model: ModelConfig, *, half: bool) -> str:
    keys = {
        "name": model.name,
        "adapter": model.adapter,
        "path": model.path,
        "category": model.category,
        "vram_mb": model.vram_mb,
        "trust_pickle": model.trust_pickle,
    }
    options = {**model.options, **({"half": True} if half else {})}
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]  # the same words in TOML
    inline = ", ".join(f"{key} = {json.dumps(value)}" for key, value in options.items())
    return "\n".join(["[[models]]", *lines, f"options = {{ {inline} }}", ""])


def ask(client: zoo.Client, name: str) -> Any:
    """About the scene; a film of it where a film is wanted."""
    frame = scene.frame()
    return client.infer(name, scene.video(frame) if name == VIDEO else frame, **FEWER.get(name, {}))


def answers(weights: Path, device: str, *, half: bool = False) -> dict[str, Any]:
    """What every model says."""
    with running(weights, device, half=half) as client:
        return {name: ask(client, name) for name in MODELS}


def measure(
    weights: Path, meter: Meter, device: str = "cuda", *, half: bool = False
) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """By model, megabytes of the device and the answer.

    The megabytes: declared, and above what was in use before, CUDA context included: loaded, with one answer given, and
    after the unload.
    """
    found: dict[str, dict[str, float]] = {}
    said: dict[str, Any] = {}
    with running(weights, device, half=half) as client:
        client.get_status()
        for name, model in MODELS.items():
            before = meter.used_mb()
            client.get_model(name)
            loaded = meter.used_mb()
            said[name] = ask(client, name)
            answered = meter.used_mb()
            client.unload(name)
            found[name] = {
                "declared_mb": model.vram_mb,
                "loaded_mb": loaded - before,
                "answered_mb": answered - before,
                "left_mb": meter.settled_mb(before) - before,
            }
    return found, said


def make_weights(where: Path) -> None:
    """Networks of the published sizes, in a process of their own: the libraries stay out of this one."""
    subprocess.run([sys.executable, "-m", "benchmarks.published", str(where), *MODELS], check=True)


def table(figures: dict[str, dict[str, float]]) -> str:
    """Of `measure`, with what else is known of a model."""
    columns = {
        "declared_mb": "declared",
        "loaded_mb": "loaded",
        "answered_mb": "answered",
        "left_mb": "left",
        "half_answered_mb": "in half",
    }
    rows: list[tuple[str, ...]] = [("MB of the device", *columns.values(), "from the CPU's answer", "in half")]
    for name, row in figures.items():
        cells = [f"{row[key]:.0f}" if key in row else "" for key in columns]
        far = [f"{row[key]:.2f}" if key in row else "" for key in ("distance", "half_distance")]
        rows.append((name, *cells, *far))
    return common.table(rows)


def distance(one: Any, other: Any) -> float:
    """Between two answers of a model, in tolerances: 0 where they are the same, at most 1 where they agree."""
    assert type(one) is type(other)
    match one:
        case results.Classification() | results.Action():
            told = [dict(zip(a.labels, a.scores.tolist(), strict=True)) for a in (one, other)]
            if told[0].keys() & told[1].keys() == set():
                return float("inf")
            return max(abs(told[0][k] - told[1][k]) for k in told[0].keys() & told[1].keys()) / PROBABILITY
        case results.Embedding():
            return (1 - float(one.vector @ other.vector)) / COSINE
        case results.DepthMap():
            return float(np.abs(one.depth - other.depth).max() / (DEPTH * np.abs(other.depth).max()))
        case results.Segmentation():
            return float((one.mask != other.mask).mean()) / PIXELS
        case results.Keypoints() if len(one.points) == len(other.points) == 1:
            return float(np.median(np.linalg.norm(one.points - other.points, axis=-1))) / POINT
        case results.Detections() | results.Keypoints():
            return max(unpaired(one.boxes, other.boxes), unpaired(other.boxes, one.boxes)) / UNPAIRED
        case results.Quality():
            return abs(one.score - other.score) / QUALITY
        case results.OcrText():
            return 0.0 if one.text == other.text else float("inf")
    raise TypeError(f"{type(one).__name__} is no answer of a model of config.toml")


def unpaired(boxes: np.ndarray, others: np.ndarray) -> float:
    """The share of (n, 4) boxes that none of the (m, 4) others is the same as."""
    if not len(boxes):
        return 0.0
    corner, far = (np.maximum(boxes[:, None, :2], others[:, :2]), np.minimum(boxes[:, None, 2:], others[:, 2:]))
    both = np.prod(np.clip(far - corner, 0, None), axis=-1)
    area, areas = (np.prod(b[:, 2:] - b[:, :2], axis=-1) for b in (boxes, others))
    shared = both / np.clip(area[:, None] + areas - both, 1e-6, None)
    return float((shared.max(axis=1, initial=0) < OVERLAP).mean())
