"""What has to hold of the scheduler between any two events, as far as its state alone shows it. Reads, never changes.

The invariants of `docs/design.md`, and that the books agree with each other: what is charged and what runs, who waits
and where, who holds what, which timers there are. `faults` says in words what does not hold; a state so broken that it
cannot even be read is a fault, too. The tests ask after each event, and so does a broker that runs with `--debug`.

What takes more than one state to see (an answer given twice, a victim that need not have gone) is checked by the tests,
from the actions.

Pure, like all of the scheduler.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from broker.scheduler import batches
from broker.scheduler.capacity.ledger import EPSILON_MB
from broker.scheduler.events import Kind, State
from broker.scheduler.residency import MOST_MB, Request, Residency
from broker.scheduler.timers import Due

if TYPE_CHECKING:
    from broker.scheduler.queue import Queue
    from broker.scheduler.scheduler import Scheduler

NO_PROCESS = (State.UNLOADED, State.FAILED)
ANSWERING = (State.LOADED, State.DRAINING)
FIGURES = (
    "mb", "service_s", "least_service_s", "load_seconds", "last_used", "started_at", "dispatched_at", "loaded_at",
)  # fmt: skip
AWAY = (*NO_PROCESS, State.EVICTING)  # where requests that wait make the model wanted


class Unsound(AssertionError):
    """The scheduler's state contradicts itself. `wrong`: what does not hold, a line each."""

    def __init__(self, wrong: list[str]) -> None:
        super().__init__("; ".join(wrong))
        self.wrong = wrong


def faults(s: Scheduler) -> list[str]:
    """What does not hold, in words; empty when all is well. It takes time in proportion to all that is there."""
    wrong: list[str] = []
    for check in CHECKS:
        try:
            wrong += check(s)
        except Exception as e:
            wrong.append(f"{check.__name__.strip('_')} cannot be checked: {type(e).__name__}: {e}")
    return wrong


def _all(s: Scheduler) -> Iterator[Residency]:
    yield from s.models.values()
    yield from s.further.values()


def _differ(what: str, one: Iterable[object], other: Iterable[object]) -> Iterator[str]:
    one, other = set(one), set(other)
    if one != other:
        yield f"{what}: {sorted(map(str, one - other))} against {sorted(map(str, other - one))}"


# ---------------------------------------------------------------- memory


def _ledger(s: Scheduler) -> Iterator[str]:
    charges = s.ledger.charges()
    for worker, charge in s.ledger._charges.items():
        if worker != charge.worker:
            yield f"the charge of worker {charge.worker} stands under {worker}"
    for device, d in s.ledger.devices.items():
        total = sum(c.mb for c in charges if c.device == device)
        if not abs(s.ledger.used_mb(device) - total) <= EPSILON_MB:
            yield f"{device}: {s.ledger.used_mb(device)} MB are said to be charged, the charges add up to {total}"
        if not (d.budget_mb >= 0 and s.ledger.limit_mb(device) >= 0):
            yield f"{device}: a budget of {d.budget_mb} MB, {s.ledger.limit_mb(device)} may be charged"
    for charge in charges:
        if charge.device not in s.ledger.devices or not 0 <= charge.mb < math.inf:
            yield f"worker {charge.worker} is charged {charge.mb} MB on {charge.device!r}"


def _charged_once(s: Scheduler) -> Iterator[str]:
    """A living worker is charged where it is, and what it is said to take."""
    for worker, model in s._workers.items():
        charge = s.ledger.of(worker)
        if charge is None:
            yield f"{model.name}: worker {worker} lives and is not charged"
        elif (charge.device, charge.mb, charge.model.partition("#")[0]) != (model.device, model.mb, model.config.name):
            yield f"{model.name}: {model.mb} MB on {model.device} by its own record, charged {charge}"


def _overdrawn(s: Scheduler) -> Iterator[str]:
    """Where more is charged than may be, with what is coming back, that is known; and nothing idle is left there."""
    if s.stopping or s._look_at < math.inf:  # a look is to come
        return
    for device in s.ledger.devices:
        short = s._short_mb(device)
        if (short > EPSILON_MB) != (device in s._overdrawn):
            yield f"{device}: charged {short} MB too much; overdrawn: {device in s._overdrawn}"
        if short > EPSILON_MB:
            for model in s._workers.values():
                if model.device == device and model.mb > 0 and _may_go(model):
                    yield f"{device}: charged {short} MB too much, and {model.name} is idle there"
    yield from (f"there is no device {name!r} to be overdrawn" for name in s._overdrawn - set(s.ledger.devices))


