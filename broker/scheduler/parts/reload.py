"""A new configuration in a running broker, and models that are not to go on as they are.

No model in use is ended for it: what has to go, goes when it is let go, and what it has accepted is finished.

The next process of a changed model has the new settings, and a model that had failed is tried at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from broker.scheduler.events import Reconfigured
from broker.scheduler.parts.answering import Answers
from broker.scheduler.parts.lifecycle import Lifecycle
from broker.scheduler.registry import Registry
from broker.scheduler.state import Guess, Model, Phase, State, Worker, peaks
from zoo.config.schema import ModelConfig


@dataclass
class Reconfiguration:
    """See the module's docstring."""

    _r: Registry
    _answers: Answers
    _lifecycle: Lifecycle

    def reconfigured(self, e: Reconfigured) -> None:
        r = self._r
        if r.stopping:
            return
        for name, text in e.changes:
            r.tell(name, "changed", text=text)
        r.configure(e.broker)
        r.reconfigured_at = r.now
        for device, mb in e.budgets.items():
            if device in r.ledger.devices and peaks.is_mb(mb):
                r.ledger.set_budget(device, mb)
        given = {config.name: config for config in e.models}
        for model in r.models.values():
            config = given.pop(model.name, None)
            if config is None:
                model.removed, model.pinned = True, False
            else:
                self._take_over(model, config, restart=model.name in e.restart)
        r.models.update((name, Model(config)) for name, config in given.items())
        for model in r.models.values():
            if model.pinned and model.state is State.DRAINING:
                self._lifecycle.keep(model)
            r.touched[model] = None
        for worker in r.workers.values():
            if worker.phase is not Phase.ENDING:
                self._watch_anew(worker)

    def _watch_anew(self, worker: Worker) -> None:
        """By the new timeouts."""
        r = self._r
        loading = worker.state is State.LOADING
        limit = r.config.load_timeout if loading else r.dispatch_timeout(worker.model)
        if loading or worker.inflight:
            self._lifecycle.watch(worker, max(r.now, limit + (worker.started_at if loading else worker.dispatched_at)))

    def _take_over(self, model: Model, config: ModelConfig, *, restart: bool) -> None:
        r, before = self._r, model.config
        config.available = before.available
        model.removed = False
        demand = r.demands.get(model.name)
        if demand is not None and demand.claim and config.device not in ("", demand.claim_on):
            demand.claim = 0
        if config.pinned != before.pinned or not config.enabled:
            model.pinned = config.pinned and config.enabled
            if model.pinned and model.guess is Guess.OPEN:
                model.guess = Guess.NONE
        if restart:
            model.failures.clear()  # the mistake may have been there
            model.quarantine.lift()
            model.settings += 1
        model.config = config
        for worker in model.workers:
            charge = r.ledger.of(worker.number)
            if charge is not None and worker.phase is not Phase.ENDING and config.vram_mb != before.vram_mb:
                worker.mb = model.need_mb(worker.device)
                r.ledger.recharge(worker.number, worker.mb)

    def retire(self, model: Model) -> None:
        """A model, or a worker of it, that is not to go on as it is goes, unless it is held."""
        if self._r.reconfigured_at == -math.inf:
            return
        ending, primary = model.leaving or model.primary.outdated, model.primary
        if model.workers:
            keep = 0 if ending else model.config.max_instances - 1
            self._lifecycle.end_extras(model, keep, "config.toml wants fewer workers")
        if not ending:
            return
        if primary.state is State.LOADED and not primary.held:
            self._lifecycle.drain(primary, _why(model))
        if model.leaving:
            self._refuse_waiting(model)
        if model.removed and not model.leases and not model.workers and self._r.models.get(model.name) is model:
            del self._r.models[model.name]
            self._r.demands.pop(model.name, None)

    def _refuse_waiting(self, model: Model) -> None:
        code = "model_not_found" if model.removed else "model_disabled"
        rest = [] if model.primary.answers else model.queue.all()
        for request in [*rest, *model.later.all()]:
            self._answers.refuse(request, code, f"{model.name} is not in config.toml any more, or disabled there")


def _why(model: Model) -> str:
    if model.removed:
        return "removed from config.toml"
    return "disabled" if model.leaving else "its settings changed"
