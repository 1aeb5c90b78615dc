"""A broker in which one function fails once: `python -m tests.faulty` for `python -m zoo.broker`.

The file `fault` beside config.toml names it: a method of one of the service's parts, an event of the scheduler, or a
system call. The next call of it removes the file and raises, before anything is done. With `FOR_EVER` behind the name,
each call raises.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import os
import select
import socket
import sys
from collections.abc import Callable
from typing import Any, get_args

from broker.core import Core
from broker.fleet.channels import Channels
from broker.fleet.copying import Copying
from broker.fleet.fleet import Fleet
from broker.fleet.reports import WorkerReports
from broker.fleet.roster import Roster, WorkerProcess
from broker.front.clients import Clients
from broker.front.front import Front
from broker.front.handoff import Handoff, LifelineEnd
from broker.front.intake import Intake
from broker.labels import Labels
from broker.loop import Loop
from broker.memory.footprints import Learnt
from broker.scheduler import events as vocabulary
from broker.scheduler.parts.allocator import Allocator
from broker.scheduler.parts.dispatch import Dispatcher
from broker.scheduler.parts.ending import WindingDown
from broker.scheduler.parts.reload import Reconfiguration
from broker.scheduler.parts.scaling import Scaling
from broker.scheduler.parts.wakeups import Wakeups
from broker.scheduler.scheduler import Scheduler
from broker.service import Service
from zoo import broker
from zoo.wire import lifeline, multipart

FAULT = "fault"
CONTRADICTION = "contradiction"  # instead of a function's name: the scheduler miscounts what runs
FOR_EVER = " for ever"
PARTS = (
    Service, Core, Loop, Learnt, Labels, Front, Handoff, LifelineEnd, Clients, Intake,
    Fleet, Channels, WorkerReports, Copying, Roster, WorkerProcess,
)  # fmt: skip
KEEPS_ITSELF_ALIVE = {  # what the guard is made of, and what is over before it begins or after it ends
    "Service.run", "Service.close", "Service._due", "Service._do_stop", "Core.submit", "Core._do",
    "Core._failed", "Core._tell", "Core._go_on_or_end", "Core.shut_down", "Loop.turn", "Loop._act",
    "Loop.hear", "Loop.hear_signals", "Loop.close", "Front.close", "Fleet.open", "Fleet.close", "Handoff.shut",
}  # fmt: skip
RULES: dict[str, tuple[type, str]] = {
    f"{part.__name__}.{name}": (part, name)
    for part, names in (
        (Reconfiguration, ("retire",)),
        (Dispatcher, ("attend",)),
        (Scaling, ("grow", "end_guesses", "anticipate")),
        (Allocator, ("relieve", "allocate")),
        (WindingDown, ("wind_down",)),
    )
    for name in names
}
CALLS: dict[str, tuple[Any, str]] = {
    **{f"os.{name}": (os, name) for name in ("dup", "open", "read", "write", "close", "stat", "fstat", "pipe2")},
    **{f"socket.{name}": (socket.socket, name) for name in ("accept", "send", "sendmsg", "recv", "recvmsg")},
    "fcntl.fcntl": (fcntl, "fcntl"),
    "open": (builtins, "open"),
    "lifeline.send": (lifeline, "send"),
    "wire.send": (multipart, "send"),
    "wire.take": (multipart, "take"),
    "next_wakeup": (Wakeups, "next"),
}

_remove, _access, _read, _open, _shut = os.unlink, os.access, os.read, os.open, os.close


def methods() -> dict[str, tuple[type, str]]:
    """Every method of the service's parts, and every rule of the scheduler."""
    return RULES | {
        name: (part, attribute)
        for part in PARTS
        for attribute, value in vars(part).items()
        if callable(value)
        and not attribute.startswith("__")
        and (name := f"{part.__name__}.{attribute}") not in KEEPS_ITSELF_ALIVE
    }


def events() -> list[str]:
    """Every handler of the scheduler, by its event's name."""
    kinds = [kind.__name__ for kind in get_args(vocabulary.Event)]
    return [*(f"event {kind}" for kind in kinds), *(f"after {kind}" for kind in kinds)]


def targets() -> list[str]:
    return [*methods(), *events(), *CALLS, "epoll.register", "epoll.unregister", "epoll.modify"]


def is_due(name: str) -> bool:
    if not _access(FAULT, os.F_OK):
        return False
    fd = _open(FAULT, os.O_RDONLY)
    said = _read(fd, 200).decode()
    _shut(fd)
    if said == name + FOR_EVER:
        return True
    if said != name:
        return False
    _remove(FAULT)
    return True


def failing(name: str, call: Callable[..., Any], error: Exception) -> Callable[..., Any]:
    def wrapped(*args: Any, **how: Any) -> Any:
        if is_due(name):
            raise error
        return call(*args, **how)

    return wrapped


class Epoll:
    """`select.epoll`, whose methods cannot be replaced one by one."""

    def __init__(self) -> None:
        self._real = select_epoll()
        self.fileno, self.poll, self.close = self._real.fileno, self._real.poll, self._real.close
        for name in ("register", "unregister", "modify"):
            setattr(self, name, failing(f"epoll.{name}", getattr(self._real, name), _no_more()))


def _no_more() -> OSError:
    return OSError(errno.EMFILE, "no more of it, as the test wants it")


select_epoll = select.epoll

if __name__ == "__main__":
    for method, (part, attribute) in methods().items():
        setattr(part, attribute, failing(method, getattr(part, attribute), RuntimeError("as the test wants it")))
    original = Scheduler.handle

    def handle(self: Scheduler, event: Any, now: float) -> Any:
        if is_due(f"event {type(event).__name__}"):
            raise RuntimeError("as the test wants it")
        actions = original(self, event, now)
        if is_due(CONTRADICTION):
            self.registry.running += 1
        if is_due(f"after {type(event).__name__}"):
            self.registry.out = actions
            raise RuntimeError("as the test wants it")
        return actions

    Scheduler.handle = handle  # type: ignore[method-assign]
    for label, (where, attribute) in CALLS.items():
        setattr(where, attribute, failing(label, getattr(where, attribute), _no_more()))
    select.epoll = Epoll  # type: ignore[misc, assignment]
    sys.exit(broker.main())
