"""What an unforeseen error costs: the peer whose message led to it, and no other. The broker goes on, if it is sound.

What comes from outside is checked where it comes in, so none of this should ever be needed. When it is, the error is
logged with its traceback and counted, what is known of its cause is ended (a client's session, a worker's process, a
lifeline), and the scheduler checks all of its invariants. If they hold, the broker goes on. If they do not, no further
decision can be trusted: it takes nothing new, finishes what runs, and ends with status 1.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

log = logging.getLogger("zoo.broker")

TOLD_PER_S = 5.0  # errors that are logged with their traceback; more are only counted
BURST = 20.0
PAUSE_S = 0.01  # after each error beyond that: what fails at once and always must not take the whole processor
DEEPEST = 3  # errors met while dealing with an error


class Guard:
    """Keeps the loop alive. `errors`: how many it has met.

    Args:
        verdict: called after each error, once its cause has been dealt with; decides whether the broker goes on.
    """

    def __init__(self, verdict: Callable[[], None]) -> None:
        self.errors = 0
        self._verdict = verdict
        self._allowed = BURST
        self._allowed_at = time.monotonic()
        self._untold = 0
        self._depth = 0

    def run(self, what: str, act: Callable[[], object], blame: Callable[[], object] | None = None) -> None:
        """Does something of which nothing else must depend on its success."""
        try:
            act()
        except Exception as e:
            self.failed(what, e, blame)

    def failed(self, what: str, error: Exception, blame: Callable[[], object] | None = None) -> None:
        """`what` has raised `error`: tells it, and ends what is to blame for it."""
        self.errors += 1
        self._tell(what, error)
        if self._depth >= DEEPEST:
            return
        self._depth += 1
        try:
            if blame is not None:
                self.run(f"ending what is to blame for {what}", blame)
            if self._depth == 1:
                self.run("the check after an internal error", self._verdict)
        finally:
            self._depth -= 1

    def _tell(self, what: str, error: Exception) -> None:
        now = time.monotonic()
        self._allowed = min(BURST, self._allowed + (now - self._allowed_at) * TOLD_PER_S)
        self._allowed_at = now
        if self._allowed < 1.0:
            self._untold += 1
            time.sleep(PAUSE_S)
            return
        self._allowed -= 1.0
        untold, self._untold = self._untold, 0
        more = f"; {untold} more before it were not told" if untold else ""
        log.error("internal error %d: %s raised %s%s", self.errors, what, type(error).__name__, more, exc_info=error)
