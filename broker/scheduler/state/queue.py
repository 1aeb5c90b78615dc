"""The order in which requests that wait for one model are served. The only place that knows it.

By the priority of requests first, but waiting makes urgent: when `OVERTAKEN` more urgent requests have been taken while
some of a priority wait, it is that priority's turn for one request. So a stream of urgent ones takes eight parts of
nine, and the request that is first in its priority's turn is served after `LONGEST` others at most, however urgent
these are and however many clients send them. Within a priority the clients take turns, one request each: a new client
waits for one request of each other client at most (and for the batch at work), not for the two hundred that one has
queued. Within a client's turn the oldest is first.

Most requests find their queue empty and are taken at once. Such a lone request is kept aside (`_lone`), since an order
of one costs more than the rest of its way through the scheduler.

A client is a session, so threads of one process share a turn. Turns are by request, not by time: requests for one model
take about the same.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Generic, Protocol, TypeVar

PRIORITIES = 4
OVERTAKEN = 8  # more urgent requests are taken before one of a priority that waits
LONGEST = OVERTAKEN + 4  # of other priorities at most, between two of one that waits: two others may be due, too
SWEEP = 64  # answered requests that may lie about, beside as many as there are live ones


class Waiting(Protocol):
    """What a queue has to know of a request. `seq`: the older, the smaller; `queue`: set and cleared by the queue."""

    session: bytes
    priority: int
    seq: int
    queue: Queue[Any] | None


R = TypeVar("R", bound=Waiting)


class Queue(Generic[R]):
    """Requests that wait. `push` and `pop` are O(log n); answered ones are skipped, and swept out in time."""

    __slots__ = ("_lone", "_overtaken", "_rings", "_size", "live")

    def __init__(self) -> None:
        # By priority: client → its requests, a heap by age.
        self._rings: tuple[OrderedDict[bytes, list[tuple[int, R]]], ...] = tuple(
            OrderedDict() for _ in range(PRIORITIES)
        )
        self._overtaken = [0] * PRIORITIES  # by priority: more urgent ones that were taken while it waited
        self._size = 0  # with those that were answered and not swept out
        self._lone: R | None = None  # in no ring
        self.live = 0

    def push(self, request: R) -> None:
        """A client that has nothing here comes last in the turn; one that waits already keeps its place."""
        request.queue = self
        self.live += 1
        if self.live == 1 and not self._size:
            self._lone = request
            return
        if self._lone is not None:
            lone, self._lone = self._lone, None
            self._order(lone)
        self._order(request)

    def _order(self, request: R) -> None:
        self._size += 1
        ring = self._rings[request.priority]
        heapq.heappush(ring.setdefault(request.session, []), (request.seq, request))

    def drop(self, request: R) -> None:
        """The request does not wait here any more."""
        request.queue = None
        self.live -= 1
        if request is self._lone:
            self._lone = None
        if self._size > 2 * self.live + SWEEP:
            self._sweep()

    def head(self) -> R | None:
        """The one whose turn it is."""
        if self._lone is not None:
            return self._lone
        if not self.live:
            return None
        if max(self._overtaken) >= OVERTAKEN:
            for overtaken, priority in sorted(((n, p) for p, n in enumerate(self._overtaken)), reverse=True):
                if overtaken < OVERTAKEN:
                    break
                if (request := self._first(priority)) is not None:
                    return request
        for priority, ring in enumerate(self._rings):
            if ring and (request := self._first(priority)) is not None:
                return request
        return None

    def _first(self, priority: int) -> R | None:
        """The one whose turn it is within the priority."""
        ring = self._rings[priority]
        while ring:
            session, line = next(iter(ring.items()))
            while line and line[0][1].queue is not self:
                heapq.heappop(line)
                self._size -= 1
            if line:
                return line[0][1]
            del ring[session]
        self._overtaken[priority] = 0  # none waits
        return None

    def pop(self) -> R | None:
        """Takes the head."""
        request = self.head()
        if request is not None:
            self.take(request)
        return request

    def take(self, head: R) -> None:
        """Takes what `head` has just given; its client has had its turn."""
        priority = head.priority
        self._overtaken[priority] = 0
        head.queue = None
        self.live -= 1
        if head is self._lone:
            self._lone = None
            return
        ring = self._rings[priority]
        line = ring[head.session]
        heapq.heappop(line)
        self._size -= 1
        if line:
            ring.move_to_end(head.session)
        else:
            del ring[head.session]
        for other in range(priority + 1, PRIORITIES):
            if self._rings[other]:
                self._overtaken[other] += 1

    def all(self) -> list[R]:
        """By priority, then age."""
        if self._lone is not None:
            return [self._lone]
        return [
            request
            for ring in self._rings
            if ring
            for _, request in sorted(entry for line in ring.values() for entry in line)
            if request.queue is self
        ]

    def _sweep(self) -> None:
        for ring in self._rings:
            for session, line in list(ring.items()):
                line[:] = [entry for entry in line if entry[1].queue is self]
                heapq.heapify(line)
                if not line:
                    del ring[session]
        self._size = self.live

    @property
    def entries(self) -> int:
        """How many it keeps, with those that were answered and not swept out yet."""
        return self._size + (self._lone is not None)

    def faults(self) -> Iterator[str]:
        """What does not hold of it, in words."""
        waiting = len(self.all())
        if waiting != self.live:
            yield f"{self.live} are said to wait, {waiting} do"
        size = sum(len(line) for ring in self._rings for line in ring.values())
        if self._size != size:
            yield f"its queue is said to hold {self._size} entries, {size} are there"
