"""Random interleavings of everything that can happen, from every side, at any time.

The world checks the invariants after each event; here is only what happens. See `world.py`.
"""

from __future__ import annotations

import math
import random

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from broker.scheduler.events import (
    Deliver,
    Finished,
    Kind,
    MemoryBack,
    WorkerDone,
    WorkerExited,
    WorkerLoadFailed,
    WorkerReady,
)
from broker.scheduler.state import Guess, State
from tests.scheduler.world import World, model
from zoo.config.schema import ModelPriority

CLIENTS = st.sampled_from([b"c1", b"c2", b"c3"])
TIMEOUTS = st.sampled_from([500.0, 500.0, 500.0, 500.0, 20.0, 3.0, 0.5, 0.0])
BUDGETS = [(1000,), (700,), (700, 700), (1000, 400)]
PICK = st.integers(0, 1000)
SHORT = st.sampled_from([0.0, 0.0, 10.0, 100.0, 300.0, 900.0])
KINDS = ["remove", "back", "back", "disable", "enable", "size", "pin", "idle", "options", "several", "several", "place"]
SIZES = st.sampled_from([300, 400, 200, 500, 100, 600, 300, 400, 0, 1300])


class SchedulerMachine(RuleBasedStateMachine):
    world: World

    @initialize(
        sizes=st.lists(st.tuples(SIZES, st.sampled_from(list(ModelPriority))), min_size=3, max_size=6),
        budgets=st.sampled_from([(1000,), (512,), (700, 700), (1000, 300), (700, 500, 500)]),
        patience=st.sampled_from([0.2, 0.0, 1.0]),
        loads=st.sampled_from([1, 1, 2]),
        max_queue=st.sampled_from([256, 5, 2]),
        per_client=st.sampled_from([128, 3]),
        max_batch=st.sampled_from([1, 2, 5]),
        delay_ms=st.sampled_from([0.0, 0.0, 20.0, 700.0]),
        odd=st.booleans(),
        measured=st.booleans(),
        eviction=st.sampled_from(["priority", "adaptive"]),
        prefetch=st.booleans(),
        instances=st.integers(1, 3),
    )
    def begin(
        self,
        sizes,
        budgets,
        patience,
        loads,
        max_queue,
        per_client,
        max_batch,
        delay_ms,
        odd,
        measured,
        eviction,
        instances,
        prefetch,
    ) -> None:
        models = [model(f"m{i}", mb, p.name) for i, (mb, p) in enumerate(sizes)]
        for config in models[::2]:
            config.max_instances = instances
        if odd:
            models[0].idle_seconds = 2.0
            models[0].dispatch_timeout = 0.5
            models[1].pinned = True
        for config in models[::2]:
            config.max_delay_ms = delay_ms
        self.world = World(
            models, *map(float, budgets), max_batch=max_batch, patience_seconds=patience, concurrent_loads=loads,
            max_queue=max_queue, max_queue_per_client=per_client, idle_seconds=30.0, load_timeout=10.0,
            dispatch_timeout=5.0, footprint="measured" if measured else "declared", reserve_mb=30.0, eviction=eviction,
            prefetch=prefetch,
        )  # fmt: skip
        self.names = [m.name for m in models]

    def name(self, pick: int) -> str:
        return self.names[pick % len(self.names)]

    def pick(self, pick: int, fit):
        """One of the processes that `fit`, or None."""
        fitting = [p for p in self.world.processes.values() if fit(p)]
        return fitting[pick % len(fitting)] if fitting else None

    # clients

    @rule(pick=PICK, client=CLIENTS, timeout=TIMEOUTS, priority=st.integers(0, 3), count=st.integers(1, 4))
    def infer(self, pick, client, timeout, priority, count) -> None:
        for _ in range(count):
            self.world.ask(self.name(pick), client=client, timeout=timeout, priority=priority)

    @rule(picks=st.lists(PICK, min_size=1, max_size=4))
    def infer_many(self, picks) -> None:
        for pick in picks:
            self.world.ask(self.name(pick))

    @rule(
        pick=PICK,
        client=CLIENTS,
        kind=st.sampled_from([Kind.LEASE, Kind.LEASE, Kind.PRELOAD]),
        timeout=TIMEOUTS,
        keep=st.sampled_from([None, None, 0.0, 1.0, 100.0]),
    )
    def hold(self, pick, client, kind, timeout, keep) -> None:
        self.world.ask(self.name(pick), kind, client=client, timeout=timeout, keep_alive=keep)

    @rule(pick=PICK, client=CLIENTS, timeout=TIMEOUTS)
    def unload(self, pick, client, timeout) -> None:
        self.world.unload(self.name(pick), client=client, timeout=timeout)

    @rule(pick=PICK, how=st.sampled_from(["unknown", "problem", "disabled"]))
    def ask_in_vain(self, pick, how) -> None:
        if how == "unknown":
            assert self.world.code(self.world.ask("m99")) in ("model_not_found", "broker_unreachable")
        elif how == "problem":
            self.world.ask(self.name(pick), problem="its weights are missing")
        else:
            self.reconfigure_models(pick, "disable")
            self.world.ask(self.name(pick))

    @precondition(lambda self: self.world.leases)
    @rule(pick=PICK, stranger=st.integers(0, 4))
    def release(self, pick, stranger) -> None:
        leases = sorted(self.world.leases)
        self.world.release(leases[pick % len(leases)], b"stranger" if stranger == 4 else None)

    @precondition(lambda self: self.world.s.registry.requests)
    @rule(pick=PICK)
    def withdraw(self, pick) -> None:
        open_ones = self.world.open_questions()
        self.world.withdraw(open_ones[pick % len(open_ones)])

    @precondition(lambda self: len(self.world.s.registry.requests) > 3 or self.world.leases)
    @rule(client=CLIENTS)
    def client_goes(self, client) -> None:
        self.world.close(client)

    @rule(pick=PICK, on=st.booleans())
    def pin(self, pick, on) -> None:
        self.world.pin(self.name(pick), on)

    @rule(seconds=st.sampled_from([0.0, 1.0, 10.0]))
    def cleanup(self, seconds) -> None:
        self.world.cleanup(seconds)

    # workers

    def work(self, pick: int) -> None:
        """Some process gets one step further."""
        if p := self.pick(pick, lambda p: not p.stuck and (p.loading or p.killed or p.exited or p.running)):
            self.world.step(p)

    @rule(picks=st.lists(PICK, min_size=1, max_size=6))
    def workers_work(self, picks) -> None:
        for pick in picks:
            self.work(pick)

    @rule(picks=st.lists(PICK, min_size=1, max_size=6), seconds=st.sampled_from([0.01, 0.2, 1.0]))
    def workers_work_while_time_passes(self, picks, seconds) -> None:
        for pick in picks:
            self.world.wait(seconds)
            self.work(pick)

    @precondition(lambda self: any(p.busy_loading for p in self.world.processes.values()))
    @rule(pick=PICK)
    def load_fails(self, pick) -> None:
        self.world.emit_load_failed(self.pick(pick, lambda p: p.busy_loading))

    @precondition(lambda self: self.world.s.registry.running)
    @rule(pick=PICK, error=st.sampled_from([("invalid_input", "boxes: NaN"), ("what", "?")]))
    def predict_raises(self, pick, error) -> None:
        self.world.emit_done(self.pick(pick, lambda p: p.running), error)

    @precondition(lambda self: any(p.busy_loading for p in self.world.processes.values()))
    @rule(pick=PICK, asked=SHORT, killed=st.booleans())
    def memory_runs_out_in_a_load(self, pick, asked, killed) -> None:
        p = self.pick(pick, lambda p: p.busy_loading)
        if killed:
            self.world.emit_exit(p, starved=True)
        else:
            self.world.emit_load_runs_out(p, p.true_mb, asked)

    @precondition(lambda self: self.world.s.registry.running)
    @rule(pick=PICK, asked=SHORT, how=st.sampled_from(["alone", "alone", "halved", "killed"]))
    def memory_runs_out_at_work(self, pick, asked, how) -> None:
        p = self.pick(pick, lambda p: p.running)
        if how == "killed":
            self.world.emit_exit(p, starved=True)
        elif how == "halved":
            self.world.emit_done(p, halved=True)
        else:
            self.world.emit_runs_out(p, p.true_mb, asked)

    @precondition(lambda self: self.world.s.registry.running)
    @rule(pick=PICK, says=st.booleans(), again=st.booleans())
    def crashes_while_running(self, pick, says, again) -> None:
        p = self.pick(pick, lambda p: p.running)
        if says:
            self.world.emit_said(p, bytes([pick % 3]))
        self.world.emit_exit(p, "signal 11")
        if again:
            self.world.emit_back(p)

    @precondition(lambda self: any(not p.exited for p in self.world.processes.values()))
    @rule(pick=PICK)
    def exits_at_any_time(self, pick) -> None:
        self.world.emit_exit(self.pick(pick, lambda p: not p.exited), "signal 9")

    @precondition(lambda self: any(p.exited for p in self.world.processes.values()))
    @rule(pick=PICK, stuck=st.booleans())
    def memory_comes_back_or_not(self, pick, stuck) -> None:
        p = self.pick(pick, lambda p: p.exited)
        if stuck and not p.stuck:
            self.world.emit_stuck(p)
        else:
            self.world.emit_back(p)

    @rule(pick=PICK, what=st.integers(0, 4))
    def words_from_the_dead(self, pick, what) -> None:
        """Late and repeated messages of workers change nothing."""
        p = self.pick(pick, lambda p: p.killed)
        number = p.worker if p and not p.running else 10_000 + pick
        late = [
            WorkerReady(number),
            WorkerLoadFailed(number, "load_failed", "late"),
            WorkerDone(number, [Finished(1)]),
            WorkerExited(10_000 + pick, "late"),
            MemoryBack(10_000 + pick),
        ]
        actions = self.world.emit(late[what])
        if not self.world.s.stopping:  # there, any event may be the first after the end of the grace
            assert not actions

    # meters

    @rule(pick=PICK, times=st.sampled_from([1.0, 0.1, 0.5, 0.99, 1.3, 2.0]))
    def a_process_is_measured(self, pick, times) -> None:
        """And has grown or shrunk since, or has never been what was declared."""
        if p := self.pick(pick, lambda p: not p.exited):
            p.true_mb = min(2000.0, p.true_mb * times)
            self.world.emit_measured(p)

    @rule(pick=PICK, mb=st.sampled_from([0.0, 0.0, 100.0, 700.0, 1500.0, 3000.0]))
    def other_programs_are_seen(self, pick, mb) -> None:
        devices = self.world.devices
        self.world.others_use(devices[pick % len(devices)].name, mb, 2000.0)

    @rule(pick=PICK, seconds=st.sampled_from([math.inf, 0.5, 3.0]))
    def a_device_cannot_be_read(self, pick, seconds) -> None:
        devices = self.world.devices
        self.world.cannot_read(devices[pick % len(devices)].name, seconds=seconds)

    @precondition(lambda self: self.world.unread)
    @rule(pick=PICK)
    def a_device_can_be_read_again(self, pick) -> None:
        unread = sorted(self.world.unread)
        self.world.can_read(unread[pick % len(unread)])

    # live changes

    def reconfigure_models(self, pick: int, how: str) -> None:
        name = self.name(pick)
        given = {n: msgspec.structs.replace(m.config) for n, m in self.world.s.models.items() if not m.removed}
        if how == "remove" and len(given) > 1:
            given.pop(name, None)
        elif how == "back":
            given.setdefault(name, model(name, 200))
        elif name in given:
            config = given[name]
            config.enabled = how != "disable"
            config.priority = ModelPriority(pick % 4)
            config.vram_mb = (0.0, 150.0, 450.0, config.vram_mb)[pick % 4] if how == "size" else config.vram_mb
            config.pinned = pick % 7 == 0 if how == "pin" else config.pinned
            config.idle_seconds = 1.0 if how == "idle" else None
            config.max_instances = 1 + pick % 3 if how == "several" else config.max_instances
            if how == "place":
                config.device = ["", *(d.name for d in self.world.devices)][pick % (1 + len(self.world.devices))]
        restart = {name} if how == "options" else set()
        if not self.world.s.stopping:
            self.world.reconfigure(list(given.values()), restart=restart)

    @rule(
        pick=PICK,
        how=st.sampled_from(KINDS),
    )
    def models_are_changed(self, pick, how) -> None:
        self.reconfigure_models(pick, how)

    @rule(
        mb=st.sampled_from([200.0, 512.0, 1000.0, 1300.0]),
        loads=st.integers(1, 2),
        patience=st.sampled_from([0.0, 1.0]),
    )
    def the_budget_is_changed(self, mb, loads, patience) -> None:
        if not self.world.s.stopping:
            rest = [d.budget_mb for d in self.world.devices[1:]]
            self.world.reconfigure(None, mb, *rest, patience_seconds=patience, load_timeout=10.0 + loads)

    # time

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.0, 1.0, 6.0, 40.0]))
    def time_passes(self, seconds) -> None:
        self.world.wait(seconds)

    @rule(seconds=st.sampled_from([0.01, 0.6, 11.0]))
    def the_broker_is_late(self, seconds) -> None:
        """Time passes without a tick: deadlines lie in the past when the next event comes."""
        self.world.now += seconds

    @rule()
    def tick(self) -> None:
        self.world.tick()

    @rule()
    def everything_under_way_ends(self) -> None:
        self.world.settle()

    @precondition(lambda self: not self.world.s.stopping)
    @rule(really=st.integers(0, 40), grace=st.sampled_from([0.0, 2.0, 100.0]))
    def shut_down(self, really, grace) -> None:
        if really == 17:
            self.world.shut_down(grace)

    @invariant()
    def status_can_be_read(self) -> None:
        if hasattr(self, "world"):
            status = self.world.s.status(self.world.now)
            over = sum(row["overrun_mb"] for row in status["devices"])
            assert status["vram_used_mb"] <= status["vram_budget_mb"] + over + 1e-2
            assert len(self.world.s.processes()) == status["workers"]

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.drain()
            self.world.empty()


