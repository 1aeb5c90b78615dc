"""ONNX graphs for tests: small ones made here, and a detector exported from the stand-in of a YOLO."""

from __future__ import annotations

import contextlib
import io
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Axes = Sequence[int | str | None]
OPSET = 17
LABELS = ["Mug", "water_bottle", "Kite", "dog"]


def save(
    path: Path,
    nodes: Sequence[Any],
    inputs: Mapping[str, tuple[int, Axes]],
    outputs: Mapping[str, tuple[int, Axes | None]],
    weights: Mapping[str, np.ndarray] | None = None,
    metadata: Mapping[str, str] | None = None,
    domains: Mapping[str, int] | None = None,
) -> Path:
    """A graph of these nodes in a file. Of inputs and outputs: type (of `TensorProto`) and shape."""
    graph = helper.make_graph(
        list(nodes),
        "made for a test",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in {"": OPSET, **(domains or {})}.items()]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    helper.set_model_props(model, dict(metadata or {}))
    path.write_bytes(model.SerializeToString())
    return path


def saying(
    path: Path,
    *answers: np.ndarray,
    labels: Sequence[str] | None = LABELS,
    picture: Axes = (1, 3, 64, 96),
    kind: int = TensorProto.FLOAT,
    **metadata: str,
) -> Path:
    """A detector that answers these arrays to every picture: output0, output1, and so on."""
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "nil"], ["zero"]),
    ]
    weights: dict[str, np.ndarray] = {"nil": np.zeros((), helper.tensor_dtype_to_np_dtype(kind))}
    for i, answer in enumerate(answers):
        weights[f"said{i}"] = answer.astype(weights["nil"].dtype)
        nodes.append(helper.make_node("Add", [f"said{i}", "zero"], [f"output{i}"]))
    if labels is not None:
        metadata["names"] = str(dict(enumerate(labels)))
    outputs = {f"output{i}": (kind, answer.shape) for i, answer in enumerate(answers)}
    return save(path, nodes, {"images": (kind, picture)}, outputs, weights, metadata)


def exported(checkpoint: Path, path: Path, **how: Any) -> Path:
    """An ultralytics checkpoint as its library exports it."""
    from ultralytics import YOLO

    source = shutil.copy(checkpoint, path.with_suffix(".pt"))  # the export is put beside it
    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet), warnings.catch_warnings(action="ignore"):
        made = YOLO(source).export(format="onnx", simplify=False, verbose=False, **how)
    Path(source).unlink()
    assert Path(made) == path
    return path


def classifier(path: Path, seed: int = 0) -> Path:
    """Pictures of 32x48 as floats, any number of them: a score for each of four classes, and the means of colours."""
    random = np.random.default_rng(seed)
    nodes = [
        helper.make_node("GlobalAveragePool", ["pixels"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["colours"]),
        helper.make_node("Gemm", ["colours", "weight", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"]),
    ]
    weights = {
        "weight": random.normal(size=(3, 4)).astype(np.float32),
        "bias": random.normal(size=4).astype(np.float32),
    }
    outputs = {"scores": (TensorProto.FLOAT, ("n", 4)), "colours": (TensorProto.FLOAT, ("n", 3))}
    return save(path, nodes, {"pixels": (TensorProto.FLOAT, ("n", 3, 32, 48))}, outputs, weights)


def linear(path: Path) -> Path:
    """`total` = `left` (n, 3) @ `right` (3, 2), and `same`: `left` as it came."""
    nodes = [helper.make_node("MatMul", ["left", "right"], ["total"]), helper.make_node("Identity", ["left"], ["same"])]
    inputs = {"left": (TensorProto.FLOAT, ("n", 3)), "right": (TensorProto.FLOAT, (3, 2))}
    outputs = {"total": (TensorProto.FLOAT, ("n", 2)), "same": (TensorProto.FLOAT, ("n", 3))}
    return save(path, nodes, inputs, outputs)


# Those of docs/models.md: where, and what makes them, which may ask for another stand-in.
STANDINS: dict[str, tuple[str, Callable[[Path, Callable[[str], Path]], Path]]] = {
    "onnx-detector": (
        "onnx-detector/model.onnx",
        lambda path, standin: exported(standin("threat-detection-yolov8n"), path, dynamic=True),
    ),
    "onnx-classifier": ("onnx-classifier/model.onnx", lambda path, _: classifier(path)),
    "onnx-tensors": ("onnx-tensors/model.onnx", lambda path, _: linear(path)),
}


def with_weights_in(path: Path, location: str, offset: str = "0", length: str = "16") -> Path:
    """A graph that adds four numbers to `x`, which lie in another file."""
    tensor = TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=value)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "weight"], ["y"])], "made for a test", [x], [y], [tensor])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def opened(path: Path) -> Any:
    """The protobuf, to be changed."""
    return onnx.load(path)
