"""The metrics: those that a broker serves which has loaded, evicted, answered and refused, and those of a gateway."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from docs.site import markdown
from zoo import Client, errors
from zoo.gateway.metrics import DoorMetrics

ADAPTER = """
class Mean:
    def load(self, spec, device): ...
    def predict(self, inputs): return [{"mean": float(one.array.mean())} for one in inputs]
"""
CONFIG = """
[broker]
endpoint = "ipc://{folder}/b"
state_dir = "state"
device = "cpu"
vram_budget_gb = 0.2
standby = 0
metrics = "127.0.0.1:{port}"
[[models]]
name = "one"
adapter = "mean:Mean"
vram_mb = 150
[[models]]
name = "two"
adapter = "mean:Mean"
vram_mb = 204
"""


def page() -> str:
    of_gateway = DoorMetrics(lambda: 0)
    of_gateway.count("kserve", 200, 0.1)
    parts = (_table(of_broker()), "## Of the gateway", _table(of_gateway.exposition().decode()))
    return "\n\n".join(parts)


def of_broker() -> str:
    """What it serves once each of its metrics has a value."""
    with _serving() as (endpoint, port):
        with Client(endpoint, timeout=20, arena_mb=1) as zoo:
            for model in ("one", "two", "none"):
                with contextlib.suppress(errors.ModelNotFound):
                    zoo.infer(model, np.zeros((4, 4, 3), np.uint8))
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()


@contextlib.contextmanager
def _serving() -> Iterator[tuple[str, int]]:
    """A broker in a folder of its own: its endpoint, and the port of its metrics."""
    with tempfile.TemporaryDirectory(prefix="zoo-d-", dir="/tmp") as name:
        folder, port = Path(name), _free_port()
        (folder / "mean.py").write_text(ADAPTER)
        (folder / "config.toml").write_text(CONFIG.format(folder=folder, port=port))
        command = [sys.executable, "-m", "zoo.broker", "--config", str(folder / "config.toml"), "--log-level", "ERROR"]
        broker = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])})
        try:
            yield f"ipc://{folder}/b", port
        finally:
            broker.send_signal(signal.SIGTERM)
            broker.wait(30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _table(exposition: str) -> str:
    rows = [
        (markdown.code(_name(family)), family.type, ", ".join(map(markdown.code, _labels(family))), _meaning(family))
        for family in text_string_to_metric_families(exposition)
        if not family.name.endswith("_created")
    ]
    return markdown.table(("metric", "type", "labels", "meaning"), rows)


def _meaning(family: Metric) -> str:
    return f"{family.documentation}."


def _name(family: Metric) -> str:
    return family.name + ("_total" if family.type == "counter" else "")


def _labels(family: Metric) -> list[str]:
    return list(dict.fromkeys(label for sample in family.samples for label in sample.labels if label != "le"))
