"""A broker in which one function fails once: `python -m tests.faulty` for `python -m zoo.broker`.

The file `fault` beside config.toml names it: a method of the service, an event of the scheduler, or a system call. The
next call of it removes the file and raises, before anything is done. With `FOR_EVER` behind the name, each call raises.
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

from broker.scheduler import events as vocabulary
from broker.scheduler.scheduler import Scheduler
from broker.service import Service
from zoo import broker
from zoo.wire import lifeline, multipart

FAULT = "fault"
CONTRADICTION = "contradiction"  # instead of a function's name: the scheduler miscounts what runs
FOR_EVER = " for ever"
KEEPS_ITSELF_ALIVE = {  # what the guard is made of, and what is over before it begins or after it ends
    "run", "close", "unsound", "_do", "_failed", "_go_on_or_end", "_closing", "_close_loop", "_describe", "__init__",
    "_router", "_with_endpoint", "_run_watch", "_do_stop", "_lifelines", "_handle", "_due", "_tell",
}  # fmt: skip
CALLS: dict[str, tuple[Any, str]] = {
    **{f"os.{name}": (os, name) for name in ("dup", "open", "read", "write", "close", "stat", "fstat", "pipe2")},
    **{f"socket.{name}": (socket.socket, name) for name in ("accept", "send", "sendmsg", "recv", "recvmsg")},
    "fcntl.fcntl": (fcntl, "fcntl"),
    "open": (builtins, "open"),
    "lifeline.send": (lifeline, "send"),
    "wire.send": (multipart, "send"),
    "wire.take": (multipart, "take"),
    "next_wakeup": (Scheduler, "next_wakeup"),
}

_remove, _access, _read, _open, _shut = os.unlink, os.access, os.read, os.open, os.close


def methods() -> list[str]:
    """Every method of the service, by its name."""
    return sorted(
        name
        for part in Service.__mro__[:-1]
        for name, value in vars(part).items()
        if callable(value) and not name.startswith("__") and name not in KEEPS_ITSELF_ALIVE
    )


def events() -> list[str]:
    """Every handler of the scheduler, by its event's name."""
    kinds = [kind.__name__ for kind in get_args(vocabulary.Event)]
    return [*(f"event {kind}" for kind in kinds), *(f"after {kind}" for kind in kinds)]


def targets() -> list[str]:
    return [*dict.fromkeys(methods()), *events(), *CALLS, "epoll.register", "epoll.unregister", "epoll.modify"]


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
    for part in Service.__mro__[:-1]:
        for name, value in list(vars(part).items()):
            if name in methods():
                setattr(part, name, failing(name, value, RuntimeError("as the test wants it")))
    original = Scheduler.handle

    def handle(self: Scheduler, event: Any, now: float) -> Any:
        if is_due(f"event {type(event).__name__}"):
            raise RuntimeError("as the test wants it")
        actions = original(self, event, now)
        if is_due(CONTRADICTION):
            self._running += 1
        if is_due(f"after {type(event).__name__}"):
            self._out = actions
            raise RuntimeError("as the test wants it")
        return actions

    Scheduler.handle = handle  # type: ignore[method-assign]
    for label, (where, attribute) in CALLS.items():
        setattr(where, attribute, failing(label, getattr(where, attribute), _no_more()))
    select.epoll = Epoll  # type: ignore[misc, assignment]
    sys.exit(broker.main())
