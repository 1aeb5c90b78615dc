"""What was measured in earlier lives of the broker, kept in `state_dir`. Reads, writes, never decides.

A measurement belongs to one version of a model's weights (and adapter, and options): other weights start anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from broker.memory.state import StateFile
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
