"""The ROUTER that detectors connect to, watched by the event loop, and which of its connections are there.

A detector without motion is silent for hours, so silence says nothing: that a connection has ended is told by the
socket's monitor. A message says by which descriptor it came. Descriptors are used again, so before a message is dealt
with, all that was told before it is taken in; and what libzmq does not tell is found by the sockets' inodes.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import socket
import stat
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import zmq

from zoo.config.gateway import GatewayConfig
from zoo.errors import ConfigError
from zoo.wire import multipart

CONNECTIONS = 64  # of one endpoint; further ones are ended
BURST = 16  # messages before other tasks have their turn
WAITING = 2  # messages of a connection that wait for us; a REQ socket sends one
POLLIN = int(zmq.POLLIN)
PARTS = 4  # of a message: routing id, delimiter, header, and mostly a tensor
EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED

log = logging.getLogger("zoo.gateway")


class Receiver(Protocol):
    """What deals with messages, at once and without waiting."""

    def received(self, listener: FrigateListener, identity: bytes, fd: int, parts: Sequence[Any]) -> None: ...

    def ended(self, fd: int) -> None: ...


class FrigateListener:
    """See the module's docstring. Raises ConfigError: the endpoint cannot be had."""

    def __init__(self, endpoint: str, table: GatewayConfig, receiver: Receiver) -> None:
        self._receiver = receiver
        self._networks = table.networks
        self._inodes: dict[int, int] = {}  # of the connections that are open, by descriptor
        self._loop = asyncio.get_running_loop()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.LINGER, 0), (zmq.RCVHWM, WAITING), (zmq.MAXMSGSIZE, table.max_body_bytes), (zmq.ROUTER_HANDOVER, 0),
            (zmq.TCP_KEEPALIVE, 1), (zmq.TCP_KEEPALIVE_IDLE, 30), (zmq.TCP_KEEPALIVE_INTVL, 10),
        ):  # fmt: skip
            self._router.setsockopt(option, value)
        self._monitor = self._router.get_monitor_socket(EVENTS)
        self._monitor.setsockopt(zmq.LINGER, 0)
        try:
            self.endpoint = self._bind(endpoint)
        except BaseException:
            self._end()
            raise
        for sock in (self._router, self._monitor):
            self._loop.add_reader(_descriptor(sock), self._look)
        self._loop.call_soon(self._look)
        log.info("Frigate's detectors are served on %s", self.endpoint)

    def _bind(self, endpoint: str) -> str:
        """Gives what it is bound to."""
        if endpoint.startswith("ipc://"):
            _make_folder(endpoint)
            if why := _taken(endpoint.removeprefix("ipc://")):
                raise ConfigError(f"gateway.frigate: {endpoint} {why}")
        try:
            self._router.bind(endpoint)
        except zmq.ZMQError as e:
            raise ConfigError(f"gateway.frigate: {endpoint} cannot be listened on: {e.strerror}") from None
        return self._router.getsockopt(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()  # type: ignore[union-attr]

    # ------------------------------------------------------------ out

    def send(self, identity: bytes, *parts: bytes) -> None:
        """To a client that may have gone."""
        if self._router.closed:
            return
        with contextlib.suppress(zmq.ZMQError):
            multipart.send(self._router, [identity, b"", *parts])
        self._loop.call_soon(self._look)  # descriptors of ZeroMQ tell of changes, and sending takes these in

    # ------------------------------------------------------------ in

    def _look(self) -> None:
        for _ in range(BURST):
            self._hear()
            if not _has_some(self._router):
                return
            try:
                parts, source = multipart.take(self._router)
            except zmq.ZMQError:
                continue
            self._hear()  # what was told before this message came
            self._received(parts, source)
        self._loop.call_soon(self._look)

    def _received(self, parts: list[Any], source: Any) -> None:
        """Drops what no detector sends, what came by a connection that has ended, and what may not come."""
        try:
            fd = source.get(zmq.SRCFD)
            peer = source.get("Peer-Address") if self._networks else ""
        except (zmq.ZMQError, AttributeError):
            return
        if fd in self._inodes and 2 < len(parts) <= PARTS and not len(parts[1]) and self._is_trusted(peer):
            self._receiver.received(self, parts[0], fd, parts[2:])

    def _is_trusted(self, peer: str) -> bool:
        """Where other machines reach this endpoint at all, there are networks."""
        if not self._networks or self.endpoint.startswith("ipc:"):
            return True
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        return address.is_loopback or any(address in network for network in self._networks)

    def _hear(self) -> None:
        """Takes in what the monitor has to tell."""
        while _has_some(self._monitor):
            told, _ = self._monitor.recv_multipart()
            event, fd = struct.unpack("=hi", told)
            if event == zmq.EVENT_CLOSED and fd not in self._inodes:
                continue
            self._ended(fd)
            if event == zmq.EVENT_ACCEPTED:
                self._accepted(fd)

    def _accepted(self, fd: int) -> None:
        inode = _inode(fd)
        if inode:
            self._inodes[fd] = inode
        if len(self._inodes) > CONNECTIONS:
            log.warning("%s has %d connections already; one more was ended", self.endpoint, CONNECTIONS)
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as sock:
                if _inode(sock.fileno()) == inode:
                    sock.shutdown(socket.SHUT_RDWR)

    def _ended(self, fd: int) -> None:
        if self._inodes.pop(fd, None) is not None:
            self._receiver.ended(fd)

    def reconcile(self) -> None:
        """Finds ends that libzmq has not told."""
        self._hear()
        for fd, inode in list(self._inodes.items()):
            if _inode(fd) != inode:
                self._ended(fd)

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        for sock in (self._router, self._monitor):
            self._loop.remove_reader(_descriptor(sock))
        self._end()

    def _end(self) -> None:
        self._router.disable_monitor()
        self._monitor.close()
        self._router.close()
        self._context.term()


def _descriptor(sock: zmq.Socket[bytes]) -> int:
    return int(sock.getsockopt(zmq.FD))


def _has_some(sock: zmq.Socket[bytes]) -> bool:
    """Whether a message is there to be taken."""
    return not sock.closed and bool(int(sock.getsockopt(zmq.EVENTS)) & POLLIN)


def _inode(fd: int) -> int:
    """Of a socket; 0 where there is none any more."""
    with contextlib.suppress(OSError):
        seen = os.fstat(fd)
        return seen.st_ino if stat.S_ISSOCK(seen.st_mode) else 0
    return 0


def _make_folder(endpoint: str) -> None:
    """Of the socket, where there is none: for this account alone. Raises ConfigError."""
    folder = Path(endpoint.removeprefix("ipc://")).parent
    try:
        folder.mkdir(0o700, exist_ok=True)
    except OSError as e:
        raise ConfigError(
            f"gateway.frigate: {endpoint}: the folder {folder} is not there and cannot be made ({e.strerror}); make "
            "it, for this account to write to, or name a socket in another"
        ) from None


def _taken(path: str) -> str:
    """Why a socket must not be made there, for libzmq replaces whatever lies there; "" where it may."""
    try:
        mode = Path(path).lstat().st_mode
    except OSError:
        return ""
    if not stat.S_ISSOCK(mode):
        return "is a file that is no socket"
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.settimeout(1.0)
            probe.connect(path)
        except OSError:
            return ""
    return "is served by another process"
