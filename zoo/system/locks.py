"""Locks that a signal handler may meet in the middle of its own thread's work."""

from __future__ import annotations

from typing import Any


def is_mine(lock: Any) -> bool:
    """Whether this thread holds that `RLock`: then a handler runs in between, and must not wait for it, nor enter.

    Where a lock is taken with a timeout, its release stands alone in `try: … except RuntimeError`, under `finally`: a
    handler may raise between the taking and anything that could note it, and a lock that is not ours says so.
    """
    return bool(lock._is_owned())
