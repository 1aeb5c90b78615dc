"""`zoo top`: what its figures are made of, and its screen at 80 by 24, driven by its keys."""

from __future__ import annotations

import asyncio
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, Static

from tests.support import ROOT, Running, toy
from zoo.cli import main
from zoo.top import figures
from zoo.top.app import Confirm, Top

FRAME = np.full((8, 8, 3), 7, np.uint8)
SIZE = (80, 24)
WAIT_S = 30.0

# ---------------------------------------------------------------- figures


def process(name: str, **keys: Any) -> dict[str, Any]:
    return {"name": name, "state": "loaded", "device": "cpu", "vram_mb": 100.0, "inflight": 0, "queued": 0, "leases": 0,
            "requests": 0, "pinned": False, **keys}  # fmt: skip


def model(name: str, **keys: Any) -> dict[str, Any]:
    return {"name": name, "state": "unloaded", "priority": "MEDIUM", "pinned": False, "problem": None, **keys}


def seen(*processes: dict[str, Any], at: float = 0.0, **status: Any) -> figures.Seen:
    models = [model(name) for name in ("a", "b", "c")]
    return figures.Seen(at, {"pending_loads": [], "queued": {}, **status}, processes, models)


def test_the_workers_of_a_model_are_one_line() -> None:
    look = seen(process("b", inflight=1, leases=2, requests=9, pinned=True), process("b#2", inflight=1, requests=4),
                pending_loads=["c"], queued={"b": 3, "c": 1})  # fmt: skip
    b, c, a = figures.rows(look)
    assert (b.name, b.state, b.charged_mb, b.running, b.waiting, b.leases, b.pinned) == (
        "b", "loaded", 200.0, 2, 3, 2, True,
    )  # fmt: skip
    assert (c.name, c.state, c.waiting) == ("c", "loading", 1)
    assert (a.name, a.state, a.charged_mb) == ("a", "unloaded", 0.0)


def test_a_rate_is_what_was_answered_in_between_and_fades() -> None:
    lines = {row.name: row for row in figures.rows(seen(process("a", requests=10)))}
    assert lines["a"].rate == 0.0
    for _ in range(8):
        found = figures.rows(seen(process("a", requests=lines["a"].answered + 40)), lines, 2.0)
        lines = {row.name: row for row in found}
    assert 19.0 < lines["a"].rate <= 20.0
    for _ in range(12):
        lines = {row.name: row for row in figures.rows(seen(process("a", requests=330)), lines, 1.0)}
    assert lines["a"].rate == 0.0
    again = figures.rows(seen(process("a", requests=3)), lines, 1.0)  # another broker's count
    assert again[0].rate == 0.0


@pytest.mark.parametrize("width", [10, 33, 60])
def test_a_bar_is_filled_exactly_by_what_the_budget_goes_to(width: int) -> None:
    device = {"name": "cpu", "budget_mb": 1000.0, "used_mb": 450.0, "limit_mb": 800.0}
    processes = [process("a", vram_mb=100.0), process("a#2", vram_mb=100.0), process("b", vram_mb=150.0)]
    parts = figures.bar(device, [*processes, process("far", device="cuda:0")], width)
    assert [(part.kind, part.name, part.mb) for part in parts] == [
        ("model", "a", 200.0), ("model", "b", 150.0), ("ending", "", 100.0), ("free", "", 350.0), ("others", "", 200.0),
    ]  # fmt: skip
    assert sum(part.cells for part in parts) == width
    assert all(abs(part.cells - width * part.mb / 1000) <= 1 for part in parts)
    over = figures.bar({**device, "used_mb": 1200.0}, processes, width)  # an overrun
    assert sum(part.cells for part in over) == width
    assert min(part.cells for part in over) >= 0


# ---------------------------------------------------------------- the screen


