"""What an event costs the scheduler: a thousand models, ten thousand queued requests, in memory."""

from __future__ import annotations

import random
import statistics
import time

from broker.scheduler.capacity.ledger import Device
from broker.scheduler.events import Asked, Kind, MemoryBack, Outcome, StartWorker, WorkerDone, WorkerExited, WorkerReady
from broker.scheduler.scheduler import Scheduler
from zoo.config.schema import BrokerConfig, ModelConfig


class _Crowd:
    """`models` small ones are loaded and fill the device; `queued` requests wait for them; "big" wants all the room."""

    def __init__(self, models: int, queued: int) -> None:
        self.names = [f"m{i}" for i in range(models)]
        zoo = [ModelConfig(name=name, vram_mb=10) for name in self.names]
        zoo.append(ModelConfig(name="big", vram_mb=10.0 * models))
        config = BrokerConfig(
            max_queue=2 * queued, max_queue_per_client=2 * queued, footprint="declared", patience_seconds=1e6
        )
        self.s = Scheduler(config, [Device("gpu0", "cuda", 10.0 * models)], zoo)
        self._asked = 0
        draw = random.Random(1)
        for name in self.names:
            actions = self.ask(name, 0.0, Kind.PRELOAD)
            self.s.handle(WorkerReady(next(a.worker for a in actions if isinstance(a, StartWorker))), 0.0)
        for _ in range(queued):
            self.ask(draw.choice(self.names), 0.0)

    def ask(self, name: str, now: float, kind: Kind = Kind.INFER) -> list[object]:
        self._asked += 1
        return list(self.s.handle(Asked(self._asked, b"c", name, kind, 1e9), now))

    def traffic_us(self, rounds: int) -> list[float]:
        """Of each event, when requests are answered and asked in turn."""
        took = []
        busy = [model for model in self.s.models.values() if model.inflight]
        for i in range(rounds):
            model, now = busy[i % len(busy)], 1.0 + i * 1e-3
            done = WorkerDone(model.worker, [Outcome(request.id) for request in model.inflight])
            self._asked += 1
            for event in (done, Asked(self._asked, b"c", model.name, Kind.INFER, 1e9)):
                begun = time.perf_counter()
                self.s.handle(event, now)
                self.s.next_wakeup()
                took.append((time.perf_counter() - begun) * 1e6)
        return took

    def restarts_us(self) -> list[float]:
        """Of each event, when workers end and, with requests waiting for them, are started again."""
        took = []
        for name in self.names[::5]:
            model = self.s.models[name]
            worker = model.worker
            begun = time.perf_counter()
            self.s.handle(WorkerExited(worker, "ended"), 100.0)
            self.s.handle(MemoryBack(worker), 100.0)
            took.append((time.perf_counter() - begun) * 1e6 / 2)
            self.s.handle(WorkerReady(model.worker), 100.0)
        return took


def cost(models: int = 1000, queued: int = 10_000, rounds: int = 3_000) -> dict[str, float]:
    """Microseconds per event."""
    crowd = _Crowd(models, queued)
    took = sorted(crowd.traffic_us(rounds))
    restarts = crowd.restarts_us()
    contested = _Crowd(models, queued)
    contested.ask("big", 0.5)
    return {
        "models": models,
        "queued": queued,
        "median_us": round(statistics.median(took), 2),
        "p99_us": round(took[len(took) * 99 // 100], 2),
        "contested_median_us": round(statistics.median(contested.traffic_us(rounds)), 2),
        "exit_and_restart_median_us": round(statistics.median(restarts), 2),
    }
