"""What histograms are made of. Only where metrics are served is anything counted here: on the way of each answer with a
result, and of each batch. (0.5 us together; the library's own histograms would take several.)

The exporter's thread reads while the loop counts: a scrape may have the sum of one answer more or less than its count.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping

from broker.scheduler.events import Deliver, SendBatch
from broker.scheduler.state import Worker

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Tally:
    """How many values were at most as large as each of some bounds, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def buckets(self) -> list[tuple[str, float]]:
        """(bound, values up to it), as Prometheus wants them."""
        found, upto = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), list(self.counts), strict=True):
            upto += count
            found.append((bound, float(upto)))
        return found


class ModelTimes:
    """Of one model."""

    __slots__ = ("infer", "queue", "sizes", "total")

    def __init__(self) -> None:
        self.queue, self.infer, self.total = Tally(SECONDS), Tally(SECONDS), Tally(SECONDS)
        self.sizes = Tally(SIZES)


class Latencies:
    """`workers`: those of the scheduler, by number."""

    def __init__(self, workers: Mapping[int, Worker]) -> None:
        self._workers = workers
        self._models: dict[str, ModelTimes] = {}

    def of(self, name: str) -> ModelTimes:
        """What was counted of a model."""
        found = self._models.get(name)
        if found is None:
            found = self._models[name] = ModelTimes()
        return found

    def keep(self, names: Mapping[str, object]) -> None:
        """Forgets models that are registered no more."""
        for name in [name for name in list(self._models) if name not in names]:
            self._models.pop(name, None)

    # ------------------------------------------------------------ on the way of a request

    def delivering(self, deliver: Callable[[Deliver], None]) -> Callable[[Deliver], None]:
        """Delivers, when it has counted: a client that has its answer finds it in the metrics."""
        workers, models, at, bounds = self._workers, self._models, bisect_left, SECONDS

        def counted(a: Deliver) -> None:
            worker, timings = workers.get(a.worker), a.timings
            if worker is not None:
                of = models.get(worker.model.name) or self.of(worker.model.name)
                for tally, value in ((of.queue, timings.queue), (of.infer, timings.infer), (of.total, timings.total)):
                    tally.counts[at(bounds, value)] += 1
                    tally.sum += value
            deliver(a)

        return counted

    def sending(self, send: Callable[[SendBatch], None]) -> Callable[[SendBatch], None]:
        """Sends a batch, and counts its requests."""
        workers, models = self._workers, self._models

        def counted(a: SendBatch) -> None:
            worker, size = workers.get(a.worker), len(a.batch)
            if worker is not None:
                tally = (models.get(worker.model.name) or self.of(worker.model.name)).sizes
                tally.counts[bisect_left(SIZES, size)] += 1
                tally.sum += size
            send(a)

        return counted
