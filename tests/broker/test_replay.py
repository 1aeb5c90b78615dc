"""The replay of traces: the same seed gives the same figures, and they say what docs/eviction.md says."""

from __future__ import annotations

import pytest

from benchmarks import clairvoyant, naive, traces
from benchmarks.world import World
from zoo.config.schema import ModelConfig


@pytest.fixture(scope="module")
def street() -> traces.Trace:
    return traces.cameras("street", 7, count=10, seconds=8 * traces.HOUR_S)


def load_s(trace: traces.Trace) -> dict[str, float]:
    return {m.name: 0.3 + m.vram_mb / 1000 for m in trace.models}


def test_a_seed_gives_the_same_trace_and_the_same_figures(street) -> None:
    assert street == traces.cameras("street", 7, count=10, seconds=8 * traces.HOUR_S)
    first, second = (World(street, load_s(street)).run().summary() for _ in range(2))
    assert first == second
    assert first["requests"] == len(street.requests())
    assert first["refused"] == 0


def test_adaptive_loads_less_than_half_of_what_the_strict_order_loads_on_the_street(street) -> None:
    strict, adaptive = (
        World(street, load_s(street), eviction=policy, in_order=True).run() for policy in ("priority", "adaptive")
    )
    assert adaptive.load_s * 2 <= strict.load_s
    assert naive.replay(street, load_s(street)).load_s >= strict.load_s


def test_foresight_keeps_what_is_needed_next() -> None:
    models = [ModelConfig(name=n, vram_mb=100) for n in "abc"]
    cost = dict.fromkeys("abc", 1.0)
    assert clairvoyant.load_time("abcab", models, 200, cost, by_priority=False) == (4.0, 4)
    assert clairvoyant.load_time("aaa", models, 200, cost, by_priority=True) == (1.0, 1)
