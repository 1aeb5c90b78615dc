"""Results as tensors of KServe v2. `docs/gateway.md` has the table.

Each field of a result is a tensor under its own name: arrays as they are, texts as BYTES, a number as a tensor of one.
Answers for boxes are put together: what has a row per object found is joined, and `counts` says how many rows belong to
each box; what all boxes have alike gets a dimension more; arrays of different sizes (maps) are joined flat, with their
shapes in `NAME.shapes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from zoo import results
from zoo.gateway.doors.kserve.tensors import OutputTensor, of_array, of_texts
from zoo.results import AnyResult, TypedResult

Field = np.ndarray | list[str]  # one field of a result: numbers, or texts
BY_CATEGORY: dict[str, type[TypedResult]] = {
    "detection": results.Detections,
    "pose": results.Keypoints,
    "classification": results.Classification,
    "embedding": results.Embedding,
    "depth": results.DepthMap,
    "segmentation": results.Segmentation,
    "ocr": results.OcrText,
    "quality": results.Quality,
    "action": results.Action,
}
_KINDS = {  # of fields that are arrays
    "boxes": "FP32", "scores": "FP32", "class_ids": "INT32", "masks": "BOOL", "points": "FP32", "vector": "FP32",
    "depth": "FP32", "mask": "UINT8",
}  # fmt: skip


def tensors(result: AnyResult | list[AnyResult]) -> list[OutputTensor]:
    """All tensors of an answer, in the order of its fields."""
    if isinstance(result, list):
        return _joined(result)
    return [_tensor(name, value) for name, value in fields(result).items()]


def fields(result: AnyResult) -> dict[str, Field]:
    """What of a result has a value, as numbers or texts."""
    if isinstance(result, dict):
        given: dict[str, Any] = {str(name): value for name, value in result.items()}
    else:
        given = {name: getattr(result, name) for name in result.__struct_fields__}
    return {name: _field(value) for name, value in given.items() if value is not None}


def _field(value: Any) -> Field:
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, str):
        return [value]
    if isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
        return list(value)
    if isinstance(value, bool | int | float | np.generic | list | tuple):
        try:
            found = np.atleast_1d(np.asarray(value))
        except (ValueError, OverflowError):  # lists of different lengths
            return [_text(value)]
        if found.dtype.kind in "biuf":
            return found
    return [_text(value)]


def _text(value: Any) -> str:
    return msgspec.json.encode(results.plain(value)).decode()


def _tensor(name: str, value: Field) -> OutputTensor:
    return of_texts(name, value) if isinstance(value, list) else of_array(name, value)


# ---------------------------------------------------------------- one answer per box


def _joined(answers: Sequence[AnyResult]) -> list[OutputTensor]:
    every = [fields(answer) for answer in answers]
    per_object = _per_object(answers)
    counts = [max((len(one[name]) for name in per_object if name in one), default=1) for one in every]
    names = dict.fromkeys(name for one in every for name in one)
    joined: list[OutputTensor] = []
    for name in names:
        values = [one[name] for one in every if name in one]
        joined += _join(name, values, name in per_object)
    return [*joined, of_array("counts", np.array(counts, np.int64))]


def _per_object(answers: Sequence[AnyResult]) -> set[str]:
    """Fields with a row for each object that was found."""
    found: set[str] = set()
    for answer in answers:
        if not isinstance(answer, dict):
            found.update(name for name, shape in answer.shapes.items() if shape[:1] == ("n",))
    return found


def _join(name: str, values: list[Field], per_object: bool) -> list[OutputTensor]:
    texts = [value for value in values if isinstance(value, list)]
    if texts:
        flat = [text for value in values for text in (value if isinstance(value, list) else [_text(value)])]
        rows = len(texts[0])
        even = not per_object and len(texts) == len(values) and all(len(value) == rows for value in texts)
        shape = [len(texts), rows] if even and rows != 1 else [len(flat)]
        return [OutputTensor(name, shape, flat)]
    numbers = [value for value in values if isinstance(value, np.ndarray)]
    if per_object and len({value.shape[1:] for value in numbers}) == 1:
        return [of_array(name, np.concatenate(numbers))]
    if not per_object and len({value.shape for value in numbers}) == 1:
        stacked = np.stack(numbers)
        return [of_array(name, stacked.reshape(-1) if numbers[0].shape == (1,) else stacked)]
    flat_numbers = of_array(name, np.concatenate([value.reshape(-1) for value in numbers]))
    width = max(value.ndim for value in numbers)
    shapes = np.array([[1] * (width - value.ndim) + [*value.shape] for value in numbers], np.int64)
    return [flat_numbers, of_array(f"{name}.shapes", shapes)]


# ---------------------------------------------------------------- metadata


def described(category: str) -> list[dict[str, Any]]:
    """The outputs of a model of this category; [] for one that answers what it likes."""
    kind = BY_CATEGORY.get(category)
    return _of_kind(kind) if kind is not None else []


def seen(result: AnyResult) -> list[dict[str, Any]]:
    """The outputs of a model that has answered so: of a plain dict what it has; what may have other sizes has -1."""
    if not isinstance(result, dict):
        return _of_kind(type(result))
    found = []
    for name, field in fields(result).items():
        tensor = _tensor(name, field)
        sides = [-1] * len(tensor.shape) if isinstance(result[name], np.ndarray | list | tuple) else [1]
        found.append({"name": name, "datatype": tensor.datatype, "shape": sides})
    return found


def _of_kind(kind: type[TypedResult]) -> list[dict[str, Any]]:
    """Sizes are -1."""
    found = []
    for field in msgspec.structs.fields(kind):
        shape = kind.shapes.get(field.name)
        datatype = _KINDS.get(field.name) or _plain_datatype(str(field.type))
        sides = [side if isinstance(side, int) else -1 for side in shape] if shape else _plain_shape(str(field.type))
        found.append({"name": field.name, "datatype": datatype, "shape": sides})
    return found


def _plain_datatype(hint: str) -> str:
    by_hint = (("dict", "BYTES"), ("str", "BYTES"), ("bool", "BOOL"), ("float", "FP64"))
    return next((datatype for part, datatype in by_hint if part in hint), "INT64")


def _plain_shape(hint: str) -> list[int]:
    return [2] if "tuple" in hint else [-1] if "list" in hint else [1]
