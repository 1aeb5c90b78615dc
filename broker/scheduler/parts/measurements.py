"""What is measured of processes and devices: charges follow, and footprints are remembered.

A charge is corrected at once to what is seen. What a model's next process is charged is the most of its last ones, but
for what one request can do to a process: more than the whole budget, once it was given a request, is charged while it
lasts and not remembered, or the model would be too large from then on.

Until a request has run, the larger of declaration and measurement is charged: a load alone says nothing about work.
From then on it is the most of the last eight lives in which a request ran, per device, in whole megabytes: what a model
took once (a larger batch or picture) it may take again, but not for ever. Other weights, another adapter or other
options are another version and start from the declaration. Only peaks that last are seen: CUDA's allocator keeps what
it once had; host memory that is given back between two readings is unknown.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from broker.scheduler.capacity.ledger import EPSILON_MB
from broker.scheduler.events import DeviceSeen, DeviceUnread, Forgotten, LoadedEarlier, Measured, Remembered
from broker.scheduler.registry import Registry
from broker.scheduler.state import Peak, Phase, Worker, peaks


@dataclass
class Measurements:
    """See the module's docstring."""

    _r: Registry

    def remembered(self, e: Remembered) -> None:
        r = self._r
        model = r.models.get(e.model)
        if model is None:
            return
        if model.version not in ("", e.version):  # other weights or another adapter: what these did says nothing
            if model.quarantine.lift():
                r.tell(model.name, "lifted", why="its files have changed")
            model.failures.clear()
        model.version, model.least_load_s = e.version, math.inf
        if r.config.footprint != "measured":
            return
        model.peaks = {}
        for device, peak in e.peaks.items():
            budget = r.ledger.devices[device].budget_mb if device in r.ledger.devices else math.inf
            if peaks.is_mb(peak.mb) and (kept := peak.within(budget)) is not None:
                model.peaks[device] = kept

    def loaded_earlier(self, e: LoadedEarlier) -> None:
        self._r.absent = [name for name in e.models if name in self._r.models]

    def forgotten(self, e: Forgotten) -> None:
        """Its next process is charged what is declared. One that lives stays charged, and is measured again."""
        model = self._r.models.get(e.model)
        if model is not None and model.peaks:
            model.peaks = {}
            for worker in model.workers:
                worker.noted = False
            self._r.learnt += 1
            self._r.tell(model.name, "forgotten", declared_mb=model.config.vram_mb)

    def measured(self, e: Measured) -> None:
        r = self._r
        worker, charge = r.workers.get(e.worker), r.ledger.of(e.worker)
        if worker is None or charge is None or r.config.footprint == "declared" or not peaks.is_mb(e.mb):
            return
        seen = float(math.ceil(e.mb - EPSILON_MB))  # whole megabytes: not every page is worth a decision
        if worker.phase is Phase.ENDING:  # its model may have other weights by now
            need = max(charge.mb, seen)
        else:
            self._note(worker, seen, worked=e.worked)
            need = min(worker.model.need_mb(worker.device), max(charge.mb, seen))  # growing first needs room
            need = max(need, seen)  # which is more than is remembered, if it is more than the budget
        if need == charge.mb:
            return
        r.ledger.recharge(e.worker, need)
        worker.mb = need
        r.tell(
            worker.name, "measured", device=worker.device, worker=e.worker, seen_mb=seen, mb=need, before_mb=charge.mb,
            declared_mb=worker.model.config.vram_mb,
        )  # fmt: skip

    def _note(self, worker: Worker, seen: float, *, worked: bool) -> None:
        """Remembers what a process was seen to use."""
        device, model = worker.device, worker.model
        known = peak = model.peaks.get(device, Peak(0.0))
        fits = seen <= self._r.ledger.devices[device].budget_mb + EPSILON_MB
        if not (known.worked or worked):
            peak = known.loaded(seen) if fits or not worker.was_used else known
        elif fits and (worked or seen > known.mb):
            peak, worker.noted = known.lived(seen, again=worker.noted), True
        if peak != known:
            model.peaks[device] = peak
            self._r.learnt += 1

    def device_seen(self, e: DeviceSeen) -> None:
        ledger, config = self._r.ledger, self._r.config
        if config.footprint == "declared" or e.device not in ledger.devices:
            return
        if not (peaks.is_mb(e.others_mb) and peaks.is_mb(e.total_mb)):
            return
        before, budget = ledger.limit_mb(e.device), ledger.devices[e.device].budget_mb
        ledger.allow(e.device, max(0.0, e.total_mb - e.others_mb - config.reserve_mb))
        limit = ledger.limit_mb(e.device)
        if (before < budget) != (limit < budget):
            self._r.tell(
                "", "limited", device=e.device, others_mb=e.others_mb, total_mb=e.total_mb,
                reserve_mb=config.reserve_mb, limit_mb=limit, budget_mb=budget,
            )  # fmt: skip

    def device_unread(self, e: DeviceUnread) -> None:
        r = self._r
        if e.device not in r.ledger.devices or not r.unread.note(e.device, e.why, r.now + e.seconds):
            return
        if not e.why:
            r.tell("", "read again", device=e.device)
        elif e.seconds == math.inf:
            r.tell("", "unread", device=e.device, why=e.why)
