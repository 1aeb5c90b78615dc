"""Frames on their way into a network: by an image processor of transformers, or as torchvision's networks take them.

Arrays are copied once, in the order of axes that the library wants: a picture turned from BGR in any other place was
copied pixel by pixel, and took longer than its scaling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.ImageFile  # noqa: F401  (Pillow imports it when it first makes a picture of an array)
import torch
from PIL import Image

MAX_RATIO = 16
SQUEEZES_FROM = 384
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of red, green and blue, from 0 to 1


def preprocess(processor: Any, frames: Sequence[np.ndarray], device: str) -> Any:
    """The network's input for `frames` (HxWx3 uint8, any strides), by a transformers image processor.

    The copy is the one that the processor would make: it works on 3xHxW. Made here it takes a read-only or backward
    (BGR) view, which torch does not, and costs the same for both. The order of the axes is said, because a frame three
    pixels high could be taken either way.
    """
    if keeps_middle(processor):
        frames = [middle(frame) for frame in frames]
    return processor(
        [torch.from_numpy(frame.transpose(2, 0, 1).copy()) for frame in frames],
        input_data_format="channels_first",
        return_tensors="pt",
        device=device,
    )["pixel_values"]


def keeps_middle(processor: Any) -> bool:
    """Whether it scales the shorter side and then cuts the square in the middle out, as CLIP's and ResNet's do."""
    shorter = dict(getattr(processor, "size", None) or {}).get("shortest_edge")
    if shorter is None:
        return False
    # ConvNeXt's, which ResNets use as well, has `crop_pct` and does so below a size; from there on it scales all of it.
    return bool(processor.do_center_crop) or (hasattr(processor, "crop_pct") and shorter < SQUEEZES_FROM)


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


def squeezed(frames: Sequence[np.ndarray], height: int, width: int, device: str, dtype: Any) -> Any:
    """(n, 3, height, width) of `frames` (HxWx3 uint8, any strides), each scaled whole, whatever its proportions.

    For networks that were trained with torchvision on ImageNet: the same numbers as its Resize((height, width)),
    ToTensor and Normalize make of a Pillow image. Scaled by Pillow, because torch's own bilinear scaling rounds
    differently.
    """
    scaled = [Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR) for frame in frames]
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in scaled])).to(device)
    mean, deviation = (torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, DEVIATION))
    return pixels.permute(0, 3, 1, 2).contiguous().float().div_(255).sub_(mean).div_(deviation).to(dtype)
