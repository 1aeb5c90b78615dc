"""What this process knows of the nodes: their last reports, and what was sent to them since. One for all routers here.

Reports come two ways: with the engine's routing statistics, twice a second, and with each answer of a node that has
something new to say. The newer one counts. What a report cannot show yet is remembered here: a model that was just
sent to a node is there, for the next request of it, although the node has not said so.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from zoo.ray.ranking import Sight
from zoo.ray.reports import NodeReport

DOUBT_S = 2.0  # a node that did not answer is not asked again for so long, while there are others


@dataclass
class _Seen:
    """A node. `coming`: models that were sent there → MB, and the last report's number at that moment."""

    report: NodeReport = field(default_factory=lambda: NodeReport({}, {}, {}))
    place: str = ""
    actor: str = ""
    sent: Counter[str] = field(default_factory=Counter)
    coming: dict[str, tuple[float, int]] = field(default_factory=dict)
    doubted: float = 0.0


class Board:
    """Safe among threads: the router runs in a loop of its own beside the callers'."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}
        self._lock = threading.Lock()

    def there_are(self, nodes: dict[str, str], actors: dict[str, str] | None = None) -> None:
        """The nodes there are now → where each is (the engine's name of its machine). `actors`: → its actor's id."""
        with self._lock:
            self._seen = {name: self._seen.get(name) or _Seen() for name in nodes}
            for name, place in nodes.items():
                self._seen[name].place = place
                self._seen[name].actor = (actors or {}).get(name, "")

    def nodes(self) -> dict[str, str]:
        with self._lock:
            return {name: seen.place for name, seen in self._seen.items()}

    def number(self, node: str) -> int:
        """Of the last report of the node; 0: there is none."""
        seen = self._seen.get(node)
        return seen.report.number if seen is not None else 0

    def heard(self, node: str, report: NodeReport) -> None:
        """A report. An older one than is known changes nothing."""
        with self._lock:
            seen = self._seen.get(node)
            if seen is None or report.number <= seen.report.number:
                return
            seen.report = report
            # Two reports later it would show: the first may have been made before the request came.
            seen.coming = {
                model: (mb, number)
                for model, (mb, number) in seen.coming.items()
                if model not in report.models and report.number < number + 2
            }

    def sights(self, own: str = "", at: float | None = None) -> list[Sight]:
        """Of all nodes, without those in doubt if there are others. `own`: where the caller is."""
        now = time.monotonic() if at is None else at
        with self._lock:
            found = [(name, seen) for name, seen in self._seen.items() if seen.doubted <= now] or [*self._seen.items()]
            return [
                Sight(name, s.report, s.place == own != "", {**s.sent}, {m: mb for m, (mb, _) in s.coming.items()})
                for name, s in found
            ]

    def sent(self, node: str, model: str, mb: float) -> None:
        """A request was sent there."""
        with self._lock:
            if (seen := self._seen.get(node)) is not None:
                seen.sent[model] += 1
                if model not in seen.report.models:
                    seen.coming.setdefault(model, (mb, seen.report.number))

    def ended(self, node: str, model: str) -> None:
        """It has an answer, or will have none."""
        with self._lock:
            if (seen := self._seen.get(node)) is not None:
                seen.sent[model] -= 1
                if seen.sent[model] <= 0:
                    del seen.sent[model]

    def doubt(self, node: str = "", *, actor: str = "") -> None:
        """It did not answer: a node, or the one whose actor this is."""
        with self._lock:
            for name, seen in self._seen.items():
                if name == node or seen.actor == actor != "":
                    seen.doubted = time.monotonic() + DOUBT_S

    def holds(self, model: str) -> Collection[str]:
        """Nodes whose last report shows the model."""
        with self._lock:
            return [name for name, seen in self._seen.items() if model in seen.report.models]


BOARDS: dict[str, Board] = {}  # by application: the engine makes the routers, and gives them no object of ours


def board(application: str) -> Board:
    return BOARDS.setdefault(application, Board())
