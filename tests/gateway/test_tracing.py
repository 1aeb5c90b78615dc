"""A `traceparent` at any door becomes spans of where the time went, sent as OpenTelemetry's collectors take them."""

from __future__ import annotations

import contextlib
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import support
from tests.gateway.collector import Collector, Received
from tests.gateway.serving import RunningGateway, beside, gateway_of
from tests.support import Running, free_port, tables, toy, wait_until
from tests.test_walls import loaded_by

__all__ = ["gateway_of"]  # a fixture

PARTS = ["queue", "load", "dispatch", "preprocess", "infer", "postprocess"]
FRAME = np.full((4, 6, 3), 9, np.uint8)
TENSOR = {"name": "image", "datatype": "UINT8", "shape": [4, 6, 3], "data": FRAME.reshape(-1).tolist()}


DOG = {"found": [["dog", 0.9, 1, 1, 3, 3]]}
FINDER = {"name": "find", "adapter": "tests.gateway.finding:Finder", "vram_mb": 10, "options": DOG}
MODELS = [toy(options={"load_seconds": 0.1}), {**FINDER, "deepstack": "detection"}]
CONFIG = tables("models", MODELS) + tables("enrich.rules", [{"for": ["dog"], "models": ["toy"]}])


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as made:
        yield made


@pytest.fixture(scope="module")
def gateway(collector: Collector) -> Iterator[RunningGateway]:
    """Of the models `toy`, which takes a while to load, and `find`, which answers a box."""
    folder = Path(tempfile.mkdtemp(prefix="zoo-t-", dir="/tmp"))
    try:
        running = Running(folder, CONFIG).start()
        with contextlib.ExitStack() as stack:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
                patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
                made = stack.enter_context(contextlib.contextmanager(beside)(running, CONFIG))
            yield made
        running.close()
    finally:
        support.remove(folder)


class Asked:
    """A trace that the caller has begun. `header`: says so."""

    def __init__(self) -> None:
        self.trace, self.span = secrets.token_hex(16), secrets.token_hex(8)
        self.header = {"traceparent": f"00-{self.trace}-{self.span}-01"}


def come(collector: Collector, asked: Asked, *names: str) -> dict[str, Received]:
    """The spans of a trace, when all of these have come."""
    wait_until(lambda: collector.of(asked.trace).keys() >= set(names), 30.0, f"spans {names}: {collector.spans}")
    return collector.of(asked.trace)


def check_parts(spans: dict[str, Received], inference: str) -> None:
    """They follow one another within their inference."""
    outer = spans[inference]
    parts = [spans[name] for name in PARTS]
    assert {part.parent for part in parts} == {outer.id}
    at = outer.start
    for part in parts:
        assert part.start >= at
        at = part.end
    assert at <= outer.end


def test_a_request_of_kserve_becomes_a_trace_with_all_parts_of_its_time(
    gateway: RunningGateway, collector: Collector
) -> None:
    asked = Asked()
    answer = gateway.ask("POST", "/v2/models/toy/infer", {"inputs": [TENSOR]}, asked.header)
    said = answer.json["parameters"]
    spans = come(collector, asked, "POST /v2/models/{model}/infer", "infer toy", *PARTS)
    door, inference = spans["POST /v2/models/{model}/infer"], spans["infer toy"]
    assert (door.parent, inference.parent) == (asked.span, door.id)
    assert door.start <= inference.start
    assert inference.end <= door.end
    check_parts(spans, "infer toy")
    for name in PARTS:
        taken = (spans[name].end - spans[name].start) / 1e9
        assert taken == pytest.approx(said[f"{name}_seconds"], abs=1e-6), name
    assert spans["load"].end - spans["load"].start >= 100e6  # the first test of this file
    assert inference.attributes == {"zoo.model": "toy", "zoo.request": said["request"]}
    assert {span.service for span in spans.values()} == {"zoo-gateway"}
    assert door.attributes["http.response.status_code"] == 200
    assert door.attributes["zoo.request_id"] == answer.headers["x-request-id"]


def test_so_do_those_of_the_other_doors(gateway: RunningGateway, collector: Collector, tmp_path: Any) -> None:
    Image.fromarray(FRAME).save(tmp_path / "picture.png")
    picture = (tmp_path / "picture.png").read_bytes()
    deepstack, enrich = Asked(), Asked()
    form = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n' + picture + b"\r\n--b--\r\n"
    multipart = {"Content-Type": "multipart/form-data; boundary=b"}
    assert gateway.ask("POST", "/v1/vision/detection", form, {**multipart, **deepstack.header}).json["success"]
    found = come(collector, deepstack, "POST /v1/vision/detection", "infer find", *PARTS)
    check_parts(found, "infer find")
    assert gateway.ask("POST", "/enrich?detector=find", picture, {"Content-Type": "image/png", **enrich.header}).status
    found = come(collector, enrich, "POST /enrich", "infer find", "enrich", "infer toy")
    door, around = found["POST /enrich"].id, found["enrich"]
    assert {found["infer find"].parent, around.parent} == {door}
    assert found["infer toy"].parent == around.id
    assert around.start <= found["infer toy"].start <= found["infer toy"].end <= around.end


def test_a_failed_request_says_its_code(gateway: RunningGateway, collector: Collector) -> None:
    asked, hurried = Asked(), Asked()
    assert gateway.ask("POST", "/v2/models/nothing/infer", {"inputs": [TENSOR]}, asked.header).status == 404
    found = come(collector, asked, "POST /v2/models/{model}/infer")
    assert found["POST /v2/models/{model}/infer"].attributes["http.response.status_code"] == 404
    late = {"inputs": [TENSOR], "parameters": {"do": "sleep", "seconds": 3, "timeout": 300_000}}
    assert gateway.ask("POST", "/v2/models/toy/infer", late, hurried.header).status == 504
    found = come(collector, hurried, "POST /v2/models/{model}/infer", "infer toy")
    assert found["infer toy"].is_error
    assert found["infer toy"].attributes["error.type"] == "deadline_exceeded"
    assert found["POST /v2/models/{model}/infer"].is_error
    assert not found.keys() & set(PARTS)


def test_probes_and_scrapes_begin_no_traces_and_callers_without_one_do(
    gateway: RunningGateway, collector: Collector
) -> None:
    for path in ("/health", "/v2/health/ready", "/metrics"):
        assert gateway.ask("GET", path).status == 200
    asked = Asked()
    assert gateway.ask("GET", "/v2/models/toy", headers=asked.header).status == 200
    assert gateway.ask("POST", "/v2/models/find/infer", {"inputs": [TENSOR]}).status == 200
    come(collector, asked, "GET /v2/models/{model}")
    begun = wait_until(lambda: {span.name for span in list(collector.spans) if not span.parent})
    assert begun == {"POST /v2/models/{model}/infer"}


@pytest.mark.slow
def test_a_collector_that_is_not_there_costs_no_request_and_no_end(
    broker: Any, gateway_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    running: Running = broker()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    gateway: RunningGateway = gateway_of(running)
    for _ in range(3):
        assert gateway.ask("POST", "/v2/models/toy/infer", {"inputs": [TENSOR]}, Asked().header).status == 200


def test_without_a_place_to_send_them_to_nothing_of_opentelemetry_is_loaded() -> None:
    begin = "from zoo.gateway import serving, tracing\nassert tracing.begin() is None"
    assert not {name for name in loaded_by(begin) if name.startswith("opentelemetry")}
