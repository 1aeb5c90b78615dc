"""Frames as cameras have them (NV12, I420, grey, 16 bits): where their numbers lie in an array, and what is refused.

4:2:0 frames (`nv12`, `i420`) are uint8. First come the rows of Y, `stride` bytes each, then the chroma, of which one
sample stands for 2x2 pixels: of a picture of w x h pixels, ceil(w/2) x ceil(h/2) samples. `nv12` has them as U, V, …
in rows of `stride` bytes (plus one if `stride` is odd); `i420` has a plane of U and then one of V, in rows of
ceil(`stride`/2) bytes. Planes follow each other without a gap. Two forms of array are taken:

* (rows, row): a row is `stride` bytes, an even number. Of the rows two thirds are Y's; where they cannot be split so,
  the number of Y's rows is odd. Without `size` all of it is the picture, (H * 3/2, W). With `size` the picture is the
  upper left (w, h) of it: w, h odd, rows padded on the right, or planes padded below.
* (bytes,): `size` is needed, `stride` is w unless it is given, and nothing is padded below. With w odd this is what
  ffmpeg writes as rawvideo.

Grey frames are (H, W), with `size` the upper left of it, or (bytes,) likewise. 16-bit frames are (H, W) or (H, W, 3)
with `scale`: lo becomes 0, hi 255, what is outside is cut off. Client and worker check by the same function: the worker
trusts nothing, and a caller learns what is wrong before anything is sent.

On the wire 16-bit frames have colours of their own (`gray16`, `rgb16`, `bgr16`), so that a worker of an earlier
release, which knows no `scale`, refuses them as it refuses every colour here, and takes none for what it is not.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from zoo.errors import InvalidInput
from zoo.wire.arrays import COLORS, ODD, check_dtype, shown

PLANAR = ("nv12", "i420")
CAMERA = (*PLANAR, "gray")
WIDE = ("gray16", "rgb16", "bgr16")
MOST = (1 << 16) - 1  # of 16 bits


class PixelFormat(NamedTuple):
    """How a frame's numbers are to be read: what a caller says, and, where frames have one, what travels.

    Attributes:
        color: one of `COLORS` or `CAMERA`, or "encoded" for JPEG and PNG bytes; on the wire also of `WIDE`.
        size: (width, height) of the picture in pixels; None where the array's shape says it.
        stride: bytes from one row of Y or grey to the next; None where the array's shape, or `size`, says it.
        scale: (lo, hi) of 16-bit numbers.
    """

    color: str = "rgb"
    size: tuple[int, int] | None = None
    stride: int | None = None
    scale: tuple[float, float] | None = None


SAID = {color: PixelFormat(color) for color in (*COLORS, *CAMERA, "encoded")}  # by callers
RGB, ENCODED = SAID["rgb"], SAID["encoded"]


class Planes(NamedTuple):
    """Where a frame lies in its array: `width` x `height` pixels of a first plane of `rows` rows of `stride` bytes."""

    width: int
    height: int
    stride: int
    rows: int


def check_format(color: Any = "rgb", size: Any = None, stride: Any = None, scale: Any = None) -> PixelFormat:
    """A caller's arguments, each by itself. Raises InvalidInput naming the one that is wrong."""
    if not isinstance(color, str) or color not in SAID:
        raise InvalidInput(f"color: {shown(color)} is not one of {', '.join(SAID)}")
    if size is None and stride is None and scale is None:
        return SAID[str(color)]
    return PixelFormat(
        str(color),
        None if size is None else _pair("size", size, _whole, "two whole numbers above 0, (width, height)"),
        None if stride is None else _whole("stride", stride, "a whole number of bytes above 0"),
        None if scale is None else _pair("scale", scale, _number, "two numbers, (lo, hi)"),
    )


def sent(how: PixelFormat, shape: tuple[int, ...], dtype: str) -> PixelFormat:
    """What travels with an array of this shape that the caller has described so.

    Raises:
        InvalidInput: the two do not fit, naming the argument.
    """
    if how.color in COLORS and how.size is None and how.stride is None and how.scale is None:
        return how
    if how.color in (*PLANAR, "encoded") and how.scale is not None:
        raise InvalidInput(f"scale: it goes with 16-bit frames, not with color {how.color!r}")
    if how.scale is not None:
        how = how._replace(color=("gray" if len(shape) < 3 and how.color in COLORS else how.color) + "16")
    elif how.color == "gray" and np.dtype(dtype) == np.uint16:
        raise InvalidInput("scale: a 16-bit frame needs scale=(lo, hi), the numbers that become 0 and 255")
    if how.color == "encoded" and (len(shape) != 1 or dtype != "|u1"):
        raise InvalidInput(f"color: the bytes of an encoded image are uint8 in one dimension, got {dtype} of {shape}")
    planes_of(how, shape, dtype)
    return how


def encoded(how: PixelFormat) -> PixelFormat:
    """What travels with the bytes of an encoded image. Raises InvalidInput when they were said to be anything else."""
    if how.color not in (*COLORS, "encoded") or any(value is not None for value in how[1:]):
        name = next((name for name in ("scale", "stride", "size") if getattr(how, name) is not None), "color")
        raise InvalidInput(
            f"{name}: bytes are taken for an encoded image, which needs none; np.frombuffer(data, np.uint8) makes an "
            "array of bytes that are pixels"
        )
    return ENCODED


