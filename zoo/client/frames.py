"""Frames on the client's side: what can be sent, and the memory it lies in while a worker reads it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, Self

import msgspec
import numpy as np

from zoo.client.frame_arena import FrameArena
from zoo.errors import InvalidInput, OutOfMemory, QueueFull
from zoo.wire import arrays, formats, payload, protocol

Boxes = Sequence[Sequence[float]] | np.ndarray
Corners = tuple[tuple[float, float, float, float], ...]
Look = tuple[Any, Any, Any, Any]  # color, size, stride, scale, as the caller gave them


class Frame:
    """A frame in shared memory, to be filled once and sent as often as you like.

    `with zoo.frame((1080, 1920, 3)) as f: camera.read(f.array); zoo.infer("yolo11-face", f)`

    Its memory goes back at the end of the block; without one, when neither the frame nor its array is there any more.

    Attributes:
        array: writable until the `with` block ends. Do not write while a request with this frame is under way.
    """

    def __init__(self, slot: Slot) -> None:
        self.array = slot.writable()
        self._slot: Slot | None = slot

    @property
    def slot(self) -> Slot:
        """Raises InvalidInput after the `with` block."""
        if self._slot is None:
            raise InvalidInput("frame: its `with` block has ended, its memory belongs to others now")
        if self._slot.arena is not None and self._slot.arena.forked:
            raise InvalidInput("frame: it belongs to the process that this one was forked from; make one here")
        return self._slot

    def cut(self, nbytes: int) -> None:
        """Makes it its first `nbytes` bytes, uint8: what came of something whose size was not known before."""
        slot = self.slot
        slot.shape, slot.typestr = (min(nbytes, math.prod(slot.shape) * np.dtype(slot.typestr).itemsize),), "|u1"
        slot.ready.clear()
        self.array = slot.writable()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Makes numpy take a frame for its array; raises as `slot` does."""
        return np.array(self.slot.writable(), dtype, copy=copy)

    def close(self) -> None:
        slot, self._slot = self._slot, None
        if slot is not None:
            slot.drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Slot:
    """A piece of the arena, and who needs it: the `with` block, and each request under way.

    It goes back when it is not needed, or when it is garbage: a signal handler that raises may undo any bookkeeping.
    """

    __slots__ = ("__weakref__", "_needs", "arena", "buffer", "home", "ready", "shape", "typestr")

    def __init__(self, shared: FrameArena | None, shape: tuple[int, ...], typestr: str, buffer: Any = None) -> None:
        self.arena = shared
        self.home: list[tuple[int, int]] = []  # see `FrameArena.place`
        self.buffer = buffer  # the array's memory where it is not shared
        self.shape = shape
        self.typestr = typestr
        self.ready: dict[tuple[str, int], bytes] = {}  # (colour, arena's id) → the request for just this frame
        self._needs: list[None] = [None]  # lists, since their methods cannot be interrupted

    @property
    def offset(self) -> int:
        return self.home[0][0]

    def pixels(self) -> np.ndarray:
        """The array over its memory, which the caller must not keep."""
        if self.arena is None:
            array: np.ndarray = self.buffer
            return array
        return np.frombuffer(self.arena.memory, self.typestr, math.prod(self.shape), self.offset).reshape(self.shape)

    def writable(self) -> np.ndarray:
        """An array to be kept: as long as it is there, so is the slot, unless that was given back by word."""
        return self.pixels() if self.arena is None else np.asarray(_Lent(self))

    def keep(self) -> None:
        self._needs.append(None)

    def drop(self) -> None:
        try:
            self._needs.pop()
        except IndexError:
            return
        if not self._needs:
            self.ready.clear()
            self._go_back()

    def _go_back(self) -> None:
        if self.arena is not None:
            self.arena.return_from(self)

    def __del__(self) -> None:
        try:
            self._go_back()
        except AttributeError:
            pass  # it was not even made


class _Lent:
    __slots__ = ("__array_interface__", "_slot")

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        pixels = slot.pixels()
        self.__array_interface__ = {**pixels.__array_interface__, "shape": slot.shape, "version": 3}