QUIET = list(HealthCheck)


@pytest.mark.timeout(600)
def test_the_invariants_hold_whatever_happens() -> None:
    run_state_machine_as_test(
        SchedulerMachine,
        settings=settings(
            max_examples=250, stateful_step_count=60, deadline=None, print_blob=True, suppress_health_check=QUIET
        ),
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_invariants_hold_whatever_happens_for_long() -> None:
    run_state_machine_as_test(
        SchedulerMachine,
        settings=settings(
            max_examples=3000, stateful_step_count=100, deadline=None, print_blob=True, suppress_health_check=QUIET
        ),
    )


def storm(
    seed: int,
    steps: int,
    *,
    batches: bool = True,
    measured: bool = False,
    eviction: str = "priority",
    prefetch: bool = False,
    several: bool = False,
) -> None:
    """One long life of a broker, by a random generator: reaches what hypothesis' short runs do not."""
    r = random.Random(seed)
    m = SchedulerMachine()
    m.begin(
        sizes=[
            (r.choice([50, 100, 200, 300, 300, 400, 500, 700]), r.choice(list(ModelPriority)))
            for _ in range(r.randint(3, 8))
        ],
        budgets=r.choice([(900, 900), (900, 500, 700), (700, 700, 700), (1500, 700)] if several else BUDGETS),
        patience=r.choice([0.0, 0.2, 1.0]),
        loads=r.choice([1, 1, 2]),
        max_queue=r.choice([3, 20]),
        per_client=4 if batches and seed % 4 == 1 else 128,
        max_batch=seed % 3 + 1 if batches else 1,
        delay_ms=(0.0, 0.0, 30.0, 700.0)[seed % 4] if batches else 0.0,
        odd=r.random() < 0.3,
        measured=measured,
        eviction=eviction,
        prefetch=prefetch,
        instances=2 + seed % 2 if several else 1,
    )
    w, calm = m.world, r.random() < 0.5  # a calm world has few accidents, so that queues and leases build up

    def pick() -> int:
        return r.randint(0, 1000)

    def client() -> bytes:
        return r.choice([b"c1", b"c2", b"c3"])

    def timeout() -> float:
        return r.choice([0.0, 0.3, 2.0, 5.0, 20.0, 100.0, 100.0, 100.0])

    def lacked() -> float:
        return r.choice([0.0, 10.0, 100.0, 300.0])

    def on_processes(fit, act) -> None:
        if p := m.pick(pick(), fit):
            act(p)

    def work() -> None:
        for _ in range(r.randint(1, 5)):
            m.work(pick())
            w.wait(r.choice([0.0, 0.0, 0.02, 0.2]))

    def release() -> None:
        if w.leases:
            m.release(pick(), r.randint(0, 4))

    def withdraw() -> None:
        if w.open_questions():
            m.withdraw(pick())

    accident = 1 if calm else 4
    deeds = [
        (30, lambda: w.ask(m.name(pick()), client=client(), timeout=timeout(), priority=r.randint(0, 3))),
        (40, work),
        (4, lambda: m.hold(pick(), client(), r.choice([Kind.LEASE, Kind.PRELOAD]), timeout(), r.choice([None, 0, 2]))),
        (6, release),
        (3, lambda: m.unload(pick(), client(), timeout())),
        (3, withdraw),
        (accident, lambda: m.client_goes(client())),
        (1, lambda: m.pin(pick(), True)),
        (2, lambda: m.pin(pick(), False)),
        (1, lambda: m.cleanup(r.choice([0.0, 3.0]))),
        (accident, lambda: on_processes(lambda p: p.busy_loading, w.emit_load_failed)),
        (accident, lambda: on_processes(lambda p: p.running, lambda p: w.emit_done(p, ("invalid_input", "x")))),
        (
            2 * accident,
            lambda: on_processes(lambda p: p.running, lambda p: m.crashes_while_running(pick(), True, True)),
        ),
        (accident, lambda: on_processes(lambda p: not p.exited, w.emit_exit)),
        (2, lambda: on_processes(lambda p: p.busy_loading, lambda p: w.emit_load_runs_out(p, p.true_mb, lacked()))),
        (2, lambda: on_processes(lambda p: p.running, lambda p: w.emit_runs_out(p, p.true_mb, lacked()))),
        (1, lambda: on_processes(lambda p: p.running, lambda p: w.emit_done(p, halved=True))),
        (1, lambda: on_processes(lambda p: not p.exited, lambda p: w.emit_exit(p, starved=True))),
        (accident, lambda: on_processes(lambda p: p.exited and not p.stuck, w.emit_stuck)),
        (accident, lambda: on_processes(lambda p: p.stuck, w.emit_back)),
        (1, lambda: m.words_from_the_dead(pick(), r.randint(0, 4))),
        (6, lambda: w.wait(r.choice([0.1, 1.0, 3.0]))),
        (1, lambda: w.wait(r.choice([6.0, 40.0]))),
        (2, lambda: m.the_broker_is_late(r.choice([0.01, 0.6, 6.0]))),
        (1, w.settle),
    ]
    if several:

        def rush() -> None:
            hot = m.names[2 * r.randint(0, 1)]
            for _ in range(r.randint(3, 12)):
                w.ask(hot, client=client(), timeout=100.0)
            w.wait(0.3)

        deeds += [(15, rush)]
    if measured:
        kinds = KINDS if several else KINDS[:9]
        times = (1.0, 0.2, 0.7, 0.97, 1.05, 1.4)
        deeds += [
            (3, lambda: m.reconfigure_models(pick(), r.choice(kinds))),
            (
                1,
                lambda: m.the_budget_is_changed(
                    r.choice([200.0, 512.0, 1000.0]), r.randint(1, 2), r.choice([0.0, 1.0])
                ),
            ),
            (10, lambda: m.a_process_is_measured(pick(), r.choice(times))),
            (2, lambda: m.other_programs_are_seen(pick(), r.choice([0.0, 0.0, 1000.0, 1400.0, 1800.0]))),
        ]
    weights = [weight for weight, _ in deeds]
    for deed in r.choices([deed for _, deed in deeds], weights, k=steps):
        deed()
    if r.random() < 0.3:
        w.shut_down(r.choice([0.0, 1.0, 50.0]))
        for deed in r.choices([deed for _, deed in deeds], weights, k=40):
            deed()
    m.teardown()


def of_some_kind(seed: int, steps: int) -> None:
    eviction = "adaptive" if seed % 4 >= 2 else "priority"
    storm(seed, steps, measured=seed % 2 == 1, eviction=eviction, several=seed % 8 >= 4, prefetch=seed % 3 == 1)


@pytest.mark.parametrize("seed", range(80))
def test_the_invariants_hold_through_a_storm(seed) -> None:
    of_some_kind(seed, 250)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("block", range(10))
def test_the_invariants_hold_through_many_storms(block) -> None:
    for seed in range(1000 + 140 * block, 1140 + 140 * block):
        of_some_kind(seed, 500)


LIVE = st.sampled_from([ModelPriority.HIGH, ModelPriority.MEDIUM, ModelPriority.LOW])


@settings(max_examples=150, deadline=None, print_blob=True, suppress_health_check=QUIET)
@given(
    sizes=st.lists(st.tuples(st.integers(50, 700), LIVE), min_size=2, max_size=6),
    budgets=st.sampled_from([(700,), (1000,), (700, 700)]),
    asks=st.lists(st.tuples(PICK, st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=60),
    eviction=st.sampled_from(["priority", "adaptive"]),
    strict=st.booleans(),
    prefetch=st.booleans(),
    instances=st.integers(1, 2),
)
def test_with_workers_that_work_each_request_is_served(
    sizes, budgets, asks, eviction, strict, instances, prefetch
) -> None:
    """No stall: what can fit gets its turn, however the models crowd each other out."""
    models = [model(f"m{i}", mb, p.name, max_instances=instances) for i, (mb, p) in enumerate(sizes)]
    w = World(models, *map(float, budgets), eviction=eviction, strict=strict, prefetch=prefetch)
    for pick, priority, steps in asks:
        w.ask(f"m{pick % len(sizes)}", priority=priority, timeout=1e6)
        for _ in range(steps):
            w.now += 0.01
            w.step_any(set())
    begun = w.now
    while w.open_questions():
        if not w.step_any(set()):
            wake = w.s.next_wakeup()
            assert wake is not None, "a stall: a request waits, and nothing will ever happen"
            assert wake < begun + 1e5, "a stall: only the deadline ends it"
            w.now = max(w.now, wake)
            w.tick()
        w.now += 0.01
    assert all(isinstance(q.answer, Deliver) for q in w.questions.values())
    resting = (State.LOADED, State.UNLOADED, State.EVICTING)
    assert all(m.state in resting or m.guess is Guess.OPEN for m in w.s.models.values()), (
        "but for a guess that still loads"
    )
    w.drain()
    w.empty()


@pytest.mark.parametrize("seed", [1053, 1057, 1168, 1997, 2899])
def test_storms_that_once_left_a_request_waiting(seed) -> None:
    """With one request ahead at each worker: the first in a queue expired and another model's turn had come; a suspect
    at the head kept others from the worker's free place; claims and use changed who had to yield."""
    storm(seed, 500, batches=False)


def test_a_storm_in_which_a_claim_outlived_its_memory() -> None:
    """The memory that a waiter was promised got stuck; it then took what others had evicted for, by its older claim."""
    storm(12566, 400, batches=False)
