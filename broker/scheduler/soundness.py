"""What has to hold of the scheduler between any two events, as far as its state alone shows it. Reads, never changes.

The invariants of `docs/design.md`, and that the parts of the state agree with each other: what is charged and what
runs, what waits and where, what is held by which client, which timers there are. `faults` says in words what does not
hold; a state so broken that it cannot even be read is a fault, too. The tests ask after each event, and so does a
broker that runs with `--debug`.

What takes more than one state to see (an answer given twice, a victim that need not have gone) is checked by the tests,
from the actions.

It takes 0.3 ms with 20 models and 0.6 ms with 200 requests queued: too much for every event in service, hence
`--debug`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from broker.scheduler.capacity import overrun
from broker.scheduler.capacity.demand import Want
from broker.scheduler.capacity.ledger import EPSILON_MB
from broker.scheduler.events import Kind
from broker.scheduler.parts import dispatch
from broker.scheduler.registry import Lifetime, Registry
from broker.scheduler.state import MOST_MB, Due, Guess, Model, Phase, Request, State, Worker
from broker.scheduler.state.states import STATES

FIGURES = (
    "mb", "service_s", "least_service_s", "load_seconds", "last_used", "started_at", "dispatched_at", "loaded_at",
)  # fmt: skip
MOVING = (Phase.LOADING, Phase.CONDEMNED, Phase.ENDING)


class Unsound(AssertionError):
    """The scheduler's state contradicts itself. `wrong`: what does not hold, a line each."""

    def __init__(self, wrong: list[str]) -> None:
        super().__init__("; ".join(wrong))
        self.wrong = wrong


def faults(r: Registry, grace_ends: float = math.inf) -> list[str]:
    """What does not hold, in words; empty when all is well. It takes time in proportion to all that is there."""
    wrong: list[str] = []
    for check in CHECKS:
        try:
            wrong += check(r)
        except Exception as e:
            wrong.append(f"{check.__name__.strip('_')} cannot be checked: {type(e).__name__}: {e}")
    if r.stage is Lifetime.STOPPING and (grace_ends, Due.GRACE, 0) not in set(r.timers):
        wrong.append("the grace of the end has no timer")
    return wrong


def _differ(what: str, one: Iterable[object], other: Iterable[object]) -> Iterator[str]:
    one, other = set(one), set(other)
    if one != other:
        yield f"{what}: {sorted(map(str, one - other))} against {sorted(map(str, other - one))}"


# ---------------------------------------------------------------- memory


def _ledger(r: Registry) -> Iterator[str]:
    yield from r.ledger.faults()


def _charged_once(r: Registry) -> Iterator[str]:
    """A living worker is charged where it is, and what it is said to take."""
    for number, worker in r.workers.items():
        charge = r.ledger.of(number)
        if charge is None:
            yield f"{worker.name}: worker {number} lives and is not charged"
        elif (charge.device, charge.mb, charge.model) != (worker.device, worker.mb, worker.model.name):
            yield f"{worker.name}: {worker.mb} MB on {worker.device} by its own record, charged {charge}"


def _overdrawn(r: Registry) -> Iterator[str]:
    """Where more is charged than may be, with what is coming back, that is known; and no worker there is idle."""
    if r.stopping or r.look_at < math.inf:  # a look is to come
        return
    view = r.view()
    for device in r.ledger.devices:
        short = overrun.short_mb(device, view)
        if (short > EPSILON_MB) != (device in r.overdrawn):
            yield f"{device}: charged {short} MB too much; overdrawn: {device in r.overdrawn}"
        if short > EPSILON_MB:
            for worker in r.workers.values():
                if worker.device == device and worker.mb > 0 and worker.evictable:
                    yield f"{device}: charged {short} MB too much, and {worker.name} is idle there"
    yield from (f"there is no device {name!r} to be overdrawn" for name in r.overdrawn - set(r.ledger.devices))


