"""Who is connected to the front socket, and how many may be: a thread that reads what libzmq tells of its connections.

libzmq hides them: a ROUTER shows messages, and says nothing about connections that never send one. Its monitor tells
which descriptors were accepted and which were closed; a message tells which descriptor it came from. The two are
brought together by the socket's inode. Connections that say nothing, or fill memory, are cut off (see `connection.py`).

It is a thread of its own, because it has to be quick when the loop is busy. It writes to `peers` and `by_identity`, the
loop adds connections that speak; every single step is one that the interpreter does not interrupt.

Connections that say nothing are closed after 10 s, or after 1 s while others wait.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import zmq

from broker.front.connection import Connection
from broker.front.gate import Gate
from broker.front.pressure import Pressure

log = logging.getLogger("zoo.broker")

SILENT_S = 10.0  # a connection that has sent no message by then is cut off
SILENT_FULL_S = 1.0  # the same while others wait for its place
REFUSED_S = 1.0  # for the refusal to reach its client
LOOK_S = 0.25  # between two looks at silent connections
RECONCILE_S = 5.0
IDLE_MS, RISING_MS = 50, 5
_EVENTS = zmq.EVENT_LISTENING | zmq.EVENT_ACCEPTED | zmq.EVENT_ACCEPT_FAILED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED


class Door:
    """`open` it when the socket is bound, `close` it before the socket.

    Attributes:
        most: connections that may be open at once; one client may have `most_each` once half of them are in use.
        has_session: whether that routing id is of a session.
        is_known: whether a process has a session, and may so have a connection that says nothing for a while.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        front: zmq.Socket[bytes],
        most: int,
        most_each: int,
        held_bytes: int,
    ) -> None:
        self._pressure = Pressure(held_bytes)
        self.most = most
        self._most_each = most_each
        self.has_session: Callable[[bytes], bool] = lambda _: True
        self.is_known: Callable[[int], bool] = lambda _: False
        self.peers: dict[int, Connection] = {}  # by inode
        self.by_identity: dict[bytes, Connection] = {}
        self._by_fd: dict[int, Connection] = {}
        self._gate = Gate()
        self._look_at = self._reconcile_at = self._said_at = 0.0
        self._untold = 0
        self._quit = threading.Event()
        where = f"inproc://door-{id(self)}"
        self._front = front
        front.monitor(where, _EVENTS)
        self._news: zmq.Socket[bytes] = context.socket(zmq.PAIR)
        self._news.setsockopt(zmq.RCVHWM, 0)  # libzmq's thread would wait for us where there is a limit
        self._news.setsockopt(zmq.LINGER, 0)
        self._news.connect(where)
        self._thread = threading.Thread(target=self._run, name="door", daemon=True)

    def open(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._quit.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)
        with contextlib.suppress(zmq.ZMQError):
            self._front.disable_monitor()
        self._news.close()

    # ------------------------------------------------------------ called by the loop

    def spoke(self, identity: bytes, source: Any) -> None:
        """A message has come from a routing id that is not in `by_identity`; `source` is one of its frames."""
        try:
            fd = source.get(zmq.SRCFD)
            inode = os.fstat(fd).st_ino
        except (OSError, zmq.ZMQError, AttributeError):
            return  # it has gone since
        peer = self.peers.setdefault(inode, Connection(fd, inode))
        if not peer.identity:
            peer.identity = identity
            self.by_identity[identity] = peer

    def refuse(self, identity: bytes) -> None:
        """It was told that there is no place for it: its connection ends, if it does not end that by itself."""
        peer = self.by_identity.get(identity)
        if peer is not None:
            peer.refused = peer.refused or time.monotonic()

    def arrived(self, identity: bytes, size: int) -> None:
        """A message of so many bytes is complete: what was put down to its connection may have been that."""
        peer = self.by_identity.get(identity)
        if peer is not None and peer.suspect:
            peer.suspect = max(0, peer.suspect - size)

    def is_crowding(self, prefix: bytes) -> bool:
        """Whether too many connections are of the session of that key."""
        if len(self.by_identity) < self.most // 2:
            return False
        return sum(identity.startswith(prefix) for identity in list(self.by_identity)) > self._most_each

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        news = self._news
        while not self._quit.is_set():
            try:
                if news.poll(RISING_MS if self._pressure.rising else IDLE_MS):
                    for _ in range(256):
                        self._told(*struct.unpack("=hi", news.recv(zmq.NOBLOCK)))
                        news.recv(zmq.NOBLOCK)  # the address: always the same
            except zmq.Again:
                pass
            except zmq.ZMQError:
                return  # the context is ending
            try:
                now = time.monotonic()
                for peer in self._pressure.look(now, list(self.peers.values()), self.has_session):
                    self.cut(peer)
                self._look(now)
            except Exception:
                log.exception("the watch over the front socket failed, and goes on")
                self._quit.wait(LOOK_S)

    def _told(self, event: int, value: int) -> None:
        if event == zmq.EVENT_LISTENING:
            self._gate.listens(value, time.monotonic())
            return
        if event in (zmq.EVENT_ACCEPTED, zmq.EVENT_ACCEPT_FAILED):
            self._gate.passed()
        if event != zmq.EVENT_ACCEPT_FAILED and (last := self._by_fd.get(value)) is not None:
            self._forget(last)
        if event == zmq.EVENT_ACCEPTED:
            self._came(value)

    def _came(self, fd: int) -> None:
        with contextlib.suppress(OSError):  # it has gone since
            seen = os.fstat(fd)
            if stat.S_ISSOCK(seen.st_mode):
                self._by_fd[fd] = self.peers.setdefault(seen.st_ino, Connection(fd, seen.st_ino))

    def _forget(self, peer: Connection) -> None:
        self.peers.pop(peer.inode, None)
        if self._by_fd.get(peer.fd) is peer:
            del self._by_fd[peer.fd]
        if self.by_identity.get(peer.identity) is peer:
            del self.by_identity[peer.identity]

    def _look(self, now: float) -> None:
        full = len(self.peers) >= self.most
        if now >= self._look_at:
            self._look_at = now + LOOK_S
            if now >= self._reconcile_at or full:
                self._reconcile_at = now + RECONCILE_S
                self._reconcile()
            self._end_silence(now, full)
            self._gate.passed()
            self._tell(now)
        self._gate.look(full, now)

    def _reconcile(self) -> None:
        """Forgets connections whose end libzmq has not told."""
        for peer in list(self.peers.values()):
            if not peer.is_still(peer.fd):
                self._forget(peer)

    def _end_silence(self, now: float, full: bool) -> None:
        for peer in list(self.peers.values()):
            age = now - peer.since
            if peer.ended:
                continue
            if peer.refused:
                useless = now > peer.refused + REFUSED_S
            elif peer.identity:
                useless = full and age > SILENT_S and not self.has_session(peer.identity)
            else:  # a client's connection may come back before it has something to say
                useless = age > (SILENT_FULL_S if full else SILENT_S)
                useless = useless and ((full and age > SILENT_S) or not self.is_known(peer.pid))
            if useless:
                self.cut(peer)

    def cut(self, peer: Connection) -> bool:
        """Ends a connection. False: it has gone already."""
        ended = peer.end()
        self._untold += ended
        return ended

    def _tell(self, now: float) -> None:
        if self._untold and now > self._said_at + 10.0:
            log.warning("%d connections were cut off: they said nothing, or too much", self._untold)
            self._untold, self._said_at = 0, now
