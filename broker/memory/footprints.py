"""What was measured in earlier lives of the broker: one small file in `state_dir`. Reads, writes, never decides.

A measurement belongs to one version of a model's weights (and adapter, and options): other weights start anew. The
file is replaced as a whole, so that it is never half written; one that cannot be read, or that a later release wrote,
is set aside with a warning, and learning begins again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec

from broker.scheduler.residency import Peak
from zoo.config import adapters
from zoo.config.schema import ModelConfig, ZooConfig
from zoo.system import files

log = logging.getLogger("zoo.footprints")

FILE = "footprints.json"
FORMAT = 1
MAX_BYTES = 16 << 20


class Known(msgspec.Struct, frozen=True):
    """Of one model: which weights were measured, and the most they were seen to use, by device."""

    weights: str
    peaks: dict[str, Peak]


class _File(msgspec.Struct):
    format: int
    models: dict[str, Known] = {}


class _Format(msgspec.Struct):
    format: int


def version(config: ZooConfig, model: ModelConfig) -> str:
    """Changes with whatever may change a footprint: weights (names, sizes, times), adapter, options."""
    path = config.weights(model)
    told = [model.adapter, json.dumps(model.options, sort_keys=True, default=str), *(_files(path) if path else ())]
    if own := adapters.identity(model.adapter):
        told.append(own)
    # Names on the disk are bytes: those that are no UTF-8 come as lone surrogates, and so may what config.toml names.
    return hashlib.sha256("\n".join(told).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _files(path: Path) -> Iterator[str]:
    for name, found in _found(path):
        if found is None:  # being replaced, or missing: it will be another version when it is there
            yield f"{os.path.basename(name)} -"
        else:
            yield f"{os.path.basename(name)} {found.st_size} {found.st_mtime_ns}"


def _found(path: Path) -> Iterator[files.Found]:
    try:
        seen = path.stat()
    except (OSError, ValueError):
        return iter([files.Found(str(path), None)])
    return files.tree(path) if stat.S_ISDIR(seen.st_mode) else iter([files.Found(str(path), seen)])


class FootprintFile:
    """`known`: what the file says, and what has been learnt since; `save` writes it down."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE
        self._warned = False
        self.known = self._read()

    def recall(self, model: str, weights: str) -> dict[str, Peak]:
        """What was measured of this version of the model's weights."""
        known = self.known.get(model)
        return known.peaks if known is not None and known.weights == weights else {}

    def save(self) -> None:
        """A folder that cannot be written to costs the memory of the next life, and one warning."""
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            text = msgspec.json.format(msgspec.json.encode(_File(FORMAT, self.known)), indent=1)
            files.write_whole(self._file, text + b"\n")
        except OSError as e:
            if not self._warned:
                log.warning("what was measured cannot be kept in %s: %s", self._file, e.strerror or e)
            self._warned = True

    def _read(self) -> dict[str, Known]:
        try:
            raw = files.read_regular(self._file, MAX_BYTES)
        except FileNotFoundError:
            return {}
        except OSError as e:
            log.warning("what was measured earlier cannot be read: %s: %s", self._file, e.strerror or e)
            return {}
        try:
            if msgspec.json.decode(raw, type=_Format).format != FORMAT:
                return self._set_aside("it is of another release")
            return msgspec.json.decode(raw, type=_File).models
        except (ValueError, RecursionError) as e:  # msgspec's errors are ValueErrors
            return self._set_aside(str(e))

    def _set_aside(self, why: str) -> dict[str, Known]:
        aside = self._file.with_name(f"{FILE}.aside")
        try:
            os.replace(self._file, aside)
        except OSError as e:
            log.warning("%s cannot be used (%s), nor set aside: %s", self._file, why, e.strerror or e)
        else:
            log.warning("%s cannot be used (%s); it is now %s, and footprints are learnt anew", self._file, why, aside)
        return {}
