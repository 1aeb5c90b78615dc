"""Which measurements count for a model: those of the weights that lie there now, and no others."""

from __future__ import annotations

from collections.abc import Iterable

from broker.core import Core
from broker.memory import footprints
from broker.scheduler.events import Forgotten, Remembered


class Learnt:
    """What the scheduler learns about footprints, kept over restarts where they are measured."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._file = footprints.kept_in(core.config.state) if core.measures else None
        self._known = ((self._file.read() if self._file is not None else None) or footprints.KnownModels()).models
        self._written = 0

    def recall_cold(self, names: Iterable[str]) -> None:
        """The same for models that may be loaded next."""
        for name in list(names):
            if self._core.scheduler.is_cold(name):
                self.recall(name)

    def recall(self, name: str) -> None:
        """Sees to it that the scheduler knows what was measured of the model's weights as they are now."""
        model = self._core.scheduler.models[name]
        weights = footprints.version(self._core.config, model.config)
        if weights != model.version:
            known = self._known.get(name)
            peaks = known.peaks if known is not None and known.weights == weights else {}
            self._core.submit(Remembered(name, weights, peaks))

    def forget(self, name: str) -> None:
        """What was measured of the model does not count any more."""
        self._core.submit(Forgotten(name))
        if self._file is not None and self._known.pop(name, None) is not None:
            self._file.write(footprints.KnownModels(models=self._known))

    def write_down(self) -> None:
        """Keeps what is new."""
        scheduler = self._core.scheduler
        if self._file is not None and self._written != scheduler.learnt:
            self._written = scheduler.learnt
            for model in scheduler.models.values():
                if model.peaks:
                    self._known[model.name] = footprints.Known(model.version, dict(model.peaks))
            self._file.write(footprints.KnownModels(models=self._known))
