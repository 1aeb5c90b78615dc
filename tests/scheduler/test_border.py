"""Whatever the border lets through, the machine does not raise, stays sound, and answers each request once.

Events of every type, in any order, of workers, requests, leases, models and devices that exist or do not, with figures
that are none. What makes no sense changes nothing.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings

from broker.scheduler.capacity.ledger import Device
from broker.scheduler.events import (
    Answer,
    Asked,
    Deliver,
    DeviceSeen,
    Event,
    Finished,
    Forget,
    Forgotten,
    IdleCleanup,
    Kind,
    LoadedEarlier,
    Measured,
    MemoryBack,
    MemoryShort,
    MemoryStuck,
    Pinned,
    Reconfigured,
    Refuse,
    Released,
    Remembered,
    SendBatch,
    SessionClosed,
    Settled,
    ShutDown,
    Stop,
    Tick,
    Withdrawn,
    WorkerDone,
    WorkerExited,
    WorkerLoadFailed,
    WorkerReady,
    WorkerSaid,
)
from broker.scheduler.scheduler import Scheduler
from broker.scheduler.state import Peak
from tests.scheduler.world import model
from zoo.config.schema import BrokerConfig, ModelPriority

ODD = [math.nan, math.inf, -math.inf, -1.0, 0.0, 1e-300, 1e300, 5.0, 100.0, 400.0, 1e9]
KINDS = [
    *4 * ["asked"], "released", "withdrawn", "closed", "pinned", "cleanup", *3 * ["ready"], "failed", "short",
    *3 * ["done"], "nothing", "said", "exited", "back", "back", "stuck", "remembered", "forgotten", "resident",
    "measured", "seen", "reconfigured", "tick", "time", "time", "shutdown",
]  # fmt: skip
MODELS = [
    model("a", 300, max_instances=2),
    model("b", 300, "LOW"),
    model("c", 200, "CRITICAL", max_delay_ms=50.0),
    model("d", 600, "HIGH", idle_seconds=1.0),
    model("e", 5000),
]


class Anything:
    """Draws events out of numbers, with an eye on what there is, so that many of them are plausible."""

    def __init__(self, *, measured: bool, adaptive: bool, devices: int) -> None:
        models = [msgspec.structs.replace(m) for m in MODELS]
        config = BrokerConfig(
            footprint="measured" if measured else "declared", eviction="adaptive" if adaptive else "priority",
            prefetch=adaptive, max_queue=4, max_queue_per_client=6, patience_seconds=0.2, load_timeout=20.0,
            dispatch_timeout=5.0, idle_seconds=30.0,
        )  # fmt: skip
        self.config = config
        self.devices = [Device(f"gpu{i}", "cuda", 700.0) for i in range(devices)]
        self.s = Scheduler(config, self.devices, models)
        self.now = 1000.0
        self.asked: dict[int, str] = {}
        self.answers: Counter[int] = Counter()
        self.held: Counter[int] = Counter()
        self.stopped = 0

    def emit(self, event: Event) -> None:
        known = isinstance(event, Asked) and event.request in self.s.registry.requests
        actions = self.s.handle(event, self.now)
        if isinstance(event, Asked) and not known:
            self.asked[event.request] = event.model
        for action in actions:
            if isinstance(action, Deliver | Answer | Refuse | Forget):
                self.answers[action.request] += 1
                assert self.answers[action.request] == 1, f"answered twice: {action}"
            elif isinstance(action, SendBatch):
                assert action.batch
            elif isinstance(action, Settled):
                assert self.answers[action.request], "settled before it was answered"
            elif isinstance(action, Stop):
                self.stopped += 1
        self.s.check()
        wake = self.s.next_wakeup()
        assert wake is None or not math.isnan(wake)

    def event(self, kind: str, pick: int, other: int, figure: float) -> Event | None:
        s = self.s

        def one_of(known: Any, *nonsense: Any) -> Any:
            choices = [*known, *nonsense]
            return choices[pick % len(choices)]

        worker = one_of(s.registry.workers, 0, -1, 777)
        request = one_of(s.registry.requests, 0, 888_888)
        name = one_of(s.models, "", "a#2", "nobody\ud800")
        session = (b"", b"c1", b"c2", b"c3")[other % 4]
        text = ("", "it broke", "\ud800\x00", "x" * 9000)[other % 4]
        short = MemoryShort(figure, ODD[other % len(ODD)])
        match kind:
            case "asked":
                number = one_of([len(self.asked) + 1] * 9, *list(s.registry.requests)[:1])
                deadline = self.now + (figure if other % 3 == 0 else 50.0)
                what = list(Kind)[other % 4] if other % 2 else Kind.INFER
                keep = figure if other % 5 == 0 else None
                return Asked(
                    number, session, name, what, deadline, other % 9 - 3, b"", keep, text if other % 7 == 3 else None
                )
            case "released":
                return Released(session, one_of(s.registry.leases, 0, 999))
            case "withdrawn":
                return Withdrawn(request)
            case "closed":
                return SessionClosed(session)
            case "pinned":
                return Pinned(name, other % 2 == 0)
            case "cleanup":
                return IdleCleanup(figure)
            case "ready":
                return WorkerReady(worker, other % 5 - 1)
            case "failed":
                return WorkerLoadFailed(worker, one_of(["load_failed", "model_too_large"], "", "?"), text)
            case "short":
                return WorkerLoadFailed(worker, "out_of_memory", text, short)
            case "done" | "nothing":
                at_work = s.registry.workers[worker].inflight if worker in s.registry.workers and kind == "done" else []
                errors = [None, None, ("invalid_input", text), ("?", text), ("out_of_memory", text)]
                error = errors[other % 5]
                outcomes = [Finished(r.id, b"", error, short if other % 5 == 4 else None) for r in at_work]
                if other % 11 == 10:
                    outcomes += [Finished(request)]
                return WorkerDone(worker, outcomes, other % 6 == 5)
            case "said":
                return WorkerSaid(worker, request, bytes([other % 3]))
            case "exited":
                return WorkerExited(worker, text, other % 3 == 0)
            case "back":
                return MemoryBack(worker)
            case "stuck":
                return MemoryStuck(worker)
            case "remembered":
                peak = Peak(figure, other % 2 == 0)
                return Remembered(name, str(other % 3), {one_of(s.ledger.devices, "", "gpu9"): peak})
            case "forgotten":
                return Forgotten(name)
            case "resident":
                return LoadedEarlier([name, *list(s.models)[: other % 4], name])
            case "measured":
                return Measured(worker, figure, other % 2 == 0)
            case "seen":
                return DeviceSeen(one_of(s.ledger.devices, "", "gpu9"), figure, ODD[other % len(ODD)])
            case "reconfigured":
                given = [msgspec.structs.replace(m) for m in MODELS if m.name != name or other % 3]
                for m in given:
                    m.enabled = m.name != name or other % 5 != 0
                    m.pinned = m.name == name and other % 7 == 0
                    m.priority = ModelPriority((m.priority + other) % 4)
                budgets = {d.name: 300.0 + 100 * (other % 9) for d in self.devices} | {"gpu9": figure}
                if other % 4 == 0:
                    budgets["gpu0"] = figure
                restart = {name} if other % 2 else set()
                return Reconfigured(self.config, budgets, given, restart, [("", text)])
            case "shutdown":
                return ShutDown(figure) if other == 17 else None
            case "time":
                self.now += (0.0, 0.01, 0.3, 2.0, 40.0)[other % 5]
        return Tick()

    def end(self) -> None:
        """The broker is told to stop; its workers do as they are told."""
        self.emit(ShutDown(0.0))
        for _ in range(1000):
            workers = list(self.s.registry.workers)
            if not workers:
                break
            for worker in workers:
                self.emit(WorkerExited(worker, "ended"))
                self.emit(MemoryBack(worker))
        self.emit(Tick())
        assert self.stopped == 1
        assert not self.s.registry.requests
        unanswered = [n for n in self.asked if not self.answers[n]]
        assert not unanswered, f"{unanswered} were never answered"


EVENTS = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, 40), st.integers(0, 40), st.sampled_from(ODD)), max_size=150
)


@settings(max_examples=600, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck))
@given(events=EVENTS, measured=st.booleans(), adaptive=st.booleans(), devices=st.integers(1, 2))
def test_whatever_comes_the_machine_does_not_raise_and_stays_sound(events, measured, adaptive, devices) -> None:
    m = Anything(measured=measured, adaptive=adaptive, devices=devices)
    for kind, pick, other, figure in events:
        event = m.event(kind, pick, other, figure)
        if event is not None:
            m.emit(event)
    m.end()


@pytest.mark.parametrize("seed", range(40))
def test_a_long_life_among_nonsense_ends_well(seed) -> None:
    """What short lives do not reach: models loaded and at work, among events that make no sense."""
    r = random.Random(seed)
    m = Anything(measured=seed % 2 == 0, adaptive=seed % 4 >= 2, devices=1 + seed % 2)
    dull = [kind for kind in KINDS if kind not in ("shutdown", "reconfigured", "cleanup", "closed", "failed")]
    for _ in range(400):
        kind = r.choice(KINDS if r.random() < 0.3 else dull)
        other = r.choice([0, 0, 2, 4, r.randint(0, 40)]) if kind in ("asked", "done") else r.randint(0, 16)
        event = m.event(kind, r.randint(0, 40), other, r.choice(ODD))
        if event is not None:
            m.emit(event)
    assert m.answers, "some request was answered"
    m.end()
