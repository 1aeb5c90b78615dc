"""The zoo itself: a process for each model, as always."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

import zoo
from benchmarks.peers import work
from benchmarks.peers.peer import Connect, Given, Own
from workers.models.base import AnyResult, Input, Spec

MODEL = """
[[models]]
name = "{name}"
adapter = "benchmarks.peers.zoo_peer:Adapter"
vram_mb = 100
[models.options]
weights = "{weights}"
"""


class Adapter:
    """A model of `work.MODELS`, by its name."""

    def load(self, spec: Spec, device: str) -> None:
        os.environ["PEERS_WEIGHTS"] = spec.options["weights"]  # workers do not get the broker's environment
        self._function = work.MODELS[spec.name].load()

    def predict(self, inputs: list[Input]) -> list[AnyResult]:
        return [{"answer": self._function(item.array)} for item in inputs]


def serve(where: Path) -> None:
    head = f'[broker]\ndevice = "cpu"\nidle_seconds = 3600\nstate_dir = "{where}/state"\nvram_budget_gb = 64\n'
    weights = os.environ.get("PEERS_WEIGHTS", "")
    models = (MODEL.format(name=name, weights=weights) for name in work.names())
    (where / "config.toml").write_text(head + "".join(models))
    os.execv(sys.executable, [sys.executable, "-m", "zoo.broker", "--config", f"{where}/config.toml",
                              "--endpoint", f"ipc://{where}/zoo", "--log-level", "WARNING"])  # fmt: skip


class _Client:
    def __init__(self, where: Path, in_arena: bool) -> None:
        self._zoo = zoo.Client(f"ipc://{where}/zoo", timeout=60)
        self._in_arena = in_arena
        self._zoo.get_status()

    def place(self, shape: tuple[int, ...], dtype: str) -> Given:
        return self._zoo.frame(shape, dtype) if self._in_arena else Own(shape, dtype)

    def infer(self, model: str, given: Given) -> np.ndarray:
        answer: np.ndarray = self._zoo.infer(model, given if self._in_arena else given.array)["answer"]
        return answer

    def infer_many(self, models: tuple[str, ...], given: Given) -> list[np.ndarray]:
        answers = self._zoo.infer_many(given if self._in_arena else given.array, models)
        return [answers[model]["answer"] for model in models]


def _client(in_arena: bool) -> Connect:
    return lambda where: _Client(where, in_arena)


CLIENTS = {"copied in": _client(False), "in the arena": _client(True)}
