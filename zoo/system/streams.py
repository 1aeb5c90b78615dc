"""The standard streams of a program that was started with some of them closed."""

from __future__ import annotations

import os
import sys


def open_streams() -> bool:
    """Gives closed descriptors 0 to 2 to /dev/null; else the next file or socket would get them, and with them whatever
    a library prints. True: standard output was closed, so what is printed is lost.
    """
    lost = sys.stdout is None
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != fd:  # another thread took the number in between
                os.dup2(opened, fd)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, open(fd, "w" if fd else "r", closefd=False, errors="backslashreplace"))  # noqa: SIM115
    return lost
