"""Clients in forked children, in a second event loop, and dropped without a word."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.client.inside import arena, driver, link, slots
from tests.support import ROOT, Running, toy, wait_until
from zoo import AsyncClient, BrokerUnreachable, Client, InvalidInput, ZooError

Start = Callable[..., Running]
FRAME = np.zeros((4, 4, 3), np.uint8)


def in_child(act: Callable[[], Any], within: float = 5.0) -> str:
    """What `act` gives, or raises, in a forked child; it has to be done in time."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            try:
                said = repr(act())
            except BaseException as e:
                said = f"{type(e).__name__}: {e}"
            os.write(write, said.encode())
        finally:
            os._exit(0)
    os.close(write)
    end = time.monotonic() + within
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        if time.monotonic() > end:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            os.close(read)
            raise AssertionError("the child hangs")
        time.sleep(0.005)
    said = os.read(read, 10_000).decode()
    os.close(read)
    return said


CALLS: dict[str, Callable[[Any], Any]] = {
    "infer": lambda zoo: zoo.infer("toy", FRAME),
    "frame": lambda zoo: zoo.frame((4, 4, 3)),
    "load": lambda zoo: zoo.load("toy"),
    "get_status": lambda zoo: zoo.get_status(),
    "enrich": lambda zoo: zoo.enrich(FRAME, []),
}


def hold_every_lock(client: Client, go_on: threading.Event) -> threading.Thread:
    """Another thread is in the middle of everything when the fork comes."""
    held = threading.Event()

    def hold() -> None:
        own = driver(client)
        with own._lock, own.link._lock, own.depot._lock, arena(client)._mutex:
            held.set()
            go_on.wait(20.0)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(5.0)
    return thread


def test_a_child_cannot_use_its_parents_client_and_hears_so_at_once(broker: Start) -> None:
    running = broker()
    client = running.client()
    client.infer("toy", FRAME)
    frame, lease = client.frame((4, 4, 3)), client.load("toy")
    go_on = threading.Event()
    thread = hold_every_lock(client, go_on)
    try:
        for call in CALLS.values():
            assert "fork" in in_child(lambda call=call: call(client))
        assert "fork" in in_child(lambda: lease(FRAME))
        for act in (client.close, frame.close, lease.release):
            assert in_child(act) == "None"
        assert in_child(lambda: Client(running.endpoint, arena_mb=8).infer("toy", FRAME)["shape"]) == "[4, 4, 3]"
    finally:
        go_on.set()
        thread.join()
    assert client.infer("toy", frame)["shape"] == [4, 4, 3]  # nothing that they did came through
    assert lease(FRAME)["shape"] == [4, 4, 3]
    status = client.get_status()
    assert (status["sessions"], status["leases"]) == (1, 1)


def test_a_frame_of_the_parent_is_refused_to_a_client_of_the_child(broker: Start) -> None:
    running = broker()
    client = running.client()
    frame = client.frame((4, 4, 3))
    said = in_child(lambda: Client(running.endpoint, arena_mb=8).infer("toy", frame))
    assert said.startswith(InvalidInput.__name__)
    assert "forked" in said


def test_a_child_cannot_cut_off_its_parents_async_client(broker: Start) -> None:
    async def work() -> None:
        async with AsyncClient(running.endpoint, timeout=5.0, arena_mb=8) as zoo:
            await zoo.infer("toy", FRAME)
            lease = await zoo.load("toy")
            for _ in range(2):

                def drive(make: Callable[[], Any]) -> str:
                    def act() -> Any:
                        asyncio.events._set_running_loop(None)
                        return asyncio.new_event_loop().run_until_complete(make())

                    return in_child(act)

                assert drive(zoo.close) == "None"
                assert drive(lease.release) == "None"
                assert "fork" in drive(zoo.get_status)
                assert "fork" in drive(lambda: zoo.infer("toy", FRAME))
            assert (await zoo.infer("toy", FRAME, timeout=3.0))["shape"] == [4, 4, 3]
            assert (await zoo.get_status())["leases"] == 1

    running = broker()
    asyncio.run(work())


# ---------------------------------------------------------------- event loops


def test_an_async_client_goes_with_its_program_to_the_next_event_loop(broker: Start) -> None:
    running = broker()
    zoo = AsyncClient(running.endpoint, timeout=5.0, arena_mb=8)
    leases: list[Any] = []

    async def first() -> None:
        assert (await zoo.infer("toy", FRAME))["shape"] == [4, 4, 3]
        leases.append(await zoo.load("toy"))

    async def second() -> None:
        shapes = await asyncio.gather(*(zoo.infer("toy", FRAME, timeout=2.0) for _ in range(20)))
        assert all(one["shape"] == [4, 4, 3] for one in shapes)
        assert (await leases[0](FRAME))["shape"] == [4, 4, 3]
        assert (await zoo.get_status())["leases"] == 1
        await leases[0].release()
        await zoo.close()

    asyncio.run(first())
    asyncio.run(second())
    watcher = running.client()
    wait_until(lambda: watcher.get_status()["sessions"] == 1)


