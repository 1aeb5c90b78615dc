"""From a request body to what an adapter sees: frames found, checked, decoded (`encoded.py`), in RGB order, cropped.

Nothing is copied on the way but the pixels of an encoded image: crops and colour order are views. A camera's frame
(`camera.py`) is converted when the adapter looks at it.

`boxes=` gives the adapter one `Input` per box: a view of the crop, and with it the frame and the crop's bounds in it.
A model answers in coordinates of the crop, and the runtime moves all answers alike. Arrays that cover a crop (masks,
maps) stay as they are and say where it was (`origin`): a frame-sized mask per box would be megabytes of zeros.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from workers import camera, encoded
from workers.models.base import Input, Spec
from zoo.errors import InvalidInput
from zoo.wire import arena, arrays, boxes, formats, payload
from zoo.wire.launch import Launch


class Wait(Exception):
    """Not an error: this request's pictures are to be decoded when those before it are done with."""


Found = np.ndarray | camera.CameraFrame


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
        self._views: dict[tuple[bytes, tuple[int, ...]], list[Found]] = {}

    def get(self, raw: bytes, arenas: tuple[int, ...]) -> Given | None:
        found = self._views.get((raw, arenas))
        return None if found is None else _whole(found, {})

    def keep(self, raw: bytes, arenas: tuple[int, ...], body: payload.InferBody, given: Given) -> None:
        plain = body.boxes is None and not body.options
        if plain and all(f.arena >= 0 and f.color != "encoded" for f in body.frames):
            if len(self._views) >= self.KEEP:
                self._views.clear()
            sources = given.items[0].sources
            self._views[raw, arenas] = [one if isinstance(one, np.ndarray) else one.frame for one in sources]

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


def read(
    body: payload.InferBody,
    buffers: list[bytes],
    find: Callable[[int], arena.MappedArena],
    *,
    left_pixels: int | None = None,
    max_frames: int | None = None,
) -> Given:
    """What the adapter gets. Nothing is decoded before it is known what all of it will take.

    Args:
        left_pixels: that may be decoded now; None for as many as a request may have.
        max_frames: that the model takes.

    Raises:
        InvalidInput: naming the field; see `_frame`, `check_pixels`, `crop_box`, `encoded.Encoded` and `arrays.view`.
        Wait: to decode it takes more than that.
    """
    if not body.frames:
        raise InvalidInput("frame: the request holds none")
    if body.boxes is not None and len(body.frames) != 1:
        raise InvalidInput("boxes: they go with a single frame, not with a video")
    if body.boxes is not None and len(body.boxes) > boxes.MAX_BOXES:
        raise InvalidInput(f"boxes: {len(body.boxes)} of them, at most {boxes.MAX_BOXES} are taken")
    if max_frames is not None and len(body.frames) > max_frames:
        most = "one image" if max_frames == 1 else f"at most {max_frames} frames"
        raise InvalidInput(f"frame: this model takes {most}, got a video of {len(body.frames)} frames")
    frames = _decoded([_frame(frame, buffers, find) for frame in body.frames], body, left_pixels)
    if body.boxes is None:
        return _whole(frames, body.options)
    return _crops(frames[0], body.boxes, body.options)


def _whole(frames: list[Found], options: dict[str, Any]) -> Given:
    sources = [frame if isinstance(frame, np.ndarray) else camera.Picture(frame) for frame in frames]
    return Given([Input(sources[0], options, sources)], None)


def _crops(found: Found, asked: tuple[boxes.Box, ...], options: dict[str, Any]) -> Given:
    whole = found if isinstance(found, np.ndarray) else camera.Picture(found)
    if len(whole.shape) < 2:
        raise InvalidInput(f"boxes: a frame of shape {whole.shape} cannot be cropped")
    items: list[Input] = []
    corners: list[tuple[float, float]] = []
    pixels = 0
    boxes.check_pixels(asked, whole.shape[1], whole.shape[0])
    for i, box in enumerate(asked):
        x1, y1, x2, y2 = bounds = boxes.crop_box(box, whole.shape[1], whole.shape[0], i)
        pixels += (x2 - x1) * (y2 - y1)
        if pixels > encoded.MAX_REQUEST_PIXELS:  # a model copies what it is to scale
            raise InvalidInput(
                f"boxes: the first {i + 1} have {pixels} pixels together; at most {encoded.MAX_REQUEST_PIXELS} are "
                "taken in one request"
            )
        crop = whole[y1:y2, x1:x2] if isinstance(whole, np.ndarray) else whole
        items.append(Input(crop, options, whole=whole, box=bounds))
        corners.append((float(x1), float(y1)))
    if isinstance(whole, camera.Picture):
        whole.expect(len(items), pixels)
    return Given(items, corners)


