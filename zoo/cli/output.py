"""The command line's standard streams: closed, full, or with a reader that has gone."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

from zoo.errors import ZooError


def open_streams() -> bool:
    """Gives closed descriptors 0 to 2 to /dev/null, or the next file or socket would get them. True: standard output
    was closed, so what is printed is lost.
    """
    lost = sys.stdout is None
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != fd:
                os.dup2(opened, fd)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, open(fd, "w" if fd else "r", closefd=False))  # noqa: SIM115
    return lost


def give_up(stream: Any) -> None:
    """What it still holds is lost: the interpreter must not fail on it once more when it ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        stream.flush()


def error(kind: str, message: str, status: int, cause: Exception | None = None) -> dict[str, Any]:
    """An error as `--json` prints it."""
    known = cause if isinstance(cause, ZooError) else ZooError()
    return {
        "error": known.code if known is cause else kind.replace(" ", "_"),
        "message": message,
        "status": status,
        "retryable": known.retryable,
        "retry_after": known.retry_after,
        "request": known.request or None,
    }
