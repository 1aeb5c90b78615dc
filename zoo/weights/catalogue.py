"""What config.toml and the weights folder say of a model, the same with and without a broker.

Looks at names and sizes, and for labels into config.json, never into a checkpoint, so that the broker can afford it
between two messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.config import adapters
from zoo.config.schema import MB_PER_GB, ModelConfig, ZooConfig
from zoo.system.files import shown
from zoo.weights import inventory, labels

KEYS = ("name", "category", "priority", "vram_mb", "enabled", "adapter", "path", "source")  # as in config.toml


def rows(config: ZooConfig, wrong: Mapping[str, str]) -> list[dict[str, Any]]:
    """The models as `zoo ls` lists them while no broker runs. `wrong`: why an adapter cannot be imported."""
    found = []
    for model in config.models:
        line = row(config, model) | {"state": None, "measured_mb": None, "available": False, "pinned": model.pinned}
        if model.enabled and model.adapter in wrong:
            line["problem"] = f"the adapter {model.adapter} cannot be imported: {wrong[model.adapter]}"
        elif model.enabled and not line["problem"]:
            line["problem"] = _too_large(config, model)
        found.append(line)
    return found


def row(config: ZooConfig, model: ModelConfig) -> dict[str, Any]:
    """A model's line in `zoo ls`: what is the same whether a broker runs or not."""
    state = weights(config, model)
    found = labels.described(model, config.weights(model))
    return {key: getattr(model, key) for key in KEYS} | {
        "labels": found,
        "labels_from": None if found is None else "files",
        "priority": model.priority.name,
        "weights": state,
        "stand_in": state == "stand-in",
        "problem": _trouble(config, model) if model.enabled else "enabled = false in config.toml",
    }


def weights(config: ZooConfig, model: ModelConfig) -> str:
    """As `inventory.state`, or "in package" (a library brings them along), or "unreadable" (`problem` says why)."""
    path = config.weights(model)
    try:
        return "in package" if path is None and model.source else inventory.state(path)
    except (OSError, ValueError):
        return "unreadable"


def problem(config: ZooConfig, model: ModelConfig) -> str | None:
    """Why the model cannot be loaded as things stand, as far as one look at the disk tells."""
    if not model.adapter:
        return f"{model.name} has no adapter in this release; config.toml lists it so that its place is known"
    path = config.weights(model)
    if path is None:
        return None
    try:
        if inventory.is_missing(path):
            return None if config.broker.auto_pull and model.published.fetchable else _missing(path, model)
        damage = inventory.damage(path)
        if damage is None or inventory.is_stand_in(path, quick=True):
            return None
    except (OSError, ValueError) as e:
        return _unreadable(model, path, e)
    return (
        f"the weights of {model.name} are not as they were pulled: {damage}; `zoo pull {model.name}` mends them "
        f"(if the change is yours, remove {inventory.RECORD} there)"
    )


def _trouble(config: ZooConfig, model: ModelConfig) -> str | None:
    """The `problem`, or what a load is going to say: a module is not there, or a pickle is not read unasked."""
    path = config.weights(model)
    found = problem(config, model)
    if found is None and (lacks := adapters.missing(model.adapter, str(config.base))) is not None:
        return f"the adapter {model.adapter} cannot be imported: there is no module {lacks}"
    if found is None and (lacks := adapters.lacks_library(model.adapter)) is not None:
        return f"the adapter {model.adapter} cannot be imported: {lacks}"
    if found or path is None or model.trust_pickle or not model.adapter.startswith(adapters.OURS):
        return found
    try:
        pickled = inventory.is_pickled(path)
    except (OSError, ValueError) as e:
        return _unreadable(model, path, e)
    return f"{shown(path)} is a pickle: it is not read without trust_pickle = true" if pickled else None


def _too_large(config: ZooConfig, model: ModelConfig) -> str | None:
    """Whether what is declared is more than the budget, where nothing measured is at hand."""
    budgets = [d.budget_gb for d in config.devices if model.device in ("", d.name)] or [config.broker.vram_budget_gb]
    most = max(budgets) * MB_PER_GB
    return f"{model.name} needs {model.vram_mb:g} MB, the whole budget is {most:g} MB" if model.vram_mb > most else None


def _missing(path: Path, model: ModelConfig) -> str:
    lack = f"the weights of {model.name} are missing at {shown(path)}"
    if model.published.fetchable:
        return f"{lack}: `zoo pull {model.name}` fetches them"
    return f"{lack}: put them there by hand" + (f" ({model.source})" if model.source else "")


def _unreadable(model: ModelConfig, path: Path, error: OSError | ValueError) -> str:
    """ValueError: a name that no file can have."""
    where = shown(getattr(error, "filename", None) or path)
    return f"the weights of {model.name} cannot be looked at: {where}: {getattr(error, 'strerror', None) or error}"
