"""What a weights folder holds: which of its files are the weights, and nothing in it that leads out of it.

The libraries follow whatever a folder's descriptions name: an index may list a pickle, or files of another folder; a
configuration other weights, code of its own, a repository on the network. Here that is looked at before they are asked.
"""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any, NamedTuple

from workers.models.base import Spec, damaged, not_there, require_trust
from zoo.errors import ModelUnavailable
from zoo.system import files

SAFE, SAFE_INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
MAX_DESCRIPTION = 64 << 20  # bytes of a configuration, an index, a tokenizer's words
DESCRIPTIONS = (".json", ".txt", ".model", ".jinja")
_PLAIN = r"[A-Za-z0-9_][\w.+-]*"
_SHARD = {
    SAFE_INDEX: re.compile(rf"{_PLAIN}\.safetensors", re.ASCII),
    PICKLE_INDEX: re.compile(rf"{_PLAIN}\.bin", re.ASCII),
}


class Weights(NamedTuple):
    """`files`: those that hold them. `safe`: they are safetensors, not pickles."""

    files: list[Path]
    safe: bool


def weights_in(spec: Spec, path: Path) -> Weights:
    """The weights of a transformers folder: the first that is there of model.safetensors, its index,
    pytorch_model.bin and its index. Other files (adapters, the state of an optimiser) are not the weights.

    Raises:
        ModelUnavailable: there are none. LoadFailed: a pickle that is not trusted, or an index that names anything but
            files of its own kind in this folder.
    """
    for single, index in ((SAFE, SAFE_INDEX), (PICKLE, PICKLE_INDEX)):
        if (path / single).is_file():
            found = [path / single]
        elif (path / index).is_file():
            found = _shards(spec, path, index)
        else:
            continue
        if single == PICKLE:
            require_trust(spec, found[0])
        return Weights(found, single == SAFE)
    raise not_there(spec, f"{path} holds no weights ({SAFE}, or {PICKLE}, or the index of either)")


def look_at(spec: Spec, path: Path) -> None:
    """To be called before a library opens files of this folder by itself.

    Raises:
        LoadFailed: the folder holds what is no file (a FIFO would keep the load waiting), a description out of all
            proportion, or too many names; its config.json leads out of it.
        ModelUnavailable: it cannot be looked at.
    """
    try:
        names = files.names(path)
    except OSError as e:
        raise ModelUnavailable(f"{spec.name}: {path} cannot be looked at: {e.strerror or e}") from e
    for name in names:
        try:
            found = os.stat(path / name)
        except OSError:  # a link to nowhere: what needs it will miss it
            continue
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            raise damaged(spec, f"{path / name} is no regular file")
        if name.endswith(DESCRIPTIONS) and found.st_size > MAX_DESCRIPTION:
            raise damaged(spec, f"{path / name} has {found.st_size:,} bytes; at most {MAX_DESCRIPTION:,} are read")
    if (path / "config.json").is_file():
        config = description(spec, path / "config.json")
        for part in (config, *(value for value in config.values() if isinstance(value, dict))):
            if problem := _leads_out(part):
                raise damaged(spec, f"{path / 'config.json'} {problem}")


def description(spec: Spec, file: Path) -> dict[str, Any]:
    """A JSON object of bounded size.

    Raises:
        LoadFailed: it is none.
    """
    try:
        found = json.loads(files.read_regular(file, MAX_DESCRIPTION))
    except (OSError, ValueError, RecursionError) as e:
        raise damaged(spec, f"{file} cannot be read: {getattr(e, 'strerror', None) or e}") from e
    if not isinstance(found, dict):
        raise damaged(spec, f"{file} holds no JSON object")
    return found


def _leads_out(config: dict[str, Any]) -> str | None:
    if config.get("transformers_weights") is not None:
        return "names other weights (transformers_weights); only those under their usual names are read"
    for key in ("attn_implementation", "_attn_implementation", "attn_implementation_internal"):
        value = config.get(key)
        if any("/" in str(one) or ":" in str(one) for one in (value.values() if isinstance(value, dict) else [value])):
            return f"wants {key} = {value!r}, code that would be fetched"
    if config.get("use_pretrained_backbone"):
        return "wants a backbone whose weights would be fetched (use_pretrained_backbone)"
    return None


def _shards(spec: Spec, path: Path, index: str) -> list[Path]:
    named = description(spec, path / index).get("weight_map")
    names = sorted({str(name) for name in named.values()}) if isinstance(named, dict) else []
    if not names:
        raise damaged(spec, f"{path / index} names no files (weight_map)")
    for name in names:
        if not _SHARD[index].fullmatch(name):
            kind = "*.safetensors" if index == SAFE_INDEX else "*.bin"
            raise damaged(spec, f"{path / index} names {name[:200]!r}; only files {kind} in the same folder are read")
        if not (path / name).is_file():
            raise damaged(spec, f"{path / index} names {name}, which is not there")
    return [path / name for name in names]
