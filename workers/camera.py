"""Camera frames (`zoo/wire/formats.py`) made HxWx3 RGB uint8 by OpenCV, which else only adapters (`models/`) import.

YUV is converted by BT.601 in limited range (Y 16 to 235, chroma 16 to 240), as OpenCV does:
R = 1.164 (Y - 16) + 1.596 (V - 128), G = 1.164 (Y - 16) - 0.813 (V - 128) - 0.391 (U - 128),
B = 1.164 (Y - 16) + 2.018 (U - 128). Each chroma sample counts for its 2x2 pixels as it is, so a part that begins at
even coordinates is converted as it would be within the whole: crops are cut first, grown to even coordinates, and
trimmed after. Where that would take longer, the whole is converted once: a crop takes some 3 us, as long as 10,000
pixels of the whole, and half as long again for each of its pixels (measured from 8x8 to 800x800 of a 1080p frame).
16 bits become round(255 (v - lo) / (hi - lo)), cut off at 0 and 255.

Nothing is converted before an adapter looks at it: some look at crops only, and some at the frame around them. What was
converted is kept until the request is answered, and no longer: the next one has new pixels in the same place.

Large ones are written into memory that was written before: beside a network, whose own memory makes the allocator
give pages back to the system after each request, a conversion of 1080p took 2 ms more in new ones, and 0.7 ms in these.
"""

from __future__ import annotations

import importlib
import math
import sys
from typing import Any

import numpy as np

from zoo.errors import InvalidInput
from zoo.wire.formats import PLANAR, PixelFormat, Planes, planes_of

Bounds = tuple[int, int, int, int]
_list = [np.empty(0)]
ALONE = sys.getrefcount(_list[0])  # of an array that only a list holds


class Buffers:
    """Memory for converted frames, given again when nothing refers to it any more, not even an adapter's own list."""

    MOST_BYTES = 32 << 20  # that is kept: one 4K frame, or five of 1080p
    LEAST_BYTES = 1 << 17  # of a frame: less comes from the heap, whose pages stay

    def __init__(self) -> None:
        self._kept: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        size = math.prod(shape)
        if size < self.LEAST_BYTES:
            return np.empty(shape, np.uint8)
        free = [i for i in range(len(self._kept)) if sys.getrefcount(self._kept[i]) == ALONE]
        fitting = [i for i in free if self._kept[i].size >= size]
        if fitting:
            tightest = min(fitting, key=lambda i: self._kept[i].size)
            return self._kept[tightest][:size].reshape(shape)
        for i in reversed(free):
            del self._kept[i]  # too small for what cameras send now
        made = np.empty(size, np.uint8)
        if sum(kept.nbytes for kept in self._kept) + size <= self.MOST_BYTES:
            self._kept.append(made)
        return made.reshape(shape)


BUFFERS = Buffers()  # of this process, which converts one frame at a time


