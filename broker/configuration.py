"""The configuration in force: read at start, replaced as a whole by a reload."""

from __future__ import annotations

import logging

from broker.memory import meters
from broker.scheduler.capacity.ledger import Device
from zoo.config.reading import load_config
from zoo.config.schema import MB_PER_GB, ZooConfig
from zoo.errors import ConfigError

log = logging.getLogger("zoo.broker")


class Configuration:
    """`now`: the configuration in force. `endpoint_given`: stands over what the file says; "" for none."""

    def __init__(self, config: ZooConfig, endpoint_given: str = "") -> None:
        self._endpoint_given = endpoint_given
        self.now = self._with_endpoint(config)

    @property
    def measures(self) -> bool:
        """Footprints are measured, not only declared."""
        return self.now.broker.footprint == "measured"

    def read_again(self) -> ZooConfig:
        """What the file says now. Raises ConfigError when it is not valid, or there is none."""
        if self.now.file is None:
            raise ConfigError("this broker was started without a config.toml: there is nothing to read again")
        return self._with_endpoint(load_config(self.now.file))

    def _with_endpoint(self, config: ZooConfig) -> ZooConfig:
        if self._endpoint_given:
            config.broker.endpoint = self._endpoint_given
        return config


def devices_of(config: ZooConfig, machine: meters.Machine) -> list[Device]:
    """The devices of a configuration, "auto" resolved; says in the log why that is not CUDA."""
    if config.devices:
        return [Device(d.name, d.kind, d.budget_gb * MB_PER_GB) for d in config.devices]
    kind = config.broker.device
    if kind == "auto":
        kind = "cuda" if machine.uuids else "cpu"
        if kind == "cpu":
            log.warning("models are loaded on the CPU, as no CUDA device can be used: %s", machine.why_none)
    name = "cuda:0" if kind == "cuda" else "cpu"
    return [Device(name, kind, config.broker.vram_budget_gb * MB_PER_GB)]
