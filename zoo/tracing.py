"""Spans of OpenTelemetry for inferences, made of what their answers say (`zoo/timings.py`), when they have come.

The broker has no part in it, and nothing is measured for it. A program that has OpenTelemetry set up has its calls
traced: each inference is a span, a child of what is current where it is called. Where the program has not even imported
OpenTelemetry, a call costs one look into a dict.

A span of an inference has a child for each part of its time, in the order in which it passes. They end with the answer:
what the caller's side takes before (its frame is put in place) and after is before them. `dispatch` stands before
`preprocess`, with the way back in it.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from zoo.errors import ZooError
from zoo.timings import Timings

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

T = TypeVar("T")
Steps = Generator[Any, None, T]
NS = 1_000_000_000


def is_on() -> bool:
    """Whether this program uses OpenTelemetry."""
    return "opentelemetry.trace" in sys.modules


@functools.cache
def tracer() -> Tracer:
    from opentelemetry import trace

    return trace.get_tracer("zoo")


def one(model: str, steps: Steps[T]) -> Steps[T]:
    """The steps of a call that asks one model."""
    return _traced([model], steps, lambda answer: {model: answer})


def many(models: list[str], steps: Steps[dict[str, Any]]) -> Steps[dict[str, Any]]:
    """The steps of a call that asks several models at once."""
    return _traced(models, steps, lambda answers: answers)


def _traced(models: list[str], steps: Steps[T], outcomes: Callable[[T], dict[str, Any]]) -> Steps[T]:
    inferences = Inferences()
    inferences.asked(*models)
    try:
        value = yield from steps
    except BaseException as e:
        inferences.failed(e)
        raise
    inferences.all_answered(outcomes(value))
    return value


class Inferences:
    """Those of one call. `within`: of their parent; None: of what is current now."""

    def __init__(self, within: Context | None = None) -> None:
        from opentelemetry import context

        self._context = within or context.get_current()
        self._began: dict[str, int] = {}  # of those without an answer

    def asked(self, *models: str) -> None:
        self._began.update(dict.fromkeys(models, time.time_ns()))

    def answered(self, model: str, outcome: Any, end: int | None = None) -> None:
        """Writes its span. `end`: nanoseconds since 1970; None is now."""
        from opentelemetry import trace

        began, end = self._began.pop(model), end or time.time_ns()
        first = outcome[0] if isinstance(outcome, list) and outcome else outcome  # of several boxes, all have the same
        number = getattr(first, "request", 0)
        about: dict[str, str | int] = {"zoo.model": model, **({"zoo.request": number} if number else {})}
        span = tracer().start_span(
            f"infer {model}", self._context, trace.SpanKind.CLIENT, attributes=about, start_time=began
        )
        if span.is_recording():
            if isinstance(outcome, BaseException):
                _mark(span, outcome)
            elif isinstance(timings := getattr(first, "timings", None), Timings) and timings.total:
                end = _write_parts(span, self._context, timings, began, end)
        span.end(end)

    def all_answered(self, outcomes: dict[str, Any]) -> None:
        """What the answer of a fast model waited for slower ones does not count for it."""
        now = time.time_ns()
        totals = {name: int(_total(outcome) * NS) for name, outcome in outcomes.items()}
        slowest = max(totals.values(), default=0)
        for name, outcome in outcomes.items():
            self.answered(name, outcome, now - (slowest - totals[name] if totals[name] else 0))

    def failed(self, error: BaseException) -> None:
        """All that have no answer yet."""
        for model in list(self._began):
            self.answered(model, error)


class EnrichmentSpan:
    """Of one `enrich`, around the inferences that it asks for."""

    def __init__(self) -> None:
        from opentelemetry import trace

        self._span: Span = tracer().start_span("enrich", kind=trace.SpanKind.CLIENT)
        self._inferences = Inferences(trace.set_span_in_context(self._span))
        self.asked, self.answered = self._inferences.asked, self._inferences.answered

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None:
            self._inferences.failed(error)
            _mark(self._span, error)
        self._span.end()


def _total(outcome: Any) -> float:
    first = outcome[0] if isinstance(outcome, list) and outcome else outcome
    timings = getattr(first, "timings", None)
    return timings.total if isinstance(timings, Timings) else 0.0


def _write_parts(span: Span, context: Context, timings: Timings, began: int, end: int) -> int:
    """Gives the end of the last: later than `end` where the clock was set back meanwhile."""
    from opentelemetry import trace

    inside = trace.set_span_in_context(span, context)
    lengths = {name: int(timings[name] * NS) for name in timings if name != "total"}
    at = max(began, end - sum(lengths.values()))
    for name, length in lengths.items():
        part = tracer().start_span(name, inside, start_time=at)
        at += length
        part.end(at)
    return max(end, at)


def _mark(span: Span, error: BaseException) -> None:
    from opentelemetry import trace

    span.set_attribute("error.type", error.code if isinstance(error, ZooError) else type(error).__name__)
    span.set_status(trace.Status(trace.StatusCode.ERROR, str(error)))
