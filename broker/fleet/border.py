"""What workers say, as far as the broker takes it. A worker that says what none of ours would say is ended.

An adapter runs what a user has put there, and may write on any descriptor that it finds. What comes from a worker is
therefore looked at like what comes from a client: here, before anything is made of it.
"""

from __future__ import annotations

import os
import socket

from broker.scheduler.events import Finished, MemoryShort
from broker.scheduler.state.peaks import known_mb
from zoo.errors import ProtocolMismatch
from zoo.wire import protocol

MOST_BATCH = 256  # requests at once: with all their parts they fit into one message
MOST_CODE = 64  # characters


def outcomes(done: protocol.Done, bodies: list[bytes]) -> list[Finished]:
    """What became of each request of a batch.

    Raises:
        ProtocolMismatch: there are more results than bodies, or fewer.
    """
    left = iter(bodies)
    try:
        made = [
            Finished(o.id, None, (o.code[:MOST_CODE], text(o.message)), shortage(o.short))
            if o.code
            else Finished(o.id, (o.offsets, next(left)))
            for o in done.outcomes
        ]
    except StopIteration:
        raise ProtocolMismatch("fewer results than it said") from None
    if next(left, None) is not None:
        raise ProtocolMismatch("more results than it said")
    return made


def shortage(said: protocol.Shortage | None) -> MemoryShort | None:
    """What no device could hold is not believed."""
    return None if said is None else MemoryShort(known_mb(said.used_mb), known_mb(said.asked_mb))


def text(said: str) -> str:
    """As long as an answer may be; it is kept in the story."""
    return said[: protocol.MAX_TEXT]


def batch(said: int) -> int:
    """How many requests an adapter may be given at once."""
    return min(max(said, 1), MOST_BATCH)


def stream(fd: int) -> socket.socket:
    """The broker's end of a channel; takes over the descriptor.

    Raises:
        ConnectionError: it is no connected Unix stream socket; it is closed then.
    """
    try:
        sock = socket.socket(fileno=fd)
    except OSError as e:
        os.close(fd)
        raise ConnectionError(f"it offered a channel that is no socket: {e.strerror}") from None
    try:
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
            raise ConnectionError("it offered a channel of another kind")
        sock.getpeername()
        sock.setblocking(False)
    except OSError as e:
        sock.close()
        raise ConnectionError(f"it offered a channel that is none: {e}") from None
    return sock
