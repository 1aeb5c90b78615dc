"""Plain caches, to compare with: least recently used, and GreedyDual-Size-Frequency. In order, without priorities.

GreedyDual-Size-Frequency (Cherkasova 1998): at each request a model gets the rank `L + count * load seconds / MB`, the
lowest rank goes, and `L` rises to it. Here `count` outlives an eviction, which mostly makes it better: the models are
few and known for ever. Both spare a victim that turns out to be unnecessary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from zoo.config.schema import ModelConfig


def lru(
    requests: Sequence[str], models: Sequence[ModelConfig], budget_mb: float, load_s: Mapping[str, float]
) -> tuple[float, int]:
    """Seconds spent loading and the number of loads."""
    numbers = iter(range(len(requests)))
    return _replay(requests, models, budget_mb, load_s, lambda name: next(numbers), lambda rank: None)


def gdsf(
    requests: Sequence[str], models: Sequence[ModelConfig], budget_mb: float, load_s: Mapping[str, float]
) -> tuple[float, int]:
    """Seconds spent loading and the number of loads."""
    per_mb = {m.name: load_s[m.name] / max(m.vram_mb, 1e-9) for m in models}
    count: Counter[str] = Counter()
    level = 0.0

    def ranked(name: str) -> float:
        count[name] += 1
        return level + count[name] * per_mb[name]

    def evicted(rank: float) -> None:
        nonlocal level
        level = max(level, rank)

    return _replay(requests, models, budget_mb, load_s, ranked, evicted)


def _replay(
    requests: Sequence[str],
    models: Sequence[ModelConfig],
    budget_mb: float,
    load_s: Mapping[str, float],
    ranked: Callable[[str], float],
    evicted: Callable[[float], None],
) -> tuple[float, int]:
    """`ranked`: of a model that is asked for. `evicted`: is told a victim's rank."""
    mb = {m.name: m.vram_mb for m in models}
    rank: dict[str, float] = {}  # of what is loaded
    free, seconds, loads = budget_mb, 0.0, 0
    for name in requests:
        if name not in rank:
            for victim in _victims(mb[name] - free, rank, mb):
                evicted(rank.pop(victim))
                free += mb[victim]
            free -= mb[name]
            seconds += load_s[name]
            loads += 1
        rank[name] = ranked(name)
    return seconds, loads


def _victims(needed_mb: float, rank: Mapping[str, float], mb: Mapping[str, float]) -> list[str]:
    """The lowest ranks, without those that the others make unnecessary."""
    chosen: list[str] = []
    for name in sorted((n for n in rank if mb[n] > 0), key=lambda n: (rank[n], n)):
        if needed_mb <= 0:
            break
        chosen.append(name)
        needed_mb -= mb[name]
    for name in reversed(list(chosen)):
        if needed_mb + mb[name] <= 0:
            chosen.remove(name)
            needed_mb += mb[name]
    return chosen
