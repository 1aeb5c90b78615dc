"""The latest moment at which a broker that was told to stop has ended, whatever happened to what should end it.

In order, the scheduler says when all work is done and all processes are gone. An error on the way, a process that the
kernel cannot end, or a library that waits for a thread must not keep the broker from its end: service managers wait for
it, and so does the broker that is to follow.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Callable

log = logging.getLogger("zoo.broker")

GRACE_S = 5.0  # beyond the drain: for processes to end, and for their memory to come back
CLOSE_S = 10.0  # for descriptors, threads and the last processes


class Ending:
    """When the loop has to end. `at`: on the monotonic clock; inf while nothing has told it to."""

    def __init__(self) -> None:
        self.at = math.inf

    def begin(self, drain_seconds: float, now: float) -> None:
        """It is told to stop; a second time, the earlier end counts."""
        self.at = min(self.at, now + drain_seconds + GRACE_S)

    def is_over(self, now: float) -> bool:
        """True when it must not be waited for any longer. Says so."""
        if now < self.at:
            return False
        log.error("not everything has ended in time: the broker ends without waiting for it")
        return True


def within(seconds: float, status: int, last: Callable[[], object]) -> threading.Timer:
    """Ends this process with `status`, after `last`, unless the timer is cancelled within so many seconds."""

    def end() -> None:
        log.critical("the broker could not be closed within %g s", seconds)
        try:
            last()
        finally:
            os._exit(status)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    return timer
