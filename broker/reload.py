"""A configuration that was changed: read again as a whole, and handed to the parts that use it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from broker.configuration import Configuration
from broker.fleet.editions import Editions
from broker.front.clients import Clients
from broker.front.keyring import Keyring
from broker.memory import meters
from broker.memory.host_cache import Copies
from broker.memory.learnt import Learnt
from broker.scheduler.events import Event, Reconfigured
from broker.scheduler.scheduler import Scheduler
from zoo.config import changes
from zoo.config.schema import MB_PER_GB

log = logging.getLogger("zoo.broker")


class Reloader:
    """`devices`: names of the devices; they stay as they are until a restart."""

    def __init__(
        self,
        configuration: Configuration,
        scheduler: Scheduler,
        devices: Iterable[str],
        editions: Editions,
        copies: Copies,
        learnt: Learnt,
        keyring: Keyring | None,
        clients: Clients,
        submit: Callable[[Event], None],
    ) -> None:
        self._configuration = configuration
        self._scheduler = scheduler
        self._devices = list(devices)
        self._editions = editions
        self._copies = copies
        self._learnt = learnt
        self._keyring = keyring
        self._clients = clients
        self._submit = submit

    def __call__(self) -> list[str]:
        """Reads config.toml and the CURVE keys again; gives what has changed.

        Raises:
            ConfigError: something is not valid, and nothing was changed.
        """
        read = self._configuration.read_again()
        found = changes.compare(self._configuration.now, read, self._editions.take_edited(read.models))
        keys = self._reread_keys()
        if not found.lines:
            return keys
        self._configuration.now = found.config
        broker, budgets = found.config.broker, {d.name: d.budget_gb * MB_PER_GB for d in found.config.devices}
        if not budgets:
            budgets = dict.fromkeys(self._devices, broker.vram_budget_gb * MB_PER_GB)
        self._submit(Reconfigured(broker, budgets, found.config.models, found.restart, found.lines))
        models = self._scheduler.models
        self._copies.resize(int(broker.host_cache_mb * meters.MB))
        for name in {*found.restart, *(name for name in self._copies.models() if name not in models)}:
            self._copies.forget(name)
        for name in list(models):
            if self._scheduler.is_cold(name):
                self._learnt.recall(name)
        return found.text() + keys

    def _reread_keys(self) -> list[str]:
        """The CURVE keys as they are now; the sessions of those that were taken away end. Raises ConfigError."""
        if self._keyring is None:
            return []
        told = self._keyring.read()
        for line in told:
            log.info("%s", line)
        self._clients.end_revoked()
        return told
