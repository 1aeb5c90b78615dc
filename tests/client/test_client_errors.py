"""Every error of a client is a ZooError: whatever it is given, whatever the system refuses it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import mmap
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.client.inside import arena
from tests.support import ROOT, Running
from zoo import AsyncClient, BrokerUnreachable, Client, InvalidInput, OutOfMemory, ZooError
from zoo.wire import protocol

Start = Callable[..., Running]
FRAME = np.zeros((4, 4, 3), np.uint8)


class Odd:
    """Is everything a little, and nothing right."""

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("no")

    def __float__(self) -> float:
        raise ArithmeticError("no")

    def __iter__(self) -> Iterator[Any]:
        raise LookupError("no")

    def __index__(self) -> int:
        raise AttributeError("no")

    def __len__(self) -> int:
        return -1

    def __eq__(self, other: object) -> bool:
        raise ValueError("no")

    def __repr__(self) -> str:
        raise ValueError("no")

    __hash__ = None  # type: ignore[assignment]


ODD: list[Any] = [
    None, True, False, 0, -1, 1, 3, sys.maxsize, -sys.maxsize, 10**400, 10**5000, 1e300, -1e300, 0.5, float("nan"),
    float("inf"), float("-inf"), np.float32(2), np.int64(5), np.uint64(2**63), np.bool_(True), Decimal("0.5"),
    Fraction(1, 3), 1j, "", "x", "toy", "\ud800", "\x00", "x" * 70_000, b"", b"x", b"\xff\xd8\xff", bytearray(b"x"),
    memoryview(b"xyxy")[::2], [], [[]], (), {}, {"a": 1}, set(), frozenset({1}), range(3), iter([1, 2]), object(),
    object, Odd(), Odd, len, [None], ["x"], [1, "x"], [[1, 2, 3, 4]], [(1, 2, 3)], [[1, 2], [3]], [10**400] * 4,
    [[10**400] * 4], {"\ud800": 1}, {1: 2}, {"x": object()}, [("person", (0, 0, 4, 4))], [("\ud800", (0, 0, 4, 4),
    0.5)], [{"label": 1, "box": None}], np.zeros(0), np.zeros((0, 4)), np.zeros((2, 4)), np.array(1),
    np.array(["x"]), np.array([object()]), np.zeros(3, "M8[s]"), np.zeros(3, [("a", "u1")]), np.zeros((1,) * 12),
    np.full((2, 4), np.nan), FRAME, FRAME[::2], np.ma.array([1]), np.dtype("u1"), "uint8", ">f4", "O", "V3", "S5",
    "nv12", "gray", (4, 4), (4, 4, 3), (-1,), (2**40,), (0, 2**62), (1,) * 40, (1.5,), ("a",), (True,),
]  # fmt: skip
anything = st.sampled_from(ODD)
name = st.one_of(st.just("toy"), anything)
LOOK = ("color", "size", "stride", "scale")

CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "infer": lambda zoo, a: zoo.infer(
        a(name), a(st.one_of(st.just(FRAME), anything)), **few(a, "boxes", *LOOK, "timeout", "priority", "do", "x")
    ),
    "infer_many": lambda zoo, a: zoo.infer_many(
        FRAME, a(st.one_of(st.just(["toy"]), anything)), **few(a, "boxes", *LOOK, "priority", "x")
    ),
    "enrich": lambda zoo, a: zoo.enrich(
        a(st.one_of(st.just(FRAME), anything)),
        a(anything),
        **few(a, "suspicious", *LOOK, "min_score", "timeout", "priority"),
    ),
    "frame": lambda zoo, a: zoo.frame(a(anything), *([a(anything)] if a(st.booleans()) else [])),
    "load": lambda zoo, a: zoo.load(a(name), **few(a, "keep_alive", "timeout")),
    "get_model": lambda zoo, a: zoo.get_model(a(name), **few(a, "timeout")),
    "unload": lambda zoo, a: zoo.unload(a(name), **few(a, "timeout")),
    "pin": lambda zoo, a: zoo.pin(a(anything)),
    "unpin": lambda zoo, a: zoo.unpin(a(anything)),
    "cleanup_idle_models": lambda zoo, a: zoo.cleanup_idle_models(a(anything)),
    "explain": lambda zoo, a: zoo.explain(a(anything)),
}


def few(draw: Any, *names: str) -> dict[str, Any]:
    """Some of these arguments, with odd values."""
    return {key: draw(anything) for key in draw(st.lists(st.sampled_from(names), unique=True, max_size=2))}


def give_back(outcome: Any) -> None:
    for word in ("release", "close"):
        if hasattr(outcome, word) and not hasattr(outcome, "__await__"):
            getattr(outcome, word)()


def test_a_timeout_that_no_float_holds_is_no_limit(shared_broker: Running) -> None:
    with Client(shared_broker.endpoint, timeout=5.0, arena_mb=8) as zoo:
        assert zoo.enrich(FRAME, [], timeout=10**400) is not None
        assert zoo.infer("toy", FRAME, timeout=10**400)["shape"] == [4, 4, 3]


@pytest.mark.parametrize("call", CALLS)
def test_every_error_is_a_zoo_error(shared_broker: Running, call: str) -> None:
    with Client(shared_broker.endpoint, timeout=5.0, arena_mb=8) as zoo:

        @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.data())
        def ask(data: st.DataObject) -> None:
            try:
                give_back(CALLS[call](zoo, data.draw))
            except ZooError:
                pass

        ask()
        assert zoo.infer("toy", FRAME)["shape"] == [4, 4, 3]
        assert zoo.get_status()["leases"] == 0


@pytest.mark.parametrize("call", CALLS)
def test_every_async_error_is_a_zoo_error(shared_broker: Running, call: str) -> None:
    with asyncio.Runner() as runner:
        zoo = AsyncClient(shared_broker.endpoint, timeout=5.0, arena_mb=8)

        async def one(draw: Any) -> None:
            outcome = await CALLS[call](zoo, draw)
            if call == "load":
                await outcome.release()
            else:
                give_back(outcome)

        @settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.data())
        def ask(data: st.DataObject) -> None:
            try:
                runner.run(one(data.draw))
            except ZooError:
                pass

        ask()
        runner.run(zoo.close())


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("argument", ["endpoint", "timeout", "arena_mb"])
def test_making_one_with_odd_arguments(kind: Any, argument: str) -> None:
    for value in ODD:
        with contextlib.suppress(InvalidInput):
            kind(**{argument: value})


@pytest.mark.parametrize("seconds", [sys.maxsize, 1e300, 10**400, threading.TIMEOUT_MAX * 2])
def test_a_very_long_time_means_no_limit(shared_broker: Running, seconds: float) -> None:
    with Client(shared_broker.endpoint, timeout=seconds, arena_mb=8) as zoo:
        assert zoo.infer("toy", FRAME, timeout=seconds)["shape"] == [4, 4, 3]
        with zoo.load("toy", timeout=seconds) as lease, zoo.frame((4, 4, 3)) as frame:
            assert lease(frame)["shape"] == [4, 4, 3]

    async def work() -> None:
        async with AsyncClient(shared_broker.endpoint, timeout=seconds, arena_mb=8) as other:
            assert (await other.infer("toy", FRAME, timeout=seconds))["shape"] == [4, 4, 3]

    asyncio.run(work())


def test_an_arena_above_the_brokers_limit_is_refused_before_memory_is_touched(
    broker: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = broker(arena_limit_mb=32)
    monkeypatch.setattr(os, "memfd_create", lambda *_: pytest.fail("memory was touched"))
    for arena_mb in (33, 1 << 50):
        client = running.client(arena_mb=arena_mb)
        with pytest.raises(InvalidInput, match="arena_limit_mb"):
            client.infer("toy", FRAME)
        client.get_status()


def test_an_option_over_the_limit_is_invalid_at_once(shared_broker: Running) -> None:
    with Client(shared_broker.endpoint, arena_mb=8) as zoo:
        with pytest.raises(InvalidInput, match="options"):
            zoo.infer("toy", FRAME, x="y" * (protocol.MAX_MESSAGE_BYTES // 2 + 1))
        assert zoo.infer("toy", FRAME)["shape"] == [4, 4, 3]


# ---------------------------------------------------------------- what the system refuses


def once(real: Callable[..., Any], failure: BaseException, passes: int = 0) -> Callable[..., Any]:
    """Fails at one call, after some that pass."""
    calls = iter([*[False] * passes, True])

    def act(*args: Any, **how: Any) -> Any:
        if next(calls, False):
            raise failure
        return real(*args, **how)

    return act


NO_FILES = OSError(errno.EMFILE, "Too many open files")
NO_MEMORY = OSError(errno.ENOMEM, "Cannot allocate memory")


@pytest.mark.parametrize(
    ("holder", "call", "failure"),
    [
        (os, "memfd_create", NO_FILES),
        (os, "ftruncate", NO_MEMORY),
        (os, "posix_fallocate", NO_MEMORY),
        (mmap, "mmap", NO_MEMORY),
        (mmap, "mmap", MemoryError()),
        (socket, "socket", NO_FILES),
        (os, "open", NO_FILES),
        (zmq.Context, "socket", zmq.ZMQError(errno.EMFILE)),
        (np, "copyto", MemoryError()),
    ],
)
def test_what_the_system_refuses_once_is_a_zoo_error_once(
    shared_broker: Running, monkeypatch: pytest.MonkeyPatch, holder: Any, call: str, failure: BaseException
) -> None:
    with Client(shared_broker.endpoint, timeout=5.0, arena_mb=8) as zoo:
        with monkeypatch.context() as patch:
            patch.setattr(holder, call, once(getattr(holder, call), failure))
            with pytest.raises(ZooError) as told:
                zoo.infer("toy", FRAME)
        assert isinstance(told.value, BrokerUnreachable | OutOfMemory)
        assert told.value.retryable
        assert zoo.infer("toy", FRAME)["shape"] == [4, 4, 3]
        assert arena(zoo)  # not inline for life


@pytest.mark.parametrize("failure", [NO_FILES, NO_MEMORY, MemoryError()])
def test_a_result_arena_that_cannot_be_mapped_once_is_mapped_the_next_time(
    broker: Start, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    client = broker().client()
    client.infer("toy", FRAME)
    with monkeypatch.context() as patch:
        patch.setattr(mmap, "mmap", once(mmap.mmap, failure))
        with pytest.raises(BrokerUnreachable, match="mapped") as told:
            client.infer("toy", FRAME, do="large")
    assert told.value.retryable
    for _ in range(20):  # and the slot of the one that was lost went back
        found = client.infer("toy", FRAME + 3, do="large")["map"]
        assert (found == 3).all()
        assert not found.flags.owndata
    assert client.get_status()["sessions"] == 1


def test_a_broker_that_ends_while_an_arena_is_made_does_not_make_the_client_send_inline(
    broker: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = broker()
    client = running.client(timeout=10.0)
    client.get_status()
    reserve = os.posix_fallocate

    def end(*args: Any) -> None:
        running.kill()
        reserve(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", end)
        with pytest.raises(BrokerUnreachable) as told:
            client.infer("toy", FRAME)
    assert told.value.retryable
    running.start()
    assert client.infer("toy", FRAME)["shape"] == [4, 4, 3]
    assert arena(client)


def test_a_process_that_runs_out_of_descriptors_is_told_so_and_goes_on(shared_broker: Running) -> None:
    script = f"""
