"""What an exchange decides, in every order of events, against a broker of a few lines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from zoo.client.exchange import Exchange, Waiter
from zoo.errors import BrokerUnreachable, ProtocolMismatch, ZooError
from zoo.wire import protocol

T = TypeVar("T")
OVER = [
    BrokerUnreachable("the broker went away"),
    BrokerUnreachable("this client is closed", retryable=False),
    BrokerUnreachable("a client does not survive a fork", retryable=False),
]


class Slot:
    """A frame's memory."""

    def __init__(self) -> None:
        self.drops = 0

    def drop(self) -> None:
        self.drops += 1


class Sent:
    """A request as the broker has it."""

    def __init__(self, waiter: Waiter, rid: int, slots: list[Slot], leases: bool) -> None:
        self.waiter = waiter
        self.rid = rid
        self.slots = slots
        self.leases = leases
        self.answered = False
        self.reading = False  # a worker reads its slots


PICK = st.integers(0, 100)


def _pick(found: Iterable[T], number: int) -> T | None:
    those = [*found]
    return those[number % len(those)] if those else None


class Session(RuleBasedStateMachine):
    """Callers, an exchange and a broker. What the broker says reaches the exchange late, or with a torn socket never.

    The two ways, socket and lifeline, keep their own order and not each other's.
    """

    @initialize(shares_memory=st.booleans())
    def begin(self, shares_memory: bool) -> None:
        self.exchange = Exchange(shares_memory)
        self.shares_memory = shares_memory
        self.over: ZooError | None = None
        self.sent: dict[int, Sent] = {}
        self.waiting: dict[Waiter, set[int]] = {}  # callers, and which of their requests have no outcome yet
        self.socket: list[protocol.FromBroker] = []  # on its way to the client
        self.line: list[int] = []  # of `LifelineSettled`
        self.granted: set[int] = set()  # leases of the broker's
        self.kept: set[int] = set()  # leases of callers'
        self.delivered: set[int] = set()  # requests whose answers the client has read

    # ------------------------------------------------------------ callers

    @rule(slots=st.integers(0, 2), leases=st.booleans(), again=st.booleans())
    def ask(self, slots: int, leases: bool, again: bool) -> None:
        waiter = next(reversed(self.waiting)) if again and self.waiting else Waiter()
        needed = [Slot() for _ in range(0 if leases else slots)]
        rid = self.exchange.ask(waiter, str(len(self.sent)), [*needed], self.kept.add if leases else None)
        assert rid not in self.sent
        request = self.sent[rid] = Sent(waiter, rid, needed, leases)
        if self.over is None:
            self.waiting.setdefault(waiter, set()).add(rid)
            request.reading = self.shares_memory
        else:
            assert waiter.error is self.over
            request.answered = True

    @precondition(lambda self: self.sent)
    @rule()
    def unsent(self) -> None:
        """The sending of the latest request failed, before the broker saw anything of it."""
        request = self.sent[max(self.sent)]
        if not request.answered:
            request.answered, request.reading = True, False
            self.exchange.unsent(request.rid)
            for left in self.waiting.values():
                left.discard(request.rid)

    @precondition(lambda self: self.waiting)
    @rule(pick=PICK, torn=st.booleans())
    def withdraw(self, pick: int, torn: bool) -> None:
        """The caller gives up: it is out of time, was cancelled, or a signal handler raised."""
        waiter = _pick(self.waiting, pick) or Waiter()
        given_up = self.waiting.pop(waiter, set())
        if torn:  # with the socket goes what was on its way in it; the calls of others have other sockets
            self.socket = [message for message in self.socket if getattr(message, "rid", 0) not in given_up]
        fence, messages = self.exchange.withdraw(waiter)
        assert bool(fence) == bool(given_up and self.over is None)
        assert self.exchange.awaits(fence) == bool(fence)
        self._hear(messages)
        assert self.exchange.withdraw(waiter) == (0, []), "again is harmless"

    # ------------------------------------------------------------ the broker

    def _hear(self, messages: Sequence[protocol.Message]) -> None:
        for message in messages:
            match message:
                case protocol.Cancel(rid=rid, lost=True):
                    assert self.sent[rid].answered, "lost is said of what was answered, or never sent"
                    assert rid not in self.delivered, "and of what was not read"
                    self.granted.discard(-rid)
                    self.sent[rid].reading = False
                case protocol.Cancel(rid=rid):
                    if not self.sent[rid].answered:
                        self._answer(self.sent[rid], protocol.Error(rid, "cancelled", "", held=self.sent[rid].reading))
                case protocol.Release(rid=0, lease=number):
                    assert number in self.granted, "a lease is given back once"
                    self.granted.discard(number)
                case protocol.Release(rid=fence):
                    self.socket.append(protocol.Value(fence))

    def _answer(self, request: Sent, message: protocol.FromBroker) -> None:
        request.answered = True
        request.reading = request.reading and isinstance(message, protocol.Error) and message.held
        self.socket.append(message)

    @precondition(lambda self: not all(one.answered for one in self.sent.values()))
    @rule(pick=PICK, held=st.booleans(), fails=st.booleans())
    def answer(self, pick: int, held: bool, fails: bool) -> None:
        request = _pick([one for one in self.sent.values() if not one.answered], pick)
        if request is None:
            return
        rid = request.rid
        if fails:
            self._answer(
                request,
                protocol.Error(rid, "inference_failed", "", held=held and (request.reading or not self.shares_memory)),
            )
        elif request.leases:
            self.granted.add(-rid)
            self._answer(request, protocol.Value(rid, -rid))
        else:
            self._answer(request, protocol.Result(rid))

    @precondition(lambda self: any(one.answered and one.reading for one in self.sent.values()))
    @rule(pick=PICK)
    def let_go(self, pick: int) -> None:
        """A worker does not read on."""
        request = _pick([one for one in self.sent.values() if one.answered and one.reading], pick)
        if request is not None:
            request.reading = False
            self.line.append(request.rid)

    # ------------------------------------------------------------ what reaches the client

    @precondition(lambda self: self.socket)
    @rule()
    def receive(self) -> None:
        self._deliver(self.socket.pop(0))

    @precondition(lambda self: self.socket)
    @rule()
    def receive_twice(self) -> None:
        """A signal handler raised after the message was taken in, and before that was noted."""
        message = self.socket.pop(0)
        self._deliver(message)
        waiter, replies = self.exchange.answer(message, "again")
        assert waiter is None
        self._hear(replies)

    def _deliver(self, message: protocol.FromBroker) -> None:
        rid = getattr(message, "rid", 0)
        request = self.sent.get(rid)
        self.delivered.add(rid)
        waiter, replies = self.exchange.answer(message, message)
        self._hear(replies)
        if request is not None and rid in self.waiting.get(request.waiter, ()):
            assert waiter is request.waiter
            assert waiter.came.pop() == (str(list(self.sent).index(rid)), message)
            self.waiting[request.waiter].discard(rid)
        else:
            assert waiter is None

    @precondition(lambda self: self.line)
    @rule()
    def look(self) -> None:
        """The client reads its lifeline."""
        while self.line:
            self.exchange.settled(self.line.pop(0))

    @rule()
    def confused(self) -> None:
        with pytest.raises(ProtocolMismatch):
            self.exchange.answer(protocol.Error(0, "protocol_mismatch", ""), None)
        assert self.exchange.answer(protocol.Welcome(None, 0, ""), None) == (None, ())

    @precondition(lambda self: len(self.sent) > 5)
    @rule(why=st.sampled_from(OVER), late=st.integers(0, 9))
    def end(self, why: ZooError, late: int) -> None:
        """The lifeline ends, the client is closed, or this is a fork's child. A broker's new life has another."""
        if late:
            return
        self.exchange.end(why)
        self.over = self.over or why
        for waiter, left in self.waiting.items():
            assert (waiter.error is self.over) == bool(left)
        self.waiting.clear()
        self.socket.clear()
        self.line.clear()
        self.granted.clear()
        self.kept.clear()
        for request in self.sent.values():
            request.answered, request.reading = True, False
        assert self.exchange.idle

    # ------------------------------------------------------------ what always holds

    @invariant()
    def each_slot_is_dropped_once_and_not_while_it_is_read(self) -> None:
        for request in getattr(self, "sent", {}).values():
            for slot in request.slots:
                assert slot.drops <= 1
                if request.reading:
                    assert slot.drops == 0

    def teardown(self) -> None:
        """Everything that is on its way arrives: then nothing is left, unless a caller still waits."""
        if not hasattr(self, "sent"):
            return
        while self.socket:
            self._deliver(self.socket.pop(0))
        for request in self.sent.values():
            if request.answered and request.reading:
                request.reading = False
                self.exchange.settled(request.rid)
        self.look()
        waiting = set().union(*self.waiting.values()) if self.waiting else set()
        for request in self.sent.values():
            assert all(slot.drops == (request.rid not in waiting) for slot in request.slots), request.rid
        assert self.exchange.idle == (not waiting)
        assert self.granted <= self.kept, "a lease that no caller has is given back"


Session.TestCase.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)
TestSession = Session.TestCase
