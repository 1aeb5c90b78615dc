"""Carries out what is decided about room: the rules `relieve` and `allocate`.

The decisions themselves are pure functions: `capacity/overrun.py` and `capacity/placement.py`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from broker.scheduler.capacity import fairness, overrun, placement
from broker.scheduler.capacity.by_priority import Candidate
from broker.scheduler.capacity.demand import Demand, Reason
from broker.scheduler.capacity.ledger import EPSILON_MB
from broker.scheduler.capacity.placement import Admit, Allocation, Claim, GiveUp, Hold, Impossible, MakeRoom
from broker.scheduler.parts.admission import Admission
from broker.scheduler.parts.answering import Answers
from broker.scheduler.parts.lifecycle import Lifecycle
from broker.scheduler.registry import Registry
from broker.scheduler.state import End, Move

MOST_SPARED = 4  # named in a line


@dataclass
class Allocator:
    """See the module's docstring."""

    _r: Registry
    _answers: Answers
    _lifecycle: Lifecycle
    _admission: Admission
    _claims: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    # ------------------------------------------------------------ charges under limits

    def relieve(self) -> None:
        """Where more is charged than may be, workers go until it fits, or no other may."""
        for device in self._r.ledger.devices:
            if self._r.ledger.overrun_mb(device) or device in self._r.overdrawn:
                self._relieve(device)

    def _relieve(self, device: str) -> None:
        r = self._r
        relief = overrun.relieve(device, r.view())
        for worker in relief.oversized:
            why = f"its process has grown to {worker.mb:g} MB, more than the whole budget of {device}"
            if worker.idle:
                self._lifecycle.evict(worker, End.OVERRUN, why)
            else:
                self._lifecycle.drain(worker, why)
        if relief.oversized:
            relief = overrun.relieve(device, r.view())
        used, limit = r.ledger.used_mb(device), r.ledger.limit_mb(device)
        for victim in relief.victims:
            unused = r.now - victim.last_used
            why = f"{device} is charged {used:g} MB, {limit:g} may be; unused for {unused:.1f} s"
            self._lifecycle.evict(r.named(victim.model), End.OVERRUN, why)
        if relief.short_mb > EPSILON_MB and device not in r.overdrawn:
            r.overdrawn.add(device)
            r.tell(
                "", "overdrawn", device=device, used_mb=r.ledger.used_mb(device), limit_mb=limit,
                over_mb=round(relief.short_mb, 3), users=placement.users(device, r.view()),
            )  # fmt: skip
        elif relief.short_mb <= EPSILON_MB and device in r.overdrawn:
            r.overdrawn.discard(device)
            r.tell("", "fits again", device=device)

    # ------------------------------------------------------------ room for demands

    def allocate(self) -> None:
        """Gives room to the demands, as `placement.place` decides."""
        r = self._r
        r.looked_at = r.now
        if not r.demands and not r.contested:
            return
        self._trust_ledger()
        view = r.view()
        for demand in placement.lost_claims(r.demands.values(), view):
            demand.claim = 0
        plan = placement.place(r.demands.values(), view)
        r.look_again(plan.look_at)
        for decision in plan.decisions:
            self._carry_out(decision)
        if plan.acts:
            r.look = True
        else:
            r.contested = plan.contested
            self._let_yield(plan)

    def _carry_out(self, decision: placement.Decision) -> None:
        match decision:
            case Admit(demand, device):
                self._admit(demand, device)
            case Claim(demand, device):
                self._claim(demand, device)
            case MakeRoom():
                self._make_room(decision)
            case GiveUp(demand):
                self._give_up(demand)
            case Impossible(demand, why):
                self._refuse(demand, why)
            case Hold(demand, reason, awaits):
                self._hold(demand, reason, awaits)

    def _trust_ledger(self) -> None:
        """Where a reading is late for too long, the charges alone count."""
        r = self._r
        for device, why in r.unread.expired(r.now):
            r.tell("", "by the ledger", device=device, why=why)
        if r.demands and (end := r.unread.next_end()) < math.inf:
            r.look_again(end)

    def _admit(self, demand: Demand, device: str) -> None:
        if demand.loads:
            self._lifecycle.start(demand.model, device)
        else:
            self._grow(demand)

    def _grow(self, demand: Demand) -> None:
        """The process may be charged what it needs, and the requests that waited for that are served."""
        r, worker = self._r, demand.model.primary
        before, worker.mb = worker.mb, demand.model.need_mb(worker.device)
        r.ledger.recharge(worker.number, worker.mb)
        worker.short = []
        r.touched[demand.model] = None
        used, limit = r.ledger.used_mb(worker.device), r.ledger.limit_mb(worker.device)
        r.tell(
            worker.name, "grown", mb=worker.mb, before_mb=before, device=worker.device, used_mb=used, limit_mb=limit
        )  # fmt: skip

    def _claim(self, demand: Demand, device: str) -> None:
        if not demand.claim or demand.claim_on != device:
            demand.claim = demand.claim or next(self._claims)
            demand.claim_on = device
            self._r.look = True
        demand.wait, demand.awaits = None, ()

    def _make_room(self, decision: MakeRoom) -> None:
        r, demand, device = self._r, decision.demand, decision.device
        model, missing, victims = demand.model, decision.missing_mb, decision.victims
        need, limit = demand.lacks_mb(device), r.ledger.limit_mb(device)
        for victim in victims:
            why = (
                f"{model.name} needs {need:g} MB{'' if demand.loads else ' more'}, {missing:g} MB short of {limit:g}; "
                f"{r.policy.why(victim, decision.spared, r.now)}"
            )
            self._lifecycle.evict(r.named(victim.model), End.ROOM, why, needer=model.name, short_mb=missing)
        self._tell_spared(model.name, missing, victims, [c for c in decision.spared if c.mb > 0])
        if decision.fits:
            self._admit(demand, device)
        else:
            self._claim(demand, device)

    def _tell_spared(self, name: str, needed: float, victims: list[Candidate], spared: list[Candidate]) -> None:
        """Which workers could have gone as well."""
        if spared:
            self._r.tell(
                name, "spared", others=tuple(c.model for c in spared), needed_mb=needed,
                freed_mb=sum(v.mb for v in victims), victims=[v.model for v in victims],
                spared=[(c.model, c.mb, c.priority.name, self._r.now - c.last_used) for c in spared[:MOST_SPARED]],
            )  # fmt: skip

    def _give_up(self, demand: Demand) -> None:
        """Room is not made for requests whose deadline cannot be met any more."""
        model, now = demand.model, self._r.now
        while (request := model.queue.head()) is not None and now >= fairness.hopeless_from(request):
            left, fastest = request.deadline - now, model.least_load_s
            text = f"{model.name} is not loaded, its fastest load took {fastest:.2f} s, and {left:.2f} s are left"
            waited = f"; it waited: {demand.why}" if demand.why else ""
            self._answers.refuse(request, "deadline_exceeded", text + waited)

    def _refuse(self, demand: Demand, why: str) -> None:
        """No room for it is possible."""
        model = demand.model
        if demand.loads:
            self._admission.outgrown(model)
            return
        for request in list(model.primary.short):
            text = f"{model.name}: memory ran out, and there is no more: {why}"
            self._answers.refuse(request, "out_of_memory", text)

    def _hold(self, demand: Demand, reason: Reason, awaits: tuple[str, ...]) -> None:
        """Why it waits is kept up to date for the answer; the story has a line for each new reason."""
        before, demand.wait = demand.wait, reason
        demand.awaits = awaits or demand.awaits
        if before is None or before.by != reason.by:
            self._r.tell(demand.model.name, "waits", why=reason.why, waiting=demand.model.waiting)

    def _let_yield(self, plan: Allocation) -> None:
        """Workers stop taking requests, or take them again."""
        r = self._r
        for worker in list(r.yielding.values()):
            if worker.name not in plan.yields:
                r.move(worker, Move.RESUME)
        yielding = {worker.name for worker in r.yielding.values()}
        for name, model in plan.yields.items():
            if name not in yielding:
                worker = r.named(name)
                r.move(worker, Move.YIELD)
                r.tell(name, "yields", needer=model)
