"""A new configuration in a running broker. Nobody in use is ended for it: what has to go, goes when it is let go.

Pure, like all of the scheduler: what has changed comes in as an event, see `zoo/config/changes.py`.
"""

from __future__ import annotations

import math

from broker.scheduler import figures
from broker.scheduler.capacity.ledger import Device
from broker.scheduler.events import Reconfigured, State
from broker.scheduler.idling import Idling
from broker.scheduler.residency import Residency
from broker.scheduler.timers import Due
from zoo.config.schema import BrokerConfig, ModelConfig


class Reconfiguring(Idling):
    """See the module's docstring. `_leaving`: some model takes on nobody new, or did."""

    def __init__(self, config: BrokerConfig, devices: list[Device], models: list[ModelConfig]) -> None:
        super().__init__(config, devices, models)
        self._leaving = False
        self._reconfigured_at = -math.inf

    def _reconfigured(self, e: Reconfigured, now: float) -> None:
        """Takes over a new configuration. Nobody in use is ended for it: what has to go, goes when it is let go."""
        if self.stopping:
            return
        for name, text in e.changes:
            self.story.tell(now, name, text, "changed")
        self.config, self._reconfigured_at = e.broker, now
        self._take_policy()
        for device, mb in e.budgets.items():
            if device in self.ledger.devices and figures.is_mb(mb):
                self.ledger.set_budget(device, mb)
        given = {config.name: config for config in e.models}
        for model in list(self.models.values()):
            config = given.pop(model.name, None)
            if config is None:
                model.removed, model.pinned = True, False
            else:
                self._take_over(model, config, restart=model.name in e.restart)
        for name, config in given.items():
            model = self.models[name] = Residency(config, next(self._model_numbers))
            self._numbered[model.number] = model
        self._leaving = False
        for model in list(self.models.values()):
            if model.pinned and model.state is State.DRAINING:
                self._keep(model, now)
            self._retire(model, now)
            self._leaving = self._leaving or model.leaving
            if model.state is State.LOADED:
                self._serve(model, now)  # by the new max_delay_ms and idle_seconds
        for worker, model in self._workers.items():
            began = model.started_at if model.state is State.LOADING else model.dispatched_at
            limit = self.config.load_timeout if model.state is State.LOADING else self._dispatch_timeout(model)
            self.timers.add(max(now, began + limit), Due.WATCH, worker)
        self._room_may_exist(now)

    def _take_over(self, model: Residency, config: ModelConfig, *, restart: bool) -> None:
        before = model.config
        config.available = before.available
        model.removed = False
        if model.claim and config.device not in ("", model.claim_on):
            model.claim = 0
        if config.pinned != before.pinned or not config.enabled:
            model.pinned = config.pinned and config.enabled
            model.unasked = model.unasked and not model.pinned
        if restart:
            model.failures, model.failure, model.retry_at = 0, "", 0.0  # the mistake may have been there
            model.further_failures, model.further_at = 0, 0.0
            model.quarantine.lift()
        for worker in (model, *model.others):
            worker.config = config
            if worker.worker and (restart or config.device not in ("", worker.device)):
                worker.outdated = True
            charge = self.ledger.of(worker.worker)
            if charge is not None and worker.state is not State.EVICTING and config.vram_mb != before.vram_mb:
                worker.mb = worker.need_mb(worker.device)
                self.ledger.recharge(worker.worker, worker.mb)

    def _retire(self, model: Residency, now: float) -> None:
        """A model that is not to go on as it is goes, unless somebody holds it: what it has accepted is finished."""
        ending = model.leaving or model.outdated
        self._part(model, 0 if ending else model.config.max_instances - 1, "config.toml wants fewer workers", now)
        if not ending:
            return
        if model.state is State.LOADED and not (model.leases or model.pinned):
            why = (
                "removed from config.toml" if model.removed else "disabled" if model.leaving else "its settings changed"
            )
            self._drain(model, why, now)
        elif model.state is State.LOADING:
            model.unload_when_loaded = True
        if model.leaving:
            code = "model_not_found" if model.removed else "model_disabled"
            rest = [] if model.state in (State.LOADED, State.DRAINING) else model.queue.all()
            for request in [*rest, *model.later.all()]:
                self._refuse(request, code, f"{model.name} is not in config.toml any more, or disabled there")
        if model.removed and not model.leases and not model.worker and not model.others:
            del self.models[model.name], self._numbered[model.number]
            self._wanted.pop(model.name, None)
            self._yielding.discard(model.name)
