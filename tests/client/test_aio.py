"""What users of `zoo.AsyncClient` rely on: Client's calls with await, safe among tasks, and nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import warnings
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from tests.client.inside import slots
from tests.support import Running, toy
from zoo import (
    AsyncClient,
    BrokerUnreachable,
    Client,
    DeadlineExceeded,
    InvalidInput,
    LoadFailed,
    ModelInUse,
    ModelNotFound,
    QueueFull,
)
from zoo.wire import protocol

Start = Callable[..., Running]
FRAME = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)


def run(work: Coroutine[Any, Any, None]) -> None:
    """Runs a test's coroutine: in asyncio's debug mode, and every warning (unclosed, destroyed) is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        complaints: list[dict[str, Any]] = []

        async def watched() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
            await work
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, left

        asyncio.run(watched(), debug=True)
        gc.collect()
        assert complaints == []


async def until(condition: Callable[[], Awaitable[Any]], timeout: float = 10.0) -> None:
    async with asyncio.timeout(timeout):
        while not await condition():
            await asyncio.sleep(0.005)


def sockets() -> int:
    return sum(os.readlink(f"/proc/self/fd/{fd}").startswith("socket") for fd in os.listdir("/proc/self/fd") if _is(fd))


def _is(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


def test_every_call_of_the_client_is_there(shared_broker: Running) -> None:
    public = {name for name in dir(Client) if not name.startswith("_")}
    assert public <= {name for name in dir(AsyncClient) if not name.startswith("_")}


def test_inference_of_every_kind(shared_broker: Running) -> None:
    async def work() -> None:
        async with AsyncClient(shared_broker.endpoint, arena_mb=8) as zoo:
            np.testing.assert_array_equal((await zoo.infer("toy", FRAME[:, ::-1], do="echo"))["array"], FRAME[:, ::-1])
            assert (await zoo.infer("toy", [FRAME, FRAME]))["frames"] == 2
            crops = await zoo.infer("toy", FRAME, boxes=[(0, 0, 2, 2), (1, 1, 4, 3)])
            assert [c["shape"] for c in crops] == [[2, 2, 3], [2, 3, 3]]
            answers = await zoo.infer_many(FRAME, ["toy", "toy2", "broken", "nobody"])
            assert answers["toy"]["pid"] != answers["toy2"]["pid"]
            assert isinstance(answers["broken"], LoadFailed)
            assert isinstance(answers["nobody"], ModelNotFound)
            for value in range(50):
                large = await zoo.infer("toy", np.full((1, 1, 3), value, np.uint8), do="large")
                assert large["map"][0, 0] == large["map"][-1, -1] == value
            with pytest.raises(ModelNotFound):
                await zoo.infer("nobody", FRAME)
            with pytest.raises(InvalidInput, match="options"):
                await zoo.infer("toy", FRAME, what=object())
            assert slots(zoo) == 0

    run(work())


def test_frames_leases_and_questions(broker: Start) -> None:
    async def work() -> None:
        async with AsyncClient(running.endpoint, arena_mb=8) as zoo:
            async with zoo.frame((8, 8, 3)) as frame:
                for value in range(10):
                    frame.array[:] = value
                    assert (await zoo.infer("toy", frame, do="peek"))["value"] == value
                assert slots(zoo) == 1
            assert slots(zoo) == 0
            with await zoo.frame((8, 8, 3)) as frame:
                assert slots(zoo) == 1
            with pytest.raises(InvalidInput):
                await zoo.infer("toy", frame)
            async with zoo.load("toy") as lease:
                assert (await lease(FRAME))["shape"] == [4, 5, 3]
                async with await zoo.load("toy"):
                    assert (await zoo.get_status())["leases"] == 2
                with pytest.raises(ModelInUse):
                    await zoo.unload("toy")
            await lease.release()
            assert (await zoo.get_status())["leases"] == 0
            assert await zoo.unload("toy") is True
            await zoo.get_model("toy")
            await zoo.pin("toy")
            assert (await zoo.processes())[0]["pinned"]
            await zoo.unpin("toy")
            assert [row["name"] for row in await zoo.models()] == ["toy"]
            assert any("loaded in" in line for line in await zoo.explain("toy"))
            assert await zoo.cleanup_idle_models(0.0) == ["toy"]

    running = broker()
    run(work())


def test_hundreds_of_tasks_share_a_client_and_a_small_arena(shared_broker: Running) -> None:
    async def work() -> None:
        async with AsyncClient(shared_broker.endpoint, arena_mb=1) as zoo:

            async def one(value: int) -> None:
                frame = np.full(200_000, value, np.uint8).reshape(100, 2000, 1)
                assert (await zoo.infer("toy", frame, do="peek"))["value"] == value

            await asyncio.gather(*(one(i % 256) for i in range(400)))
            assert slots(zoo) == 0
            async with zoo.frame((1 << 20,)):
                with pytest.raises(QueueFull):
                    await zoo.infer("toy", FRAME, timeout=0.1)

    run(work())


def test_a_cancelled_task_withdraws_its_request_and_keeps_the_slot_until_it_is_settled(broker: Start) -> None:
    async def work() -> None:
        async with AsyncClient(running.endpoint, arena_mb=8) as zoo:
            await zoo.get_model("toy")
            tasks = [asyncio.create_task(zoo.infer("toy", FRAME, do="sleep", seconds=0.5)) for _ in range(3)]
            await until(lambda: _requests(zoo, 3))
            for task in tasks:
                task.cancel()
            assert all(
                isinstance(e, asyncio.CancelledError) for e in await asyncio.gather(*tasks, return_exceptions=True)
            )
            assert slots(zoo) >= 1  # the one that is running
            await until(lambda: _requests(zoo, 0))
            await until(lambda: _free(zoo))
            assert (await zoo.infer("toy", FRAME))["shape"] == [4, 5, 3]

    running = broker()
    run(work())


async def _requests(zoo: AsyncClient, count: int) -> bool:
    return bool((await zoo.get_status())["requests"] == count)


async def _free(zoo: AsyncClient) -> bool:
    return slots(zoo) == 0


def test_a_cancelled_load_leaves_no_lease(broker: Start) -> None:
    async def work() -> None:
        async with AsyncClient(running.endpoint, arena_mb=8) as zoo:
            for delay in (0.0, 0.05, 0.2, 0.3):
                task = asyncio.ensure_future(_await(zoo.load("toy")))
                await asyncio.sleep(delay)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                if not task.cancelled():
                    await task.result().release()
            await zoo.get_model("toy")
            for turns in range(60):  # cancelled at every stage of a load that takes no time
                task = asyncio.ensure_future(_await(zoo.load("toy")))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                if not task.cancelled():
                    await task.result().release()
            await until(lambda: _no_leases(zoo))

    running = broker([toy(options={"load_seconds": 0.2})])
    run(work())


async def _await(thing: Awaitable[Any]) -> Any:
    return await thing


async def _no_leases(zoo: AsyncClient) -> bool:
    return bool((await zoo.get_status())["leases"] == 0)


def test_deadlines(broker: Start) -> None:
    async def work() -> None:
        async with AsyncClient(running.endpoint, arena_mb=8) as zoo:
            await zoo.infer("toy", FRAME)  # its arena is made
            with pytest.raises(DeadlineExceeded):
                await zoo.infer("toy", FRAME, timeout=0.2, do="sleep", seconds=0.5)
            assert slots(zoo) == 1
            await until(lambda: _free(zoo))

    running = broker()
    run(work())


def test_a_killed_broker_fails_what_is_under_way_and_its_successor_serves_the_same_client(broker: Start) -> None:
    async def work() -> None:
        async with AsyncClient(running.endpoint, timeout=20.0, arena_mb=8) as zoo:
            lease = await zoo.load("toy")
            async with zoo.frame((8, 8, 3)) as frame:
                frame.array[:] = 42
                tasks = [asyncio.create_task(zoo.infer("toy", frame, do="sleep", seconds=5.0)) for _ in range(3)]
                await until(lambda: _requests(zoo, 3))
                await asyncio.to_thread(running.kill)
                for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                    assert isinstance(outcome, BrokerUnreachable)
                    assert outcome.retryable
                first = asyncio.create_task(zoo.infer("toy", frame, do="peek"))
                await asyncio.to_thread(running.start)
                assert (await first)["value"] == 42
                answers = await asyncio.gather(*(zoo.infer("toy", frame, do="peek") for _ in range(5)))
                assert [a["value"] for a in answers] == [42] * 5
            await lease.release()
            assert slots(zoo) == 0

    running = broker()
    run(work())


def test_an_absent_broker_and_calls_that_are_cancelled(zoo_dir: object) -> None:
    async def work() -> None:
        async with AsyncClient(f"ipc://{zoo_dir}/b", timeout=20.0) as zoo:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await zoo.get_status()
            with pytest.raises(BrokerUnreachable, match="zoo serve"):
                await zoo.infer("toy", FRAME, timeout=0.2)
            waiting = asyncio.create_task(zoo.get_status())
            await asyncio.sleep(0)
            await zoo.close()
            with pytest.raises(BrokerUnreachable):
                await waiting

    run(work())


def test_close_ends_what_is_under_way_and_leaves_nothing(broker: Start) -> None:
    async def work() -> None:
        zoo = AsyncClient(running.endpoint, arena_mb=8)
        await zoo.load("toy")
        calls = [asyncio.create_task(zoo.infer("toy", FRAME, do="sleep", seconds=0.5)) for _ in range(3)]
        await until(lambda: _requests(zoo, 3))
        await zoo.close()
        await zoo.close()
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(outcome, BrokerUnreachable)
        with pytest.raises(BrokerUnreachable, match="closed"):
            await zoo.get_status()

        async def alone() -> bool:
            status = watcher.get_status()
            return (status["sessions"], status["leases"], status["requests"]) == (1, 0, 0)

        await until(alone)

    running = broker()
    watcher = running.client()
    watcher.get_status()
    before = sockets(), threading.active_count()
    for _ in range(3):
        run(work())
    assert sockets() <= before[0]


def test_tcp_with_pings(far_broker: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    running = far_broker()
    monkeypatch.setattr(protocol, "PING_S", 0.05)
    running.start()
    watcher = running.client()

    async def work() -> None:
        async with AsyncClient(running.endpoint, arena_mb=8) as zoo:
            async with zoo.load("toy") as lease, zoo.frame((64, 64, 3)) as frame:
                frame.array[:] = 3
                assert ((await lease(frame, do="large"))["map"] == 3).all()
                await asyncio.sleep(0.2)  # some pings
                assert (await lease(FRAME))["shape"] == [4, 5, 3]
            running.kill()
            running.start()

            async def served() -> bool:
                try:
                    return bool((await zoo.infer("toy", FRAME, timeout=2.0))["shape"])
                except (BrokerUnreachable, DeadlineExceeded):
                    return False

            await until(served)

        async def alone() -> bool:
            return bool((await asyncio.to_thread(watcher.get_status))["sessions"] == 1)

        with pytest.raises(BrokerUnreachable):
            watcher.get_status()
        await until(alone)

    watcher.get_status()
    run(work())
