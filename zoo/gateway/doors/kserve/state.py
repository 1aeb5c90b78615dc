"""What this door keeps from request to request."""

from __future__ import annotations

from typing import Any

from zoo.errors import ModelNotFound
from zoo.gateway.doors.kserve import results
from zoo.gateway.doors.kserve.regions import Regions
from zoo.gateway.doors.kserve.statistics import Statistics

VERSION = "1"  # of every model


class KServe:
    """Handlers get it as their argument `kserve`."""

    def __init__(self) -> None:
        self.regions = Regions()
        self.statistics = Statistics()
        self._outputs: dict[str, tuple[Any, list[dict[str, Any]]]] = {}  # by model, with what kind of answer has them

    def answered(self, model: str, result: Any) -> None:
        """Keeps what the outputs of a model are; of several answers for boxes, which are alike, the first says it."""
        one = result[0] if isinstance(result, list) and result else result
        if isinstance(one, list):
            return
        kind = tuple(one) if isinstance(one, dict) else type(one)
        if model not in self._outputs or self._outputs[model][0] != kind:
            self._outputs[model] = kind, results.seen(one)

    def outputs(self, model: str, category: str) -> list[dict[str, Any]]:
        """As the model last answered; before that, those of its category."""
        return self._outputs[model][1] if model in self._outputs else results.described(category)


def check_version(model: str, version: str) -> None:
    """Raises ModelNotFound."""
    if version not in ("", VERSION):
        raise ModelNotFound(f"{model}: there is no version {version!r:.40}; each model has version {VERSION}")
