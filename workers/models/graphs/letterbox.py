"""A frame in the rectangle that a YOLO looks at, and boxes from there back in the frame.

To the pixel and to the rounding what ultralytics does (`LetterBox`, `scale_boxes`), so that answers are its own: scaled
with OpenCV's bilinear filter, in the middle of a grey rectangle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

GREY = (114, 114, 114)


class Letterbox(NamedTuple):
    """Where in its rectangle a frame lies, in whole pixels.

    Attributes:
        sides: (height, width) of the rectangle.
        scaled: (height, width) that the frame has in it.
        top, left: where it begins.
        frame: (height, width) of the frame itself.
    """

    sides: tuple[int, int]
    scaled: tuple[int, int]
    top: int
    left: int
    frame: tuple[int, int]

    def picture(self, frame: np.ndarray) -> np.ndarray:
        """The rectangle, (height, width, 3) uint8 RGB."""
        # A BGR frame that the runtime looks at backwards is scaled as it lies; OpenCV would copy the whole of it.
        backwards = frame.strides[2] < 0
        pixels: np.ndarray = frame[..., ::-1] if backwards else frame
        height, width = self.scaled
        if pixels.shape[:2] != self.scaled:
            pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
        bottom, right = self.sides[0] - height - self.top, self.sides[1] - width - self.left
        pixels = cv2.copyMakeBorder(pixels, self.top, bottom, self.left, right, cv2.BORDER_CONSTANT, value=GREY)
        return pixels[..., ::-1] if backwards else pixels

    def back(self, boxes: np.ndarray) -> np.ndarray:
        """(n, 4) xyxy float32 of the rectangle in pixels of the frame, cut to it."""
        height, width = self.frame
        gains = np.array([self.scaled[1] / width, self.scaled[0] / height] * 2, np.float32)
        placed = (boxes - np.array([self.left, self.top] * 2, np.float32)) / gains
        return np.minimum(np.maximum(placed, np.float32(0)), np.array([width, height] * 2, np.float32))


def fit(frame: np.ndarray, sides: tuple[int, int], stride: int | None) -> Letterbox:
    """How a frame goes into a rectangle of (height, width) = `sides`.

    Args:
        stride: the rectangle may be the smallest one in whole strides that holds the scaled frame; None: it is `sides`.
    """
    height, width = frame.shape[:2]
    ratio = min(sides[0] / height, sides[1] / width)
    scaled = max(round(height * ratio), 1), max(round(width * ratio), 1)
    spare = [side - taken for side, taken in zip(sides, scaled, strict=True)]
    if stride is not None:
        spare = [pixels % stride for pixels in spare]
    top, left = (round(pixels / 2 - 0.1) for pixels in spare)
    return Letterbox((scaled[0] + spare[0], scaled[1] + spare[1]), scaled, top, left, (height, width))


def tensor(pictures: Sequence[np.ndarray], dtype: np.dtype[Any]) -> np.ndarray:
    """(n, 3, height, width) in 0..1 of pictures of one size."""
    values = np.ascontiguousarray(np.stack(pictures).transpose(0, 3, 1, 2), dtype)
    values /= dtype.type(255)
    return values
