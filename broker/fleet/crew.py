"""The service's part about workers: their processes, what they say, what they use; starts, kills and dispatches done.

A process is forked ahead of need, or when a worker is wanted, and is told its model by the first message on its
channel. When it has ended, its memory is watched until it is back, or counts as stuck.
"""

from __future__ import annotations

import itertools
import logging
import os
import secrets
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import msgspec

from broker.fleet import border, environment, nvidia
from broker.fleet.editions import Editions
from broker.fleet.pool import BY_SIGKILL, Child, Ended, Failed, News, Pool, Started
from broker.fleet.standby import Standby
from broker.front.handoff import Line
from broker.front.inline import Arrivals, part_bytes
from broker.loop import Loop
from broker.memory import footprints, meters
from broker.memory.container import Container
from broker.memory.host_cache import Copies
from broker.memory.oom_killer import OomKiller
from broker.memory.usage import Finding, Looked, MemoryUsage
from broker.metrics import Metrics
from broker.scheduler.events import (
    Dispatch,
    Forgotten,
    KillWorker,
    MemoryBack,
    MemoryStuck,
    Remembered,
    StartWorker,
    WorkerDone,
    WorkerExited,
    WorkerLoadFailed,
    WorkerReady,
    WorkerSaid,
)
from zoo.config.schema import ZooConfig
from zoo.errors import ProtocolMismatch
from zoo.wire import protocol
from zoo.wire.arena import ArenaRefused
from zoo.wire.channel import Channel
from zoo.wire.launch import Launch, Seat

log = logging.getLogger("zoo.broker")

TERM_GRACE_S = 0.3  # for the stacks of a worker that hangs to be written, and for what an adapter does at SIGTERM
FORKS_MOST = 3  # for one worker, when nurseries die of them or just then
UNTOLD = "somebody else, or the kernel because memory ran out (its log would say so)"


class Worker:
    """A process.

    Attributes:
        number: the scheduler's; negative while it waits to be given a model.
        version: of the model's weights when it was started.
        copied: it was given a copy, and has not said yet whether that was of use.
        forks: how often the nursery was asked for it.
        held: messages of its that wait until it was measured, the first of them what it is measured for.
        told: it has been sent `launch`.
        loaded: it has said how its load went.
        nonsense: it has said what none of ours would say; it is being killed, and not listened to any more.
    """

    __slots__ = (
        "arena", "channel", "child", "copied", "device", "forks", "held", "key", "killed_at", "launch", "line",
        "loaded", "model", "nonsense", "number", "stand_in", "term_until", "told", "unsent", "version", "worked",
    )  # fmt: skip

    def __init__(self, number: int, key: bytes) -> None:
        self.number = number
        self.key = key
        self.model = ""
        self.device = ""
        self.version = ""
        self.launch: Launch | None = None
        self.copied = False
        self.forks = 1
        self.held: list[list[bytes]] = []
        self.told = False
        self.child: Child | None = None
        self.channel: Channel | None = None
        self.line: Line | None = None
        self.arena = 0
        self.stand_in = False
        self.loaded = self.nonsense = False
        self.unsent = False
        self.worked = False
        self.killed_at = 0.0
        self.term_until = 0.0


