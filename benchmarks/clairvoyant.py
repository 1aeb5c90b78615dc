"""What could be had by knowing the future: the models asked for, in order, against Belady's rule with size and cost.

Belady's rule (evict what is needed furthest in the future) is the best there is where all sizes and costs are equal.
Where they are not, the best choice is NP-hard; here the model goes that frees the most megabytes for the longest time
at the least cost (megabytes × requests until the next use / load seconds). This is a strong heuristic, not a proof: a
policy may beat it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from benchmarks.traces import Event, Trace
from zoo.config.schema import ModelConfig, ModelPriority


def load_time(
    requests: Sequence[str],
    models: Sequence[ModelConfig],
    budget_mb: float,
    load_s: Mapping[str, float],
    *,
    by_priority: bool,
) -> tuple[float, int]:
    """Seconds spent loading and the number of loads, when the requests are served one after another. See `loads`."""
    cold = loads(requests, models, budget_mb, load_s, by_priority=by_priority)
    return sum(load_s[name] for name, load in zip(requests, cold, strict=True) if load), sum(cold)


def busy_s(trace: Trace, load_s: Mapping[str, float]) -> float:
    """Loading and answering, one after another, with free foresight."""
    seconds, _ = load_time(trace.requests(), trace.models, trace.budget_mb, load_s, by_priority=False)
    return seconds + sum(step.seconds for event in trace.events for step in event.steps)


def met(trace: Trace, load_s: Mapping[str, float]) -> set[Event]:
    """The events whose requests are all answered by their deadline, one after another, with free foresight."""
    cold = iter(loads(trace.requests(), trace.models, trace.budget_mb, load_s, by_priority=False))
    now, found = 0.0, set()
    for event in trace.events:
        now = max(now, event.at)
        for step in event.steps:
            now += step.seconds + (load_s[step.model] if next(cold) else 0.0)
        if now <= event.at + trace.deadline_s:
            found.add(event)
    return found


def loads(
    requests: Sequence[str],
    models: Sequence[ModelConfig],
    budget_mb: float,
    load_s: Mapping[str, float],
    *,
    by_priority: bool,
) -> list[bool]:
    """Which of the requests find their model away, when they are served one after another.

    Args:
        by_priority: bound to the strict order: LOW first, CRITICAL only for CRITICAL; foresight only among equals.
    """
    config = {m.name: m for m in models}
    next_use = _next_uses(requests)
    due: dict[str, float] = {}  # loaded: when it is needed next
    free, cold = budget_mb, []
    for i, name in enumerate(requests):
        wanted = config[name]
        cold.append(name not in due)
        if name not in due:
            needed = wanted.vram_mb - free
            victims = []
            if needed > 0:

                def loss(other: str, now: int = i) -> tuple[float, float]:
                    per_mb = load_s[other] / max(config[other].vram_mb, 1e-9) / (due[other] - now)
                    return (-config[other].priority if by_priority else 0, per_mb)

                may_go = [
                    other
                    for other in due
                    if not by_priority
                    or config[other].priority != ModelPriority.CRITICAL
                    or wanted.priority == ModelPriority.CRITICAL
                ]
                for other in sorted(may_go, key=loss):
                    if needed <= 0:
                        break
                    victims.append(other)
                    needed -= config[other].vram_mb
                for other in reversed(list(victims)):  # an unnecessary victim stays
                    if needed + config[other].vram_mb <= 0:
                        victims.remove(other)
                        needed += config[other].vram_mb
            for other in victims:
                del due[other]
                free += config[other].vram_mb
            free -= wanted.vram_mb
        due[name] = next_use[i]
    return cold


def _next_uses(requests: Sequence[str]) -> list[float]:
    """For each request, the number of the next one for the same model (inf: none)."""
    after: dict[str, float] = {}
    found = [math.inf] * len(requests)
    for i in range(len(requests) - 1, -1, -1):
        found[i] = after.get(requests[i], math.inf)
        after[requests[i]] = i
    return found
