"""A heap of things that become due. Entries are never removed early: the one that pops one checks if it still holds."""

from __future__ import annotations

import enum
import heapq
from collections.abc import Callable, Iterator


class Due(enum.IntEnum):
    DEADLINE = 0  # key: request
    WATCH = 1  # key: worker (its load or its dispatch has taken too long)
    IDLE = 2  # key: worker (it may have been idle for long enough)
    LOOK = 3  # look again whether a demand for room can be met
    GRACE = 4  # end of the drain
    BATCH = 5  # key: worker, the primary of its model: the batching window ends


DEADLINE, WATCH, IDLE, LOOK, GRACE, BATCH = Due  # see `states.py`


Entry = tuple[float, int, int]


class Timers:
    def __init__(self) -> None:
        self._heap: list[Entry] = []
        self._limit = 4096

    def add(self, when: float, due: Due, key: int = 0) -> None:
        heapq.heappush(self._heap, (when, due, key))

    def next(self, stale: Callable[[Entry], bool]) -> float | None:
        """When the first entry that still holds is due."""
        if len(self._heap) > self._limit:
            self._sweep(stale)
        heap = self._heap
        while heap and stale(heap[0]):
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def pop_due(self, now: float) -> Entry | None:
        if self._heap and self._heap[0][0] <= now:
            return heapq.heappop(self._heap)
        return None

    def _sweep(self, stale: Callable[[Entry], bool]) -> None:
        """Drops what no longer holds, once there is a lot of it (deadlines of requests long answered)."""
        self._heap = [entry for entry in self._heap if not stale(entry)]
        heapq.heapify(self._heap)
        self._limit = max(4096, 2 * len(self._heap))

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._heap)

    def faults(self) -> Iterator[str]:
        """What does not hold of it, in words."""
        heap = self._heap
        yield from (
            f"timers: entry {i} is due before its parent" for i in range(1, len(heap)) if heap[i] < heap[(i - 1) // 2]
        )
