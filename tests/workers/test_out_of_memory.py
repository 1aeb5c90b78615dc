"""Memory that really runs out, in real processes: their address space is limited, or they are killed from outside."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo
from tests.support import Running, toy, wait_until

FRAME = np.zeros((8, 8, 3), np.uint8)
MEASURED: dict[str, Any] = {"footprint": "measured", "state_dir": "state"}

Start = Callable[..., Running]


def ps(client: zoo.Client, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(row for row in client.processes() if row["name"] == name)
    return found


def loaded(client: zoo.Client) -> set[str]:
    return {row["name"] for row in client.get_status()["loaded_models"]}


def said(client: zoo.Client, model: str, what: str) -> bool:
    return any(what in line for line in client.explain(model))


def test_a_load_that_runs_out_is_tried_once_more_with_room_for_what_it_lacked(broker: Start, zoo_dir: Path) -> None:
    options = {"ballast_mb": 150, "spare_mb": 100, "lifted": zoo_dir / "lifted"}
    models = [toy("a", vram_mb=100, options=options), toy("idle", vram_mb=120)]
    client = broker(models, vram_budget_gb=0.25, **MEASURED).client()
    client.get_model("idle")
    assert client.infer("a", FRAME)["mean"] == 0
    assert said(client, "a", "charged 100 MB on cpu: MemoryError: Unable to allocate 150. MiB")
    assert said(client, "a", "it is tried once more, with ")
    assert said(client, "idle", "evicted, 120 MB on cpu: a needs 1")
    assert loaded(client) == {"a"}
    assert 150 < ps(client, "a")["vram_mb"] < 256


def test_a_load_that_runs_out_twice_fails_as_such_and_what_was_learnt_is_kept(broker: Start) -> None:
    running = broker([toy("a", vram_mb=100, options={"ballast_mb": 250, "spare_mb": 100})], **MEASURED)
    client = running.client()
    with pytest.raises(zoo.OutOfMemory, match="so it did before, and of 6963") as caught:
        client.infer("a", FRAME)
    assert caught.value.retryable
    assert caught.value.retry_after == 1.0
    with pytest.raises(zoo.LoadFailed, match="memory ran out"):
        client.infer("a", FRAME)
    wait_until(lambda: client.get_status()["workers"] == 0)
    assert client.models()[0]["measured_mb"] > 250
    client.close()
    running.stop()
    assert running.start().client().models()[0]["measured_mb"] > 250


def test_a_request_that_runs_out_is_tried_once_more_by_the_same_process(broker: Start, zoo_dir: Path) -> None:
    limited = {"spare_mb": 120, "lifted": zoo_dir / "lifted"}
    models = [toy("a", vram_mb=100, options=limited), toy("held", vram_mb=150), toy("idle", vram_mb=150)]
    client = broker(models, vram_budget_gb=0.5, **MEASURED).client()
    pid = client.infer("a", FRAME)["pid"]
    client.get_model("idle")
    with client.load("held"):
        assert client.infer("a", FRAME, take_mb=250)["pid"] == pid
        assert loaded(client) == {"a", "held"}
    assert said(client, "a", "out of memory; a is charged") or said(client, "a", "tried once more when it may be ")
    assert said(client, "idle", "evicted, 150 MB on cpu: a needs ")
    assert ps(client, "a")["vram_mb"] > 250


def test_a_request_that_always_runs_out_is_told_and_the_process_lives_on(broker: Start) -> None:
    client = broker([toy("a", vram_mb=100, options={"spare_mb": 120})], vram_budget_gb=1, **MEASURED).client()
    pid = client.infer("a", FRAME)["pid"]
    with pytest.raises(zoo.OutOfMemory, match=r"Unable to allocate 250\. MiB.*and so it did before"):
        client.infer("a", FRAME, take_mb=250)
    with pytest.raises(zoo.ModelTooLarge, match="the whole budget is 1024; nothing was evicted"):
        client.infer("a", FRAME, take_mb=5000)
    assert client.infer("a", FRAME)["pid"] == pid
    assert client.infer("a", FRAME, take_mb=20)["pid"] == pid


def test_a_batch_that_runs_out_is_halved_and_each_request_answered(broker: Start) -> None:
    client = broker([toy("a", vram_mb=100, options={"spare_mb": 700, "max_batch": 4})], **MEASURED).client()
    pid = client.infer("a", FRAME)["pid"]

    def rounds() -> bool:
        with ThreadPoolExecutor(12) as pool:
            assert set(pool.map(lambda _: client.infer("a", FRAME, take_mb=300)["pid"], range(60))) == {pid}
        return said(client, "a", "requests at once: at most ")

    wait_until(rounds, what="several are run at once")


def test_a_process_that_the_kernel_ends_for_want_of_memory_is_followed_by_a_larger_one(broker: Start) -> None:
    running = broker([toy("a", vram_mb=400)], module="tests.metered", start=False, **MEASURED)
    count = running.folder / "oom"
    count.write_text("oom_kill 3\n")
    client = running.start().client()
    pid = client.infer("a", FRAME, do="sleep", seconds=0)["pid"]
    charged = ps(client, "a")["vram_mb"]
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.infer, "a", FRAME, do="sleep", seconds=0.5)
        wait_until(lambda: ps(client, "a")["inflight"] == 1)
        count.write_text("oom_kill 4\n")
        os.kill(pid, signal.SIGKILL)
        assert answer.result(timeout=20)["pid"] != pid
    assert said(client, "a", "its process ended (killed by SIGKILL, by the kernel: memory ran out) while running")
    assert ps(client, "a")["vram_mb"] >= 1.25 * charged


def test_nothing_is_learnt_from_a_process_that_another_one_kills(broker: Start) -> None:
    running = broker([toy("a", vram_mb=400)], **MEASURED)
    client = running.client()
    pid = client.infer("a", FRAME)["pid"]
    charged = ps(client, "a")["vram_mb"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: said(client, "a", "its process ended (killed by SIGKILL, by another process"))
    assert client.infer("a", FRAME)["pid"] != pid
    assert ps(client, "a")["vram_mb"] == pytest.approx(charged, abs=5)


def test_what_a_process_is_charged_stays_until_it_is_gone_though_it_takes_its_time(broker: Start) -> None:
    client = broker([toy("a", vram_mb=100, dispatch_timeout=0.3)]).client()
    pid = client.infer("a", FRAME)["pid"]
    with pytest.raises(zoo.WorkerHung):
        client.infer("a", FRAME, do="ignore-term")

    def is_gone() -> bool:
        charged = client.get_status()["vram_used_mb"]
        assert charged or not Path(f"/proc/{pid}").exists()
        return not charged

    assert not is_gone(), "it was asked to go, and does not listen"
    wait_until(is_gone)