def _may_go(model: Residency) -> bool:
    return model.state is State.LOADED and not (model.referenced or model.queue.live)


def _loads(s: Scheduler) -> Iterator[str]:
    """No more loads at once than may be, nor two of one model."""
    loading = [m for m in _all(s) if m.state is State.LOADING]
    for device, count in Counter(m.device for m in loading).items():
        since = max(m.started_at for m in loading if m.device == device)
        if count > s.config.concurrent_loads and since > s._reconfigured_at:
            yield f"{device}: {count} loads at once, concurrent_loads = {s.config.concurrent_loads}"
    for name, count in Counter(m.first.name for m in loading).items():
        if count > 1:
            yield f"{name}: {count} of its workers load at once"


# ---------------------------------------------------------------- models and their processes


def _records(s: Scheduler) -> Iterator[str]:
    yield from _differ("numbers of models", s._numbered.items(), ((m.number, m) for m in _all(s)))
    for name, model in s.models.items():
        if (model.name, model.config.name, model.first) != (name, name, model):
            yield f"{model.name}: stands under {name!r}, its first is {model.first.name}"
        for other in model.others:
            if s.further.get(other.name) is not other:
                yield f"{name}: its further worker {other.name} is not known"
        devices = Counter(one.device for one in (model, *model.others) if one.worker)
        yield from (f"{name}: {count} workers on {device}" for device, count in devices.items() if count > 1)
        kept = [m for m in (model, *model.others) if m.state in (State.LOADING, State.LOADED)]
        if sum(not m.unload_when_loaded for m in kept) > model.config.max_instances:
            yield f"{name}: {len(kept)} workers, max_instances = {model.config.max_instances}"
    for name, other in s.further.items():
        if other.name != name or other not in other.first.others or s.models.get(other.first.name) is not other.first:
            yield f"{other.name}: a further worker of {other.first.name}, which does not have it"
        if other.leases or other.pinned or other.waiting or other.unloads or other.short or other.claim:
            yield f"{name}: holds what is its model's"
        serving = other.state is State.LOADED and not other.unload_when_loaded
        if serving and other.first.state is not State.LOADED:
            yield f"{name}: is loaded, and its first is {other.first.state.value}"


def _workers(s: Scheduler) -> Iterator[str]:
    known = {m.worker: m for m in _all(s) if m.worker}
    yield from _differ(
        "living workers", ((w, m.name) for w, m in s._workers.items()), ((w, m.name) for w, m in known.items())
    )
    moving = {w: m for w, m in s._workers.items() if m.state in (State.LOADING, State.EVICTING)}
    yield from _differ(
        "loading or going", ((w, m.name) for w, m in s._moving.items()), ((w, m.name) for w, m in moving.items())
    )
    for worker, model in s._workers.items():
        if known.get(worker) is not model:
            yield f"worker {worker} is said to be {model.name}'s, whose worker is {model.worker}"
    for model in _all(s):
        if (model.worker == 0) != (model.state in NO_PROCESS):
            yield f"{model.name}: {model.state.value} with worker {model.worker}"
        if model.worker and model.device not in s.ledger.devices:
            yield f"{model.name}: on {model.device!r}, which is no device"


def _states(s: Scheduler) -> Iterator[str]:
    """What a state rules out."""
    for model in _all(s):
        where = f"{model.name} ({model.state.value})"
        if model.state is State.DRAINING and (model.leases or model.pinned):
            yield f"{where}: {model.reasons()}"
        if model.state is State.DRAINING and not (model.inflight or model.queue.live or s._drained):
            yield f"{where}: has nothing left to do, and does not go"
        if model.later.live and model.state not in (State.DRAINING, State.EVICTING):
            yield f"{where}: {model.later.live} wait for its next life"
        if model.unloads and model.state in (*NO_PROCESS, State.LOADED) and not model.others:
            yield f"{where}: requests to unload it are not answered"
        if model.unloads and model.state is State.LOADING and not model.unload_when_loaded:
            yield f"{where}: is to be unloaded, and does not know it"
        if model.short and model.state is not State.LOADED:
            yield f"{where}: waits for more memory"
        if model.unasked and (model.pinned or model.waiting or not model.worker):
            yield f"{where}: is held for a guess"
        if model.max_batch < 1 or model.batch_limit < 0:
            yield f"{where}: batches of {model.max_batch}, at most {model.batch_limit}"
        if s._drained and (model.leases or model.waiting or model.unloads):
            yield f"{where}: {model.reasons()} after the end"
    if s._stopped and s._workers:
        yield f"stopped, and {len(s._workers)} workers live"


