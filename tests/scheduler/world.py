"""A small simulated world around the scheduler, in virtual time: no sockets, no processes, no clock.

It plays the service loop and the workers, keeps books of its own from the actions alone, and after every event
checks the invariants of DESIGN section 6 against them. A test that uses it asserts only what is special to it.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import msgspec

from broker.scheduler.capacity.ledger import Device
from broker.scheduler.events import (
    Action,
    Answer,
    Asked,
    Deliver,
    DeviceSeen,
    DeviceUnread,
    Event,
    Finished,
    Forget,
    IdleCleanup,
    KillWorker,
    Kind,
    Measured,
    MemoryBack,
    MemoryShort,
    MemoryStuck,
    Pinned,
    Reconfigured,
    Refuse,
    Released,
    SendBatch,
    SessionClosed,
    Settled,
    ShutDown,
    StartWorker,
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
from broker.scheduler.state import Model, State, Worker
from zoo.config.schema import BrokerConfig, ModelConfig, ModelPriority

EPSILON = 1e-6


def model(name: str, mb: float = 300, priority: str = "MEDIUM", **more: Any) -> ModelConfig:
    return ModelConfig(name=name, vram_mb=mb, priority=ModelPriority[priority], **more)


@dataclass
class Process:
    """A worker as the operating system would see it. `mb`: charged, as far as the world reckons; `true_mb`: real."""

    worker: int
    model: str
    device: str
    mb: float
    started_at: float
    true_mb: float = 0.0
    worked: bool = False
    loading: bool = True
    killed: bool = False
    exited: bool = False
    stuck: bool = False
    running: list[int] = field(default_factory=list)
    ahead: list[int] = field(default_factory=list)  # dispatched, not begun
    dispatched_at: float = 0.0
    gentle: bool = False
    unasked: bool = False  # started ahead of any request, and not asked for since
    short: bool = False  # a request ran out of memory in it, and may be waiting for more

    @property
    def busy_loading(self) -> bool:
        return self.loading and not self.killed and not self.exited


@dataclass
class Question:
    """A request as its client remembers it."""

    event: Asked
    answers: list[Action] = field(default_factory=list)
    held: bool = False
    settled: int = 0
    ran_out: bool = False
    forgettable: bool = False

    @property
    def answer(self) -> Any:
        return self.answers[0] if self.answers else None


class World:
    """`World([model("a", 300), …], 512)`; several budgets make several devices. Broker settings by keyword.

    `strict`: after every event, whatever could be done now must have been done.
    With `footprint="measured"`, `true_mb` says what a model's processes really use (name → MB; else what is declared).
    """

    def __init__(
        self,
        models: list[ModelConfig],
        *budgets: float,
        strict: bool = True,
        max_batch: int = 1,
        true_mb: dict[str, float] | None = None,
        **broker: Any,
    ) -> None:
        self.config = BrokerConfig(**{"footprint": "declared", **broker})
        self.devices = [Device(f"gpu{i}", "cuda", mb) for i, mb in enumerate(budgets or (512.0,))]
        self.s = Scheduler(self.config, self.devices, models, **({"look_every_s": 0.0} if strict else {}))
        self.now = 1000.0
        self.strict = strict
        self.max_batch = max_batch
        self.processes: dict[int, Process] = {}  # charged: until their memory is back
        self.questions: dict[int, Question] = {}
        self._open: dict[int, None] = {}  # those not answered yet, in order
        self.leases: dict[int, tuple[bytes, str]] = {}
        self.firsts: dict[str, int] = {}  # model → its first worker before the event at hand
        self.granted_on: dict[int, int] = {}  # lease → worker; after its end, the one that took its place
        self.pins = {m.name for m in models if m.pinned}
        self.true_mb = true_mb or {}
        self.peaks: dict[tuple[str, str], tuple[float, bool]] = {}  # (model, device) → the most seen, and if at work
        self.lives: dict[tuple[str, str], list[list[float]]] = {}  # the same → [worker, most] of its last lives
        self.allowed = {d.name: math.inf for d in self.devices}  # what others leave
        self.overrun = {d.name: 0.0 for d in self.devices}
        self.unread: dict[str, float] = {}  # device → until when nothing may be started there
        self.actions: list[Action] = []  # everything that ever came out
        self.stopped = False
        self._numbers = itertools.count(1)
        self._told = 0
        self._overtakers: dict[tuple[str, int, bytes], set[bytes]] = {}  # since the client was last served there

    # ------------------------------------------------------------ what a client does

    def ask(
        self,
        name: str,
        kind: Kind = Kind.INFER,
        *,
        client: bytes = b"c",
        timeout: float = 1000.0,
        priority: int = 2,
        keep_alive: float | None = None,
        problem: str | None = None,
    ) -> int:
        number = next(self._numbers)
        event = Asked(number, client, name, kind, self.now + timeout, priority, f"in{number}", keep_alive, problem)
        self.questions[number] = Question(event)
        self._open[number] = None
        self.emit(event)
        return number

    def lease(self, name: str, **more: Any) -> int:
        return self.ask(name, Kind.LEASE, **more)

    def preload(self, name: str, **more: Any) -> int:
        return self.ask(name, Kind.PRELOAD, **more)

    def unload(self, name: str, **more: Any) -> int:
        return self.ask(name, Kind.UNLOAD, **more)

    def release(self, lease: int, client: bytes | None = None) -> None:
        owner = self.leases.get(lease, (b"", ""))[0]
        if client is None or client == owner:
            self.leases.pop(lease, None)
        self.emit(Released(owner if client is None else client, lease))

    def release_all(self) -> None:
        for lease in list(self.leases):
            self.release(lease)

    def withdraw(self, request: int) -> None:
        self.emit(Withdrawn(request))

    def close(self, client: bytes = b"c") -> None:
        for question in self.questions.values():
            if question.event.session == client:
                question.forgettable = True
        self.leases = {n: held for n, held in self.leases.items() if held[0] != client}
        self.emit(SessionClosed(client))

    def pin(self, name: str, on: bool = True) -> None:
        if name in self.s.models and not self.s.models[name].removed:
            (self.pins.add if on else self.pins.discard)(name)
        self.emit(Pinned(name, on))

    def reconfigure(
        self,
        models: list[ModelConfig] | None = None,
        *budgets: float,
        restart: frozenset[str] | set[str] = frozenset(),
        **broker: Any,
    ) -> None:
        """A new configuration: all of its models, and budgets or settings where they change."""
        was = {name: m.config for name, m in self.s.models.items() if not m.removed}
        given = list(was.values()) if models is None else models
        for config in given:
            before = was.get(config.name)
            if not config.enabled or (before is not None and config.pinned != before.pinned):
                (self.pins.add if config.pinned and config.enabled else self.pins.discard)(config.name)
            elif before is None and config.name not in self.s.models and config.pinned:
                self.pins.add(config.name)
        self.pins &= {config.name for config in given}
        self.config = msgspec.structs.replace(self.config, **broker)
        sizes = {name: m.config.vram_mb for name, m in self.s.models.items()}
        for i, mb in enumerate(budgets):
            self.devices[i] = msgspec.structs.replace(self.devices[i], budget_mb=mb)
        declared = {config.name: config.vram_mb for config in given}
        resized = {name for name, mb in declared.items() if mb != sizes.get(name)}
        for p in self.processes.values():
            if p.model in resized and not p.killed and not p.exited:
                p.mb = self.need_mb(p.model, p.device, declared[p.model])
        self.emit(Reconfigured(self.config, {d.name: d.budget_mb for d in self.devices}, given, set(restart), []))

    def cleanup(self, idle_seconds: float = 0.0) -> list[Action]:
        return self.emit(IdleCleanup(idle_seconds))

    def shut_down(self, grace: float = 5.0) -> list[Action]:
        return self.emit(ShutDown(grace))

    # ------------------------------------------------------------ what a worker does

    def process(self, name: str) -> Process:
        """The model's process that has not ended, the first if there are several; "NAME#2" is its second one."""
        worker = self.worker(name).number
        found = [p for p in self.processes.values() if p.model == name.partition("#")[0] and not p.exited]
        return next((p for p in found if p.worker == worker), None) or found[0]

    def model(self, name: str) -> Model:
        return self.s.models[name]

    def worker(self, name: str) -> Worker:
        """The primary worker of a model, or by "NAME#2" another one."""
        return self.s.registry.named(name)

    def extras(self) -> list[Worker]:
        """Workers beside the primary ones."""
        return [worker for model in self.s.models.values() for worker in model.extras]

    def alive(self, name: str) -> bool:
        return any(p.model == name and not p.exited for p in self.processes.values())

    def ready(self, name: str) -> None:
        self.emit_ready(self.process(name))

    def emit_ready(self, p: Process) -> None:
        if not p.killed:
            p.loading = False
        self.emit(WorkerReady(p.worker, self.max_batch))

    def load_fails(self, name: str, cause: str = "no such file", code: str = "load_failed") -> None:
        self.emit_load_failed(self.process(name), cause, code)

    def emit_load_failed(self, p: Process, cause: str = "no such file", code: str = "load_failed") -> None:
        self.emit(WorkerLoadFailed(p.worker, code, cause))

    def load_runs_out(self, name: str, used_mb: float = 0.0, asked_mb: float = 0.0) -> None:
        self.emit_load_runs_out(self.process(name), used_mb, asked_mb)

    def emit_load_runs_out(self, p: Process, used_mb: float = 0.0, asked_mb: float = 0.0) -> None:
        short = MemoryShort(used_mb, asked_mb)
        self.ran_out(p, short)
        self.emit(WorkerLoadFailed(p.worker, "out_of_memory", "no more memory", short))

    def runs_out(self, name: str, used_mb: float = 0.0, asked_mb: float = 0.0) -> int:
        return self.emit_runs_out(self.process(name), used_mb, asked_mb)

    def emit_runs_out(self, p: Process, used_mb: float = 0.0, asked_mb: float = 0.0) -> int:
        """The batch at work is through, but for its first request, for which memory did not suffice even alone."""
        short, question = MemoryShort(used_mb, asked_mb), self.questions[p.running[0]]
        again = self.s.registry.workers[p.worker].state is State.LOADED and not (self.s.stopping or question.answers)
        if again and not question.ran_out and self.needed_mb(p, short) <= self.budget_mb(p.device) + EPSILON:
            self.ran_out(p, short)
            question.ran_out = True
            p.short = sum(other.model == p.model and not other.stuck for other in self.processes.values()) == 1
        return self.emit_done(p, ("out_of_memory", "no more memory"), short, halved=len(p.running) > 1)

    def needed_mb(self, p: Process, short: MemoryShort) -> float:
        """What the process should have been charged, by the world's own books."""
        if self.config.footprint == "declared":
            return p.mb
        if short.asked_mb:
            return max(p.mb, math.ceil(short.used_mb + short.asked_mb - EPSILON))
        guess = math.ceil(1.25 * max(p.mb, short.used_mb) - EPSILON)
        return max(p.mb, min(guess, math.floor(self.budget_mb(p.device))))

    def ran_out(self, p: Process, short: MemoryShort) -> None:
        """Its model's next process is to be charged what this one lacked."""
        need = self.needed_mb(p, short)
        if not p.killed and need > self.need_mb(p.model, p.device):
            if self.peaks.get((p.model, p.device), (0.0, False))[1]:
                self.note_life(p, need)
            else:
                self.peaks[p.model, p.device] = need, False

    def done(self, name: str, error: tuple[str, str] | None = None) -> int:
        return self.emit_done(self.process(name), error)

    def emit_done(
        self,
        p: Process,
        error: tuple[str, str] | None = None,
        short: MemoryShort | None = None,
        *,
        halved: bool = False,
    ) -> int:
        """The batch at work is through; `error` is that of its first request, which is given back."""
        assert p.running
        batch, p.running, p.ahead, p.dispatched_at, p.worked = p.running, p.ahead, [], self.now, True
        outcomes = [Finished(request, f"out{request}") for request in batch]
        if error is not None:
            outcomes[0] = Finished(batch[0], None, error, short)
        self.emit(WorkerDone(p.worker, outcomes, halved))
        return batch[0]

    def says(self, name: str, digest: bytes) -> None:
        self.emit_said(self.process(name), digest)

    def emit_said(self, p: Process, digest: bytes) -> None:
        assert p.running
        self.emit(WorkerSaid(p.worker, p.running[0], digest))

    def exits(self, name: str, how: str = "signal 9", *, starved: bool = False) -> None:
        self.emit_exit(self.process(name), how, starved=starved)

    def emit_exit(self, p: Process, how: str = "signal 9", *, starved: bool = False) -> None:
        if starved and (p.loading or len(p.running) == 1):
            self.ran_out(p, MemoryShort())
        p.exited, p.running, p.ahead, p.loading = True, [], [], False
        self.emit(WorkerExited(p.worker, how, starved))

    def memory_back(self, name: str) -> None:
        self.emit_back(next(p for p in self.processes.values() if p.model == name.partition("#")[0] and p.exited))

    def emit_back(self, p: Process) -> None:
        del self.processes[p.worker]
        self.emit(MemoryBack(p.worker))

    def memory_stuck(self, name: str) -> None:
        self.emit_stuck(next(p for p in self.processes.values() if p.model == name and p.exited))

    def emit_stuck(self, p: Process) -> None:
        p.stuck = True
        self.emit(MemoryStuck(p.worker))

    # ------------------------------------------------------------ what a meter shows

    def need_mb(self, name: str, device: str, declared: float | None = None) -> float:
        """What a process of the model is to be charged, by the world's own books."""
        declared = self.s.models[name].config.vram_mb if declared is None else declared
        seen, worked = self.peaks.get((name, device), (0.0, False))
        return seen if worked else max(seen, declared)

    def measure(self, name: str, mb: float | None = None) -> None:
        """The model's process is measured, and found to use `mb` (else what it used last)."""
        p = self.process(name)
        p.true_mb = p.true_mb if mb is None else mb
        self.emit_measured(p)

    def emit_measured(self, p: Process) -> None:
        seen = math.ceil(p.true_mb - EPSILON)
        if self.config.footprint == "measured" and p.killed:
            p.mb = max(p.mb, seen)
        elif self.config.footprint == "measured":
            before, worked = self.peaks.get((p.model, p.device), (0.0, False))
            if not (worked or p.worked):
                if seen <= self.budget_mb(p.device) + EPSILON or not self.s.registry.workers[p.worker].was_used:
                    self.peaks[p.model, p.device] = max(before, seen), False
            elif (p.worked or seen > before) and seen <= self.budget_mb(p.device) + EPSILON:
                self.note_life(p, seen)
            p.mb = max(seen, min(self.need_mb(p.model, p.device), max(p.mb, seen)))
        self.emit(Measured(p.worker, p.true_mb, p.worked))
        if self.config.footprint == "measured" and p.worker in self.processes:
            charge = self.s.ledger.of(p.worker)
            assert charge is not None
            assert charge.mb >= p.true_mb - EPSILON, "charged less than was seen"

    def note_life(self, p: Process, mb: float) -> None:
        """What is remembered is the most of the last eight lives that ran a request."""
        before, worked = self.peaks.get((p.model, p.device), (0.0, False))
        lives = self.lives.setdefault((p.model, p.device), [[0, before]] if worked else [])
        if lives and lives[-1][0] == p.worker:
            lives[-1][1] = max(lives[-1][1], mb)
        else:
            lives.append([p.worker, mb if worked else max(mb, before)])
        del lives[:-8]
        self.peaks[p.model, p.device] = max(most for _, most in lives), True

    def others_use(self, device: str, mb: float, total: float) -> None:
        """Other programs are seen to use `mb` of the device's `total`."""
        if self.config.footprint == "measured":
            self.allowed[device] = max(0.0, total - mb - self.config.reserve_mb)
        self.emit(DeviceSeen(device, mb, total))

    def cannot_read(self, device: str, why: str = "Unknown Error", seconds: float = math.inf) -> None:
        """Readings of the device fail, or (for so many seconds at the most) are late."""
        if self.unread.get(device) != math.inf:
            self.unread[device] = self.now + seconds
        self.emit(DeviceUnread(device, why, seconds))

    def can_read(self, device: str) -> None:
        self.unread.pop(device, None)
        self.emit(DeviceUnread(device))

    def budget_mb(self, device: str) -> float:
        return next(d.budget_mb for d in self.devices if d.name == device)

    def limit_mb(self, device: Device) -> float:
        return min(device.budget_mb, self.allowed[device.name])

    def gone(self, name: str) -> None:
        """The killed process ends and its memory comes back."""
        self.exits(name, "killed")
        self.memory_back(name)

    # ------------------------------------------------------------ time

    def tick(self) -> list[Action]:
        return self.emit(Tick())

    def wait(self, seconds: float) -> None:
        """Time passes; ticks come exactly when they are due."""
        end = self.now + seconds
        while (wake := self.s.next_wakeup()) is not None and wake <= end:
            self.now = max(self.now, wake)
            self.tick()
            after = self.s.next_wakeup()
            assert after is None or after > self.now, "a tick must not leave something due: the loop would spin"
        self.now = end

    def settle(self, *, holding: frozenset[str] | set[str] = frozenset()) -> None:
        """Everything that is under way comes to its end, without time passing, but for models in `holding`."""
        for _ in range(100_000):
            if not self.step_any(holding):
                return
        raise AssertionError("the world does not come to rest")

    def step_any(self, holding: frozenset[str] | set[str]) -> bool:
        for p in list(self.processes.values()):
            if p.model in holding or p.stuck:
                continue
            if self.step(p):
                return True
        return False

    def step(self, p: Process) -> bool:
        """The process does what is expected of it next; False when that is nothing."""
        if p.exited:
            self.emit_back(p)
        elif p.killed:
            self.emit_exit(p, "killed")
        elif p.loading:
            self.emit_ready(p)
        elif p.running:
            self.emit_done(p)
        else:
            return False
        return True

    def load(self, *names: str) -> None:
        """The models are loaded, one after another, and idle; a little time passes after each."""
        for name in names:
            self.preload(name, client=b"loader")
            self.settle()
            assert self.s.models[name].state is State.LOADED, f"{name} did not load"
            self.now += 0.001

    def scale_out(self, name: str, asked: int) -> None:
        """The model, which is loaded, answers in 5 s, and is asked so often that an extra worker is started."""
        self.ask(name)
        self.now += 5.0
        self.done(name)
        for _ in range(asked):
            self.ask(name)

    def kill_twice(self, name: str, digest: bytes) -> None:
        """An input ends the process of the model, which is loaded, and the next one, too: it is refused from now on."""
        self.ask(name)
        self.exits(name)
        self.memory_back(name)
        self.ready(name)
        self.says(name, digest)
        self.exits(name)
        self.memory_back(name)

    # ------------------------------------------------------------ what can be seen

    def state(self, name: str) -> State:
        return self.s.models[name].state

    def answer(self, request: int) -> Any:
        return self.questions[request].answer

    def code(self, request: int) -> str | None:
        """ "ok", an error's code, or None while it is unanswered."""
        answer = self.answer(request)
        if answer is None:
            return None
        return answer.code if isinstance(answer, Refuse) else "ok"

    def open_questions(self) -> list[int]:
        return list(self._open)

    def granted(self, request: int) -> int:
        answer = self.answer(request)
        assert isinstance(answer, Answer), answer
        return int(answer.value)

    def starts(self) -> list[str]:
        return [a.model for a in self.actions if isinstance(a, StartWorker)]

    def kills(self) -> list[int]:
        return [a.worker for a in self.actions if isinstance(a, KillWorker)]

    def dispatches(self) -> list[int]:
        return [request for a in self.actions if isinstance(a, SendBatch) for request, _ in a.batch]

    def batches(self) -> list[list[int]]:
        return [[request for request, _ in a.batch] for a in self.actions if isinstance(a, SendBatch)]

    def story(self, name: str | None = None) -> list[str]:
        return [line.text for line in self.s.story.about(name)]

    # ------------------------------------------------------------ the checks

    def emit(self, event: Event) -> list[Action]:
        self.firsts = {name: m.primary.number for name, m in self.s.models.items()}
        actions = self.s.handle(event, self.now)
        refused = {action.request for action in actions if isinstance(action, Refuse)}
        asked = isinstance(event, Asked) and event.kind is not Kind.UNLOAD and event.request not in refused
        if asked or (isinstance(event, Pinned) and event.on):
            self._asked_for(event.model)
        self._after(event, actions)
        moving = any(isinstance(a, StartWorker | KillWorker) for a in actions)  # then more comes by itself
        wake = self.s.next_wakeup()
        overdue = wake is not None and wake <= self.now  # its tick will do what there is to do
        if self.strict and not self.s.stopping and not moving and not overdue:
            left = self.s.handle(Tick(), self.now)  # whatever could be done now must have been done
            dying = any(p.killed and not p.stuck for p in self.processes.values())
            late = any(isinstance(a, Refuse) and a.code == "deadline_exceeded" for a in left)  # the tick is not in yet
            if late or (dying and all(isinstance(a, KillWorker) for a in left)):
                self._after(event, left)  # might have waited for the memory of the dying, but may come now
            else:
                assert not left, f"after {event} something was left undone: {left}"
        return actions

    def _after(self, event: Event, actions: list[Action]) -> None:
        self.actions += actions
        for at in [at for at in self.peaks if at[0] not in self.s.models]:
            del self.peaks[at]  # the removed are forgotten
            self.lives.pop(at, None)
        for action in actions:
            self._take(event, action)
        for lease, (_, name) in self.leases.items():
            granted = self.processes.get(self.granted_on[lease])
            if (granted is None or granted.killed or granted.exited) and not self.s.stopping:
                self.granted_on[lease] = self.s.models[name].primary.number
        only_asked = isinstance(event, Asked)  # a measurement or a new budget may tell one and evict another
        if only_asked and any(isinstance(a, Refuse) and a.code == "model_too_large" for a in actions):
            assert not any(isinstance(a, KillWorker) for a in actions), "evicted for what can never fit"
        if isinstance(event, Tick):
            late = [n for n in self._open if self.questions[n].event.deadline <= self.now]
            assert not late, f"requests {late} are past their deadline"
        self._let_grow()
        if self._overtakers:
            waiting = {(m.name, r.priority, r.session) for m in self.s.models.values() for r in m.queue.all()}
            self._overtakers = {who: by for who, by in self._overtakers.items() if who in waiting}
        self._check_victims()
        self._check_overrun(event, actions)
        self.check_books()

    def _asked_for(self, name: str) -> None:
        for p in self.processes.values():
            p.unasked = p.unasked and p.model != name

    def _take(self, event: Event, action: Action) -> None:
        match action:
            case StartWorker(worker, name, device):
                self._started(worker, name, device)
            case KillWorker(worker, gentle):
                self._killed(event, worker, gentle)
            case SendBatch(worker, batch):
                self._dispatched(worker, batch)
            case Deliver(request, body, worker):
                question = self._answered(action)
                assert worker == event.worker
                assert question.event.kind is Kind.INFER
                assert body == f"out{request}"
                assert isinstance(event, WorkerDone)
                assert [o.error for o in event.outcomes if o.request == request] == [None]
            case Answer(request, value):
                question = self._answered(action)
                if question.event.kind is Kind.LEASE:
                    assert value not in self.leases
                    self.leases[value] = (question.event.session, question.event.model)
                    self.granted_on[value] = self.s.models[question.event.model].primary.number
                    assert self.state(question.event.model) in (State.LOADED, State.DRAINING)
                elif question.event.kind is Kind.UNLOAD:
                    rest = [p for p in self.processes.values() if p.model == question.event.model and not p.stuck]
                    assert not rest, "unload was answered before the memory was back"
                else:
                    assert question.event.kind is Kind.PRELOAD
            case Refuse(request):
                question = self._answered(action)
                assert action.message
                assert action.held == self._is_running(request), "held says whether a worker still reads the frames"
                question.held = action.held
            case Forget(request):
                question = self._answered(action)
                assert question.forgettable, "forgotten although its client is there"
                question.held = self._is_running(request)
            case Settled(request):
                question = self.questions[request]
                assert question.answers, "settled before it was answered"
                assert question.held, "nothing was held"
                assert not self._is_running(request), "a worker still reads the frames"
                question.settled += 1
                assert question.settled == 1, "settled twice"
            case Stop():
                assert not self.stopped
                self.stopped = True
                assert all(p.stuck for p in self.processes.values()), "stopped with workers alive"
                assert not self.open_questions(), "stopped with requests unanswered"

    def _let_grow(self) -> None:
        """A worker that ran out of memory may be charged more, in any event, but only where there is room for it."""
        for p in self.processes.values():
            charge = self.s.ledger.of(p.worker)
            if p.short and charge is not None and charge.mb != p.mb and not p.exited:
                assert p.mb < charge.mb == self.need_mb(p.model, p.device)
                p.mb = charge.mb
                used = sum(other.mb for other in self.processes.values() if other.device == p.device)
                limit = min(self.budget_mb(p.device), self.allowed[p.device])
                assert used <= limit + EPSILON, f"{used} of {limit} MB on {p.device} after {p.model} has grown"

    def _is_running(self, request: int) -> bool:
        return any(request in (*p.running, *p.ahead) for p in self.processes.values())

    def _answered(self, action: Any) -> Question:
        question = self.questions[action.request]
        question.answers.append(action)
        self._open.pop(action.request, None)
        assert len(question.answers) == 1, f"answered twice: {question.answers}"
        if not isinstance(action, Forget):
            assert not question.forgettable, f"answered after its client went: {action}"
        return question

    def _started(self, worker: int, name: str, device: str) -> None:
        assert not self.s.stopping
        assert worker not in self.processes
        same = [p for p in self.processes.values() if p.model == name and not p.stuck]
        assert len(same) < self.s.models[name].config.max_instances, f"{name} is started too often"
        assert not any(p.busy_loading for p in same), f"{name} is started twice at a time"
        assert device not in [p.device for p in same], f"{name} is started twice on {device}"
        assert self.unread.get(device, 0.0) <= self.now, f"{name} is started on {device}, which cannot be read"
        only = self.s.models[name].config.device
        assert not only or device == only, f"{name} is started on {device}"
        if any(not p.killed and not p.exited for p in same):
            assert not self.s.registry.demands, f"a further worker of {name} is started although others wait for room"
        mb = self.need_mb(name, device)
        loading = [p for p in self.processes.values() if p.device == device and p.busy_loading]
        assert len(loading) < self.config.concurrent_loads, "too many loads at once"
        unasked = not any(self.questions[n].event.model == name for n in self.open_questions())
        if unasked:
            assert self.s.registry.config.prefetch or self.s.registry.config.restore, (
                f"{name} is started for no request"
            )
            assert not self.s.registry.demands, f"{name} is loaded ahead while a demand waits for a load"
            going = [p.model for p in self.processes.values() if not p.stuck and (p.loading or p.killed or p.exited)]
            assert not going, f"{name} is loaded ahead while {going} load or end"
            assert name not in self.pins, "a pinned model could not be dropped again"
        self.processes[worker] = Process(
            worker, name, device, mb, self.now, self.true_mb.get(name, mb), unasked=unasked
        )
        budget = next(self.limit_mb(d) for d in self.devices if d.name == device)
        used = sum(p.mb for p in self.processes.values() if p.device == device)
        assert used <= budget + EPSILON, f"{used} MB on {device}, the budget is {budget}"

    def _killed(self, event: Event, worker: int, gentle: bool) -> None:
        p = self.processes[worker]
        assert not p.killed, "killed twice"
        assert not p.exited, "killed after its end"
        p.killed, p.gentle = True, gentle
        if gentle:
            p.ahead = []  # hung: those ahead wait again, for the model's next life
        if self.s.stopping:
            return
        if p.loading:
            failed = isinstance(event, WorkerLoadFailed) and event.worker == worker
            slow = isinstance(event, Tick) and self.now >= p.started_at + self.config.load_timeout
            assert failed or slow or p.unasked, "a load that a request waits for was killed for no reason"
            return
        if gentle:
            assert isinstance(event, Tick)
            assert p.running
            own = self.s.models[p.model].config.dispatch_timeout
            limit = self.config.dispatch_timeout if own is None else own
            assert self.now >= p.dispatched_at + limit, "killed as hung too early"
            return
        assert not p.running, f"{p.model} was evicted with requests {p.running} in flight"
        first = self.firsts.get(p.model) == worker
        assert not (first and p.model in self.pins), f"{p.model} was evicted although pinned"
        held = [n for n, (_, name) in self.leases.items() if name == p.model and self.granted_on[n] == worker]
        assert not held, f"{p.model} was evicted with leases {held}"

    def _dispatched(self, worker: int, batch: list[tuple[int, Any]]) -> None:
        p = self.processes[worker]
        assert not p.loading, "dispatched to a worker that is not ready"
        assert not p.killed, "dispatched to a worker that was killed"
        assert not p.exited, "dispatched to a worker that has ended"
        assert not p.ahead, "a worker has one batch running and one ahead"
        assert 1 <= len(batch) <= self.max_batch, "more at once than its adapter takes"
        for request, payload in batch:
            question = self.questions[request]
            assert question.event.kind is Kind.INFER
            assert question.event.model == p.model
            assert not question.answers, "dispatched after it was answered"
            assert question.event.deadline > self.now, "dispatched past its deadline"
            assert payload == f"in{request}"
        numbers = [request for request, _ in batch]
        self._note_turns(p.model, numbers)
        if p.running:
            p.ahead = numbers
        else:
            p.running, p.dispatched_at = numbers, self.now

    def _note_turns(self, name: str, numbers: list[int]) -> None:
        """No request is overtaken twice by the same client, within a model's queue and a priority."""
        waiting = {(r.priority, r.session) for r in self.s.models[name].queue.all()}
        for number in numbers:
            event = self.questions[number].event
            self._overtakers.pop((name, event.priority, event.session), None)
            for priority, session in waiting - {(event.priority, event.session)}:
                if priority == event.priority:
                    overtakers = self._overtakers.setdefault((name, priority, session), set())
                    assert event.session not in overtakers, f"{event.session!r} overtook {session!r} twice"
                    overtakers.add(event.session)

    def _check_victims(self) -> None:
        """No victim too many, none too few, CRITICAL only for CRITICAL: from what the story says."""
        lines, self._told = self.s.story.since(self._told), self.s.story.count
        groups: dict[str, tuple[float, list[tuple[str, float]]]] = {}
        guessed = {line.model for line in lines if line.kind == "evicted" and "loaded ahead" in line.text}
        for line in lines:
            if line.kind == "evicted" and "needer" in line.fields:
                needer, short = line.fields["needer"], line.fields["short_mb"]
                groups.setdefault(needer, (short, []))[1].append((line.model, line.fields["mb"]))
        for needer, (short, victims) in groups.items():
            sizes = [mb for _, mb in victims]
            assert sum(sizes) >= short - 1e-3, f"{victims} do not make room for {needer}"
            for victim, mb in victims:
                assert sum(sizes) - mb < short + 1e-3, f"{victim} went for {needer} without need"
                priority = self.s.models[victim.partition("#")[0]].config.priority
                if priority is ModelPriority.CRITICAL and victim not in guessed:
                    assert self.s.models[needer].config.priority is ModelPriority.CRITICAL

    def _check_overrun(self, event: Event, actions: list[Action]) -> None:
        """More is charged than may be only by what was measured, is said, only shrinks, and holds everything else."""
        measured = isinstance(event, Measured | DeviceSeen | Reconfigured)
        for device in self.devices:
            over = sum(p.mb for p in self.processes.values() if p.device == device.name) - self.limit_mb(device)
            over = over if over > EPSILON else 0.0
            assert abs(self.s.ledger.overrun_mb(device.name) - over) < EPSILON, "the overrun is stated as it is"
            assert measured or over <= self.overrun[device.name] + EPSILON, f"{event} made an overrun larger: {actions}"
            self.overrun[device.name] = over
            ending = [p for p in self.processes.values() if p.device == device.name and (p.killed or p.exited)]
            coming = sum(p.mb for p in ending if not p.stuck)
            workers = [w for w in self.s.registry.workers.values() if w.device == device.name]
            draining = [w for w in workers if w.state is State.DRAINING]
            grown = [w for w in draining if w.mb > max(device.budget_mb, w.model.need_mb(device.name)) + EPSILON]
            coming += sum(w.mb for w in grown)  # they go first, when they can
            if over > coming + EPSILON and not self.s.stopping:
                idle = [p.model for p in self.processes.values() if p.device == device.name and self._may_go(p)]
                assert not idle, f"{device.name} is charged {over} MB too much, and {idle} could go"

    def _may_go(self, p: Process) -> bool:
        if p.loading or p.killed or p.exited or p.running:
            return False
        first = self.s.models[p.model]
        leased = any(name == p.model for _, name in self.leases.values())
        held = p.worker == first.primary.number and (leased or p.model in self.pins)
        return p.mb > 0 and not first.queue.live and not held

    def check_books(self) -> None:
        """The scheduler's state agrees with itself and with the world's own books."""
        self.s.check()
        r = self.s.registry
        for device in self.devices:
            used = sum(p.mb for p in self.processes.values() if p.device == device.name)
            assert abs(r.ledger.used_mb(device.name) - used) < EPSILON
        assert set(r.workers) == {p.worker for p in self.processes.values() if not p.stuck}
        assert {c.worker for c in r.ledger.charges()} == set(self.processes)
        for worker in r.workers.values():
            process = self.processes[worker.number]
            assert [q.id for q in worker.inflight] == process.running
            assert [q.id for q in worker.ahead] == process.ahead
        assert sorted(r.requests) == sorted(self.open_questions())
        if not r.stopping:
            assert {n: m.name for n, m in r.leases.items()} == {n: name for n, (_, name) in self.leases.items()}
        owners = {q.session for q in r.requests.values()} | {self.leases[n][0] for n in r.leases}
        assert owners == set(r.sessions)

    # ------------------------------------------------------------ the end

    def drain(self) -> None:
        """Clients finish and go; workers do as they are told. Afterwards nothing may be left of any of them."""
        for name in list(self.pins):
            self.pin(name, False)
        self.release_all()
        for _ in range(10_000):
            self.settle()
            wake = self.s.next_wakeup()
            if not self.open_questions() or wake is None:
                break
            self.now = max(self.now, wake)
            self.tick()
            after = self.s.next_wakeup()
            assert after is None or after > self.now, "a tick must not leave something due: the loop would spin"
        assert not self.open_questions(), f"never answered: {self.open_questions()}"
        for client in list(self.s.registry.sessions):
            self.close(client)
        self.settle()
        assert not self.s.registry.requests
        assert not self.s.registry.sessions
        assert not self.s.registry.leases
        assert not self.s.registry.demands
        assert not self.s.registry.yielding
        assert self.s.registry.running == 0
        unsettled = [n for n, q in self.questions.items() if q.held and not q.settled]
        assert not unsettled, f"frames of {unsettled} were never given back"

    def empty(self) -> None:
        """After `drain`: idle models go, and the ledger is empty but for memory that is stuck."""
        for p in list(self.processes.values()):
            if p.stuck:
                self.emit_back(p)
        self.settle()  # what came back may let a model be loaded ahead
        if not self.s.stopping:
            self.cleanup(0.0)
        else:
            self.wait(1e6)
        self.settle()
        if self.s.stopping:
            assert self.stopped
        assert not self.s.ledger.charges()
        assert not self.s.registry.workers
        assert all(m.state in (State.UNLOADED, State.FAILED) for m in self.s.models.values())
