"""Pictures as networks take them that were trained with torchvision on ImageNet's statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.ImageFile  # noqa: F401  (Pillow imports it when it first makes a picture of an array)
import torch
from PIL import Image

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of red, green and blue, from 0 to 1


def squeezed(frames: Sequence[np.ndarray], height: int, width: int, device: str, dtype: Any) -> Any:
    """(n, 3, height, width) of `frames` (HxWx3 uint8, any strides), each scaled whole, whatever its proportions.

    The same numbers as torchvision's Resize((height, width)), ToTensor and Normalize make of a Pillow image; scaled by
    Pillow, because torch's own bilinear scaling rounds differently.
    """
    scaled = [Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR) for frame in frames]
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in scaled])).to(device)
    mean, deviation = (torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, DEVIATION))
    return pixels.permute(0, 3, 1, 2).contiguous().float().div_(255).sub_(mean).div_(deviation).to(dtype)
