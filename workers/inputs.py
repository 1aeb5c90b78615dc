"""From a request body to what an adapter sees: frames found, checked, decoded, put in RGB order and cropped.

Nothing is copied on the way but the pixels of an encoded image: crops and colour order are views.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from workers.models.base import Input, Spec
from zoo import arena, payload
from zoo.boxes import MAX_BOXES, crop_box
from zoo.errors import InvalidInput
from zoo.launch import Launch

MAX_SIDE = 16384
MAX_PIXELS = 1 << 26  # 67 million: an 8K frame is half of it
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # not EPS and the like, which start other programs
Image.MAX_IMAGE_PIXELS = MAX_PIXELS


class Given(NamedTuple):
    """`corners`: where each item's crop begins in the frame; None where whole frames were asked for."""

    items: list[Input]
    corners: list[tuple[float, float]] | None


class Recent:
    """Views made lately, by the bytes of the request that asked for them.

    Slots are reused last-in first-out, so a camera's next request is often the last one's, byte for byte, with new
    pixels in the same place. Plain ones (frames in arenas, no boxes, no options, nothing to decode) are kept here.
    """

    KEEP = 64

    def __init__(self) -> None:
        self._views: dict[tuple[bytes, tuple[int, ...]], list[np.ndarray]] = {}

    def get(self, raw: bytes, arenas: tuple[int, ...]) -> Given | None:
        frames = self._views.get((raw, arenas))
        return None if frames is None else Given([Input(frames[0], {}, frames)], None)

    def keep(self, raw: bytes, arenas: tuple[int, ...], body: payload.InferBody, given: Given) -> None:
        plain = body.boxes is None and not body.options
        if plain and all(f.arena >= 0 and f.color != "encoded" for f in body.frames):
            if len(self._views) >= self.KEEP:
                self._views.clear()
            self._views[raw, arenas] = given.items[0].frames

    def forget(self) -> None:
        """An arena is gone: nothing here may keep it mapped. Called from the lifeline's thread."""
        self._views.clear()


def spec(launch: Launch) -> Spec:
    return Spec(
        name=launch.model,
        path=Path(os.fsdecode(launch.path)) if launch.path else None,
        category=launch.category,
        options=launch.options,
        threads=launch.threads,
        trust_pickle=launch.trust_pickle,
    )


def read(body: payload.InferBody, buffers: list[bytes], find: Callable[[int], arena.MappedArena]) -> Given:
    """What the adapter gets.

    Raises:
        InvalidInput: naming the field; see `_frame`, `crop_box` and `payload.view`.
    """
    if not body.frames:
        raise InvalidInput("frame: the request holds none")
    frames = [_frame(frame, buffers, find) for frame in body.frames]
    if body.boxes is None:
        return Given([Input(frames[0], body.options, frames)], None)
    if len(frames) != 1:
        raise InvalidInput("boxes: they go with a single frame, not with a video")
    if len(body.boxes) > MAX_BOXES:
        raise InvalidInput(f"boxes: {len(body.boxes)} of them, at most {MAX_BOXES} are taken")
    whole = frames[0]
    if whole.ndim < 2:
        raise InvalidInput(f"boxes: a frame of shape {whole.shape} cannot be cropped")
    items: list[Input] = []
    corners: list[tuple[float, float]] = []
    for i, box in enumerate(body.boxes):
        x1, y1, x2, y2 = bounds = crop_box(box, whole.shape[1], whole.shape[0], i)
        items.append(Input(whole[y1:y2, x1:x2], body.options, whole=whole, box=bounds))
        corners.append((float(x1), float(y1)))
    return Given(items, corners)


def _frame(frame: payload.Frame, buffers: list[bytes], find: Callable[[int], arena.MappedArena]) -> np.ndarray:
    if frame.arena < 0:
        if not 0 <= frame.offset < len(buffers):
            raise InvalidInput(f"frame: the message has {len(buffers)} buffers, not a number {frame.offset}")
        raw = buffers[frame.offset]
        array = payload.view(raw, len(raw), 0, frame.shape, frame.dtype)
    else:
        shared = find(frame.arena)
        array = payload.view(shared.memory, shared.size, frame.offset, frame.shape, frame.dtype)
    if frame.color == "encoded":
        return decode(array)
    if array.size == 0:
        raise InvalidInput(f"frame: it is empty, shape {array.shape}")
    if array.ndim == 3 and array.dtype == np.uint8:
        _check_size(array.shape[1], array.shape[0])
        if frame.color == "bgr" and array.shape[2] == 3:
            return array[..., ::-1]
    if frame.color not in ("rgb", "bgr"):
        raise InvalidInput(f"color: {frame.color!r} is not one of rgb, bgr")
    return array


def decode(encoded: np.ndarray) -> np.ndarray:
    """A picture in one of `FORMATS` as HxWx3 RGB uint8, turned upright as its EXIF says; of several, the first.

    Grey is repeated, a palette looked up, CMYK converted without its profile, transparency dropped. Of 16 bits the
    upper 8 are kept: Pillow does so itself where there are colours, and cuts off at 255 where there are none.

    Raises:
        InvalidInput: not such a picture, cut off, too large, or of numbers without a common range.
    """
    try:
        image = Image.open(io.BytesIO(encoded.tobytes()), formats=FORMATS)
    except Image.DecompressionBombError:
        raise InvalidInput(f"frame: the encoded image is too large; at most {MAX_PIXELS} pixels are taken") from None
    except Exception:  # not Pillow's own where ultralytics is loaded: it puts its hand in between
        raise InvalidInput(f"frame: not an image, or damaged: these bytes are none of {', '.join(FORMATS)}") from None
    _check_size(*image.size)
    try:
        with image:
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith("I;16"):
                upper = (np.asarray(image) >> 8).astype(np.uint8)
                array = np.repeat(upper[..., np.newaxis], 3, axis=2)
            elif image.mode in ("I", "F"):
                raise InvalidInput("frame: the encoded image has 32 bits per channel; 8 and 16 are taken")
            else:
                image.info.pop("transparency", None)  # dropped without the warning
                array = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except InvalidInput:
        raise
    except Exception as e:  # Pillow's plugins meet damaged data with whatever it leads them to
        raise InvalidInput(f"frame: the encoded image cannot be read: {type(e).__name__}: {e}") from None
    array.flags.writeable = False
    return array


def _check_size(width: int, height: int) -> None:
    if max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
        raise InvalidInput(
            f"frame: {width}x{height} pixels; at most {MAX_SIDE} a side and {MAX_PIXELS} in all are taken"
        )
