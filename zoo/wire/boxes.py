"""Boxes, (x1, y1, x2, y2) in pixels of a frame, x to the right and y down: where a crop begins and ends."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from zoo.errors import InvalidInput

MAX_BOXES = 1024  # of one request

Box = tuple[float, float, float, float]

# Shares of the frame go from 0 to 1, and where a detector overshoots, a little beyond. As pixels, boxes within these
# bounds hold the frame's corner pixel at most, about which there is nothing to ask.
SHARES = (-0.1, 1.1)


def check_pixels(boxes: Iterable[Sequence[float]], width: float, height: float, field: str = "boxes") -> None:
    """To be called with all boxes of a frame, before `crop_box`, which would make one pixel of each share.

    Raises:
        InvalidInput: all of them lie within `SHARES`, and the frame is larger than that (in a file that only a decoder
            can read, infinite: its worker looks again).
    """
    least, most = SHARES
    values = [value for box in boxes for value in box] if 2 < min(width, height) < math.inf else []
    if values and all(least <= value <= most for value in values):
        raise InvalidInput(
            f"{field}: every coordinate is between 0 and 1, which looks like shares of the frame; boxes are (x1, y1, "
            f"x2, y2) in pixels: multiply x by the width, {width:g}, and y by the height, {height:g}"
        )


def crop_box(box: tuple[float, ...], width: float, height: float, number: int = 0) -> tuple[int, int, int, int]:
    """A box as pixel bounds: grown to whole pixels, clipped to the frame.

    Raises:
        InvalidInput: not finite, x2 <= x1 or y2 <= y1, or nothing of it lies in the frame.
    """
    if not all(math.isfinite(v) for v in box):
        raise InvalidInput(f"boxes[{number}]: {box} holds a number that is not finite")
    x1, y1, x2, y2 = box
    if x2 <= x1 or y2 <= y1:
        raise InvalidInput(f"boxes[{number}]: {box} has no area; boxes are (x1, y1, x2, y2) in pixels")
    left, top = max(0, math.floor(x1)), max(0, math.floor(y1))
    right, bottom = math.ceil(min(width, x2)), math.ceil(min(height, y2))
    if right <= left or bottom <= top:
        raise InvalidInput(f"boxes[{number}]: {box} lies outside the {width}x{height} frame")
    return left, top, right, bottom


def part_of(box: Box, upper: float, grow: float) -> Box:
    """The upper share of a box, its edges then moved outwards by a share of its width and height."""
    x1, y1, x2, y2 = box
    y2 = y1 + (y2 - y1) * upper
    dx, dy = (x2 - x1) * grow, (y2 - y1) * grow
    return x1 - dx, y1 - dy, x2 + dx, y2 + dy
