"""Which state of its adapter's file a model's processes were started with: an edited one is a change for `reload`."""

from __future__ import annotations

from collections.abc import Iterable

from zoo.config import adapters, schema


class Editions:
    """Of adapters that are not the zoo's own; those change with a release."""

    def __init__(self) -> None:
        self._started: dict[str, set[str]] = {}

    def start(self, model: schema.ModelConfig) -> None:
        """A process of the model is being started."""
        self._started.setdefault(model.name, set()).add(adapters.identity(model.adapter))

    def take_edited(self, models: Iterable[schema.ModelConfig]) -> set[str]:
        """The models of which a process was started with another state of the file than now. Each is told once."""
        now = {model.name: adapters.identity(model.adapter) for model in models if model.name in self._started}
        edited = {name for name, identity in now.items() if self._started[name] - {identity}}
        for name in edited:
            del self._started[name]
        return edited
