"""Copies of loaded models: which worker is given one, and which of those that workers offer are kept."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

import msgspec

from broker.core import Core
from broker.fleet.roster import WorkerProcess
from broker.memory import footprints, host_cache
from zoo.wire import arena, protocol
from zoo.wire.launch import Launch

log = logging.getLogger("zoo.broker")


@dataclass(eq=False)
class Copying:
    """A copy belongs to a version of the model's weights: of others it is neither taken nor given."""

    core: Core
    copies: host_cache.Copies

    def give(self, worker: WorkerProcess, launch: Launch) -> Launch:
        """Sends the copy of its model to a worker that is about to be told `launch`. What it is to be told then."""
        version = self._version(worker.model) if self.copies.limit_bytes else None
        if version is None or worker.line is None:
            return launch
        worker.version = version
        fd = self.copies.get(worker.model, worker.device, version)
        worker.copied = fd is not None and worker.line.send(protocol.LifelineCopy(), fd)
        wanted = 0 if fd is not None else self.copies.wanted_bytes(worker.model, worker.device, version)
        return msgspec.structs.replace(launch, copied=worker.copied, copy_bytes=wanted)

    def offered(self, worker: WorkerProcess, why: str, fd: int | None) -> None:
        """A worker offers a copy of its model, or says why there is none."""
        if self._version(worker.model) != worker.version:
            if fd is not None:
                os.close(fd)  # of weights that are not there any more
            return
        if fd is None:
            if self.copies.give_up(worker.model, worker.device, worker.version):
                log.info("%s: no copy of it can be kept, it is always loaded from its weights: %s", worker.model, why)
            return
        try:
            size = self.copies.keep(worker.model, worker.device, worker.version, fd)
            log.info("%s: a copy of it is kept in host memory, %d MB", worker.model, size >> 20)
        except arena.ArenaRefused as e:
            log.info("%s: its copy is not kept: %s", worker.model, e)

    def used(self, worker: WorkerProcess, used: bool) -> None:
        """Whether the copy was of use: one that did not lead to a loaded model is not given again."""
        if used:
            log.info("%s: made of its copy", worker.model)
        elif worker.copied:
            log.warning("%s: the copy of it that was kept is of no use and dropped", worker.model)
            self.copies.drop(worker.model, worker.device)
        worker.copied = False

    def _version(self, name: str) -> str | None:
        """Of the model's weights as they are now; None for a model that is not registered any more."""
        model = self.core.scheduler.models.get(name)
        return footprints.version(self.core.config, model.config) if model is not None else None
