"""An attacker as a process of its own: `python -m tests.flooder KIND PATH COUNT`.

It does its worst, says "done" on standard output, holds on to what it has, and ends when its standard input does.
Nothing of the zoo is imported: it starts fast, and knows the wire by heart. PATH is the broker's socket, or HOST:PORT.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import time
from collections.abc import Callable

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16 + 32)
READY = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
READY_FRAME = b"\x04" + bytes([len(READY)]) + READY
MB = 1 << 20
CHUNK = bytes(MB)


def front(path: str) -> socket.socket:
    if ":" in path:
        host, _, port = path.rpartition(":")
        return socket.create_connection((host, int(port)), timeout=30.0)
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(30.0)
    sock.connect(path)
    return sock


def silent(path: str, count: int) -> list[socket.socket]:
    """Plain connections without a word. Those that there is no place for are tried again, for a while."""
    held = []
    for _ in range(count):
        with contextlib.suppress(OSError):
            sock = front(path)
            sock.setblocking(False)
            held.append(sock)
    return held


def lifelines(path: str, count: int) -> list[socket.socket]:
    held = []
    for _ in range(count):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.settimeout(0.5)
        with contextlib.suppress(OSError):
            sock.connect(f"{path}.handoff")
            held.append(sock)
    return held


KINDS: dict[str, Callable[[str, int], list[socket.socket]]] = {"silent": silent, "lifelines": lifelines}


def main() -> None:
    kind, path, count = sys.argv[1:]
    held = KINDS[kind](path, int(count))
    print("done", flush=True)
    sys.stdin.read()
    for sock in held:
        sock.close()


if __name__ == "__main__":
    os.nice(10)
    time.sleep(0)
    main()