def _numbers(s: Scheduler) -> Iterator[str]:
    """No figure is NaN or infinite that something is reckoned with."""
    for model in _all(s):
        for key in FIGURES:
            value = getattr(model, key)
            if not -math.inf < value < math.inf:
                yield f"{model.name}: {key} is {value}"
        if model.mb < 0 or model.service_s < 0 or math.isnan(model.retry_at + model.least_load_s):
            yield f"{model.name}: {model.mb} MB, {model.service_s} s a request, again from {model.retry_at}"
        for device, peak in model.peaks.items():
            if not 0 <= peak.mb <= MOST_MB:
                yield f"{model.name}: its peak on {device} is {peak.mb} MB"


# ---------------------------------------------------------------- requests


def _requests(s: Scheduler) -> Iterator[str]:
    """What was accepted and not answered is in exactly one place, and each place knows it."""
    placed: list[Request] = []
    for model in _all(s):
        for queue in (model.queue, model.later):
            waiting = queue.all()
            placed += waiting
            yield from _queue(model, queue, waiting)
            if queue is model.queue and model.state is State.LOADED:
                yield from (f"{model.name}: {r.kind.value} {r.id} waits" for r in waiting if r.kind is not Kind.INFER)
        placed += model.unloads
        for request in model.unloads:
            if request.kind is not Kind.UNLOAD or request.queue is not None or request.running:
                yield f"{model.name}: request {request.id} among those to unload it"
        at_worker = [*model.inflight, *model.ahead]
        placed += [r for r in at_worker if r.running]
        if at_worker and model.state not in (*ANSWERING, State.EVICTING):
            yield f"{model.name} ({model.state.value}): {len(at_worker)} requests at its worker"
        if model.ahead and not model.inflight:
            yield f"{model.name}: a batch lies ahead of nothing"
        if len(at_worker) > 1 and any(r.alone for r in at_worker):
            yield f"{model.name}: {[r.id for r in at_worker if r.alone]} do not run alone"
        for r in at_worker:
            if (
                r.queue is not None
                or r.kind is not Kind.INFER
                or r.model is not model.first
                or r.worker != model.worker
            ):
                yield f"{model.name}: request {r.id} of {r.model.name} at worker {model.worker}, sent to {r.worker}"
            if not r.running and r.id in s.requests:
                yield f"{model.name}: request {r.id} is at its worker, and does not know it"
        if any(r.queue is not model.queue or not (r.starved and r.alone) for r in model.short):
            yield f"{model.name}: {[r.id for r in model.short]} wait for memory, and not in its queue"
    counts = Counter(r.id for r in placed)
    yield from (f"request {number} is in {count} places" for number, count in counts.items() if count > 1)
    yield from _differ("requests on the books and in their places", s.requests, counts)
    for number, r in s.requests.items():
        if r.id != number or r.outcome is not None or s.models.get(r.model.name) is not r.model:
            yield f"request {r.id} of {r.model.name} stands under {number}, answered {r.outcome}"
        if math.isnan(r.deadline):
            yield f"request {number} has no deadline"
    running = sum(len(m.inflight) + len(m.ahead) for m in _all(s))
    if s._running != running:
        yield f"{s._running} requests are said to run, {running} do"


def _queue(model: Residency, queue: Queue[Request], waiting: list[Request]) -> Iterator[str]:
    if len(waiting) != queue.live:
        yield f"{model.name}: {queue.live} are said to wait, {len(waiting)} do"
    size = sum(len(line) for ring in queue._rings for line in ring.values())
    if queue._size != size:
        yield f"{model.name}: its queue is said to hold {queue._size} entries, {size} are there"
    for r in waiting:
        if r.running or r.model is not model or r.kind is Kind.UNLOAD:
            yield f"{model.name}: request {r.id} ({r.kind.value}) of {r.model.name} waits in its queue"


def _served(s: Scheduler) -> Iterator[str]:
    """Where a worker has a place, no request waits that need not."""
    for model in s._workers.values():
        first = model.first
        head = first.queue.head() if model.state is State.LOADED and first.queue.live else None
        if head is None or model.yielding or not s._takes(model, head):
            continue
        in_company = -math.inf < first.leaves_at <= batches.leaves_at(first) and not s.stopping
        if not in_company:
            yield f"{model.name}: has a place, and request {head.id} waits"


