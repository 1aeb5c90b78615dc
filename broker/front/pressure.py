"""Whose connection fills the memory that libzmq hides, and has to go.

A frame that is not complete, and parts of a message that never ends, are in libzmq's memory, out of sight: no option
of it bounds them, and no call tells whose they are. What can be seen from outside is how large the process is, and
which connections have bytes waiting in the kernel, because they send faster than libzmq reads. So while the process
grows, its growth is put down to those; what then comes out of libzmq as a message is taken off again. When the
process is too large, connections without a session go first, then those that most was put down to.

With a budget of 150 MB the broker stays below about 300 MB resident in every attack of tests/front/test_floods.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from broker import heap
from broker.front.connection import Connection

log = logging.getLogger("zoo.broker")

MB = 1 << 20
CALM_BYTES = 40 * MB  # growth that needs no reason
SLACK_BYTES = 90 * MB  # beside what the broker itself may hold
UNREAD_BYTES = 4 << 10  # less than this waits for a moment behind any client
SUSPECT_BYTES = 4 * MB
TRIM_S = 0.5
SAY_S = 5.0


class Pressure:
    """Bounds the resident size by cutting off connections.

    Args:
        held_bytes: what the broker itself may hold of inline frames and answers.

    Attributes:
        rising: it should be looked at again very soon.
    """

    def __init__(self, held_bytes: int) -> None:
        self._base = self._last = heap.resident_bytes()
        self.most = self._base + held_bytes + SLACK_BYTES
        self.rising = False
        self._trim_at = self._say_at = 0.0
        self._over = 0

    def look(self, now: float, peers: list[Connection], has_session: Callable[[bytes], bool]) -> list[Connection]:
        """The connections that have to be cut off now."""
        resident = heap.resident_bytes()
        grown, self._last = resident - self._last, resident
        if resident < self._base + CALM_BYTES:
            if self.rising:
                self.rising = False
                for peer in peers:
                    peer.suspect = 0
            return []
        self.rising = True
        if grown > 0:
            self._put_down(grown, peers)
        elif now > self._trim_at:
            self._trim_at = now + TRIM_S
            heap.trim()
        if resident < self.most:
            self._over = 0
            return []
        self._over += 1
        goes = choose([peer for peer in peers if not peer.ended], has_session, self._over)
        if goes and now > self._say_at:
            self._say_at = now + SAY_S
            what = f"{resident // MB} MB are in memory, more than {self.most // MB}"
            log.warning("%s: cutting off %d connections that fill it", what, len(goes))
        return goes

    def _put_down(self, grown: int, peers: list[Connection]) -> None:
        waiting = [(peer, size) for peer in peers if not peer.ended and (size := peer.unread()) >= UNREAD_BYTES]
        total = sum(size for _, size in waiting)
        for peer, size in waiting:
            peer.suspect += grown * size // total


def choose(peers: list[Connection], has_session: Callable[[bytes], bool], times: int) -> list[Connection]:
    """Which connections are cut off when it has been too much for so many looks in a row."""
    strangers = [peer for peer in peers if not peer.identity or not has_session(peer.identity)]
    known = sorted((peer for peer in peers if peer not in strangers), key=lambda peer: -max(peer.suspect, peer.out))
    if guilty := [peer for peer in strangers if peer.suspect >= SUSPECT_BYTES]:
        return guilty
    if known and known[0].suspect >= SUSPECT_BYTES:
        return known[:1]
    if times < 3:  # what was cut off a moment ago is still being freed
        return []
    if strangers:
        return strangers
    return known[:1] if known and known[0].out >= SUSPECT_BYTES else []
