"""What an event costs the scheduler: a thousand models, ten thousand queued requests, in memory.

`python -m benchmarks.scheduler` prints microseconds per event. Only events and actions are used, so that any two
checkouts with the same vocabulary can be compared (`benchmarks.pairs`).
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections import deque

from broker.scheduler.capacity.ledger import Device
from broker.scheduler.events import (
    Asked,
    Event,
    Finished,
    Kind,
    MemoryBack,
    SendBatch,
    StartWorker,
    WorkerDone,
    WorkerExited,
    WorkerReady,
)
from broker.scheduler.scheduler import Scheduler
from zoo.config.schema import BrokerConfig, ModelConfig


class _Load:
    """`models` small models are loaded and fill the device; `queued` requests wait for them; "big" needs all of it."""

    def __init__(self, models: int, queued: int) -> None:
        self._names = [f"m{i}" for i in range(models)]
        table = [ModelConfig(name=name, vram_mb=10) for name in self._names]
        table.append(ModelConfig(name="big", vram_mb=10.0 * models))
        config = BrokerConfig(
            max_queue=2 * queued, max_queue_per_client=2 * queued, footprint="declared", patience_seconds=1e6
        )
        self._scheduler = Scheduler(config, [Device("gpu0", "cuda", 10.0 * models)], table)
        self._asked = 0
        self._worker: dict[str, int] = {}  # model → its worker
        self._batches: dict[int, deque[list[int]]] = {}  # worker → requests dispatched to it and not answered
        draw = random.Random(1)
        for name in self._names:
            self.ask(name, 0.0, Kind.PRELOAD)
            self._handle(WorkerReady(self._worker[name]), 0.0)
        for _ in range(queued):
            self.ask(draw.choice(self._names), 0.0)

    def ask(self, name: str, now: float, kind: Kind = Kind.INFER) -> float:
        self._asked += 1
        return self._handle(Asked(self._asked, b"c", name, kind, 1e9), now)

    def _handle(self, event: Event, now: float) -> float:
        """Seconds that the scheduler takes for it, and for saying when it wants to look again."""
        begun = time.perf_counter()
        actions = self._scheduler.handle(event, now)
        self._scheduler.next_wakeup()
        took = time.perf_counter() - begun
        for action in actions:
            if isinstance(action, StartWorker):
                self._worker[action.model] = action.worker
                self._batches[action.worker] = deque()
            elif isinstance(action, SendBatch):
                self._batches[action.worker].append([request for request, _ in action.batch])
        return took

    def traffic_us(self, rounds: int) -> list[float]:
        """Of each event, when requests are answered and asked in turn."""
        took = []
        busy = [(name, worker) for name, worker in self._worker.items() if self._batches.get(worker)]
        for i in range(rounds):
            (name, worker), now = busy[i % len(busy)], 1.0 + i * 1e-3
            batch = self._batches[worker].popleft()
            took.append(self._handle(WorkerDone(worker, [Finished(request) for request in batch]), now) * 1e6)
            took.append(self.ask(name, now) * 1e6)
        return took

    def restarts_us(self) -> list[float]:
        """Of each event, when workers end and, with requests waiting for them, are started again."""
        took = []
        for name in self._names[::5]:
            worker = self._worker[name]
            seconds = self._handle(WorkerExited(worker, "ended"), 100.0) + self._handle(MemoryBack(worker), 100.0)
            took.append(seconds * 1e6 / 2)
            self._handle(WorkerReady(self._worker[name]), 100.0)
        return took


def cost(models: int = 1000, queued: int = 10_000, rounds: int = 3_000) -> dict[str, float]:
    """Microseconds per event."""
    load = _Load(models, queued)
    took = sorted(load.traffic_us(rounds))
    restarts = load.restarts_us()
    contested = _Load(models, queued)
    contested.ask("big", 0.5)
    return {
        "models": models,
        "queued": queued,
        "median_us": round(statistics.median(took), 2),
        "p99_us": round(took[len(took) * 99 // 100], 2),
        "contested_median_us": round(statistics.median(contested.traffic_us(rounds)), 2),
        "exit_and_restart_median_us": round(statistics.median(restarts), 2),
    }


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0]).parse_args()
    print(json.dumps(cost()))


if __name__ == "__main__":
    main()
