"""What the broker knows of a worker's process."""

from __future__ import annotations

import secrets
import signal
import time

import msgspec

from broker.fleet.pool import Child
from broker.front.handoff import LifelineEnd
from zoo.wire.channel import Channel
from zoo.wire.launch import Launch


def new_key() -> bytes:
    return b"w-" + secrets.token_bytes(12)


class WorkerProcess(msgspec.Struct, eq=False):
    """A process that runs a model, or waits for one.

    Attributes:
        number: the scheduler's; negative while it waits to be given a model.
        key: the name under which it was forked, and attaches its lifeline.
        version: of the model's weights when it was started.
        copied: it was given a copy, and has not said yet whether that was of use.
        forks: how often the nursery was asked for it.
        held: messages of it that wait until it was measured, the first of them what it is measured for.
        told: it has been sent `launch`.
        loaded: it has said how its load went.
        nonsense: it has said what none of ours would say; it is being killed, and not listened to any more.
        unsent: it is slow to read, and something waits to be sent.
        worked: it has run a request.
        killed_at: when it was told to end (monotonic seconds); 0: it was not.
        term_until: until then it may end by itself after SIGTERM.
    """

    number: int
    key: bytes = msgspec.field(default_factory=new_key)
    model: str = ""
    device: str = ""
    version: str = ""
    launch: Launch | None = None
    forks: int = 1
    child: Child | None = None
    channel: Channel | None = None
    line: LifelineEnd | None = None
    arena: int = 0
    held: list[list[bytes]] = []
    copied: bool = False
    told: bool = False
    loaded: bool = False
    stand_in: bool = False
    nonsense: bool = False
    unsent: bool = False
    worked: bool = False
    killed_at: float = 0.0
    term_until: float = 0.0

    def kill(self) -> None:
        """Ends it at once; if it is only being forked, as soon as it exists."""
        self.killed_at = self.killed_at or time.monotonic()
        if self.child is not None:
            self.child.signal(signal.SIGKILL)
