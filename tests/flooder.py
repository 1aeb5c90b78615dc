"""An attacker as a process of its own: `python -m tests.flooder KIND PATH COUNT`.

It does its worst, says "done" on standard output, holds on to what it has, and ends when its standard input does.
It speaks ZeroMQ by hand, to say what no library would. PATH is the broker's socket, or HOST:PORT.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import struct
import sys
import time
from collections.abc import Callable

from zoo.wire import payload, protocol

MB = 1 << 20
MORE, LONG, COMMAND = 1, 2, 4
CHUNK = bytes(MB)
ATTACK_S = 3.0
Held = list[socket.socket]


def front(path: str) -> socket.socket:
    if ":" in path:
        host, _, port = path.rpartition(":")
        sock = socket.create_connection((host, int(port)), timeout=10.0)
    else:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(10.0)
        sock.connect(path)
    return sock


def greeting(mechanism: bytes) -> bytes:
    return b"\xff" + bytes(8) + b"\x7f\x03\x00" + mechanism.ljust(20, b"\0") + bytes(32)


def frame(data: bytes, flags: int = 0) -> bytes:
    if len(data) < 256:
        return bytes([flags, len(data)]) + data
    return bytes([flags | LONG]) + struct.pack(">Q", len(data)) + data


def shaken(path: str, key: bytes = b"") -> socket.socket:
    """A connection past ZeroMQ's own handshake (without keys); with a session's key, also past Hello."""
    sock = front(path)
    ready = b"\x05READY"
    for name, value in ((b"Socket-Type", b"DEALER"), (b"Identity", key + bytes(4) if key else b"")):
        ready += bytes([len(name)]) + name + struct.pack(">I", len(value)) + value
    sock.sendall(greeting(b"NULL") + frame(ready, COMMAND))
    heard = b""
    while b"READY" not in heard:  # libzmq takes nothing else before it has said so itself
        heard += sock.recv(4096) or _cut_off()
    if key:
        sock.sendall(frame(protocol.pack(protocol.Hello(key, os.getpid(), "flooder"))))
    return sock


def _cut_off() -> bytes:
    raise ConnectionError("cut off")


def silent(path: str, count: int) -> Held:
    """Plain connections without a word."""
    held = []
    for _ in range(count):
        with contextlib.suppress(OSError):
            sock = front(path)
            sock.setblocking(False)
            held.append(sock)
    return held


def lifelines(path: str, count: int) -> Held:
    held = []
    for _ in range(count):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.settimeout(0.5)
        with contextlib.suppress(OSError):
            sock.connect(f"{path}.handoff")
            held.append(sock)
    return held


def commands(path: str, count: int) -> Held:
    """Before any handshake: `count` connections, each with a command of 150 MB, and again as many that libzmq takes."""
    held = []
    for size in (150 * MB, 32 * MB):
        for _ in range(count):
            with contextlib.suppress(OSError):
                sock = front(path)
                held.append(sock)
                mechanism = b"CURVE" if ":" in path else b"NULL"
                sock.sendall(greeting(mechanism) + bytes([COMMAND | LONG]) + struct.pack(">Q", size))
                for _ in range(size // MB - 1):
                    sock.sendall(CHUNK)
    return held


def endless(path: str, count: int, key: bytes = b"") -> Held:
    """`count` MB of parts with MORE, and never a last one; on a new connection whenever one is cut off."""
    part = frame(bytes(100_000), MORE) * 10
    held: Held = []
    sent, end = 0, time.monotonic() + ATTACK_S
    while sent < count * MB and time.monotonic() < end:
        with contextlib.suppress(OSError):
            held.append(sock := shaken(path, key))
            while sent < count * MB and time.monotonic() < end:
                sock.sendall(part)
                sent += len(part)
    return held


def endless_after_hello(path: str, count: int) -> Held:
    return endless(path, count, secrets.token_bytes(protocol.SESSION_BYTES))


def unread(path: str, count: int) -> Held:
    """Requests whose answers of 8 MB are never read, by `count` connections."""
    body = payload.pack_request(payload.InferBody((payload.FrameRef(-1, 0, (1,), "|u1"),), None, {"do": "large"}))
    held = []
    for _ in range(count):
        with contextlib.suppress(OSError):
            held.append(sock := shaken(path, secrets.token_bytes(protocol.SESSION_BYTES)))
            for rid in range(1, 101):
                header = protocol.pack(protocol.Infer(rid, "toy", 30_000))
                sock.sendall(frame(header, MORE) + frame(body, MORE) + frame(b"x"))
    time.sleep(ATTACK_S)
    return held


def waiting(path: str, count: int) -> Held:
    """Inline requests of 30 MB, `count` of them, for a model that is busy."""
    body = payload.pack_request(
        payload.InferBody((payload.FrameRef(-1, 0, (1,), "|u1"),), None, {"do": "sleep", "seconds": 0.1})
    )
    large = frame(bytes(30 * MB))
    held = []
    for _ in range(count):
        with contextlib.suppress(OSError):
            held.append(sock := shaken(path, secrets.token_bytes(protocol.SESSION_BYTES)))
            for rid in range(1, 4):
                header = protocol.pack(protocol.Infer(rid, "toy", 30_000))
                sock.sendall(frame(header, MORE) + frame(body, MORE) + large)
    return held


KINDS: dict[str, Callable[[str, int], Held]] = {
    "silent": silent,
    "lifelines": lifelines,
    "commands": commands,
    "endless": endless,
    "endless-after-hello": endless_after_hello,
    "unread": unread,
    "waiting": waiting,
}


def main() -> None:
    kind, path, count = sys.argv[1:]
    held = KINDS[kind](path, int(count))
    print("done", flush=True)
    sys.stdin.read()
    for sock in held:
        sock.close()


if __name__ == "__main__":
    os.nice(10)
    main()
