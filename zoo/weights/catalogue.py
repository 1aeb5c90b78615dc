"""What config.toml and the weights folder say of a model, the same with and without a broker.

Looks at names and sizes, never into a checkpoint, so that the broker can afford it between two messages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo.config import adapters
from zoo.weights import inventory
from zoo.config.schema import MB_PER_GB, ModelConfig, ZooConfig
from zoo.system.files import shown


def row(config: ZooConfig, model: ModelConfig) -> dict[str, Any]:
    """A model's line in `zoo ls`: what is the same whether a broker runs or not."""
    path = config.weights(model)
    try:
        state = inventory.state(path)
    except (OSError, ValueError):
        state = "unreadable"  # `problem` says more
    return {
        "name": model.name,
        "category": model.category,
        "priority": model.priority.name,
        "vram_mb": model.vram_mb,
        "enabled": model.enabled,
        "adapter": model.adapter,
        "path": model.path,
        "source": model.source,
        "weights": "in package" if path is None and model.source else state,
        "stand_in": state == "stand-in",
        "problem": _trouble(config, model) if model.enabled else "enabled = false in config.toml",
    }


def problem(config: ZooConfig, model: ModelConfig) -> str | None:
    """Why the model cannot be loaded as things stand, as far as one look at the disk tells."""
    if not model.adapter:
        return f"{model.name} has no adapter in this release; config.toml lists it so that its place is known"
    path = config.weights(model)
    if path is None:
        return None
    try:
        if inventory.is_missing(path):
            return None if config.broker.auto_pull and model.published.fetchable else _missing(config, model)
        damage = inventory.damage(path)
        stands_in = damage is not None and inventory.is_stand_in(path, quick=True)
    except (OSError, ValueError) as e:
        return _unreadable(model, path, e)
    if damage is not None and not stands_in:
        return (
            f"the weights of {model.name} are not as they were pulled: {damage}; `zoo pull {model.name}` mends them "
            f"(if the change is yours, remove {inventory.RECORD} there)"
        )
    return None


def too_large(config: ZooConfig, model: ModelConfig) -> str | None:
    """Whether what is declared is more than the budget, for those who have not measured anything."""
    budgets = [d.budget_gb for d in config.devices if model.device in ("", d.name)] or [config.broker.vram_budget_gb]
    most = max(budgets) * MB_PER_GB
    return f"{model.name} needs {model.vram_mb:g} MB, the whole budget is {most:g} MB" if model.vram_mb > most else None


def _missing(config: ZooConfig, model: ModelConfig) -> str:
    lack = f"the weights of {model.name} are missing at {shown(config.weights(model) or '')}"
    if model.published.fetchable:
        return f"{lack}: `zoo pull {model.name}` fetches them"
    return f"{lack}: put them there by hand" + (f" ({model.source})" if model.source else "")


def _trouble(config: ZooConfig, model: ModelConfig) -> str | None:
    """The `problem`, or what an adapter of the zoo is going to say: it does not read a pickle unasked."""
    path = config.weights(model)
    found = problem(config, model)
    if found is None and (lacks := adapters.missing(model.adapter, str(config.base))) is not None:
        return f"the adapter {model.adapter} cannot be imported: there is no module {lacks}"
    if found or path is None or model.trust_pickle or not model.adapter.startswith("workers.models."):
        return found
    try:
        if inventory.is_pickled(path):
            return f"{shown(path)} is a pickle: it is not read without trust_pickle = true"
    except (OSError, ValueError) as e:
        return _unreadable(model, path, e)
    return None


def _unreadable(model: ModelConfig, path: Path, error: OSError | ValueError) -> str:
    """ValueError: a name that no file can have."""
    where = shown(getattr(error, "filename", None) or path)
    return f"the weights of {model.name} cannot be looked at: {where}: {getattr(error, 'strerror', None) or error}"
