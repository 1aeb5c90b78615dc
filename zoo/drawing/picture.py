"""What can be looked at as a picture: an array, a `Frame`, an encoded image, a list of them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from zoo.client.frames import COLORS, Frame, check_frame, check_frames
from zoo.errors import InvalidInput


def seen(frame: Any, color: str = "rgb") -> np.ndarray:
    """The pixels of what `infer` was given, as HxWx3 uint8 RGB; of a video, those of its last frame.

    Raises:
        InvalidInput: it is no picture, naming what it is instead.
    """
    if color not in COLORS:
        raise InvalidInput(f"color: {color!r:.100} is not one of rgb, bgr")
    part = check_frames(frame)[-1]
    if isinstance(part, bytes | bytearray | memoryview):
        return _decoded(check_frame(part).tobytes())
    array = part.slot.pixels() if isinstance(part, Frame) else check_frame(part)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise InvalidInput(
            "frame: drawing takes HxWx3 uint8, a Frame, JPEG or PNG bytes, or a list of them, got an array of shape "
            f"{array.shape} of {array.dtype}"
        )
    return array[..., ::-1] if color == "bgr" else array


def _decoded(raw: bytes) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(raw)) as image:
            return upright(image)
    except Exception as e:  # damaged data leads Pillow's plugins anywhere
        raise InvalidInput(f"frame: the encoded image cannot be read: {type(e).__name__}: {e}") from None


def upright(image: Image.Image) -> np.ndarray:
    """An opened image as HxWx3 RGB uint8, turned upright as its EXIF says; of several pictures, the first.

    Grey is repeated, a palette looked up, CMYK converted without its profile, transparency dropped. Of 16 bits the
    upper 8 are kept: Pillow does so itself where there are colours, and cuts off at 255 where there are none.

    Workers read by this too, so that what is drawn on is what a model saw.
    """
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16"):
        upper = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(upper[..., np.newaxis], 3, axis=2)
    image.info.pop("transparency", None)  # dropped without the warning
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
