"""A client's inferences as spans of OpenTelemetry, for a program that has it set up."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider, sampling
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.support import ROOT, Running, tables, toy
from zoo import AsyncClient, BrokerUnreachable, Client, InferenceFailed, InvalidInput, ModelNotFound, tracing

FRAME = np.full((6, 8, 3), 9, np.uint8)
PARTS = ["queue", "load", "dispatch", "preprocess", "infer", "postprocess"]


class Traces:
    """What a program with OpenTelemetry has written. `tracer`: its own."""

    def __init__(self, sampler: sampling.Sampler = sampling.ALWAYS_ON) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = provider.get_tracer("test")

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    def within(self, span: ReadableSpan) -> list[ReadableSpan]:
        """Its children, in the order of their beginnings."""
        children = [one for one in self._exporter.get_finished_spans() if one.parent and one.parent == span.context]
        return sorted(children, key=lambda one: (one.start_time or 0, PARTS.index(one.name)))


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> Traces:
    """Not OpenTelemetry's provider of this whole process: that can be set once only."""
    made = Traces()
    monkeypatch.setattr(tracing, "tracer", lambda: made.tracer)
    return made


def check(traces: Traces, span: ReadableSpan, answer: object) -> None:
    """The span of an answer has its parts, as long as the answer says, one after another, at its end."""
    timings = answer.timings  # type: ignore[attr-defined]
    parts = traces.within(span)
    assert [part.name for part in parts] == PARTS
    for part in parts:
        assert part.start_time is not None
        assert part.end_time is not None
        assert (part.end_time - part.start_time) / 1e9 == pytest.approx(timings[part.name], abs=1e-6)
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.start_time <= parts[0].start_time  # type: ignore[operator]
    assert parts[-1].end_time <= span.end_time  # type: ignore[operator]
    assert span.attributes is not None
    assert span.attributes["zoo.request"] == answer.request  # type: ignore[attr-defined]


def test_an_inference_is_a_child_of_what_is_current_with_the_parts_of_its_time(
    traces: Traces, shared_broker: Running
) -> None:
    with shared_broker.client() as zoo, traces.tracer.start_as_current_span("the caller's") as outer:
        answer = zoo.infer("toy", FRAME)
    (span,) = traces.named("infer toy")
    assert span.parent == outer.get_span_context()
    assert span.kind is trace.SpanKind.CLIENT
    check(traces, span, answer)


def test_so_are_those_of_tasks_each_below_its_own(traces: Traces, shared_broker: Running) -> None:
    async def ask(zoo: AsyncClient, name: str) -> object:
        with traces.tracer.start_as_current_span(f"asks {name}"):
            return await zoo.infer(name, FRAME, do="sleep", seconds=0.05)

    async def both() -> list[object]:
        async with AsyncClient(shared_broker.endpoint, arena_mb=8) as zoo:
            return await asyncio.gather(ask(zoo, "toy"), ask(zoo, "toy2"))

    for name, answer in zip(("toy", "toy2"), asyncio.run(both()), strict=True):
        (span,), (outer,) = traces.named(f"infer {name}"), traces.named(f"asks {name}")
        assert span.parent == outer.context
        check(traces, span, answer)


def test_several_models_leases_and_boxes_have_spans_of_their_own(traces: Traces, shared_broker: Running) -> None:
    with shared_broker.client() as zoo:
        answers = zoo.infer_many(FRAME, ["toy", "toy2", "off"], do="sleep", seconds=0.02)
        for name in ("toy", "toy2"):
            check(traces, traces.named(f"infer {name}")[0], answers[name])
        (off,) = traces.named("infer off")
        assert off.attributes is not None
        assert off.attributes["error.type"] == "model_disabled"
        with zoo.load("toy") as lease:
            answer = lease(FRAME)
        check(traces, traces.named("infer toy")[1], answer)
        several = zoo.infer("toy", FRAME, boxes=[(0, 0, 4, 4), (1, 1, 5, 5)])
        check(traces, traces.named("infer toy")[2], several[0])


