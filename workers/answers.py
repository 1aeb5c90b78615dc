"""What an adapter answered, looked at before it is sent: whatever it is, it costs that request and nothing else.

Type, keys, and that the arrays fit together are checked. A bad answer is `InferenceFailed` with its cause; sent on, it
would be an unreadable result at the client.
"""

from __future__ import annotations

import functools
from typing import Any

import msgspec
import numpy as np

from zoo import results
from zoo.errors import InferenceFailed
from zoo.wire.arrays import KINDS

MAX_DEPTH = 100


def check(answer: Any) -> None:
    """Raises InferenceFailed: it is no result, or one whose parts do not fit together."""
    if type(answer) in results.TYPES:
        _check_result(answer)
    elif isinstance(answer, dict):
        _check_plain(answer, "answer", 0)
    else:
        raise InferenceFailed(
            f"the adapter answered {_kind(answer)}; an answer is one of zoo's results, or a dict of JSON-like "
            "values and arrays"
        )


def _check_result(answer: results.TypedResult) -> None:
    name = type(answer).__name__
    sizes: dict[str, tuple[int, str]] = {}
    for field, shape, is_list, required in _parts(type(answer)):
        value = getattr(answer, field)
        left_out = isinstance(value, list | tuple) and not value if is_list else value is None
        if left_out and not required:
            continue
        if is_list:
            if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
                raise InferenceFailed(f"the adapter answered {name} with {field} that is no list of texts")
            found: tuple[int, ...] = (len(value),)
        else:
            if not isinstance(value, np.ndarray) or value.dtype.kind not in KINDS:
                raise InferenceFailed(f"the adapter answered {name} with {field} that is {_kind(value)}, no array")
            found = value.shape
        if len(found) != len(shape) or any(
            isinstance(n, int) and n != size for n, size in zip(shape, found, strict=True)
        ):
            raise InferenceFailed(f"the adapter answered {name} with {field} of shape {found}, not {_said(shape)}")
        for size, letter in zip(found, shape, strict=True):
            before, other = sizes.setdefault(str(letter), (size, field))
            if before != size:
                raise InferenceFailed(
                    f"the adapter answered {name} whose parts disagree: {other} are of {before}, {field} of {size}"
                )


@functools.cache
def _parts(kind: type[results.TypedResult]) -> list[tuple[str, tuple[int | str, ...], bool, bool]]:
    """Of each part with a shape: its name, the shape, whether it is a list of texts, and whether it has to be there."""
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    return [(name, shape, fields[name].type == list[str], fields[name].required) for name, shape in kind.shapes.items()]


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