class CameraFrame:
    """A frame in its memory.

    Attributes:
        shape: (height, width, 3), of the picture.
    """

    def __init__(self, array: np.ndarray, how: PixelFormat, planes: Planes) -> None:
        """Raises InvalidInput where there is no OpenCV."""
        self.shape = (planes.height, planes.width, 3)
        self._how = how
        self._cv2 = _opencv(how.color)
        self._parts = _parts(array, how.color, planes)

    def convert(self, bounds: Bounds | None = None) -> np.ndarray:
        """The pixels inside of (x1, y1, x2, y2), or all of them, read-only."""
        x1, y1, x2, y2 = bounds or (0, 0, self.shape[1], self.shape[0])
        yuv = self._how.color in PLANAR
        left, top, right, bottom = (x1 - x1 % 2, y1 - y1 % 2, x2 + x2 % 2, y2 + y2 % 2) if yuv else (x1, y1, x2, y2)
        out = BUFFERS.take((bottom - top, right - left, 3))
        if yuv:
            found = self._from_yuv(left, top, right, bottom, out)[y1 - top : y2 - top, x1 - left : x2 - left]
        elif self._how.scale is not None:
            found = self._from_wide(self._parts[0][y1:y2, x1:x2], out)
        else:
            found = self._cv2.cvtColor(self._parts[0][y1:y2, x1:x2], self._cv2.COLOR_GRAY2RGB, dst=out)
        found.flags.writeable = False
        return found

    def _from_yuv(self, left: int, top: int, right: int, bottom: int, out: np.ndarray) -> np.ndarray:
        luma, *chroma = self._parts
        halves = [plane[top // 2 : bottom // 2, left // 2 : right // 2] for plane in chroma]
        both = halves[0] if len(halves) == 1 else self._cv2.merge(halves)
        found: np.ndarray = self._cv2.cvtColorTwoPlane(
            luma[top:bottom, left:right], both, self._cv2.COLOR_YUV2RGB_NV12, dst=out
        )
        return found

    def _from_wide(self, part: np.ndarray, out: np.ndarray) -> np.ndarray:
        lo, hi = self._how.scale or (0.0, 1.0)
        by = 255 / (hi - lo)
        part = part.astype(np.uint16, copy=False)  # of the other byte order
        grey = self._how.color == "gray16"
        found: np.ndarray = self._cv2.addWeighted(
            part, by, part, 0.0, -lo * by, dst=None if grey else out, dtype=self._cv2.CV_8U
        )
        if grey:
            found = self._cv2.cvtColor(found, self._cv2.COLOR_GRAY2RGB, dst=out)
        return found[..., ::-1] if self._how.color == "bgr16" else found


class Picture:
    """A camera frame in one request: converted once, in parts or as a whole.

    Attributes:
        shape: of the picture.
        frame: what it is in each request that names this memory.
    """

    def __init__(self, frame: CameraFrame) -> None:
        self.shape = frame.shape
        self._by_part = True
        self.frame = frame
        self._whole: np.ndarray | None = None

    def whole(self) -> np.ndarray:
        if self._whole is None:
            self._whole = self.frame.convert()
        return self._whole

    def expect(self, parts: int, pixels: int) -> None:
        """That so many parts with so many pixels together may be asked for."""
        self._by_part = 10_000 * parts + pixels * 3 // 2 < self.shape[0] * self.shape[1]

    def part(self, bounds: Bounds) -> np.ndarray:
        if self._whole is None and self._by_part:
            return self.frame.convert(bounds)
        x1, y1, x2, y2 = bounds
        return self.whole()[y1:y2, x1:x2]


def read(array: np.ndarray, how: PixelFormat) -> CameraFrame | None:
    """The frame that lies in an array; None when it is a plain one. Raises InvalidInput: see `planes_of`."""
    planes = planes_of(how, array.shape, array.dtype.str)
    return None if planes is None else CameraFrame(array, how, planes)


def _parts(array: np.ndarray, color: str, planes: Planes) -> list[np.ndarray]:
    """The planes as views. Those of YUV have even sides: a column or row beyond an odd side is whatever lies there."""
    if color in ("rgb16", "bgr16"):
        return [array]
    flat, (width, height, stride, rows) = array.reshape(-1), planes
    if color in ("gray", "gray16"):
        return [np.ndarray((height, width), array.dtype, flat, 0, (stride, array.itemsize))]
    across, down = (width + 1) // 2, (height + 1) // 2
    row, first = (stride + 1) // 2, stride * rows
    luma = np.ndarray((2 * down, 2 * across), np.uint8, flat, 0, (stride, 1))
    if color == "nv12":
        return [luma, np.ndarray((down, across, 2), np.uint8, flat, first, (2 * row, 2, 1))]
    second = first + row * ((rows + 1) // 2)
    return [luma, *(np.ndarray((down, across), np.uint8, flat, at, (row, 1)) for at in (first, second))]


def _opencv(color: str) -> Any:
    try:
        return importlib.import_module("cv2")  # only here: a worker whose frames are all RGB does not need it
    except ImportError as e:
        raise InvalidInput(
            f"color: {color} is converted by OpenCV, which this model's environment lacks ({e}); send rgb, or install "
            "the models' libraries: pip install '.[models]'"
        ) from None
