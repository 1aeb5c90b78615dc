"""Which arrays may travel, and which of them are frames.

A frame is a numeric array, anything that numpy makes one of, or the bytes of an encoded image. Whatever else a caller
gives is refused here with `InvalidInput`, and so is a reference that reaches outside the memory it names.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from zoo.errors import InvalidInput
from zoo.wire import protocol

COLORS = ("rgb", "bgr")
KINDS = "biufc"  # numpy kinds that may travel: booleans, integers, floats, complex numbers
MAX_NDIM = 8
SIDE_END = 1 << 63  # numpy counts no further
# What numpy, and objects that mean to be arrays, raise at what they do not like. Not every exception: a signal handler
# of the caller's may raise here too, and that is not for us.
ODD = (
    TypeError, ValueError, ArithmeticError, LookupError, AttributeError, NameError, RuntimeError, SyntaxError,
    AssertionError, BufferError, MemoryError,
)  # fmt: skip


def shown(value: Any) -> str:
    """A value in an error's text: short, and whatever its own way of showing itself is."""
    try:
        return f"{value!r:.100}"
    except ODD:  # a whole number of 5,000 digits, for instance
        return f"a {type(value).__name__}"


def check_dtype(text: str) -> np.dtype[Any]:
    """Raises InvalidInput for anything that is not a plain numeric dtype."""
    known = KNOWN.get(text) if type(text) is str else None
    if known is not None:
        return known
    try:
        dtype = np.dtype(text)
    except ODD as e:
        raise InvalidInput(f"dtype: {shown(text)} is not one that numpy knows") from e
    if dtype.kind not in KINDS or dtype.itemsize == 0:
        raise InvalidInput(f"dtype: {shown(text)} cannot travel; use a boolean, integer or float type")
    return dtype


KNOWN = {text: np.dtype(text) for text in ("|u1", "<f4")}  # to make one of a text takes 0.3 us, and a text of one


def is_shape(shape: tuple[int, ...]) -> bool:
    """An array may have it, as far as its sides and their number go."""
    for side in shape:  # no generator: each frame passes here
        if not 0 <= side < SIDE_END:
            return False
    return len(shape) <= MAX_NDIM


def view(memory: Any, arena_bytes: int, offset: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """A read-only array over `memory`, after checking that it lies inside.

    Raises:
        InvalidInput: bad dtype or shape, or the array would reach outside its memory.
    """
    kind = check_dtype(dtype)
    if not is_shape(shape):
        raise InvalidInput(f"shape: {shape} is not one an array can have")
    count = math.prod(shape)
    if offset < 0 or offset % kind.itemsize or offset + count * kind.itemsize > arena_bytes:
        raise InvalidInput(f"frame: {shape} {dtype} at offset {offset} does not lie inside its {arena_bytes} bytes")
    try:
        array = np.frombuffer(memory, kind, count, offset).reshape(shape)
    except (ValueError, OverflowError):  # no elements, but a side that numpy cannot count
        raise InvalidInput(f"shape: {shape} is not one an array can have") from None
    array.flags.writeable = False
    return array


# ---------------------------------------------------------------- frames


def check_color(color: Any) -> str:
    """The order of an array's channels, "rgb" or "bgr"."""
    if not isinstance(color, str) or color not in COLORS:
        raise InvalidInput(f"color: {shown(color)} is not one of {', '.join(COLORS)}; convert it first to paint on it")
    return str(color)


def check_frames(frame: Any) -> list[Any]:
    """What was given as a frame, as a list: of one, or of all frames of a video."""
    parts = list(frame) if isinstance(frame, list | tuple) else [frame]
    if not parts:
        raise InvalidInput("frame: an empty list")
    if len(parts) > protocol.MAX_FRAMES:
        raise InvalidInput(f"frame: {len(parts)} frames, at most {protocol.MAX_FRAMES} go into one request")
    return parts


def named(frame: dict[Any, Any], options: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Arrays by name as the list that travels, and the options with their names, in its order, as `inputs`."""
    if not all(isinstance(name, str) for name in frame):
        raise InvalidInput("frame: the names of arrays in a dict are texts")
    if "inputs" in options:
        raise InvalidInput("options: inputs: the dict that is sent as frame has the names")
    return list(frame.values()), {**options, "inputs": list(frame)}


def check_frame(part: Any) -> np.ndarray:
    """One frame as the array that travels; of encoded bytes, the bytes."""
    if isinstance(part, bytes | bytearray | memoryview):
        try:
            raw = np.frombuffer(part, np.uint8)
        except (ValueError, BufferError, TypeError) as e:
            raise InvalidInput(f"frame: no plain bytes ({e})") from None
        if not raw.size:
            raise InvalidInput("frame: no bytes")
        return raw
    value = part if isinstance(part, np.ndarray) else _as_array(part)
    if value.size == 0:
        raise InvalidInput(f"frame: it is empty, shape {value.shape}")
    if value.dtype.kind not in KINDS:
        check_dtype(value.dtype.str)  # raises
    if value.ndim > MAX_NDIM:
        raise InvalidInput(f"frame: it has {value.ndim} dimensions, at most {MAX_NDIM} can travel")
    return value


def _as_array(part: Any) -> np.ndarray:
    try:
        value = np.asarray(part)
    except ODD as e:
        raise InvalidInput(f"frame: cannot be read as an array: {e}") from None
    if value.dtype.kind not in KINDS:
        raise InvalidInput(f"frame: a {type(part).__name__}; send an array, a Frame, a list of them, or JPEG/PNG bytes")
    return value
