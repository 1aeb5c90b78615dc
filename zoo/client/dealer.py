"""One DEALER socket of a session: sends requests, and hands what comes to the session's exchange.

A message stays in the mailbox until it was dealt with, so that it survives a signal handler that raises meanwhile. A
handler that raises inside pyzmq leaves the socket undefined (what libzmq took or gave by then is not known): it is
torn, and has to be replaced (`mend`) or closed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import zmq

from zoo import results
from zoo.client import session
from zoo.client.exchange import Waiter
from zoo.client.frames import RequestBody
from zoo.client.link import Link, Loan
from zoo.errors import BrokerUnreachable, OutOfMemory, ProtocolMismatch, ZooError
from zoo.wire import multipart, payload, protocol


class Dealer:
    """Used by one thread at a time.

    Args:
        lock: held while a call uses it, so that no other thread closes it meanwhile.

    Attributes:
        link: the session that it is a socket of.
    """

    def __init__(self, link: Link, sock: zmq.Socket[bytes], lock: Any) -> None:
        self.link = link
        self.lock = lock
        self._loan: Loan | None = None
        self._decode = payload.result_decoder(self._look_up)
        self._use(sock)

    def _use(self, sock: zmq.Socket[bytes]) -> None:
        self.sock = sock
        self._mailbox = multipart.Mailbox(sock)

    # ------------------------------------------------------------ sending

    def infer(self, waiter: Waiter, model: str, deadline: float, request: RequestBody, priority: int) -> None:
        """Asks for one inference.

        Raises:
            InvalidInput: it is too large. BrokerUnreachable: it cannot be sent.
        """
        request.check(self.link.inline_limit)
        rid = self.link.exchange.ask(waiter, model, request.keep())
        header = protocol.pack(protocol.Infer(rid, model, remaining_ms(deadline), priority, request.arenas))
        self._send_asked(rid, (header, request.body, *request.buffers))

    def ask(
        self, waiter: Waiter, name: str, deadline: float, message: Any, granted: Callable[[Link, int], None] | None
    ) -> None:
        """Asks anything else; sets the message's `rid` and `timeout_ms`. Raises BrokerUnreachable."""
        kept = None if granted is None else partial(granted, self.link)
        message.rid = rid = self.link.exchange.ask(waiter, name, [], kept)
        if hasattr(message, "timeout_ms"):
            message.timeout_ms = remaining_ms(deadline)
        self._send_asked(rid, (protocol.pack(message),))

    def _send_asked(self, rid: int, parts: tuple[Any, ...]) -> None:
        try:
            self._send(parts)
        except BrokerUnreachable:
            self.link.exchange.unsent(rid)
            raise

    def say(self, *messages: protocol.Message) -> None:
        """Sends messages that no caller waits for. Raises BrokerUnreachable."""
        for message in messages:
            self._send((protocol.pack(message),))

    def _send(self, parts: tuple[Any, ...]) -> None:
        """Sends one message, or nothing of it."""
        try:
            self._mailbox.send(parts)
        except zmq.Again:
            raise BrokerUnreachable("the broker does not take messages; too many are under way") from None
        except zmq.ZMQError as e:
            raise BrokerUnreachable(f"the connection cannot be used: {e}") from None

    # ------------------------------------------------------------ receiving

    def take(self, flags: int = 0) -> Waiter | None:
        """Takes in one message; gives the waiter that has something new, if there is one.

        Raises:
            zmq.Again: there is none (`NOBLOCK`), or none came within `session.POLL_MS`.
            zmq.ZMQError: the socket is closed.
            ZooError: the two sides do not understand each other, or a reply cannot be sent.
        """
        parts = self._mailbox.peek(flags)
        try:
            waiter, replies = self._deal_with(parts)
            if replies:
                self.say(*replies)
        except ZooError:
            self._mailbox.done()
            raise
        self._mailbox.done()
        return waiter

    def _deal_with(self, parts: list[bytes]) -> tuple[Waiter | None, Sequence[protocol.Message]]:
        message = protocol.unpack_from_broker(parts[0])
        outcome: Any = None
        if type(message) is protocol.Result:
            outcome = self._result(message, parts)
        elif type(message) is protocol.Value:
            outcome = message.value
        elif type(message) is protocol.Error:
            outcome = message.exception()
            if message.message == protocol.UNKNOWN_SESSION:
                self.link.is_unknown()
        return self.link.exchange.answer(message, outcome)

    def take_late(self) -> None:
        """Takes in what lies in a socket that no caller waits at."""
        with contextlib.suppress(zmq.ZMQError, ZooError):
            while True:
                self.take(multipart.NOBLOCK)

    def _result(self, message: protocol.Result, parts: list[bytes]) -> Any:
        try:
            if message.arena:
                if self._mailbox.kept is None:
                    self._mailbox.kept = self.link.lend(message.arena)
                self._loan = self._mailbox.kept
            body = self._decode(parts[1] if len(parts) > 1 else b"")
        except ZooError as e:
            return e
        except MemoryError as e:
            return OutOfMemory(f"this process has no memory left for the result ({e})")
        finally:
            self._loan = None
        if not body.many:
            return results.answered(body.results[0], message)
        return [results.answered(one, message) for one in body.results]

    def _look_up(self, offset: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        if self._loan is None:
            raise ProtocolMismatch("a result refers to an arena, and does not say to which")
        return self._loan.view(offset, shape, dtype)

    # ------------------------------------------------------------ its end

    @property
    def torn(self) -> bool:
        """A signal handler raised while something was sent or received."""
        return self._mailbox.torn

    def mend(self) -> None:
        """Another socket in place of one that is torn. What lies unread in that one is lost."""
        replies: Sequence[protocol.Message] = ()
        if (parts := self._mailbox.at_hand()) is not None:
            with contextlib.suppress(ZooError):
                _, replies = self._deal_with(parts)
        session.close_quietly(self.sock)
        self._use(session.open_socket(self.link.key, next(self.link.sockets), self.link.endpoint))
        self.say(*replies)


def remaining_ms(deadline: float) -> int:
    return max(1, int((deadline - time.monotonic()) * 1000))
