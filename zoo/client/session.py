"""Opening a session: sockets, `Hello`, and where memory can be shared a lifeline (see `zoo/client/link.py`).

Only `open_link` waits, for a broker that is still starting.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
from typing import Any

import zmq

from zoo.client import peers
from zoo.client.link import Link
from zoo.config.address import Address
from zoo.curve import read_key
from zoo.errors import AccessDenied, BrokerUnreachable, ZooError
from zoo.wire import protocol

GRACE_S = 0.6  # past its deadline, a request's answer is still waited for this long
LAST_S = 0.8  # past its deadline, no call waits for anything any more
MAX_SOCKETS = 32768  # of a process: one for each thread of each client
HELLO_S = 1.0  # an unanswered Hello is said again: the broker that took it may be gone
BYE_MS = 300  # how long a closing client tries to say so, where no lifeline says it
POLL_MS = 100  # how often a waiting client looks whether its broker is still there


# ---------------------------------------------------------------- opening

_contexts: dict[int, zmq.Context[zmq.Socket[bytes]]] = {}  # by process id: a fork's child has one of its own


def context() -> zmq.Context[zmq.Socket[bytes]]:
    """This process's own, for as many sockets as it has descriptors; ZeroMQ's default is 1,023."""
    pid = os.getpid()
    found = _contexts.get(pid)
    if found is None:
        found = zmq.Context()
        found.set(zmq.MAX_SOCKETS, min(MAX_SOCKETS, found.get(zmq.SOCKET_LIMIT)))
        found = _contexts.setdefault(pid, found)
    return found


def open_socket(key: bytes, number: int, endpoint: str) -> zmq.Socket[bytes]:
    """A connected socket of the session. Raises BrokerUnreachable when this process cannot have one."""
    sock: zmq.Socket[bytes] | None = None
    try:
        sock = context().socket(zmq.DEALER)
        configure(sock, key + number.to_bytes(4, "big"), endpoint)
        sock.setsockopt(zmq.RCVTIMEO, POLL_MS)
        sock.connect(endpoint)
    except BaseException as e:
        close_quietly(sock)
        if isinstance(e, OSError | MemoryError | zmq.ZMQError):
            raise no_socket(endpoint, e) from None
        raise
    return sock


def no_socket(endpoint: str, why: BaseException) -> BrokerUnreachable:
    return BrokerUnreachable(
        f"this process cannot open a connection to {endpoint} ({why}); close clients or end threads that used one, or "
        "raise its limit of descriptors (ulimit -n)"
    )


def open_link(address: Address, seconds: float, deadline: float, gone: Flag) -> tuple[Link, zmq.Socket[bytes]]:
    """Says Hello and waits, within the deadline, for the broker at the endpoint. The socket is the session's first.

    Raises:
        BrokerUnreachable: no broker answered in time, or `gone` was set. AccessDenied, ProtocolMismatch.
    """
    while True:
        try:
            endpoint = peers.find_server(address, deadline, gone)
        except OSError as e:
            if e.errno is None:
                raise  # a signal handler's own
            raise no_socket(address, e) from None
        if endpoint is None:
            raise unreachable(address, seconds)
        key = new_key()
        sock = open_socket(key, 0, endpoint)
        try:
            welcome = _welcome(sock, key, address, seconds, deadline, gone)
            link = Link(key, welcome, endpoint, address.owners, deadline)
            if not link.shares_memory:
                _keep_alive(link)
            return link, sock
        except BrokerUnreachable:  # perhaps it went away between two steps, and another one comes
            close_quietly(sock)
            if time.monotonic() + POLL_MS / 1000 > deadline or gone.wait(POLL_MS / 1000):
                raise
        except BaseException:
            close_quietly(sock)
            raise


def _welcome(
    sock: zmq.Socket[bytes], key: bytes, address: Address, seconds: float, deadline: float, gone: Flag
) -> protocol.Welcome:
    said = -math.inf
    while True:
        if time.monotonic() > said + HELLO_S:
            with contextlib.suppress(zmq.Again):
                sock.send(hello(key), zmq.NOBLOCK)
            said = time.monotonic()
        try:
            parts = sock.recv_multipart()
        except zmq.Again:
            if gone.up or time.monotonic() > deadline:
                raise unreachable(address, seconds) from None
            continue
        message = protocol.unpack_from_broker(parts[0])
        if isinstance(message, protocol.Error):
            raise message.exception()
        if isinstance(message, protocol.Welcome):
            return message


# ---------------------------------------------------------------- pieces


def new_key() -> bytes:
    return os.urandom(protocol.SESSION_BYTES)


def hello(key: bytes) -> bytes:
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    name = name[:80].encode(errors="replace").decode()  # a file name may be no text
    return protocol.pack(protocol.Hello(key, os.getpid(), name))


class Flag:
    """May be raised anywhere, in a destructor or a signal handler too."""

    def __init__(self) -> None:
        self.up = False

    def wait(self, seconds: float) -> bool:
        """Sleeps; whether it is up then. (Not sooner: a caller that waits minds no milliseconds.)"""
        if not self.up:
            time.sleep(seconds)
        return self.up


def configure(sock: Any, identity: bytes, endpoint: str) -> None:
    """Options that every client socket has."""
    sock.setsockopt(zmq.ROUTING_ID, identity)
    sock.setsockopt(zmq.LINGER, 0)
    sock.setsockopt(zmq.SNDHWM, 1000)
    sock.setsockopt(zmq.RCVHWM, 1000)
    sock.setsockopt(zmq.MAXMSGSIZE, protocol.MAX_MESSAGE_BYTES)
    sock.setsockopt(zmq.RECONNECT_IVL, 20)
    sock.setsockopt(zmq.RECONNECT_IVL_MAX, 200)
    if endpoint.startswith("tcp://"):
        folder = os.environ.get("ZOO_CURVE_DIR")
        if not folder:
            raise AccessDenied("tcp:// needs CURVE keys: set ZOO_CURVE_DIR (see `python -m zoo.curve --help`)")
        try:
            server, _ = read_key(os.path.join(folder, "server.key"))
            public, secret = read_key(os.path.join(folder, "client.key_secret"))
        except (OSError, ValueError) as e:
            raise AccessDenied(f"the CURVE keys in {folder} cannot be used: {e}") from None
        if secret is None:
            raise AccessDenied(f"{folder}/client.key_secret holds no secret key")
        sock.curve_serverkey, sock.curve_publickey, sock.curve_secretkey = server, public, secret


def say(link: Link, message: protocol.Message) -> None:
    """Says something that has no answer, over a socket of its own: in a destructor too, in any thread. Never waits."""
    try:
        sock = open_socket(link.key, next(link.sockets), link.endpoint)
        sock.setsockopt(zmq.LINGER, BYE_MS)
        sock.send(protocol.pack(message), zmq.NOBLOCK)
        sock.close()
    except (ZooError, zmq.ZMQError):
        pass  # then the end of the session says it


def end(link: Link, why: ZooError | None = None) -> None:
    """Ends a session. Where no lifeline says so, a message does."""
    if not link.shares_memory and not link.dead:
        say(link, protocol.Bye())
    link.close(why)


def _keep_alive(link: Link) -> None:
    """Without a lifeline, a session lives by its messages."""
    try:
        threading.Thread(target=_ping, args=(link,), name="zoo-ping", daemon=True).start()
    except RuntimeError as e:
        link.close()
        raise BrokerUnreachable(f"this process cannot start a thread ({e})") from None


def _ping(link: Link) -> None:
    """Until the link ends. It must not hold the client: a client that is garbage ends the link."""
    sock = None
    try:
        sock = open_socket(link.key, next(link.sockets), link.endpoint)
        due = 0.0
        while not link.dead:
            if time.monotonic() >= due:
                sock.send(protocol.pack(protocol.Ping()), zmq.NOBLOCK)
                due = time.monotonic() + protocol.PING_S
            time.sleep(min(0.1, protocol.PING_S))
    except (zmq.ZMQError, BrokerUnreachable):
        pass  # then its requests keep the session alive, or the broker ends it and the next call opens another
    finally:
        close_quietly(sock)


def unreachable(endpoint: Address, timeout: float) -> BrokerUnreachable:
    text = f"no broker answers at {endpoint} ({endpoint.how}) within {timeout:g} s; start one with `zoo serve`"
    if endpoint.startswith("tcp://"):
        text += ", or see whether it knows this client's CURVE key"
    return BrokerUnreachable(text)


def close_quietly(sock: Any) -> None:
    if sock is not None:
        with contextlib.suppress(zmq.ZMQError):
            sock.close(0)
