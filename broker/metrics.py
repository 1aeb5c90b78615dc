"""Prometheus. A scrape reads what the scheduler and the other parts count anyway; only what histograms are made of is
counted for them alone (`latencies.py`).

The names are public: dashboards hold on to them. A number that each model has is one more line of `BY_MODEL`. Labels
are names of registered models and devices, and words of fixed lists, so that there are never many.

The exporter's thread reads while the loop goes on, which is fine, since it only looks and never decides. What it looks
at may change meanwhile: it then looks again.
"""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily as Counter
from prometheus_client.core import GaugeMetricFamily as Gauge
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from broker import exposition, logs
from broker.front.front import Front
from broker.front.handoff import Handoff
from broker.guard import Guard
from broker.latencies import Latencies, ModelTimes, Tally
from broker.memory.gauge import Gauge as DeviceGauge
from broker.memory.host_cache import Copies
from broker.scheduler.scheduler import Scheduler
from broker.scheduler.state import End, Model, State, Worker

LOAD_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
MB = 1 << 20
LOOKS = 20  # at what changes meanwhile, before the last sound look is given once more
BY_MODEL: tuple[tuple[type[Counter | Gauge], str, str, Callable[[Model], float]], ...] = (
    (Counter, "zoo_requests", "Inferences that a worker finished", lambda model: model.requests),
    (Counter, "zoo_worker_crashes", "Processes that died or hung", lambda model: model.crashes),
    (Counter, "zoo_worker_restarts", "Processes started after one that was not to end", lambda model: model.restarts),
    (Counter, "zoo_model_loads", "Processes that became ready", lambda model: model.loads),
    (Gauge, "zoo_queued_requests", "Requests waiting", lambda model: model.waiting),
    (Gauge, "zoo_running_requests", "Requests at workers", lambda model: sum(map(_at_work, list(model.workers)))),
    (Gauge, "zoo_model_workers", "Processes that answer now", lambda model: len(model.answering)),
    (Gauge, "zoo_model_leases", "Leases held", lambda model: len(model.leases)),
    (Gauge, "zoo_model_pinned", "1: it is never evicted", lambda model: model.pinned),
    (Gauge, "zoo_model_declared_bytes", "vram_mb of config.toml", lambda model: model.config.vram_mb * MB),
)
HISTOGRAMS: tuple[tuple[str, str, Callable[[ModelTimes], Tally]], ...] = (  # of inferences answered with a result
    ("zoo_request_seconds", "From being accepted to being answered", lambda times: times.total),
    ("zoo_queue_seconds", "Of that, waiting, but for a load", lambda times: times.queue),
    ("zoo_inference_seconds", "Of that, in the adapter's predict", lambda times: times.infer),
    ("zoo_batch_size", "Requests of one batch, as sent to a worker", lambda times: times.sizes),
)


def _at_work(worker: Worker) -> int:
    return len(worker.inflight) + len(worker.ahead)