def _loads(r: Registry) -> Iterator[str]:
    """No more loads at once than may be, nor two of one model."""
    loading = [w for w in r.workers.values() if w.state is State.LOADING]
    for device, count in Counter(w.device for w in loading).items():
        since = max(w.started_at for w in loading if w.device == device)
        if count > r.config.concurrent_loads and since > r.reconfigured_at:
            yield f"{device}: {count} loads at once, concurrent_loads = {r.config.concurrent_loads}"
    for name, count in Counter(w.model.name for w in loading).items():
        if count > 1:
            yield f"{name}: {count} of its workers load at once"


# ---------------------------------------------------------------- models and their processes


def _models(r: Registry) -> Iterator[str]:
    for name, model in r.models.items():
        if (model.name, model.config.name) != (name, name):
            yield f"{model.name}: stands under {name!r}, its settings are {model.config.name}'s"
        if model.workers and model.primary not in model.workers:
            yield f"{name}: its primary worker {model.primary.number} has no process, others have"
        if not model.workers and model.primary.phase is not Phase.GONE:
            yield f"{name}: {model.primary.phase.value}, without a process"
        for key, count in Counter(w.device for w in model.workers).items():
            if count > 1:
                yield f"{name}: {count} workers on {key}"
        names = Counter(w.name for w in model.workers)
        if any(count > 1 for count in names.values()) or (model.workers and model.primary.name != name):
            yield f"{name}: its workers are named {sorted(names)}"
        serving = [w for w in model.workers if w.phase in (Phase.LOADING, Phase.SERVING, Phase.YIELDING)]
        if len(serving) > model.config.max_instances:
            yield f"{name}: {len(serving)} workers, max_instances = {model.config.max_instances}"
        if model.primary.state is not State.LOADED and any(w.state is State.LOADED for w in serving):
            yield f"{name}: a worker is loaded, and its primary one is {model.primary.state.value}"
        for extra in model.extras:
            if extra.short:
                yield f"{extra.name}: holds what is the primary worker's"


def _workers(r: Registry) -> Iterator[str]:
    known = {w.number: w for m in r.models.values() for w in m.workers}
    yield from _differ(
        "living workers", ((n, id(w)) for n, w in r.workers.items()), ((n, id(w)) for n, w in known.items())
    )
    moving = [w.number for w in r.workers.values() if w.phase in MOVING]
    yield from _differ("loading or ending", r.moving, moving)
    yielding = [w.number for w in r.workers.values() if w.phase is Phase.YIELDING]
    yield from _differ("yielding", r.yielding, yielding)
    if r.yielding and not r.contested and not r.stopping:
        yield f"{yielding} yield, and no model waits for their room"
    for number, worker in r.workers.items():
        if worker.number != number or worker.phase is Phase.GONE or STATES[worker.phase] is not worker.state:
            yield f"{worker.name}: worker {worker.number} under {number}, {worker.phase.value}, {worker.state.value}"
        if worker.device not in r.ledger.devices:
            yield f"{worker.name}: on {worker.device!r}, which is no device"


def _states(r: Registry) -> Iterator[str]:
    """What a state rules out."""
    for model in r.models.values():
        where, primary = f"{model.name} ({model.state.value})", model.primary
        if primary.phase is Phase.DRAINING and primary.held:
            yield f"{where}: {primary.reasons()}"
        if primary.phase is Phase.DRAINING and primary.idle and r.stage <= Lifetime.STOPPING:
            yield f"{where}: has nothing left to do, and does not end"
        if model.later.live and model.state not in (State.DRAINING, State.EVICTING):
            yield f"{where}: {model.later.live} wait for its next process"
        if model.unloads and (not model.workers or (primary.state is State.LOADED and not model.extras)):
            yield f"{where}: requests to unload it are not answered"
        if model.unloads and primary.phase is Phase.LOADING:
            yield f"{where}: is to be unloaded, and does not know it"
        if primary.short and primary.state is not State.LOADED:
            yield f"{where}: waits for more memory"
        if model.guess is Guess.OPEN and (model.pinned or model.waiting or not model.workers):
            yield f"{where}: is held for a guess"
        if r.stage >= Lifetime.KILLED and (model.leases or model.waiting or model.unloads):
            yield f"{where}: {primary.reasons()} after the end"
    if r.stage is Lifetime.STOPPED and r.workers:
        yield f"stopped, and {len(r.workers)} workers live"


