"""The clients' ROUTER socket: bound, guarded, written to and read from. Knows connections, no sessions."""

from __future__ import annotations

import socket
from collections import Counter
from typing import Any

import zmq

from broker.descriptors import Shares
from broker.front import door, endpoint, inline, outgoing
from broker.front.access import Access
from zoo.config.schema import ZooConfig
from zoo.errors import ConfigError
from zoo.wire import multipart, protocol

HIGH_WATER = 4096
HANDSHAKE_MS = 10_000  # libzmq hangs up on a connection that has not shaken hands by then


class Front:
    """See the module's docstring.

    Attributes:
        sock: for the poller.
        access: which clients may connect, and do what.
        shares: how many of each kind of connection there may be.
        door: who is connected.
        inline: bytes of frames and answers that lie here.
        outgoing: answers that wait for their client to read.
        refused: (model, code) → answers with an error to what never came to the scheduler; model "": none registered.

    Raises:
        OSError, ConfigError: the endpoint cannot be listened on.
    """

    def __init__(self, config: ZooConfig, place: endpoint.Place, shares: Shares, access: Access) -> None:
        broker = config.broker
        self.shares = shares
        self.refused: Counter[tuple[str, str]] = Counter()
        self.access = access
        self._place, self._endpoint = place, config.endpoint
        self._context = zmq.Context()
        sock: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        self.sock = sock
        sock.setsockopt(zmq.ROUTER_MANDATORY, 1)
        sock.setsockopt(zmq.LINGER, 0)
        sock.setsockopt(zmq.SNDHWM, HIGH_WATER)
        sock.setsockopt(zmq.RCVHWM, HIGH_WATER)
        sock.setsockopt(zmq.MAXMSGSIZE, inline.part_bytes(broker.max_inline_mb))
        sock.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        if config.endpoint.startswith("tcp://"):
            access.guard(self._context, sock)
        self.door = door.Door(self._context, sock, shares.front, shares.sockets, broker.inline_budget_mb << 20)
        self.inline = inline.InlineBytes(broker.max_inline_mb, broker.inline_budget_mb)
        self.outgoing = outgoing.Outgoing(self.inline, self._put, self.door.cut)
        self._spoken = self.door.by_identity
        self.bind()  # the door's monitor has to be there before
        self.door.open()

    def bind(self) -> None:
        """Again on the same socket: a client that came in by a listener before stays connected.

        Raises:
            OSError, ConfigError: it cannot be done.
        """
        if self._place.front:  # a listener of our own making: private from its first moment, and ours to remove
            listener = self._place.listen(self._place.front, socket.SOCK_STREAM)
            self.sock.setsockopt(zmq.USE_FD, listener.detach())
        try:
            self.sock.bind(self._endpoint)
        except zmq.ZMQError as e:
            raise ConfigError(f"cannot listen on {self._endpoint}: {e}") from None
        finally:
            self.sock.setsockopt(zmq.USE_FD, -1)

    def take(self) -> tuple[list[Any], Any]:
        """The parts of one message, the sender's routing id first, and a frame of it that knows its connection."""
        return multipart.take(self.sock)

    def send(self, identity: bytes, message: protocol.Message, *rest: bytes) -> bool:
        """False when it cannot be delivered: the client is gone, or does not read its answers."""
        parts = (identity, protocol.pack(message), *rest)
        peer = self._spoken.get(identity)
        if peer is not None:
            size = len(parts[1])
            for part in rest:
                size += len(part)
            if peer.out + size > outgoing.LOOK_BYTES:
                return self.outgoing.put(peer, parts, size)
            peer.out += size
        try:
            return self._put(parts)
        except zmq.Again:
            return peer is not None and self.outgoing.put(peer, parts, 0)

    def _put(self, parts: tuple[Any, ...]) -> bool:
        """Gives a message to libzmq. False: the connection is gone. Raises zmq.Again."""
        try:
            multipart.send(self.sock, parts)
        except zmq.ZMQError as e:
            if e.errno != zmq.EHOSTUNREACH:
                raise
            return False
        return True

    def cut(self, prefix: bytes) -> None:
        """Ends the connections whose routing ids begin so."""
        for identity, peer in list(self._spoken.items()):
            if identity.startswith(prefix):
                self.door.cut(peer)

    def close(self) -> None:
        """Without waiting for what is still to be sent."""
        self._context.destroy(linger=0)
