"""What workers say becomes events of the scheduler, as far as the broker takes it.

An adapter runs what a user has put there, and may write on any descriptor that it finds. What comes from a worker is
therefore looked at like what comes from a client: here, before anything is made of it.

Some are kept back until the worker's memory has been measured (see `broker/memory/usage.py`): a model whose use is
unknown may be evicted in the very next moment, and one that has grown holds what others may be about to be given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from broker.core import Core
from broker.fleet.copying import Copying
from broker.fleet.roster import Roster, WorkerProcess
from broker.labels import Labels
from broker.memory.usage import MemoryUsage
from broker.scheduler.events import Finished, MemoryShort, WorkerDone, WorkerLoadFailed, WorkerReady
from broker.scheduler.state.peaks import known_mb
from zoo.errors import ProtocolMismatch
from zoo.wire import protocol

MOST_BATCH = 256  # requests at once: with all their parts they fit into one message
MOST_CODE = 64  # characters


def outcomes(done: protocol.Done, bodies: list[bytes]) -> list[Finished]:
    """What became of each request of a batch.

    Raises:
        ProtocolMismatch: there are more results than bodies, or fewer.
    """
    made: list[Finished] = []
    at = 0
    try:
        for o in done.outcomes:
            if o.code:
                error = o.code[:MOST_CODE], o.message[: protocol.MAX_TEXT]
                made.append(Finished(o.id, None, error, shortage(o.short)))
            else:
                made.append(Finished(o.id, (o.offsets, bodies[at])))
                at += 1
    except IndexError:
        raise ProtocolMismatch("fewer results than it said") from None
    if at != len(bodies):
        raise ProtocolMismatch("more results than it said")
    return made


def shortage(said: protocol.Shortage | None) -> MemoryShort | None:
    """What no device could hold is not believed."""
    return None if said is None else MemoryShort(known_mb(said.used_mb), known_mb(said.asked_mb))


def batch(said: int) -> int:
    """How many requests an adapter may be given at once."""
    return min(max(said, 1), MOST_BATCH)


# a worker, its model, the seconds that its load took if it came in time, and whether it was made of a copy
ToldLoad = Callable[[int, str, float | None, bool], object]


@dataclass(eq=False)
class WorkerReports:
    """See the module's docstring."""

    core: Core
    usage: MemoryUsage
    roster: Roster
    copying: Copying
    labels: Labels
    told_load: ToldLoad

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
            self._loaded(worker, message, parts)
        elif isinstance(message, protocol.LoadError):
            self._load_failed(worker, message, parts, measured)

    def _done(self, worker: WorkerProcess, message: protocol.Done, parts: list[bytes], measured: bool) -> None:
        number = worker.number
        finished = outcomes(message, parts[1:])
        scheduler = self.core.scheduler
        if not (worker.loaded and scheduler.awaits(number, finished)):
            raise ProtocolMismatch("it answers what it was not asked")
        look = message.grown
        for outcome in message.outcomes:
            if outcome.short is not None:
                look = True
        if not worker.worked:
            worker.worked = True
            self.usage.gauge.worked(number)
            look = look or not scheduler.is_measured(number)
        if look and not measured and self.usage.hold(number):
            worker.held.append(parts)
            return
        self.core.submit(WorkerDone(number, finished, message.halved, message.seconds))
        if self.roster.is_short and scheduler.is_idle():
            self.roster.refill()

    def _loaded(self, worker: WorkerProcess, message: protocol.Loaded, parts: list[bytes]) -> None:
        if len(parts) > 2:
            raise ProtocolMismatch("more than its labels")
        self.labels.said(worker.model, protocol.unpack_labels(parts[1]) if parts[1:] else [])
        worker.loaded, worker.stand_in = True, message.stand_in
        self.usage.loaded(worker.number)
        self.copying.used(worker, message.copied)
        self.core.submit(WorkerReady(worker.number, batch(message.max_batch)))
        number = worker.number
        self.told_load(number, worker.model, self.core.scheduler.loaded_in(number), message.copied)

    def _load_failed(
        self, worker: WorkerProcess, message: protocol.LoadError, parts: list[bytes], measured: bool
    ) -> None:
        if message.short is not None and not measured and self.usage.hold(worker.number):
            worker.held.append(parts)
            return
        worker.loaded = True  # as far as it will be: there is nothing more to be said
        code, why = message.code[:MOST_CODE], message.message[: protocol.MAX_TEXT]
        self.core.submit(WorkerLoadFailed(worker.number, code, why, shortage(message.short), message.retryable))
