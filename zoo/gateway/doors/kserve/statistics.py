"""What this door has answered, per model, in the form of the statistics extension."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from zoo.timings import UNKNOWN, Timings

MOST_MODELS = 1024  # names that are counted: those that the broker knows, which are fewer


class Duration(msgspec.Struct):
    """How often, and for how long together, in nanoseconds."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        self.count += count
        self.ns += ns


class ModelStatistics(msgspec.Struct):
    """Of one model since this gateway started. `last_inference`: in ms of Unix time."""

    last_inference: int = 0
    inferences: int = 0
    success: Duration = msgspec.field(default_factory=Duration)
    fail: Duration = msgspec.field(default_factory=Duration)
    queue: Duration = msgspec.field(default_factory=Duration)
    compute_input: Duration = msgspec.field(default_factory=Duration)
    compute_infer: Duration = msgspec.field(default_factory=Duration)
    compute_output: Duration = msgspec.field(default_factory=Duration)

    def to_dict(self, name: str) -> dict[str, Any]:
        unused = Duration()
        times = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
        return {
            "name": name,
            "version": "1",
            "last_inference": self.last_inference,
            "inference_count": self.inferences,
            "execution_count": self.success.count,
            "inference_stats": {
                **{one: getattr(self, one) for one in times},
                "cache_hit": unused,
                "cache_miss": unused,
            },
            "batch_stats": [],
        }


class Statistics:
    """By model."""

    def __init__(self) -> None:
        self._by_model: dict[str, ModelStatistics] = {}

    def of(self, model: str) -> ModelStatistics:
        return self._by_model.get(model) or ModelStatistics()

    def succeeded(
        self, model: str, total_ns: int, input_ns: int, infer_ns: int, items: int, spent: Timings = UNKNOWN
    ) -> None:
        """One request.

        Args:
            total_ns, input_ns, infer_ns: all of it here, of that reading its tensors, and waiting for the broker.
            items: answers: one, or one for each box.
            spent: what the broker says of where the time went.
        """
        counted = self._by_model.setdefault(model, ModelStatistics())
        counted.last_inference = int(time.time() * 1000)
        counted.inferences += items
        counted.success.add(total_ns)
        queue_ns, worked_ns = round(1e9 * (spent.queue + spent.load)), round(1e9 * spent.infer)
        counted.queue.add(queue_ns)
        counted.compute_input.add(input_ns + round(1e9 * spent.preprocess))
        counted.compute_infer.add(worked_ns if spent.total else infer_ns)
        counted.compute_output.add(max(0, total_ns - input_ns - infer_ns) + round(1e9 * spent.postprocess))

    def failed(self, model: str, total_ns: int) -> None:
        if model in self._by_model or len(self._by_model) < MOST_MODELS:
            self._by_model.setdefault(model, ModelStatistics()).fail.add(total_ns)