def _numbers(r: Registry) -> Iterator[str]:
    """No figure is NaN or infinite that something is reckoned with."""
    for model in r.models.values():
        for worker in (model.primary, *model.extras):
            for key in FIGURES:
                value = getattr(worker, key)
                if not -math.inf < value < math.inf:
                    yield f"{worker.name}: {key} is {value}"
            if worker.mb < 0 or worker.service_s < 0 or worker.max_batch < 1 or worker.batch_limit.most < 0:
                yield f"{worker.name}: {worker.mb} MB, {worker.service_s} s a request, {worker.max_batch} at once"
        if math.isnan(model.failures.retry_at + model.least_load_s):
            yield f"{model.name}: its next load is due at {model.failures.retry_at}"
        for device, peak in model.peaks.items():
            if not 0 <= peak.mb <= MOST_MB:
                yield f"{model.name}: its peak on {device} is {peak.mb} MB"


# ---------------------------------------------------------------- requests


def _requests(r: Registry) -> Iterator[str]:
    """What was accepted and not answered is in exactly one place, and each place knows it."""
    placed: list[Request] = []
    for model in r.models.values():
        yield from _waiting(model)
        placed += [*model.queue.all(), *model.later.all(), *model.unloads]
        for worker in model.workers:
            yield from _at_worker(worker, r)
            placed += [q for q in (*worker.inflight, *worker.ahead) if q.running]
    counts = Counter(q.id for q in placed)
    yield from (f"request {number} is in {count} places" for number, count in counts.items() if count > 1)
    yield from _differ("requests that are accepted, and in their places", r.requests, counts)
    for number, q in r.requests.items():
        if q.id != number or q.outcome is not None or r.models.get(q.model.name) is not q.model:
            yield f"request {q.id} of {q.model.name} stands under {number}, answered {q.outcome}"
        if math.isnan(q.deadline):
            yield f"request {number} has no deadline"
    running = sum(len(w.inflight) + len(w.ahead) for w in r.workers.values())
    if r.running != running:
        yield f"{r.running} requests are said to run, {running} do"


def _waiting(model: Model) -> Iterator[str]:
    for queue in (model.queue, model.later):
        yield from (f"{model.name}: {fault}" for fault in queue.faults())
        for q in queue.all():
            if q.running or q.model is not model or q.kind is Kind.UNLOAD or q.queue is not queue:
                yield f"{model.name}: request {q.id} ({q.kind.value}) of {q.model.name} waits in its queue"
            if queue is model.queue and model.state is State.LOADED and q.kind is not Kind.INFER:
                yield f"{model.name}: {q.kind.value} {q.id} waits"
    for q in model.unloads:
        if q.kind is not Kind.UNLOAD or q.queue is not None or q.running:
            yield f"{model.name}: request {q.id} among those to unload it"
    if any(q.queue is not model.queue or not (q.starved and q.alone) for q in model.primary.short):
        yield f"{model.name}: {[q.id for q in model.primary.short]} wait for memory, and not in its queue"


def _at_worker(worker: Worker, r: Registry) -> Iterator[str]:
    at_worker = [*worker.inflight, *worker.ahead]
    if at_worker and worker.state is State.LOADING:
        yield f"{worker.name} ({worker.state.value}): {len(at_worker)} requests at its worker"
    if worker.ahead and not worker.inflight:
        yield f"{worker.name}: a batch lies ahead of nothing"
    if len(at_worker) > 1 and any(q.alone for q in at_worker):
        yield f"{worker.name}: {[q.id for q in at_worker if q.alone]} do not run alone"
    for q in at_worker:
        if q.queue is not None or q.kind is not Kind.INFER or q.model is not worker.model or q.worker != worker.number:
            yield f"{worker.name}: request {q.id} of {q.model.name} at worker {worker.number}, sent to {q.worker}"
        if not q.running and q.id in r.requests:
            yield f"{worker.name}: request {q.id} is at its worker, and does not know it"