import resource, threading
import numpy as np
from zoo import Client, ZooError
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
frame = np.zeros((4, 4, 3), np.uint8)
clients, told = [], None
while told is None and len(clients) < 100:
    client = Client({shared_broker.endpoint!r}, timeout=3.0, arena_mb=1)
    try:
        client.infer("toy", frame)
    except ZooError as e:
        told = e
    clients.append(client)
assert told is not None and told.retryable, told
print(type(told).__name__, told)
for client in clients[:-1]:
    client.close()
assert clients[-1].infer("toy", frame, timeout=10.0)["shape"] == [4, 4, 3]
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=60.0,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "ulimit" in done.stdout


def test_more_threads_than_zeromq_has_sockets_by_default(shared_broker: Running) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 8000:
        pytest.skip("this machine has not the descriptors")
    from zoo.client import session

    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 8000), hard))
    try:
        context = session.context()
        made = [context.socket(zmq.DEALER) for _ in range(1100)]
        with Client(shared_broker.endpoint, arena_mb=8) as client:
            assert client.get_status()["sessions"] >= 1
        for sock in made:
            sock.close(0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# ---------------------------------------------------------------- leases


def test_a_lease_that_was_lost_with_its_broker_is_taken_again_by_its_next_call(broker: Start) -> None:
    running = broker()
    client = running.client()
    lease = client.load("toy", keep_alive=100.0)
    assert not lease.lost
    running.kill()
    running.start()
    assert client.get_status()["leases"] == 0
    assert lease.lost
    assert lease(FRAME)["shape"] == [4, 4, 3]
    assert not lease.lost
    assert client.get_status()["leases"] == 1
    assert lease(FRAME)["shape"] == [4, 4, 3]
    assert client.get_status()["leases"] == 1
    lease.release()
    assert not lease.lost
    assert client.get_status()["leases"] == 0


def test_an_async_lease_that_was_lost_with_its_broker_is_taken_again_by_its_next_call(broker: Start) -> None:
    async def work() -> None:
        async with AsyncClient(running.endpoint, timeout=20.0, arena_mb=8) as zoo:
            async with zoo.load("toy") as lease:
                await asyncio.to_thread(running.kill)
                await asyncio.to_thread(running.start)
                assert (await zoo.get_status())["leases"] == 0
                assert lease.lost
                answers = await asyncio.gather(*(lease(FRAME) for _ in range(5)))
                assert all(one["shape"] == [4, 4, 3] for one in answers)
                assert not lease.lost
                assert (await zoo.get_status())["leases"] == 1
            assert (await zoo.get_status())["leases"] == 0

    running = broker()
    asyncio.run(work())


def test_a_lease_that_cannot_be_taken_again_says_so(broker: Start) -> None:
    running = broker()
    client = running.client()
    lease = client.load("toy")
    running.kill()
    running.config_path.write_text(running.config_path.read_text().replace('name = "toy"', 'name = "other"'))
    running.start()
    with pytest.raises(ZooError, match="toy"):
        lease(FRAME)
    assert lease.lost
    lease.release()
