"""A client on bare sockets that counts the answers to each of its requests: none may have two."""

from __future__ import annotations

import os
import random
import secrets
import threading
import time
from collections import Counter
from typing import Any

import zmq

from zoo.wire import payload, protocol
from zoo.wire.payload import FrameRef, InferBody

TIMEOUT_S = 4.0
GRACE_S = 20.0  # past its deadline, in a storm
PERIOD_S = 0.02


class RawCustomer:
    """A session without a lifeline: it lives by its messages and survives nothing, so it says Hello to every broker.

    A request is lost only if the broker that took it is alive and does not answer: what was sent to a broker that has
    been replaced since (another `boot`) is forgotten.
    """

    def __init__(self, endpoint: str, seed: int, models: list[str]) -> None:
        self._endpoint = endpoint
        self._dice = random.Random(seed)
        self._models = models
        self._over = threading.Event()
        self._answers: Counter[int] = Counter()
        self._open: dict[int, float] = {}
        self._wrong: list[str] = []
        self._total = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def assert_sound(self) -> None:
        assert not self._wrong, self._wrong
        assert self._thread.is_alive()

    def close(self) -> int:
        """Ends it, and gives how many requests were answered."""
        self._over.set()
        self._thread.join(timeout=60.0)
        assert not self._wrong, self._wrong
        return self._total

    def _run(self) -> None:
        rid, boot, said, key = 0, "", 0.0, secrets.token_bytes(protocol.SESSION_BYTES)
        sock = self._connect(key)
        while not self._over.is_set() or (self._open and boot):
            now = time.monotonic()
            if now > said + 1.0:
                self._put(sock, protocol.Hello(key, os.getpid(), "raw"))
                said = now
            if boot and not self._over.is_set() and len(self._open) < 50:
                rid += 1
                body = payload.pack_request(InferBody((FrameRef(-1, 0, (4, 4, 3), "|u1"),), None, {"nonce": rid}))
                model, rank = self._dice.choice(self._models), self._dice.randrange(4)
                if self._put(sock, protocol.Infer(rid, model, int(TIMEOUT_S * 1000), rank), body, bytes(48)):
                    self._open[rid] = now
            while sock.poll(int(PERIOD_S * 1000)):
                message = protocol.unpack_from_broker(sock.recv_multipart()[0])
                if isinstance(message, protocol.Welcome):
                    if message.boot != boot:
                        boot = message.boot
                        self._open.clear()
                elif message.rid:
                    self._note(message)
            late = [n for n, at in self._open.items() if now - at > TIMEOUT_S + GRACE_S]
            if late and not self._is_new(sock, key, boot):
                self._wrong.append(f"requests {late[:5]} have no answer")
                break
        self._put(sock, protocol.Bye())
        sock.close(500)

    def _note(self, message: Any) -> None:
        self._answers[message.rid] += 1
        if self._answers[message.rid] > 1:
            self._wrong.append(f"request {message.rid} was answered {self._answers[message.rid]} times: {message}")
        self._open.pop(message.rid, None)
        self._total += 1

    def _is_new(self, sock: zmq.Socket[bytes], key: bytes, boot: str) -> bool:
        """Whether another broker serves by now; what the old one had taken is gone with it."""
        end = time.monotonic() + GRACE_S
        self._put(sock, protocol.Hello(key, os.getpid(), "raw"))
        while time.monotonic() < end:
            if sock.poll(500):
                message = protocol.unpack_from_broker(sock.recv_multipart()[0])
                if isinstance(message, protocol.Welcome):
                    late = any(time.monotonic() - at > TIMEOUT_S + GRACE_S for at in self._open.values())
                    return message.boot != boot or not late
                if message.rid:
                    self._note(message)
        return True

    def _connect(self, key: bytes) -> zmq.Socket[bytes]:
        sock: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        sock.setsockopt(zmq.ROUTING_ID, key + bytes(4))
        sock.setsockopt(zmq.LINGER, 0)
        sock.connect(self._endpoint)
        return sock

    def _put(self, sock: zmq.Socket[bytes], message: protocol.Message, *rest: bytes) -> bool:
        try:
            sock.send_multipart([protocol.pack(message), *rest], zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True
