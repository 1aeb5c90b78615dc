"""What a worker is given next, and what becomes of one that has nothing left: the rule `attend`.

Whichever worker of a model has a place takes what is next in the model's queue, the one with the fewest requests at
hand first: none waits behind a busy worker while another is free. A worker has one batch running and one ahead. A
request that may have killed a process (a suspect) runs alone.

By default no request waits for company: a batch is what has queued while the worker was busy. With `max_delay_ms` the
first of a batch waits up to so long for it to fill (the batching window), which trades the time of each request for
fewer, fuller batches. Not while another model waits for room: what is loaded would be swapped out for it without having
done anything.

* A batch has at most the adapter's `max_batch` requests, and no more than are expected to take 50 ms together: its
  first request waits for its last.
* One batch lies ahead so that a worker goes on without waiting for the broker. It is not to blame for a crash or a
  hang and waits again; the clock of a hang starts when the worker gets to a request.
* One queue for all workers of a model is never worse than the shortest of several, and nothing has to be handed over
  when a worker ends.
* Batching windows pay where many callers share a model whose batch costs little more than one request; a lone caller
  pays the whole delay, hence off by default. A window never takes more than half of a request's time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from broker.scheduler.capacity.demand import Demand, Want
from broker.scheduler.events import SendBatch
from broker.scheduler.parts.answering import Answers
from broker.scheduler.parts.lifecycle import Lifecycle
from broker.scheduler.registry import Registry
from broker.scheduler.state import End, Model, Phase, Request, State, Worker
from broker.scheduler.state.timers import BATCH, IDLE

SERVING, DRAINING = Phase.SERVING, Phase.DRAINING
BATCH_S = 0.05  # a batch should take no longer than this, or one request: none waits long for those beside it
WAIT_PART = 0.5  # of its time until the deadline: the most that a request waits for company
RUN_TIMES = 2.0  # the time that the batch is expected to take must be left so often


def most(worker: Worker) -> int:
    """The size of a batch: as many as the adapter takes, memory has sufficed for, and `BATCH_S` allows."""
    limit = min(worker.max_batch, worker.batch_limit.most or worker.max_batch)
    if worker.service_s * limit > BATCH_S:
        return max(1, int(BATCH_S / worker.service_s))
    return limit


def leaves_at(model: Model) -> float:
    """When what waits for the (loaded) model goes to a worker at the latest; -inf: at once."""
    delay = model.config.max_delay_ms / 1000
    if not delay or model.state is not State.LOADED or model.queue.live >= most(model.primary):
        return -math.inf
    head = model.queue.head()
    if head is None or head.alone:
        return -math.inf
    waiting = model.queue.all()
    needed = RUN_TIMES * model.primary.service_s * len(waiting)
    return min(min(r.since + min(delay, WAIT_PART * (r.deadline - r.since)), r.deadline - needed) for r in waiting)


def takes(worker: Worker, request: Request) -> bool:
    """The worker serves the model's queue, and is free, or has a place for the next batch. Of workers that drain, only
    the primary has to finish the queue.
    """
    if worker.phase is not SERVING and not (worker.phase is DRAINING and worker.primary):
        return False
    running = worker.inflight
    return not worker.short and (not running or not (worker.ahead or running[0].alone or request.alone))


def place(model: Model, request: Request) -> Worker | None:
    """The worker that takes the request now, the one with the fewest at hand; None when all are busy."""
    if len(model.workers) <= 1:
        return model.primary if takes(model.primary, request) else None
    fit = [worker for worker in model.workers if takes(worker, request)]
    return min(fit, key=lambda worker: len(worker.inflight) + len(worker.ahead), default=None)


@dataclass
class Dispatcher:
    """See the module's docstring."""

    _r: Registry
    _answers: Answers
    _lifecycle: Lifecycle
    _batch_numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def attend(self, model: Model) -> None:
        """Gives the model's workers what waits for them, and notes what the model wants of the devices now."""
        queue, primary = model.queue, model.primary
        if queue.live and not (primary.ahead and len(model.workers) == 1):
            self._serve(model)
        for worker in model.workers:
            if not worker.inflight and (not queue.live or worker is not primary) and worker.answers:
                self._became_idle(worker)
        if primary.phase is not SERVING or primary.short or model.name in self._r.demands:
            self._note_demand(model)

    def _serve(self, model: Model) -> None:
        queue, r = model.queue, self._r
        while queue.live and (request := queue.head()) is not None and (worker := place(model, request)) is not None:
            if model.config.max_delay_ms and (until := leaves_at(model)) > r.now and not (r.demands or r.stage):
                self._await_company(model.primary, until)
                break
            if batch := self._next_batch(worker, request):
                self._send(worker, batch)

    def _next_batch(self, worker: Worker, head: Request) -> list[Request]:
        """The requests that go to the worker next, out of the queue. `head`: the first of it."""
        queue, soonest = worker.model.queue, self._r.now + worker.least_service_s
        limit = most(worker) if queue.live > 1 else 1
        batch: list[Request] = []
        request: Request | None = head
        while request is not None and len(batch) < limit:
            if request.deadline <= soonest:  # and its client keeps its turn
                self._answers.out_of_time(request, worker.least_service_s, queue.live - 1)
            elif request.alone and (batch or worker.inflight):
                break
            else:
                queue.take(request)
                batch.append(request)
                if request.alone:
                    break
            request = queue.head() if queue.live else None
        return batch

    def _send(self, worker: Worker, batch: list[Request]) -> None:
        r, now = self._r, self._r.now
        worker.last_used = now
        r.running += len(batch)
        if not worker.inflight:
            worker.inflight = batch
            worker.dispatched_at = now
        else:
            worker.ahead = batch
        number = next(self._batch_numbers)
        for request in batch:
            request.running = True
            request.sent, request.worker, request.batch = now, worker.number, number
        if worker.watch_at == math.inf:
            self._lifecycle.watch(worker, now + r.dispatch_timeout(worker.model))
        refuse = tuple(worker.model.quarantine.refused)
        r.out.append(SendBatch(worker.number, [(q.id, q.payload) for q in batch], batch[0].alone, refuse))

    def _await_company(self, worker: Worker, until: float) -> None:
        if worker.leaves_at != until:
            worker.leaves_at = until
            self._r.timers.add(until, BATCH, worker.number)

    def _became_idle(self, worker: Worker) -> None:
        """Nothing runs and nothing waits; leases and pins may remain."""
        if worker.phase is DRAINING:
            self._lifecycle.evict(worker, End.UNLOADED, "unload was asked for")
        elif worker.held:
            return
        elif worker.model.keep_alive == 0:
            self._lifecycle.evict(worker, End.IDLE, "the last reference went, keep_alive = 0")
        else:
            self.arm_idle(worker, worker.last_used + self._r.idle_limit(worker.model))

    def arm_idle(self, worker: Worker, when: float) -> None:
        """It is looked at then, whether it has been idle for long enough."""
        if when < worker.idle_at:
            worker.idle_at = when
            self._r.timers.add(when, IDLE, worker.number)

    def _note_demand(self, model: Model) -> None:
        """A demand arises and ends with its reason."""
        r, primary = self._r, model.primary
        if primary.short:
            want = Want.GROW
        elif not primary.alive and model.waiting:
            if r.stopping:  # there is no next process to wait for
                for request in (*model.queue.all(), *model.later.all()):
                    self._answers.turn_away(request)
                return
            want = Want.LOAD
        elif model.name in r.demands:
            del r.demands[model.name]
            r.look = True
            return
        else:
            return
        demand = r.demands.get(model.name)
        if demand is None or demand.want is not want:
            r.demands[model.name] = Demand(model, want)
            r.look = True
