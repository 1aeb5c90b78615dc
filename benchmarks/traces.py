"""Traces to replay: who asks for which models when, and how long an answer takes. Each from a seed.

The camera traces follow config.toml: its models, its megabytes, and its table of enrichment, which says what a person,
a vehicle or an animal in view asks for. How often which comes into view is assumed here (`MIXES`), and so is how long
an answer takes (`service_s`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from zoo.config.reading import load_config
from zoo.config.rules import ANYTHING, Rule
from zoo.config.schema import ModelConfig, ModelPriority

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
CONFIG = Path(__file__).parent.parent / "config.toml"

VISIT_EVENTS = 2.0  # events of one and the same visit, in the mean
VISIT_GAP_S = 8.0  # between them, in the mean
FACE_SEEN = 0.5
PLATE_SEEN = 0.7

MIXES = {  # visits, in parts of a hundred
    "day": {"person": 60, "vehicle": 28, "animal": 10, "suspicious": 2},
    "night": {"person": 25, "vehicle": 15, "animal": 15, "suspicious": 45},
    "street": {"person": 10, "vehicle": 85, "animal": 5, "suspicious": 0},
    "mixed": {"person": 40, "vehicle": 35, "animal": 15, "suspicious": 10},
}
LABELS = {"person": "person", "suspicious": "person", "vehicle": "car", "animal": "dog"}


class Step(NamedTuple):
    """One request: the model, and how long its answer takes."""

    model: str
    seconds: float


class Event(NamedTuple):
    """Requests of one caller, who begins at `at` and has at most so many under way as the trace says."""

    at: float
    steps: tuple[Step, ...]


class Trace(NamedTuple):
    name: str
    models: list[ModelConfig]
    budget_mb: float
    events: list[Event]
    parallel: int = 4
    deadline_s: float = 30.0

    def requests(self) -> list[str]:
        """All models asked for, in order."""
        return [step.model for event in self.events for step in event.steps]


def service_s(mb: float, draw: random.Random) -> float:
    """Assumed: 10 ms + 20 ms per 1,000 MB, give or take a third."""
    return (0.010 + 0.020 * mb / 1000) * draw.uniform(0.67, 1.33)


def _rush_hours(at: float) -> float:
    """How busy a day is at a time of day, 0 to 1: mornings and evenings."""
    hour = at / HOUR_S % 24
    return 0.15 + 0.85 * max(math.exp(-(((hour - peak) / 2.5) ** 2)) for peak in (8.0, 18.0))


def _small_hours(at: float) -> float:
    hour = at / HOUR_S % 24
    return 1.0 if hour >= 21 or hour < 5 else 0.1


def _arrivals(draw: random.Random, count: float, seconds: float, busy: Callable[[float], float]) -> Iterator[float]:
    """A Poisson process of about `count` arrivals whose rate follows `busy` (by thinning)."""
    mean = sum(busy(seconds * i / 500) for i in range(500)) / 500
    at = 0.0
    while (at := at + draw.expovariate(count / seconds / mean)) < seconds:
        if draw.random() < busy(at):
            yield at


def _asked(kind: str, rules: list[Rule], draw: random.Random) -> Iterator[str]:
    """What the table of enrichment asks for when such a detection comes into view."""
    seen: set[str] = set()
    for rule in rules:
        if rule.after is not None:
            wanted = rule.after in seen and draw.random() < (
                FACE_SEEN if kind in ("person", "suspicious") else PLATE_SEEN
            )
        else:
            labels = rule.labels or []
            wanted = LABELS[kind] in labels or ANYTHING in labels
        if rule.suspicious or rule.min_persons:
            wanted = wanted and kind == "suspicious"
        if wanted:
            seen.update(rule.models)
            yield from rule.models


def _always(_: float) -> float:
    return 1.0


def cameras(
    mix: str, seed: int, *, count: int = 50, a_day: float = 150.0, seconds: float = DAY_S, steady: bool = False
) -> Trace:
    """`a_day`: events of each of `count` cameras in 24 hours. `steady`: at all hours alike."""
    config = load_config(CONFIG)
    mb = {m.name: m.vram_mb for m in config.models}
    draw = random.Random(seed)
    busy = _always if steady else _small_hours if mix == "night" else _rush_hours
    kinds, weights = zip(*MIXES[mix].items(), strict=True)
    events = []
    for _ in range(count):
        for begun in _arrivals(draw, a_day * seconds / DAY_S / VISIT_EVENTS, seconds, busy):
            (kind,) = draw.choices(kinds, weights)
            at = begun
            while True:
                steps = tuple(Step(name, service_s(mb[name], draw)) for name in _asked(kind, config.enrich.rules, draw))
                events.append(Event(at, steps))
                if draw.random() < 1 / VISIT_EVENTS:
                    break
                at += draw.expovariate(1 / VISIT_GAP_S)
    events.sort()
    return Trace(mix, config.models, config.broker.vram_budget_gb * 1024, events, config.enrich.parallel)


def _singles(
    name: str, models: list[ModelConfig], budget_mb: float, asks: list[tuple[float, str]], draw: random.Random
) -> Trace:
    """Each request by a caller of its own."""
    mb = {m.name: m.vram_mb for m in models}
    events = [Event(at, (Step(model, service_s(mb[model], draw)),)) for at, model in sorted(asks)]
    return Trace(name, models, budget_mb, events)


def zipf(seed: int, *, requests: int = 20_000, per_s: float = 1.0, models: int = 40) -> Trace:
    """The n-th most popular model is asked for 1/n as often as the first; size and priority by lot."""
    draw = random.Random(seed)
    sizes = [100, 200, 300, 500, 800, 1500, 2000]
    priorities = [ModelPriority.HIGH, ModelPriority.MEDIUM, ModelPriority.LOW]
    zoo = [
        ModelConfig(name=f"z{i}", vram_mb=draw.choice(sizes), priority=draw.choice(priorities)) for i in range(models)
    ]
    weights = [1 / (i + 1) for i in range(models)]
    at, asks = 0.0, []
    for model in draw.choices(zoo, weights, k=requests):
        at += draw.expovariate(per_s)
        asks.append((at, model.name))
    return _singles("zipf", zoo, 6.8 * 1024, asks, draw)


def round_robin(seed: int, *, requests: int = 4_000, per_s: float = 20.0) -> Trace:
    """One model more than fits, asked for in turn: least recently used misses every time."""
    draw = random.Random(seed)
    zoo = [ModelConfig(name=f"r{i}", vram_mb=1000) for i in range(7)]
    asks = [(i / per_s, zoo[i % len(zoo)].name) for i in range(requests)]
    return _singles("round robin", zoo, 6.8 * 1024, asks, draw)


def bursts(seed: int, *, count: int = 400, every_s: float = 20.0) -> Trace:
    """Two big models that do not fit together, a hundred requests for both at once; now and then a small one."""
    draw = random.Random(seed)
    zoo = [
        ModelConfig(name="big-a", vram_mb=4000),
        ModelConfig(name="big-b", vram_mb=4000),
        ModelConfig(name="small", vram_mb=300, priority=ModelPriority.HIGH),
    ]
    asks = []
    for i in range(count):
        asks += [(i * every_s + draw.uniform(0, 1), draw.choice(["big-a", "big-b"])) for _ in range(100)]
        asks += [(i * every_s + draw.uniform(0, every_s), "small") for _ in range(5)]
    return _singles("bursts", zoo, 6.8 * 1024, asks, draw)
