"""The arena of a client's own frames, whose slots cannot be lost.

A slot belongs to an object (its holder). It goes back when the holder says so, or when the holder is garbage, or when
a signal handler raised just before the holder learnt of it: what is in use is what living holders hold, and nothing
else. So nothing here has to be undone when an exception comes from anywhere.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections import deque
from typing import Any, Protocol

from zoo.system.locks import is_mine
from zoo.wire import arena


class Holder(Protocol):
    """`home`: empty, or one (offset, ticket) once it has a slot."""

    home: list[tuple[int, int]]


class FrameArena(arena.OwnedArena):
    """See the module's docstring. Safe to share among threads.

    Attributes:
        forked: this is a child's copy of its parent's arena, and nothing here is to be touched.
    """

    def __init__(self, made: arena.Reservation) -> None:
        super().__init__(made.size, made=made)
        self.forked = False
        self._holders: dict[int, tuple[weakref.ref[Any], int]] = {}  # by offset
        self._returned: deque[tuple[int, int]] = deque()
        self._tickets = itertools.count(1)
        self._mutex = threading.RLock()
        self._unsound = False  # something was interrupted in the middle
        self._bell = threading.Lock()  # released when a slot comes back
        self._bell.acquire()
        _arenas.add(self)

    def is_interrupted(self) -> bool:
        """A signal handler runs in the middle of this thread's own work here: now is no room for it."""
        return is_mine(self._mutex)

    def place(self, holder: Holder, nbytes: int) -> bool:
        """Gives the holder a slot of at least `nbytes`; False when there is no room now."""
        if self.is_interrupted():
            return False
        with self._mutex:
            self._tidy()
            self._unsound = True
            offset = self._slots.take(nbytes)
            if offset is None:
                self._sweep()
                offset = self._slots.take(nbytes)
            if offset is not None:
                ticket = next(self._tickets)
                self._holders[offset] = weakref.ref(holder), ticket
                holder.home.append((offset, ticket))
            self._unsound = False
            return offset is not None

    def return_from(self, holder: Holder) -> None:
        """Takes the holder's slot back, if it has one. For destructors too: never waits, takes no lock."""
        if self.forked:
            return
        try:
            self._returned.append(holder.home.pop())
        except IndexError:
            return
        try:
            self._bell.release()
        except RuntimeError:
            pass  # it has been rung already

    def wait_for_slot(self, timeout: float) -> None:
        """Returns when some slot was given back, or after `timeout` seconds."""
        self._bell.acquire(timeout=max(0.0, timeout))

    def _tidy(self) -> None:
        if self._unsound:
            self._rebuild()
        while self._returned:
            offset, ticket = self._returned.popleft()
            if (found := self._holders.get(offset)) is not None and found[1] == ticket:
                del self._holders[offset]
                self._slots.give_back(offset)

    def _living(self) -> dict[int, tuple[weakref.ref[Any], int]]:
        living = {}
        for offset, (ref, ticket) in list(self._holders.items()):
            holder = ref()
            if holder is not None and (offset, ticket) in holder.home:
                living[offset] = ref, ticket
        return living

    def _sweep(self) -> None:
        """Takes back what no living holder holds."""
        self._holders = self._living()
        for offset in self._slots.offsets():
            if offset not in self._holders:
                self._slots.give_back(offset)

    def _rebuild(self) -> None:
        self._holders = self._living()
        self._slots = self._slots.rebuilt(self._holders)
        self._unsound = False

    @property
    def slots(self) -> int:
        with self._mutex:
            self._tidy()
            self._sweep()
            return len(self._slots.offsets())


_arenas: weakref.WeakSet[FrameArena] = weakref.WeakSet()


def _in_child() -> None:
    for one in list(_arenas):
        one.forked = True
        one._mutex = threading.RLock()


os.register_at_fork(after_in_child=_in_child)
