"""What Frigate's detector sends and is sent, as pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from zoo.errors import InvalidInput
from zoo.labels import folded
from zoo.results import Detections

ROWS = 20
SIDE = 4096  # pixels of width and height
HEADER_BYTES = 4096
ANSWER_HEADER = b'{"shape":[20,6],"dtype":"float32"}'
BRIGHT = 1.001  # float32 above it: the pixels are 0 to 255

# The other spelling of published checkpoints, where one has it; `zoo.labels.folded`.
ALIASES = {
    "motorbike": "motorcycle", "aeroplane": "airplane", "sofa": "couch", "pottedplant": "potted plant",
    "diningtable": "dining table", "tvmonitor": "tv", "hair dryer": "hair drier",
}  # fmt: skip


class DetectorHeader(msgspec.Struct):
    """The first part of each message, a JSON object; other keys are left alone."""

    model_request: bool = False
    model_data: bool = False
    model_name: str = ""
    shape: list[int] = []
    dtype: str = ""


_read = msgspec.json.Decoder(DetectorHeader).decode


def read_header(part: Any) -> DetectorHeader:
    """Raises InvalidInput."""
    if len(part) > HEADER_BYTES:
        raise InvalidInput(f"the header has {len(part)} bytes")
    try:
        return _read(part)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise InvalidInput(f"the header is none: {e}") from None


def offer(name: str, there: bool, message: str) -> bytes:
    """The answer to a request for a model, which is loaded where it is there."""
    return msgspec.json.encode(
        {"model_available": there, "model_loaded": there, "model_name": name, "message": message}
    )


def refused_upload(message: str) -> bytes:
    return msgspec.json.encode({"model_saved": False, "model_loaded": False, "message": message})


def read_tensor(header: DetectorHeader, data: Any) -> np.ndarray:
    """The picture as a view of the message: (H, W, 3) uint8 or float32, RGB.

    Raises:
        InvalidInput: it is none of [1,H,W,3] and [1,3,H,W], uint8 and float32.
    """
    shape = header.shape
    if header.dtype not in ("uint8", "float32"):
        raise InvalidInput(f"dtype {header.dtype!r:.40}: uint8 and float32 are served")
    if len(shape) != 4 or shape[0] != 1 or 3 not in (shape[1], shape[3]) or not all(0 < n <= SIDE for n in shape):
        raise InvalidInput(f"shape {shape!s:.80}: [1,H,W,3] and [1,3,H,W] are served, up to {SIDE} pixels a side")
    if len(data) != math.prod(shape) * np.dtype(header.dtype).itemsize:
        raise InvalidInput(f"{len(data)} bytes are no {header.dtype} of shape {shape}")
    array: np.ndarray = np.frombuffer(data, header.dtype).reshape(shape)[0]
    return array if shape[3] == 3 else array.transpose(1, 2, 0)


def write_pixels(into: np.ndarray, picture: np.ndarray, bright: bool) -> bool:
    """Makes uint8 of `read_tensor`'s picture: of float32, 0 to 1, or 0 to 255 where one is above 1.

    Args:
        bright: an earlier picture of the same client had numbers above 1.

    Returns:
        Whether that is so now.

    Raises:
        InvalidInput: numbers that are no pixels.
    """
    if picture.dtype == np.uint8:
        np.copyto(into, picture)
        return bright
    least, most = float(picture.min()), float(picture.max())
    if not (least >= -0.001 and most <= 255.5):  # not a number is neither
        raise InvalidInput(f"float32 from {least:g} to {most:g}: 0 to 1 and 0 to 255 are served")
    bright = bright or most > BRIGHT
    scaled = picture * np.float32(1.0 if bright else 255.0)
    np.copyto(into, np.clip(np.rint(scaled, out=scaled), 0, 255, out=scaled), casting="unsafe")
    return bright


def key(label: str) -> str:
    """By which labels are compared."""
    plain = folded(label)
    return ALIASES.get(plain, plain)


def rows(found: Detections, numbers: Mapping[str, int], height: int, width: int) -> bytes:
    """The ROWS best: [class, score, y_min, x_min, y_max, x_max] as shares of the picture, the rest zeros, float32.

    Args:
        numbers: of the classes, by `key`. What has none is left out.
    """
    made = np.zeros((ROWS, 6), np.float32)
    filled = 0
    size = np.array([height, width, height, width], np.float32)
    for i in np.argsort(-found.scores, kind="stable").tolist():
        number = numbers.get(key(found.labels[i]))
        box, score = found.boxes[i], found.scores[i]
        if number is None or not score > 0 or not np.isfinite(box).all():
            continue
        made[filled, 0], made[filled, 1] = number, min(score, 1.0)
        made[filled, 2:] = np.clip(box[[1, 0, 3, 2]] / size, 0.0, 1.0)
        filled += 1
        if filled == ROWS:
            break
    return made.tobytes()
