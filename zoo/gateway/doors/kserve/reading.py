"""The request of an inference: its head, then its tensors, each read to the place where the worker finds it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
import numpy as np

from zoo.client.aio import AsyncClient
from zoo.client.frames import Frame
from zoo.errors import InvalidInput
from zoo.gateway.doors.kserve import tensors
from zoo.gateway.doors.kserve.regions import Region
from zoo.gateway.doors.kserve.tensors import BYTES, InputTensor
from zoo.gateway.incoming import Incoming
from zoo.wire import protocol
from zoo.wire.boxes import MAX_BOXES

MOST_JSON = 8 << 20  # bytes of the head, or of a whole request without binary tensors: JSON is read at once
IN_THREAD = 1 << 18  # JSON from this size on is read in a thread
LOOK = ("color", "size", "stride", "scale")  # parameters that say how the numbers of `image` are to be read
OWN = {"binary_data_output", "timeout", "priority", "boxes", "sequence_id", "sequence_start", "sequence_end", *LOOK}


class OutputWanted(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class InferHead(msgspec.Struct):
    """The JSON of a request."""

    inputs: list[InputTensor]
    id: str = ""
    parameters: dict[str, Any] = {}
    outputs: list[OutputWanted] = []


class Source(Protocol):
    """Where the bytes of a tensor come from: a body, or a part of a region."""

    async def read(self, nbytes: int) -> bytes: ...

    async def fill(self, frame: Frame) -> None: ...


_head = msgspec.json.Decoder(InferHead)


async def read_head(body: Incoming, length: str | None) -> InferHead:
    """`length`: what the header `Inference-Header-Content-Length` says; None: all of the body is JSON."""
    if length is None:
        raw = await body.rest(MOST_JSON)
    elif not length.isascii() or not length.isdecimal() or int(length) > MOST_JSON:
        raise InvalidInput(f"Inference-Header-Content-Length: {length!r:.40} is not a number up to {MOST_JSON}")
    else:
        raw = await body.read(int(length))
    try:
        head = _head.decode(raw) if len(raw) < IN_THREAD else await asyncio.to_thread(_head.decode, raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise InvalidInput(f"body: {e!s:.300}") from None
    names = [tensor.name for tensor in head.inputs]
    if not names or len({*names}) < len(names):
        raise InvalidInput("inputs: there have to be some, each of another name")
    for tensor in head.inputs:
        tensor.check()
    return head


# ---------------------------------------------------------------- parameters


def check_parameters(given: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `AsyncClient.infer` that a request's parameters make; all others are options."""
    if given.get("sequence_id"):
        raise InvalidInput("parameters: sequence_id: models here keep no state from request to request")
    options = {name: value for name, value in given.items() if name not in OWN}
    for name in ("model", "frame", "self"):
        if name in options:
            raise InvalidInput(f"parameters: {name}: this name is not an option")
    how = {name: given[name] for name in LOOK if name in given}
    return {**options, **how, "timeout": _timeout(given.get("timeout")), "priority": _priority(given.get("priority"))}


def _timeout(value: Any) -> float | None:
    """In microseconds on the wire; 0 and none: this server's own."""
    if value is None or value == 0:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InvalidInput(f"parameters: timeout: {value!r:.40} is not a number of microseconds")
    return float(value) / 1e6


def _priority(value: Any) -> int | None:
    """1 is the highest on the wire, and 0 the default."""
    if value is None or value == 0:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidInput(f"parameters: priority: {value!r:.40} is not 0 (the default), 1 (the highest) or more")
    return min(value - 1, 3)


# ---------------------------------------------------------------- tensors


