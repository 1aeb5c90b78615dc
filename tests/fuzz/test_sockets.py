"""The broker's own sockets meet damaged messages: it goes on, and what it holds for them is gone with them."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import zmq

from tests.fuzz import samples
from tests.fuzz.mutate import CASES, SEED, message
from tests.support import Running, toy, wait_until
from zoo.wire import arena, lifeline, payload, protocol

FRAME = np.full((8, 8, 3), 7, np.uint8)
Start = Callable[..., Running]


class Fuzzed:
    """A broker, a good client beside the fuzzer, and what the broker held before."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.path = running.endpoint.removeprefix("ipc://")
        self.good = running.client()
        self.look()
        self.fds = self._fds()

    def look(self) -> None:
        assert self.good.infer("toy", FRAME)["first"] == [7, 7, 7]

    def _fds(self) -> int:
        return len(os.listdir(f"/proc/{self.running.pid}/fd"))

    def _is_clean(self) -> bool:
        status = self.good.get_status()
        return (status["sessions"], status["leases"], status["requests"]) == (1, 0, 0) and self._fds() <= self.fds + 1

    def check(self) -> None:
        self.look()
        wait_until(self._is_clean, 30.0, f"nothing is left: {self.good.get_status()}, {self._fds()} of {self.fds} fds")
        assert "internal error" not in self.running.log()


@pytest.fixture
def fuzzed(broker: Start) -> Fuzzed:
    return Fuzzed(broker([toy(), toy("other", options={"load": "raise"})]))


def _session(endpoint: str) -> tuple[zmq.Socket[bytes], bytes]:
    key = secrets.token_bytes(protocol.SESSION_BYTES)
    sock: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    sock.setsockopt(zmq.ROUTING_ID, key + bytes(4))
    sock.setsockopt(zmq.LINGER, 500)
    sock.setsockopt(zmq.RCVTIMEO, 10_000)
    sock.connect(endpoint)
    sock.send(protocol.pack(protocol.Hello(key, 1, "fuzz")))
    sock.recv_multipart()
    return sock, key


def test_the_front_socket(fuzzed: Fuzzed) -> None:
    dice = random.Random(SEED)
    sock, key = _session(fuzzed.running.endpoint)
    sock.setsockopt(zmq.SNDTIMEO, 10_000)
    body = payload.pack_request(samples.REQUESTS[0])
    heard = 0
    for n in range(CASES):
        if n % 20 == 19:  # one of them may have been a Bye
            sock.send(protocol.pack(protocol.Hello(key, 1, "fuzz")))
        parts = [message(dice, samples.FROM_CLIENT)]
        if dice.random() < 0.5:
            parts += [body if dice.random() < 0.5 else message(dice, samples.REQUESTS)[1:], bytes(48)]  # type: ignore[arg-type]
        sock.send_multipart(parts)
        with contextlib.suppress(zmq.Again):
            while True:
                protocol.unpack_from_broker(sock.recv_multipart(zmq.NOBLOCK)[0])
                heard += 1
        if n % 500 == 499:
            fuzzed.look()
    assert heard > CASES // 20, "the broker has answered"
    sock.send(protocol.pack(protocol.Bye()))
    sock.close()
    fuzzed.good.unpin("toy")
    fuzzed.check()


def test_a_lifeline(fuzzed: Fuzzed) -> None:
    dice = random.Random(SEED)
    made = [os.memfd_create("fuzz"), os.open(os.devnull, os.O_RDONLY), os.pipe()[0]]
    own = arena.OwnedArena(4096)
    for n in range(max(10, CASES // 20)):
        sock, key = _session(fuzzed.running.endpoint)
        with lifeline.connect(f"{fuzzed.path}.handoff", 10.0) as line, contextlib.suppress(OSError):
            line.settimeout(5.0)
            if dice.random() < 0.8:
                lifeline.send(line, protocol.LifelineAttach("client", key))
            for _ in range(dice.randrange(20)):
                fds = [dice.choice([*made, own.fd]) for _ in range(dice.randrange(3))]
                socket.send_fds(line, [message(dice, samples.LIFELINE)], fds)
        sock.send(protocol.pack(protocol.Bye()))
        sock.close()
        if n % 50 == 49:
            fuzzed.look()
    own.close()
    for fd in made:
        os.close(fd)
    fuzzed.check()


def test_what_a_worker_says(broker: Start) -> None:
    """An adapter that takes over its process's channel and lies: it costs that process, and the others are served."""
    liar: dict[str, Any] = {"name": "liar", "adapter": "tests.fuzz.liar:Liar", "vram_mb": 10}
    fuzzed = Fuzzed(broker([toy(), liar], dispatch_timeout=2.0))
    from zoo import ZooError

    for seed in range(max(5, CASES // 200)):
        with contextlib.suppress(ZooError):
            fuzzed.good.infer("liar", FRAME + np.uint8(seed), timeout=10.0, seed=SEED * 1000 + seed)
        fuzzed.look()
    with contextlib.suppress(ZooError):
        fuzzed.good.unload("liar")
    fuzzed.look()
    assert fuzzed.running.process is not None
    assert fuzzed.running.process.poll() is None
