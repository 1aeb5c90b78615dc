"""Tensors of KServe v2: their datatypes, their JSON and binary forms, and no I/O.

Everything here comes from, or goes to, the other side: shapes, sizes and datatypes are checked before anything is made
of them, and what does not fit raises `InvalidInput` naming the tensor.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from zoo.errors import InvalidInput
from zoo.wire import arrays

DATATYPES = {
    "BOOL": "|b1", "UINT8": "|u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8",
    "INT8": "|i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
BYTES = "BYTES"
_OF_DTYPE = {np.dtype(dtype): name for name, dtype in DATATYPES.items()}
MOST_BYTES = 1 << 40  # of a tensor: far beyond every limit, and small enough to be counted with
LENGTH = struct.Struct("<I")  # before each element of BYTES


class InputTensor(msgspec.Struct):
    """An input as the head of a request describes it. `data`: in JSON; else it is elsewhere, see `parameters`."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: Any = msgspec.UNSET

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    def check(self) -> None:
        """Raises InvalidInput: no tensor has such a shape or datatype."""
        if self.datatype != BYTES and self.datatype not in DATATYPES:
            known = ", ".join([*DATATYPES, BYTES])
            raise InvalidInput(f"{self.name}: datatype {self.datatype!r:.40} is not one of {known}")
        if len(self.shape) > arrays.MAX_NDIM or not all(0 <= side < MOST_BYTES for side in self.shape):
            raise InvalidInput(f"{self.name}: shape {self.shape!r:.100} is not one a tensor can have")
        if self.count * self.dtype.itemsize > MOST_BYTES:
            raise InvalidInput(f"{self.name}: a tensor of shape {self.shape!r:.100} is too large")

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the numbers; of BYTES, of a byte."""
        return np.dtype(DATATYPES.get(self.datatype, "|u1"))

    @property
    def is_video(self) -> bool:
        return self.datatype == "UINT8" and len(self.shape) == 4 and self.shape[3] == 3

    def size(self, name: str) -> int | None:
        """A parameter that counts bytes; None where there is none."""
        value = self.parameters.get(name)
        if value is not None and (type(value) is not int or not 0 <= value <= MOST_BYTES):
            raise InvalidInput(f"{self.name}: parameters: {name}: {value!r:.40} is not a number of bytes")
        return value

    def check_size(self, nbytes: int) -> None:
        """Raises InvalidInput where the numbers do not take so many bytes."""
        if nbytes != (needed := self.count * self.dtype.itemsize):
            raise InvalidInput(
                f"{self.name}: {nbytes} bytes of data; {self.datatype} of shape {self.shape} has {needed}"
            )


def from_json(tensor: InputTensor) -> np.ndarray:
    """The numbers in `data`, nested or flat. Raises InvalidInput: they are none, or do not fit datatype and shape."""
    try:
        found = np.asarray(tensor.data)
        if found.size == 0:
            found = found.astype(tensor.dtype)
        allowed = {"b": "b", "f": "iuf"}.get(tensor.dtype.kind, "iu")
        if found.dtype.kind not in allowed:
            raise TypeError(f"they are no {tensor.datatype}")
        if tensor.dtype.kind in "iu" and found.size:
            limits = np.iinfo(tensor.dtype)
            if int(found.min()) < limits.min or int(found.max()) > limits.max:
                raise OverflowError(f"some are beyond {tensor.datatype}")
        return found.astype(tensor.dtype).reshape(tensor.shape)
    except arrays.ODD as e:
        raise InvalidInput(f"{tensor.name}: data: {e!s:.200}") from None


def pictures_from_json(tensor: InputTensor) -> list[bytes]:
    """The elements of BYTES, which JSON carries as base64. Raises InvalidInput."""
    data = tensor.data
    while isinstance(data, list) and len(data) == 1 and isinstance(data[0], list):
        data = data[0]
    if not isinstance(data, list) or len(data) != tensor.count or not all(isinstance(one, str) for one in data):
        raise InvalidInput(f"{tensor.name}: data: expected {tensor.count} texts, base64 of a JPEG or PNG file each")
    try:
        return [base64.b64decode(one, validate=True) for one in data]
    except (binascii.Error, ValueError) as e:
        raise InvalidInput(f"{tensor.name}: data: not base64: {e}") from None


# ---------------------------------------------------------------- outputs


class OutputTensor(NamedTuple):
    """`values`: an array, or for BYTES a list of texts, whose shape is `shape`."""

    name: str
    shape: Sequence[int]
    values: np.ndarray | list[str]

    @property
    def datatype(self) -> str:
        return BYTES if isinstance(self.values, list) else _OF_DTYPE[self.values.dtype]

    def binary(self) -> bytes | memoryview:
        if isinstance(self.values, list):
            raw = [text.encode("utf-8", "replace") for text in self.values]
            return b"".join(part for one in raw for part in (LENGTH.pack(len(one)), one))
        return np.ascontiguousarray(self.values).reshape(-1).view("u1").data

    def listed(self) -> list[Any]:
        """Flat, for JSON. What is not a finite number becomes null."""
        return self.values if isinstance(self.values, list) else self.values.reshape(-1).tolist()

    def best(self, count: int, labels: Sequence[str]) -> OutputTensor:
        """The classification extension: the `count` highest numbers as "VALUE:INDEX:LABEL"."""
        if isinstance(self.values, list):
            raise InvalidInput(f"outputs: {self.name}: classification takes a tensor of numbers")
        flat = self.values.reshape(-1)
        order = np.argsort(-flat.astype(np.float64), kind="stable")[:count].tolist()
        named = labels if len(labels) == len(flat) else []
        texts = [":".join([f"{flat[i]:f}", str(i), *named[i : i + 1]]) for i in order]
        return OutputTensor(self.name, [len(texts)], texts)


def of_array(name: str, array: np.ndarray) -> OutputTensor:
    """Raises InvalidInput where the protocol has no such numbers."""
    plain = array.astype(array.dtype.newbyteorder("<"), copy=False)
    if plain.dtype not in _OF_DTYPE:
        raise InvalidInput(f"outputs: {name}: {array.dtype} is not a datatype of KServe v2; leave this output out")
    return OutputTensor(name, array.shape, plain)


def of_texts(name: str, texts: Sequence[str]) -> OutputTensor:
    return OutputTensor(name, [len(texts)], list(texts))
