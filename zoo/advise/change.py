"""What is changed of a recorded configuration before its requests are replayed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from broker.scheduler.capacity.ledger import Device
from zoo.config.schema import MB_PER_GB, BrokerConfig, ModelConfig, ModelPriority
from zoo.errors import InvalidInput
from zoo.recording import OF_THE_BROKER, RecordingPart


@dataclass(frozen=True)
class Change:
    """Nothing by default.

    Attributes:
        label: what it is called.
        budget_mb: of all devices together, each in proportion to what it has.
        broker: keys of `[broker]`.
        devices: further ones: name → MB.
        pins: models that are pinned.
        priorities: model → priority.
    """

    label: str = "as it is"
    budget_mb: float | None = None
    broker: Mapping[str, Any] = field(default_factory=dict)
    devices: Mapping[str, float] = field(default_factory=dict)
    pins: tuple[str, ...] = ()
    priorities: Mapping[str, ModelPriority] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """What a replay runs with."""

    broker: BrokerConfig
    devices: list[Device]
    models: list[ModelConfig]

    @property
    def budget_mb(self) -> float:
        return sum(device.budget_mb for device in self.devices)


def applied(part: RecordingPart, change: Change) -> Setting:
    """The recorded configuration with a change.

    Raises:
        InvalidInput: it names a model or device that is not there, or is there already.
    """
    names = [model.config.name for model in part.began.models]
    for name in (*change.pins, *change.priorities):
        if name not in names:
            raise InvalidInput(f"there is no model {name!r} in the recording; it has {', '.join(names)}")
    for device in part.began.devices:
        if device.name in change.devices:
            raise InvalidInput(f"there is a device {device.name} already; give the further one another name")
    models = [
        msgspec.structs.replace(
            model.config,
            pinned=model.config.pinned or model.config.name in change.pins,
            priority=change.priorities.get(model.config.name, model.config.priority),
        )
        for model in part.began.models
    ]
    return Setting(_broker(part, change), _devices(part, change), models)


def _broker(part: RecordingPart, change: Change) -> BrokerConfig:
    """Charged is what the recording says, not what a process is seen to use."""
    keys = {**msgspec.to_builtins(part.began.broker), **change.broker, "footprint": "declared", "reserve_mb": 0.0}
    for key in change.broker:
        if key not in OF_THE_BROKER:
            raise InvalidInput(f"{key}: a replay knows the keys {', '.join(OF_THE_BROKER)} of [broker]")
    try:
        return msgspec.convert(keys, BrokerConfig)
    except msgspec.ValidationError as e:
        raise InvalidInput(f"[broker]: {e}") from None


def _devices(part: RecordingPart, change: Change) -> list[Device]:
    """What could be charged of each, unless a budget is given."""
    known = [(device.name, device.kind, device.limit_mb) for device in part.began.devices]
    known += [(name, "cpu" if name.startswith("cpu") else "cuda", mb) for name, mb in change.devices.items()]
    total = sum(mb for _, _, mb in known)
    share = 1.0 if change.budget_mb is None or not total else change.budget_mb / total
    return [Device(name, kind, mb * share) for name, kind, mb in known]


def gigabytes(mb: float) -> str:
    return f"{mb / MB_PER_GB:.3g} GB"
