"""No call of a client returns later than its deadline and a second, whatever the broker does or does not."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from tests.support import Running, toy
from zoo import AsyncClient, BrokerUnreachable, Client, ZooError
from zoo.wire import lifeline, protocol

Start = Callable[..., Running]
FRAME = np.zeros((4, 4, 3), np.uint8)
TIMEOUT = 0.5
MOST = TIMEOUT + 1.0

CALLS: dict[str, Callable[[Any], Any]] = {
    "infer": lambda zoo: zoo.infer("toy", FRAME),
    "infer_many": lambda zoo: zoo.infer_many(FRAME, ["toy", "toy2"]),
    "enrich": lambda zoo: zoo.enrich(FRAME, [("person", (0, 0, 4, 4))]),
    "frame": lambda zoo: zoo.frame((4, 4, 3)),
    "load": lambda zoo: zoo.load("toy"),
    "get_model": lambda zoo: zoo.get_model("toy"),
    "unload": lambda zoo: zoo.unload("toy"),
    "pin": lambda zoo: zoo.pin("toy"),
    "unpin": lambda zoo: zoo.unpin("toy"),
    "cleanup_idle_models": lambda zoo: zoo.cleanup_idle_models(),
    "reload": lambda zoo: zoo.reload(),
    "get_status": lambda zoo: zoo.get_status(),
    "models": lambda zoo: zoo.models(),
    "processes": lambda zoo: zoo.processes(),
    "explain": lambda zoo: zoo.explain(),
}


@contextmanager
def stopped(running: Running) -> Iterator[None]:
    os.kill(running.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(running.pid, signal.SIGCONT)


@contextmanager
def in_time() -> Iterator[None]:
    started = time.monotonic()
    yield
    took = time.monotonic() - started
    assert took < MOST, f"it took {took:.2f} s"


def all_at_once(client: Client, names: list[str]) -> dict[str, tuple[float, Any]]:
    """Each call in a thread of its own: how long it took, and what came of it."""
    found: dict[str, tuple[float, Any]] = {}

    def one(name: str) -> None:
        started = time.monotonic()
        try:
            outcome = CALLS[name](client)
        except BaseException as e:
            outcome = e
        found[name] = time.monotonic() - started, outcome

    threads = [threading.Thread(target=one, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def check(found: dict[str, tuple[float, Any]], broken: set[str]) -> None:
    for name, (took, outcome) in found.items():
        assert took < MOST, f"{name} took {took:.2f} s: {outcome!r}"
        if name == "infer_many" and isinstance(outcome, dict):
            assert all(isinstance(one, ZooError) for one in outcome.values())
        elif name in broken:
            assert isinstance(outcome, ZooError), f"{name}: {outcome!r}"


async def gathered(zoo: AsyncClient, names: list[str]) -> dict[str, tuple[float, Any]]:
    async def one(name: str) -> tuple[str, tuple[float, Any]]:
        started = time.monotonic()
        try:
            outcome = await CALLS[name](zoo)
        except Exception as e:
            outcome = e
        return name, (time.monotonic() - started, outcome)

    return dict(await asyncio.gather(*map(one, names)))


@pytest.mark.parametrize("stage", ["before anything", "connected", "with an arena"])
def test_every_call_ends_in_time_when_the_broker_stands_still(broker: Start, stage: str) -> None:
    running = broker([toy(), toy("toy2")])
    client = Client(running.endpoint, timeout=TIMEOUT, arena_mb=8)
    if stage != "before anything":
        client.get_status()
    if stage == "with an arena":
        client.infer("toy", FRAME, timeout=10.0)
    with stopped(running):
        broken = set(CALLS) - ({"frame"} if stage == "with an arena" else set())
        check(all_at_once(client, list(CALLS)), broken)
        with in_time():
            client.close()


@pytest.mark.parametrize(
    "stage",
    ["with an arena", *(pytest.param(stage, marks=pytest.mark.slow) for stage in ("before anything", "connected"))],
)
def test_every_async_call_ends_in_time_when_the_broker_stands_still(broker: Start, stage: str) -> None:
    async def work() -> None:
        zoo = AsyncClient(running.endpoint, timeout=TIMEOUT, arena_mb=8)
        if stage != "before anything":
            await zoo.get_status()
        if stage == "with an arena":
            await zoo.infer("toy", FRAME, timeout=10.0)
        with stopped(running):
            check(await gathered(zoo, list(CALLS)), set(CALLS) - ({"frame"} if stage == "with an arena" else set()))
            with in_time():
                await zoo.close()

    running = broker([toy(), toy("toy2")])
    asyncio.run(work())


def test_a_lease_ends_in_time_when_the_broker_stands_still(broker: Start) -> None:
    running = broker()
    client = Client(running.endpoint, timeout=TIMEOUT, arena_mb=8)
    lease = client.load("toy", timeout=10.0)
    lease(FRAME, timeout=10.0)
    with stopped(running):
        with in_time(), pytest.raises(ZooError):
            lease(FRAME)
        with in_time(), pytest.raises(ZooError):
            lease.release()
        with in_time():
            client.close()


class HalfABroker:
    """Answers up to a stage, and then nothing any more."""

    def __init__(self, folder: Path, stage: str) -> None:
        self.endpoint = f"ipc://{folder}/b"
        self._stage = stage
        self._over = threading.Event()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._front = self._context.socket(zmq.ROUTER)
        self._front.bind(self.endpoint)
        self._path = f"{folder}/b.handoff"
        self._handoff = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._handoff.bind(self._path)
        self._handoff.listen(8)
        self._handoff.settimeout(0.02)
        self._lines: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._over.is_set():
            while self._front.poll(10):
                identity, header = self._front.recv_multipart()[:2]
                if isinstance(protocol.unpack_from_client(header), protocol.Hello) and self._stage != "hello":
                    self._front.send_multipart([identity, protocol.pack(protocol.Welcome(self._path, 256 << 20, "b"))])
            if self._stage in ("attach", "arena"):
                try:
                    line, _ = self._handoff.accept()
                except TimeoutError:
                    continue
                self._lines.append(line)
                line.settimeout(1.0)
                lifeline.receive(line)
                if self._stage == "arena":
                    lifeline.send(line, protocol.LifelineAccepted(0))

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        for sock in (*self._lines, self._handoff):
            sock.close()
        self._front.close(0)
        self._context.term()


@pytest.fixture(params=["hello", "welcome", "attach", "arena"])
def half(request: pytest.FixtureRequest, zoo_dir: Path) -> Iterator[HalfABroker]:
    made = HalfABroker(zoo_dir, request.param)
    yield made
    made.close()


def test_every_call_ends_in_time_when_the_handshake_breaks_off(half: HalfABroker) -> None:
    client = Client(half.endpoint, timeout=TIMEOUT, arena_mb=8)
    check(all_at_once(client, list(CALLS)), set(CALLS))
    with in_time():
        client.close()


def test_every_async_call_ends_in_time_when_the_handshake_breaks_off(half: HalfABroker) -> None:
    async def work() -> None:
        zoo = AsyncClient(half.endpoint, timeout=TIMEOUT, arena_mb=8)
        check(await gathered(zoo, list(CALLS)), set(CALLS))
        with in_time():
            await zoo.close()

    asyncio.run(work())


def test_close_does_not_wait_for_a_thread_that_connects(zoo_dir: Path) -> None:
    client = Client(f"ipc://{zoo_dir}/b", timeout=30.0)
    outcome: list[BaseException] = []

    def call() -> None:
        try:
            client.get_status()
        except BaseException as e:
            outcome.append(e)

    thread = threading.Thread(target=call)
    thread.start()
    time.sleep(0.1)
    with in_time():
        client.close()
    thread.join(timeout=2.0)
    assert isinstance(outcome[0], BrokerUnreachable)


def test_threads_with_little_time_do_not_wait_for_one_that_has_much(zoo_dir: Path) -> None:
    client = Client(f"ipc://{zoo_dir}/b", timeout=30.0)

    def wait() -> None:
        with pytest.raises(ZooError):
            client.get_status()

    patient = threading.Thread(target=wait)
    patient.start()
    time.sleep(0.1)
    with in_time(), pytest.raises(BrokerUnreachable):
        client.infer("toy", FRAME, timeout=TIMEOUT)
    client.close()
    patient.join(timeout=2.0)
    assert not patient.is_alive()


def test_an_arena_that_is_not_made_in_time_is_gone_on_with(broker: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    client = broker().client(arena_mb=200)
    reserve = os.posix_fallocate
    reserved: list[int] = []

    def slow(fd: int, offset: int, length: int) -> None:
        time.sleep(0.3)
        reserved.append(offset)
        reserve(fd, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", slow)
    with in_time(), pytest.raises(BrokerUnreachable, match="goes on"):
        client.infer("toy", FRAME, timeout=TIMEOUT)
    assert client.infer("toy", FRAME, timeout=20.0)["shape"] == [4, 4, 3]
    assert len(reserved) == len(set(reserved)) == 4