def test_an_async_client_says_at_once_that_another_loop_has_it(broker: Start) -> None:
    running = broker()

    async def work() -> None:
        async with AsyncClient(running.endpoint, timeout=5.0, arena_mb=8) as zoo:
            await zoo.get_status()

            def elsewhere() -> float:
                started = time.monotonic()
                with pytest.raises(BrokerUnreachable, match="loop") as failure:
                    asyncio.run(zoo.get_status())
                assert not failure.value.retryable
                return time.monotonic() - started

            assert await asyncio.to_thread(elsewhere) < 1.0
            assert (await zoo.infer("toy", FRAME))["shape"] == [4, 4, 3]

    asyncio.run(work())


# ---------------------------------------------------------------- what is dropped


def resident(kind: str) -> int:
    """Bytes of this process's mappings of that name."""
    with open("/proc/self/maps") as file:
        spans = [line.split()[0].split("-") for line in file if kind in line]
    return sum(int(b, 16) - int(a, 16) for a, b in spans)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_dropped_client_gives_everything_back(broker: Start) -> None:
    running = broker()
    watcher = running.client()
    watcher.get_status()
    gc.collect()
    gc.disable()  # no cycle may hold it
    try:
        before = resident("zoo-arena"), wait_descriptors()
        for _ in range(5):
            client = Client(running.endpoint, timeout=10.0, arena_mb=8)
            lease = client.load("toy")
            client.infer("toy", FRAME)
            frame = client.frame((8, 8, 3))
            del client, lease, frame
        wait_until(lambda: resident("zoo-arena") == before[0], what="its memory is gone")
        wait_until(lambda: descriptors() <= before[1], what="its descriptors are gone")
    finally:
        gc.enable()
    status = wait_until(lambda: (s := watcher.get_status())["sessions"] == 1 and s)
    assert status["leases"] == 0


def wait_descriptors() -> int:
    """How many there are, once ZeroMQ's thread has closed what it closes late."""
    seen = descriptors()
    for _ in range(20):
        time.sleep(0.01)
        seen = min(seen, descriptors())
    return seen


def test_a_dropped_async_client_gives_everything_back(broker: Start) -> None:
    running = broker()
    watcher = running.client()
    watcher.get_status()
    before = resident("zoo-arena")

    async def work() -> None:
        zoo = AsyncClient(running.endpoint, timeout=10.0, arena_mb=8)
        await zoo.infer("toy", FRAME)
        lease = await zoo.load("toy")
        assert lease.model == "toy"

    async def twice() -> None:
        await work()
        gc.collect()
        for _ in range(500):
            if (await asyncio.to_thread(watcher.get_status))["sessions"] == 1:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("its session lives on")

    asyncio.run(twice())
    asyncio.run(work())
    gc.collect()
    wait_until(lambda: watcher.get_status()["sessions"] == 1)
    assert watcher.get_status()["leases"] == 0
    wait_until(lambda: resident("zoo-arena") == before)


def test_a_dropped_frame_gives_its_slot_back_when_its_array_is_gone_too(broker: Start) -> None:
    client = broker().client()
    client.infer("toy", FRAME)
    frame = client.frame((8, 8, 3))
    client.infer("toy", frame)
    array = frame.array[2:]
    del frame
    assert slots(client) == 1
    array[:] = 1  # it is still ours
    del array
    assert slots(client) == 0


def test_a_dropped_lease_is_given_back(broker: Start) -> None:
    client = broker().client()
    lease = client.load("toy")
    assert client.get_status()["leases"] == 1
    del lease
    wait_until(lambda: client.get_status()["leases"] == 0)
    assert client.unload("toy")


def test_a_dropped_client_over_tcp_ends_its_session_and_its_thread(far_broker: Start) -> None:
    running = far_broker()
    running.start()
    watcher = running.client()
    watcher.get_status()
    before = threading.active_count()
    client = Client(running.endpoint, timeout=10.0, arena_mb=8)
    lease = client.load("toy")
    assert lease(FRAME)["shape"] == [4, 4, 3]
    del client, lease
    status = wait_until(lambda: (s := watcher.get_status())["sessions"] == 1 and s)
    assert status["leases"] == 0
    wait_until(lambda: threading.active_count() == before)


def test_a_program_that_ends_without_closing_prints_nothing(broker: Start, tmp_path: Path) -> None:
    running = broker([toy()])
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import asyncio, threading
import numpy as np
from zoo import AsyncClient, Client

zoo = Client({running.endpoint!r})
lease = zoo.load("toy")
frame = zoo.frame((8, 8, 3))
kept = zoo.infer("toy", frame, do="large")
threading.Thread(target=zoo.infer, args=("toy", frame)).start()
other = AsyncClient({running.endpoint!r})

async def work():
    global there, more
    there = await other.load("toy")
    more = await there(np.ones((2, 2, 3), np.uint8), do="large")

asyncio.run(work())
zoo.cycle = zoo
print("done")
"""
    )
    done = subprocess.run(
        [sys.executable, str(script)], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, timeout=30.0
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"done\n", b"")


def test_nothing_is_warned_about_when_a_client_is_dropped(broker: Start) -> None:
    running = broker()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        client = Client(running.endpoint, arena_mb=8)
        client.infer("toy", FRAME)
        line = link(client)
        del client
        assert line.fileno() == -1


def test_a_client_that_could_not_be_made_is_dropped_in_silence() -> None:
    with pytest.raises(ZooError):
        Client("nonsense")
    with pytest.raises(ZooError):
        AsyncClient(timeout=-1)
