"""What a broker says room would cost (`Query("room")`), against what it then does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.support import Running, toy
from zoo.client import calls
from zoo.ray import reports
from zoo.wire import protocol

FRAME = np.zeros((8, 8, 3), np.uint8)


def report_of(running: Running) -> reports.NodeReport:
    with running.client() as client:
        return reports.read(client._ask(calls.Call(protocol.Query(0, "room"), dict)))


def test_a_stair_of_room_and_loss(broker: Callable[..., Running]) -> None:
    models = [
        toy("low", vram_mb=100, priority="LOW"), toy("high", vram_mb=200, priority="HIGH"),
        toy("critical", vram_mb=300, priority="CRITICAL"), toy("leased", vram_mb=50), toy("other", vram_mb=350),
    ]  # fmt: skip
    running = broker(models, vram_budget_gb=700 / 1024)
    client = running.client()
    for name in ("low", "high", "critical"):
        client.infer(name, FRAME)
    with client.load("leased"):
        room = report_of(running).devices["cpu"]
        assert [(step.mb, step.critical) for step in room.steps] == [
            (50, False),
            (150, False),
            (350, False),
            (650, True),
        ]
        assert room.steps[0].loss == ()
        assert list(room.steps[1:]) == sorted(room.steps[1:], key=lambda step: step.loss), "each step costs more"
        assert report_of(running).models["leased"] == reports.Residency("loaded", 0)
        client.infer("other", FRAME)  # 350: both that are no CRITICAL ones go, as the stair says
        assert set(report_of(running).models) >= {"critical", "leased", "other"}
        assert {row["name"] for row in client.processes()} == {"critical", "leased", "other"}
