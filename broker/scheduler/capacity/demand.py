"""What a model wants of the devices: room for a first process, for one more, or for one that has to grow."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker.scheduler.state.model import Model


class Want(enum.Enum):
    LOAD = "load"  # requests wait, and the model has no process
    GROW = "grow"  # requests ran out of memory, and wait until their process may be charged more
    EXTRA = "extra"  # one more worker beside those there are, in free room alone
    GUESS = "guess"  # a process ahead of any request, in free room alone


@dataclass(eq=False)
class Reason:
    """What a demand waits for. `by`: a key that changes when the reason does; `why`: in words, up to date."""

    by: str
    why: str


class Demand:
    """Room that a model wants.

    Attributes:
        claim: room that is coming back on `claim_on` was promised to it; lower numbers first. 0: none was.
        wait: what it waits for, if it has been looked at and did not get room.
        awaits: names of the busy workers that it waits for; kept to, or each request would move the turn to another.
    """

    __slots__ = ("awaits", "claim", "claim_on", "model", "wait", "want")

    def __init__(self, model: Model, want: Want) -> None:
        self.model = model
        self.want = want
        self.claim = 0
        self.claim_on = ""
        self.wait: Reason | None = None
        self.awaits: tuple[str, ...] = ()

    @property
    def why(self) -> str:
        """What it waits for, in words."""
        return self.wait.why if self.wait is not None else ""

    @property
    def loads(self) -> bool:
        """A process has to be started."""
        return self.want is not Want.GROW

    def lacks_mb(self, device: str) -> float:
        """What has to be free: all that a process takes, or what one that is there lacks of that."""
        need = self.model.need_mb(device)
        return need if self.loads else need - self.model.primary.mb