class RequestBody(msgspec.Struct, eq=False):
    """A request's body and everything that must stay in place until it is settled."""

    body: bytes
    buffers: list[Any]
    slots: list[Slot]
    shared: FrameArena | None

    @property
    def arenas(self) -> tuple[int, ...]:
        return (self.shared.id,) if self.shared is not None else ()

    def check(self, limit: int) -> None:
        """Raises InvalidInput when the message has more than `limit` bytes."""
        size = len(self.body)
        if self.buffers:
            size += sum(buffer.nbytes for buffer in self.buffers)
        if size > limit:
            field = "frame" if self.buffers else "options"
            raise InvalidInput(
                f"{field}: {size / (1 << 20):.1f} MB in one message; the broker takes {limit >> 20} MB of what is "
                "not in shared memory: send less at once, an encoded image, or raise max_inline_mb in its config.toml"
            )

    def keep(self) -> list[Slot]:
        """The slots, each needed once more until it is dropped."""
        for slot in self.slots:
            slot.keep()
        return [*self.slots]

    def drop(self) -> None:
        for slot in self.slots:
            slot.drop()


Placed = tuple[Slot, formats.PixelFormat]  # a frame in its place, and how its bytes are to be read


def drop(placed: Iterable[Placed]) -> None:
    for slot, _ in placed:
        slot.drop()


class NoRoom(Exception):
    """The arena has no free slot now."""


