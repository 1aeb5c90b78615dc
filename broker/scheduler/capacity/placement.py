"""Which demand gets room where, and what has to go for it. Pure: from what is there to decisions, nothing is changed.

`place` goes through the demands, those that wait longest first, and stops at the first decision that changes what is
there: it is then called again. For one demand the decision is, by the first of these that holds:

    1. no device's whole budget suffices                   → Impossible
    2. a device has room                                   → Admit
    3. a device will have, when what is ending is gone     → Claim: that room is spoken for
    4. the deadline is too near for any load so far        → GiveUp
    5. idle workers can make room                          → MakeRoom, or wait while they linger
    6. nothing can be started anywhere                     → wait
    7. busy workers could make room                        → wait; from their time on they yield
    8. nothing may go                                      → wait; a process that would have to grow: Impossible

No worker is chosen unless it makes the difference. What a demand waits for is not taken from under it by those that
came later and would have to evict the same workers; and once it has waited for `patience_seconds`, nor is the room that
is free, or small models could hold up a large one for ever.

Devices. Models on one device share its computing power, so the work should be spread: the device with the most room
left is the best. But room that is left in small pieces on every device makes the next large model evict another. So a
place is kept for the largest model that is not loaded and would fit now: the rest goes where that place remains.

Reasons:

* What victims give back is claimed for the model they were killed for; otherwise a later request could take it, and
  the kill would have been for nothing.
* A busy model yields and is not killed: a stream of requests for one model cannot starve another until its deadline,
  and nothing in flight is lost.
* A demand that waits for busy workers keeps waiting for the same ones until they are gone or no longer suffice.
  Chosen anew each time, by last use, it would always be another's turn to yield, and no demand would ever get room.
* The nearest deadline goes first among models; one further away than `request_timeout` counts as that, so that a
  stream of short ones does not put off a long one for ever.
* A demand that waits because everything is leased or pinned does not hold up smaller ones.
* The tightest fit would keep larger holes and leave a second GPU idle while everything fits on the first. Where no
  device has room, the one is chosen where least is lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence

import msgspec

from broker.scheduler.capacity import fairness
from broker.scheduler.capacity.by_priority import Candidate, Policy
from broker.scheduler.capacity.demand import Demand, Reason, Want
from broker.scheduler.capacity.ledger import EPSILON_MB
from broker.scheduler.state import Guess, Model, Phase, Request, State, Worker


class Space(msgspec.Struct, gc=False):
    """A device.

    Attributes:
        free_mb: may be charged now; negative in an overrun. coming_mb: with what ending processes give back.
        limit_mb: may be charged in all.
        loading: loads under way. closed: why nothing may be started there. doubtful_until: loads have failed there.
    """

    free_mb: float
    coming_mb: float
    budget_mb: float
    limit_mb: float
    loading: int = 0
    closed: str = ""
    doubtful_until: float | None = None


class View(msgspec.Struct):
    """What `place` looks at.

    Attributes:
        usual_s: how long a request usually has.
        unreturned_mb: of a device: MB charged for processes that are gone.
    """

    now: float
    spaces: dict[str, Space]
    workers: Collection[Worker]
    models: Collection[Model]
    policy: Policy
    concurrent_loads: int = 1
    patience_s: float = 0.0
    usual_s: float = 30.0
    unreturned_mb: Callable[[str], float] = lambda _: 0.0


class Admit(msgspec.Struct):
    """The room is there."""

    demand: Demand
    device: str


class Claim(msgspec.Struct):
    """The room is coming back."""

    demand: Demand
    device: str


class MakeRoom(msgspec.Struct):
    """`victims` go; it is `missing_mb` short. `fits`: what is free then suffices, else it claims what comes back."""

    demand: Demand
    device: str
    missing_mb: float
    victims: list[Candidate]
    spared: list[Candidate]
    fits: bool


class GiveUp(msgspec.Struct):
    """Requests of it cannot be answered in time any more."""

    demand: Demand


class Impossible(msgspec.Struct):
    """`why`: in words, for a process that would have to grow."""

    demand: Demand
    why: str = ""


class Hold(msgspec.Struct):
    """It waits. `awaits`: for these busy workers to finish."""

    demand: Demand
    reason: Reason
    awaits: tuple[str, ...] = ()


Decision = Admit | Claim | MakeRoom | GiveUp | Impossible | Hold


class Allocation:
    """What `place` decided.

    Attributes:
        yields: name of a worker that has to stop taking requests → the model that needs its room.
        look_at: when another look may decide otherwise.
        contested: a demand waits for workers in use.
        acts: the last decision changes what is there; what comes after it was not looked at.
    """

    def __init__(self) -> None:
        self.decisions: list[Decision] = []
        self.yields: dict[str, str] = {}
        self.look_at = math.inf
        self.contested = False
        self.acts = False

    def again(self, when: float) -> None:
        self.look_at = min(self.look_at, when)


class _Taken:
    """What demands that come earlier have spoken for: MB by device, and workers by name."""

    def __init__(self, devices: Iterable[str]) -> None:
        self.mb = dict.fromkeys(devices, 0.0)
        self.workers: set[str] = set()


def place(demands: Iterable[Demand], view: View) -> Allocation:
    """See the module's docstring."""
    plan, taken = Allocation(), _Taken(view.spaces)
    for demand, head in in_order(demands, view):
        model = demand.model
        if demand.want is Want.GROW and model.primary.phase is Phase.YIELDING:
            continue  # it would not be served
        if demand.loads and model.workers:
            continue  # its last process is not gone yet
        if view.now < model.failures.retry_at:
            plan.again(model.failures.retry_at)
            continue
        decision = _decide(demand, head, view, taken, plan)
        plan.decisions.append(decision)
        if not isinstance(decision, Claim | Hold):
            plan.acts = True
            break
    plan.contested = bool(taken.workers)
    return plan


