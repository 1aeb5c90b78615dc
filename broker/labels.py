"""The labels of models: what each said when it was loaded, until then what its files tell (`zoo/weights/labels.py`).

What was said is kept in `state_dir`, like what is learnt about footprints, for the weights, adapter and options that it
was said of. Long lists are not kept, and told only of a single model: they would fill the answer about all.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from broker.core import Core
from broker.memory import footprints
from broker.memory.state import StateFile
from broker.scheduler.state.states import State

LONG = 64 << 10  # characters of all labels together: some 2,000 labels
ANSWERS = (State.LOADED, State.DRAINING)


class SaidLabels(msgspec.Struct, frozen=True):
    """Of one model: in which version (see `footprints.version`), and what it said."""

    weights: str
    labels: list[str]


class LabelsFile(msgspec.Struct):
    """What the file says, by the models' names."""

    format: Literal[1] = 1
    models: dict[str, SaidLabels] = {}


def is_long(labels: list[str] | None) -> bool:
    return labels is not None and sum(map(len, labels)) > LONG


class Labels:
    """See the module's docstring."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._file = StateFile(core.config.state, "labels.json", LabelsFile) if core.measures else None
        self._said = ((self._file.read() if self._file is not None else None) or LabelsFile()).models
        self._is_new = False

    def said(self, name: str, labels: list[str]) -> None:
        """A worker of this model has loaded it."""
        model = self._core.scheduler.models.get(name)
        if model is not None and self._said.get(name) != (said := SaidLabels(model.version, labels)):
            self._said[name] = said
            self._is_new = True

    def of(self, name: str, described: list[str] | None) -> dict[str, Any]:
        """The fields of an answer.

        Args:
            described: what its files tell, which stands where the model itself says nothing.
        """
        model = self._core.scheduler.models[name]
        said = self._said.get(name)
        if said is not None and not said.labels and described:
            said = None
        if said is not None and model.state in ANSWERS:
            return {"labels": said.labels, "labels_from": "model"}
        if said is not None and said.weights == footprints.version(self._core.config, model.config):
            return {"labels": said.labels, "labels_from": "earlier load"}
        return {"labels": described, "labels_from": None if described is None else "files"}

    def write_down(self) -> None:
        """Keeps what is new."""
        if self._file is not None and self._is_new:
            self._is_new = False
            known = self._core.scheduler.models
            kept = {name: said for name, said in self._said.items() if name in known and not is_long(said.labels)}
            self._file.write(LabelsFile(models=kept))