def _served(r: Registry) -> Iterator[str]:
    """Where a worker has a place, no request waits that need not."""
    for model in r.models.values():
        head = model.queue.head() if model.queue.live else None
        if head is None or dispatch.place(model, head) is None:
            continue
        in_company = -math.inf < model.primary.leaves_at <= dispatch.leaves_at(model) and not r.stopping
        if not in_company:
            yield f"{model.name}: has a place, and request {head.id} waits"


# ---------------------------------------------------------------- what waits for room


def _demands(r: Registry) -> Iterator[str]:
    for name, model in r.models.items():
        demand = r.demands.get(name)
        want = Want.GROW if model.primary.short else Want.LOAD if model.waiting and not model.primary.alive else None
        if want is not (demand.want if demand is not None else None):
            wants = want.value if want else "nothing"
            yield f"{name} ({model.state.value}): {model.waiting} wait, wants {wants}, {demand and demand.want.value}"
        if demand is not None and (demand.model is not model):
            yield f"{name}: its demand is for {demand.model.name}"
        if demand is not None and demand.claim and demand.claim_on not in model.allowed(r.ledger.devices):
            yield f"{name}: has a claim on {demand.claim_on!r}"
    yield from (f"{name} demands room, and is not registered" for name in r.demands if name not in r.models)
    claims = Counter(d.claim for d in r.demands.values() if d.claim)
    yield from (f"{count} models have claim {claim}" for claim, count in claims.items() if count > 1)
    if r.touched or (r.look and not r.stopping):
        yield f"it has not settled: {[m.name for m in r.touched]}"


# ---------------------------------------------------------------- clients


def _clients(r: Registry) -> Iterator[str]:
    by_session: dict[bytes, set[int]] = {}
    for number, q in r.requests.items():
        by_session.setdefault(q.session, set()).add(number)
    for key, session in r.sessions.items():
        if not session.requests and not session.leases:
            yield f"client {key.hex()} has nothing, and is kept"
        yield from _differ(f"requests of client {key.hex()}", session.requests, by_session.get(key, ()))
    yield from (f"client {key.hex()} has requests, and is not known" for key in by_session if key not in r.sessions)
    held = {(lease, key, m.name) for m in r.models.values() for lease, key in m.leases.items()}
    yield from _differ(
        "leases and their models", ((n, m.name) for n, m in r.leases.items()), ((n, m) for n, _, m in held)
    )
    theirs = {(lease, key) for key, session in r.sessions.items() for lease in session.leases}
    yield from _differ("leases and their clients", ((n, key) for n, key, _ in held), theirs)


# ---------------------------------------------------------------- time


def _timers(r: Registry) -> Iterator[str]:
    """What is to happen some time has its entry."""
    yield from r.timers.faults()
    entries = set(r.timers)
    for number, q in r.requests.items():
        if (q.deadline, Due.DEADLINE, number) not in entries:
            yield f"request {number} has no timer"
    for worker in r.workers.values():
        for due, when in ((Due.WATCH, worker.watch_at), (Due.IDLE, worker.idle_at), (Due.BATCH, worker.leaves_at)):
            if when < math.inf and (when, due, worker.number) not in entries:
                yield f"{worker.name}: has no timer {due.name}"
        at_work = worker.state is State.LOADING or (worker.answers and bool(worker.inflight))
        if at_work and worker.watch_at == math.inf:
            yield f"{worker.name} ({worker.state.value}): worker {worker.number} is not watched"
        if worker.evictable and not worker.model.queue.live:
            limit = worker.last_used + r.idle_limit(worker.model)
            if worker.idle_at > limit:
                yield f"{worker.name}: is idle, and no timer will end it"
    if r.look_at < math.inf and (r.look_at, Due.LOOK, 0) not in entries:
        yield "a look for room is to come, and has no timer"


CHECKS: tuple[Callable[[Registry], Iterable[str]], ...] = (
    _ledger,
    _charged_once,
    _overdrawn,
    _loads,
    _models,
    _workers,
    _states,
    _numbers,
    _requests,
    _served,
    _demands,
    _clients,
    _timers,
)
