"""The work that all peers do: models as functions of one array, and what is asked of them.

All peers call these same functions, so what differs between them is serving alone. Shapes and types are fixed per model
and known to both sides, as in a Triton configuration; over a wire without them, an array is its bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FRAME = (1080, 1920, 3)
Function = Callable[[np.ndarray], np.ndarray]


def few(given: np.ndarray) -> np.ndarray:
    """(1,) float32: the mean of sixteen values spread over the array."""
    return given.reshape(-1)[:: max(1, given.size // 16)][:16].mean(dtype=np.float32, keepdims=True)


def _few() -> Function:
    return few


def _depth() -> Function:
    """A map of 8.3 MB that is there already; its first value is that of `few`."""
    found = np.random.default_rng(1).random(FRAME[:2], np.float32)

    def depth(given: np.ndarray) -> np.ndarray:
        found[0, 0] = few(given)[0]
        return found

    return depth


def _detector() -> Function:
    """ultralytics' own call, one thread; the checkpoint is what $PEERS_WEIGHTS names."""
    os.environ["YOLO_AUTOINSTALL"] = "false"
    import torch
    from ultralytics import YOLO

    network = YOLO(os.environ["PEERS_WEIGHTS"])
    network.predict(np.zeros(FRAME, np.uint8), verbose=False, device="cpu")  # it sets the threads of torch
    torch.set_num_threads(1)

    def detect(given: np.ndarray) -> np.ndarray:
        bgr = np.ascontiguousarray(given[..., ::-1])
        found = network.predict(bgr, conf=1e-6, max_det=BOXES, verbose=False, device="cpu")[0].boxes.data
        rows = np.zeros((BOXES, 6), np.float32)
        rows[: len(found)] = found.numpy()
        return rows

    return detect


BOXES = 20


class Model(NamedTuple):
    """`load` makes its function, in the process that serves it. Processes are numbered from 0."""

    load: Callable[[], Function]
    shape: tuple[int, ...] = FRAME
    dtype: str = "uint8"
    answer: tuple[int, ...] = (1,)  # of float32
    process: int = 0


MORE = tuple(f"more-{i}" for i in range(5))
MODELS: dict[str, Model] = {
    "frame": Model(_few),
    "tensor": Model(_few, (1, 3, 224, 224), "float32"),
    "bytes": Model(_few, (64,)),
    "depth": Model(_depth, answer=FRAME[:2]),
    **{name: Model(_few, process=i) for i, name in enumerate(MORE, 1)},
    "detector": Model(_detector, answer=(BOXES, 6), process=6),
}
PROCESSES = 1 + max(model.process for model in MODELS.values())


def names(process: int | None = None) -> list[str]:
    """The models of one process, or all; without weights, there is no detector."""
    return [
        name
        for name, model in MODELS.items()
        if process in (None, model.process) and (name != "detector" or os.environ.get("PEERS_WEIGHTS"))
    ]


def loaded(process: int | None = None) -> dict[str, Function]:
    return {name: MODELS[name].load() for name in names(process)}


def array_of(data: Any, model: str) -> np.ndarray:
    """What a model is given, from its bytes; not copied."""
    return np.frombuffer(data, MODELS[model].dtype).reshape(MODELS[model].shape)


def answer_of(data: Any, model: str) -> np.ndarray:
    return np.frombuffer(data, np.float32).reshape(MODELS[model].answer)


class Workload(NamedTuple):
    """Requests of one kind. `models`: one request, or the same frame to several at once."""

    title: str
    models: tuple[str, ...]
    calls: int  # of each round
    clients: int = 1  # each a process; above 1, requests a second are counted


WORKLOADS: dict[str, Workload] = {
    "frame": Workload("1080p frame in, one number out", ("frame",), 40),
    "tensor": Workload("224×224 float tensor in", ("tensor",), 60),
    "bytes": Workload("64 bytes in", ("bytes",), 150),
    "depth": Workload("1080p frame in, 1080p depth map out", ("depth",), 20),
    "six": Workload("one 1080p frame to six models", ("frame", *MORE), 12),
    "detector": Workload("1080p frame to a YOLO11n", ("detector",), 5),
    "four": Workload("1080p frames of four clients", ("frame",), 0, clients=4),
}


@cache
def picture() -> np.ndarray:
    """(1080, 1920, 3) uint8: two photographs, where the package that brings them is installed; read-only."""
    try:
        from benchmarks import scene

        frame = scene.frame()
    except (ImportError, AssertionError, OSError):
        frame = np.random.default_rng(2).integers(0, 255, FRAME, np.uint8)
    frame.flags.writeable = False
    return frame


def example(model: str) -> np.ndarray:
    """What the first request gives this model."""
    shape, dtype = MODELS[model].shape, MODELS[model].dtype
    return picture() if shape == FRAME else np.random.default_rng(3).random(shape).astype(dtype)


def mark(given: np.ndarray, number: int) -> None:
    """Makes a request differ from the one before it, to see an answer given twice. A block, which a JPEG keeps."""
    where = given[:16, :16] if given.shape == FRAME else given.reshape(-1)[:1]
    where[...] = number % 251


def wrong(model: str, given: np.ndarray, answer: np.ndarray, known: Path, tolerance: float = 1e-3) -> str | None:
    """What is wrong with an answer. `known` holds what the library itself answers to `picture()`."""
    expected = np.load(known) if model == "detector" else few(given)
    told = answer.reshape(-1)[:1] if model == "depth" else answer
    if answer.shape != MODELS[model].answer or not np.allclose(told, expected, rtol=1e-4, atol=tolerance):
        return f"{model}: {told.reshape(-1)[:4]} where {expected.reshape(-1)[:4]} is right"
    if model == "depth" and not np.array_equal(answer[1::97, ::89], _map()[1::97, ::89]):
        return "depth: another map"
    return None


@cache
def _map() -> np.ndarray:
    return _depth()(np.zeros(1, np.uint8))
