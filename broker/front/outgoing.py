"""Answers on their way to clients: how many bytes libzmq holds of them, and what waits here for a client to read.

libzmq counts messages, not bytes, and does not tell what it could not send yet. But the kernel says whether the other
side has read all that was written: as long as it has not, libzmq may hold more. So what is given to libzmq is added up
for each connection, and begins anew whenever the kernel has nothing left. A connection that has much unread gets no
more until it reads; its answers wait here, within the budget of inline bytes, and past that it gets an error in their
place. A client that reads nothing for long is cut off.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import zmq

from broker.front.connection import Connection
from broker.front.inline import InlineBytes
from zoo.errors import QueueFull
from zoo.wire import protocol

LOOK_BYTES = 64 << 10  # given to libzmq, before it is asked whether they have been read
WINDOW_BYTES = 4 << 20  # unread, before others wait here
MOST_WAITING = 1 << 14  # answers of one connection
STALLED_S = 30.0
STALLED_FULL_S = 5.0  # the same once its answers keep others' from being sent
TICK_S = 0.01


@dataclass(slots=True, eq=False)
class _Unread:
    """Answers of one connection that wait for it to read: their parts, and how many bytes are in the account."""

    peer: Connection
    since: float
    parts: deque[tuple[tuple[Any, ...], int]] = field(default_factory=deque)
    size: int = 0


class Outgoing:
    """See the module's docstring.

    Args:
        send: gives a message to libzmq; False when the connection is gone. Raises zmq.Again when it takes no more.
        cut: ends a connection.
    """

    def __init__(
        self, account: InlineBytes, send: Callable[[tuple[Any, ...]], bool], cut: Callable[[Connection], object]
    ) -> None:
        self._account = account
        self._send = send
        self._cut = cut
        self._waiting: dict[bytes, _Unread] = {}
        self._loaded: dict[bytes, Connection] = {}  # those with much unread in libzmq
        self._full_at = 0.0

    @property
    def is_empty(self) -> bool:
        return not self._waiting

    def put(self, peer: Connection, parts: tuple[Any, ...], size: int) -> bool:
        """An answer of so many bytes, which `peer.out` does not count yet, for a connection that may have much unread.

        Returns:
            False: it will not be delivered.
        """
        if peer.ended:
            return False
        if peer.identity not in self._waiting and self._may_send(peer, size):
            with contextlib.suppress(zmq.Again):
                sent = self._send(parts)
                peer.out += size
                return sent
        return self._keep(peer, parts, size)

    def _may_send(self, peer: Connection, size: int) -> bool:
        if peer.out and not peer.unsent():
            peer.out = 0
            self._loaded.pop(peer.identity, None)
        if peer.out + size <= LOOK_BYTES:
            return True
        in_zmq = 0
        for identity, other in list(self._loaded.items()):
            if other.ended or not other.unsent():
                other.out = 0
                del self._loaded[identity]
            in_zmq += other.out
        if (peer.out and peer.out + size > WINDOW_BYTES) or not self._account.fits(in_zmq + size):
            return False
        self._loaded[peer.identity] = peer
        return True

    def _keep(self, peer: Connection, parts: tuple[Any, ...], size: int) -> bool:
        now = time.monotonic()
        waiting = self._waiting.setdefault(peer.identity, _Unread(peer, now))
        full = not self._account.fits(size) or waiting.size + size > self._account.most // 2
        if len(waiting.parts) >= MOST_WAITING or (full and len(parts) == 2):
            self._give_up(waiting)
            return False
        if full:
            self._full_at = now
            parts, size = (parts[0], _unread_error(parts[1], size)), 0
        waiting.parts.append((parts, size))
        waiting.size += size
        self._account.held += size
        return not full

    def flush(self, now: float) -> None:
        """Called every `TICK_S` while something waits."""
        for waiting in list(self._waiting.values()):
            if waiting.peer.ended:
                self._drop(waiting)
                continue
            while waiting.parts:
                parts, size = waiting.parts[0]
                if not self._may_send(waiting.peer, size):
                    break
                try:
                    if not self._send(parts):
                        self._drop(waiting)
                        break
                except zmq.Again:
                    break
                waiting.parts.popleft()
                waiting.peer.out += size
                waiting.size -= size
                self._account.held -= size
                waiting.since = now
            if not waiting.parts:
                self._waiting.pop(waiting.peer.identity, None)
            elif now > waiting.since + (STALLED_FULL_S if now < self._full_at + STALLED_FULL_S else STALLED_S):
                self._give_up(waiting)

    def _give_up(self, waiting: _Unread) -> None:
        self._cut(waiting.peer)
        waiting.peer.ended = True
        self._drop(waiting)

    def _drop(self, waiting: _Unread) -> None:
        self._account.held -= waiting.size
        waiting.size = 0
        waiting.parts.clear()
        self._waiting.pop(waiting.peer.identity, None)
        self._loaded.pop(waiting.peer.identity, None)


def _unread_error(header: bytes, size: int) -> bytes:
    """In place of a result that there is no room for."""
    message = protocol.unpack_from_broker(header)
    text = (
        f"the answer has {size / (1 << 20):.1f} MB, and this client has not read those before it; the broker keeps no "
        "more of them ([broker] inline_budget_mb): read answers, share memory (an ipc:// endpoint), or raise it"
    )
    return protocol.pack(protocol.Error(getattr(message, "rid", 0), QueueFull.code, text, True, 1.0))