class Inputs:
    """Reads the tensors of one request. `close` gives their memory back.

    Args:
        region: gives a region by its name.

    Attributes:
        frame: for `AsyncClient.infer`. color: "encoded" where that is a picture, or several. boxes: or None.
    """

    def __init__(self, zoo: AsyncClient, body: Incoming, region: Callable[[str], Region]) -> None:
        self.frame: Any = None
        self.color: str | None = None
        self.boxes: Any = None
        self._zoo = zoo
        self._body = body
        self._region = region
        self._frames: list[Frame] = []

    async def read(self, head: InferHead) -> None:
        """Raises InvalidInput naming the tensor, and what the body raises."""
        self.boxes = head.parameters.get("boxes")
        named = [tensor for tensor in head.inputs if tensor.name != "boxes"]
        if not named:
            raise InvalidInput("inputs: there is nothing but boxes; send `image` too")
        alone = [tensor.name for tensor in named] == ["image"]
        given: dict[str, Any] = {}
        for tensor in head.inputs:
            if tensor.name == "boxes":
                self.boxes = await self._boxes(tensor)
            elif tensor.datatype == BYTES:
                given[tensor.name] = await self._pictures(tensor, alone)
            else:
                given[tensor.name] = await self._numbers(tensor, alone)
        if await self._body.chunk():
            raise InvalidInput("body: it goes on after the last tensor")
        self.frame = given["image"] if alone else given

    def close(self) -> None:
        for frame in self._frames:
            frame.close()

    def _source(self, tensor: InputTensor) -> tuple[Source, int] | None:
        """Where its bytes come from, and how many they are; None: it is in the head."""
        name = tensor.parameters.get("shared_memory_region")
        size = tensor.size("shared_memory_byte_size" if name is not None else "binary_data_size")
        if tensor.data is not msgspec.UNSET:
            if size is not None:
                raise InvalidInput(f"{tensor.name}: it has data, and a size of binary data: one of them is too much")
            return None
        if size is None:
            raise InvalidInput(f"{tensor.name}: it has neither data nor binary_data_size")
        if name is not None:
            window = self._region(str(name)).window(tensor.name, tensor.size("shared_memory_offset") or 0, size)
            return window, size
        return self._body, size

    async def _place(self, source: Source, shape: tuple[int, ...], dtype: str) -> Frame:
        frame = await self._zoo.frame(shape, dtype)
        self._frames.append(frame)
        await source.fill(frame)
        return frame

    async def _numbers(self, tensor: InputTensor, alone: bool) -> Any:
        found = self._source(tensor)
        video = alone and tensor.is_video
        if video and not 0 < tensor.shape[0] <= protocol.MAX_FRAMES:
            most = protocol.MAX_FRAMES
            raise InvalidInput(f"{tensor.name}: a video of {tensor.shape[0]} frames; 1 to {most} are taken")
        if found is None:
            array = tensors.from_json(tensor)
            return list(array) if video else array
        source, size = found
        tensor.check_size(size)
        shape, dtype = tuple(tensor.shape), tensor.dtype.str
        if video:
            return [await self._place(source, shape[1:], dtype) for _ in range(shape[0])]
        return await self._place(source, shape, dtype)

    async def _pictures(self, tensor: InputTensor, alone: bool) -> Any:
        """Encoded ones: one, or a video of several."""
        if not alone:
            raise InvalidInput(f"{tensor.name}: BYTES are pictures: in `image`, with nothing but boxes beside it")
        if not 0 < tensor.count <= protocol.MAX_FRAMES:
            raise InvalidInput(f"{tensor.name}: {tensor.count} pictures; 1 to {protocol.MAX_FRAMES} are taken")
        self.color = "encoded"
        found = self._source(tensor)
        if found is None:
            made: list[Any] = list(tensors.pictures_from_json(tensor))
        else:
            source, left = found
            made = []
            for _ in range(tensor.count):
                size = tensors.LENGTH.unpack(await source.read(tensors.LENGTH.size))[0] if left >= 4 else 0
                left -= tensors.LENGTH.size + size
                if not size or left < 0:
                    raise InvalidInput(f"{tensor.name}: the lengths before its elements do not fit its size")
                made.append(await self._place(source, (size,), "uint8"))
            if left:
                raise InvalidInput(f"{tensor.name}: {left} bytes are left after its {tensor.count} elements")
        return made[0] if len(made) == 1 else made

    async def _boxes(self, tensor: InputTensor) -> np.ndarray:
        if tensor.datatype == BYTES or len(tensor.shape) != 2 or tensor.shape[1] != 4 or tensor.shape[0] > MAX_BOXES:
            raise InvalidInput(f"boxes: expected numbers of shape [n, 4], n up to {MAX_BOXES}, got {tensor.shape}")
        found = self._source(tensor)
        if found is None:
            return tensors.from_json(tensor)
        source, size = found
        tensor.check_size(size)
        return np.frombuffer(await source.read(size), tensor.dtype).reshape(tensor.shape)
