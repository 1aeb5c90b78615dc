"""Making room: who waits for it, who starts, who goes. The part of the scheduler that knows devices and megabytes.

Theory of operation. Requests for a model that is not there make it *wanted*. `_advance` goes through the wanted models,
those who wait longest first, and starts each that fits; where room must be made, it chooses victims among the models
that nobody uses, kills them, and remembers (as a claim) that the room coming back is spoken for. Nothing is killed
unless it makes the difference. A model that is busy but neither leased nor pinned is never killed, but after `patience`
it stops taking new work from its queue (it *yields*), becomes idle by itself, and can then be chosen.

What is charged is made true at once when a worker turns out to use more, or other programs leave less (`_make_true`):
by evicting whoever is idle, and where that does not do, by saying so and starting nothing on that device.

Pure, like all of the scheduler: time comes in, actions go out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

from broker.scheduler.capacity import prefetch, turns
from broker.scheduler.capacity.adaptive import Adaptive
from broker.scheduler.capacity.eviction import ByPriority, Candidate, Policy
from broker.scheduler.capacity.habits import Habits
from broker.scheduler.capacity.ledger import EPSILON_MB, Device, Ledger
from broker.scheduler.capacity.placement import DOUBT_S, MODELS_IN_DOUBT, Doubts, choose
from broker.scheduler.capacity.unread import Unread
from broker.scheduler.events import Action, KillWorker, Move, StartWorker, State
from broker.scheduler.residency import Request, Residency
from broker.scheduler.story import Story
from broker.scheduler.timers import Due, Timers
from zoo.config.schema import BrokerConfig, ModelConfig, ModelPriority

LOOK_EVERY_S = 0.01  # where usage alone, which changes with every request, may have changed who has to go
MOST_SPARED = 4  # named in a line
MOST_LOOKS = 8  # two or three settle it; the bound is against a bug, not a need


class _Look:
    """What one look for room has found so far, from the waiter who comes first to the last.

    Attributes:
        claimed: device → MB that are coming back, or are kept free, for those who came earlier.
        loading: device → loads under way.
        spoken_for: models whose room somebody who came earlier waits for.
        yielding: models that have to stop taking work.
    """

    def __init__(self, devices: Iterable[str], moving: Iterable[Residency]) -> None:
        self.claimed = dict.fromkeys(devices, 0.0)
        self.loading = dict.fromkeys(self.claimed, 0)
        self.spoken_for: set[str] = set()
        self.yielding: set[str] = set()
        for model in moving:
            if model.state is State.LOADING:
                self.loading[model.device] += 1


class Room:
    """The models, what they are charged, and who waits for room. `Instances` and `Scheduler` add workers and requests.

    Attributes:
        policy: who goes.
        habits: who is asked for, and after whom; kept only where somebody looks at it.
        evictions: (model, priority) → how often.
        further: workers beyond the first of their model, by names that no model can have (`instances.py`).
        _workers: living workers, from the decision to start until the memory is back (or written off).
        _moving: those of them that are loading or going, so that a look at what comes back is not one at everybody.
        _wanted: models that somebody waits for and that are not there, or not large enough (`Residency.short`), in the
            order in which they became so.
        _yielding: names of models that take no new work, so that somebody gets their room.
        _contested: somebody waits for models in use, so that whoever uses another one may decide which have to go.
        _asked_last: the model last asked for, while it may be worth to load ahead what follows it.
        _absent: models that were resident before the broker's start, and are to come back.
        _overdrawn: devices that are charged more than they may be, while nobody on them may go.
        _out: actions of the event at hand.
    """

    def __init__(self, config: BrokerConfig, devices: list[Device], models: list[ModelConfig]) -> None:
        self.config = config
        self.ledger = Ledger(devices)
        self.unread = Unread()
        self._model_numbers = itertools.count(1)
        self.models = {m.name: Residency(m, next(self._model_numbers)) for m in models}
        self.story = Story()
        self.timers = Timers()
        self.habits = Habits()
        self._take_policy()
        self.stopping = False
        self.evictions: dict[tuple[str, str], int] = {}
        self.learnt = 0  # counts changes of any model's peaks
        self.further: dict[str, Residency] = {}
        self._doubts = Doubts()
        self._absent: list[str] = []
        self._workers: dict[int, Residency] = {}
        self._moving: dict[int, Residency] = {}
        self._wanted: dict[str, Residency] = {}
        self._yielding: set[str] = set()
        self._contested = False
        self._overdrawn: set[str] = set()
        self._look_at = math.inf
        self._looked_at = -math.inf
        self.look_every_s = LOOK_EVERY_S
        self._worker_ids = itertools.count(1)
        self._claims = itertools.count(1)
        self._out: list[Action] = []

    def _take_policy(self) -> None:
        self._asked_last = ""
        adaptive = self.config.eviction == "adaptive"
        self._habitual = adaptive or self.config.prefetch
        self.policy: Policy = Adaptive(self.habits) if adaptive else ByPriority()

    def _give_up_hopeless(self, model: Residency, now: float) -> None:
        """Nobody makes room for requests whose deadline cannot be met any more: the scheduler answers them."""
        raise NotImplementedError

    def _serve(self, model: Residency, now: float) -> None:
        """Gives the model's worker what waits for it: the scheduler's part."""
        raise NotImplementedError

    def _drain(self, model: Residency, why: str, now: float) -> None:
        """Lets a worker finish what it has, and go: the scheduler's part."""
        raise NotImplementedError

    def _outgrown(self, model: Residency) -> None:
        """It has turned out to need more than any device has: whoever waits for it is told, by the scheduler."""
        raise NotImplementedError

    def _starved(self, model: Residency, why: str, now: float) -> None:
        """Nobody may go for what its process would need beyond its charge: see `shortage.py`."""
        raise NotImplementedError

    def _move(self, model: Residency, move: Move) -> None:
        model.move(move)
        if model.state is State.LOADING or model.state is State.EVICTING:
            self._moving[model.worker] = model
        else:
            self._moving.pop(model.worker, None)

    def _evict(self, model: Residency, why: str, now: float) -> None:
        if model.referenced:  # the promise of the house; nothing may come here past it
            raise AssertionError(f"{model.name} is in use ({model.reasons()}) and was to be evicted")
        self._stay_small(model)
        self._move(model, Move.KILL)
        model.misguessed, model.unasked = model.unasked, False
        model.first.evictions += 1
        key = (model.config.name, model.config.priority.name)
        self.evictions[key] = self.evictions.get(key, 0) + 1
        text = f"evicted, {model.mb:g} MB on {model.device}: {why}"
        unused = round(now - model.last_used, 3)
        self.story.tell(now, model.name, text, "evicted", mb=model.mb, device=model.device, unused_seconds=unused)
        self._out.append(KillWorker(model.worker))
        if model.waiting:
            self._wanted.setdefault(model.name, model)

    def _named(self, name: str) -> Residency:
        return self.models.get(name) or self.further[name]

    def devices_for(self, model: Residency) -> list[str]:
        """Where the model may be loaded, as far as config.toml says."""
        return [model.config.device] if model.config.device else list(self.ledger.devices)

    @property
    def _tense(self) -> bool:
        """Whoever becomes idle, or does not stay so, may change what others wait for."""
        return self._contested or bool(self._overdrawn)

    def _make_true(self, now: float) -> None:
        """Where more is charged than may be, idle models go, CRITICAL last, until it fits or nobody else may go."""
        if self.stopping:
            return
        for device in self.ledger.devices:
            short = self._short_mb(device)
            if short > EPSILON_MB and self._end_monsters(device, now):
                short = self._short_mb(device)
            if short > EPSILON_MB:
                idle = [c for c in self._candidates(device, set(), "", now, busy=False) if c.mb > 0]
                victims = self.policy.choose(short, idle, ModelPriority.CRITICAL)
                for victim in idle if victims is None else victims:
                    model = self._named(victim.model)
                    self._evict(model, f"{self._overrun(device)}; unused for {now - victim.last_used:.1f} s", now)
                short = 0.0 if victims is not None else short - sum(c.mb for c in idle)
            if short > EPSILON_MB and device not in self._overdrawn:
                self._overdrawn.add(device)
                why = f"{self._overrun(device)}, and nobody may go: {self._users(device)}"
                text = f"{why}; nothing is loaded there until it fits"
                self.story.tell(now, "", text, "overdrawn", device=device, over_mb=round(short, 3))
            elif short <= EPSILON_MB and device in self._overdrawn:
                self._overdrawn.discard(device)
                text = f"what {device} is charged fits again, or will when what is ending is gone"
                self.story.tell(now, "", text, "fits again", device=device)

    def _short_mb(self, device: str) -> float:
        """By how much more is charged than may be, also when all has gone that is going."""
        if not self.ledger.overrun_mb(device):
            return 0.0
        draining = [m for m in self._workers.values() if m.device == device and m.state is State.DRAINING]
        return -self._coming_mb(device) - sum(m.mb for m in draining if self._is_monster(m))

    def _is_monster(self, model: Residency) -> bool:
        """Its process alone has grown beyond the whole budget: others that went for it would go for nothing."""
        most = max(self.ledger.devices[model.device].budget_mb, model.need_mb(model.device))
        return model.mb > most + EPSILON_MB

    def _end_monsters(self, device: str, now: float) -> bool:
        """Those go first, whatever their priority, when they have done what they have. False if there are none."""
        found = [m for m in self._workers.values() if m.device == device and m.state is State.LOADED]
        found = [m for m in found if self._is_monster(m) and not (m.leases or m.pinned)]
        for model in found:
            why = f"its process has grown to {model.mb:g} MB, more than the whole budget of {device}"
            if model.inflight or model.queue.live:
                self._drain(model, why, now)
            else:
                self._evict(model, why, now)
        return bool(found)

    def _overrun(self, device: str) -> str:
        return f"{device} is charged {self.ledger.used_mb(device):g} MB, {self.ledger.limit_mb(device):g} may be"

    def _usage_changed(self, now: float) -> None:
        """A request came or was answered. A look costs as much as there are models, so these share one."""
        if not self._wanted and not self._tense:
            return
        if now >= self._looked_at + self.look_every_s:
            self._room_may_exist(now)
        else:
            self._look_again(self._looked_at + self.look_every_s)

    def _room_may_exist(self, now: float) -> None:
        self._looked_at = now
        self._make_true(now)
        if self._wanted or self._contested:
            self._advance(now)

    def _advance(self, now: float) -> None:
        """Looks for room until a look changes nothing: what one waiter gets, or gives up, another may need."""
        before: Any = None
        for _ in range(MOST_LOOKS):
            self._look_for_room(now)
            after = len(self._out), self._yielding, [m.claim for m in self._wanted.values()]
            if after == before:
                return
            before = after

    def _look_for_room(self, now: float) -> None:
        """Starts whatever can be started, oldest waiter first, making room where that is allowed."""
        if self.stopping:
            return
        if self._wanted and self._end_loads_ahead(now) and self._overdrawn:
            self._make_true(now)  # what they give back may be enough
        self._drop_lost_claims()
        self._trust_ledger(now)
        look = _Look(self.ledger.devices, self._moving.values())
        workers = len(self._workers)
        # Whoever was promised room comes first: else a victim with older requests would take it right back.
        usual = self.config.request_timeout
        waiting = [
            (m.claim or math.inf, turns.urgency(head, usual, now), turns.due(head, usual), head.seq, m)
            for m in self._wanted.values()
            if (head := m.queue.head())
        ]
        for *_, model in sorted(waiting):
            if model.short and model.yielding:
                continue  # it would not be served
            if not model.short and (model.state not in (State.UNLOADED, State.FAILED) or model.others):
                continue  # its last process is not gone yet
            if now < model.retry_at:
                self._look_again(model.retry_at)
                continue
            self._try_to_place(model, now, look)
        self._contested = bool(look.spoken_for)
        if look.yielding and len(self._workers) > workers:
            self._yielding |= look.yielding  # who started since has changed what they yield for: the next look tells
            return
        no_longer, self._yielding = self._yielding - look.yielding, look.yielding
        for name in sorted(no_longer):
            model = self._named(name)
            if model.yielding:
                model.yielding = False
                if model.state is State.LOADED:
                    self._serve(model, now)

    def _trust_ledger(self, now: float) -> None:
        """Where a reading is late for too long, it is gone on without."""
        for device, why in self.unread.expired(now):
            text = f"{device}: {why}, for too long: what is started there goes by what is charged alone"
            self.story.tell(now, "", text, "by the ledger", device=device)
        if self._wanted and (end := self.unread.next_end()) < math.inf:
            self._look_again(end)

    def _free_places(self, model: Residency, now: float) -> tuple[dict[str, float], dict[str, float]]:
        """Where it fits without anybody's going, with what it needs there, and what is free on each device."""
        room = {name: self.ledger.free_mb(name) for name in self.devices_for(model)}
        need = {
            name: mb
            for name in room
            if (mb := model.need_mb(name)) <= room[name] + EPSILON_MB
            and self._doubts.until(name, now) is None
            and not self.unread.why_not(name)
        }
        return need, room

    def _load_ahead(self, now: float) -> None:
        """Loads what usually follows the last request, where that takes nothing from anybody. See `prefetch.py`."""
        if self._wanted or self._moving or self._tense or any(map(self.unread.is_late, self.ledger.devices)):
            return  # later, perhaps
        after, self._asked_last = self._asked_last, ""
        for probability, model in prefetch.likely(self.habits, after, self.models.values(), now):
            need, room = self._free_places(model, now)
            if need:
                device = choose(need, room, ())
                self.story.tell(
                    now, model.name,
                    f"loaded ahead: follows {after} {probability:.0%} of the time, and needs {need[device]:g} of "
                    f"{room[device]:g} MB that are free on {device}",
                    "ahead", after=after, probability=round(probability, 3), need_mb=need[device],
                    free_mb=room[device],
                )  # fmt: skip
                model.unasked = True
                self._start(model, device, now)
                self._asked_last = after  # there may be room for more
                return

    def _restore(self, now: float) -> None:
        """Loads what was resident before the broker's start, one after another, as guesses are."""
        if self._wanted or self._moving or self._tense:
            return
        while self._absent:
            model = self.models.get(self._absent.pop(0))
            if model is None or model.state is not State.UNLOADED or model.leaving or model.pinned or model.others:
                continue
            need, room = self._free_places(model, now)
            if need:
                device = choose(need, room, ())
                text = f"loaded again, as it was before the broker's start: {need[device]:g} of {room[device]:g} MB"
                self.story.tell(now, model.name, text, "restored", need_mb=need[device], free_mb=room[device])
                model.unasked = True
                self._start(model, device, now)
                return

    def _end_loads_ahead(self, now: float) -> bool:
        """A load is waited for: those that were guessed are in its way, or will be. True when there were any."""
        ended = False
        for model in list(self._moving.values()):
            if model.unasked and model.state is State.LOADING:
                self._move(model, Move.KILL)
                model.misguessed, model.unasked = True, False
                others = tuple(self._wanted)
                text = f"its load ahead of any request ends: {', '.join(others)} waits for a load"
                self.story.tell(now, model.name, text, "dropped", others=others)
                self._out.append(KillWorker(model.worker))
                ended = True
        return ended

    def _drop_lost_claims(self) -> None:
        """Memory that was coming back has got stuck: whoever it no longer reaches waits like those without a claim."""
        coming = {name: self._coming_mb(name) for name in self.ledger.devices}
        for model in sorted((m for m in self._wanted.values() if m.claim), key=lambda m: m.claim):
            need = self._lacks_mb(model, model.claim_on)
            if need > coming[model.claim_on] + EPSILON_MB:
                model.claim = 0
            else:
                coming[model.claim_on] -= need

    def _try_to_place(self, model: Residency, now: float, look: _Look) -> None:
        devices = [model.device] if model.short else self.devices_for(model)
        fitting = [d for d in devices if model.need_mb(d) <= self.ledger.devices[d].budget_mb + EPSILON_MB]
        if not fitting:
            if model.short:
                self._starved(model, self._no_room(model, devices), now)
            else:
                self._outgrown(model)
            return
        need = {name: self._lacks_mb(model, name) for name in fitting}
        fitting = fitting if model.short else self._sound(model, fitting, now) or fitting
        spare = {name: self._coming_mb(name) - look.claimed[name] for name in fitting}
        free = [
            name
            for name in fitting
            if model.short or (look.loading[name] < self.config.concurrent_loads and not self.unread.why_not(name))
        ]
        # A claim takes what is coming first, and what is free only for the rest.
        room = {name: min(mb, self.ledger.free_mb(name)) for name, mb in spare.items()}
        if device := self._best_place(model, [name for name in free if need[name] <= room[name] + EPSILON_MB], room):
            self._let_in(model, device, now, look)
            return
        for device in [model.claim_on, *free] if model.claim else free:
            if need[device] <= spare[device] + EPSILON_MB:
                self._claim(model, device, look)
                return
        if not model.short:  # it needs no load
            self._give_up_hopeless(model, now)
        head = model.queue.head()
        if head is None:
            return
        if not model.short:
            self._look_again(turns.hopeless_from(head))
        needed = {name: need[name] - spare[name] for name in free}
        if self._evict_for(model, head, needed, now, look):
            return
        if not free:
            if unread := [name for name in fitting if self.unread.why_not(name)]:
                why = " / ".join(f"{name}: {self.unread.why_not(name)}" for name in unread)
                self._blocked(model, "unread", f"nothing is started on {why}", now)
            else:
                self._blocked(model, "loading", "another model is loading", now)
            return
        self._ask_to_yield(model, head, needed, now, look)

    def _evict_for(self, model: Residency, head: Request, missing: dict[str, float], now: float, look: _Look) -> bool:
        """Makes room by evicting whoever is idle, where that suffices and least is lost. False where it does not."""
        plans = []
        for device, needed in missing.items():
            idle = self._candidates(device, look.spoken_for, model.name, now, busy=False)
            victims = self.policy.choose(needed, idle, model.config.priority)
            if victims is not None:
                spared = [c for c in idle if c not in victims]
                plans.append((self.policy.loss(victims), device, victims, spared))
        if not plans:
            return False
        _, device, victims, spared = min(plans, key=lambda plan: plan[0])
        if self._lingering(model, head, victims, now):
            look.spoken_for.update(victim.model for victim in victims)
            return True
        need, needed = self._lacks_mb(model, device), missing[device]
        for victim in victims:
            self._evict(
                self._named(victim.model),
                f"{model.name} needs {need:g} MB{' more' if model.short else ''}, {needed:g} MB short of "
                f"{self.ledger.limit_mb(device):g}; {self.policy.why(victim, spared, now)}",
                now,
            )
        self._tell_spared(model, needed, victims, spared, now)
        if need <= self.ledger.free_mb(device) + EPSILON_MB:  # what comes back is for an older claim
            self._let_in(model, device, now, look)
        else:
            self._claim(model, device, look)
        return True

    def _lacks_mb(self, model: Residency, device: str) -> float:
        """What has to be free for it: all that its process takes, or what a process that is there lacks of that."""
        return model.need_mb(device) - (model.mb if model.short else 0.0)

    def _let_in(self, model: Residency, device: str, now: float, look: _Look) -> None:
        if model.short:
            self._enlarge(model, now)
        else:
            look.loading[device] += 1
            self._start(model, device, now)

    def _enlarge(self, model: Residency, now: float) -> None:
        """Its process may be charged what it needs, and those who waited for that are served."""
        before, model.mb = model.mb, model.need_mb(model.device)
        self.ledger.recharge(model.worker, model.mb)
        self._stay_small(model)
        used, limit = self.ledger.used_mb(model.device), self.ledger.limit_mb(model.device)
        self.story.tell(
            now, model.name,
            f"charged {model.mb:g} instead of {before:g} MB on {model.device}, {used:g} of {limit:g} MB in all: what "
            "ran out of memory is tried once more",
            "grown", mb=model.mb, before_mb=before, device=model.device,
        )  # fmt: skip
        self._serve(model, now)

    def _stay_small(self, model: Residency) -> None:
        """It does not wait for more memory (any more)."""
        if model.short:
            model.short = []
            self._wants_no_more(model)

    def _wants_no_more(self, model: Residency) -> None:
        """Nobody waits for its room, or it has got it."""
        self._wanted.pop(model.name, None)
        model.unblock()
        model.claim = 0

    def _tell_spared(
        self, model: Residency, needed: float, victims: list[Candidate], spared: list[Candidate], now: float
    ) -> None:
        """Who could have gone as well."""
        spared = [c for c in spared if c.mb > 0]
        if not spared:
            return
        freed = sum(victim.mb for victim in victims)
        who = [
            f"{c.model} {c.mb:g} MB ({c.priority.name}, unused for {now - c.last_used:.1f} s)"
            for c in spared[:MOST_SPARED]
        ]
        more = f" and {len(spared) - MOST_SPARED} more" if len(spared) > MOST_SPARED else ""
        text = (
            f"spared for it: {', '.join(who)}{more}; {', '.join(v.model for v in victims)} gave {freed:g} MB, "
            f"{needed:g} were needed"
        )
        others = tuple(c.model for c in spared)
        self.story.tell(now, model.name, text, "spared", others=others, needed_mb=needed, freed_mb=freed)

    def _load_failed_on(self, device: str, model: Residency, now: float) -> None:
        model.failed_on = device
        if self._doubts.failed(device, model.name, now):
            why = f"{MODELS_IN_DOUBT} models in a row could not be loaded on {device}"
            text = f"{why}: for {DOUBT_S:g} s nothing is loaded there that fits elsewhere"
            self.story.tell(now, "", text, "in doubt", device=device, seconds=DOUBT_S)

    def _sound(self, model: Residency, devices: list[str], now: float) -> list[str]:
        """Those on which loads succeed, or on which room has been made for the model already."""
        until = {device: self._doubts.until(device, now) for device in devices}
        sound = [name for name in devices if until[name] is None or (model.claim and name == model.claim_on)]
        for end in until.values() if sound else ():
            if end is not None:
                self._look_again(end)
        return sound

    def _best_place(self, model: Residency, devices: list[str], room: dict[str, float]) -> str | None:
        """Which of the devices that have room for the model; rather not where its last load has failed."""
        devices = [device for device in devices if device != model.failed_on] or devices
        if len(devices) < 2:
            return devices[0] if devices else None
        absent = [
            {device: other.need_mb(device) for device in self.devices_for(other) if device in room}
            for other in self.models.values()
            if other is not model and not other.worker and not other.leaving
        ]
        return choose({device: model.need_mb(device) for device in devices}, room, absent)

    def _claim(self, model: Residency, device: str, look: _Look) -> None:
        look.claimed[device] += self._lacks_mb(model, device)
        model.claim, model.claim_on = model.claim or next(self._claims), device
        model.unblock()

    def _coming_mb(self, device: str) -> float:
        """Free now, plus what processes being killed are about to give back."""
        coming = self.ledger.free_mb(device)
        for worker, model in self._moving.items():
            if model.state is State.EVICTING and model.device == device:
                charge = self.ledger.of(worker)
                coming += charge.mb if charge else 0.0
        return coming

    def _candidates(self, device: str, spoken_for: set[str], wanted: str, now: float, *, busy: bool) -> list[Candidate]:
        """Models on the device that may go; with `busy`, also those that would be free once they stop taking work."""
        candidates = [
            Candidate(m.name, m.mb, m.config.priority, m.last_used, m.load_seconds, m.dispensable, unasked=m.unasked)
            for m in self._workers.values()
            if m.state is State.LOADED
            and m.device == device
            and not m.leases
            and not m.pinned
            and m.name != wanted
            and m.name not in spoken_for
            and (busy or (not m.inflight and (not m.queue.live or m.yielding)))
        ]
        return self.policy.valued(candidates, wanted, now)

    def _lingering(self, model: Residency, head: Request, victims: list[Candidate], now: float) -> bool:
        """Some of them are idle for a moment only, it seems: they are given that moment."""
        until = {
            v.model: turns.lingers_until(self._named(v.model), model, head, self.config.patience_seconds)
            for v in victims
            if not v.unasked
        }
        names = [name for name, moment in until.items() if moment > now]
        if names:
            self._look_again(max(until.values()))
            crowd = ", ".join(names)
            self._blocked(model, crowd, f"a moment for {crowd}, whose callers usually come right back", now)
        return bool(names)

    def _ask_to_yield(
        self, model: Residency, head: Request, missing: dict[str, float], now: float, look: _Look
    ) -> None:
        """Nobody idle can make room. When their turn is over (see `turns.py`), busy models stop taking work.

        What it waits for is not taken from under it by those who came later and would have to evict the same models;
        and once it has lost patience, nor is the room that is free, or small ones could hold up a big one for ever.
        """
        patience = self.config.patience_seconds
        for device, needed in missing.items():
            candidates = self._candidates(device, look.spoken_for, model.name, now, busy=True)
            awaited = [c for c in candidates if c.model in model.awaits]
            victims = self.policy.choose(needed, awaited, model.config.priority) if awaited else None
            if victims is None:
                victims = self.policy.choose(needed, candidates, model.config.priority)
            if victims is None:
                continue
            model.awaits = tuple(v.model for v in victims)
            busy = [self._named(v.model) for v in victims]
            turn = max(turns.gives_way_at(m, model, head, patience) for m in busy)
            if now >= turn:
                for m in busy:
                    if not m.yielding:
                        self.story.tell(now, m.name, f"yields: {model.name} waits for its room", "yields")
                    m.yielding = True
                    look.yielding.add(m.name)
            else:
                self._look_again(turn)
            if now >= head.since + patience:
                look.claimed[device] += self._lacks_mb(model, device)
            else:
                self._look_again(head.since + patience)
            look.spoken_for.update(m.name for m in busy)
            names = ", ".join(m.name for m in busy)
            self._blocked(model, names, f"for {names} to finish", now)
            return
        why = self._no_room(model, list(missing))
        if look.spoken_for:
            why += f" (those who came first wait for {', '.join(sorted(look.spoken_for))})"
        if model.short:
            self._starved(model, why, now)
        else:
            self._blocked(model, "room", why, now)

    def _look_again(self, when: float) -> None:
        if when < self._look_at:
            self._look_at = when
            self.timers.add(when, Due.LOOK)

    def unreturned_mb(self, device: str) -> float:
        """Charged for processes that ended long ago, whose memory the device does not show free."""
        return sum(c.mb for c in self.ledger.charges() if c.device == device and c.worker not in self._workers)

    def _no_room(self, model: Residency, devices: list[str]) -> str:
        return " / ".join(
            f"needs {model.need_mb(device):g} MB on {device}, {max(0.0, self.ledger.free_mb(device)):g} of "
            f"{self.ledger.limit_mb(device):g} MB are free and nobody may go: {self._users(device)}"
            for device in devices
        )

    def _users(self, device: str) -> str:
        there = [m for m in self._workers.values() if m.device == device and m.mb > 0]
        users = [f"{m.name} {m.mb:g} MB ({m.config.priority.name}, {m.reasons()})" for m in there]
        if there and all(m.pinned or m.leases for m in there):
            users[0] = f"all pinned or leased: {users[0]}"
        if stuck := self.unreturned_mb(device):
            users.append(f"{stuck:g} MB of ended processes have not come back")
        if (left := self.ledger.limit_mb(device)) < (budget := self.ledger.devices[device].budget_mb):
            users.append(f"other programs leave {left:g} of the budget's {budget:g} MB")
        return "; ".join(users)

    def _blocked(self, model: Residency, by: str, why: str, now: float) -> None:
        """`why` is kept up to date for the answer; the story hears it once for each `by`."""
        model.blocked = why
        if model.blocked_by != by:
            model.blocked_by = by
            self.story.tell(now, model.name, f"waits: {why}", "waits", waiting=model.waiting)

    def _start(self, model: Residency, device: str, now: float) -> None:
        worker = next(self._worker_ids)
        model.mb = model.need_mb(device)
        self.ledger.charge(worker, model.name, device, model.mb)
        model.worker, model.device, model.started_at = worker, device, now
        self._move(model, Move.START)
        model.watched = worker
        model.failed_load = model.yielding = model.unload_when_loaded = model.outdated = model.noted = False
        self._wants_no_more(model)
        self._workers[worker] = model
        self.timers.add(now + self.config.load_timeout, Due.WATCH, worker)
        used, budget = self.ledger.used_mb(device), self.ledger.limit_mb(device)
        self.story.tell(
            now, model.name,
            f"loading on {device}: {model.first.waiting} waiting; {used - model.mb:g} + {model.mb:g} = {used:g} of "
            f"{budget:g} MB",
            "loading", device=device, worker=worker, mb=model.mb, used_mb=used, limit_mb=budget, waiting=model.waiting,
        )  # fmt: skip
        self._out.append(StartWorker(worker, model.config.name, device))
