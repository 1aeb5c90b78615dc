"""What workers report, and what is seen of them: loads, answers, ends, hangs, memory. The scheduler's part of it.

Theory of operation. A worker's late words are nobody's (`_of`). An end or a hang takes back what the worker had: what
had not begun waits again, what was at work is tried once more, alone, so that blame is never in doubt. A charge is
corrected to whatever is seen, and ends when the memory is seen free (`_gone`).

Pure, like all of the scheduler.
"""

from __future__ import annotations

import math

from broker.scheduler import figures
from broker.scheduler.capacity.ledger import EPSILON_MB
from broker.scheduler.events import (
    Answer,
    Deliver,
    DeviceSeen,
    DeviceUnread,
    Forgotten,
    KillWorker,
    Measured,
    MemoryBack,
    MemoryStuck,
    Move,
    Remembered,
    Resident,
    Settled,
    Shortage,
    State,
    WorkerDone,
    WorkerExited,
    WorkerLoadFailed,
    WorkerReady,
    WorkerSaid,
)
from broker.scheduler.residency import Peak, Request, Residency
from broker.scheduler.shortage import Shortages
from broker.scheduler.timers import Due
from zoo.errors import BY_CODE

BACKOFF_FIRST_S, BACKOFF_MOST_S = 1.0, 300.0


def _numbers(batch: list[Request]) -> str:
    return f"request{'s' if len(batch) > 1 else ''} {', '.join(str(request.id) for request in batch)}"


