"""Prometheus. Nothing is counted on the way of a request: a scrape reads the scheduler's own numbers.

The names are public (see DESIGN): dashboards hold on to them. Read from the exporter's thread while the loop goes on,
which is fine, since it only looks and never decides. What it looks at may change meanwhile: it then looks again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from broker import logs
from broker.exposition import Exposition
from broker.scheduler.state import State

if TYPE_CHECKING:
    from broker.guard import Guard
    from broker.memory.host_cache import Copies
    from broker.scheduler.scheduler import Scheduler

LOAD_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
MB = 1 << 20
LOOKS = 20  # at what changes meanwhile, before the last sound look is given once more


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
        self._server = Exposition(self.registry, address) if address else None

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
        scheduler = self._scheduler
        ledger = scheduler.ledger
        budget = sum(d.budget_mb for d in ledger.devices.values())
        used = sum(ledger.used_mb(name) for name in ledger.devices)
        models = list(scheduler.models.values())
        yield GaugeMetricFamily("enrichment_vram_usage_bytes", "Charged memory", value=used * MB)
        yield GaugeMetricFamily("enrichment_vram_budget_bytes", "The budget", value=budget * MB)
        yield GaugeMetricFamily(
            "enrichment_vram_utilization_percent",
            "Charged share of the budget",
            value=100 * used / budget if budget else 0,
        )
        loaded = sum(m.state in (State.LOADED, State.DRAINING) for m in models)
        yield GaugeMetricFamily("enrichment_models_loaded", "Models that answer now", value=loaded)
        evictions = CounterMetricFamily(
            "enrichment_model_evictions", "Models evicted", labels=["model_name", "priority"]
        )
        for (name, priority), count in list(scheduler.evictions.items()):
            evictions.add_metric([name, priority], count)
        yield evictions
        declared = GaugeMetricFamily("zoo_model_declared_bytes", "vram_mb of config.toml", labels=["model_name"])
        measured = GaugeMetricFamily("zoo_model_measured_bytes", "Most seen in use", labels=["model_name", "device"])
        for m in models:
            declared.add_metric([m.name], m.config.vram_mb * MB)
            for device, peak in list(m.peaks.items()):
                measured.add_metric([m.name, device], peak.mb * MB)
        limit = GaugeMetricFamily("zoo_device_limit_bytes", "What may be charged now", labels=["device"])
        overrun = GaugeMetricFamily("zoo_device_overrun_bytes", "Charged beyond that", labels=["device"])
        lost = GaugeMetricFamily("zoo_device_unreturned_bytes", "Held by ended processes", labels=["device"])
        for device in list(ledger.devices):
            limit.add_metric([device], ledger.limit_mb(device) * MB)
            overrun.add_metric([device], ledger.overrun_mb(device) * MB)
            lost.add_metric([device], scheduler.unreturned_mb(device) * MB)
        yield from (declared, measured, limit, overrun, lost)
        yield GaugeMetricFamily(
            "zoo_host_cache_bytes", "Copies of loaded models in host memory", value=self._copies.used_bytes
        )
        yield CounterMetricFamily("zoo_internal_errors", "Errors in the broker itself", value=self._guard.errors)
        yield CounterMetricFamily("zoo_log_lines_dropped", "Lines of the log never written", value=logs.dropped())
        requests = CounterMetricFamily("zoo_requests", "Inferences that a worker finished", labels=["model_name"])
        errors = CounterMetricFamily("zoo_request_errors", "Requests answered with an error", labels=["model_name"])
        crashes = CounterMetricFamily("zoo_worker_crashes", "Processes that died or hung", labels=["model_name"])
        shortages = CounterMetricFamily("zoo_out_of_memory", "Memory ran out", labels=["model_name", "when"])
        queued = GaugeMetricFamily("zoo_queued_requests", "Requests waiting", labels=["model_name"])
        workers = GaugeMetricFamily("zoo_model_workers", "Processes that answer now", labels=["model_name"])
        for m in models:
            requests.add_metric([m.name], m.requests)
            errors.add_metric([m.name], m.errors)
            crashes.add_metric([m.name], m.crashes)
            queued.add_metric([m.name], m.waiting)
            workers.add_metric([m.name], len(m.answering))
            for when in ("load", "batch", "request"):
                shortages.add_metric([m.name, when], m.shortages[when])
        yield from (requests, errors, crashes, shortages, queued, workers)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