def planes_of(how: PixelFormat, shape: tuple[int, ...], dtype: str) -> Planes | None:
    """Where the picture lies in an array of this shape; None for a plain one, whatever its shape.

    Raises:
        InvalidInput: there is no such frame, naming `color`, `size`, `stride`, `scale`, `dtype` or `frame`.
    """
    color, size, stride, scale = how
    wide = color in WIDE
    if color not in CAMERA and not wide:
        if color not in COLORS and color != "encoded":
            raise InvalidInput(f"color: {shown(color)} is not one of {', '.join(COLORS + CAMERA + WIDE)}")
        for name, value in (("size", size), ("stride", stride), ("scale", scale)):
            if value is not None:
                fits = "16-bit frames" if name == "scale" else f"color {', '.join(CAMERA)}"
                raise InvalidInput(f"{name}: it goes with {fits}, not with color {shown(color)}")
        return None
    kind = np.dtype(np.uint16 if wide else np.uint8)
    if (found := check_dtype(dtype)) != kind and found.newbyteorder() != kind:
        raise InvalidInput(f"{'scale' if scale else 'color'}: such a frame is {kind}, got {found}")
    _check_scale(scale, wide)
    if color in ("rgb16", "bgr16"):
        if size is not None or stride is not None or len(shape) != 3 or shape[2] != 3 or 0 in shape:
            raise InvalidInput(f"frame: a 16-bit frame is HxW or HxWx3, without size and stride; got shape {shape}")
        return Planes(shape[1], shape[0], shape[1] * 6, shape[0])
    if size is not None and min(size) < 1:
        raise InvalidInput(f"size: {size} has no pixels")
    if len(shape) == 2 and 0 not in shape:
        return _of_rows(color, kind.itemsize, shape, size, stride)
    if len(shape) == 1 and 0 not in shape:
        return _of_bytes(color, kind.itemsize, shape[0], size, stride)
    raise InvalidInput(
        f"frame: color {color!r} takes (rows, {'columns' if 'gray' in color else 'bytes'}), or one dimension with "
        f"size=(w, h), got shape {shape}"
    )


def _of_rows(color: str, item: int, shape: tuple[int, ...], size: tuple[int, int] | None, stride: int | None) -> Planes:
    rows, columns = shape
    luma = 2 * rows // 3 if color in PLANAR else rows
    if color in PLANAR and (rows % 3 == 1 or columns % 2):
        raise InvalidInput(
            f"frame: shape {shape} is not one of {color}, which is (H * 3/2, W) with W even; for an odd size add a "
            "column and say size=(w, h), or send the bytes in one dimension"
        )
    if stride is not None and (stride != columns * item or size is None):
        raise InvalidInput(
            f"stride: {stride} bytes do not fit an array whose rows have {columns * item}"
            if size is not None
            else "stride: it needs size=(w, h), for what of each row is the picture"
        )
    if size is None:
        if color in PLANAR and luma % 2:
            raise InvalidInput(f"size: {color} of {rows} rows has an odd height; say size=(w, h)")
        size = columns, luma
    if size[0] > columns or size[1] > luma:
        raise InvalidInput(f"size: {size[0]}x{size[1]} is larger than the {columns}x{luma} of the array")
    return Planes(*size, columns * item, luma)


def _of_bytes(color: str, item: int, count: int, size: tuple[int, int] | None, stride: int | None) -> Planes:
    if size is None:
        raise InvalidInput(f"size: {color} in one dimension needs size=(w, h)")
    width, height = size
    step = width * item if stride is None else stride
    if step < width * item or step % item:
        raise InvalidInput(f"stride: {step} bytes cannot hold a row of {width} pixels, {width * item} bytes")
    needed = step * height + (2 * ((step + 1) // 2) * ((height + 1) // 2) if color in PLANAR else 0)
    if count * item != needed:
        raise InvalidInput(
            f"frame: {count * item} bytes; {color} of {width}x{height} with rows of {step} bytes has {needed}"
        )
    return Planes(width, height, step, height)


def _check_scale(scale: tuple[float, float] | None, wide: bool) -> None:
    if scale is None:
        if wide:
            raise InvalidInput("scale: a 16-bit frame needs (lo, hi), the numbers that become 0 and 255")
        return
    if not wide:
        raise InvalidInput("scale: it goes with 16-bit frames")
    lo, hi = scale
    if not (lo >= 0 and hi <= MOST and lo + 1 <= hi):  # so written, NaN is refused
        raise InvalidInput(f"scale: {shown(scale)} is not two numbers, 0 <= lo, lo + 1 <= hi, hi <= {MOST}")


# ---------------------------------------------------------------- arguments


def _pair(name: str, value: Any, check: Any, needed: str) -> Any:
    try:
        if isinstance(value, str | bytes | dict | set):
            raise TypeError
        first, second = value
    except ODD:
        raise InvalidInput(f"{name}: {shown(value)} is not {needed}") from None
    return check(name, first, needed), check(name, second, needed)


def _whole(name: str, value: Any, needed: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 < value < 1 << 31:
        raise InvalidInput(f"{name}: {shown(value)} is not {needed}")
    return int(value)


def _number(name: str, value: Any, needed: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise InvalidInput(f"{name}: {shown(value)} is not {needed}")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    return found
