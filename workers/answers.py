"""What an adapter answered, looked at before it is sent: whatever it is, it costs that request and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np

from zoo import results
from zoo.errors import InferenceFailed
from zoo.wire.arrays import KINDS

# The shapes of each result's arrays and lists. One letter stands for one number all over a result.
SHAPES: dict[type[results.Result], dict[str, tuple[Any, ...]]] = {
    results.Detections: {
        "boxes": ("n", 4), "scores": ("n",), "class_ids": ("n",), "labels": ("n",), "masks": ("n", "h", "w"),
    },
    results.Keypoints: {
        "points": ("n", "k", 2), "scores": ("n", "k"), "boxes": ("n", 4), "names": ("k",), "postures": ("n",),
    },
    results.Classification: {"labels": ("n",), "scores": ("n",)},
    results.Embedding: {"vector": ("d",)},
    results.DepthMap: {"depth": ("h", "w")},
    results.Segmentation: {"mask": ("h", "w")},
    results.OcrText: {"lines": ("n",), "scores": ("n",), "boxes": ("n", 4, 2)},
    results.Quality: {},
    results.Action: {"labels": ("n",), "scores": ("n",)},
}  # fmt: skip
LISTS = {"labels", "names", "postures", "lines"}
EMPTY = {"names", "postures"}  # left out where there are none
NONE = {"masks", "boxes"}  # of Detections, its boxes are needed all the same
MAX_DEPTH = 100


def check(answer: Any) -> None:
    """Raises InferenceFailed: it is no result, or one whose parts do not fit together."""
    if type(answer) in SHAPES:
        _check_result(answer)
    elif isinstance(answer, dict):
        _check_plain(answer, "answer", 0)
    else:
        raise InferenceFailed(
            f"the adapter answered {_kind(answer)}; an answer is one of zoo's results, or a dict of JSON-like "
            "values and arrays"
        )


def _check_result(answer: results.Result) -> None:
    name = type(answer).__name__
    sizes: dict[str, tuple[int, str]] = {}
    for field, shape in SHAPES[type(answer)].items():
        value = getattr(answer, field)
        if value is None and field in NONE and not (field == "boxes" and isinstance(answer, results.Detections)):
            continue
        if field in LISTS:
            if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
                raise InferenceFailed(f"the adapter answered {name} with {field} that is no list of texts")
            if not value and field in EMPTY:
                continue
            found: tuple[int, ...] = (len(value),)
        else:
            if not isinstance(value, np.ndarray) or value.dtype.kind not in KINDS:
                raise InferenceFailed(f"the adapter answered {name} with {field} that is {_kind(value)}, no array")
            found = value.shape
        if len(found) != len(shape):
            raise InferenceFailed(f"the adapter answered {name} with {field} of shape {found}, not {_said(shape)}")
        for size, wanted in zip(found, shape, strict=True):
            if isinstance(wanted, int):
                if size != wanted:
                    raise InferenceFailed(
                        f"the adapter answered {name} with {field} of shape {found}, not {_said(shape)}"
                    )
            elif sizes.setdefault(wanted, (size, field))[0] != size:
                before, other = sizes[wanted]
                raise InferenceFailed(
                    f"the adapter answered {name} whose parts disagree: {other} are of {before}, {field} of {size}"
                )


def _check_plain(value: Any, where: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise InferenceFailed(f"the adapter answered values inside of values, {MAX_DEPTH} deep or without end")
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise InferenceFailed(f"the adapter answered a dict with the key {key!r} ({where}); keys are texts")
            _check_plain(inner, f"{where}[{key!r}]" if depth < 3 else where, depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            if isinstance(inner, dict | list | tuple):
                _check_plain(inner, where, depth + 1)


def _said(shape: tuple[Any, ...]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
