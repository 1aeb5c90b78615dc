"""What of a session is pending, withdrawn, held or settled: decided here, without I/O, threads or a clock.

A session may have many sockets and many callers. Every request has a number (`rid`); from `ask` on it belongs to a
`Waiter`, until one of three things ends that:

    answer      its outcome goes to the waiter; its slots are free, or held if the answer says that a worker reads on
    withdraw    the caller has given up: its slots are held until the late answer or `settled` frees them, and a lease
                that the late answer brings is released
    end         of the lifeline, of the client, or by a fork: all waiters get the error, all slots are free

An answer may be lost, with a socket in which a signal handler raised. So a withdrawal ends with a question, its fence,
which the broker answers after everything that it had to say before. A withdrawn request without an answer by then has
none, or its answer is lost; the broker is told so (`Cancel.lost`) and takes back what it lent with it.

`LifelineSettled` comes by another way than the answer that says "held", and may be faster. Threads share an exchange.
A signal handler may raise between any two steps: what a request holds is freed at most once, and is freed by the
garbage collector where its freeing was interrupted. So each step leaves a request where a second attempt finds it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from zoo.errors import ZooError
from zoo.wire import protocol


class Waiter(msgspec.Struct, eq=False):
    """A caller that waits for the answers to its requests.

    Attributes:
        came: answers, as (name, outcome); an outcome may be an error.
        error: no more answers come, for this reason.
    """

    came: list[tuple[str, Any]] = []
    error: ZooError | None = None


class Pending(msgspec.Struct, eq=False):
    """A request without an answer, or a held one.

    Attributes:
        waiter: the caller. name: under which it wants the answer.
        slots: frames' memory; `drop` is called for each when no worker reads it any more.
        granted: called with the number of the lease that it asks for; None when it asks for none.
    """

    waiter: Waiter
    name: str
    slots: list[Any]
    granted: Callable[[int], None] | None

    def free(self) -> None:
        """Frees its slots, each once, however often and in whatever thread this is called."""
        while self.slots:
            try:
                self.slots.pop().drop()
            except IndexError:
                return  # another thread was faster


class Exchange:
    """The requests of one session with one life of a broker.

    Args:
        shares_memory: whether workers read frames where the client has placed them. If not, nothing is ever held.
    """

    def __init__(self, shares_memory: bool) -> None:
        self._shares_memory = shares_memory
        self._numbers = itertools.count(1)
        self._over: ZooError | None = None
        self._pending: dict[int, Pending] = {}  # by rid
        self._held: dict[int, Pending] = {}  # no caller waits for these; a worker may read their slots
        self._settled: set[int] = set()  # told by the lifeline before the answer that says "held" was read
        self._unwanted: set[int] = set()  # withdrawn requests for a lease
        self._fences: dict[int, set[int]] = {}  # by the rid of a fence, the withdrawn requests without an answer yet

    @property
    def idle(self) -> bool:
        """No request is pending, held or withdrawn."""
        return not (self._pending or self._held or self._settled or self._unwanted or self._fences)

    def ask(self, waiter: Waiter, name: str, slots: list[Any], granted: Callable[[int], None] | None = None) -> int:
        """The number of a new request, which the caller sends next."""
        rid = next(self._numbers)
        self._pending[rid] = Pending(waiter, name, slots, granted)
        if self._over is not None:
            self.end(self._over)
        return rid

    def unsent(self, rid: int) -> None:
        """The request could not be sent."""
        pending = self._pending.pop(rid, None)
        if pending is not None:
            pending.free()

    def answer(self, message: protocol.FromBroker, outcome: Any) -> tuple[Waiter | None, Sequence[protocol.Message]]:
        """Takes in an answer.

        Args:
            outcome: what the caller gets for it.

        Returns:
            The waiter that has something new, and messages to be sent on the socket that the answer came from.

        Raises:
            ZooError: the message is about no request at all; the broker could not read something that was sent.
        """
        if isinstance(message, protocol.Welcome):
            return None, ()
        rid = message.rid
        held = type(message) is protocol.Error and message.held
        pending = self._pending.get(rid)
        if pending is None:
            return None, self._late(message, held)
        if pending.granted is not None and isinstance(message, protocol.Value):
            pending.granted(message.value)  # the caller's from now on, though it may have gone
        if held:
            self._hold(rid, pending)
        pending.waiter.came.append((pending.name, outcome))
        self._pending.pop(rid, None)
        if not held:
            pending.free()
        return pending.waiter, ()

    def _late(self, message: protocol.Result | protocol.Error | protocol.Value, held: bool) -> list[protocol.Message]:
        """The answer to a withdrawn request, or to a fence."""
        rid = message.rid
        if isinstance(message, protocol.Error) and not rid:
            raise message.exception()
        for missing in list(self._fences.values()):
            missing.discard(rid)
        replies: list[protocol.Message] = []
        if rid in self._unwanted:
            self._unwanted.discard(rid)
            if isinstance(message, protocol.Value):
                replies.append(protocol.Release(0, message.value))
        if not held:  # else `settled` follows
            self._free(rid)
        for lost in self._fences.pop(rid, ()):
            self._unwanted.discard(lost)
            self._free(lost)
            replies.append(protocol.Cancel(lost, lost=True))
        return replies

    def withdraw(self, waiter: Waiter) -> tuple[int, list[protocol.Message]]:
        """Gives up on all that the waiter has asked.

        Returns:
            The number of the fence (0: none is needed), and what has to be sent, in this order and on one socket.
        """
        given_up = {rid: pending for rid, pending in list(self._pending.items()) if pending.waiter is waiter}
        for rid, pending in given_up.items():
            if pending.granted is not None:
                self._unwanted.add(rid)
            self._hold(rid, pending)
            self._pending.pop(rid, None)
        if not given_up or self._over is not None:
            self._unwanted.difference_update(given_up)
            return 0, []
        fence = next(self._numbers)
        self._fences[fence] = set(given_up)
        return fence, [*map(protocol.Cancel, given_up), protocol.Release(fence, 0)]

    def awaits(self, fence: int) -> bool:
        """The fence has not been answered yet."""
        return fence in self._fences

    def settled(self, rid: int) -> None:
        """The lifeline says that no worker reads the slots of that request any more."""
        if rid not in self._pending and rid not in self._held:  # in this order: see `answer`
            return
        self._settled.add(rid)  # in this order: see `_hold`
        if rid in self._held:
            self._free(rid)

    def end(self, why: ZooError) -> None:
        """The session is over: no answer comes any more, and no slot is read."""
        self._over = self._over or why
        for rid, pending in list(self._pending.items()):
            pending.waiter.error = pending.waiter.error or self._over
            self._hold(rid, pending)  # which frees them
            self._pending.pop(rid, None)
        for rid in list(self._held):
            self._free(rid)
        self._settled.clear()
        self._unwanted.clear()
        self._fences.clear()

    def _hold(self, rid: int, pending: Pending) -> None:
        """Keeps the slots until `settled`, or not at all where that was faster."""
        self._held[rid] = pending
        if rid in self._settled or self._over is not None or not self._shares_memory:
            self._free(rid)

    def _free(self, rid: int) -> None:
        pending = self._held.pop(rid, None)
        self._settled.discard(rid)
        if pending is not None:
            pending.free()