def in_order(demands: Iterable[Demand], view: View) -> list[tuple[Demand, Request]]:
    """With what is first in their queues. Room that was promised comes first: else a victim with older requests would
    take it right back.
    """
    found = [
        (d.claim or math.inf, fairness.urgency(head, view.usual_s, view.now), fairness.due(head, view.usual_s),
         head.seq, d, head)
        for d in demands
        if (head := d.model.queue.head()) is not None
    ]  # fmt: skip
    return [(demand, head) for *_, demand, head in sorted(found, key=lambda entry: entry[:4])]


def lost_claims(demands: Iterable[Demand], view: View) -> list[Demand]:
    """Memory that was coming back has got stuck: demands that it no longer reaches."""
    coming = {name: space.coming_mb for name, space in view.spaces.items()}
    lost = []
    for demand in sorted((d for d in demands if d.claim), key=lambda d: d.claim):
        need = demand.lacks_mb(demand.claim_on)
        if need > coming[demand.claim_on] + EPSILON_MB:
            lost.append(demand)
        else:
            coming[demand.claim_on] -= need
    return lost


def place_spare(demand: Demand, view: View) -> str | None:
    """A device with room that is free anyway, for what no request has to wait for."""
    model = demand.model
    taken = {worker.device for worker in model.workers}
    room = {name: view.spaces[name].free_mb for name in model.allowed(view.spaces)}
    need = {
        name: mb
        for name in room
        if (mb := model.need_mb(name)) <= room[name] + EPSILON_MB
        and view.spaces[name].doubtful_until is None
        and not view.spaces[name].closed
        and name not in taken
        and view.spaces[name].loading < view.concurrent_loads
    }
    return choose(need, room, ()) if need else None


# ---------------------------------------------------------------- one demand


