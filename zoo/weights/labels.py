"""A model's labels before it was loaded, as far as config.toml and the small files of its weights tell them.

These files are config.json (`id2label`) of a transformers folder, and classes.txt, a label per line. Of a checkpoint
that is a single file nothing is read. No model library is needed, and a file is read again only when it has changed, so
that the broker can afford it between two messages. What a loaded model says of itself goes before it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from zoo.config.adapters import OURS
from zoo.config.schema import ModelConfig
from zoo.system import files

FROM_A_LIST = ("workers.models.vehicle:VehicleClassifier",)  # adapters that read classes.txt, and no config.json
WITHOUT = ("embedding", "depth", "ocr", "quality")  # categories whose answers carry no labels
SPELLED_ANEW = "pose"  # the category of which `id2label` names points, which its adapter spells in COCO's way
MAX_BYTES = 4 << 20
KEPT = 64  # files whose labels are remembered


class Described(msgspec.Struct, frozen=True):
    """What config.json says of its labels."""

    id2label: dict[str, Any] | None = None


def described(model: ModelConfig, path: Path | None) -> list[str] | None:
    """In the order of the classes' numbers; [] for a model that has none, None where only a load can tell.

    Args:
        path: of its weights.
    """
    if model.category in WITHOUT:
        return []
    is_ours = model.adapter.startswith(OURS)
    options = model.options if is_ours else {}  # those of other adapters mean what they like
    if prompts := _texts(options.get("prompts")):
        return prompts
    if path is None or model.category == SPELLED_ANEW:
        return None
    by_list = model.adapter in FROM_A_LIST
    found = () if by_list else _read(path / "config.json", _id2label)
    if not found and (by_list or not is_ours):
        found = _read(path / "classes.txt", lines)
    return [*found] or _texts(options.get("labels"))


def _texts(value: Any) -> list[str] | None:
    is_list = isinstance(value, list) and all(isinstance(one, str) for one in value)
    return [*value] if is_list and value else None


def _read(file: Path, parse: Callable[[bytes], Iterable[str]]) -> tuple[str, ...]:
    try:
        seen = file.stat()
    except (OSError, ValueError):
        return ()
    return _parsed(str(file), seen.st_mtime_ns, seen.st_size, parse)


@functools.lru_cache(KEPT)
def _parsed(file: str, _changed: int, _size: int, parse: Callable[[bytes], Iterable[str]]) -> tuple[str, ...]:
    """Empty where the file tells none, or is not as it should be: its load says what is wrong with it."""
    try:
        return tuple(parse(files.read_regular(file, MAX_BYTES)))
    except (OSError, ValueError, LookupError, RecursionError):  # msgspec's errors are ValueErrors
        return ()


def _id2label(raw: bytes) -> list[str]:
    named = msgspec.json.decode(raw, type=Described).id2label or {}
    labels = [str(named[str(i)]) for i in range(len(named))]
    return [] if labels == [f"LABEL_{i}" for i in range(len(labels))] else labels  # which transformers makes up


def lines(raw: bytes) -> list[str]:
    """The labels in a file that has one a line, in UTF-8. Raises UnicodeDecodeError."""
    return [line.strip() for line in raw.decode().splitlines() if line.strip()]
