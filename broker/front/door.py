"""Who is connected to the front socket, and how many may be: a thread that reads what libzmq tells of its connections.

libzmq hides them: a ROUTER shows messages, and says nothing about those who never send one. Its monitor tells which
descriptors were accepted and which were closed; a message tells which descriptor it came from. The two are brought
together by the socket's inode, which, other than a descriptor's number, is not used again for another connection while
we look. So a connection is only ever cut off (by `shutdown` on a duplicate of its descriptor) when it is still the one
that was meant.

In a thread of its own, because it has to be quick when the loop is busy. It writes to `peers` and `by_identity`, the
loop adds those who speak; every single step is one that the interpreter does not interrupt.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import socket
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
from zoo.system.peer import credentials

log = logging.getLogger("zoo.broker")

SILENT_S = 10.0  # a connection that has not said a word by then is cut off
SILENT_FULL_S = 1.0  # the same while others wait for its place
REFUSED_S = 1.0  # for the answer to reach who was refused
LOOK_S = 0.25  # between two looks at who is silent
RECONCILE_S = 5.0
IDLE_MS, RISING_MS = 50, 5
GATE_TRIES_S = 2.0
LAST_FREE = 16  # descriptors that no connection may take, should the shares of the others not have been kept to
_EVENTS = zmq.EVENT_LISTENING | zmq.EVENT_ACCEPTED | zmq.EVENT_ACCEPT_FAILED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED


class Door:
    """See the module's docstring. `open` it when the socket is bound, `close` it before the socket.

    Attributes:
        most: connections that may be open at once; one client may have `most_each` once half of them are in use.
        has_session: whether that routing id is of a session.
        is_known: whether a process has a session, and may so have a connection that says nothing for a while.
        cuts: connections cut off so far.
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
        self.cuts = 0
        self.peers: dict[int, Connection] = {}  # by inode
        self.by_identity: dict[bytes, Connection] = {}
        self._by_fd: dict[int, Connection] = {}
        self._gate: Gate | None = None
        self._listener = -1
        self._listening_since = 0.0
        self._ajar = False  # one more may come in, and has not
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
        if event == zmq.EVENT_ACCEPTED:
            self._ajar = False
            self._came(value)
        elif event == zmq.EVENT_ACCEPT_FAILED:
            self._ajar = False
        elif event in (zmq.EVENT_DISCONNECTED, zmq.EVENT_CLOSED):
            if (peer := self._by_fd.get(value)) is not None:
                self._forget(peer)
        elif event == zmq.EVENT_LISTENING:
            self._listener, self._gate = value, None
            self._listening_since = time.monotonic()

    def _came(self, fd: int) -> None:
        if (last := self._by_fd.get(fd)) is not None:
            self._forget(last)
        try:
            seen = os.fstat(fd)
        except OSError:
            return  # it has gone since
        if stat.S_ISSOCK(seen.st_mode):
            peer = self.peers.setdefault(seen.st_ino, Connection(fd, seen.st_ino))
            self._by_fd[fd] = peer

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
            self._ajar = False  # should its news have been lost: another word to the kernel changes nothing
            self._tell(now)
        if self._gate is None:
            self._find_gate(now)
        elif self._gate.works and self._is_short():
            self._ajar = not self._gate.shut()
        elif not self._ajar and not full and self._gate.works:
            self._ajar = self._gate.let_in()

    def _is_short(self) -> bool:
        """Whether hardly any descriptor is left: the kernel gives the lowest number that is free."""
        try:
            lowest = os.dup(self._listener)
        except OSError:
            return True
        os.close(lowest)
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return soft != resource.RLIM_INFINITY and lowest >= soft - LAST_FREE

    def _find_gate(self, now: float) -> None:
        if self._listener < 0:
            return
        gate = Gate(self._listener)  # libzmq's thread takes the listener over a moment after it has been made
        if gate.works or now > self._listening_since + GATE_TRIES_S:
            self._gate, self._ajar = gate, gate.works
            if not gate.works:
                log.warning("libzmq's listener was not found: a flood of connections may use up all descriptors")

    def _reconcile(self) -> None:
        """Forgets connections that have gone without a word: libzmq tells of most of them."""
        for peer in list(self.peers.values()):
            try:
                gone = os.fstat(peer.fd).st_ino != peer.inode
            except OSError:
                gone = True
            if gone:
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
            else:
                useless = age > (SILENT_FULL_S if full else SILENT_S)
                useless = useless and ((full and age > SILENT_S) or not self._is_known(peer))
            if useless:
                self.cut(peer)

    def _is_known(self, peer: Connection) -> bool:
        """Whether its process has a session: a client's connection may come back before it has something to say."""
        if not peer.pid:
            peer.pid = -1
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(peer.fd)) as sock:
                if sock.family == socket.AF_UNIX:
                    peer.pid = credentials(sock).pid
        return peer.pid > 0 and self.is_known(peer.pid)

    def cut(self, peer: Connection) -> bool:
        """Ends a connection. False: it has gone already."""
        try:
            sock = socket.socket(fileno=os.dup(peer.fd))
        except OSError:
            return False
        with sock:
            if os.fstat(sock.fileno()).st_ino != peer.inode:
                self._forget(peer)
                return False
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # libzmq meets its end, and tells of it
        peer.ended = True
        self.cuts += 1
        self._untold += 1
        return True

    def _tell(self, now: float) -> None:
        if self._untold and now > self._said_at + 10.0:
            log.warning("%d connections were cut off: they said nothing, or too much", self._untold)
            self._untold, self._said_at = 0, now
