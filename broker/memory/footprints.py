"""What was measured in earlier lives of the broker, kept in `state_dir`. The scheduler is told those that
count: of the weights that lie there now, and no others.

A measurement belongs to one version of a model's weights (and adapter, and options): other weights start anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from broker.core import Core
from broker.memory.state import StateFile
from broker.scheduler.events import Forgotten, Remembered
from broker.scheduler.state import Peak
from zoo.config import adapters, schema
from zoo.system import files

FILE = "footprints.json"


class Known(msgspec.Struct, frozen=True):
    """Of one model: which weights were measured, and the most they were seen to use, by device."""

    weights: str
    peaks: dict[str, Peak]


class KnownModels(msgspec.Struct):
    """What the file says, by the models' names."""

    format: Literal[1] = 1
    models: dict[str, Known] = {}


def kept_in(folder: Path) -> StateFile[KnownModels]:
    return StateFile(folder, FILE, KnownModels)


def version(config: schema.ZooConfig, model: schema.ModelConfig) -> str:
    """Changes with whatever may change a footprint: weights (names, sizes, times), adapter, options."""
    import hashlib  # with OpenSSL: not where footprints are declared

    path = config.weights(model)
    told = [model.adapter, json.dumps(model.options, sort_keys=True, default=str), *(_files(path) if path else ())]
    if own := adapters.identity(model.adapter):
        told.append(own)
    # Names on the disk are bytes: those that are no UTF-8 come as lone surrogates, and so may what config.toml names.
    return hashlib.sha256("\n".join(told).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _files(path: Path) -> Iterator[str]:
    seen = None
    with contextlib.suppress(OSError, ValueError):
        seen = path.stat()
    alone = seen is None or not stat.S_ISDIR(seen.st_mode)
    for name, found in [files.Found(str(path), seen)] if alone else files.tree(path):
        # One without a size is missing, or being replaced: it will be another version when it is there.
        said = f"{found.st_size} {found.st_mtime_ns}" if found is not None else "-"
        yield f"{os.path.basename(name)} {said}"


class Learnt:
    """What the scheduler learns about footprints, kept over restarts where they are measured."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._file = kept_in(core.config.state) if core.measures else None
        self._known = ((self._file.read() if self._file is not None else None) or KnownModels()).models
        self._written = 0

    def recall_cold(self, names: Iterable[str]) -> None:
        """The same for models that may be loaded next."""
        for name in list(names):
            if self._core.scheduler.is_cold(name):
                self.recall(name)

    def recall(self, name: str) -> None:
        """Sees to it that the scheduler knows what was measured of the model's weights as they are now."""
        model = self._core.scheduler.models[name]
        weights = version(self._core.config, model.config)
        if weights != model.version:
            known = self._known.get(name)
            peaks = known.peaks if known is not None and known.weights == weights else {}
            self._core.submit(Remembered(name, weights, peaks))

    def forget(self, name: str) -> None:
        """What was measured of the model does not count any more."""
        self._core.submit(Forgotten(name))
        if self._file is not None and self._known.pop(name, None) is not None:
            self._file.write(KnownModels(models=self._known))

    def write_down(self) -> None:
        """Keeps what is new."""
        scheduler = self._core.scheduler
        if self._file is not None and self._written != scheduler.learnt:
            self._written = scheduler.learnt
            for model in scheduler.models.values():
                if model.peaks:
                    self._known[model.name] = Known(model.version, dict(model.peaks))
            self._file.write(KnownModels(models=self._known))
