"""What a new configuration changes of an old one: in words, and what a running broker cannot take over.

Keys that sockets, processes or files were made from take a restart; all others are taken over. The file is read as a
whole before anything changes.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from zoo.config.schema import BrokerConfig, ModelConfig, ZooConfig
from zoo.errors import ConfigError

LIVE = {  # keys of [broker] that a running broker takes over
    "vram_budget_gb", "reserve_mb", "idle_seconds", "request_timeout", "load_timeout", "dispatch_timeout",
    "drain_seconds", "max_queue", "max_queue_per_client", "max_leases_per_client", "concurrent_loads", "eviction",
    "patience_seconds", "worker_threads", "auto_pull", "standby", "host_cache_mb", "prefetch",
}  # fmt: skip
RUNNING = ("path", "category", "adapter", "options", "trust_pickle")  # keys of a model that its process was given


class Changes(msgspec.Struct):
    """`lines`: (model or "", what changed); `restart`: models whose running process has other settings;
    `config`: the new one, as far as it can be taken over.
    """

    config: ZooConfig
    lines: list[tuple[str, str]]
    restart: set[str]

    def text(self) -> list[str]:
        return [f"{name}: {what}" if name else what for name, what in self.lines]


def compare(old: ZooConfig, new: ZooConfig, edited: Collection[str] = ()) -> Changes:
    """What is to be done about `new`.

    Args:
        edited: models whose adapter's file is not what their processes were started with.

    Raises:
        ConfigError: a model names a device that is not there before a restart.
    """
    lines: list[tuple[str, str]] = []
    broker: dict[str, Any] = {}
    for key, before, after in _differences(old.broker, new.broker):
        if key in LIVE:
            lines.append(("", f"{key}: {before!r} is now {after!r}"))
        else:
            lines.append(("", f"{key}: {before!r} stays; {after!r} takes a restart of the broker"))
            broker[key] = before
    devices = new.devices
    if [(d.name, d.kind) for d in old.devices] != [(d.name, d.kind) for d in new.devices]:
        lines.append(("", "devices: others take a restart of the broker"))
        devices = old.devices
        for model in new.models:
            if model.device and model.device not in [d.name for d in devices]:
                raise ConfigError(f"models.device: {model.name} names {model.device!r}, which takes a restart")
    for was, now in zip(old.devices, devices, strict=True):
        if was.budget_gb != now.budget_gb:
            lines.append(("", f"{now.name}: budget_gb: {was.budget_gb!r} is now {now.budget_gb!r}"))
    if old.enrich != new.enrich:
        lines.append(("", "the table of enrichment has changed"))
    if old.gateway != new.gateway:
        lines.append(("", "the gateway's table has changed, which takes a restart of the gateway"))
    restart = set()
    given = {model.name: model for model in new.models}
    for model in old.models:
        found = given.pop(model.name, None)
        if found is None:
            lines.append((model.name, "removed"))
            continue
        for key, before, after in _differences(model, found):
            late = ", which takes a restart of the gateway" if key == "deepstack" else ""
            lines.append((model.name, f"{key}: {before!r} is now {after!r}{late}"))
            if key in RUNNING:
                restart.add(model.name)
        if model.name in edited and model.adapter == found.adapter:
            lines.append((model.name, "its adapter's file has changed"))
            restart.add(model.name)
    lines += [(name, "added") for name in given]
    taken = msgspec.structs.replace(new, broker=msgspec.structs.replace(new.broker, **broker), devices=devices)
    return Changes(taken, lines, restart)


def _differences(old: BrokerConfig | ModelConfig, new: BrokerConfig | ModelConfig) -> list[tuple[str, Any, Any]]:
    keys = [key for key in old.__struct_fields__ if key != "available"]
    return [(key, a, b) for key in keys if (a := _plain(getattr(old, key))) != (b := _plain(getattr(new, key)))]


def _plain(value: Any) -> Any:
    """As it would stand in the file."""
    return getattr(value, "name", value)
