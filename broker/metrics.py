"""Prometheus. Nothing is counted on the way of a request: a scrape reads the scheduler's own numbers.

The names are public: dashboards hold on to them. A number that each model has is one more line of `BY_MODEL`.

The exporter's thread reads while the loop goes on, which is fine, since it only looks and never decides. What it looks
at may change meanwhile: it then looks again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily as Counter
from prometheus_client.core import GaugeMetricFamily as Gauge
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from broker import exposition, logs
from broker.guard import Guard
from broker.memory.host_cache import Copies
from broker.scheduler.scheduler import Scheduler
from broker.scheduler.state import State
from broker.scheduler.state.model import Model

LOAD_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
MB = 1 << 20
LOOKS = 20  # at what changes meanwhile, before the last sound look is given once more
BY_MODEL: tuple[tuple[type[Counter | Gauge], str, str, Callable[[Model], float]], ...] = (
    (Counter, "zoo_requests", "Inferences that a worker finished", lambda model: model.requests),
    (Counter, "zoo_request_errors", "Requests answered with an error", lambda model: model.errors),
    (Counter, "zoo_worker_crashes", "Processes that died or hung", lambda model: model.crashes),
    (Gauge, "zoo_queued_requests", "Requests waiting", lambda model: model.waiting),
    (Gauge, "zoo_model_workers", "Processes that answer now", lambda model: len(model.answering)),
    (Gauge, "zoo_model_declared_bytes", "vram_mb of config.toml", lambda model: model.config.vram_mb * MB),
)


class Metrics(Collector):
    """Serves them at `address` ("HOST:PORT"), if any."""

    def __init__(self, scheduler: Scheduler, copies: Copies, guard: Guard, address: str | Literal[False]) -> None:
        self._scheduler = scheduler
        self._guard = guard
        self._copies = copies
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self._load_time = Histogram(
            "enrichment_model_load_time_seconds",
            "From the decision to start a model to its being ready",
            ["model_name"],
            buckets=LOAD_BUCKETS,
            registry=self.registry,
        )
        self._last: list[Metric] = []
        self._server = exposition.Exposition(self.registry, address) if address else None

    def loaded(self, model: str, seconds: float | None) -> None:
        """A worker of the model has become ready, or (None) has come too late with it."""
        if seconds is not None:
            self._load_time.labels(model).observe(seconds)

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> list[Metric]:
        for _ in range(LOOKS):
            try:
                self._last = list(self._look())
            except (RuntimeError, LookupError, AttributeError):  # the loop has changed it meanwhile
                continue
            break
        return self._last

    def _look(self) -> Iterator[Metric]:
        ledger, models = self._scheduler.ledger, list(self._scheduler.models.values())
        budget = sum(device.budget_mb for device in ledger.devices.values())
        used = sum(ledger.used_mb(name) for name in ledger.devices)
        share = 100 * used / budget if budget else 0
        loaded = sum(model.state in (State.LOADED, State.DRAINING) for model in models)
        copies = self._copies.used_bytes
        yield Gauge("enrichment_vram_usage_bytes", "Charged memory", used * MB)
        yield Gauge("enrichment_vram_budget_bytes", "The budget", budget * MB)
        yield Gauge("enrichment_vram_utilization_percent", "Charged share of the budget", share)
        yield Gauge("enrichment_models_loaded", "Models that answer now", loaded)
        yield Gauge("zoo_host_cache_bytes", "Copies of loaded models in host memory", copies)
        yield Counter("zoo_internal_errors", "Errors in the broker itself", self._guard.errors)
        yield Counter("zoo_log_lines_dropped", "Lines of the log never written", logs.dropped())
        yield from self._by_model(models)
        yield from self._by_device()

    def _by_model(self, models: list[Model]) -> Iterator[Metric]:
        for kind, name, text, read in BY_MODEL:
            family = kind(name, text, labels=["model_name"])
            for model in models:
                family.add_metric([model.name], read(model))
            yield family
        evictions = Counter("enrichment_model_evictions", "Models evicted", labels=["model_name", "priority"])
        for labels, count in list(self._scheduler.evictions.items()):
            evictions.add_metric(labels, count)
        measured = Gauge("zoo_model_measured_bytes", "Most seen in use", labels=["model_name", "device"])
        shortages = Counter("zoo_out_of_memory", "Memory ran out", labels=["model_name", "when"])
        for model in models:
            for device, peak in list(model.peaks.items()):
                measured.add_metric([model.name, device], peak.mb * MB)
            for when in ("load", "batch", "request"):
                shortages.add_metric([model.name, when], model.shortages[when])
        yield from (evictions, measured, shortages)

    def _by_device(self) -> Iterator[Metric]:
        ledger = self._scheduler.ledger
        for name, text, read in (
            ("zoo_device_limit_bytes", "What may be charged now", ledger.limit_mb),
            ("zoo_device_overrun_bytes", "Charged beyond that", ledger.overrun_mb),
            ("zoo_device_unreturned_bytes", "Held by ended processes", self._scheduler.unreturned_mb),
        ):
            family = Gauge(name, text, labels=["device"])
            for device in list(ledger.devices):
                family.add_metric([device], read(device) * MB)
            yield family

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