class Reports(Shortages):
    """See the module's docstring."""

    def _of(self, worker: int) -> Residency | None:
        """The model of a living worker; None for the late words of one that was replaced."""
        model = self._workers.get(worker)
        return model if model is not None and model.worker == worker else None

    def _worker_ready(self, e: WorkerReady, now: float) -> None:
        model = self._of(e.worker)
        if model is None or model.state is not State.LOADING:
            return
        self._move(model, Move.READY)
        if model.first.state is State.LOADING:  # it was asked for later, and is there sooner
            self._step_down(model.first, now)
            model = model.first
        model.max_batch = max(1, e.max_batch)
        model.config.available = True
        model.failures, model.failure, model.retry_at = 0, "", 0.0
        model.second_load = False
        if model.first is not model:
            model.first.further_failures, model.first.further_at = 0, 0.0
        model.first.failed_on = ""
        self._doubts.loaded(model.device)
        model.first.loads += 1
        model.loaded_at = model.last_used = now
        model.watched = 0
        model.load_seconds = now - model.started_at
        model.first.least_load_s = min(model.first.least_load_s, model.load_seconds)
        model.least_service_s = 0.0
        seconds = round(model.load_seconds, 3)
        text = f"loaded in {seconds:.2f} s"
        self.story.tell(now, model.name, text, "loaded", worker=model.worker, seconds=seconds, mb=model.mb)
        self._grant_waiting(model, now)
        unload, model.unload_when_loaded = model.unload_when_loaded, False
        if unload and not (model.leases or model.pinned):
            self._drain(model, "unload was asked for while it was loading", now)
        else:
            self._refuse_unloads(model)
            self._serve(model, now)
        self._room_may_exist(now)

    def _worker_load_failed(self, e: WorkerLoadFailed, now: float) -> None:
        model = self._of(e.worker)
        if model is None or model.state is not State.LOADING:
            return
        if e.short is not None:
            self._load_ran_out(model, e.short, e.message, Move.KILL, now)
        else:
            self._fail_load(model, e.code, e.message, Move.KILL, now, retryable=e.retryable)

    def _fail_load(
        self, model: Residency, code: str, cause: str, move: Move, now: float, *, retryable: bool = True
    ) -> None:
        model = self._step_down(model, now)
        first = model.first
        self._move(model, move)
        if move is Move.KILL:
            self._out.append(KillWorker(model.worker))
        model.failed_load = True
        model.second_load = False
        failures = 1 + (first.failures if first is model else first.further_failures)
        back_off = min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2 ** (failures - 1))
        if model.unasked:  # a guess costs nobody anything: the first who asks has his try
            model.unasked, model.misguessed, failures, back_off = False, True, first.failures, 0.0
        text = f"load failed: {cause}; no further try for {back_off:g} s"
        self.story.tell(now, model.name, text, "load failed", failures=failures, retry_seconds=back_off)
        self._load_failed_on(model.device, first, now)
        if first is model:
            model.failures, model.failure, model.retry_at = failures, cause, now + back_off
            model.permanent = not retryable
            if code not in BY_CODE:
                code = "load_failed"
            can = BY_CODE[code].retryable and retryable
            for request in model.queue.all():
                self._refuse(request, code, f"{model.name} could not be loaded: {cause}", retryable=can, after=back_off)
        else:  # the model goes on with the workers that it has
            first.further_failures, first.further_at = failures, now + back_off
        self._room_may_exist(now)  # the device may load another one

    def _worker_done(self, e: WorkerDone, now: float) -> None:
        model = self._of(e.worker)
        if model is None:
            return
        batch = model.inflight  # none: it answers an empty batch that was not sent
        if not batch or [request.id for request in batch] != [outcome.request for outcome in e.outcomes]:
            return
        model.inflight, model.ahead = model.ahead, []
        self._running -= len(batch)
        model.took((now - model.dispatched_at) / len(batch))
        model.dispatched_at = model.last_used = now
        model.requests += len(batch)
        if model.first is not model:
            model.first.requests += len(batch)
        if e.halved:
            self._smaller_batches(model, len(batch), now)
        elif model.batch_limit:
            self._larger_batches(model, len(batch), now)
        for request, outcome in zip(batch, e.outcomes, strict=True):
            if not request.running:  # answered long ago (deadline, cancel, client gone)
                self._out.append(Settled(request.id, e.worker, outcome.body))
            elif outcome.error is None:
                self._finish(request, Deliver(request.id, outcome.body, e.worker))
            elif outcome.short is not None:
                self._request_ran_out(model, request, outcome.short, outcome.error[1], now)
            else:
                code = outcome.error[0] if outcome.error[0] in BY_CODE else "inference_failed"
                self._refuse(request, code, outcome.error[1])
        if model.state is State.LOADED or model.state is State.DRAINING:
            self._serve(model, now)
            self._grow(model.first, now)
        if model.short:
            self._room_may_exist(now)
        else:
            self._usage_changed(now)

    def _worker_said(self, e: WorkerSaid, now: float) -> None:
        model = self._of(e.worker)
        if model is not None:
            for request in model.inflight:
                if request.id == e.request:
                    request.digest = e.digest

    def _worker_exited(self, e: WorkerExited, now: float) -> None:
        model = self._of(e.worker)
        if model is None:
            return
        batch, model.inflight = model.inflight, []
        self._running -= len(batch)
        self._take_back_ahead(model)
        if model.state is State.LOADING and e.starved:
            self._load_ran_out(model, Shortage(), f"its process ended ({e.how})", Move.EXIT, now)
        elif model.state is State.LOADING:
            self._fail_load(model, "load_failed", f"its process ended while loading ({e.how})", Move.EXIT, now)
        elif model.state in (State.LOADED, State.DRAINING):
            self._stay_small(model)
            model = self._step_down(model, now)
            self._move(model, Move.EXIT)
            model.first.crashes += 1
            self.story.tell(
                now, model.name,
                f"its process ended ({e.how})" + (f" while running {_numbers(batch)}" if batch else ""),
                "crashed", worker=e.worker, running=[request.id for request in batch],
            )  # fmt: skip
            if e.starved:
                self._process_ran_out(model, batch, now)
        for request in batch:
            if request.running:
                self._crashed_under(model, request, e, now)
            else:
                self._out.append(Settled(request.id, e.worker))
        self._go_on_without(model, now)

    def _go_on_without(self, model: Residency, now: float) -> None:
        """A worker has ended: whoever waits is served by the others, or by the model's next life."""
        model = model.first
        if self.stopping and model.state not in (State.LOADED, State.DRAINING):
            for waiting in model.queue.all():  # there is no next life to wait for
                self._turn_away(waiting)
        if model.waiting and model.state in (State.UNLOADED, State.EVICTING, State.FAILED):
            self._wanted.setdefault(model.name, model)
        self._serve(model, now)
        self._room_may_exist(now)

    def _crashed_under(self, model: Residency, request: Request, e: WorkerExited, now: float) -> None:
        request.crashes += 1
        if request.crashes == 1 and now < request.deadline:
            request.alone = True
            self._wait_again(request)
            text = f"request {request.id} is tried once more, alone, on another process"
            self.story.tell(now, model.name, text, "retried", request=request.id)
            return
        text = f"{request.model.name}'s process ended under this request, {request.crashes} times ({e.how})"
        if request.digest is not None and request.crashes > 1:
            text += self._quarantine(request, request.digest, "killed", now)
        self._refuse(request, "out_of_memory" if e.starved else "worker_crashed", text, retryable=False)

    def _quarantine(self, request: Request, digest: bytes, what: str, now: float) -> str:
        request.model.quarantine.refuse(digest)
        text = f"input {digest.hex()[:12]} {what} two processes: quarantined, until the model is unloaded or changes"
        self.story.tell(now, request.model.name, text, "quarantined", request=request.id)
        return "; the same input will be refused from now on"

    def _watch(self, worker: int, now: float) -> None:
        """A worker's timer: is what it does taking too long?"""
        model = self._of(worker)
        if model is None or model.watched != worker:
            return
        if model.state is State.LOADING:
            limit = self.config.load_timeout
            if now >= model.started_at + limit:
                self._fail_load(model, "load_failed", f"it took longer than load_timeout ({limit:g} s)", Move.KILL, now)
            else:  # there is more time than there was
                self.timers.add(model.started_at + limit, Due.WATCH, worker)
        elif model.state in (State.LOADED, State.DRAINING):
            model.watched = 0
            if not model.inflight:
                return
            limit = self._dispatch_timeout(model)
            if now >= model.dispatched_at + limit:
                self._hung(model, limit, now)
            else:
                model.watched = worker
                self.timers.add(model.dispatched_at + limit, Due.WATCH, worker)

    def _hung(self, model: Residency, limit: float, now: float) -> None:
        self._stay_small(model)
        model = self._step_down(model, now)
        self._move(model, Move.KILL)
        model.first.crashes += 1
        batch = model.inflight
        text = f"killed: {_numbers(batch)} ran longer than dispatch_timeout ({limit:g} s)"
        self.story.tell(now, model.name, text, "killed", worker=model.worker, running=[r.id for r in batch])
        self._out.append(KillWorker(model.worker, gentle=True))
        self._take_back_ahead(model)
        for request in model.first.queue.all():
            request.alone = True
        model.first.quarantine.be_wary(now)
        refused = ""
        if len(batch) == 1 and batch[0].digest is not None:  # it was a suspect
            refused = self._quarantine(batch[0], batch[0].digest, "hung", now)
        # Of several, who is to blame shows when the process is gone and each is tried alone, see `_crashed_under`.
        if len(batch) == 1 and batch[0].running:
            self._refuse(
                batch[0],
                "worker_hung",
                f"{model.first.name} did not answer within dispatch_timeout ({limit:g} s) and was killed{refused}",
                held=True,
            )
        self._go_on_without(model, now)

    def _remembered(self, e: Remembered, now: float) -> None:
        model = self.models.get(e.model)
        if model is None:
            return
        if model.version not in ("", e.version):  # other weights or another adapter: what these did says nothing
            if model.quarantine.lift():
                self.story.tell(now, model.name, "its files have changed: no input is refused any more", "lifted")
            model.failures, model.failure, model.retry_at = 0, "", 0.0
            model.further_failures, model.further_at = 0, 0.0
        model.version, model.least_load_s = e.version, math.inf
        if self.config.footprint == "measured":
            model.peaks = {}
            for device, peak in e.peaks.items():
                budget = self.ledger.devices[device].budget_mb if device in self.ledger.devices else math.inf
                if figures.is_mb(peak.mb) and (kept := peak.within(budget)) is not None:
                    model.peaks[device] = kept
        self._room_may_exist(now)

    def _was_resident(self, e: Resident, now: float) -> None:
        self._absent = [name for name in e.models if name in self.models]

    def _forgotten(self, e: Forgotten, now: float) -> None:
        """Its next process is charged what is declared. One that lives stays charged, and is measured again."""
        model = self.models.get(e.model)
        if model is not None and model.peaks:
            model.peaks = {}
            for worker in (model, *model.others):
                worker.noted = False
            self.learnt += 1
            text = f"its footprint is forgotten: the declared {model.config.vram_mb:g} MB count until it is measured"
            self.story.tell(now, model.name, text, "forgotten")
            self._room_may_exist(now)

    def _measured(self, e: Measured, now: float) -> None:
        """A charge is corrected to what was seen, and the model's next process is charged the most of its last lives.

        But for what one request can do to a process: more than the whole budget, once it was given one, is charged
        while it lasts and not remembered, or the model would be too large from then on.
        """
        model = self._of(e.worker)
        charge = self.ledger.of(e.worker)
        if model is None or charge is None or self.config.footprint == "declared" or not figures.is_mb(e.mb):
            return
        seen = float(math.ceil(e.mb - EPSILON_MB))  # whole megabytes: not every page is worth a decision
        if model.state is State.EVICTING:  # on its way out, and its model may have other weights by now
            need = max(charge.mb, seen)
        else:
            self._note(model, seen, worked=e.worked)
            need = min(model.need_mb(model.device), max(charge.mb, seen))  # what it is yet to get room for, it has not
            need = max(need, seen)  # which is more than is remembered, if it is more than the budget
        if need == charge.mb:
            return
        self.ledger.recharge(e.worker, need)
        model.mb = need
        self.story.tell(
            now, model.name,
            f"measured: uses {seen:g} MB on {model.device}, charged {need:g} instead of {charge.mb:g} MB "
            f"(declared {model.config.vram_mb:g})",
            "measured", device=model.device, worker=e.worker, seen_mb=seen, mb=need, before_mb=charge.mb,
        )  # fmt: skip
        self._room_may_exist(now)

    def _note(self, model: Residency, seen: float, *, worked: bool) -> None:
        """Remembers what a process was seen to use."""
        device, first = model.device, model.first
        known = first.peaks.get(device, Peak(0.0))
        peak = known
        fits = seen <= self.ledger.devices[device].budget_mb + EPSILON_MB
        if not (known.worked or worked):
            peak = known.loaded(seen) if fits or not model.was_used else known
        elif fits and (worked or seen > known.mb):
            peak, model.noted = known.lived(seen, again=model.noted), True
        if peak != known:
            first.peaks[device] = peak
            self.learnt += 1

    def _device_seen(self, e: DeviceSeen, now: float) -> None:
        if self.config.footprint == "declared" or e.device not in self.ledger.devices:
            return
        if not (figures.is_mb(e.others_mb) and figures.is_mb(e.total_mb)):
            return
        before, budget = self.ledger.limit_mb(e.device), self.ledger.devices[e.device].budget_mb
        self.ledger.allow(e.device, max(0.0, e.total_mb - e.others_mb - self.config.reserve_mb))
        limit = self.ledger.limit_mb(e.device)
        if (before < budget) != (limit < budget):
            self.story.tell(
                now, "",
                f"other programs use {e.others_mb:g} of {e.device}'s {e.total_mb:g} MB, {self.config.reserve_mb:g} are "
                f"kept free: {limit:g} of the budget's {budget:g} MB may be charged",
                "limited", device=e.device, others_mb=e.others_mb, limit_mb=limit,
            )  # fmt: skip
        if limit != before:
            self._room_may_exist(now)

    def _device_unread(self, e: DeviceUnread, now: float) -> None:
        if e.device in self.ledger.devices and self.unread.note(e.device, e.why, now + e.seconds):
            if not e.why:
                text = f"{e.device} can be read again"
                self.story.tell(now, "", text, "read again", device=e.device)
            elif e.seconds == math.inf:
                text = f"{e.device} cannot be read: {e.why}; nothing new is started there, what is loaded serves on"
                self.story.tell(now, "", text, "unread", device=e.device)
        if not e.why:
            self._room_may_exist(now)

    def _memory_back(self, e: MemoryBack, now: float) -> None:
        if self.ledger.of(e.worker) is not None and self._has_ended(e.worker, now):
            self.ledger.release(e.worker)
            self._gone(e.worker, now)
            self._room_may_exist(now)

    def _has_ended(self, worker: int, now: float) -> bool:
        """What was killed and has no memory has ended, though its exit may not have been seen; others live."""
        model = self._of(worker)
        if model is not None and model.inflight and model.state is State.EVICTING:
            self._worker_exited(WorkerExited(worker, "its memory came back"), now)
        return model is None or model.state is State.EVICTING

    def _memory_stuck(self, e: MemoryStuck, now: float) -> None:
        charge = self.ledger.of(e.worker)
        if charge is not None and e.worker in self._workers and self._has_ended(e.worker, now):
            self.story.tell(
                now, charge.model,
                f"its process is gone but {charge.mb:g} MB on {charge.device} have not come back; they stay charged",
                "memory stuck", device=charge.device, mb=charge.mb,
            )  # fmt: skip
            self._gone(e.worker, now)
            self._room_may_exist(now)

    def _gone(self, worker: int, now: float) -> None:
        """The worker's life is over."""
        model = self._workers.pop(worker, None)
        if model is None or model.worker != worker:
            return
        self._move(model, Move.FAILED if model.failed_load else Move.FREED)
        if model.first is not model:
            self._forget(model)
            model = model.first
        else:
            model.worker, model.device = 0, ""
            if not model.leases:  # leases outlive a crash, and so does what they asked for
                model.keep_alive = None
            model.failed_load = model.yielding = False
            if model.unasked:  # it crashed, or ran out of memory: not for another guess
                model.unasked, model.misguessed = False, True
            self._next_life(model)
        if not model.worker and not model.others:
            for request in list(model.unloads):
                self._finish(request, Answer(request.id, True))
        self._retire(model, now)
        if model.queue.live and not model.worker:
            self._wanted.setdefault(model.name, model)
            if model.retry_at > now:
                self._look_again(model.retry_at)