def driven(endpoint: str, drive: Callable[[Top, Pilot[None]], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        app = Top(endpoint)
        async with app.run_test(size=SIZE) as pilot:
            await drive(app, pilot)

    asyncio.run(run())


async def until(pilot: Pilot[None], condition: Callable[[], Any], what: str = "") -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, what or condition
        await pilot.pause(0.02)


def text(app: Top, where: str) -> str:
    return str(app.query_one(where, Static).render())


def row(app: Top, name: str) -> list[str]:
    """The cells of a model, [] while there is no line of it."""
    table = app.query_one(DataTable)
    return [str(cell) for cell in table.get_row(name)] if name in {key.value for key in table.rows} else []


async def choose(app: Top, pilot: Pilot[None], name: str) -> None:
    await pilot.press("ctrl+home")
    for _ in range(30):
        if app.chosen == name:
            return
        await pilot.press("down")
    raise AssertionError(f"the cursor does not come to {name}")


async def press(app: Top, pilot: Pilot[None], key: str, answer: str = "y") -> str:
    """Presses a key and answers the question, which is given."""
    await pilot.press(key)
    await until(pilot, lambda: isinstance(app.screen, Confirm))
    question = str(app.screen.query_one("#question", Static).render())
    await pilot.press(answer)
    await until(pilot, lambda: not isinstance(app.screen, Confirm))
    return question


def test_models_are_loaded_pinned_and_unloaded_by_key_after_a_question(broker: Callable[..., Running]) -> None:
    running = broker([toy(vram_mb=300), toy("other"), toy("off", enabled=False)], vram_budget_gb=1.0)
    client = running.client()

    async def drive(app: Top, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: row(app, "off"))
        assert "0/3 loaded" in text(app, "#head")
        await choose(app, pilot, "toy")
        assert "load toy?" in await press(app, pilot, "l", "n")
        assert "load toy?" in await press(app, pilot, "l")
        await until(pilot, lambda: row(app, "toy")[1] == "loaded")
        assert client.get_status()["loaded_models"][0]["name"] == "toy"
        assert row(app, "toy")[4] == "300"
        assert app.chosen == "toy", "the cursor stays on its model"
        assert "pin toy?" in await press(app, pilot, "p")
        await until(pilot, lambda: row(app, "toy")[1] == "loaded" and row(app, "toy")[2] == "pin")
        await press(app, pilot, "u")
        await until(pilot, lambda: "unload toy: " in text(app, "#said"), "a refusal is told")
        assert "unpin toy?" in await press(app, pilot, "p")
        await until(pilot, lambda: row(app, "toy")[2] == "")
        await press(app, pilot, "u")
        await until(pilot, lambda: row(app, "toy")[1] == "unloaded")
        assert client.get_status()["loaded_models"] == []

    driven(running.endpoint, drive)


def test_the_screen_says_what_status_says(broker: Callable[..., Running]) -> None:
    running = broker([toy(vram_mb=300), toy("other", vram_mb=200)], vram_budget_gb=1.0)
    client = running.client()
    client.get_model("other")

    async def drive(app: Top, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: row(app, "other"))
        with client.load("toy"):
            for _ in range(20):
                client.infer("toy", FRAME)
            await until(pilot, lambda: row(app, "toy")[7] == "1")
            assert "1 leases" in text(app, "#head")
        bar = text(app, "#devices")
        assert bar.endswith("500/1,024 MB")
        cells = 80 - len("cpu ") - len(" 500/1,024 MB") - 1
        assert abs(bar.count("█") - cells * 500 / 1024) <= 1
        assert len(bar) <= 80
        client.infer("toy", FRAME)
        await until(pilot, lambda: float(row(app, "toy")[8]) > 0, "a rate")
        table = app.query_one(DataTable)
        assert sum(column.get_render_width(table) for column in table.columns.values()) < 80

    driven(running.endpoint, drive)


def test_it_goes_on_looking_behind_a_question_and_tells_why_a_model_cannot_be_served(
    broker: Callable[..., Running],
) -> None:
    running = broker([toy(), toy("off", enabled=False)])
    client = running.client()

    async def drive(app: Top, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: row(app, "off"))
        await choose(app, pilot, "off")
        await until(pilot, lambda: text(app, "#said") == "off: enabled = false in config.toml")
        main_screen = app.screen
        await pilot.press("l")
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        await asyncio.to_thread(client.get_model, "toy")
        table = main_screen.query_one(DataTable)
        await until(pilot, lambda: str(table.get_row("toy")[1]) == "loaded")
        await pilot.press("y")
        await until(pilot, lambda: text(app, "#said").startswith("load off: "), "the refusal")
        await choose(app, pilot, "toy")
        await until(pilot, lambda: text(app, "#said") == "")

    driven(running.endpoint, drive)


def test_it_goes_on_with_the_next_broker(broker: Callable[..., Running], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.top.app.LOOK_S", 0.5)
    running = broker()
    running.client().get_model("toy")

    async def drive(app: Top, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: row(app, "toy") and row(app, "toy")[1] == "loaded")
        running.kill()
        await until(pilot, lambda: "is old" in text(app, "#said"))
        assert row(app, "toy"), "what was seen last stays"
        await asyncio.to_thread(running.start)
        await until(pilot, lambda: text(app, "#said") == "")
        assert f"pid {running.pid}" in text(app, "#head")
        assert row(app, "toy")[1] == "unloaded"

    driven(running.endpoint, drive)


# ---------------------------------------------------------------- the command


def test_without_a_terminal_or_the_extra_it_says_what_to_do(
    shared_broker: Running, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["top", "--endpoint", shared_broker.endpoint]
    assert main.main(command) == 2
    assert "needs a terminal; `zoo status`" in capsys.readouterr().err
    assert main.main([*command, "--json"]) == 2
    assert "`zoo status --json`" in capsys.readouterr().err
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.delitem(sys.modules, "zoo.top.app")
    monkeypatch.setitem(sys.modules, "textual", None)
    assert main.main(command) == 2
    assert "pip install 'model-zoo[top]'" in capsys.readouterr().err


def test_in_a_real_terminal_it_draws_and_ends_with_q(shared_broker: Running) -> None:
    ours, theirs = pty.openpty()
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    command = [sys.executable, "-m", "zoo.cli", "top", "--endpoint", shared_broker.endpoint]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        drawn = b""
        end = time.monotonic() + WAIT_S
        while b"toy2" not in drawn and time.monotonic() < end:
            if select.select([ours], [], [], 0.1)[0]:
                drawn += os.read(ours, 1 << 16)
        assert b"toy2" in drawn
        os.write(ours, b"q")
        while process.poll() is None and time.monotonic() < end:
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    os.read(ours, 1 << 16)
                except OSError:  # its end is closed
                    break
        assert process.wait(10.0) == 0
        os.close(ours)
