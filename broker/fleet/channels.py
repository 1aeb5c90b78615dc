"""The channels to the workers: what is sent by them, what comes by them, and what becomes of one that breaks."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from functools import partial

from broker.fleet.roster import WorkerProcess
from broker.front.inline import Arrivals
from broker.loop import Loop
from zoo.errors import ProtocolMismatch
from zoo.wire.channel import Channel

log = logging.getLogger("zoo.broker")

Take = Callable[[WorkerProcess, list[bytes], bool], None]


class Channels:
    """`take`: is given each message of a worker; raises ProtocolMismatch for one that ends it."""

    def __init__(self, loop: Loop, max_inline_mb: int, take: Take) -> None:
        self._loop = loop
        self._take = take
        self._arrivals = Arrivals(max_inline_mb)
        self.stalled: set[WorkerProcess] = set()  # their large messages wait until others are through

    def open(self, worker: WorkerProcess, fd: int | None) -> None:
        """Takes over the descriptor that the worker offers. Raises ConnectionError when it is of no use."""
        if fd is None or worker.channel is not None:
            if fd is not None:
                os.close(fd)
            raise ConnectionError("it offered a channel that was not asked for")
        sock = stream(fd)
        worker.channel = Channel(sock, self._arrivals.most, self._arrivals.make_room)
        lost = ConnectionError("an error in the broker")
        self._loop.watch(sock.fileno(), partial(self.read, worker), partial(self.lost, worker, lost))

    def send(self, worker: WorkerProcess, parts: tuple[bytes, ...]) -> None:
        assert worker.channel is not None
        try:
            if not worker.channel.send(parts) and not worker.unsent:
                self._await(worker, True)
        except OSError as e:
            self.lost(worker, e)

    def read(self, worker: WorkerProcess) -> bool:
        """Takes what a worker says, and goes on with what it has been too slow to read. False: there was nothing."""
        channel = worker.channel
        if channel is None:
            return False
        try:
            if worker.unsent and channel.flush():
                self._await(worker, False)
            messages = channel.take()
        except OSError as e:
            self.lost(worker, e)
            return False
        for parts in messages or ():
            if worker.number > 0:  # a process that waits for a model has nothing to say
                self.heard(worker, parts)
        if worker.channel is channel:
            if channel.reserved:
                self._arrivals.give_back(channel.given_out())
            if channel.stalled:
                self.stalled.add(worker)
                self._await(worker, worker.unsent)
        return messages is not None

    def heard(self, worker: WorkerProcess, parts: list[bytes], measured: bool = False) -> None:
        """One message of the worker, see `WorkerReports.take`; ends a worker that says what none of ours would."""
        if worker.nonsense:
            return
        try:
            self._take(worker, parts, measured)
        except ProtocolMismatch as e:
            log.warning("%s (worker %d) talks nonsense and is ended: %s", worker.model, worker.number, e)
            worker.nonsense, worker.killed_at = True, time.monotonic()
            self.lost(worker, ConnectionError(str(e)))

    def go_on(self, worker: WorkerProcess) -> None:
        """Takes what was kept back of its messages until it was measured."""
        held, worker.held = worker.held, []
        for n, parts in enumerate(held):
            self.heard(worker, parts, measured=n == 0)

    def read_stalled(self) -> None:
        """Goes on with workers whose large messages had to wait for others to be through."""
        stalled, self.stalled = self.stalled, set()
        for worker in stalled:
            self.read(worker)
            if worker.channel is not None and not worker.channel.stalled:
                self._await(worker, worker.unsent)

    def lost(self, worker: WorkerProcess, why: OSError) -> None:
        """Its end has closed: the worker is ending, or talks nonsense and has to. Its exit tells which."""
        log.debug("the channel of worker %d of %s: %s", worker.number, worker.model, why)
        self.close(worker)
        if worker.child is not None:
            worker.child.signal(signal.SIGKILL)

    def close(self, worker: WorkerProcess) -> None:
        channel, worker.channel = worker.channel, None
        if channel is not None:
            self._loop.forget(channel.fd)
            self._arrivals.give_back(channel.reserved)
            self.stalled.discard(worker)
            channel.close()

    def _await(self, worker: WorkerProcess, writing: bool) -> None:
        assert worker.channel is not None
        worker.unsent = writing
        self._loop.await_room(worker.channel.fd, reading=not worker.channel.stalled, writing=writing)


def stream(fd: int) -> socket.socket:
    """The broker's end of a channel; takes over the descriptor.

    Raises:
        ConnectionError: it is no connected Unix stream socket; it is closed then.
    """
    try:
        sock = socket.socket(fileno=fd)
    except OSError as e:
        os.close(fd)
        raise ConnectionError(f"it offered a channel that is no socket: {e.strerror}") from None
    try:
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
            raise ConnectionError("it offered a channel of another kind")
        sock.getpeername()
        sock.setblocking(False)
    except OSError as e:
        sock.close()
        raise ConnectionError(f"it offered a channel that is none: {e}") from None
    return sock