# ---------------------------------------------------------------- who waits for room


def _wanted(s: Scheduler) -> Iterator[str]:
    for name, model in s.models.items():
        wanted = bool(model.short) or (model.waiting > 0 and model.state in AWAY)
        if wanted != (s._wanted.get(name) is model):
            yield f"{name} ({model.state.value}): {model.waiting} wait, and it is {'not ' * wanted}wanted"
        if model.claim and (not wanted or model.claim_on not in s.devices_for(model)):
            yield f"{name}: has a claim on {model.claim_on!r}, and is {'not ' * (not wanted)}wanted"
        if model.blocked and not wanted:
            yield f"{name}: is not wanted, and waits: {model.blocked}"
    yield from (f"{name} is wanted, and not registered" for name in s._wanted if name not in s.models)
    claims = Counter(m.claim for m in s.models.values() if m.claim)
    yield from (f"{count} models have claim {claim}" for claim, count in claims.items() if count > 1)


def _yielding(s: Scheduler) -> Iterator[str]:
    known = {m.name: m for m in _all(s)}
    for name in s._yielding:
        if name not in known:
            yield f"{name} yields, and is not known"
        elif known[name].state is State.LOADED and not known[name].yielding:
            yield f"{name} yields, and does not know it"
    for name, model in known.items():
        if model.state is State.LOADED and model.yielding and name not in s._yielding:
            yield f"{name} takes no work, and for no model's sake"
    if s._yielding and not s._contested and not s.stopping:
        yield f"{sorted(s._yielding)} yield, and no model waits for their room"


# ---------------------------------------------------------------- clients


def _clients(s: Scheduler) -> Iterator[str]:
    by_session: dict[bytes, set[int]] = {}
    for number, r in s.requests.items():
        by_session.setdefault(r.session, set()).add(number)
    for key, session in s.sessions.items():
        if not session.requests and not session.leases:
            yield f"client {key.hex()} has nothing, and is kept"
        yield from _differ(f"requests of client {key.hex()}", session.requests, by_session.get(key, ()))
    yield from (f"client {key.hex()} has requests, and is not known" for key in by_session if key not in s.sessions)
    held = {(lease, key, m.name) for m in s.models.values() for lease, key in m.leases.items()}
    yield from _differ(
        "leases and their models", ((n, m.name) for n, m in s._leases.items()), ((n, m) for n, _, m in held)
    )
    theirs = {(lease, key) for key, session in s.sessions.items() for lease in session.leases}
    yield from _differ("leases and their clients", ((n, key) for n, key, _ in held), theirs)


# ---------------------------------------------------------------- time


def _timers(s: Scheduler) -> Iterator[str]:
    """Whatever is to happen some time has its entry."""
    heap = s.timers._heap
    yield from (
        f"timers: entry {i} is due before its parent" for i in range(1, len(heap)) if heap[i] < heap[(i - 1) // 2]
    )
    entries, watched = set(heap), {key for _, due, key in heap if due == Due.WATCH}
    for number, r in s.requests.items():
        if (r.deadline, Due.DEADLINE, number) not in entries:
            yield f"request {number} has no timer"
    for model in _all(s):
        at_work = model.state is State.LOADING or (model.state in ANSWERING and bool(model.inflight))
        if at_work and (model.watched != model.worker or model.worker not in watched):
            yield f"{model.name} ({model.state.value}): worker {model.worker} is not watched"
        if model.idle_at < math.inf and (model.idle_at, Due.IDLE, model.number) not in entries:
            yield f"{model.name}: is to be looked at when idle, and has no timer"
        if _may_go(model) and not model.first.queue.live and model.idle_at > model.last_used + s._idle_limit(model):
            yield f"{model.name}: is idle, and no timer will end it"
        if model.leaves_at < math.inf and (model.leaves_at, Due.BATCH, model.number) not in entries:
            yield f"{model.name}: its next batch waits for company, and has no timer"
    if s._look_at < math.inf and (s._look_at, Due.LOOK, 0) not in entries:
        yield "a look for room is to come, and has no timer"
    if s.stopping and not s._drained and (s._grace_ends, Due.GRACE, 0) not in entries:
        yield "the grace of the end has no timer"


CHECKS: tuple[Callable[[Scheduler], Iterable[str]], ...] = (
    _ledger,
    _charged_once,
    _overdrawn,
    _loads,
    _records,
    _workers,
    _states,
    _numbers,
    _requests,
    _served,
    _wanted,
    _yielding,
    _clients,
    _timers,
)
