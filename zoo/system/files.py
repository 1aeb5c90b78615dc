"""Files that come from outside: opened without waiting, read up to a limit, and only if they are regular files.

A weights folder, a state folder or a configuration may hold anything: a FIFO would make its reader wait for ever, a
device hand out bytes without end, a folder hold a million names. Links are followed: what they lead to is what counts.

A walk through a folder looks at 10,000 names at most. Names are bytes: hashed as such, escaped where they are shown.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

MAX_ENTRIES = 10_000  # names that are looked at in one folder, or in a tree of them
MAX_TEXT = 16 << 20  # bytes of a file that describes something: configuration, labels, an index, a tokenizer's words

AnyPath = str | os.PathLike[str]


class Found(NamedTuple):
    """A file in a tree. `stat` is None for one that cannot be looked at."""

    path: str
    stat: os.stat_result | None


def open_regular(path: AnyPath) -> int:
    """A descriptor for reading, close-on-exec.

    Raises:
        OSError: it cannot be opened, or is no regular file (EINVAL).
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # before it is opened: that alone can move a device
        raise _irregular(path)
    return _regular(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY))


def read_regular(path: AnyPath, limit: int) -> bytes:
    """All of a file.

    Args:
        limit: bytes that it may have.

    Raises:
        OSError: as `open_regular`; or it has more than `limit` bytes (EFBIG).
    """
    with open(open_regular(path), "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"has more than the {limit:,} bytes that are read of such a file", os.fspath(path))
    return data


def no_link(path: AnyPath, flags: int) -> int:
    """An `opener` for `open`: what is written goes to a regular file of that very name, never through a link.

    Raises:
        OSError: a link (ELOOP), a device, a pipe (EINVAL, ENXIO) has the name.
    """
    return _regular(path, os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o666))


def write_whole(path: AnyPath, data: bytes, mode: int = 0o600) -> None:
    """Replaces a file as a whole, by way of a new one beside it, whatever may lie under either name.

    Raises:
        OSError: the file is as it was.
    """
    spare = f"{os.fspath(path)}.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(spare)
    try:
        with open(os.open(spare, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
            file.write(data)
        os.replace(spare, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(spare)
        raise


def names(folder: AnyPath, most: int = MAX_ENTRIES) -> list[str]:
    """The names in a folder, in order.

    Raises:
        OSError: it cannot be read, or holds more than `most` (E2BIG).
    """
    found: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if len(found) >= most:
                raise OSError(errno.E2BIG, f"holds more than {most:,} names", os.fspath(folder))
            found.append(entry.name)
    return sorted(found)


def tree(top: AnyPath, most: int = MAX_ENTRIES) -> Iterator[Found]:
    """The files under a folder, in an order that only their names decide. Links to folders are not entered.

    After `most` names it ends with one that says so: a tree of any size takes bounded time.
    """
    left = most
    folders = [os.fspath(top)]
    while folders:
        folder = folders.pop()
        inner: list[str] = []
        files: list[str] = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    left -= 1
                    if left < 0:
                        yield Found(os.path.join(top, "…"), None)
                        return
                    (inner if entry.is_dir(follow_symlinks=False) else files).append(entry.path)
        except OSError:  # being replaced, or not for us
            yield Found(folder, None)
        for path in sorted(files):
            try:
                yield Found(path, os.stat(path))
            except OSError:
                yield Found(path, None)
        folders += sorted(inner, reverse=True)


def shown(name: AnyPath) -> str:
    """A name for people and for messages: bytes that are no UTF-8 are escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _regular(path: AnyPath, fd: int) -> int:
    """The descriptor, if that is what was opened: the file may have been exchanged meanwhile."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _irregular(path)
    return fd


def _irregular(path: AnyPath) -> OSError:
    return OSError(errno.EINVAL, "is no regular file", os.fspath(path))
