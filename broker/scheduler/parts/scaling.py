"""Workers that no request has to wait for: an extra one beside those there are, or one ahead of any request.

Both take room that is free and that no demand waits for, and are the first to go.

An extra worker is started only when what has queued would take the workers there are longer than a load takes, on a
device where the model has no worker yet.

What usually follows the last request is loaded ahead of it (`prefetch`), as is what was loaded before the broker's
start (`restore`), one after another. Such a guess is made while no demand waits for anything. It goes before any other
model when its room is needed, its load ends when any load is needed, and one that was wrong is not made again before
the model has been asked for.

* An extra worker pays when queued requests × seconds per request ÷ workers exceed the seconds of a load: such a queue
  lasts until the worker is there, whatever comes meanwhile. It is never the reason for another model's reload. On one
  device a second process would hold the same weights twice to share one processor; batches use it better. An extra
  worker whose load fails does not make the model fail; the next try has the same back-off.
* A guess is made if the model followed the last request within eight others at least half of the time, was loaded
  before, fits what is free, and nothing is loading or ending on any device. A CRITICAL model that was only guessed
  may be evicted for any other: no request has asked for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from broker.scheduler.capacity import placement
from broker.scheduler.capacity.demand import Demand, Want
from broker.scheduler.capacity.habits import Habits
from broker.scheduler.parts.lifecycle import Lifecycle
from broker.scheduler.registry import Registry
from broker.scheduler.state import End, Guess, Model, Move, State

LEAST = 0.5  # how probable it has to be that a model is among the next requests


@dataclass
class Scaling:
    """See the module's docstring."""

    _r: Registry
    _lifecycle: Lifecycle

    # ------------------------------------------------------------ one more

    def grow(self, model: Model) -> None:
        """Starts an extra worker where that pays, and costs no other model its room."""
        r, workers = self._r, model.workers
        if not model.queue.live or model.config.max_instances <= len(workers) or not workers:
            return
        if r.stopping or r.demands or r.now < model.failures.extra_at or model.leaving or model.primary.outdated:
            return
        if any(worker.state is not State.LOADED for worker in workers):
            return
        primary = model.primary
        left = model.queue.live * primary.service_s / len(workers)
        if left <= primary.load_seconds:
            return
        device = placement.place_spare(Demand(model, Want.EXTRA), r.view())
        if device is not None:
            r.tell(
                model.name, "growing", waiting=model.queue.live, workers=len(workers), seconds=left,
                service_s=primary.service_s, load_s=primary.load_seconds,
            )  # fmt: skip
            self._lifecycle.start(model, device)

    # ------------------------------------------------------------ ahead of any request

    def anticipate(self) -> None:
        """Loads what usually follows the last request, or what was loaded before the broker's start."""
        r = self._r
        if r.stopping or r.demands or r.moving or r.contested or r.overdrawn or not (r.asked_last or r.absent):
            return
        if r.asked_last:
            self._prefetch()
        else:
            self._restore()

    def _prefetch(self) -> None:
        r = self._r
        if any(map(r.unread.is_late, r.ledger.devices)):
            return  # later, perhaps
        after, r.asked_last = r.asked_last, ""
        for probability, model in likely(r.habits, after, r.models.values()):
            device = placement.place_spare(Demand(model, Want.GUESS), r.view())
            if device is not None:
                r.tell(
                    model.name, "ahead", after=after, probability=round(probability, 3), device=device,
                    need_mb=model.need_mb(device), free_mb=r.ledger.free_mb(device),
                )  # fmt: skip
                self._lifecycle.start(model, device, guess=True)
                r.asked_last = after  # there may be room for more
                return

    def _restore(self) -> None:
        r = self._r
        while r.absent:
            model = r.models.get(r.absent.pop(0))
            if model is None or model.state is not State.UNLOADED or model.leaving or model.pinned or model.workers:
                continue
            device = placement.place_spare(Demand(model, Want.GUESS), r.view())
            if device is not None:
                need, free = model.need_mb(device), r.ledger.free_mb(device)
                r.tell(model.name, "restored", device=device, need_mb=need, free_mb=free)
                self._lifecycle.start(model, device, guess=True)
                return

    def end_guesses(self) -> None:
        """A load is demanded: those that were guessed are in its way, or will be."""
        if not self._r.demands:
            return
        for worker in list(self._r.moving.values()):
            if worker.model.guess is Guess.OPEN and worker.state is State.LOADING:
                self._lifecycle.end(worker, Move.KILL, End.UNWANTED)
                worker.model.guess = Guess.WRONG
                self._r.tell(worker.name, "dropped", others=tuple(self._r.demands))


def likely(habits: Habits, asked: str, models: Iterable[Model]) -> list[tuple[float, Model]]:
    """Models that are worth a guess after a request for `asked`, with how probably they follow, the surest first.

    Only those that have been loaded before: nothing is known of the others' weights and memory.
    """
    found = [(habits.follows(asked, m.name), m) for m in models if _may_be_guessed(m)]
    return sorted(((p, m) for p, m in found if p >= LEAST), key=lambda guess: (-guess[0], guess[1].name))


def _may_be_guessed(model: Model) -> bool:
    return (
        model.state is State.UNLOADED  # and no load of it has failed
        and model.config.available
        and not (model.leaving or model.pinned or model.workers)
        and model.guess is not Guess.WRONG
    )
