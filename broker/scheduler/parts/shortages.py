"""Memory that ran out: what is learnt from it, and what is tried before the caller is told.

A load that ran out is killed, and started once more when there is room for what it turned out to need. A batch has been
tried in halves by its worker, and smaller ones are sent for a while. A request that ran out all by itself waits in its
model's queue, as `short`, until its process may be charged for it: a demand to grow, which gets its room by the same
policy as any other. It is then run once more. What runs out twice is answered, with the arithmetic.

Where it is known what was asked for, it is known what is needed; else a quarter more is guessed, but never more than
the budget, so that a guess alone makes no model too large. With declared footprints nothing is learnt and no model
goes, since there is no figure to choose by: it is tried once more as things are. So it is where a model has several
workers, by the one that has a place next; and an extra worker whose load runs out is not tried again at once.

* After a batch ran out, at most half as many requests are sent at once, and twice as many again when 16 such batches
  have gone well (32 the next time, and so on). The footprint stays: what the halves take is measured like anything
  else.
* A request to grow is charged only when the room is there: memory that was refused is not in use, so this never makes
  an overrun. While it waits, no request of its model is served. One that would make its model larger than the budget
  is refused and nothing is learnt from it, or one huge picture would end the model for all clients.
* Where a process was charged enough and still ran out, other programs took the memory: nothing is learnt, the devices
  are read, and what no longer fits is evicted.
* A SIGKILL that the broker did not send counts as memory that ran out only if the kernel has counted it; else it is a
  crash.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from broker.scheduler.capacity.ledger import EPSILON_MB, Charge
from broker.scheduler.events import MemoryShort
from broker.scheduler.parts.admission import Admission
from broker.scheduler.parts.answering import Answers
from broker.scheduler.parts.failures import Failures
from broker.scheduler.parts.lifecycle import Lifecycle
from broker.scheduler.registry import Registry
from broker.scheduler.state import MOST_MB, End, Move, Peak, Request, State, Worker, peaks

GUESS = 1.25


@dataclass
class Shortages:
    """See the module's docstring."""

    _r: Registry
    _answers: Answers
    _lifecycle: Lifecycle
    _failures: Failures
    _admission: Admission

    # ------------------------------------------------------------ it ran out

    def load_ran_out(self, worker: Worker, short: MemoryShort, cause: str, move: Move) -> None:
        r, model = self._r, worker.model
        charge = self._charge(worker)
        need = self._needed_mb(charge, short)
        self._learn(worker, need)
        model.shortages["load"] += 1
        what = f"memory ran out, charged {charge.mb:g} MB on {charge.device}: {cause}"
        if model.failures.ran_out or len(model.workers) > 1:  # others of the model go on without it
            before = "; so it did before" if model.failures.ran_out else ""
            used, limit = r.ledger.used_mb(charge.device), r.ledger.limit_mb(charge.device)
            what += f"{before}, and of {limit:g} MB {used:g} are charged in all"
            self._failures.fail_load(worker, "out_of_memory", what, move)
            return
        model.failures.ran_out = True
        self._lifecycle.end(worker, move, End.OUT_OF_MEMORY)
        self._tell(worker, f"load failed: {what}; it is tried once more, with {need:g} MB", need, charge)
        if not self._admission.ever_fits(model):
            self._admission.outgrown(model)

    def request_ran_out(self, worker: Worker, request: Request, short: MemoryShort, cause: str) -> None:
        """Its process lives on. The request waits until that may be charged what it takes, or is answered."""
        r, model = self._r, worker.model
        charge = self._charge(worker)
        need, budget = self._needed_mb(charge, short), r.ledger.devices[charge.device].budget_mb
        model.shortages["request"] += 1
        what = f"{cause}; {worker.name} is charged {charge.mb:g} MB on {charge.device}"
        if need > budget + EPSILON_MB:
            largest = max(r.ledger.devices[device].budget_mb for device in model.allowed(r.ledger.devices))
            code = "model_too_large" if need > largest + EPSILON_MB else "out_of_memory"
            what += f", would need {need:g}, and the whole budget is {budget:g}; nothing was evicted"
            self._answers.refuse(request, code, what, retryable=False)
        elif request.starved or r.stopping or worker.state is not State.LOADED:
            again = ", and so it did before" if request.starved else ""
            self._answers.refuse(request, "out_of_memory", f"{what}{again}")
        else:
            request.starved = request.alone = True
            self._learn(worker, need)
            self._answers.wait_again(request)
            if len(model.workers) == 1:  # else the worker that is next tries it as things are
                worker.short.append(request)
            text = f"request {request.id}: {what}; tried once more when it may be {need:g}"
            self._tell(worker, text, need, charge, request.id)

    def process_ran_out(self, worker: Worker, batch: list[Request]) -> None:
        """The kernel has ended it for want of memory."""
        if len(batch) > 1:
            self.smaller_batches(worker, len(batch))
        elif batch:
            worker.model.shortages["request"] += 1
            charge = self._charge(worker)
            need = self._needed_mb(charge, MemoryShort())
            self._learn(worker, need)
            text = f"charged {charge.mb:g} MB on {charge.device}, and {need:g} from now on"
            self._tell(worker, text, need, charge)

    # ------------------------------------------------------------ batches

    def smaller_batches(self, worker: Worker, size: int) -> None:
        """Memory did not suffice for so many requests at once."""
        worker.model.shortages["batch"] += 1
        if worker.batch_limit.ran_out(size):
            self._r.tell(worker.name, "smaller batches", batch=size, most=worker.batch_limit.most)

    def batch_went_well(self, worker: Worker, size: int) -> None:
        if worker.batch_limit.went_well(size, worker.max_batch):
            most = worker.batch_limit.most or worker.max_batch
            self._r.tell(worker.name, "larger batches", batch=size, most=most)

    # ------------------------------------------------------------ what is needed

    def _tell(self, worker: Worker, text: str, need: float, charge: Charge, request: int | None = None) -> None:
        self._r.tell(
            worker.name, "out of memory", what=text, request=request, needed_mb=need, charged_mb=charge.mb
        )  # fmt: skip

    def _charge(self, worker: Worker) -> Charge:
        charge = self._r.ledger.of(worker.number)
        assert charge is not None, f"{worker.name} has a process and no charge"
        return charge

    def _needed_mb(self, charge: Charge, short: MemoryShort) -> float:
        """What its process should have been charged, as far as that is known."""
        if self._r.config.footprint == "declared":
            return charge.mb
        used, asked = peaks.known_mb(short.used_mb), peaks.known_mb(short.asked_mb)
        if asked:
            need = min(math.ceil(used + asked - EPSILON_MB), MOST_MB)
        else:
            guess = math.ceil(GUESS * max(charge.mb, used) - EPSILON_MB)
            need = min(guess, math.floor(self._r.ledger.devices[charge.device].budget_mb))
        return max(charge.mb, need)

    def _learn(self, worker: Worker, need: float) -> None:
        """The footprint of the model's next process, and of this one as soon as there is room for it."""
        model, device = worker.model, worker.device
        if need > model.need_mb(device):
            known = model.peaks.get(device, Peak(0.0))
            if known.worked:
                model.peaks[device], worker.noted = known.lived(need, again=worker.noted), True
            else:
                model.peaks[device] = known.loaded(need)
            self._r.learnt += 1
