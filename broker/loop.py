"""The ground floor of the service: what the loop waits for, and the one way to the scheduler and back.

Everything that is not a ZeroMQ socket sits in one epoll set, which the poller watches as a single descriptor, so that
the cost of a turn does not grow with clients or models. `_handle` gives the scheduler an event and does what it says.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import zmq

from broker import descriptors, heap
from broker.ending import Ending
from broker.front import endpoint, inline
from broker.front.door import Door
from broker.front.handoff import Handoff
from broker.front.keyring import Keyring
from broker.guard import Guard
from broker.memory import meters
from broker.scheduler.capacity.ledger import Device
from broker.scheduler.events import Action, Event, ShutDown, Stop
from broker.scheduler.scheduler import Scheduler
from broker.scheduler.soundness import Unsound
from zoo.config.schema import MB_PER_GB, ZooConfig
from zoo.errors import ConfigError

log = logging.getLogger("zoo.broker")

HIGH_WATER = 4096
HANDSHAKE_MS = 10_000  # who has not said by then what it is, in ZeroMQ's terms, is hung up on by libzmq
TROUBLE = {
    "load failed", "crashed", "killed", "quarantined", "overdrawn", "memory stuck", "out of memory", "unread",
}  # kinds  # fmt: skip


def devices_of(config: ZooConfig, machine: meters.Machine) -> list[Device]:
    """The devices of a configuration, "auto" resolved; says in the log why that is not CUDA."""
    if config.devices:
        return [Device(d.name, d.kind, d.budget_gb * MB_PER_GB) for d in config.devices]
    kind = config.broker.device
    if kind == "auto":
        kind = "cuda" if machine.uuids else "cpu"
        if kind == "cpu":
            log.warning("models are loaded on the CPU, as no CUDA device can be used: %s", machine.why_none)
    name = "cuda:0" if kind == "cuda" else "cpu"
    return [Device(name, kind, config.broker.vram_budget_gb * MB_PER_GB)]


class Loop:
    """See the module's docstring.

    Attributes:
        _actions: what to do for each kind of action; every storey adds its own.
        _amends: what to do when doing so has raised, or when an event of that kind has.
        unsound: the scheduler contradicts itself; the broker winds down and ends with status 1.
        _watch: descriptor → what to do when it is readable, and when that has raised.
        checks: every invariant of the scheduler is checked after each event (`--debug`).
    """

    def __init__(self, config: ZooConfig, endpoint_given: str = "") -> None:
        limit = descriptors.raise_limit()
        heap.settle()
        self._endpoint_given = endpoint_given  # it stands over what the file says
        self.config = self._with_endpoint(config)
        self.shares = descriptors.divide(
            limit,
            descriptors.in_use(),
            sum(model.max_instances for model in config.models),
            config.broker.standby,
            metrics=bool(config.broker.metrics),
            local=not self.config.endpoint.startswith("tcp://"),
        )
        machine = meters.Machine()
        devices = devices_of(config, machine)
        try:
            self.meters = meters.open_devices(devices, machine)
        except LookupError as e:
            raise ConfigError(str(e)) from None
        self.scheduler = Scheduler(config.broker, devices, config.models)
        self.checks = False
        self._told = 0
        self._stop = False
        self._actions: dict[type, Callable[[Any], None]] = {Stop: self._do_stop}
        self._amends: dict[type, Callable[[Any], None]] = {ShutDown: self._handle}  # said only once
        self.guard = Guard(self._go_on_or_end)
        self.unsound = False
        self.ending = Ending()
        self._watch: dict[int, tuple[Callable[[], object], Callable[[], object] | None]] = {}
        self.keyring = Keyring(config.resolve(config.broker.curve_dir)) if config.broker.curve_dir else None
        self.place = endpoint.claim(config.endpoint, config.broker.group, config.broker.user)
        self._context = zmq.Context()
        try:
            self._front = self._router(config.endpoint)
            limit = config.broker.arena_limit_mb << 20
            self.handoff = Handoff(self.place.handoff, limit, self._lifelines, self.shares, self.place.admits)
        except (OSError, ConfigError) as e:  # zmq.ZMQError is neither
            self.place.release()
            raise ConfigError(
                str(e) if isinstance(e, ConfigError) else f"cannot listen on {config.endpoint}: {e}"
            ) from None
        self._epoll = select.epoll()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def _with_endpoint(self, config: ZooConfig) -> ZooConfig:
        if self._endpoint_given:
            config.broker.endpoint = self._endpoint_given
        return config

    def _router(self, where: str) -> zmq.Socket[bytes]:
        sock: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        sock.setsockopt(zmq.ROUTER_MANDATORY, 1)
        sock.setsockopt(zmq.LINGER, 0)
        sock.setsockopt(zmq.SNDHWM, HIGH_WATER)
        sock.setsockopt(zmq.RCVHWM, HIGH_WATER)
        sock.setsockopt(zmq.MAXMSGSIZE, inline.part_bytes(self.config.broker.max_inline_mb))
        sock.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        if where.startswith("tcp://"):
            assert self.keyring is not None  # see `parse_config`
            self.keyring.guard(self._context, sock)
        self.door = Door(  # before it is bound
            self._context, sock, self.shares.front, self.shares.sockets, self.config.broker.inline_budget_mb << 20
        )
        self._bind(sock, where)
        self.door.open()
        return sock

    def _bind(self, sock: zmq.Socket[bytes], where: str) -> None:
        """Again on the same socket: a client that came in by a listener before stays connected.

        Raises:
            OSError, ConfigError: it cannot be done.
        """
        if self.place.front:  # a listener of our own making: private from its first moment, and ours to remove
            sock.setsockopt(zmq.USE_FD, self.place.listen(self.place.front, socket.SOCK_STREAM).detach())
        try:
            sock.bind(where)
        except zmq.ZMQError as e:
            raise ConfigError(f"cannot listen on {where}: {e}") from None
        finally:
            sock.setsockopt(zmq.USE_FD, -1)

    def _lifelines(self, path: str) -> socket.socket:
        return self.place.listen(path, socket.SOCK_SEQPACKET)

    def _listen_again(self, path: str) -> None:
        """A socket's file was removed (see `Place.keep`)."""
        if path == self.place.front:
            self._bind(self._front, self.config.endpoint)
        else:
            watched = self._watch.get(self.handoff.fileno())
            self._drop(self.handoff.fileno())
            self.handoff.listen_again()
            if watched is not None:
                self._add(self.handoff.fileno(), *watched)

    def _handle(self, event: Event) -> None:
        try:
            actions = self.scheduler.handle(event, time.monotonic())
        except Exception as e:
            self._do(self.scheduler.take_actions())
            self._failed(event, e)
            return
        self._do(actions)
        if self.scheduler.story.count != self._told:
            self._tell()
        if self.checks:
            self.guard.run("an event", self.scheduler.check)

    def _do(self, actions: list[Action]) -> None:
        """Does each, whatever becomes of the others."""
        do = self._actions
        for action in actions:
            try:
                do[type(action)](action)
            except Exception as e:
                self._failed(action, e)

    def _failed(self, what: Event | Action, error: Exception) -> None:
        """An event or action has raised."""
        amend = self._amends.get(type(what))
        self.guard.failed(type(what).__name__, error, None if amend is None else lambda: amend(what))

    def _go_on_or_end(self) -> None:
        """After an internal error: an unsound broker takes nothing new, finishes what runs, and ends."""
        try:
            self.scheduler.check()
        except Unsound as e:
            if self.unsound:
                return
            self.unsound = True
            self.ending.begin(self.config.broker.drain_seconds, time.monotonic())
            log.critical("the scheduler contradicts itself, this broker ends: %s", "; ".join(e.wrong))
            self._handle(ShutDown(self.config.broker.drain_seconds))

    def _tell(self) -> None:
        for line in self.scheduler.story.since(self._told):
            level = logging.WARNING if line.kind in TROUBLE else logging.INFO
            log.log(level, "%s%s", f"{line.model}: " if line.model else "", line.text, extra={"line": line})
        self._told = self.scheduler.story.count

    def _add(self, fd: int, act: Callable[[], object], blame: Callable[[], object] | None = None) -> None:
        """`blame`: what to do when `act` has raised."""
        self._epoll.register(fd, select.EPOLLIN)
        self._watch[fd] = act, blame

    def _drop(self, fd: int) -> None:
        if self._watch.pop(fd, None) is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    def _run_watch(self, fd: int) -> None:
        watched = self._watch.get(fd)
        if watched is None:  # a line may have been closed by what came before it in the same turn
            return
        act, blame = watched
        try:
            act()
        except Exception as e:
            self.guard.failed("what a descriptor brought", e, blame)

    def _do_stop(self, _: Stop) -> None:
        self._stop = True

    def _close_loop(self) -> None:
        run = self.guard.run
        run("closing the door", self.door.close)
        if self.keyring is not None:
            run("ending the look at keys", self.keyring.stop)
        run("closing ZeroMQ", lambda: self._context.destroy(linger=0))
        run("closing the loop", self._epoll.close)
        for fd in (self._wake_read, self._wake_write):
            run("closing the loop", partial(os.close, fd))
        self.place.release()
