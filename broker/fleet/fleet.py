"""The workers: processes started, given a model and their requests, killed, and known to be gone.

A process is forked ahead of need, or when a worker is wanted, and is told its model by the first message on its
channel. When it has ended, its memory is watched until it is back, or counts as stuck.

Hangs are judged by the scheduler's clock, per dispatch: a heartbeat thread proves nothing about a stuck kernel. A
worker that hangs gets SIGQUIT first, which writes the stacks of its threads into the log, then SIGTERM for what its
adapter may do then, and 0.3 s later SIGKILL.

The parts, each knowing only those before it: `pool` (processes and their parent), `roster` (what is known of each, and
the reserve), `copying` (copies of loaded models), `reports` (what they say becomes events), `channels` (how they say
it), and this file: the scheduler's actions, lifelines, and ends.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from broker.core import Core
from broker.fleet import channels, copying, editions, environment, nvidia
from broker.fleet.pool import BY_SIGKILL, Child, Exited, Failed, News, Pool, Started
from broker.fleet.reports import ToldLoad, WorkerReports
from broker.fleet.roster import FORKS_MOST, Roster, WorkerProcess
from broker.front.handoff import Handoff, LifelineEnd, Takes
from broker.front.inline import part_bytes
from broker.labels import Labels
from broker.loop import Loop
from broker.memory import container, host_cache, oom_killer, usage
from broker.memory.meters import Meter
from broker.scheduler import events
from zoo.config.schema import ZooConfig
from zoo.wire import protocol
from zoo.wire.launch import Launch

log = logging.getLogger("zoo.broker")

TERM_GRACE_S = 0.3  # for the stacks of a worker that hangs to be written, and for what an adapter does at SIGTERM
TERMINATING_POLL_S = 0.02
STALLED_POLL_S = 0.01
SENDER = {
    True: "the kernel: memory ran out",
    False: "another process",
    None: "another process, or the kernel because memory ran out (its log would say so)",
}


@dataclass(eq=False)
class Fleet:
    """See the module's docstring.

    Attributes:
        usage: what the processes use of their devices.
        editions: which state of an adapter's file they run.
    """

    core: Core
    loop: Loop
    handoff: Handoff
    meters: dict[str, Meter]
    copies: host_cache.Copies
    labels: Labels
    told_load: ToldLoad

    def __post_init__(self) -> None:
        core, loop, config = self.core, self.loop, self.core.config
        self._run = core.guard.run
        self._submit = core.submit
        self._cores = container.Container().cores()
        self._oom_killer = oom_killer.OomKiller()
        self._terminating: set[WorkerProcess] = set()
        self.editions = editions.Editions()
        if str(config.base) not in sys.path:
            sys.path.append(str(config.base))  # adapters may lie beside config.toml
        if any(meter.cuda for meter in self.meters.values()):
            nvidia.make_device_files()
        self._pool = Pool(loop, _preload(config), environment.of_workers(config.broker), config.base)
        self.usage = usage.MemoryUsage(self.meters, core.measures)
        self._roster = Roster(core, self._pool, self.handoff)
        self._copying = copying.Copying(core, self.copies)
        reports = WorkerReports(core, self.usage, self._roster, self._copying, self.labels, self.told_load)
        self._channels = channels.Channels(loop, config.broker.max_inline_mb, reports.take)
        self._takes: Takes = {
            protocol.LifelineArena: self._take_arena,
            protocol.LifelineChannel: self._take_channel,
            protocol.LifelineCopy: self._take_copy,
            protocol.LifelineFingerprint: self._take_fingerprint,
        }
        loop.watch(self._pool.fileno(), self._hear_pool)
        loop.watch(self.usage.fileno(), lambda: self._pass_on(self.usage.take()))

    def open(self) -> None:
        """The first look at the devices, and the first processes."""
        self._pass_on(self.usage.open())
        self._roster.refill()

    @property
    def workers(self) -> Mapping[int, WorkerProcess]:
        """By the scheduler's number; those that wait for a model have negative ones."""
        return self._roster.by_number

    def due(self, now: float) -> float:
        """When there is something for `tick` to do."""
        due = self.usage.due(now)
        if self._terminating:
            due = min(due, now + TERMINATING_POLL_S)
        return min(due, now + STALLED_POLL_S) if self._channels.stalled else due

    # ------------------------------------------------------------ the scheduler's actions

    def start(self, a: events.StartWorker) -> None:
        config = self.core.config
        model = self.core.scheduler.models[a.model].config
        meter = self.meters[a.device]
        self.usage.starts(a.worker, a.device)
        worker = self._roster.employ(a.worker)
        worker.model, worker.device = a.model, a.device
        if worker.child is not None:
            self._born(worker, worker.child)
        self.editions.start(model)
        path = config.weights(model)
        worker.launch = Launch(
            model=a.model,
            adapter=model.adapter,
            path=os.fsencode(path) if path is not None else None,
            category=model.category,
            options=model.options,
            trust_pickle=model.trust_pickle,
            device="cuda:0" if meter.cuda else "cpu",  # the only one that it is shown
            visible=meter.cuda or "",
            threads=config.broker.worker_threads or max(1, self._cores // 4),
            inline_bytes=part_bytes(config.broker.max_inline_mb),
            pull=model.published if config.broker.auto_pull and model.published.fetchable else None,
        )
        self._brief(worker)

    def start_failed(self, a: events.StartWorker) -> None:
        """An error in the broker kept it from being started: the scheduler learns that it is gone."""
        worker = self.workers.get(a.worker)
        if worker is not None:
            self._roster.end(worker)
        else:
            self._never_was(a.worker, "no process could be started, because of an error in the broker")

    def dispatch(self, a: events.SendBatch) -> None:
        worker = self._roster.by_number.get(a.worker)
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
        self._channels.send(worker, (header, *bodies))

    def kill(self, a: events.KillWorker) -> None:
        worker = self.workers.get(a.worker)
        if worker is None:
            return
        if worker.child is None or not a.gentle:
            self._roster.end(worker)
            return
        worker.killed_at = time.monotonic()
        worker.term_until = worker.killed_at + TERM_GRACE_S
        self._terminating.add(worker)
        worker.child.signal(signal.SIGQUIT, group=False)  # has it write the stacks of its threads
        worker.child.signal(signal.SIGTERM)

    def distrust(self, of: Any) -> None:
        """Ends the `worker` of an event or action that has led to an error, at once: its exit answers for its requests,
        and a kill that has failed is not said again.
        """
        worker = self.workers.get(of.worker)
        if worker is not None:
            worker.kill()

    # ------------------------------------------------------------ lifelines

    def attach(self, line: LifelineEnd, key: bytes) -> bool:
        """The lifeline of a process. False: there is no such worker, or it has one."""
        worker = self._roster.by_key.get(key)
        if worker is None or not self.handoff.attach(line, "worker", key):
            return False
        worker.line, line.takes = line, self._takes
        return True

    def lost_line(self, line: LifelineEnd, gone: bool = True) -> None:
        """The exit of its process follows."""
        worker = self._roster.by_key.get(line.key)
        if worker is not None and worker.line is line:
            worker.line = None
        self.handoff.close(line)

    def _take_arena(self, line: LifelineEnd, _: protocol.LifelineArena, fd: int | None) -> None:
        number = self.handoff.offer(line, fd)
        if number is not None:
            self._roster.by_key[line.key].arena = number

    def _take_channel(self, line: LifelineEnd, _: protocol.LifelineChannel, fd: int | None) -> None:
        worker = self._roster.by_key[line.key]
        self._channels.open(worker, fd)
        self._brief(worker)

    def _take_copy(self, line: LifelineEnd, message: protocol.LifelineCopy, fd: int | None) -> None:
        self._copying.offered(self._roster.by_key[line.key], message.why, fd)

    def _take_fingerprint(self, line: LifelineEnd, message: protocol.LifelineFingerprint, _: int | None) -> None:
        self._submit(events.WorkerSaid(self._roster.by_key[line.key].number, message.id, message.digest[:64]))

    def _hear_line(self, worker: WorkerProcess) -> None:
        """What lies on its lifeline is taken now, before the loop comes to it."""
        line = worker.line
        if line is not None:
            try:
                self.handoff.hear(line)
            except ConnectionError:
                self.lost_line(line)

    def _close_line(self, worker: WorkerProcess) -> None:
        """What it said last counts (a fingerprint, an arena)."""
        self._hear_line(worker)
        if worker.line is not None:
            self.lost_line(worker.line)

    def arena_of(self, number: int) -> int:
        """The arena of a worker's results, 0 for none; its offer lies on the lifeline when it is not known yet."""
        worker = self._roster.by_number.get(number)
        if worker is None:
            return 0
        if not worker.arena:
            self._hear_line(worker)
        return worker.arena

    # ------------------------------------------------------------ from the fork to the first request

    def _brief(self, worker: WorkerProcess) -> None:
        """Tells a process its model, as soon as there is a model to tell and a channel to tell it by."""
        launch = worker.launch
        if worker.told or launch is None or worker.channel is None or worker.line is None:
            return
        worker.told = True
        self.usage.gauge.briefed(worker.number, time.monotonic())
        launch = self._copying.give(worker, launch)
        self._channels.send(worker, (msgspec.msgpack.encode(launch),))

    def _hear_pool(self) -> None:
        for news in self._pool.news():
            take = partial(self._take_news, news)
            self._run("news of a process", take, take)  # tried again: it is told only once

    def _take_news(self, news: News) -> None:
        worker = self._roster.by_key.get(news.child.key if isinstance(news, Exited) else news.key)
        match news:
            case Exited(child):
                if worker is not None:
                    self._ended(worker, child)
                else:
                    child.close()
            case Started(_, child):
                if worker is not None:
                    self._started(worker, child)
                else:
                    child.signal(signal.SIGKILL)
            case Failed(_, why) if worker is not None:
                self._not_started(worker, why)
            case _ if worker is not None:
                self._fork_again(worker)

    def _started(self, worker: WorkerProcess, child: Child) -> None:
        worker.child = child
        child.printed.source = lambda: (worker.model, worker.number)
        if worker.number > 0:
            self._born(worker, child)
        if worker.killed_at:
            child.signal(signal.SIGKILL)

    def _born(self, worker: WorkerProcess, child: Child) -> None:
        self.usage.born(worker.number, child.pid, lambda: child.shares_pages)

    def _fork_again(self, worker: WorkerProcess) -> None:
        """The nursery died while it was to fork this one. What it may have forked is dead."""
        if worker.killed_at or worker.forks >= FORKS_MOST:
            self._not_started(worker, f"the nursery died while it was to fork it, {worker.forks} times")
            return
        self._close_line(worker)
        self._channels.close(worker)
        self._roster.fork_again(worker)

    def _not_started(self, worker: WorkerProcess, why: str) -> None:
        self._close_line(worker)
        self._remove(worker)
        if worker.number < 0:
            self._roster.lost(worker)
        else:
            self._never_was(worker.number, why)

    def _never_was(self, number: int, why: str) -> None:
        self._submit(events.WorkerExited(number, why))
        self.usage.gauge.forget(number)
        self._submit(events.MemoryBack(number))

    # ------------------------------------------------------------ ends

    def _ended(self, worker: WorkerProcess, child: Child) -> None:
        """Its end is told once: nothing that fails on the way may keep the scheduler from hearing of it."""
        run = self._run
        number = worker.number
        how = child.reap() or ""
        starved = None
        if how == BY_SIGKILL and not worker.killed_at:
            starved = self._oom_killer.struck()
            how += f", by {SENDER[starved]}"
        run("reading a worker's last words", lambda: self._hear_out(worker))
        if number > 0:
            line = worker.line.fd if worker.line is not None else None
            run("measuring a worker's end", lambda: self._pass_on(self.usage.ended(number, line)))
        run("closing a worker's lifeline", lambda: self._close_line(worker))
        run("closing a worker's descriptors", child.close)
        run("forgetting a worker", lambda: self._remove(worker))
        if number > 0:
            run("dropping a copy of no use", lambda: self._copying.used(worker, False))
            self._submit(events.WorkerExited(number, how, starved is True))
        elif not worker.killed_at:
            log.warning("a process that waited for a model has ended: %s", how)
            self._roster.lost(worker)

    def _hear_out(self, worker: WorkerProcess) -> None:
        """What it said before it ended comes before its end."""
        while self._channels.read(worker):
            pass
        self.usage.release(worker.number)
        self._channels.go_on(worker)

    def _remove(self, worker: WorkerProcess) -> None:
        self._channels.close(worker)
        self._roster.remove(worker)
        self._terminating.discard(worker)

    # ------------------------------------------------------------ time

    def _escalate(self, now: float) -> None:
        """Kills those that were asked to end, and have not in time."""
        for worker in list(self._terminating):
            if now >= worker.term_until and worker.child is not None:
                worker.child.signal(signal.SIGKILL)
                self._terminating.discard(worker)  # only now: what has failed is tried again

    def tick(self, now: float) -> None:
        """To be called when `usage.due` says so, and as often as one likes."""
        run = self._run
        if self._terminating:
            run("ending workers", lambda: self._escalate(now))
        run("memory that comes back", lambda: self._pass_on(self.usage.tick(now)))
        if self._channels.stalled:
            run("reading workers that had to wait", self._channels.read_stalled)

    def housekeeping(self, now: float) -> None:
        """To be called every second or so."""
        run = self._run
        run("watching for the out-of-memory killer", self._oom_killer.watch)
        run("watching the nursery", lambda: self._pool.watch(now))
        run("looking for memory", lambda: self._pass_on(self.usage.look_for_stuck(now)))
        run("measuring", self.usage.survey)
        run("refilling the reserve", self._roster.refill)

    def close(self) -> None:
        """Ends all processes, and gives back what they had here."""
        run = self._run
        run("ending the processes", self._pool.close)
        for worker in self.workers.values():
            run("closing a channel", partial(self._channels.close, worker))
        run("ending the measuring", self.usage.close)

    # ------------------------------------------------------------ memory

    def _pass_on(self, findings: Iterable[usage.Finding]) -> None:
        """What was found out about memory goes to the scheduler, each before the next is looked for."""
        for found in findings:
            if isinstance(found, usage.Looked):
                worker = self.workers.get(found.worker)
                if worker is not None:
                    self._channels.go_on(worker)
            else:
                self._submit(found)


def _preload(config: ZooConfig) -> list[str]:
    """Modules for the nursery: the adapters that come with the zoo (a user's own code is not run there)."""
    wanted: dict[str, None] = dict.fromkeys(config.broker.preload)
    for model in config.models:
        module = model.adapter.partition(":")[0]
        if model.enabled and module.startswith("workers.models."):
            wanted[module] = None
    return list(wanted)
