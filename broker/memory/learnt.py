"""Which measurements count for a model: those of the weights that lie there now, and no others."""

from __future__ import annotations

from collections.abc import Callable

from broker.configuration import Configuration
from broker.memory import footprints
from broker.scheduler.events import Event, Forgotten, Remembered
from broker.scheduler.scheduler import Scheduler


class Learnt:
    """What the scheduler learns about footprints, kept over restarts where they are measured."""

    def __init__(self, configuration: Configuration, scheduler: Scheduler, submit: Callable[[Event], None]) -> None:
        self._configuration = configuration
        self._scheduler = scheduler
        self._submit = submit
        self._kept = footprints.FootprintFile(configuration.now.state) if configuration.measures else None
        self._written = 0

    def recall(self, name: str) -> None:
        """Sees to it that the scheduler knows what was measured of the model's weights as they are now."""
        model = self._scheduler.models[name]
        weights = footprints.version(self._configuration.now, model.config)
        if weights != model.version:
            peaks = self._kept.recall(name, weights) if self._kept is not None else {}
            self._submit(Remembered(name, weights, peaks))

    def forget(self, name: str) -> None:
        """What was measured of the model does not count any more."""
        self._submit(Forgotten(name))
        if self._kept is not None and self._kept.known.pop(name, None) is not None:
            self._kept.save()

    def write_down(self) -> None:
        """Keeps what is new."""
        if self._kept is not None and self._written != self._scheduler.learnt:
            self._written = self._scheduler.learnt
            for model in self._scheduler.models.values():
                if model.peaks:
                    self._kept.known[model.name] = footprints.Known(model.version, dict(model.peaks))
            self._kept.save()
