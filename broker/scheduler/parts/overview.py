"""What the scheduler's state looks like from outside: plain maps and lists, and advice that decides nothing."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from broker.scheduler.capacity.demand import Demand, Want
from broker.scheduler.capacity.offer import offer
from broker.scheduler.events import Finished
from broker.scheduler.registry import Registry
from broker.scheduler.state import Model, Peak, State, Worker
from broker.scheduler.story.story import Line


@dataclass
class Overview:
    """See the module's docstring."""

    _r: Registry

    # ------------------------------------------------------------ what was decided

    def explain(self, model: str | None = None) -> list[Line]:
        """The last decisions; of one model, also what became of its requests that had to wait or were refused."""
        lines = self._r.story.about(model)
        return lines if model is None else sorted([*lines, *self._r.journal.about(model)], key=lambda line: line.at)

    def decisions(self, model: str | None = None) -> list[Line]:
        """The last decisions that are about no single request."""
        return [line for line in self._r.story.about(model) if "request" not in line.fields]

    def session_of(self, number: int) -> bytes | None:
        """The client of a request that `explain_request` knows."""
        request = self._r.requests.get(number) or self._r.journal.find(number)
        return request.session if request is not None else None

    def explain_request(self, number: int) -> list[Line] | None:
        """The story of a request that is under way, or one of the last; None when it is neither."""
        r = self._r
        request = r.requests.get(number) or r.journal.find(number)
        return None if request is None else r.journal.tell(request, r.story, r.requests.values())

    def decided(self, count: int, most: int) -> tuple[list[Line], int, bool, bool]:
        """A page of the decisions that are about no single request: the oldest `most` lines after `count`.

        Gives them, the count to go on from, whether there are more already, and whether some are kept no more.
        """
        lines, following = self._r.story.page(count, most)
        missed = following - len(lines) > count
        found = [line for line in lines if "request" not in line.fields]
        return found, following, following < self._r.story.count, missed

    # ------------------------------------------------------------ what there is

    def status(self, now: float) -> dict[str, Any]:
        """Counts and megabytes; the names are public."""
        r = self._r
        budget = sum(d.budget_mb for d in r.ledger.devices.values())
        used = sum(r.ledger.used_mb(name) for name in r.ledger.devices)
        pending = [m.name for m in r.models.values() if m.state is State.LOADING]
        pending += [n for n, demand in r.demands.items() if demand.want is not Want.GROW and n not in pending]
        return {
            "vram_budget_mb": round(budget, 3),
            "vram_used_mb": round(used, 3),
            "vram_available_mb": round(max(0.0, budget - used), 3),
            "vram_utilization_percent": round(100 * used / budget, 2) if budget else 0.0,
            "loaded_models": self._loaded_models(),
            "registered_models": list(r.models),
            "pending_loads": pending,
            "devices": self._devices(),
            "leases": len(r.leases),
            "requests": len(r.requests),
            "queued": {m.name: m.queue.live for m in r.models.values() if m.queue.live},
            "running": r.running,
            "workers": len(r.workers),
            "stopping": r.stopping,
        }

    def waiting(self) -> list[dict[str, Any]]:
        """Models that requests wait for, or that want room: how many wait, since when, of which sessions, and why."""
        r = self._r
        found = []
        for model in r.models.values():
            demand = r.demands.get(model.name)
            requests = [*model.queue.all(), *model.later.all()] if model.waiting else []
            if not requests and (demand is None or not demand.why):
                continue
            found.append({
                "model": model.name,
                "requests": len(requests),
                "oldest": min((request.since for request in requests), default=0.0),
                "sessions": Counter(request.session for request in requests),
                "why": self._why(model, demand),
            })  # fmt: skip
        return found

    def _why(self, model: Model, demand: Demand | None) -> str:
        """What the requests of a model wait for, in words."""
        if demand is not None and demand.why:
            return demand.why
        if model.state is State.LOADING:
            return "it is loading"
        if model.answering:
            return "its worker is busy" if len(model.answering) == 1 else f"its {len(model.answering)} workers are busy"
        if model.workers:
            return "its process is ending, and it is loaded again"
        return "room is being made for it" if demand is not None else "it is not loaded yet"

    def times(self) -> dict[str, dict[str, float]]:
        """How long the last inferences took, by model: how many they are, and the seconds of half and of 19 in 20."""
        return {
            name: {"count": len(of), "p50": round(_share(of, 0.5), 4), "p95": round(_share(of, 0.95), 4)}
            for name, of in self._r.journal.times().items()
        }

    def _loaded_models(self) -> list[dict[str, Any]]:
        return [
            {
                "name": m.name,
                "vram_mb": sum(w.mb for w in m.workers if w.alive),
                "declared_mb": m.config.vram_mb,
                "measured_mb": m.measured_mb(m.primary.device),
                "priority": m.config.priority.name,
                "last_used": max(w.last_used for w in m.workers),
                "workers": len(m.answering),
            }
            for m in self._r.models.values()
            if m.primary.answers
        ]

    def _devices(self) -> list[dict[str, Any]]:
        ledger = self._r.ledger
        return [
            {
                "name": d.name,
                "kind": d.kind,
                "budget_mb": round(d.budget_mb, 3),
                "used_mb": round(ledger.used_mb(d.name), 3),
                "limit_mb": round(ledger.limit_mb(d.name), 3),
                "free_mb": round(max(0.0, ledger.free_mb(d.name)), 3),
                "overrun_mb": round(ledger.overrun_mb(d.name), 3),
                "unreturned_mb": round(self._r.unreturned_mb(d.name), 3),
            }
            for d in ledger.devices.values()
        ]

    def processes(self) -> list[dict[str, Any]]:
        """One row per living worker."""
        return [_process(worker) for worker in self._r.workers.values()]

    def resident(self) -> list[str]:
        """Models that are loaded, the last used first."""
        loaded = [m for m in self._r.models.values() if m.primary.answers]
        return [m.name for m in sorted(loaded, key=lambda m: -m.primary.last_used)]

    def footprints(self, name: str) -> list[dict[str, Any]]:
        """What is known of a model's memory, one row per device that it may be loaded on."""
        model = self._r.models[name]
        found = {device: model.peaks.get(device, Peak(0.0)) for device in model.allowed(self._r.ledger.devices)}
        return [
            {
                "name": name,
                "device": device,
                "declared_mb": model.config.vram_mb,
                "measured_mb": model.measured_mb(device),
                "charged_mb": model.need_mb(device),
                "worked": peak.worked,
                "lives_mb": list(peak.lives),
            }
            for device, peak in found.items()
        ]

    def room(self) -> dict[str, Any]:
        """What a router among several brokers wants to know: what is here, and what room for more would cost."""
        r = self._r
        view = r.view()
        needs = {m.name: {device: m.need_mb(device) for device in m.peaks} for m in r.models.values() if m.peaks}
        return {
            "devices": {
                name: {"budget_mb": space.budget_mb, "limit_mb": space.limit_mb, "steps": offer(view, name)}
                for name, space in view.spaces.items()
            },
            "models": {
                m.name: [m.state.value, m.queue.live + sum(len(w.inflight) for w in m.workers)]
                for m in r.models.values()
                if m.workers or m.queue.live
            },
            "needs": needs,
            "requests": len(r.requests),
            "stopping": r.stopping,
        }

    # ------------------------------------------------------------ advice

    def awaits(self, number: int, outcomes: list[Finished]) -> bool:
        """False when the worker cannot have answered just these: they are not what it runs."""
        worker = self._r.workers.get(number)
        return worker is None or worker.runs(outcomes)

    def is_measured(self, number: int) -> bool:
        """True when the worker's model has been measured at work on its device."""
        worker = self._r.workers.get(number)
        peak = worker.model.peaks.get(worker.device) if worker is not None else None
        return peak is not None and peak.worked

    def loaded_in(self, number: int) -> float | None:
        """How many seconds the load of a worker took that is ready and may stay."""
        worker = self._r.workers.get(number)
        return worker.load_seconds if worker is not None and worker.state is State.LOADED else None

    def is_loading(self) -> bool:
        """True while some model is."""
        return any(worker.state is State.LOADING for worker in self._r.moving.values())

    def is_idle(self) -> bool:
        """True when nothing is loading or at work."""
        return not self._r.running and not self.is_loading()


def _share(ordered: list[float], share: float) -> float:
    """The least value that this share of them does not exceed. (Nearest rank.)"""
    return ordered[math.ceil(share * len(ordered)) - 1]


def _process(worker: Worker) -> dict[str, Any]:
    model, primary = worker.model, worker.primary
    return {
        "name": worker.name,
        "state": worker.state.value,
        "worker": worker.number,
        "device": worker.device,
        "vram_mb": worker.mb,
        "declared_mb": model.config.vram_mb,
        "measured_mb": model.measured_mb(worker.device),
        "priority": model.config.priority.name,
        "pinned": primary and model.pinned,
        "leases": len(model.leases) if primary else 0,
        "inflight": len(worker.inflight),
        "queued": model.waiting if primary else 0,
        "requests": model.requests if primary else worker.requests,
        "last_used": worker.last_used,
        "load_seconds": round(worker.load_seconds, 3),
    }
