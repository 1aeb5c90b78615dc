"""The lifelines of clients and workers: accepted, attached to one or the other, read, and lost.

A lifeline is a connection to the handoff socket (`broker/front/handoff.py`). Its end-of-file means that its process is
gone, at once.
"""

from __future__ import annotations

from functools import partial

from broker.fleet.fleet import Fleet
from broker.front.clients import Clients
from broker.front.handoff import Handoff, LifelineEnd, PeerGone, Takes
from broker.loop import Loop
from zoo.wire import protocol


class Lifelines:
    """`crowded`: no more are accepted until some have said whose they are, or have been closed."""

    def __init__(self, loop: Loop, handoff: Handoff, clients: Clients, fleet: Fleet) -> None:
        self._loop = loop
        self._handoff = handoff
        self._clients = clients
        self._fleet = fleet
        self._takes: Takes = {protocol.LifelineAttach: self._attach}
        self._attaches = {"client": clients.attach, "worker": fleet.attach}
        self.crowded = False
        loop.watch(handoff.fileno(), self._accept)

    def _accept(self) -> None:
        for line in self._handoff.accept():
            line.takes = self._takes
            self._loop.watch(line.fd, partial(self._read, line), partial(self._lost, line, gone=False))
        if self._handoff.is_crowded:  # until there is room, the others wait in the backlog
            self._loop.forget(self._handoff.fileno())
            self.crowded = True

    def _accept_again(self) -> None:
        if not self._handoff.is_crowded and not self._loop.watches(self._handoff.fileno()):
            self.crowded = False
            self._loop.watch(self._handoff.fileno(), self._accept)

    def listen_again(self) -> None:
        """The socket's file was removed."""
        self._loop.forget(self._handoff.fileno())
        self._handoff.listen_again()
        self._accept_again()

    def _read(self, line: LifelineEnd) -> None:
        try:
            self._handoff.hear(line)
        except ConnectionError as e:
            self._lost(line, gone=isinstance(e, PeerGone))

    def _attach(self, line: LifelineEnd, message: protocol.LifelineAttach, _: int | None) -> None:
        attach = self._attaches.get(message.role)
        if attach is None or not attach(line, message.key):
            raise ConnectionError("refused")
        self._accept_again()

    def _lost(self, line: LifelineEnd, gone: bool) -> None:
        """`gone`: the process at the other end is."""
        if line.role == "client":
            self._clients.lost_line(line, gone)
        else:
            self._fleet.lost_line(line)

    def end_nameless(self, now: float) -> None:
        """Ends connections that should have said by now whose lifeline they are."""
        for line in self._handoff.nameless(now):
            self._handoff.close(line)
        self._accept_again()

    def end_cut_off(self) -> None:
        """Ends the sessions of clients that do not read what they are sent."""
        for line in self._handoff.cut_off():
            self._clients.lost_line(line, gone=False)
