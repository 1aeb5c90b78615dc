"""Locks that a signal handler may meet in the middle of its own thread's work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def is_mine(lock: Any) -> bool:
    """Whether this thread holds that `RLock`: then a handler runs in between, and must not wait for it, nor enter."""
    return bool(lock._is_owned())


def under(lock: Any, seconds: float, work: Callable[[], T], busy: Callable[[], T]) -> T:
    """What `work` gives while this thread holds that `RLock`; `busy` where it does not get it in so many seconds."""
    try:
        return work() if lock.acquire(timeout=max(0.0, seconds)) else busy()
    finally:
        try:  # alone: a handler may raise between the taking and anything that could note it
            lock.release()
        except RuntimeError:
            pass  # it was not got
