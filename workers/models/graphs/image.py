"""A frame as the input of a graph: its size, order of axes and colours, and the numbers of its pixels.

Scaled by Pillow, whose bilinear and bicubic filters average where they make smaller, as torchvision's transforms do
that most networks were trained with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import PIL.ImageFile  # noqa: F401  (Pillow imports it when it first makes a picture of an array)
from PIL import Image

from workers.models.base import Spec, unservable
from workers.models.graphs.session import Port

Side = Annotated[int, msgspec.Meta(ge=1, le=4096)]
# Not `tuple[Side, Side]`: in msgspec 0.22 a bounded number in a union with a fixed-length tuple corrupts its type
# information, and the next garbage collection ends the process.
Size = Side | Annotated[tuple[Side, ...], msgspec.Meta(min_length=2, max_length=2)]
Colours = Annotated[tuple[float, ...], msgspec.Meta(min_length=3, max_length=3)]
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
FLOATS = ("float32", "float16", "float64")


class ImageOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a frame becomes an input, in config.toml alone.

    Attributes:
        input: the name of the input; needed where the graph has several.
        size: (height, width), or both in one; needed where the graph does not fix it.
        resize: "stretch" scales the whole frame, whatever its proportions; "crop" its middle that has the input's.
        keep: share of that middle, on each side, that is looked at. Of a network that was trained on the middle 224 of
            256 pixels: 0.875.
        filter: "bilinear" or "bicubic".
        order: of the axes, "nchw" or "nhwc"; needed where the graph does not tell. color: of the channels.
        factor: what the bytes are multiplied by, before `mean` is taken from them, and they are divided by `std`. Of
            inputs of whole numbers, none of these: they get the bytes.
    """

    input: str | None = None
    size: Size | None = None
    resize: Literal["stretch", "crop"] = "stretch"
    keep: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    filter: Literal["bilinear", "bicubic"] = "bilinear"
    order: Literal["nchw", "nhwc"] | None = None
    color: Literal["rgb", "bgr"] = "rgb"
    factor: float = 1 / 255
    mean: Colours = (0.0, 0.0, 0.0)
    std: Colours = (1.0, 1.0, 1.0)


def sides_of(size: Size) -> tuple[int, int]:
    """(height, width)."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def order_of(port: Port) -> str | None:
    """Where an input of four axes has its three channels; None if it cannot be told."""
    if len(port.shape) != 4:
        return None
    found = [order for order, axis in (("nchw", 1), ("nhwc", 3)) if port.shape[axis] == 3]
    return found[0] if len(found) == 1 else None


class Preparation:
    """Makes the input of a graph of frames.

    Attributes:
        port: the input.
    """

    def __init__(self, spec: Spec, port: Port, options: ImageOptions) -> None:
        """Raises LoadFailed when the options do not go with the input."""
        order = options.order or order_of(port)
        if len(port.shape) != 4 or order is None:
            raise unservable(
                spec,
                f"the input {port} may be no picture of three channels; if it is one, say `order` in options.image",
            )
        rows, columns, channels = (2, 3, 1) if order == "nchw" else (1, 2, 3)
        said = (None, None) if options.size is None else sides_of(options.size)
        fixed = [port.shape[axis] for axis in (rows, columns)]
        sides = [n if isinstance(n, int) else side for n, side in zip(fixed, said, strict=True)]
        if isinstance(port.shape[channels], int) and port.shape[channels] != 3:
            raise unservable(spec, f"the input {port} has not 3 channels in the order {order!r}")
        if isinstance(port.shape[0], int) and port.shape[0] != 1:
            raise unservable(spec, f"the input {port} takes pictures neither one at a time nor any number of them")
        if None in sides or (options.size is not None and tuple(sides) != said):
            raise unservable(spec, f"the input {port} needs another `size` in options.image than {options.size}")
        if port.dtype is None or (port.dtype.name not in FLOATS and port.dtype.name != "uint8"):
            raise unservable(spec, f"the input {port} takes no pixels: floats, or whole numbers of 8 bits")
        if 0.0 in options.std or not np.isfinite([options.factor, *options.mean, *options.std]).all():
            raise unservable(spec, "options.image: std is 0, or a number is none")
        self.port = port
        self._options = options
        self._order = order
        self._height, self._width = (int(side) for side in sides if side is not None)
        self._dtype: np.dtype[Any] = port.dtype

    def __call__(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """The input of (n, 3, height, width) or (n, height, width, 3) for frames (HxWx3 uint8 RGB, any strides)."""
        options = self._options
        batch = np.stack([self._scaled(frame) for frame in frames])
        if options.color == "bgr":
            batch = batch[..., ::-1]
        values = batch
        if self._dtype.kind == "f":
            mean, std = np.array(options.mean, np.float32), np.array(options.std, np.float32)
            values = (batch * np.float32(options.factor) - mean) / std
        if self._order == "nchw":
            values = values.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(values, self._dtype)

    def _scaled(self, frame: np.ndarray) -> np.ndarray:
        whole = Image.fromarray(np.ascontiguousarray(frame))
        box = None
        if self._options.resize == "crop":
            scale = min(whole.height / self._height, whole.width / self._width) * self._options.keep
            height, width = self._height * scale, self._width * scale
            left, top = (whole.width - width) / 2, (whole.height - height) / 2
            box = (left, top, left + width, top + height)
        size = (self._width, self._height)
        return np.asarray(whole.resize(size, FILTERS[self._options.filter], box=box))
