"""config.toml read again by a running broker: what changes, what is said, and what a broken file does (nothing)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import Callable

import numpy as np
import pytest

import zoo
from tests.support import Running, toy, wait_until
from zoo.cli import main
from zoo.config.changes import compare
from zoo.config.reading import parse_config

FRAME = np.zeros((8, 8, 3), np.uint8)
Start = Callable[..., Running]


def rewrite(running: Running, *pairs: tuple[str, str]) -> None:
    text = running.config_path.read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    running.config_path.write_text(text)


def test_under_load_nothing_is_lost_and_all_of_it_is_taken_over(broker: Start) -> None:
    running = broker([toy(name, vram_mb=100) for name in ("a", "b", "c")], vram_budget_gb=0.5)
    client = running.client()
    for name in "abc":
        client.infer(name, FRAME)
    stop, served, failed = threading.Event(), [0], []

    def load() -> None:
        while not stop.is_set():
            try:
                client.infer("a", FRAME)
                served[0] += 1
            except zoo.ZooError as e:
                failed.append(e)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        before = running.config_path.read_text()
        rewrite(running, ("vram_budget_gb = 0.5", "vram_budget_gb = 0.2"), ('name = "c"', 'name = "d"'))
        with client.load("b"):
            lines = client.reload()
            assert lines == ["vram_budget_gb: 0.5 is now 0.2", "c: removed", "d: added"]
            wait_until(lambda: client.get_status()["vram_used_mb"] == 200)
            assert client.get_status()["vram_budget_mb"] == pytest.approx(204.8)
            with pytest.raises(zoo.ModelNotFound):
                client.infer("c", FRAME)
        assert client.infer("d", FRAME)["mean"] == 0
        assert client.reload() == []
        good = running.config_path.read_text()
        running.config_path.write_text(good + "\n[broker2]\n")
        with pytest.raises(zoo.ZooError, match="unknown table or key 'broker2'") as caught:
            client.reload()
        assert caught.value.code == "config_error"
        assert [m["name"] for m in client.models()] == ["a", "b", "d"]
        running.config_path.write_text("[broker")
        assert running.process is not None
        os.kill(running.pid, signal.SIGHUP)
        wait_until(lambda: "the configuration stays as it is" in running.log())
        running.config_path.write_text(before)
        os.kill(running.pid, signal.SIGHUP)
        wait_until(lambda: [m["name"] for m in client.models()] == ["a", "b", "c"])
        served_before = served[0]
        wait_until(lambda: served[0] > served_before + 20)
    finally:
        stop.set()
        thread.join()
    assert failed == []


def test_new_options_are_those_of_the_next_process(broker: Start, capsys: pytest.CaptureFixture[str]) -> None:
    running = broker([toy("a", options={"max_batch": 2})])
    client = running.client()
    pid = client.infer("a", FRAME)["pid"]
    rewrite(running, ('"max_batch" = 2', '"max_batch" = 3'))
    assert main.main(["--endpoint", running.endpoint, "reload", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == ["a: options: {'max_batch': 2} is now {'max_batch': 3}"]
    assert client.infer("a", FRAME)["pid"] != pid
    assert main.main(["--endpoint", running.endpoint, "reload"]) == 0
    assert capsys.readouterr().out == "nothing has changed\n"
    assert any("draining: its settings changed" in line for line in client.explain("a"))

    async def ask() -> list[str]:
        async with zoo.AsyncClient(running.endpoint, arena_mb=8) as aio:
            return await aio.reload()

    assert asyncio.run(ask()) == []


def test_what_takes_a_restart_is_said_and_left() -> None:
    old = parse_config('[broker]\nfootprint = "declared"\n[[devices]]\nname = "cpu"\nkind = "cpu"\nbudget_gb = 1')
    new = parse_config('[broker]\nfootprint = "measured"\nmax_queue = 3\n[[devices]]\nname = "x"\nkind = "cpu"')
    found = compare(old, new)
    assert found.text() == [
        "footprint: 'declared' stays; 'measured' takes a restart of the broker",
        "max_queue: 256 is now 3",
        "devices: others take a restart of the broker",
    ]
    assert (found.config.broker.footprint, found.config.broker.max_queue) == ("declared", 3)
    assert found.config.devices == old.devices
    with pytest.raises(zoo.ZooError, match=r"models\.device: a names 'x', which takes a restart"):
        compare(old, parse_config('[[devices]]\nname = "x"\nkind = "cpu"\n[[models]]\nname = "a"\ndevice = "x"'))
