"""Several devices, and several workers of one model on them, with real processes: host memory plays the devices."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import zoo
from tests.support import Running, tables, toy, wait_until

FRAME = np.zeros((8, 8, 3), np.uint8)
Start = Callable[..., Running]


def two_devices(start: Start, *models: dict[str, Any]) -> Running:
    devices = [{"name": name, "kind": "cpu", "budget_gb": 0.2} for name in ("left", "right")]
    return start(tables("devices", devices) + tables("models", list(models)))


def workers(client: zoo.Client) -> dict[str, int]:
    """Names in `ps` of those that are loaded, and their processes."""
    return {row["name"]: row["pid"] for row in client.processes() if row["state"] == "loaded"}


def busy(client: zoo.Client, pool: ThreadPoolExecutor, count: int) -> list[Future[Any]]:
    return [pool.submit(client.infer, "hot", FRAME, do="sleep", seconds=0.05) for _ in range(count)]


def test_a_hot_model_gets_a_second_worker_and_outlives_either(broker: Start) -> None:
    running = two_devices(broker, toy("hot", max_instances=2), toy("cold"))
    client = running.client()
    client.infer("hot", FRAME)
    with ThreadPoolExecutor(64) as pool:
        asked = busy(client, pool, 40)
        wait_until(lambda: len(workers(client)) == 2, what="the second worker is loaded")
        assert {row["name"]: row["device"] for row in client.processes()} == {"hot": "left", "hot#2": "right"}
        pids = set(workers(client).values())
        assert {future.result()["pid"] for future in asked} == pids

        slow = pool.submit(client.infer, "hot", FRAME, do="sleep", seconds=0.7)
        wait_until(lambda: any(row["inflight"] for row in client.processes()))
        quick = {client.infer("hot", FRAME)["pid"] for _ in range(5)}
        assert not slow.done()
        assert quick == pids - {slow.result()["pid"]}, "the worker with the fewest requests is asked"

        frames = [np.full((8, 8, 3), i, np.uint8) for i in range(12)]
        maps = list(pool.map(lambda frame: client.infer("hot", frame, do="large")["map"], frames))
        assert [int(found[0, 0]) for found in maps] == list(range(12)), "each from the memory of its own worker"
        del maps

        asked = busy(client, pool, 20)
        os.kill(workers(client)["hot"], signal.SIGKILL)
        assert all(future.result()["pid"] in {*pids, *workers(client).values()} for future in asked)
    status = client.get_status()
    assert [row["name"] for row in status["loaded_models"]] == ["hot"]
    assert any("its primary worker is the one on right from now on" in line for line in client.explain("hot"))
    assert client.unload("hot")
    assert client.get_status()["vram_used_mb"] == 0


def test_a_model_is_loaded_on_the_device_that_it_names(broker: Start) -> None:
    running = two_devices(
        broker, toy("a", device="right"), toy("b", vram_mb=200), toy("c", vram_mb=200, device="right")
    )
    client = running.client()
    for name in "abc":
        client.infer(name, FRAME)
    assert {row["name"]: row["device"] for row in client.processes()} == {"b": "left", "c": "right"}
    text = running.config_path.read_text()
    running.config_path.write_text(text.replace('device = "right"', 'device = "top"'))
    with pytest.raises(zoo.ZooError, match=r"models\.device: 'top' is not the name of one of the \[\[devices\]\]"):
        client.reload()
    running.config_path.write_text(text.replace('name = "c"\n', 'name = "c"\nenabled = false\n'))
    client.reload()
    wait_until(lambda: [row["name"] for row in client.processes()] == ["b"])
