"""What workers say becomes events of the scheduler.

Some are kept back until the worker's memory has been measured (see `broker/memory/usage.py`): a model whose use is
unknown may be evicted in the very next moment, and one that has grown holds what others may be about to be given.
"""

from __future__ import annotations

from broker.core import Core
from broker.fleet import border
from broker.fleet.copying import Copying
from broker.fleet.process import WorkerProcess
from broker.fleet.roster import Roster
from broker.memory.usage import MemoryUsage
from broker.metrics import Metrics
from broker.scheduler.events import WorkerDone, WorkerLoadFailed, WorkerReady
from zoo.errors import ProtocolMismatch
from zoo.wire import protocol


class WorkerReports:
    """See the module's docstring."""

    def __init__(self, core: Core, usage: MemoryUsage, roster: Roster, copying: Copying, metrics: Metrics) -> None:
        self._scheduler = core.scheduler
        self._submit = core.submit
        self._usage = usage
        self._roster = roster
        self._copying = copying
        self._metrics = metrics

    def take(self, worker: WorkerProcess, parts: list[bytes], measured: bool) -> None:
        """One message. `measured`: it has been kept back until the worker was measured.

        Raises:
            ProtocolMismatch: none of our workers would say this.
        """
        if worker.held and not measured:
            worker.held.append(parts)
            return
        message = protocol.unpack_from_worker(parts[0])
        if type(message) is protocol.Done:
            self._done(worker, message, parts, measured)
        elif worker.loaded:
            raise ProtocolMismatch("it says again how its load went")
        elif isinstance(message, protocol.Loaded):
            self._loaded(worker, message)
        elif isinstance(message, protocol.LoadError):
            self._load_failed(worker, message, parts, measured)

    def _done(self, worker: WorkerProcess, message: protocol.Done, parts: list[bytes], measured: bool) -> None:
        number = worker.number
        outcomes = border.outcomes(message, parts[1:])
        if not (worker.loaded and self._scheduler.awaits(number, [outcome.request for outcome in outcomes])):
            raise ProtocolMismatch("it answers what it was not asked")
        first, worker.worked = not worker.worked, True
        if first:
            self._usage.worked(number)
        if not measured:
            look = message.grown or (first and not self._scheduler.is_measured(number))
            look = look or any(outcome.short is not None for outcome in message.outcomes)
            if look and self._usage.hold(number):
                worker.held.append(parts)
                return
        self._submit(WorkerDone(number, outcomes, message.halved))
        if self._roster.is_short and self._scheduler.is_idle():
            self._roster.refill()

    def _loaded(self, worker: WorkerProcess, message: protocol.Loaded) -> None:
        worker.loaded, worker.stand_in = True, message.stand_in
        self._usage.loaded(worker.number)
        self._copying.used(worker, message.copied)
        self._submit(WorkerReady(worker.number, border.batch(message.max_batch)))
        self._metrics.loaded(worker.model, self._scheduler.loaded_in(worker.number))

    def _load_failed(
        self, worker: WorkerProcess, message: protocol.LoadError, parts: list[bytes], measured: bool
    ) -> None:
        if message.short is not None and not measured and self._usage.hold(worker.number):
            worker.held.append(parts)
            return
        worker.loaded = True  # as far as it will be: there is nothing more to be said
        code, why = message.code[: border.MOST_CODE], border.text(message.message)
        self._submit(WorkerLoadFailed(worker.number, code, why, border.shortage(message.short), message.retryable))