def _decide(demand: Demand, head: Request, view: View, taken: _Taken, plan: Allocation) -> Decision:
    """The numbers are those of the module's docstring."""
    model, spaces = demand.model, view.spaces
    devices = model.allowed(view.spaces) if demand.loads else [model.primary.device]
    fitting = [name for name in devices if model.need_mb(name) <= spaces[name].budget_mb + EPSILON_MB]
    if not fitting:  # 1
        return Impossible(demand, "" if demand.loads else _no_room(demand, devices, view))
    if demand.loads:
        fitting = _sound(demand, fitting, view, plan) or fitting
    spare = {name: spaces[name].coming_mb - taken.mb[name] for name in fitting}
    need = {name: demand.lacks_mb(name) for name in fitting}
    free = [name for name in fitting if not demand.loads or _may_start(name, view)]
    room = {name: min(mb, spaces[name].free_mb) for name, mb in spare.items()}  # a claim takes what is coming first
    if device := _best(model, [name for name in free if need[name] <= room[name] + EPSILON_MB], room, view):  # 2
        return Admit(demand, device)
    for device in ([demand.claim_on] if demand.claim and demand.claim_on in spare else []) + free:  # 3
        if need[device] <= spare[device] + EPSILON_MB:
            taken.mb[device] += need[device]
            return Claim(demand, device)
    if demand.loads:  # 4
        hopeless = fairness.hopeless_from(head)
        if view.now >= hopeless:
            return GiveUp(demand)
        plan.again(hopeless)
    missing = {name: need[name] - spare[name] for name in free}
    if decision := _by_idle(demand, head, missing, view, taken, plan):  # 5
        return decision
    if not free:  # 6
        return Hold(demand, _nothing_starts(fitting, view))
    return _by_busy(demand, head, missing, view, taken, plan)  # 7, 8


def _by_idle(
    demand: Demand, head: Request, missing: dict[str, float], view: View, taken: _Taken, plan: Allocation
) -> Decision | None:
    """Evicts idle workers, where that suffices and least is lost."""
    plans = []
    for device, needed in missing.items():
        idle = candidates(view, device, taken.workers, demand.model.name, busy=False)
        victims = view.policy.choose(needed, idle, demand.model.config.priority)
        if victims is not None:
            spared = [c for c in idle if c not in victims]
            plans.append((view.policy.loss(victims), device, victims, spared))
    if not plans:
        return None
    _, device, victims, spared = min(plans, key=lambda entry: entry[0])
    workers = {worker.name: worker for worker in view.workers}
    until = {
        v.model: fairness.lingers_until(workers[v.model], demand.model, head, view.patience_s)
        for v in victims
        if not v.unasked
    }
    lingering = [name for name, moment in until.items() if moment > view.now]
    if lingering:  # idle for a moment only, it seems: they are given that moment
        plan.again(max(until.values()))
        taken.workers.update(victim.model for victim in victims)
        names = ", ".join(lingering)
        return Hold(demand, Reason(names, f"a moment for {names}, whose callers usually come right back"))
    fits = demand.lacks_mb(device) <= view.spaces[device].free_mb + EPSILON_MB  # what comes back is for an older claim
    return MakeRoom(demand, device, missing[device], victims, spared, fits)


def _by_busy(
    demand: Demand, head: Request, missing: dict[str, float], view: View, taken: _Taken, plan: Allocation
) -> Decision:
    """No idle worker can make room. When their turn is over (see `fairness.py`), busy ones stop taking requests."""
    model = demand.model
    workers = {worker.name: worker for worker in view.workers}
    for device, needed in missing.items():
        found = candidates(view, device, taken.workers, model.name, busy=True)
        awaited = [c for c in found if c.model in demand.awaits]
        victims = view.policy.choose(needed, awaited, model.config.priority) if awaited else None
        if victims is None:
            victims = view.policy.choose(needed, found, model.config.priority)
        if victims is None:
            continue
        busy = [workers[v.model] for v in victims]
        turn = max(fairness.gives_way_at(w, model, head, view.patience_s) for w in busy)
        if view.now >= turn:
            plan.yields.update((w.name, model.name) for w in busy)
        else:
            plan.again(turn)
        if view.now >= head.since + view.patience_s:
            taken.mb[device] += demand.lacks_mb(device)
        else:
            plan.again(head.since + view.patience_s)
        taken.workers.update(w.name for w in busy)
        names = ", ".join(w.name for w in busy)
        return Hold(demand, Reason(names, f"for {names} to finish"), tuple(w.name for w in busy))
    why = _no_room(demand, list(missing), view)
    if taken.workers:
        why += f" (demands that came first wait for {', '.join(sorted(taken.workers))})"
    return Hold(demand, Reason("room", why)) if demand.loads else Impossible(demand, why)