def _frame(frame: payload.FrameRef, buffers: list[bytes], find: Callable[[int], arena.MappedArena]) -> Found:
    if frame.arena < 0:
        if not 0 <= frame.offset < len(buffers):
            raise InvalidInput(f"frame: the message has {len(buffers)} buffers, not a number {frame.offset}")
        raw = buffers[frame.offset]
        array = arrays.view(raw, len(raw), 0, frame.shape, frame.dtype)
    else:
        shared = find(frame.arena)
        array = arrays.view(shared.memory, shared.size, frame.offset, frame.shape, frame.dtype)
    made = camera.read(array, formats.PixelFormat(frame.color, frame.size, frame.stride, frame.scale))
    if made is not None:
        encoded.check_size(made.shape[1], made.shape[0])
        return made
    if frame.color == "encoded":
        return array
    if array.size == 0:
        raise InvalidInput(f"frame: it is empty, shape {array.shape}")
    if array.ndim == 3 and array.dtype == np.uint8:
        encoded.check_size(array.shape[1], array.shape[0])
        if frame.color == "bgr" and array.shape[2] == 3:
            return array[..., ::-1]
    return array


def _decoded(found: list[Found], body: payload.InferBody, left_pixels: int | None) -> list[Found]:
    """The frames, those that are encoded decoded. What is converted later counts like what is decoded now."""
    arrays_of = {i: one for i, one in enumerate(found) if isinstance(one, np.ndarray)}
    raw = {i: one for i, one in arrays_of.items() if body.frames[i].color == "encoded"}
    if len(arrays_of) == len(found) and not raw:
        return found
    if (size := sum(one.nbytes for one in raw.values())) > encoded.MAX_REQUEST_BYTES:
        raise InvalidInput(
            f"frame: {size >> 20} MB of encoded images; at most {encoded.MAX_REQUEST_BYTES >> 20} MB are taken in one "
            "request"
        )
    pictures = {i: encoded.Encoded(one.tobytes()) for i, one in raw.items()}
    pixels = sum(picture.pixels for picture in pictures.values())
    pixels += sum(one.shape[0] * one.shape[1] for i, one in enumerate(found) if i not in arrays_of)
    if pixels > encoded.MAX_REQUEST_PIXELS:
        what = "encoded images" if len(arrays_of) == len(found) else "frames to be converted"
        raise InvalidInput(
            f"frame: the {len(raw) + len(found) - len(arrays_of)} {what} have {pixels} pixels together; at most "
            f"{encoded.MAX_REQUEST_PIXELS} are taken in one request"
        )
    if left_pixels is not None and pixels > left_pixels:
        raise Wait
    for i in raw:
        found[i] = pictures.pop(i).decode()
    return found


def pixels_of(given: Given) -> int:
    """That a model has to look at; of what is no picture, a third of its numbers."""
    if not given.items:
        return 0
    sources = given.items[0].sources
    crops = sum(_numbers(item.box, sources[0].shape) for item in given.items if item.box is not None)
    return (sum(math.prod(source.shape) for source in sources) + crops) // 3


def _numbers(box: tuple[int, int, int, int], shape: tuple[int, ...]) -> int:
    return (box[2] - box[0]) * (box[3] - box[1]) * math.prod(shape[2:])


def fingerprint(given: Given) -> bytes:
    """Identifies a request by everything the adapter would see of it."""
    digest = hashlib.blake2b(digest_size=16)
    if given.items:  # one for a frame or a video, or one for each box of a frame
        first = given.items[0]
        for frame in first.frames if first.box is None else [first.whole]:
            digest.update(f"{frame.shape}{frame.dtype}".encode())
            digest.update(np.ascontiguousarray(frame).data)
    for item in given.items:
        digest.update(f"{item.box}{sorted(item.options.items())}".encode())
    return digest.digest()


def decode(data: np.ndarray) -> np.ndarray:
    """A picture in one of `picture.FORMATS`: see `encoded.Encoded`, also for what it raises."""
    return encoded.Encoded(data.tobytes()).decode()