class Metrics(Collector):
    """Serves them at `address` ("HOST:PORT"), if any."""

    def __init__(self, scheduler: Scheduler, copies: Copies, guard: Guard, address: str | Literal[False]) -> None:
        self._scheduler = scheduler
        self._guard = guard
        self._copies = copies
        self.latencies = Latencies(scheduler.workers)
        self._front: Front | None = None
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

    def watch(self, front: Front, handoff: Handoff, sessions: Mapping[bytes, object], gauge: DeviceGauge) -> None:
        """The other parts of the broker that are looked at."""
        self._front, self._handoff, self._sessions, self._gauge = front, handoff, sessions, gauge

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
        yield from self._latencies(models)
        yield self._errors(models)
        if self._front is not None:
            yield from self._clients(self._front)
            yield from self._measured()

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
        charged = Gauge("zoo_model_charged_bytes", "Charged for it now", labels=["model_name", "device"])
        states = Gauge("zoo_model_state", "1: the model is in that state", labels=["model_name", "state"])
        ends = Counter("zoo_worker_ends", "Processes that ended or were killed", labels=["model_name", "cause"])
        for model in models:
            for device, peak in list(model.peaks.items()):
                measured.add_metric([model.name, device], peak.mb * MB)
            for device in self._scheduler.ledger.devices:
                mb = sum(worker.mb for worker in list(model.workers) if worker.device == device)
                charged.add_metric([model.name, device], mb * MB)
            for when in ("load", "batch", "request"):
                shortages.add_metric([model.name, when], model.shortages[when])
            for state in State:
                states.add_metric([model.name, state.value], model.state is state)
            for cause in End:
                ends.add_metric([model.name, cause.value], model.ends[cause])
        yield from (evictions, measured, charged, shortages, states, ends)

    def _latencies(self, models: list[Model]) -> Iterator[Metric]:
        self.latencies.keep(self._scheduler.models)
        for name, text, read in HISTOGRAMS:
            family = HistogramMetricFamily(name, text, labels=["model_name"])
            for model in models:
                tally = read(self.latencies.of(model.name))
                family.add_metric([model.name], tally.buckets(), tally.sum)
            yield family

    def _errors(self, models: list[Model]) -> Metric:
        """With an empty model_name: of requests that were for no model that is registered, or could not be read."""
        count = Count[tuple[str, str]]()
        for model in models:
            count.update({(model.name, code): n for code, n in list(model.errors.items())})
        count.update({("", code): n for code, n in list(self._scheduler.unnamed_errors.items())})
        if self._front is not None:
            names = {model.name for model in models}
            for (name, code), n in list(self._front.refused.items()):
                count[name if name in names else "", code] += n
        text = "Requests answered with an error"
        family = Counter("zoo_request_errors", text, labels=["model_name", "code"])
        for labels, n in count.items():
            family.add_metric(labels, n)
        return family

    def _by_device(self) -> Iterator[Metric]:
        ledger = self._scheduler.ledger
        for name, text, read in (
            ("zoo_device_charged_bytes", "What is charged now", ledger.used_mb),
            ("zoo_device_limit_bytes", "What may be charged now", ledger.limit_mb),
            ("zoo_device_overrun_bytes", "Charged beyond that", ledger.overrun_mb),
            ("zoo_device_unreturned_bytes", "Held by ended processes", self._scheduler.unreturned_mb),
        ):
            family = Gauge(name, text, labels=["device"])
            for device in list(ledger.devices):
                family.add_metric([device], read(device) * MB)
            yield family

    def _measured(self) -> Iterator[Metric]:
        """What devices show. One that cannot be read now has no value, but for what was seen of our workers."""
        total = Gauge("zoo_device_total_bytes", "Size of the device", labels=["device"])
        ours = Gauge("zoo_device_measured_bytes", "Seen in use by workers", labels=["device"])
        others = Gauge("zoo_device_others_bytes", "In use, and not by workers", labels=["device"])
        for device in list(self._scheduler.ledger.devices):
            figures, mb = self._gauge.figures(device), self._gauge.ours_mb(device)
            ours.add_metric([device], mb * MB)
            if figures is not None and figures.total_mb is not None:
                total.add_metric([device], figures.total_mb * MB)
            if figures is not None and figures.used_mb is not None:
                others.add_metric([device], max(0.0, figures.used_mb - mb) * MB)
        yield from (total, ours, others)

    def _clients(self, front: Front) -> Iterator[Metric]:
        lines, arenas = list(self._handoff.lines.values()), list(self._handoff.arenas.values())
        count = Gauge("zoo_arenas", "Arenas of shared memory", labels=["owner"])
        size = Gauge("zoo_arena_bytes", "Their size", labels=["owner"])
        roles = {line.key: line.role for line in lines}
        for role in ("client", "worker"):
            sizes = [arena.size for arena in arenas if roles.get(arena.owner) == role]
            count.add_metric([role], len(sizes))
            size.add_metric([role], sum(sizes))
        yield from (count, size)
        held = sum(len(line.results) for line in lines)
        yield Gauge("zoo_results_in_use", "Arrays of workers' arenas that clients hold", held)
        yield Gauge("zoo_inline_bytes", "Frames that wait in the broker itself", front.inline.held)
        yield Gauge("zoo_sessions", "Clients", len(self._sessions))

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
