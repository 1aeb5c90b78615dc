"""Frames on their way into an image processor that scales the shorter side and keeps the square in the middle."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

MAX_RATIO = 16


def preprocess(processor: Any, frames: list[np.ndarray], device: str) -> Any:
    """The network's input for `frames` (HxWx3 uint8, any strides), by a transformers image processor.

    The copy is the one that the processor would make: it works on 3xHxW. Made here it takes a read-only or backward
    (BGR) view, which torch does not, and costs the same for both. The order of the axes is said, because a frame three
    pixels high could be taken either way.
    """
    return processor(
        [torch.from_numpy(middle(frame).transpose(2, 0, 1).copy()) for frame in frames],
        input_data_format="channels_first",
        return_tensors="pt",
        device=device,
    )["pixel_values"]


def middle(frame: np.ndarray) -> np.ndarray:
    """`frame`, or its middle where one side is more than `MAX_RATIO` times the other.

    Of a person who leaves the picture a detector may see a strip of 1x400 pixels. Scaled to the network's 224 on the
    shorter side it would be 224x89600, nearly all of it cut off in the next step; one of 1x16384 would take gigabytes.
    What is cut off here would not reach the network; the scaling of the rest moves by less than a pixel.
    """
    height, width = frame.shape[:2]
    rows, columns = min(height, MAX_RATIO * width), min(width, MAX_RATIO * height)
    top, left = (height - rows) // 2, (width - columns) // 2
    return frame[top : top + rows, left : left + columns]
