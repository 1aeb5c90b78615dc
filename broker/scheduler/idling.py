"""Models that nobody uses: unloaded because somebody asked for it, or idle for long enough. The scheduler's part of it.

An unload drains: what was accepted is finished, what comes meanwhile waits for the model's next life.

Pure, like all of the scheduler.
"""

from __future__ import annotations

import math

from broker.scheduler.events import Answer, IdleCleanup, Kind, Move, Refuse, State
from broker.scheduler.requests import Requests
from broker.scheduler.residency import Request, Residency
from broker.scheduler.timers import Due


def _in_use(model: Residency) -> str:
    return f"{model.name} is in use ({model.reasons()}); not unloaded"


class Idling(Requests):
    """See the module's docstring."""

    def _ask_unload(self, request: Request, now: float) -> None:
        model = request.model
        if model.leases or model.pinned:
            self._answer(request, Refuse(request.id, "model_in_use", _in_use(model)))
            return
        if model.quarantine.lift():
            self.story.tell(now, model.name, "unload was asked for: no input is refused any more", "lifted")
        if model.state in (State.UNLOADED, State.FAILED) and not model.others:
            self._answer(request, Answer(request.id, False))
            return
        self._register(request)
        model.unloads.append(request)
        if model.state is State.LOADING:
            model.unload_when_loaded = True
        elif model.state is State.LOADED:
            self._drain(model, "unload was asked for", now)
            self._room_may_exist(now)

    def _drain(self, model: Residency, why: str, now: float) -> None:
        self._stay_small(model)
        self._part(model, 0, why, now)
        self._move(model, Move.DRAIN)
        model.yielding = False
        self.story.tell(now, model.name, f"draining: {why} ({model.reasons()})", "draining")
        self._serve(model, now)

    def _keep(self, model: Residency, now: float) -> None:
        """It was to go, and is pinned now."""
        self._move(model, Move.KEEP)
        self._refuse_unloads(model)
        self._next_life(model)
        self._grant_waiting(model, now)
        self._serve(model, now)

    def _refuse_unloads(self, model: Residency) -> None:
        for request in list(model.unloads):
            self._refuse(request, "model_in_use", _in_use(model))

    def _next_life(self, model: Residency) -> None:
        """What came while the model drained may be served now."""
        for request in model.later.all():
            model.later.drop(request)
            model.queue.push(request)

    def _grant_waiting(self, model: Residency, now: float) -> None:
        for request in model.queue.all():
            if request.deadline <= now:
                self._too_late(request, "while the model was getting ready", now)
            elif request.kind is not Kind.INFER:
                self._grant(request, now)

    def _became_idle(self, model: Residency, now: float) -> None:
        """Nothing runs and nothing waits; leases and pins may remain."""
        if model.state is State.DRAINING:
            self._evict(model, "unload was asked for", now)
            return
        if model.state is not State.LOADED or model.referenced:
            return
        if model.keep_alive == 0:
            self._evict(model, "the last reference went, keep_alive = 0", now)
        else:
            self._arm_idle(model, model.last_used + self._idle_limit(model))

    def _arm_idle(self, model: Residency, when: float) -> None:
        if when < model.idle_at:
            model.idle_at = when
            self.timers.add(when, Due.IDLE, model.number)

    def _idle_limit(self, model: Residency) -> float:
        if model.keep_alive is not None:
            return model.keep_alive
        own = model.config.idle_seconds
        return self.config.idle_seconds if own is None else own

    def _idle_timer(self, model: Residency, now: float) -> None:
        model.idle_at = math.inf  # its one entry that counts has just fired
        if model.state is not State.LOADED or model.referenced or model.queue.live:
            return
        left = model.last_used + self._idle_limit(model) - now
        if left <= 0:
            self._evict(model, f"idle for {now - model.last_used:.1f} s", now)
            self._room_may_exist(now)
        else:
            self._arm_idle(model, now + left)

    def idle_models(self, idle_seconds: float, now: float) -> list[str]:
        """Which models `IdleCleanup` would evict now; a further worker counts as one, by its name in `processes`."""
        return [
            m.name
            for m in (*self.further.values(), *self.models.values())
            if m.state is State.LOADED and not m.referenced and not m.queue.live and now - m.last_used >= idle_seconds
        ]

    def _idle_cleanup(self, e: IdleCleanup, now: float) -> None:
        for name in self.idle_models(e.idle_seconds, now):
            model = self._named(name)
            self._evict(model, f"clean-up: idle for {now - model.last_used:.1f} s", now)
        self._room_may_exist(now)
