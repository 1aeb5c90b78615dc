"""Processes forked ahead of need: how many should wait, and whose turn it is. Counts only; forks and kills nothing.

Every worker is forked before it is told its model, by one message on its channel. So one that waits and one that has to
be forked first are the same thing, only further on. A process that waits takes 26 to 31 ms off each start, whatever the
model: the fork, its lifeline and its channel. It has run no tensor operation and opened no device, and has about 2 MB
to itself, which no model is charged: `standby` is 1 by default. Tried and left: mapping the libraries' pages ahead in
it. That takes 0.2 s, saves at most 0.04 s of the load, and 2.4 GB of shared pages then count as that process's own.
"""

from __future__ import annotations

from collections import deque

PAUSE_FIRST_S, PAUSE_MOST_S = 1.0, 60.0


class Standby:
    """The numbers of the processes that wait, oldest first."""

    def __init__(self) -> None:
        self._waiting: deque[int] = deque()
        self._pause = PAUSE_FIRST_S
        self._not_before = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def lacks(self, wanted: int, now: float) -> int:
        """How many to fork: none for a while after one has died unused, or the machine would do nothing else."""
        return max(0, wanted - len(self._waiting)) if now >= self._not_before else 0

    def add(self, number: int) -> None:
        self._waiting.append(number)

    def take(self) -> int | None:
        """The process that has waited for longest, not to be handed out again; None when none waits."""
        return self._waiting.popleft() if self._waiting else None

    def used(self) -> None:
        """One was given a model: whatever was wrong is over."""
        self._pause = PAUSE_FIRST_S

    def lost(self, number: int, now: float) -> None:
        """One has died unused: the next is forked after a pause that doubles each time."""
        if number in self._waiting:
            self._waiting.remove(number)
        self._not_before = now + self._pause
        self._pause = min(2 * self._pause, PAUSE_MOST_S)
