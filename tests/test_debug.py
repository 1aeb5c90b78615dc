"""`zoo serve --debug`: a broker that checks its scheduler after every event."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.loop import Loop
from broker.soundness import Unsound
from broker.states import Tick
from tests.scheduler.world import World, model
from tests.support import Running, toy


def test_a_broker_that_checks_itself_serves_evicts_and_ends_as_ever(tmp_path: Path) -> None:
    models = [toy("a", vram_mb=300), toy("b", vram_mb=300)]
    running = Running(tmp_path, models, vram_budget_gb=0.4, arguments=["--debug"]).start()
    try:
        client = running.client()
        frame = np.zeros((8, 8, 3), np.uint8)
        for name in ("a", "b", "a"):
            client.infer(name, frame)
        with client.load("b"):
            assert client.get_status()["leases"] == 1
        client.unload("b")
        assert "Unsound" not in running.log()
    finally:
        running.close()


def test_a_state_that_contradicts_itself_is_said_after_the_event() -> None:
    w = World([model("a", 100)])
    loop: Any = Loop.__new__(Loop)
    loop.scheduler, loop._told, loop.checks, loop._actions = w.s, w.s.story.count, True, {}
    loop._handle(Tick())
    w.s._running += 1
    with pytest.raises(Unsound, match="1 requests are said to run, 0 do"):
        loop._handle(Tick())
