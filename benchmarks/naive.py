"""The simplest policy: one request at a time. If its model is not loaded, evict one model after another, by priority
and then the longest unused, until it fits; then load. No victim is spared, nothing is batched.

First come, first served: a request waits for all that came before it, whatever model they ask for.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.traces import Trace
from benchmarks.world import Figures
from broker.simulation.simulation import KILL_S


def replay(trace: Trace, load_s: Mapping[str, float]) -> Figures:
    config = {m.name: m for m in trace.models}
    last_used: dict[str, float] = {}
    free, now, figures = trace.budget_mb, 0.0, Figures()
    for event in trace.events:
        for step in event.steps:
            begun = now = max(now, event.at)
            figures.requests += 1
            if step.model in last_used:
                figures.hits += 1
            else:
                while config[step.model].vram_mb > free:
                    victim = min(last_used, key=lambda name: (-config[name].priority, last_used[name]))
                    del last_used[victim]
                    free += config[victim].vram_mb
                    figures.evictions += 1
                    now += KILL_S
                free -= config[step.model].vram_mb
                figures.loads += 1
                figures.load_s += load_s[step.model]
                now += load_s[step.model]
            figures.waits.append(now - event.at)
            late = now + step.seconds > event.at + trace.deadline_s
            figures.missed += late
            figures.answered += not late
            now += step.seconds
            last_used[step.model] = now
            figures.busy_s += now - begun
    figures.end = now
    return figures