# ---------------------------------------------------------------- workers that may go


def candidates(view: View, device: str, spoken_for: Collection[str], wanted: str, *, busy: bool) -> list[Candidate]:
    """Workers on the device that may go; with `busy`, also those that would be idle once they stop taking requests."""
    found = [
        Candidate(
            w.name, w.mb, w.model.config.priority, w.last_used, w.load_seconds, w.dispensable,
            unasked=w.model.guess is Guess.OPEN,
        )
        for w in view.workers
        if w.device == device
        and w.state is State.LOADED
        and not w.held
        and w.name != wanted
        and w.name not in spoken_for
        and (busy or (not w.inflight and (w.phase is Phase.YIELDING or not w.queued)))
    ]  # fmt: skip
    return view.policy.valued(found, wanted, view.now)


# ---------------------------------------------------------------- devices


def _may_start(device: str, view: View) -> bool:
    space = view.spaces[device]
    return space.loading < view.concurrent_loads and not space.closed


def _nothing_starts(devices: Sequence[str], view: View) -> Reason:
    closed = [f"{name}: {view.spaces[name].closed}" for name in devices if view.spaces[name].closed]
    if closed:
        return Reason("unread", f"nothing is started on {' / '.join(closed)}")
    return Reason("loading", "another model is loading")


def _sound(demand: Demand, devices: list[str], view: View, plan: Allocation) -> list[str]:
    """Those on which loads succeed, or on which room has been made for the model already."""
    doubtful = {name: until for name in devices if (until := view.spaces[name].doubtful_until) is not None}
    sound = [name for name in devices if name not in doubtful or (demand.claim and name == demand.claim_on)]
    if sound:
        for until in doubtful.values():
            plan.again(until)
    return sound


def _best(model: Model, devices: list[str], room: dict[str, float], view: View) -> str | None:
    """Which of the devices that have room for the model; rather not where its last load has failed."""
    devices = [device for device in devices if device != model.failures.device] or devices
    if len(devices) < 2:
        return devices[0] if devices else None
    absent = [
        {device: other.need_mb(device) for device in other.allowed(view.spaces) if device in room}
        for other in view.models
        if other is not model and not other.workers and not other.leaving
    ]
    return choose({device: model.need_mb(device) for device in devices}, room, absent)


def choose(need: dict[str, float], room: dict[str, float], absent: Iterable[dict[str, float]]) -> str:
    """The device to load on.

    Args:
        need: MB by device, of those that have room for the model.
        room: free MB of every device.
        absent: what each model that is not loaded needs, by device.
    """
    left = {device: room[device] - mb for device, mb in need.items()}
    fitting = ({d: mb for d, mb in other.items() if mb <= room[d] + EPSILON_MB} for other in absent)
    largest = max(filter(None, fitting), key=lambda other: min(other.values()), default={})
    good = [d for d in left if any(at != d or mb <= left[d] + EPSILON_MB for at, mb in largest.items())] or left
    return max(good, key=lambda device: left[device])


# ---------------------------------------------------------------- in words


def _no_room(demand: Demand, devices: Iterable[str], view: View) -> str:
    return " / ".join(
        f"needs {demand.model.need_mb(name):g} MB on {name}, {max(0.0, view.spaces[name].free_mb):g} of "
        f"{view.spaces[name].limit_mb:g} MB are free and no model there may go: {users(name, view)}"
        for name in devices
    )


def users(device: str, view: View) -> str:
    """What uses a device, and why it cannot go."""
    there = [w for w in view.workers if w.device == device and w.mb > 0]
    found = [f"{w.name} {w.mb:g} MB ({w.model.config.priority.name}, {w.reasons()})" for w in there]
    if there and all(w.held for w in there):
        found[0] = f"all pinned or leased: {found[0]}"
    space = view.spaces[device]
    if unreturned := view.unreturned_mb(device):
        found.append(f"{unreturned:g} MB of ended processes have not come back")
    if space.limit_mb < space.budget_mb:
        found.append(f"other programs leave {space.limit_mb:g} of the budget's {space.budget_mb:g} MB")
    return "; ".join(found)
