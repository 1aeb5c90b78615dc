"""All that the scheduler knows: models, workers, requests, clients, charges, timers, and the actions decided so far.

Data, and the few primitives that keep it consistent. Decides nothing. The parts of the scheduler share one registry;
none of them keeps state of its own that another would have to know.

Looks for room that only usage can have changed are made once per 10 ms: one costs as much as there are models, and
every request changes usage (with a model waiting, an event took 4 ms at 1,000 models; now 8 us).
"""

from __future__ import annotations

import enum
import itertools
import math
from collections import Counter
from typing import Any

from broker.scheduler.capacity.adaptive import Adaptive
from broker.scheduler.capacity.by_priority import ByPriority, Policy
from broker.scheduler.capacity.demand import Demand
from broker.scheduler.capacity.doubts import Doubts
from broker.scheduler.capacity.habits import Habits
from broker.scheduler.capacity.ledger import Device, Ledger
from broker.scheduler.capacity.placement import Space, View
from broker.scheduler.capacity.unread import Unread
from broker.scheduler.events import Action
from broker.scheduler.state import Model, Move, Phase, Request, Session, Timers, Worker
from broker.scheduler.state.timers import LOOK
from broker.scheduler.story.journal import Journal
from broker.scheduler.story.story import Story
from zoo.config.schema import BrokerConfig, ModelConfig

LOOK_EVERY_S = 0.01  # where usage alone, which changes with every request, may have changed which worker has to go


class Lifetime(enum.IntEnum):
    """Of the scheduler's own life."""

    RUNNING = 0
    STOPPING = 1  # takes nothing new, gives what runs its time
    KILLED = 2  # every request is answered, every worker told to end
    STOPPED = 3


class Registry:
    """See the module's docstring.

    Attributes:
        now: of the event at hand.
        workers: those with a process, by number. moving: of them, those that are loading or ending. yielding: of them,
            those that yield.
        running: how many requests are at workers, answered or not.
        demands: model → the room that it wants, in the order in which the demands arose.
        touched: models whose queue, workers or leases have changed since they were attended to.
        look: devices and demands have to be looked at.
        contested: a demand waits for workers in use, so that any use of another one may decide which have to go.
        overdrawn: devices that are charged more than they may be, while no worker on them may go.
        look_at: when the next look for room is due. looked_at: when the last one was.
        evictions: (model, priority) → how often. learnt: counts changes of any model's peaks.
        unnamed_errors: code → how many requests for no model that is registered were answered so.
        asked_last: the model last asked for, while it may be worth to load ahead what follows it.
        absent: models that were loaded before the broker's start, and are to come back.
        reconfigured_at: when config.toml was last taken over.
    """

    def __init__(self, config: BrokerConfig, devices: list[Device], models: list[ModelConfig]) -> None:
        self.now = 0.0
        self.stage = Lifetime.RUNNING
        self.models = {m.name: Model(m) for m in models}
        self.workers: dict[int, Worker] = {}
        self.moving: dict[int, Worker] = {}
        self.yielding: dict[int, Worker] = {}
        self.requests: dict[int, Request] = {}
        self.sessions: dict[bytes, Session] = {}
        self.leases: dict[int, Model] = {}
        self.running = 0
        self.ledger = Ledger(devices)
        self.unread = Unread()
        self.doubts = Doubts()
        self.habits = Habits()
        self.story = Story()
        self.journal = Journal()
        self.timers = Timers()
        self.demands: dict[str, Demand] = {}
        self.touched: dict[Model, None] = {}
        self.look = False
        self.look_at = math.inf
        self.looked_at = -math.inf
        self.look_every_s = LOOK_EVERY_S
        self.contested = False
        self.overdrawn: set[str] = set()
        self.evictions: dict[tuple[str, str], int] = {}
        self.unnamed_errors: Counter[str] = Counter()
        self.learnt = 0
        self.absent: list[str] = []
        self.reconfigured_at = -math.inf
        self.out: list[Action] = []
        self.seq = itertools.count(1)
        self.worker_numbers = itertools.count(1)
        self.configure(config)

    def configure(self, config: BrokerConfig) -> None:
        """Takes over the broker's settings."""
        self.config = config
        self.asked_last = ""
        adaptive = config.eviction == "adaptive"
        self.habitual = adaptive or config.prefetch  # what is asked for, and after what, is worth to be counted
        self.policy: Policy = Adaptive(self.habits) if adaptive else ByPriority()

    @property
    def stopping(self) -> bool:
        return self.stage is not Lifetime.RUNNING

    def tell(self, name: str, kind: str, **fields: Any) -> None:
        """A line of the story, about a model or a worker, or "" for neither."""
        self.story.tell(self.now, name, kind, **fields)

    def move(self, worker: Worker, move: Move) -> None:
        """Changes a worker's phase; room may exist afterwards."""
        worker.move(move)
        moving = worker.phase in (Phase.LOADING, Phase.CONDEMNED, Phase.ENDING)
        _keep(self.moving, worker, moving)
        _keep(self.yielding, worker, worker.phase is Phase.YIELDING)
        self.touched[worker.model] = None
        self.look = True

    def usage_changed(self) -> None:
        """A request came or was answered. A look costs as much as there are models, so these share one."""
        if not (self.demands or self.contested or self.overdrawn):
            return
        if self.now >= self.looked_at + self.look_every_s:
            self.look = True
        else:
            self.look_again(self.looked_at + self.look_every_s)

    def look_again(self, when: float) -> None:
        """A look for room is due then, at the latest."""
        if when < self.look_at:
            self.look_at = when
            self.timers.add(when, LOOK)

    def named(self, name: str) -> Worker:
        """The worker that goes by the name of its model, or by "NAME#2"."""
        model = self.models[name.partition("#")[0]]
        return next(worker for worker in (model.primary, *model.workers) if worker.name == name)

    def unreturned_mb(self, device: str) -> float:
        """Charged for processes that ended long ago, whose memory the device does not show free."""
        return sum(c.mb for c in self.ledger.charges() if c.device == device and c.worker not in self.workers)

    def view(self) -> View:
        """What decisions about room look at."""
        coming = {name: self.ledger.free_mb(name) for name in self.ledger.devices}
        loading = dict.fromkeys(coming, 0)
        for worker in self.moving.values():
            if worker.phase is Phase.ENDING:
                charge = self.ledger.of(worker.number)
                coming[worker.device] += charge.mb if charge is not None else 0.0
            else:
                loading[worker.device] += 1
        spaces = {
            name: Space(
                self.ledger.free_mb(name), coming[name], device.budget_mb, self.ledger.limit_mb(name),
                loading[name], self.unread.why_not(name), self.doubts.until(name, self.now),
            )
            for name, device in self.ledger.devices.items()
        }  # fmt: skip
        config = self.config
        return View(
            self.now, spaces, self.workers.values(), self.models.values(), self.policy, config.concurrent_loads,
            config.patience_seconds, config.request_timeout, self.unreturned_mb,
        )  # fmt: skip

    def idle_limit(self, model: Model) -> float:
        """Seconds without use after which the model is evicted."""
        if model.keep_alive is not None:
            return model.keep_alive
        own = model.config.idle_seconds
        return self.config.idle_seconds if own is None else own

    def dispatch_timeout(self, model: Model) -> float:
        own = model.config.dispatch_timeout
        return self.config.dispatch_timeout if own is None else own


def _keep(those: dict[int, Worker], worker: Worker, there: bool) -> None:
    if there:
        those[worker.number] = worker
    else:
        those.pop(worker.number, None)
