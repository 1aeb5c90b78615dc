"""Several workers of one model: who serves the next request, when a further worker starts, who is first when one ends.

Theory of operation. A model has one queue, and whichever of its workers has a place takes what is next in it, the one
with the fewest requests at hand first: nobody waits behind a busy worker while another is free. Each worker beyond the
first has a `Residency` of its own, with the life of its process and nothing else; requests, leases, pins, failures and
fingerprints are the model's.

A further worker is a luxury. It is started only when what has queued would take the workers there are longer than a
load takes; it gets room that is free and that nobody waits for, on a device where the model has no worker yet; and it
is the first to go. When the first worker ends while another lives, they change places: as long as any worker of a
model is loaded, its first one is. So all that is said about a model's state elsewhere holds for the first alone.

Pure, like all of the scheduler.
"""

from __future__ import annotations

import itertools

from broker.scheduler.capacity.ledger import Device
from broker.scheduler.capacity.placement import choose
from broker.scheduler.capacity.room import Room
from broker.scheduler.events import State
from broker.scheduler.residency import Request, Residency
from zoo.config.schema import BrokerConfig, ModelConfig

LIFE = (  # of a `Residency`: what belongs to its process, and goes with it when two change places
    "ahead", "device", "dispatched_at", "failed_load", "inflight", "last_used", "least_service_s", "load_seconds",
    "loaded_at", "max_batch", "mb", "noted", "outdated", "service_s", "started_at", "state", "unload_when_loaded",
    "watched", "worker",
)  # fmt: skip


class Instances(Room):
    """See the module's docstring. `further` has the further workers, until their memory is back."""

    def __init__(self, config: BrokerConfig, devices: list[Device], models: list[ModelConfig]) -> None:
        super().__init__(config, devices, models)
        self._numbered = {m.number: m for m in self.models.values()}

    # ------------------------------------------------------------ who serves

    def _takes(self, model: Residency, request: Request) -> bool:
        """The worker is free, or has a place for the next batch. Whoever may have killed a process runs alone."""
        running = model.inflight
        if not running:
            return not model.short
        return not model.short and not model.ahead and not running[0].alone and not request.alone

    def _serves(self, model: Residency) -> bool:
        """The worker takes from the model's queue: of those that drain, only the first has to finish it."""
        if model.yielding:
            return False
        return model.state is State.LOADED or (model.state is State.DRAINING and model.first is model)

    def _place(self, model: Residency, request: Request) -> Residency | None:
        """The worker that takes the request now, the one with the fewest at hand; None when all are busy."""
        if not model.others:
            return model if self._serves(model) and self._takes(model, request) else None
        fit = [m for m in (model, *model.others) if self._serves(m) and self._takes(m, request)]
        return min(fit, key=lambda m: len(m.inflight) + len(m.ahead), default=None)

    # ------------------------------------------------------------ one more

    def _grow(self, model: Residency, now: float) -> None:
        """Starts a further worker where that pays, and costs nobody his room."""
        if model.config.max_instances <= 1 + len(model.others) or now < model.further_at or model.outdated:
            return
        workers = [model, *model.others]
        if self.stopping or self._wanted or model.leaving or any(m.state is not State.LOADED for m in workers):
            return
        left = model.queue.live * model.service_s / len(workers)
        if left <= model.load_seconds:
            return
        fits, room = self._free_places(model, now)
        taken = {m.device for m in workers}
        loading = [m.device for m in self._moving.values() if m.state is State.LOADING]
        need = {
            name: mb
            for name, mb in fits.items()
            if name not in taken and loading.count(name) < self.config.concurrent_loads
        }
        if not need:
            return
        other = Residency(model.config, next(self._model_numbers), model)
        names = (f"{model.name}#{n}" for n in itertools.count(2))
        other.name = next(name for name in names if name not in self.further)
        other.service_s, other.load_seconds = model.service_s, model.load_seconds  # until it has its own
        model.others.append(other)
        self.further[other.name] = self._numbered[other.number] = other
        text = (
            f"{model.queue.live} waiting x {model.service_s:.3g} s / {len(workers)} = {left:.2f} s to work off, a "
            f"further worker loads in {model.load_seconds:.2f} s"
        )
        self.story.tell(now, other.name, text, "growing", waiting=model.queue.live, workers=len(workers), seconds=left)
        self._start(other, choose(need, room, ()), now)

    # ------------------------------------------------------------ one less

    def _evict(self, model: Residency, why: str, now: float) -> None:
        ending = model if model.referenced else self._step_down(model, now)
        super()._evict(ending, why, now)
        if ending is not model:
            self._serve(model, now)

    def _step_down(self, model: Residency, now: float) -> Residency:
        """A worker is about to end. If it is the first of several, another takes its place; who ends is given back."""
        heirs = [other for other in model.others if other.state in (State.LOADED, State.LOADING)]
        if not heirs or model.state not in (State.LOADED, State.LOADING):
            return model
        heir = min(heirs, key=lambda other: other.state is not State.LOADED)
        for key in LIFE:
            mine, its = getattr(model, key), getattr(heir, key)
            setattr(model, key, its)
            setattr(heir, key, mine)
        for one in (model, heir):
            one.yielding = False  # the next look tells
            self._yielding.discard(one.name)
            self._workers[one.worker] = one
            if one.worker in self._moving:
                self._moving[one.worker] = one
        text = f"its first worker is the one on {model.device} from now on"
        self.story.tell(now, model.name, text, "first", worker=model.worker, device=model.device)
        return heir

    def _part(self, model: Residency, keep: int, why: str, now: float) -> None:
        """Further workers, but for `keep` of them, finish what they run, and go."""
        for other in model.others[keep:]:
            if other.state is State.LOADED:
                self._drain(other, why, now)
            elif other.state is State.LOADING:
                other.unload_when_loaded = True

    def _forget(self, other: Residency) -> None:
        """A further worker's memory is back."""
        other.first.others.remove(other)
        self._yielding.discard(other.name)
        del self.further[other.name], self._numbered[other.number]
