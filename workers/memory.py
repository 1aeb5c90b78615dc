"""The memory of a worker's process: whether an error means that it ran out, whether it has grown, and giving back.

The libraries are known by what they say; torch is asked only where an adapter has imported it, and CUDA only where
it has been used.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import re
import sys
from typing import Any

from zoo.errors import LoadFailed, ZooError
from zoo.system.smaps import unique_mb
from zoo.wire.protocol import Shortage

MB = 1 << 20
GROWN_MB = 4.0  # less is not worth a reading
PAGE = os.sysconf("SC_PAGE_SIZE")
UNIT = {"": 1, "B": 1, "bytes": 1} | {f"{prefix}iB": 1 << 10 * n for n, prefix in enumerate("KMGTPE", 1)}
MOST_MB = 1e9  # that anything could ask for or use; what a driver shows beyond it is no figure
LIBRARIES = {"torch", "onnxruntime", "cv2"}  # whose own exceptions are judged by their words, as RuntimeErrors are
WORDS = re.compile(
    r"out of memory|can(?:'t|not) allocate memory|(?:not enough|insufficient) memory|bad_alloc|bad allocation"
    r"|(?:unable|failed) to allocate|_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
ASKED = re.compile(r"(?i:to allocate|buffer of size:?) (\d+\.?\d*) ?(bytes|[KMGTPE]iB|B\b|)")
IN_USE = re.compile(r"this process has (\d+\.?\d*) ([KMGT]iB) memory in use")  # torch, of the whole of it on the device


def shortage(error: BaseException, device: str) -> Shortage | None:
    """What is known of the allocation that failed; None when `error` means anything else.

    To be asked while the error is being handled: what was allocated before it is still there then, and counted.
    """
    found = _cause(error)
    if found is None:
        return None
    text = str(found)
    return Shortage(_used_mb(text, device), min(MOST_MB, _mb(ASKED.search(text))))


class Growth:
    """Tells when the process holds more than when this was last told. To be made in the process itself."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self._told_mb = self._held_mb()

    def is_news(self) -> bool:
        held = self._held_mb()
        if held < self._told_mb + GROWN_MB:
            return False
        self._told_mb = held
        return True

    def _held_mb(self) -> float:
        _, resident, shared, *_ = os.pread(self._statm, 128, 0).split()
        cuda = _cuda(self._device)
        return (int(resident) - int(shared)) * PAGE / MB + (cuda.memory_reserved(self._device) / MB if cuda else 0.0)


def give_back(device: str) -> None:
    """What is held for later use, and by no tensor, goes back to the device."""
    gc.collect()
    if cuda := _cuda(device):
        with contextlib.suppress(RuntimeError):  # broken by what went before: the next call of the adapter says so
            cuda.empty_cache()


def _cause(error: BaseException | None) -> BaseException | None:
    """The error, or the one that it was raised from, that says that there was no memory.

    What an adapter says in the zoo's own words is believed, but for a load that failed, which mostly wraps a cause.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, ZooError) and not isinstance(error, LoadFailed):
            return None
        if _says_so(error):
            return error
        seen.add(id(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def _says_so(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if any(cls.__name__ == "OutOfMemoryError" for cls in type(error).__mro__):
        return True
    known = isinstance(error, RuntimeError) or type(error).__module__.partition(".")[0] in LIBRARIES
    return known and WORDS.search(str(error)) is not None


def _used_mb(text: str, device: str) -> float:
    """What the process used when it ran out: as torch has said, or torch's own share, or the host's."""
    if cuda := _cuda(device):
        told = _mb(IN_USE.search(text))
        return told if 0 < told <= MOST_MB else cuda.memory_reserved(device) / MB
    return unique_mb(os.getpid()) or 0.0


def _mb(found: re.Match[str] | None) -> float:
    return float(found[1]) * UNIT[found[2]] / MB if found else 0.0


def _cuda(device: str) -> Any:
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and device.startswith("cuda") and torch.cuda.is_initialized() else None
