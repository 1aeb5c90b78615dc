"""Measured footprints and memory that comes back, with real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo
from tests.metered import TOTAL_MB
from tests.support import ROOT, Running, toy, wait_until
from zoo.cli import main

FRAME = np.zeros((8, 8, 3), np.uint8)
MEASURED: dict[str, Any] = {"footprint": "measured", "state_dir": "state", "vram_budget_gb": 0.5}

Start = Callable[..., Running]


def ballast(name: str, mb: float, **keys: Any) -> dict[str, Any]:
    return toy(name, options={"ballast_mb": mb}, **keys)


def ps(client: zoo.Client, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(row for row in client.processes() if row["name"] == name)
    return found


def loaded(client: zoo.Client) -> set[str]:
    return {row["name"] for row in client.get_status()["loaded_models"]}


def device(client: zoo.Client) -> dict[str, Any]:
    row: dict[str, Any] = client.get_status()["devices"][0]
    return row


def test_what_a_model_really_uses_replaces_what_was_declared(broker: Start) -> None:
    models = [ballast("small", 20, vram_mb=300), ballast("big", 150, vram_mb=10), ballast("new", 1, vram_mb=300)]
    client = broker(models, **MEASURED).client()
    client.get_model("small")
    assert ps(client, "small")["vram_mb"] == 300, "the declaration counts until it has worked"
    for name, least, most in (("small", 20, 150), ("big", 150, 280)):
        client.infer(name, FRAME)
        row = ps(client, name)
        assert least < row["measured_mb"] <= row["vram_mb"] < most
        assert row["used_mb"] <= row["vram_mb"] + 1
    assert {m["name"]: m["vram_mb"] for m in client.models()} == {"small": 300, "big": 10, "new": 300}
    measured = {m["name"]: m["measured_mb"] for m in client.models()}
    assert measured["small"] == ps(client, "small")["vram_mb"]
    assert measured["new"] is None
    status = client.get_status()
    assert status["vram_used_mb"] == sum(row["vram_mb"] for row in client.processes())
    assert status["loaded_models"][0].keys() >= {"declared_mb", "measured_mb"}
    assert any("instead of 300 MB (declared 300)" in line for line in client.explain("small"))


def test_a_worker_that_grows_makes_room_for_itself_at_once(broker: Start) -> None:
    models = [ballast("old", 120, vram_mb=100), *(ballast(name, 60, vram_mb=100) for name in ("held", "grows"))]
    client = broker(models, **MEASURED).client()
    for name in ("old", "held", "grows"):
        client.infer(name, FRAME)
    with client.load("held"), client.load("grows"):
        client.infer("grows", FRAME, do="grow", mb=300)
        assert ps(client, "grows")["vram_mb"] > 360
        assert loaded(client) == {"held", "grows"}, "the idle one has gone, by the time of the answer"
        client.infer("grows", FRAME, do="grow", mb=200)
        assert device(client)["overrun_mb"] > 0, "more is used than may be, and that is said"
        assert loaded(client) == {"held", "grows"}, "no model in use was evicted"
        with pytest.raises(zoo.DeadlineExceeded, match="no model there may go"):
            client.infer("old", FRAME, timeout=2)
        assert any("may go" in line for line in client.explain())
    wait_until(lambda: device(client)["overrun_mb"] == 0, what="what was over has gone with the leases")
    client.infer("grows", FRAME)  # what one request did to it makes the model no larger
    assert ps(client, "grows")["vram_mb"] < 512
    assert any("more than the whole budget" in line for line in client.explain("grows"))


def test_what_was_learnt_survives_the_broker_but_not_new_options(broker: Start) -> None:
    running = broker([ballast("a", 90, vram_mb=300)], **MEASURED)
    client = running.client()
    client.infer("a", FRAME)
    learnt = ps(client, "a")["vram_mb"]
    assert 90 < learnt < 250
    client.close()
    running.stop()
    file = running.folder / "state" / "footprints.json"
    assert json.loads(file.read_text())["models"]["a"]["peaks"]["cpu"] == {
        "mb": learnt,
        "worked": True,
        "lives": [learnt],
    }
    client = running.start().client()
    assert client.models()[0]["measured_mb"] == learnt
    client.get_model("a")
    assert ps(client, "a")["vram_mb"] >= learnt
    assert ps(client, "a")["vram_mb"] < 250
    client.close()
    running.kill()
    running.config_path.write_text(running.config_path.read_text().replace("90", "30"))
    client = running.start().client()
    assert client.models()[0]["measured_mb"] is None
    client.get_model("a")
    assert ps(client, "a")["vram_mb"] == 300


@pytest.mark.parametrize("text", ['{"format": 1, "mod', '{"format": 99, "models": {}}'])
def test_a_state_file_that_cannot_be_used_stops_no_load(broker: Start, text: str) -> None:
    running = broker([ballast("a", 30, vram_mb=300)], start=False, **MEASURED)
    state = running.folder / "state"
    state.mkdir()
    (state / "footprints.json").write_text(text)
    client = running.start().client()
    wait_until(lambda: "cannot be used" in running.log())
    assert (state / "footprints.json.aside").read_text() == text
    client.infer("a", FRAME)
    wait_until(lambda: (state / "footprints.json").exists(), what="what is learnt is kept again")
    assert "a" in json.loads((state / "footprints.json").read_text())["models"]


def test_other_programs_take_room_and_give_it_back(broker: Start) -> None:
    models = [ballast(name, 60, vram_mb=100) for name in ("a", "b")]
    running = broker(models, module="tests.metered", reserve_mb=500, **MEASURED)
    others = running.folder / "others"
    client = running.client()
    for name in ("a", "b"):
        client.infer(name, FRAME)
    room = ps(client, "b")["vram_mb"] + 10
    others.write_text(str(TOTAL_MB - 500 - room))
    wait_until(lambda: loaded(client) == {"b"}, what="the older one has gone")
    assert device(client)["limit_mb"] == pytest.approx(room, abs=1)
    with client.load("b"), pytest.raises(zoo.DeadlineExceeded, match="other programs leave"):
        client.infer("a", FRAME, timeout=2)
    others.write_text("0")
    wait_until(lambda: device(client)["limit_mb"] == 512, what="the budget is whole again")
    client.infer("a", FRAME)
    assert loaded(client) == {"a", "b"}


def test_memory_that_does_not_come_back_stays_charged_until_it_does(broker: Start) -> None:
    running = broker([toy("a", vram_mb=100), toy("b", vram_mb=100)], module="tests.metered", vram_budget_gb=0.15)
    client = running.client()
    held = Path(running.folder) / "held"
    client.infer("a", FRAME)
    held.touch()
    assert client.unload("a") is True, "answered: it is known to be lost for now"
    row = device(client)
    assert (row["used_mb"], row["unreturned_mb"]) == (100, 100)
    assert any("have not come back; they stay charged" in line for line in client.explain("a"))
    with pytest.raises(zoo.DeadlineExceeded, match="have not come back"):
        client.infer("b", FRAME, timeout=0.3)
    held.unlink()
    wait_until(lambda: device(client)["used_mb"] == 0, what="it heals itself")
    assert client.infer("b", FRAME)["mean"] == 0


HOLD = """
import sys, numpy as np, zoo
client = zoo.Client(sys.argv[1], arena_mb=256)
frame = client.frame((200 << 20,)).__enter__()
frame.array[:] = 1
client.infer("a", frame, do="keep")
print("kept", flush=True)
sys.stdin.readline()
client.close()
print("closed", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("end", ["killed", "closed"])
def test_an_arena_that_its_client_no_longer_maps_is_not_charged_to_the_model(broker: Start, end: str) -> None:
    running = broker([ballast("a", 20, vram_mb=100)], **MEASURED)
    client = running.client()
    client.infer("a", FRAME)
    before = ps(client, "a")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-c", HOLD, running.endpoint]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        try:
            assert holder.stdout.readline() == b"kept\n"
            if end == "closed":
                holder.stdin.write(b"\n")
                holder.stdin.flush()
                assert holder.stdout.readline() == b"closed\n"
        finally:
            holder.kill()
    client.infer("a", FRAME, do="grow", mb=40)  # what has grown is measured at once
    wait_until(lambda: ps(client, "a")["used_mb"] > before["used_mb"] + 30, what="measured again")
    assert ps(client, "a")["used_mb"] < before["used_mb"] + 100
    assert ps(client, "a")["vram_mb"] < before["vram_mb"] + 100


def test_what_was_measured_can_be_looked_at_and_forgotten(broker: Start) -> None:
    running = broker([ballast("a", 90, vram_mb=300), ballast("b", 10, vram_mb=50)], **MEASURED)
    client = running.client()
    client.infer("a", FRAME)
    a, b = client.footprint()
    assert (a["name"], a["declared_mb"], a["worked"]) == ("a", 300, True)
    assert a["measured_mb"] == a["charged_mb"] == a["lives_mb"][0] < 250
    assert (b["measured_mb"], b["charged_mb"], b["lives_mb"]) == (None, 50, [])
    client.unload("a")
    assert main.main(["footprint", "a", "--forget", "--json", "--endpoint", running.endpoint]) == 0
    assert client.footprint("a")[0]["charged_mb"] == 300
    with pytest.raises(zoo.ModelNotFound):
        client.footprint("c")
    client.close()
    running.stop()
    assert running.start().client().footprint("a")[0]["measured_mb"] is None, "nor is it remembered"