class Store:
    """Places frames. `shared` is the arena, or None where memory cannot be shared and bytes travel inline."""

    def __init__(self, shared: FrameArena | None) -> None:
        self.shared = shared

    def full(self) -> QueueFull:
        """The error for a caller whose time is up while it waits for a slot."""
        size = self.shared.size >> 20 if self.shared is not None else 0
        return QueueFull(f"every slot of this client's {size} MB arena is in use; wait for answers, or raise arena_mb")

    def empty(self, shape: tuple[int, ...], dtype: str) -> Slot:
        """An uninitialised slot.

        Raises:
            InvalidInput: no such array, or it is larger than the whole arena. NoRoom.
        """
        kind = arrays.check_dtype(dtype)
        if not arrays.is_shape(shape):
            raise InvalidInput(f"shape: {arrays.shown(shape)} is not one an array can have")
        if 0 in shape:
            _new(shape, kind)  # a side that numpy cannot count
        typestr = dtype if dtype in arrays.KNOWN else kind.str
        return self._slot(shape, kind, typestr, math.prod(shape) * kind.itemsize)

    def _slot(self, shape: tuple[int, ...], kind: np.dtype[Any], typestr: str, nbytes: int) -> Slot:
        """The same for what an array may be. `typestr`: of `kind`, which takes 0.2 us to say it."""
        if self.shared is None or self.shared.is_interrupted():
            if nbytes > protocol.MAX_MESSAGE_BYTES // 2:
                raise InvalidInput(f"frame: {nbytes >> 20} MB are too much for one message")
            return Slot(None, shape, typestr, _new(shape, kind))
        if nbytes > self.shared.size:
            raise InvalidInput(
                f"frame: {arrays.shown(shape)} {kind} takes {min(nbytes, 1 << 80) / (1 << 20):.1f} MB, the arena has "
                f"{self.shared.size >> 20} MB; make the client with a larger arena_mb"
            )
        slot = Slot(self.shared, shape, typestr)
        if not self.shared.place(slot, nbytes):
            raise NoRoom
        return slot

    def request(self, frame: Any, boxes: Boxes | None, look: Look, options: dict[str, Any]) -> RequestBody:
        """Everything a request carries, its frames in place.

        Raises:
            InvalidInput: naming the argument that is wrong. NoRoom: nothing was taken.
        """
        shared = self.shared
        color, size, stride, scale = look
        plain = shared is not None and type(frame) is Frame and boxes is None and not options
        plain = plain and type(color) is str and size is None and stride is None and scale is None
        if plain and shared is not None:
            slot = frame.slot
            ready = slot.ready.get((color, shared.id)) if slot.arena is shared else None
            if ready is not None:
                slot.keep()
                return RequestBody(ready, [], [slot], shared)
        corners = check_boxes(boxes)
        placed = self.place(frame, look)
        try:
            made = self.compose(placed, corners, options)
        except BaseException:
            drop(placed)
            raise
        slot = placed[0][0]
        if plain and slot.arena is not None:
            slot.ready[color, slot.arena.id] = made.body
        return made

    def place(self, frame: Any, look: Look) -> list[Placed]:
        """A frame, or each of a list of them, where its readers will find it. The caller drops every slot.

        Raises:
            InvalidInput: naming the argument that is wrong. NoRoom: nothing was taken.
        """
        how = formats.check_format(*look)
        placed: list[Placed] = []
        try:
            placed.extend(map(self._place, arrays.check_frames(frame), itertools.repeat(how)))
        except BaseException:
            drop(placed)
            raise
        return placed

    def compose(self, placed: Sequence[Placed], boxes: Corners | None, options: dict[str, Any]) -> RequestBody:
        """A request about frames that are in place. It takes no slot of its own: see `RequestBody.keep`.

        Raises:
            InvalidInput: an option is not a JSON-like value, or all of them are too large to be sent.
        """
        described: list[payload.FrameRef] = []
        buffers: list[Any] = []
        slots: list[Slot] = []
        for slot, how in placed:
            slots.append(slot)
            if slot.arena is None:
                described.append(payload.FrameRef(-1, len(buffers), slot.shape, slot.typestr, *how))
                buffers.append(np.ascontiguousarray(slot.buffer).data)
            else:
                described.append(payload.FrameRef(slot.arena.id, slot.offset, slot.shape, slot.typestr, *how))
        body = payload.pack_request(payload.InferBody(tuple(described), boxes, options))
        size = len(body) + (sum(buffer.nbytes for buffer in buffers) if buffers else 0)
        if size > protocol.MAX_MESSAGE_BYTES // 2:
            what = "options" if size < 2 * len(body) else "frame"
            raise InvalidInput(
                f"{what}: {size / (1 << 20):.0f} MB are too much for one message, which takes "
                f"{protocol.MAX_MESSAGE_BYTES >> 21} MB"
            )
        return RequestBody(body, buffers, slots, self.shared)

    def _place(self, part: Any, how: formats.PixelFormat) -> Placed:
        if isinstance(part, Frame):
            slot = part.slot
            if slot.arena is not self.shared and slot.arena is not None:
                raise InvalidInput("frame: it belongs to another client")
            how = formats.sent(how, slot.shape, slot.typestr)
            slot.keep()
            return slot, how
        value = arrays.check_frame(part)
        encoded = isinstance(part, bytes | bytearray | memoryview)
        shape, typestr = value.shape, value.dtype.str
        how = formats.encoded(how) if encoded else formats.sent(how, shape, typestr)
        slot = self._slot(shape, arrays.check_dtype(typestr), typestr, value.nbytes)
        try:
            np.copyto(slot.pixels(), value)
        except BaseException as e:
            slot.drop()
            if isinstance(e, MemoryError):
                raise OutOfMemory("this process has no memory left to place the frame with") from None
            raise
        return slot, how


def _new(shape: tuple[int, ...], kind: np.dtype[Any]) -> np.ndarray:
    try:
        return np.empty(shape, kind)
    except (ValueError, OverflowError, MemoryError) as e:
        raise InvalidInput(f"shape: {arrays.shown(shape)} is not one an array can have ({e})") from None


def check_boxes(boxes: Boxes | None) -> Corners | None:
    """(n, 4) numbers as tuples. Whether they are finite and in the frame, the worker says."""
    if boxes is None:
        return None
    expected = "boxes: expected a list of (x1, y1, x2, y2), (n, 4) numbers"
    try:
        array = np.asarray(boxes, dtype=np.float64)
    except arrays.ODD:
        raise InvalidInput(f"{expected}, got {arrays.shown(boxes)}") from None
    if array.size == 0:
        return ()
    if array.ndim != 2 or array.shape[1] != 4:
        hint = "; of a single box too, a list" if array.shape == (4,) else ""
        raise InvalidInput(f"{expected}, got shape {array.shape}{hint}")
    return tuple(tuple(row) for row in array.tolist())
