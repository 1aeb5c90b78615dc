"""Recordings for tests, made without a broker."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from zoo import recording
from zoo.config.schema import BrokerConfig, ModelConfig
from zoo.recording import KnownDevice, KnownModel, PartBegun, RecordedLoad, RecordedRequest


def begun(sizes: dict[str, float], budget_mb: float, **broker: Any) -> PartBegun:
    return PartBegun(
        recording.VERSION, "part", 1_700_000_000.0, 0.0, BrokerConfig(vram_budget_gb=budget_mb / 1024, **broker),
        [KnownDevice("cuda:0", "cuda", budget_mb, budget_mb)],
        [KnownModel(ModelConfig(name=name, vram_mb=mb)) for name, mb in sizes.items()],
    )  # fmt: skip


def asked(at: float, model: str, **keys: Any) -> RecordedRequest:
    """One that took 10 ms of its worker at once."""
    own = {"kind": "infer", "priority": 2, "deadline_s": 30.0, "session": 1, "sent_s": 0.0, "worker": 1}
    return RecordedRequest(at=at, model=model, **{"took": 0.01, "batch": int(1 + at * 1000), **own, **keys})


def lines(*said: Any) -> list[bytes]:
    return [recording.encode(one) for one in said]


def part(head: PartBegun, *said: Any) -> recording.RecordingPart:
    return recording.parse(lines(head, *said), "a test")


def traffic(seed: int, requests: int = 150, models: int = 6, budget_mb: float = 1500.0) -> list[Any]:
    """A recording of requests at random: the n-th model is asked for 1/n as often as the first."""
    draw = random.Random(seed)
    sizes = {f"m{i}": float(draw.choice([200, 300, 500, 800])) for i in range(models)}
    said: list[Any] = [begun(sizes, budget_mb)]
    said += [RecordedLoad(0.0, name, i, 0.3 + mb / 1000) for i, (name, mb) in enumerate(sizes.items())]
    at = 0.0
    for _ in range(requests):
        at += draw.expovariate(1.0)
        (name,) = draw.choices(list(sizes), [1 / (i + 1) for i in range(models)])
        said.append(asked(at, name, took=draw.uniform(0.01, 0.05)))
    return said


def written(folder: Path, *said: Any) -> Path:
    file = folder / "recording"
    file.write_bytes(b"".join(line + b"\n" for line in lines(*said)))
    return file