@pytest.mark.parametrize(
    ("model", "options", "kind", "code"),
    [
        ("nothing", {}, ModelNotFound, "model_not_found"),
        ("toy", {"do": "refuse"}, InvalidInput, "invalid_input"),
        ("toy", {"do": "raise"}, InferenceFailed, "inference_failed"),
    ],
)
def test_a_failed_one_says_its_code_and_its_request(
    traces: Traces, shared_broker: Running, model: str, options: dict[str, str], kind: type[Exception], code: str
) -> None:
    with shared_broker.client() as zoo, pytest.raises(kind) as caught:
        zoo.infer(model, FRAME, **options)
    (span,) = traces.named(f"infer {model}")
    assert span.attributes is not None
    assert span.attributes["error.type"] == code
    assert span.attributes.get("zoo.request", 0) == caught.value.request  # type: ignore[attr-defined]
    assert span.status.status_code is trace.StatusCode.ERROR
    assert span.status.description == str(caught.value)
    assert not traces.within(span)


def test_one_without_a_broker_has_a_span_too(traces: Traces, tmp_path: object) -> None:
    with Client(f"ipc://{tmp_path}/none", timeout=0.2) as zoo, pytest.raises(BrokerUnreachable):
        zoo.infer("toy", FRAME)
    (span,) = traces.named("infer toy")
    assert span.attributes is not None
    assert span.attributes["error.type"] == "broker_unreachable"


def test_one_that_its_task_gave_up_has_a_span_too(traces: Traces, shared_broker: Running) -> None:
    async def give_up() -> None:
        async with AsyncClient(shared_broker.endpoint, arena_mb=8) as zoo:
            await zoo.infer("toy", FRAME)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await zoo.infer("toy", FRAME, do="sleep", seconds=1.0)

    asyncio.run(give_up())
    (_, span) = traces.named("infer toy")
    assert span.attributes is not None
    assert span.attributes["error.type"] == "CancelledError"


def test_what_the_caller_does_not_sample_is_not_written(
    monkeypatch: pytest.MonkeyPatch, shared_broker: Running
) -> None:
    none = Traces(sampling.ParentBased(sampling.ALWAYS_OFF))
    monkeypatch.setattr(tracing, "tracer", lambda: none.tracer)
    with shared_broker.client() as zoo, none.tracer.start_as_current_span("not sampled"):
        assert zoo.infer("toy", FRAME).timings.total > 0
    assert not none.named("infer toy")


def test_an_enrichment_is_a_span_around_its_inferences(traces: Traces, broker: Callable[..., Running]) -> None:
    table = tables("enrich.rules", [{"for": ["car"], "models": ["toy"]}, {"for": ["*"], "models": ["toy2"]}])
    running = broker(tables("models", [toy(), toy("toy2")]) + table)
    with running.client() as zoo, traces.tracer.start_as_current_span("an event") as outer:
        event = zoo.enrich(FRAME, [("car", (0, 0, 4, 4), 0.9)])
    assert not event.missing
    (around,) = traces.named("enrich")
    assert around.parent == outer.get_span_context()
    answers = event.detections[0].answers
    for name in ("toy", "toy2"):
        (span,) = traces.named(f"infer {name}")
        assert span.parent == around.context
        check(traces, span, answers[name])


PROGRAM = """
import json, sys
import numpy as np
from zoo import Client
if sys.argv[2] != "without":
    from opentelemetry import trace
if sys.argv[2] == "traced":
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    provider, memory = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    trace.set_tracer_provider(provider)
with Client(sys.argv[1], arena_mb=8) as zoo:
    zoo.infer("toy", np.zeros((4, 4, 3), np.uint8))
names = [span.name for span in memory.get_finished_spans()] if sys.argv[2] == "traced" else []
print(json.dumps([names, any(name.startswith("opentelemetry") for name in sys.modules)]))
"""


@pytest.mark.parametrize(
    ("how", "spans", "loaded"),
    [("traced", [*PARTS, "infer toy"], True), ("imported", [], True), ("without", [], False)],
)
def test_a_program_that_sets_it_up_is_traced_and_others_are_not(
    shared_broker: Running, how: str, spans: list[str], loaded: bool
) -> None:
    command = [sys.executable, "-c", PROGRAM, shared_broker.endpoint, how]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60, check=True
    )
    assert json.loads(done.stdout) == [spans, loaded]
