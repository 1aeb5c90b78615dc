"""Where a client's frames go: its arena, made when it is needed first, and known to the broker of the day.

Both clients use it; the async one calls `get` in a thread.
"""

from __future__ import annotations

import threading
import time

from zoo.client import frame_arena, frames
from zoo.client.link import Link, client_closed
from zoo.errors import AccessDenied, BrokerUnreachable, InvalidInput, OutOfMemory
from zoo.system.locks import is_mine, under
from zoo.wire import arena


class Depot:
    """Safe to share among threads.

    Attributes:
        store: where frames are placed; None before the first, and after `close`.
    """

    def __init__(self, arena_bytes: int) -> None:
        self.store: frames.Store | None = None
        self._bytes = arena_bytes
        self._making: arena.Reservation | None = None
        self._lock = threading.RLock()
        self._known_to = b""  # the session that has the arena
        self._closed = False

    def ready(self, link: Link) -> frames.Store | None:
        """The store, if this link's broker knows it."""
        return self.store if link.key == self._known_to else None

    def get(self, link: Link, deadline: float) -> frames.Store:
        """The store, made and made known if need be.

        Raises:
            InvalidInput: the arena is larger than the broker takes. AccessDenied: it was refused. OutOfMemory: it
            cannot be made. BrokerUnreachable: the client is closed, the broker gone, or the deadline has passed.
        """
        if is_mine(self._lock):
            raise BrokerUnreachable("called from within a call of this client (a signal handler?); try again outside")
        return under(self._lock, deadline - time.monotonic(), lambda: self._get(link, deadline), _busy)

    def _get(self, link: Link, deadline: float) -> frames.Store:
        store = self.store
        if store is None or (store.shared is None) == link.shares_memory:
            store = self.store = frames.Store(self._arena(link, deadline) if link.shares_memory else None)
        if store.shared is not None and link.key != self._known_to:
            try:
                link.register(store.shared, deadline)
            except AccessDenied:
                self.store = None
                raise
        self._known_to = link.key
        if self._closed:
            self.close()
            raise client_closed()
        return store

    def _arena(self, link: Link, deadline: float) -> frame_arena.FrameArena:
        if self._bytes > link.arena_limit:
            raise InvalidInput(
                f"arena_mb: {self._bytes >> 20} MB, and this broker takes at most {link.arena_limit >> 20} MB; make "
                "the client with less, or raise arena_limit_mb"
            )
        try:
            making = self._making = self._making or arena.Reservation(self._bytes)
            if not making.go_on(deadline):
                raise BrokerUnreachable(
                    f"the {self._bytes >> 20} MB for this client's frames are not reserved yet; the next call goes on"
                )
            self._making = None
            return frame_arena.FrameArena(making)
        except (OSError, MemoryError, ValueError, OverflowError) as e:
            self._making = None
            raise OutOfMemory(
                f"the {self._bytes >> 20} MB for this client's frames cannot be had: {e}; make the client with a "
                "smaller arena_mb, or raise the limit of descriptors (ulimit -n) or memory"
            ) from None

    def close(self) -> None:
        """Gives the memory back, as soon as no frame lies in it; never waits. A `get` under way does it at its end."""
        self._closed = True
        store, self.store = self.store, None
        self._known_to = b""
        if store is not None and store.shared is not None:
            store.shared.close()

    def forget(self) -> None:
        """In the child of a fork, where another thread of the parent's may seem to hold the lock."""
        self._lock = threading.RLock()
        self.close()


def _busy() -> frames.Store:
    raise BrokerUnreachable("another thread of this client is still making its arena; try again")