class Crew(Loop):
    """See the module's docstring."""

    def __init__(self, config: ZooConfig, endpoint_given: str = "") -> None:
        super().__init__(config, endpoint_given)
        self.usage = MemoryUsage(self.meters, self._measures)
        self.copies = Copies(int(config.broker.host_cache_mb * meters.MB))
        self.oom_killer = OomKiller()
        self.editions = Editions()
        self._footprints = footprints.FootprintFile(config.state) if self._measures else None
        self._learnt = 0
        self._workers: dict[int, Worker] = {}
        self._by_key: dict[bytes, Worker] = {}
        self._standby = Standby()
        self._forked = itertools.count(1)
        self.arrivals = Arrivals(config.broker.max_inline_mb)
        self._terminating: set[int] = set()
        self._cores = Container().cores()
        self._actions |= {StartWorker: self._do_start, KillWorker: self._do_kill, Dispatch: self._do_dispatch}
        self._amends |= {StartWorker: self._start_failed, Dispatch: self._end_worker, KillWorker: self._kill_later}
        self._amends |= dict.fromkeys((WorkerReady, WorkerLoadFailed, WorkerDone, WorkerSaid), self._end_worker)
        self._amends |= dict.fromkeys((WorkerExited, MemoryBack, MemoryStuck), self._handle)  # true, and said only once
        if str(config.base) not in sys.path:
            sys.path.append(str(config.base))  # adapters may lie beside config.toml
        if any(device.kind == "cuda" for device in self.scheduler.ledger.devices.values()):
            nvidia.make_device_files()
        self.pool = Pool(_preload(config), environment.of_workers(config.broker), config.base)
        self.metrics = Metrics(self.scheduler, self.copies, self.guard, config.broker.metrics)
        self._add(self.pool.fileno(), self._hear_pool)
        self._add(self.usage.fileno(), lambda: self._pass_on(self.usage.take()))
        self._pass_on(self.usage.open())
        self._refill()
        for name in self.scheduler.models:
            self._recall(name)

    def _read_line(self, line: Line) -> None:
        """Takes what lies on a lifeline: see `service.py`, as for the next."""
        raise NotImplementedError

    def _close_line(self, line: Line) -> None:
        raise NotImplementedError

    # ------------------------------------------------------------ what they say

    def _read_channel(self, number: int) -> bool:
        """Takes what a worker says, and goes on with what it has been too slow to read. False: there was nothing."""
        worker = self._workers.get(number)
        if worker is None or worker.channel is None:
            return False
        try:
            if worker.unsent and worker.channel.flush():
                self._watch_writing(worker, False)
            channel = worker.channel
            messages = channel.take()
        except OSError as e:
            self._lost_channel(worker, e)
            return False
        for parts in messages or ():
            if number > 0:  # a process that waits for a model has nothing to say
                self._from_worker(number, parts)
        if worker.channel is channel:
            if channel.reserved:
                self.arrivals.give_back(channel.given_out())
            if channel.stalled:
                self.arrivals.stalled.add(number)
                self._watch_writing(worker, worker.unsent)
        return messages is not None

    def _lost_channel(self, worker: Worker, why: OSError) -> None:
        """Its end has closed: it is ending, or talks nonsense and has to."""
        log.debug("the channel of worker %d of %s: %s", worker.number, worker.model, why)
        self._close_channel(worker)
        if worker.child is not None:
            worker.child.signal(signal.SIGKILL)

    def _close_channel(self, worker: Worker) -> None:
        channel, worker.channel = worker.channel, None
        if channel is not None:
            self._drop(channel.fd)
            self.arrivals.give_back(channel.reserved)
            self.arrivals.stalled.discard(worker.number)
            channel.close()

    def _read_stalled(self) -> None:
        """Goes on with workers whose large messages had to wait for others to be through."""
        stalled, self.arrivals.stalled = self.arrivals.stalled, set()
        for number in stalled:
            worker = self._workers.get(number)
            if worker is not None and worker.channel is not None:
                self._read_channel(number)
                if worker.channel is not None and not worker.channel.stalled:
                    self._watch_writing(worker, worker.unsent)

    def _watch_writing(self, worker: Worker, on: bool) -> None:
        assert worker.channel is not None
        worker.unsent = on
        events = 0 if worker.channel.stalled else select.EPOLLIN
        self._epoll.modify(worker.channel.fd, events | (select.EPOLLOUT if on else 0))

    def _open_channel(self, line: Line, fd: int | None) -> None:
        worker = self._by_key.get(line.key) if line.role == "worker" else None
        if fd is None or worker is None or worker.channel is not None:
            if fd is not None:
                os.close(fd)
            raise ConnectionError("it offered a channel that was not asked for")
        sock = border.stream(fd)
        worker.channel = Channel(sock, self.arrivals.most, self.arrivals.make_room)
        self._add(
            sock.fileno(),
            lambda: self._read_channel(worker.number),
            lambda: self._lost_channel(worker, OSError("an error in the broker")),
        )
        self._brief(worker)

    def _tell_worker(self, worker: Worker, parts: tuple[bytes, ...]) -> None:
        assert worker.channel is not None
        try:
            if not worker.channel.send(parts) and not worker.unsent:
                self._watch_writing(worker, True)
        except OSError as e:
            self._lost_channel(worker, e)

    def _from_worker(self, number: int, parts: list[bytes], *, measured: bool = False) -> None:
        """`measured`: these words have been kept back until the worker was measured."""
        worker = self._workers[number]
        if worker.held and not measured:
            worker.held.append(parts)
            return
        if worker.nonsense:
            return
        try:
            self._take_word(worker, protocol.unpack_from_worker(parts[0]), parts, measured)
        except ProtocolMismatch as e:
            log.warning("%s (worker %d) talks nonsense and is ended: %s", worker.model, number, e)
            worker.nonsense, worker.killed_at = True, time.monotonic()
            self._lost_channel(worker, ConnectionError(str(e)))

    def _take_word(self, worker: Worker, message: protocol.FromWorker, parts: list[bytes], measured: bool) -> None:
        """Raises ProtocolMismatch for what none of our workers would say."""
        number = worker.number
        if type(message) is protocol.Done:
            outcomes = border.outcomes(message, parts[1:])
            if not (worker.loaded and self.scheduler.awaits(number, [outcome.request for outcome in outcomes])):
                raise ProtocolMismatch("it answers what it was not asked")
            first, worker.worked = not worker.worked, True
            if first:
                self.usage.worked(number)
            # Unknown, it may be evicted in the very next moment; grown, it holds what others may be about to be given.
            look = message.grown or (first and not self.scheduler.is_measured(number))
            look = look or any(outcome.short is not None for outcome in outcomes)
            if look and not measured and self.usage.hold(number):
                worker.held.append(parts)
                return
            self._handle(WorkerDone(number, outcomes, message.halved))
            if len(self._standby) < self.config.broker.standby and self.scheduler.is_idle:
                self._refill()
            return
        if worker.loaded:
            raise ProtocolMismatch("it says again how its load went")
        if isinstance(message, protocol.Loaded):
            worker.loaded, worker.stand_in = True, message.stand_in
            self.usage.loaded(number)
            self._used_copy(worker, message.copied)
            self._handle(WorkerReady(number, border.batch(message.max_batch)))
            self.metrics.loaded(worker.model, self.scheduler.loaded_in(number))
        elif isinstance(message, protocol.LoadError):
            if message.short is not None and not measured and self.usage.hold(number):
                worker.held.append(parts)
                return
            worker.loaded = True  # as far as it will be: there is nothing more to be said
            code, why = message.code[: border.MOST_CODE], border.text(message.message)
            self._handle(WorkerLoadFailed(number, code, why, border.shortage(message.short), message.retryable))

    # ------------------------------------------------------------ processes

    def _fork(self) -> Worker:
        """Has a process made that waits for its model."""
        worker = Worker(-next(self._forked), _new_key())
        self._workers[worker.number] = worker
        self._by_key[worker.key] = worker
        self.pool.start(Seat(worker.key, self.place.handoff, self.handoff.limit))
        return worker

    def _refill(self) -> None:
        """Sees to it that as many wait in reserve as should. Not while a model is loading: a fork would slow that."""
        if self.scheduler.stopping or self.scheduler.is_loading:
            return
        now, wanted = time.monotonic(), self.config.broker.standby
        for _ in range(self._standby.lacks(wanted, now)):
            self._standby.add(self._fork().number)
        while len(self._standby) > wanted and (number := self._standby.take()) is not None:
            self._do_kill(KillWorker(number))

    def _employ(self, number: int) -> Worker:
        """A process for the scheduler's worker of that number: one that waits, however far it is, or else a new one."""
        while (waiting := self._standby.take()) is not None:
            worker = self._workers[waiting]
            if worker.child is None or not worker.child.has_ended():  # the news of its end may be on the way to us
                self._standby.used()
                break
        else:
            worker = self._fork()
        self._workers[number] = self._workers.pop(worker.number)
        worker.number = number
        return worker

    def _hear_pool(self) -> None:
        for news in self.pool.turn():
            take = partial(self._take_news, news)
            self.guard.run("news of a process", take, take)  # tried again: it is told only once

    def _take_news(self, news: News) -> None:
        if isinstance(news, Ended):
            if (worker := self._by_key.get(news.child.key)) is not None:
                self._ended(worker.number, news.child)
            else:
                news.child.close()
        elif (worker := self._by_key.get(news.key)) is None:
            if isinstance(news, Started):
                news.child.signal(signal.SIGKILL)
        elif isinstance(news, Started):
            self._started(worker, news.child)
        elif isinstance(news, Failed):
            self._not_started(worker, news.why)
        else:
            self._fork_again(worker)

    def _started(self, worker: Worker, child: Child) -> None:
        worker.child = child
        child.printed.source = lambda: (worker.model, worker.number)
        if worker.number > 0:
            self.usage.born(worker.number, child.pid, lambda: child.shares_pages)
        if worker.killed_at:
            child.signal(signal.SIGKILL)

    def _not_started(self, worker: Worker, why: str) -> None:
        number = worker.number
        if worker.line is not None:
            self._close_line(worker.line)
        self._forget_worker(number)
        if number < 0:
            self._standby.lost(number, time.monotonic())
            return
        self._handle(WorkerExited(number, why))
        self.usage.forget(number)
        self._handle(MemoryBack(number))

    def _fork_again(self, worker: Worker) -> None:
        """The nursery died while it was to fork this one. What it may have forked is dead, and its name with it."""
        if worker.killed_at or worker.forks >= FORKS_MOST:
            self._not_started(worker, f"the nursery died while it was to fork it, {worker.forks} times")
            return
        if worker.line is not None:
            self._close_line(worker.line)
            worker.line = None
        self._close_channel(worker)
        worker.told = worker.loaded = False
        del self._by_key[worker.key]
        worker.forks += 1
        worker.key = _new_key()
        self._by_key[worker.key] = worker
        self.pool.start(Seat(worker.key, self.place.handoff, self.handoff.limit))

    def _ended(self, number: int, child: Child) -> None:
        worker = self._workers[number]
        how = child.reap() or ""
        starved = None
        if how == BY_SIGKILL and not worker.killed_at:
            starved = self.oom_killer.struck()
            how += ", by " + {True: "the kernel: memory ran out", False: "somebody else", None: UNTOLD}[starved]
        # Its end is told once: nothing that fails on the way may keep the scheduler from hearing of it.
        self.guard.run("reading a worker's last words", lambda: self._hear_out(number))
        if number > 0:
            line = worker.line.fd if worker.line is not None else None
            self.guard.run("measuring a worker's end", lambda: self._pass_on(self.usage.ended(number, line)))
        if worker.line is not None:
            self.guard.run("closing a worker's lifeline", lambda: self._close_line(worker.line))  # type: ignore[arg-type]
        self.guard.run("closing a worker's descriptors", child.close)
        self.guard.run("forgetting a worker", lambda: self._forget_worker(number))
        if number < 0:
            if not worker.killed_at:
                log.warning("a process that waited for a model has ended: %s", how)
                self._standby.lost(number, time.monotonic())
            return
        self.guard.run("dropping a copy of no use", lambda: self._used_copy(worker, False))
        self._handle(WorkerExited(number, how, starved is True))

    def _hear_out(self, number: int) -> None:
        """What it said before it ended comes before its end."""
        while self._read_channel(number):
            pass
        self.usage.release(number)
        self._go_on(number)

    def _forget_worker(self, number: int) -> None:
        worker = self._workers.pop(number, None)
        if worker is not None:
            self._close_channel(worker)
            self._by_key.pop(worker.key, None)
            self._terminating.discard(number)

    def _escalate(self, now: float) -> None:
        for number in list(self._terminating):
            worker = self._workers.get(number)
            if worker is None:
                self._terminating.discard(number)
            elif now >= worker.term_until and worker.child is not None:
                worker.child.signal(signal.SIGKILL)
                self._terminating.discard(number)  # only now: what has failed is tried again

    def _closing(self) -> list[Callable[[], object]]:
        """What has to be done at the end, each whatever becomes of the others."""
        first: list[Callable[[], object]] = [self._remember, self.metrics.close, self.pool.close, self.handoff.shut]
        channels = [partial(self._close_channel, worker) for worker in self._workers.values()]
        return [*first, *channels, self.usage.close, self.copies.close]

    # ------------------------------------------------------------ memory

    @property
    def _measures(self) -> bool:
        return self.config.broker.footprint == "measured"

    def _pass_on(self, findings: Iterable[Finding]) -> None:
        """What was found out about memory goes to the scheduler, each before the next is looked for."""
        for found in findings:
            if isinstance(found, Looked):
                self._go_on(found.worker)
            else:
                self._handle(found)

    def _go_on(self, number: int) -> None:
        """Takes the messages of a worker that were kept back."""
        if (worker := self._workers.get(number)) is None:
            return
        held, worker.held = worker.held, []
        for n, parts in enumerate(held):
            if number in self._workers:
                self._from_worker(number, parts, measured=n == 0)

    def _recall(self, name: str) -> None:
        """Sees to it that the scheduler knows what was measured of the weights that lie there now, and no others."""
        model = self.scheduler.models[name]
        weights = footprints.version(self.config, model.config)
        if weights != model.version:
            peaks = self._footprints.recall(name, weights) if self._footprints is not None else {}
            self._handle(Remembered(name, weights, peaks))

    def _forget_footprint(self, name: str) -> None:
        self._handle(Forgotten(name))
        if self._footprints is not None and self._footprints.known.pop(name, None) is not None:
            self._footprints.save()

    def _remember(self) -> None:
        """Writes down what is new."""
        if self._footprints is not None and self._learnt != self.scheduler.learnt:
            self._learnt = self.scheduler.learnt
            for model in self.scheduler.models.values():
                if model.peaks:
                    self._footprints.known[model.name] = footprints.Known(model.version, dict(model.peaks))
            self._footprints.save()

    # ------------------------------------------------------------ copies

    def _take_copy(self, line: Line, why: str, fd: int | None) -> None:
        """A worker offers a copy of its model, or says why there is none."""
        worker = self._by_key.get(line.key) if line.role == "worker" else None
        model = self.scheduler.models.get(worker.model) if worker is not None else None
        if worker is None or model is None or footprints.version(self.config, model.config) != worker.version:
            if fd is not None:
                os.close(fd)  # of weights that are not there any more
            return
        if fd is None:
            if self.copies.give_up(worker.model, worker.device, worker.version):
                log.info("%s: no copy of it can be kept, it is always loaded from its weights: %s", worker.model, why)
            return
        try:
            size = self.copies.keep(worker.model, worker.device, worker.version, fd)
            log.info("%s: a copy of it is kept in host memory, %d MB", worker.model, size >> 20)
        except ArenaRefused as e:
            log.info("%s: its copy is not kept: %s", worker.model, e)

    def _used_copy(self, worker: Worker, used: bool) -> None:
        """A copy that was given and did not lead to a loaded model is not given again."""
        if used:
            log.info("%s: made of its copy", worker.model)
        elif worker.copied:
            log.warning("%s: the copy of it that was kept is of no use and dropped", worker.model)
            self.copies.drop(worker.model, worker.device)
        worker.copied = False

    # ------------------------------------------------------------ deeds

    def _do_start(self, a: StartWorker) -> None:
        config = self.scheduler.models[a.model].config
        self.usage.starts(a.worker, a.device)
        worker = self._employ(a.worker)
        worker.model, worker.device = a.model, a.device
        if worker.child is not None:
            child = worker.child
            self.usage.born(a.worker, child.pid, lambda: child.shares_pages)
        self.editions.start(config)
        path = self.config.weights(config)
        worker.launch = Launch(
            model=a.model,
            adapter=config.adapter,
            path=os.fsencode(path) if path is not None else None,
            category=config.category,
            options=config.options,
            trust_pickle=config.trust_pickle,
            device="cuda:0" if self.meters[a.device].cuda else "cpu",  # the only one that it is shown
            visible=self.meters[a.device].cuda or "",
            threads=self.config.broker.worker_threads or max(1, self._cores // 4),
            inline_bytes=part_bytes(self.config.broker.max_inline_mb),
            pull=config.published if self.config.broker.auto_pull and config.published.fetchable else None,
        )
        self._brief(worker)

    def _end_worker(self, a: Any) -> None:
        """What its dispatch, or what it said, has led to cannot be trusted: its exit answers for its requests."""
        worker = self._workers.get(a.worker)
        if worker is not None:
            worker.killed_at = worker.killed_at or time.monotonic()  # if it is only being forked: then, at once
            if worker.child is not None:
                worker.child.signal(signal.SIGKILL)

    def _kill_later(self, a: KillWorker) -> None:
        """A kill has failed. It is said only once, and its model would be on its way out for ever."""
        worker = self._workers.get(a.worker)
        if worker is not None:
            worker.killed_at = worker.killed_at or time.monotonic()
            self._terminating.add(a.worker)

    def _start_failed(self, a: StartWorker) -> None:
        if a.worker in self._workers:
            self._do_kill(KillWorker(a.worker))
            return
        self._handle(WorkerExited(a.worker, "no process could be started, because of an error in the broker"))
        self.usage.forget(a.worker)
        self._handle(MemoryBack(a.worker))

    def _brief(self, worker: Worker) -> None:
        """Tells a process its model, as soon as there is a model to tell and a channel to tell it by."""
        launch = worker.launch
        if worker.told or launch is None or worker.channel is None or worker.line is None:
            return
        worker.told = True
        self.usage.briefed(worker.number)
        if self.copies.limit_bytes and (model := self.scheduler.models.get(worker.model)) is not None:
            worker.version = footprints.version(self.config, model.config)
            fd = self.copies.get(worker.model, worker.device, worker.version)
            worker.copied = fd is not None and worker.line.send(protocol.LifelineCopy(), fd)
            wanted = 0 if fd is not None else self.copies.wanted_bytes(worker.model, worker.device, worker.version)
            launch = msgspec.structs.replace(launch, copied=worker.copied, copy_bytes=wanted)
        self._tell_worker(worker, (msgspec.msgpack.encode(launch),))

    def _do_kill(self, a: KillWorker) -> None:
        worker = self._workers.get(a.worker)
        if worker is None:
            return
        worker.killed_at = time.monotonic()
        if worker.child is None:
            self.pool.cancel(worker.key)  # if it is too late for that, it is killed as soon as it exists, see _started
            return
        if a.gentle:
            worker.term_until = worker.killed_at + TERM_GRACE_S
            self._terminating.add(a.worker)
            worker.child.signal(signal.SIGQUIT, group=False)  # has it write the stacks of its threads
            worker.child.signal(signal.SIGTERM)
        else:
            worker.child.signal(signal.SIGKILL)

    def _do_dispatch(self, a: Dispatch) -> None:
        worker = self._workers.get(a.worker)
        if worker is None or worker.channel is None:
            return  # it has ended; its exit is on the way to the scheduler
        line = worker.line
        jobs, bodies = [], []
        for request, (arenas, inline, parts) in a.batch:
            for number in arenas:
                if line is None or (number not in line.given and not self.handoff.share(number, line)):
                    break  # the worker then refuses the frame by itself, or is gone
            jobs.append(protocol.Job(request, arenas, inline, len(parts)))
            bodies += parts
        header = protocol.pack(protocol.Dispatch(tuple(jobs), a.suspect, a.refuse))
        self._tell_worker(worker, (header, *bodies))

    # ------------------------------------------------------------ their results

    def _result_arena(self, number: int) -> int:
        """The worker's arena; its offer lies on the lifeline when it is not known yet."""
        worker = self._workers.get(number)
        if worker is None:
            return 0
        if not worker.arena and worker.line is not None:
            self._read_line(worker.line)
        return worker.arena

    def _give_back_result(self, number: int, offsets: tuple[int, ...]) -> None:
        arena = self._result_arena(number)
        for offset in offsets:
            self._free_result(arena, offset)

    def _free_result(self, arena: int, offset: int) -> None:
        """The worker may use the slot again."""
        found = self.handoff.arenas.get(arena)
        line = self.handoff.by_key.get(found.owner) if found is not None else None
        if line is not None:
            line.send(protocol.LifelineReleased(arena, offset))


def _new_key() -> bytes:
    return b"w-" + secrets.token_bytes(12)


def _preload(config: ZooConfig) -> list[str]:
    """Modules for the nursery: the adapters that come with the zoo (a user's own code is not run there)."""
    wanted: dict[str, None] = dict.fromkeys(config.broker.preload)
    for model in config.models:
        module = model.adapter.partition(":")[0]
        if model.enabled and module.startswith("workers.models."):
            wanted[module] = None
    return list(wanted)
