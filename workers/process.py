"""What a process of ours asks of the kernel: to die with its parent, and to carry a name."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int | None = None) -> None:
    """SIGKILL for this process when its parent ends, by whatever signal.

    Args:
        parent: the parent's process id, if known: when it is gone already, this process ends here.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(0)


def set_name(name: str) -> None:
    """The name that `ps` and `top` show (15 characters)."""
    _libc.prctl(_PR_SET_NAME, name.encode()[:15])
