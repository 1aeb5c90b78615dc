"""How many descriptors this process may have, and how many of them each part gets. No sockets here, only numbers.

The limit is divided once, at start, so that no kind of connection can use up what another needs: connections of
clients, their lifelines and arenas, what workers need, and scrapes of the metrics. What is left over is the reserve,
for files that are opened for a moment. A new connection over its share is refused while there are descriptors to say so
with.

The soft limit is raised to the hard one. One client's connections are bounded once half of all are in use, and so are
its arenas but for the first.
"""

from __future__ import annotations

import contextlib
import os
import resource
from dataclasses import dataclass

MOST = 1 << 20  # some libraries close every number up to the limit, one by one
RESERVE = 32
OWN = 24  # the broker's own, beside those that are open when the limit is divided: ZeroMQ, epoll, nursery, listeners
PER_WORKER = 8  # lifeline, channel, process, arena, copy, and what a start needs for a moment
METRICS = 16  # scrapes at once
NAMELESS = 64  # connections that have not said yet whose lifeline they are
LEAST = 8


@dataclass(frozen=True)
class Shares:
    """Most of each kind at once.

    Attributes:
        limit: of all descriptors together.
        front: connections to the front socket.
        sessions: clients, those that are closed and still look at results included; each has a lifeline if it is local.
        sockets: connections to the front of one client.
        nameless: connections that have not said yet whose lifeline they are.
        arenas: of all clients together.
        workers: descriptors for workers.
    """

    limit: int
    front: int
    sessions: int
    sockets: int
    nameless: int
    arenas: int
    workers: int

    def full(self, what: str, most: int) -> str:
        """The message of a refusal."""
        return (
            f"the broker has as many {what} as its limit of {self.limit} open files allows ({most}): close some, "
            "or start it with a higher limit (`ulimit -n`, LimitNOFILE=)"
        )


def raise_limit() -> int:
    """Raises the soft limit as far as it goes; gives what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return min(soft, MOST) if soft != resource.RLIM_INFINITY else MOST


def in_use() -> int:
    """How many are open now."""
    try:
        return len(os.listdir("/proc/self/fd")) - 1
    except OSError:
        return OWN


def divide(limit: int, used: int, loaded: int, standby: int, *, metrics: bool, local: bool) -> Shares:
    """Divides `limit` descriptors, of which `used` are open already.

    Args:
        loaded: most workers that have a model.
        local: clients share memory: each needs a lifeline and an arena beside its connection.
    """
    workers = min(PER_WORKER * (loaded + standby + 2), limit // 4)
    rest = max(limit - used - OWN - RESERVE - workers - METRICS * metrics, 4 * LEAST)
    nameless = min(NAMELESS, max(LEAST, rest // 8))
    rest -= nameless
    if local:
        front = max(rest * 2 // 5, LEAST)
        sessions = max(rest // 4, LEAST // 2)
        arenas = max(rest - front - sessions, sessions)
    else:
        front = sessions = max(rest, LEAST)
        arenas = 0
    return Shares(limit, front, sessions, max(front // 4, LEAST), nameless, arenas, workers)
