"""What can be looked at as a picture: an array, a `Frame`, an encoded image, a list of them."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from zoo.errors import InvalidInput
from zoo.wire import arrays, formats

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # not EPS and the like, which start other programs
HEAD_BYTES = 1 << 19  # in which the size of a picture is looked for: Pillow takes 13 s for 16 MB of empty segments
ANYWHERE = (b"II", b"MM", b"RI")  # the beginnings of TIFF and WebP, which have it anywhere, or are read as a whole
TURNED = (5, 6, 7, 8)  # orientations of EXIF by which width and height change places; there are 1 to 8


def seen(frame: Any, color: str = "rgb") -> np.ndarray:
    """The pixels of what `infer` was given, as HxWx3 uint8 RGB; of a video, those of its last frame.

    Raises:
        InvalidInput: it is no picture, naming what it is instead.
    """
    arrays.check_color(color)
    part = arrays.check_frames(frame)[-1]
    if isinstance(part, bytes | bytearray | memoryview):
        return _decoded(arrays.check_frame(part).tobytes())
    array = arrays.check_frame(part)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise InvalidInput(
            "frame: drawing takes HxWx3 uint8, a Frame, JPEG or PNG bytes, or a list of them, got an array of shape "
            f"{array.shape} of {array.dtype}"
        )
    return array[..., ::-1] if color == "bgr" else array


def size_of(part: Any, how: formats.PixelFormat = formats.RGB) -> tuple[float, float]:
    """Width and height of one frame in pixels, upright as a worker sees it; infinite where only a decoder can tell.

    Raises:
        InvalidInput: it is no picture.
    """
    array = arrays.check_frame(part)
    is_file = isinstance(part, bytes | bytearray | memoryview)
    how = formats.encoded(how) if is_file else formats.sent(how, array.shape, array.dtype.str)
    if how.color == "encoded":
        head = array if array[:2].tobytes() in ANYWHERE else array[:HEAD_BYTES]
        try:
            with Image.open(io.BytesIO(head.tobytes()), formats=FORMATS) as image:
                # Of a TIFF, Pillow gives the size as it will be.
                turned = image.format != "TIFF" and _exif(image).get(ExifTags.Base.Orientation) in TURNED
                return (image.height, image.width) if turned else image.size
        except Exception:  # damaged data leads Pillow's plugins anywhere; what it means, the worker says
            return math.inf, math.inf
    planes = formats.planes_of(how, array.shape, array.dtype.str)
    if planes is not None:
        return planes.width, planes.height
    if array.ndim < 2:
        raise InvalidInput(f"frame: nothing can be cut out of shape {array.shape}")
    return array.shape[1], array.shape[0]


def _exif(image: Image.Image) -> Image.Exif:
    """As far as the beginning has it. For a PNG, Pillow would decode the pixels to look behind them."""
    return Image.Image.getexif(image)


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
