"""What became of the last requests: a ring of their records, put into words when they are read. Pure.

An ordinary request pays for it with a few fields and one append. Its story is its own three moments, and between them
what was decided about its model meanwhile.

On the way of a request it costs 0.4 us of some 250. Errors and results carry the broker's number of the request, by
which it is found here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

import msgspec

from broker.scheduler.events import Answer, Deliver, Forget, Kind, Refuse
from broker.scheduler.state import Request, State
from broker.scheduler.story.story import Line, Story

KEEP = 2000
SHOWN = 20  # requests of one model, those that did not find it free or were refused


class Turned(msgspec.Struct):
    """A request that was refused when it came in."""

    id: int
    at: float
    model: str
    refusal: Refuse
    session: bytes


class Journal:
    """`add` takes a request when it has been answered."""

    def __init__(self, keep: int = KEEP) -> None:
        self._kept: deque[Request | Turned] = deque(maxlen=keep)
        self.add = self._kept.append

    def hear(self, listener: Callable[[Request | Turned], None] | None) -> None:
        """`listener` gets each as well, from now on; None: no more. Without one, nothing is paid for it."""
        keep = self._kept.append
        if listener is None:
            self.add = keep
            return
        told = listener

        def add(request: Request | Turned) -> None:
            keep(request)
            told(request)

        self.add = add

    def find(self, number: int) -> Request | Turned | None:
        return next((kept for kept in reversed(self._kept) if kept.id == number), None)

    def times(self) -> dict[str, list[float]]:
        """Seconds from coming in to the answer, in order, of the kept inferences that got a result, by model."""
        found: dict[str, list[float]] = {}
        for kept in self._kept:
            if isinstance(kept, Request) and kept.outcome is Deliver:
                found.setdefault(kept.model.name, []).append(kept.ended - kept.since)
        for seconds in found.values():
            seconds.sort()
        return found

    def tell(self, request: Request | Turned, story: Story, others: Iterable[Request]) -> list[Line]:
        """The story of a request that is kept here, or still under way. `others`: all that are under way."""
        if isinstance(request, Turned):
            return [_line(request.at, request.model, f"request {request.id} was refused: {request.refusal.message}")]
        name = request.model.name
        lines = [(0, _line(request.since, name, f"request {request.id} {_came(request)}"))]
        if request.batch:
            with_it = sorted(
                {
                    other.id
                    for other in (*self._kept, *others)
                    if isinstance(other, Request) and other.batch == request.batch and other is not request
                }
            )
            together = f", together with {', '.join(map(str, with_it))}" if with_it else ""
            text = f"request {request.id} {_went(request)} in batch {request.batch}{together}"
            lines.append((2, _line(request.sent, name, text)))
        if request.outcome is not None:
            lines.append((3, _line(request.ended, name, f"request {request.id} {_ended(request)}")))
        until = float("inf") if request.outcome is None else request.ended
        lines += [(1, line) for line in story.about(name) if request.since <= line.at <= until]
        return [line for _, line in sorted(lines, key=lambda ranked: (ranked[1].at, ranked[0]))]

    def about(self, model: str) -> list[Line]:
        """The last requests of a model that had to wait or were refused, one line each."""
        found: list[Line] = []
        for kept in reversed(self._kept):
            if len(found) == SHOWN:
                break
            if isinstance(kept, Turned) or kept.model.name != model:
                continue  # what was refused at once has a line in the story
            if kept.found is not None or kept.crashes or isinstance(kept.outcome, Refuse):
                went = f"; {_went(kept)} after {kept.sent - kept.since:.2f} s" if kept.batch else ""
                found.append(_line(kept.ended, model, f"request {kept.id} {_came(kept)}{went}; {_ended(kept)}"))
        return found[::-1]


def _line(at: float, model: str, text: str) -> Line:
    return Line(at, model, "request", {"text": text})


def _came(request: Request) -> str:
    what = "came in" if request.kind is Kind.INFER else f"({request.kind.value}) came in"
    if request.found is None:
        return what
    state = "loaded but at work" if request.found is State.LOADED else request.found.value
    return f"{what}, found it {state}, {request.behind} waiting"


def _went(request: Request) -> str:
    return f"went to worker {request.worker}"


def _ended(request: Request) -> str:
    took = f"after {request.ended - request.since:.3f} s"
    if isinstance(request.outcome, Refuse):
        return f"was refused {took}, {request.outcome.code}: {request.outcome.message}"
    if request.outcome is Deliver:
        return f"was answered {took}, {request.ended - request.sent:.3f} s of it at the worker"
    return f"{ENDS[request.outcome]} {took}"


ENDS = {Answer: "was granted", Forget: "lost its client"}
