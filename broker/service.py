"""The service: sockets, process exits and timers in; messages, starts and kills out.

It turns what happens into the scheduler's events and the scheduler's actions into deeds, and decides nothing itself.
One thread, one `zmq.Poller`. In storeys, each knowing those below it, and saying which few calls go up:

    service   the turns of the loop, lifelines, a new configuration
    clients   what they ask, how they are answered
    crew      workers: processes, what they say and use
    loop      what is waited for; events to the scheduler, actions done
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import time
from functools import partial

import zmq

from broker import ending
from broker.front import outgoing
from broker.front.clients import Clients
from broker.front.handoff import Ended, Line
from broker.memory import meters, resident
from broker.scheduler.events import Reconfigured, Resident, ShutDown, Tick, WorkerSaid
from zoo.config import changes
from zoo.config.reading import load_config
from zoo.config.schema import MB_PER_GB, ZooConfig
from zoo.errors import ConfigError
from zoo.wire import multipart, protocol

log = logging.getLogger("zoo.broker")

TERMINATING_POLL_S = 0.02
HOUSEKEEPING_S = 1.0
CROWDED_S = 0.05  # between two looks at who keeps others waiting
HELD_S = 2.0  # a session without a lifeline outlives its last connection by so long
CARRYING = (protocol.LifelineArena, protocol.LifelineChannel, protocol.LifelineCopy)  # a descriptor


class Service(Clients):
    """One broker. `run()` returns when it has been told to stop and everything has ended."""

    def __init__(self, config: ZooConfig, endpoint_given: str = "") -> None:
        super().__init__(config, endpoint_given)
        self._housekeeping_at = 0.0
        self.resident = resident.ResidentFile(config.state)
        self._line_waits = False
        self._add(self.handoff.fileno(), self._accept)
        self._add(self._wake_read, self._woken)

    # ------------------------------------------------------------ the loop

    def run(self) -> int:
        """Serves until it is told to stop. Gives the exit status: 0, or 1 when its books were found to be wrong."""
        poller = zmq.Poller()
        poller.register(self._front, zmq.POLLIN)
        poller.register(self._epoll.fileno(), zmq.POLLIN)
        epoll_fd = self._epoll.fileno()
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        log.info("serving on %s, %s", self.config.endpoint, self._describe())
        if self.config.broker.restore:
            self.guard.run("bringing back what was loaded", self._bring_back)
        front = self._front
        try:
            while not self._stop and not self.ending.is_over(time.monotonic()):
                try:
                    due = self._due()
                    for source, _ in poller.poll(max(0, math.ceil((due - time.monotonic()) * 1000))):
                        if source is front:  # one message each a turn: no client waits for another's burst
                            self._hear_client()
                        elif source == epoll_fd:
                            for fd, _ in self._epoll.poll(0):
                                self._run_watch(fd)
                    if time.monotonic() >= due:
                        self._time_passes()
                except Exception as e:
                    self.guard.failed("a turn of the loop", e)
        finally:
            signal.set_wakeup_fd(-1)
            limit = ending.within(ending.CLOSE_S, 1, self.place.release)
            self.close()
            limit.cancel()
        return 1 if self.unsound else 0

    def _hear_client(self) -> None:
        parts: list[bytes] = []
        try:
            parts, source = multipart.take(self._front)
            self._from_client(parts, source)
        except Exception as e:
            self.guard.failed("a client's message", e, lambda: self._end_talking(parts))

    def _due(self) -> float:
        """When there is something to do at the latest, whatever happens."""
        now = time.monotonic()
        try:
            due = self.scheduler.next_wakeup()
        except Exception as e:  # what comes from descriptors, such as the word to stop, is heard all the same
            self.guard.failed("the scheduler's next turn", e)
            due = now + TERMINATING_POLL_S
        soonest = self._housekeeping_at if due is None or due > self._housekeeping_at else due
        if self._terminating:
            soonest = min(soonest, now + TERMINATING_POLL_S)
        if not self._outbox.is_empty:
            soonest = min(soonest, now + outgoing.TICK_S)
        if self.arrivals.stalled:
            soonest = min(soonest, now + outgoing.TICK_S)
        if self._line_waits:
            soonest = min(soonest, now + CROWDED_S)
        return min(soonest, self.usage.due(now))

    def _time_passes(self) -> None:
        now = time.monotonic()
        self._handle(Tick())
        if self._terminating:
            self.guard.run("ending workers", lambda: self._escalate(now))
        self.guard.run("memory that comes back", lambda: self._pass_on(self.usage.tick(now)))
        if not self._outbox.is_empty:
            self.guard.run("sending what waits for clients", lambda: self._outbox.flush(now))
        if self.arrivals.stalled:
            self.guard.run("reading workers that had to wait", self._read_stalled)
        if self._line_waits:
            self.guard.run("closing nameless lifelines", lambda: self._end_nameless(now))
        if now >= self._housekeeping_at:
            self._housekeeping_at = now + HOUSEKEEPING_S
            run = self.guard.run  # each on its own
            run("watching for the out-of-memory killer", self.oom_killer.watch)
            run("watching the nursery", lambda: self.pool.watch(now))
            run("looking for memory", lambda: self._pass_on(self.usage.look_for_stuck(now)))
            run("measuring", self.usage.survey)
            run("writing down footprints", self._remember)
            run("noting what is loaded", self._note_resident)
            run("refilling the reserve", self._refill)
            run("ending silent sessions", lambda: self._end_sessions(now))
            run("closing nameless lifelines", lambda: self._end_nameless(now))
            run("ending lifelines that were cut off", self._end_cut_off)
            run("writing to slow lifelines", self.handoff.flush)
            run("keeping the endpoint", lambda: self.place.keep(now, self._listen_again))

    def _end_cut_off(self) -> None:
        for line in self.handoff.cut_off():
            self._lost_line(line, gone=False)

    def _bring_back(self) -> None:
        """What was loaded when the broker before ended, but for what cannot be."""
        names = [name for name in self.resident.earlier() if name in self.scheduler.models and not self._problem(name)]
        for name in names:
            self._recall(name)
        self._handle(Resident(names))

    def _note_resident(self, *, at_last: bool = False) -> None:
        if self.config.broker.restore and not self.scheduler.stopping:
            self.resident.note(self.scheduler.resident(), at_last=at_last)

    def _end_sessions(self, now: float) -> None:
        """Of those that no lifeline speaks for."""
        alone = [session for session in self._sessions.values() if session.line is None]
        connected = {identity[: protocol.SESSION_BYTES] for identity in list(self._spoken)} if alone else ()
        for session in alone:
            silent = now - session.heard
            gone = bool(self.place.front) and silent > HELD_S and session.key not in connected
            if gone or silent > protocol.SESSION_TTL_S:
                self._end_session(session)

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            numbers = os.read(self._wake_read, 64)
            if any(n in (signal.SIGTERM, signal.SIGINT) for n in numbers):
                drain = 0.0 if self.scheduler.stopping else self.config.broker.drain_seconds
                self.ending.begin(drain, time.monotonic())
                self.guard.run("noting what is loaded", lambda: self._note_resident(at_last=True))
                self._handle(ShutDown(drain))
            elif signal.SIGHUP in numbers:
                try:
                    self.reload()
                except ConfigError as e:
                    log.error("the configuration stays as it is: %s", e)

    def close(self) -> None:
        """Leaves nothing behind, also when it is called in the middle of something."""
        for close in (*self._closing(), self._close_loop):
            self.guard.run("closing the broker", close)

    def _describe(self) -> str:
        devices = ", ".join(f"{d.name} {d.budget_mb:g} MB" for d in self.scheduler.ledger.devices.values())
        return f"{len(self.scheduler.models)} models, {devices}"

    # ------------------------------------------------------------ configuration

    def reload(self) -> list[str]:
        """Reads the file again; gives what has changed.

        Raises:
            ConfigError: it is not valid, and nothing was changed.
        """
        if self.config.file is None:
            raise ConfigError("this broker was started without a config.toml: there is nothing to read again")
        read = self._with_endpoint(load_config(self.config.file))
        found = changes.compare(self.config, read, self.editions.take_edited(read.models))
        told = self._reread_keys()
        if not found.lines:
            return told
        self.config = found.config
        broker, budgets = self.config.broker, {d.name: d.budget_gb * MB_PER_GB for d in self.config.devices}
        if not budgets:
            budgets = dict.fromkeys(self.meters, broker.vram_budget_gb * MB_PER_GB)
        self._handle(Reconfigured(broker, budgets, self.config.models, found.restart, found.lines))
        self.copies.resize(int(broker.host_cache_mb * meters.MB))
        for name in {*found.restart, *(name for name in self.copies.models() if name not in self.scheduler.models)}:
            self.copies.forget(name)
        for name in list(self.scheduler.models):
            if self.scheduler.is_cold(name):
                self._recall(name)
        return found.text() + told

    # ------------------------------------------------------------ lifelines

    def _accept(self) -> None:
        for line in self.handoff.accept():
            self._add(line.fd, partial(self._read_line, line), partial(self._lost_line, line, gone=False))
        if self.handoff.is_crowded:  # until there is room, the others wait in the backlog
            self._drop(self.handoff.fileno())
            self._line_waits = True

    def _end_nameless(self, now: float) -> None:
        """Connections that should have said by now whose lifeline they are."""
        for line in self.handoff.nameless(now):
            self._close_line(line)
        self._accept_again()

    def _accept_again(self) -> None:
        if not self.handoff.is_crowded and self.handoff.fileno() not in self._watch:
            self._line_waits = False
            self._add(self.handoff.fileno(), self._accept)

    def _read_line(self, line: Line) -> None:
        if self.handoff.lines.get(line.fd) is not line:
            return
        try:
            for message, fd in self.handoff.receive(line):
                self._line_says(line, message, fd)
                if self.handoff.lines.get(line.fd) is not line:
                    return
        except ConnectionError as e:
            self._lost_line(line, gone=isinstance(e, Ended))

    def _line_says(self, line: Line, message: protocol.LifelineMessage, fd: int | None) -> None:
        if fd is not None and type(message) not in CARRYING:
            os.close(fd)
        if line.departed:
            self._departed_says(line, message, fd if type(message) in CARRYING else None)
        elif isinstance(message, protocol.LifelineAttach):
            if not self._attach(line, message):
                raise ConnectionError("refused")
            self._accept_again()
        elif not line.key or (line.role == "worker" and line.key not in self._by_key):
            if fd is not None and type(message) in CARRYING:
                os.close(fd)
            raise ConnectionError("nothing is known of it")
        elif isinstance(message, protocol.LifelineArena):
            number = self.handoff.offer(line, fd)
            if number is not None:
                if line.role == "worker":
                    self._by_key[line.key].arena = number
                else:
                    line.send(protocol.LifelineAccepted(number))
        elif isinstance(message, protocol.LifelineChannel):
            self._open_channel(line, fd)
        elif isinstance(message, protocol.LifelineCopy):
            self._take_copy(line, message.why, fd)
        elif isinstance(message, protocol.LifelineReleased) and line.role == "client":
            session = self._sessions.get(line.key)
            if session is not None and (message.id, message.offset) in session.results:
                session.results.discard((message.id, message.offset))
                self._free_result(message.id, message.offset)
                if message.id not in self.handoff.arenas and not self._still_read(line.key, message.id):
                    line.send(protocol.LifelineGone(message.id))
        elif isinstance(message, protocol.LifelineBye) and line.role == "client":
            session = self._sessions.get(line.key)
            if session is not None:
                self._end_session(session)
        elif isinstance(message, protocol.LifelineFingerprint) and line.role == "worker":
            self._handle(WorkerSaid(self._by_key[line.key].number, message.id, message.digest[:64]))

    def _attach(self, line: Line, message: protocol.LifelineAttach) -> bool:
        if message.role == "client":
            session = self._sessions.get(message.key)
            if session is None or session.line is not None:
                line.send(protocol.LifelineRefused("broker_unreachable", "say Hello first; the session is unknown"))
                return False
            if not self.handoff.attach(line, message):
                return False
            session.line, session.pid = line, line.pid
            line.send(protocol.LifelineAccepted(0))
            return True
        worker = self._by_key.get(message.key)
        if message.role != "worker" or worker is None or not self.handoff.attach(line, message):
            return False
        worker.line = line
        return True

    def _departed_says(self, line: Line, message: protocol.LifelineMessage, fd: int | None) -> None:
        if fd is not None:
            os.close(fd)
        if isinstance(message, protocol.LifelineReleased):
            if self.departed.release(line.key, (message.id, message.offset)):
                self._free_result(message.id, message.offset)
            if self.departed.is_done(line.key):
                self._lost_line(line, gone=True)

    def _lost_line(self, line: Line, gone: bool) -> None:
        """Its session, or its worker, has ended. `gone`: the process at the other end is, and its results are free."""
        session = self._sessions.get(line.key) if line.role == "client" else None
        if line.departed:
            if gone:
                for arena, offset in self.departed.forget(line.key):
                    self._free_result(arena, offset)
                self._close_line(line)
        elif session is not None and session.line is line:
            self._end_session(session, gone=gone)
        else:
            if line.role == "worker" and (worker := self._by_key.get(line.key)) is not None:
                worker.line = None  # its exit follows
            self._close_line(line)

    def _close_line(self, line: Line) -> None:
        if line.role == "worker" and line.key in self._by_key:
            with contextlib.suppress(ConnectionError):  # what it said last counts (a fingerprint, an arena)
                for message, fd in self.handoff.receive(line):
                    self._line_says(line, message, fd)
        self._drop(line.fd)
        self.handoff.close(line, self._still_read)
