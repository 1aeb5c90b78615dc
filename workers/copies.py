"""A loaded adapter as a copy in memory of its own, and back: what it keeps is mapped again instead of read and parsed.

The adapter is pickled by protocol 5, with its large arrays and tensors as buffers beside the pickle, into a memfd that
is sealed when all is there. A process that gets it maps it privately: it may write to its weights, no other process
sees that, and pages that it only reads are those of the copy. Pickling is quick, for buffers are only referred to;
writing them is not, and goes on a piece at a time, so that requests need not wait for the whole of it.

Some of what adapters hold cannot be pickled although it can well be made again: locks, and functions made inside of
functions. These are told here, what torch has in `workers/models/shared/tensors.py`. An adapter that holds
anything else (a session of some runtime, pointers) has no copy and is loaded as ever.

Layout, in pairs of little-endian 64-bit numbers: how many buffers there are and the size of the pickle, then offset and
size of each buffer; then the pickle, then the buffers.

The whole adapter is copied after its load, so what a load computes (folded layers, features of the configured
prompts) is in it too. That an adapter has no copy is logged once. An adapter whose `load` changes settings of the
process, other than the threads of torch, has to change them again in `__setstate__`.

A copy is made while there are no requests: in pieces of 4 MB, after 50 ms without one; a request waits for one piece.
Making it at eviction would hold up the kill. A request in between may change what an adapter keeps beside its
weights; the copy then has it as it was when that piece was written. On a GPU all weights come to the host before the
first piece. Answers agree with those of a load to the last digits but one: which of its routines a library takes
depends on where a tensor begins.
"""

from __future__ import annotations

import fcntl
import importlib
import io
import marshal
import mmap
import os
import pickle
import struct
import sys
import threading
import types
from collections import deque
from typing import Any

from workers.lifeline import WorkerLifeline
from zoo.wire import arena, protocol

PIECE_BYTES = 4 << 20  # a few milliseconds
ALIGNMENT = 64
COPY_AFTER_S = 0.05  # without a request
MAX_WHY = 500  # characters: one packet of a lifeline
PROTOCOL = 5  # of pickle: the first with buffers
_PAIR = struct.Struct("<QQ")
_LOCKS = {type(threading.Lock()): threading.Lock, type(threading.RLock()): threading.RLock}


class Uncopyable(Exception):
    """The model has no copy, for the reason given: it cannot be pickled, or is larger than is wanted."""


class Copy:
    """A copy in the making.

    Attributes:
        fd: the memfd; sealed, and to be handed over, when `write` has said that all is there.
        size: in bytes.
    """

    def __init__(self, model: object, limit_bytes: int) -> None:
        """Raises Uncopyable."""
        buffers: list[pickle.PickleBuffer] = []
        raw = io.BytesIO()
        try:
            _Pickler(raw, PROTOCOL, buffer_callback=buffers.append).dump((_source(model), model))
            views = [buffer.raw() for buffer in buffers]
        except Exception as e:  # whatever an adapter's __reduce__ raises
            raise Uncopyable(f"{type(e).__name__}: {e}") from e
        pickled = raw.getbuffer()
        table = [_PAIR.pack(len(views), len(pickled))]
        at = _PAIR.size * (1 + len(views))
        parts = [(at, pickled)]
        for view in views:
            offset, size = parts[-1][0], parts[-1][1].nbytes
            parts.append((_aligned(offset + size), view))
            table.append(_PAIR.pack(parts[-1][0], view.nbytes))
        self.size = parts[-1][0] + parts[-1][1].nbytes
        if self.size > limit_bytes:
            raise Uncopyable(f"it would have {self.size >> 20} MB, at most {limit_bytes >> 20} MB are wanted")
        self._parts = deque([(0, memoryview(b"".join(table))), *parts])
        self.fd = os.memfd_create("zoo-copy", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, self.size)

    def write(self) -> bool:
        """Writes the next piece; True when all is there, and sealed. Raises OSError where there is no memory for it."""
        offset, view = self._parts.popleft()
        written = os.pwrite(self.fd, view[:PIECE_BYTES], offset)
        if written < view.nbytes:
            self._parts.appendleft((offset + written, view[written:]))
        if self._parts:
            return False
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, arena.SEALS | fcntl.F_SEAL_WRITE)
        return True

    def close(self) -> None:
        """Lets go of the memfd and of the model."""
        self._parts.clear()
        os.close(self.fd)


class CopyMaker:
    """Makes a model's copy while there are no requests, a piece at a time, and hands it over.

    Attributes:
        wanted: until it is handed over, or cannot be made.
    """

    def __init__(self, model: object, limit_bytes: int, lifeline: WorkerLifeline) -> None:
        self.wanted = limit_bytes > 0
        self._model, self._limit, self._lifeline = model, limit_bytes, lifeline
        self._copy: Copy | None = None

    @property
    def after_s(self) -> float:
        """Seconds without a request, after which the next piece may be made."""
        return COPY_AFTER_S if self._copy is None else 0.0

    def make_piece(self) -> None:
        try:
            if self._copy is None:
                self._copy = Copy(self._model, self._limit)
            elif self._copy.write():
                self._lifeline.send(protocol.LifelineCopy(), self._copy.fd)
                self._copy.close()
                self.wanted = False
        except (Uncopyable, OSError) as e:
            if self._copy is not None:
                self._copy.close()
            self._lifeline.send(protocol.LifelineCopy(str(e)[:MAX_WHY]))
            self.wanted = False


def read(fd: int, threads: int) -> Any:
    """The model of a copy, mapped privately. Takes over (and closes) `fd`. Raises whatever making objects can raise.

    Args:
        threads: of the CPU, for libraries that have to be told before they compute.
    """
    try:
        size = os.fstat(fd).st_size
        memory = mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    finally:
        os.close(fd)
    view = memoryview(memory)
    count, pickled = _PAIR.unpack_from(view)
    at = _PAIR.size * (1 + count)
    table = _PAIR.iter_unpack(view[_PAIR.size : at])
    buffers = [view[offset : offset + length] for offset, length in table]
    source, model = pickle.loads(view[at : at + pickled], buffers=buffers)
    if source != _source(model):
        raise ValueError(f"the code of {type(model).__name__} has changed since")
    if "torch" in sys.modules:
        _tensors().use_threads(threads)
    return model


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        kind = type(value)
        if kind in _LOCKS:
            return _LOCKS[kind], ()
        if kind is types.FunctionType and "<" in value.__qualname__:
            cells = tuple(cell.cell_contents for cell in value.__closure__ or ())
            code = marshal.dumps(value.__code__)
            return _function, (value.__module__, code, value.__name__, value.__defaults__, value.__kwdefaults__, cells)
        if "torch" in sys.modules:
            return _tensors().reduce(value, pickle.PickleBuffer, PROTOCOL)
        return NotImplemented


def _source(model: object) -> tuple[str, int] | None:
    """Where the adapter's code lies and when it was written: what a copy keeps is not for other code to look at."""
    file = getattr(sys.modules[type(model).__module__], "__file__", None)
    return (file, os.stat(file).st_mtime_ns) if file else None


def _tensors() -> Any:
    # Not at the top of this file: torch is not there for every adapter.
    return importlib.import_module("workers.models.shared.tensors")


def _function(module: str, code: bytes, name: str, defaults: Any, kwdefaults: Any, cells: tuple[Any, ...]) -> Any:
    names = vars(importlib.import_module(module))
    closure = tuple(types.CellType(value) for value in cells)
    made = types.FunctionType(marshal.loads(code), names, name, defaults, closure)
    made.__kwdefaults__ = kwdefaults
    return made


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
