"""Memory that ran out: what is learnt from it, and what is tried before anybody is told. The scheduler's part of it.

Theory of operation. A load that ran out is killed, and started once more when there is room for what it turned out to
need. A batch has been tried in halves by its worker, and smaller ones are sent for a while. A request that ran out all
by itself waits in its model's queue, as `short`, until its process may be charged for it (`room.py` sees to that, by
the same policy as for any other room), and is then run once more. What runs out twice is answered, with the arithmetic.

Whoever has been told what was asked for knows what is needed; where nobody was, a quarter more is guessed, but never
more than the budget, so that a guess alone makes no model too large. With declared footprints nothing is learnt and
nobody goes, since there is no figure to choose by: it is tried once more as things are. So it is where a model has
several workers, by whichever has a place next; and a further worker whose load runs out is not tried again at once.

Pure, like all of the scheduler: time comes in, actions go out.
"""

from __future__ import annotations

import math

from broker.scheduler import figures
from broker.scheduler.capacity.ledger import EPSILON_MB, Charge
from broker.scheduler.events import KillWorker, Move, Shortage, State
from broker.scheduler.reconfiguring import Reconfiguring
from broker.scheduler.residency import MOST_MB, Peak, Request, Residency

GUESS = 1.25
BATCHES_FIRST, BATCHES_MOST = 16, 1024  # before larger ones are tried again: twice as many each time that it ran out


