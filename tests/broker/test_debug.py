"""`zoo serve --debug`: a broker that checks its scheduler after every event."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests import faulty
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


def test_a_broker_that_contradicts_itself_finishes_what_runs_and_ends_with_status_1(tmp_path: Path) -> None:
    running = Running(tmp_path, [toy()], module="tests.faulty", arguments=["--debug"]).start()
    try:
        client = running.client()
        frame = np.zeros((8, 8, 3), np.uint8)
        client.infer("toy", frame)
        (tmp_path / faulty.FAULT).write_text(faulty.CONTRADICTION)
        assert client.infer("toy", frame)["shape"] == [8, 8, 3]
        assert running.process is not None
        assert running.process.wait(timeout=20.0) == 1
        assert "contradicts itself, this broker ends" in running.log()
        running.wait_gone()
    finally:
        running.close()
