"""One event in, the scheduler's actions out: the way by which all that happens is decided.

Each part of the service tells here what has happened (`submit`), and asks the scheduler and the configuration what it
needs to know. What is done for an action, and what is to blame when an event or action has raised, are two tables that
the service fills.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from broker import ending, guard
from broker.scheduler.capacity.ledger import Device
from broker.scheduler.events import Action, Event, ShutDown
from broker.scheduler.scheduler import Scheduler
from broker.scheduler.soundness import Unsound
from broker.scheduler.story.story import Line
from zoo.config.schema import ZooConfig

log = logging.getLogger("zoo.broker")

TROUBLE = {
    "load failed", "crashed", "killed", "quarantined", "overdrawn", "memory stuck", "out of memory", "unread",
}  # kinds  # fmt: skip


class Core:
    """See the module's docstring.

    Attributes:
        config: in force; replaced as a whole by a reload.
        actions: what to do for each kind of action.
        amends: what to do when that has raised, or when an event of that kind has.
        overhears: gets each line of the scheduler's story, if anything does.
        unsound: the scheduler contradicts itself; the broker winds down and ends with status 1.
    """

    def __init__(self, config: ZooConfig, devices: list[Device], checks: bool) -> None:
        self.config = config
        self.scheduler = Scheduler(config.broker, devices, config.models)
        self.guard = guard.Guard(self._go_on_or_end)
        self.ending = ending.Ending()
        self.actions: dict[type, Callable[[Any], object]] = {}
        self.amends: dict[type, Callable[[Any], object]] = {}
        self.unsound = False
        self.overhears: Callable[[Line], None] | None = None
        self._checks = checks
        self._told = 0  # lines of the story that are in the log

    @property
    def measures(self) -> bool:
        """Footprints are measured, not only declared."""
        return self.config.broker.footprint == "measured"

    def submit(self, event: Event) -> None:
        """Tells the scheduler what has happened, and does what it answers."""
        try:
            actions = self.scheduler.handle(event, time.monotonic())
        except Exception as e:
            self._do(self.scheduler.take_actions())
            self._failed(event, e)
            return
        self._do(actions)
        if self.scheduler.story.count != self._told:
            self._tell()
        if self._checks:
            self.guard.run("an event", self.scheduler.check)

    def _do(self, actions: list[Action]) -> None:
        """Does each, whatever becomes of the others."""
        do = self.actions
        for action in actions:
            try:
                do[type(action)](action)
            except Exception as e:
                self._failed(action, e)

    def _failed(self, what: Event | Action, error: Exception) -> None:
        """An event or action has raised."""
        amend = self.amends.get(type(what))
        self.guard.failed(type(what).__name__, error, None if amend is None else lambda: amend(what))

    def shut_down(self, grace: float) -> None:
        """Takes nothing new, gives what runs `grace` seconds, and ends."""
        self.ending.begin(grace, time.monotonic())
        self.submit(ShutDown(grace))

    def _go_on_or_end(self) -> None:
        """After an internal error: a broker whose scheduler contradicts itself finishes what runs, and ends."""
        try:
            self._do(self.scheduler.settle())  # what the error has left undone
            self.scheduler.check()
        except Exception as e:
            if not self.unsound:
                self.unsound = True
                wrong = "; ".join(e.wrong) if isinstance(e, Unsound) else f"its rules raise {type(e).__name__}: {e}"
                log.critical("the scheduler contradicts itself, this broker ends: %s", wrong)
                self.shut_down(self.config.broker.drain_seconds)

    def _tell(self) -> None:
        """Logs the lines of the scheduler's story that are new."""
        for line in self.scheduler.story.since(self._told):
            level = logging.WARNING if line.kind in TROUBLE else logging.INFO
            log.log(level, "%s%s", f"{line.model}: " if line.model else "", line.text, extra={"line": line})
            if self.overhears is not None:
                self.overhears(line)
        self._told = self.scheduler.story.count