class Shortages(Reconfiguring):
    """See the module's docstring."""

    def _fail_load(
        self, model: Residency, code: str, cause: str, move: Move, now: float, *, retryable: bool = True
    ) -> None:
        """The load is not tried again for a while: see `reports.py`."""
        raise NotImplementedError

    # ------------------------------------------------------------ it ran out

    def _load_ran_out(self, model: Residency, short: Shortage, cause: str, move: Move, now: float) -> None:
        charge = self._charge(model)
        need = self._needed_mb(charge, short)
        self._learn(model, need)
        model.first.shortages["load"] += 1
        what = f"memory ran out, charged {charge.mb:g} MB on {charge.device}: {cause}"
        if model.second_load or model.first is not model or model.others:  # others of the model go on without it
            before = "; so it did before" if model.second_load else ""
            used, limit = self.ledger.used_mb(charge.device), self.ledger.limit_mb(charge.device)
            what += f"{before}, and of {limit:g} MB {used:g} are charged in all"
            self._fail_load(model, "out_of_memory", what, move, now)
            return
        model.second_load = True
        self._move(model, move)
        if move is Move.KILL:
            self._out.append(KillWorker(model.worker))
        text = f"load failed: {what}; it is tried once more, with {need:g} MB"
        self._tell_short(model, text, need, now)
        if not self._ever_fits(model):
            self._outgrown(model)
        elif model.waiting:
            self._wanted.setdefault(model.name, model)
        self._room_may_exist(now)

    def _request_ran_out(self, model: Residency, request: Request, short: Shortage, cause: str, now: float) -> None:
        """Its process lives on. The request waits until that may be charged what it takes, or is answered."""
        charge = self._charge(model)
        need, budget = self._needed_mb(charge, short), self.ledger.devices[charge.device].budget_mb
        model.first.shortages["request"] += 1
        what = f"{cause}; {model.name} is charged {charge.mb:g} MB on {charge.device}"
        if need > budget + EPSILON_MB:
            largest = max(self.ledger.devices[device].budget_mb for device in self.devices_for(model))
            code = "model_too_large" if need > largest + EPSILON_MB else "out_of_memory"
            what += f", would need {need:g}, and the whole budget is {budget:g}; nothing was evicted"
            self._refuse(request, code, what, retryable=False)
        elif request.starved or self.stopping or model.state is not State.LOADED:
            self._refuse(request, "out_of_memory", f"{what}{', and so it did before' if request.starved else ''}")
        else:
            request.starved = request.alone = True
            self._learn(model, need)
            self._wait_again(request)
            if model.first is model and not model.others:  # else whichever worker is next tries it as things are
                model.short.append(request)
                self._wanted.setdefault(model.name, model)
            text = f"request {request.id}: {what}; tried once more when it may be {need:g}"
            self._tell_short(model, text, need, now, request.id)

    def _process_ran_out(self, model: Residency, batch: list[Request], now: float) -> None:
        """The kernel has ended it for want of memory."""
        if len(batch) > 1:
            self._smaller_batches(model, len(batch), now)
        elif batch:
            model.first.shortages["request"] += 1
            charge = self._charge(model)
            need = self._needed_mb(charge, Shortage())
            self._learn(model, need)
            text = f"charged {charge.mb:g} MB on {charge.device}, and {need:g} from now on"
            self._tell_short(model, text, need, now)

    def _starved(self, model: Residency, why: str, now: float) -> None:
        for request in list(model.short):
            self._refuse(request, "out_of_memory", f"{model.name}: memory ran out, and there is no more: {why}")
        self._serve(model, now)
        self._make_true(now)  # it may be the one to go, now that nobody waits for it

    # ------------------------------------------------------------ batches

    def _smaller_batches(self, model: Residency, size: int, now: float) -> None:
        """Memory did not suffice for so many requests at once."""
        model.first.shortages["batch"] += 1
        on_its_way = model.batch_limit and size > model.batch_limit  # when it became smaller
        if size > 1 and not on_its_way:
            model.batch_limit = size // 2
            model.batches, model.batches_before = 0, min(BATCHES_MOST, 2 * model.batches_before or BATCHES_FIRST)
            what = f"memory ran out under {size} requests at once: at most {model.batch_limit} from now on"
            self.story.tell(now, model.name, what, "smaller batches", batch=size, most=model.batch_limit)

    def _larger_batches(self, model: Residency, size: int, now: float) -> None:
        """So many requests at once went well."""
        if size < model.batch_limit:
            return
        model.batches += 1
        if model.batches >= model.batches_before:
            model.batches = 0
            model.batch_limit = 2 * model.batch_limit if 2 * model.batch_limit < model.max_batch else 0
            most = model.batch_limit or model.max_batch
            text = f"at most {most} requests at once again, {size} went well for a while"
            self.story.tell(now, model.name, text, "larger batches", batch=size, most=most)

    # ------------------------------------------------------------ what is needed

    def _tell_short(self, model: Residency, text: str, need: float, now: float, request: int | None = None) -> None:
        charged = self._charge(model).mb
        self.story.tell(now, model.name, text, "out of memory", request=request, needed_mb=need, charged_mb=charged)

    def _charge(self, model: Residency) -> Charge:
        charge = self.ledger.of(model.worker)
        assert charge is not None, f"{model.name} has a process and no charge"
        return charge

    def _needed_mb(self, charge: Charge, short: Shortage) -> float:
        """What its process should have been charged, as far as that is known."""
        if self.config.footprint == "declared":
            return charge.mb
        used, asked = figures.known_mb(short.used_mb), figures.known_mb(short.asked_mb)
        if asked:
            need = min(math.ceil(used + asked - EPSILON_MB), MOST_MB)
        else:
            guess = math.ceil(GUESS * max(charge.mb, used) - EPSILON_MB)
            need = min(guess, math.floor(self.ledger.devices[charge.device].budget_mb))
        return max(charge.mb, need)

    def _learn(self, model: Residency, need: float) -> None:
        """The footprint of its next process, and of this one as soon as there is room for it."""
        if need > model.need_mb(model.device):
            known = model.first.peaks.get(model.device, Peak(0.0))
            if known.worked:
                model.first.peaks[model.device], model.noted = known.lived(need, again=model.noted), True
            else:
                model.first.peaks[model.device] = known.loaded(need)
            self.learnt += 1
