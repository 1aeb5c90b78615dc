"""Bodies: what a request carries to the worker and what a result carries back. The broker never opens one.

Arrays inside a result travel either inline (MessagePack extension 1) or as a reference into the worker's arena
(extension 2). A reference is only ever trusted after it was checked against the arena it names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from zoo import results
from zoo.errors import InvalidInput, ProtocolMismatch
from zoo.wire.arrays import KINDS, ODD, view

EXT_INLINE = 1
EXT_ARENA = 2


class FrameRef(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Where one frame's bytes are and how to look at them.

    Attributes:
        arena: the arena's id, or -1 when the bytes are the message's own buffer number `offset`.
        offset: byte offset in the arena (or number of the buffer).
        shape: of the array; (n,) for n bytes of an encoded image.
        dtype: numpy's short form, such as "|u1" or "<f4".
        color: "rgb", "bgr", "encoded" for JPEG and PNG bytes, or one of `formats.CAMERA` and `formats.WIDE`.
        size, stride, scale: see `formats.PixelFormat`.
    """

    arena: int
    offset: int
    shape: tuple[int, ...]
    dtype: str
    color: str = "rgb"
    size: tuple[int, int] | None = None
    stride: int | None = None
    scale: tuple[float, float] | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class InferBody(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """`boxes`: xyxy in pixels of the frame, one answer each; None answers for the whole frame."""

    frames: tuple[FrameRef, ...]
    boxes: tuple[tuple[float, float, float, float], ...] | None = None
    options: dict[str, Any] = {}


class ResultBody(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """`many`: the caller gave boxes and gets the list, else the only result."""

    results: list[results.AnyResult]
    many: bool = False


# ---------------------------------------------------------------- requests


def _scalar(value: Any) -> Any:
    """A number of numpy's, as a threshold may be that was computed."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no JSON-like value")


_encode_plain = msgspec.msgpack.Encoder().encode
_encode_request = msgspec.msgpack.Encoder(enc_hook=_scalar).encode
_request = msgspec.msgpack.Decoder(InferBody)


def pack_request(body: InferBody) -> bytes:
    """Raises InvalidInput when an option is not a JSON-like value."""
    try:
        return _encode_request(body)
    except ODD as e:  # ValueError: a lone surrogate too
        raise InvalidInput(f"options: {e!s:.200}; options are JSON-like values (lists, numbers, strings)") from None


def unpack_request(raw: bytes) -> InferBody:
    try:
        return _request.decode(raw)
    except (msgspec.DecodeError, msgspec.ValidationError, ValueError, RecursionError) as e:
        raise InvalidInput(f"request body: {e}") from None


# ---------------------------------------------------------------- results


def pack_result(body: ResultBody, place: Callable[[np.ndarray], int | None]) -> tuple[bytes, tuple[int, ...]]:
    """Encodes a result.

    Args:
        place: called with each array; copies a large one into the worker's arena and gives the offset. None
            (small, or no room): the array travels inline.

    Returns:
        The bytes, and the offsets of the arrays that went into the arena.
    """
    try:
        return _encode_plain(body), ()  # no arrays in it
    except TypeError:
        pass
    offsets: list[int] = []

    def hook(value: Any) -> Any:
        if isinstance(value, np.generic):
            return value.item()
        if not isinstance(value, np.ndarray):
            raise TypeError(f"a result may hold JSON-like values and numpy arrays, not {type(value).__name__}")
        if value.dtype.kind not in KINDS:
            raise TypeError(f"an array of {value.dtype} cannot travel")
        offset = place(value)
        if offset is not None:
            offsets.append(offset)
            return msgspec.msgpack.Ext(EXT_ARENA, msgspec.msgpack.encode((offset, value.dtype.str, value.shape)))
        return msgspec.msgpack.Ext(EXT_INLINE, msgspec.msgpack.encode((value.dtype.str, value.shape, value.tobytes())))

    return msgspec.msgpack.encode(body, enc_hook=hook), tuple(offsets)


_inline = msgspec.msgpack.Decoder(tuple[str, tuple[int, ...], bytes])
_placed = msgspec.msgpack.Decoder(tuple[int, str, tuple[int, ...]])

LookUp = Callable[[int, tuple[int, ...], str], np.ndarray]


def result_decoder(look_up: LookUp) -> Callable[[bytes], ResultBody]:
    """A decoder for results; `look_up(offset, shape, dtype)` turns a reference into an array."""

    def ext_hook(code: int, data: memoryview) -> np.ndarray:
        if code == EXT_INLINE:
            dtype, shape, raw = _inline.decode(data)
            return view(raw, len(raw), 0, shape, dtype)
        if code == EXT_ARENA:
            offset, dtype, shape = _placed.decode(data)
            return look_up(offset, shape, dtype)
        raise ProtocolMismatch(f"a result holds an unknown extension {code}")

    def array_hook(_: type, value: Any) -> np.ndarray:
        if not isinstance(value, np.ndarray):
            raise ValueError(f"expected an array, got {type(value).__name__}")
        return value

    decoder = msgspec.msgpack.Decoder(ResultBody, ext_hook=ext_hook, dec_hook=array_hook)

    def decode(raw: bytes) -> ResultBody:
        try:
            body = decoder.decode(raw)
        except (msgspec.DecodeError, msgspec.ValidationError, ValueError, RecursionError, InvalidInput) as e:
            raise ProtocolMismatch(f"unreadable result: {e}") from None
        if not body.many and len(body.results) != 1:
            raise ProtocolMismatch(f"unreadable result: {len(body.results)} answers where there should be one")
        return body

    return decode
