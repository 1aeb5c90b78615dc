"""Health, models and enrichment as a backend of cameras asks for them, over a real broker."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import support
from tests.gateway.serving import Answer, RunningGateway, served_alone
from tests.gateway.test_kserve import jpeg
from tests.support import toy, wait_until

RULES = """
[enrich]
min_score = 0.5
[[enrich.rules]]
for = ["person"]
models = ["of-person"]
[[enrich.rules]]
for = ["*"]
on = "frame"
models = ["of-frame"]
[[enrich.rules]]
for = ["person"]
on = "video"
min_frames = 2
models = ["of-video"]
"""
FRAME = np.zeros((40, 60, 3), np.uint8)
FRAME[:, 30:] = 9
PICTURE = jpeg(FRAME)
NAMES = ("of-person", "of-frame", "of-video", "spare")


@pytest.fixture(scope="module")
def served() -> Iterator[RunningGateway]:
    finder = {"name": "finder", "adapter": "tests.gateway.adapter:Every", "vram_mb": 10}
    models = support.tables("models", [*map(toy, NAMES), toy("off", enabled=False), finder])
    with served_alone(models + RULES, max_body_mb=1) as gateway:
        yield gateway


def form(*parts: tuple[str, bytes, str | None]) -> tuple[bytes, dict[str, str]]:
    """A body of parts: name, content, and for a file its name."""
    made = b""
    for name, content, filename in parts:
        more = f'; filename="{filename}"\r\nContent-Type: image/png' if filename else ""
        made += (
            f'--frontier\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + content + b"\r\n"
        )
    return made + b"--frontier--\r\n", {"Content-Type": "multipart/form-data; boundary=frontier"}


# ---------------------------------------------------------------- health and models


def test_health_tells_the_truth(broker: Any, gateway_of: Callable[..., RunningGateway]) -> None:
    running = broker([toy(), toy("off", enabled=False)])
    gateway = gateway_of(running)
    assert gateway.ask("GET", "/readiness").json == {"ready": True, "status": "ready", "message": ""}
    found = gateway.ask("GET", "/health").json
    assert (found["status"], found["device"], found["cuda_available"]) == ("healthy", "cpu", False)
    assert found["models"] == [{"name": "toy", "loaded": False, "vram_mb": None}]
    gateway.ask("POST", "/models/preload?model_name=toy")
    found = gateway.ask("GET", "/health").json
    assert found["models"] == [{"name": "toy", "loaded": True, "vram_mb": 10.0}]
    assert found["total_vram_used_gb"] == 0.01
    running.kill()
    for path, key, value in (("/health", "status", "unhealthy"), ("/readiness", "ready", False)):
        answer = gateway.ask("GET", path)
        assert (answer.status, answer.json[key]) == (503, value)
    running.start()
    wait_until(lambda: gateway.ask("GET", "/readiness").status == 200)


def test_health_is_degraded_where_a_model_cannot_be_served(
    broker: Any, gateway_of: Callable[..., RunningGateway]
) -> None:
    gateway = gateway_of(broker([toy(), toy("broken", options={"load": "raise"})]))
    assert gateway.ask("POST", "/models/preload", {"model_name": "broken"}).status == 503
    found = gateway.ask("GET", "/health")
    assert (found.status, found.json["status"]) == (200, "degraded")


def test_health_shows_models_to_those_who_may_look(
    broker: Any, gateway_of: Callable[..., RunningGateway], tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("porch viewer 0123456789abcdef\nyard caller fedcba9876543210\n")
    gateway = gateway_of(broker(), tokens=tokens)
    porch, yard = ({"X-API-Key": key} for key in ("0123456789abcdef", "fedcba9876543210"))
    assert gateway.ask("GET", "/health").json == {"status": "healthy", "models": []}
    assert gateway.ask("GET", "/health", headers=porch).json["models"] != []
    assert gateway.ask("GET", "/models/status").status == 401
    assert gateway.ask("GET", "/models/status", headers=porch).status == 200
    assert gateway.ask("POST", "/models/preload?model_name=toy", headers=porch).status == 403
    assert gateway.ask("POST", "/models/preload?model_name=toy", headers=yard).status == 200
    assert gateway.ask("POST", "/models/unload?model_name=toy", headers=yard).status == 403
    assert gateway.ask("POST", "/enrich", PICTURE, porch).status == 403


def test_models_are_preloaded_and_unloaded(served: RunningGateway) -> None:
    answer = served.ask("POST", "/models/preload?model_name=spare").json
    assert (answer["success"], answer["model_name"], answer["vram_mb"]) == (True, "spare", 10.0)
    assert answer["load_time_ms"] > 0
    found = served.ask("GET", "/models/status").json
    keys = {
        "vram_budget_mb", "vram_used_mb", "vram_available_mb", "vram_utilization_percent", "loaded_models",
        "registered_models", "pending_loads",
    }  # fmt: skip
    assert keys <= {*found}
    loaded = next(row for row in found["loaded_models"] if row["name"] == "spare")
    assert (loaded["vram_mb"], loaded["priority"], loaded["last_used"][-1]) == (10.0, "MEDIUM", "Z")
    registered = next(row for row in found["registered_models"] if row["name"] == "spare")
    assert registered == {"name": "spare", "vram_mb": 10.0, "priority": "MEDIUM", "loaded": True}
    rows = {row["name"]: row for row in served.ask("GET", "/models/registry").json["models"]}
    assert (rows["spare"]["loaded"], rows["off"]["enabled"]) == (True, False)
    answer = served.ask("POST", "/models/unload", {"model_name": "spare"}).json
    assert answer == {"success": True, "model_name": "spare", "was_loaded": True}
    assert served.ask("POST", "/models/unload", {"model_name": "spare"}).json["was_loaded"] is False
    assert served.ask("POST", "/models/preload?model_name=nothing").status == 404
    assert served.ask("POST", "/models/preload?model_name=off").status == 404
    assert served.ask("POST", "/models/preload").status == 400
    assert served.ask("POST", "/models/preload", b"[").status == 400


# ---------------------------------------------------------------- enrichment


def as_json(**more: Any) -> tuple[Any, dict[str, str]]:
    body = {"image": base64.b64encode(PICTURE).decode(), **more}
    return json.dumps(body), {"Content-Type": "application/json"}


def enriched(answer: Answer) -> dict[str, Any]:
    assert answer.status == 200, answer.body
    found: dict[str, Any] = answer.json
    assert found["inference_time_ms"] > 0
    return found


def test_the_picture_as_base64_in_a_form_or_alone(served: RunningGateway) -> None:
    said = {"detection_type": "person", "bbox": [30, 0, 60, 40]}
    as_form = form(("detection_type", b"person", None), ("bbox", b"30,0,60,40", None), ("image", PICTURE, "a.png"))
    bodies = {
        "/enrich?1": as_json(**said),
        "/enrich?2": as_form,
        "/enrich?detection_type=person&bbox=30,0,60,40": (PICTURE, {"Content-Type": "image/png"}),
        "/enrich?detection_type=person&bbox=[30,0,60,40]": (PICTURE, {"Content-Type": "application/octet-stream"}),
        "/enrich?3": as_json(**said | {"image": f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}"}),
    }
    for path, (body, headers) in bodies.items():
        found = enriched(served.ask("POST", path, body, headers))
        (one,) = found["detections"]
        assert (one["label"], one["box"], one["score"]) == ("person", [30.0, 0.0, 60.0, 40.0], 1.0)
        assert (one["answers"]["of-person"]["shape"], one["answers"]["of-person"]["mean"]) == ([40, 30, 3], 9.0)
        assert found["frame"]["of-frame"]["shape"] == [40, 60, 3]
        assert "of-video" in found["skipped"]


def test_without_a_box_it_is_the_whole_picture(served: RunningGateway) -> None:
    (one,) = enriched(served.ask("POST", "/enrich?detection_type=person", PICTURE))["detections"]
    assert one["box"] == [0.0, 0.0, 60.0, 40.0]
    found = enriched(served.ask("POST", "/enrich", PICTURE))
    assert (found["detections"], found["frame"]) == ([], {})  # nothing was detected


def test_a_detector_of_the_zoo_may_find_the_detections(served: RunningGateway) -> None:
    picture = jpeg(np.full((24, 32, 3), 2, np.uint8))
    found = enriched(served.ask("POST", "/enrich?detector=finder", picture))
    assert [(one["label"], one["box"]) for one in found["detections"]] == [
        ("cat", [0.0, 1.0, 2.0, 3.0]),
        ("dog", [1.0, 2.0, 3.0, 4.0]),
    ]
    assert "of-frame" in found["frame"]
    assert served.ask("POST", "/enrich?detector=nothing", picture).status == 404


def test_several_detections_and_those_that_are_not_sure(served: RunningGateway) -> None:
    detections = [
        {"label": "person", "box": [0, 0, 30, 40], "score": 0.9},
        {"label": "person", "box": [30, 0, 60, 40], "score": 0.2},
        {"label": "kite", "box": [0, 0, 9, 9]},
    ]
    found = enriched(served.ask("POST", "/enrich", *as_json(detections=detections)))
    assert [bool(one["answers"]) for one in found["detections"]] == [True, False, False]
    found = enriched(served.ask("POST", "/enrich", *as_json(detections=detections, min_score=0.1)))
    assert [bool(one["answers"]) for one in found["detections"]] == [True, True, False]


def test_earlier_frames_make_a_video(served: RunningGateway) -> None:
    frames = [base64.b64encode(PICTURE).decode()] * 2
    found = enriched(served.ask("POST", "/enrich", *as_json(frames=frames, detection_type="person")))
    assert found["frame"]["of-video"]["frames"] == 3
    parts = [("frames", PICTURE, "1.png"), ("image", PICTURE, "3.png"), ("frames", PICTURE, "2.png")]
    body = form(("detection_type", b"person", None), *parts)
    assert enriched(served.ask("POST", "/enrich", *body))["frame"]["of-video"]["frames"] == 3


def test_a_form_in_small_pieces(served: RunningGateway) -> None:
    body, headers = form(("image", PICTURE, "a.png"), ("detection_type", b"person", None))
    pieces = [body[i : i + 11] for i in range(0, len(body), 11)]
    (one,) = enriched(served.ask("POST", "/enrich", iter([*pieces, b"\r\n"]), headers))["detections"]
    assert one["answers"]["of-person"]["shape"] == [40, 60, 3]


@pytest.mark.parametrize(
    ("body", "headers", "says"),
    [
        (*as_json(image="not base64!"), "image: not base64"),
        (*as_json(image=""), "image: it is empty"),
        (*as_json(bbox=[1, 2], detection_type="person"), "box"),
        (*as_json(bbox="1,2,3,4"), "body"),
        (*as_json(detections=[{"label": "person"}]), "box"),
        (*as_json(timeout=-1), "timeout"),
        ("{}", {"Content-Type": "application/json"}, "image: it is empty"),
        (*form(("image", b"", "a.png")), "image: it is empty"),
        (*form(("bbox", b"1,2,3,4", None)), "image: the form has no file"),
        (*form(("image", PICTURE, "a.png"), ("bbox", b"a,b", None)), "bbox"),
        (*form(("image", PICTURE, "a.png"), ("bbox", b"[1,", None)), "bbox"),
        (*form(("image", PICTURE, "a.png"), ("is_suspicious", b"perhaps", None)), "fields"),
        (*form(("note", b"x" * 70_000, None)), "note: all fields"),
        (form(("image", PICTURE, "a.png"))[0][:-20], form()[1], "not a whole form"),
        (b"--other\r\n", form()[1], "not a whole form"),
        (PICTURE, {"Content-Type": "multipart/form-data"}, "Content-Type"),
        (b"", {"Content-Type": "image/jpeg"}, "body: it is empty"),
        (*as_json(image=base64.b64encode(b"no picture").decode(), detection_type="person"), "image: not a picture"),
        (b"no picture", {"Content-Type": "image/jpeg"}, "image: not a picture"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_told(served: RunningGateway, body: Any, headers: dict[str, str], says: str) -> None:
    answer = served.ask("POST", "/enrich", body, headers)
    assert (answer.status, answer.json["code"]) == (400, "invalid_input"), answer.body
    assert says in answer.json["error"]
    assert "ERROR" not in served.log()


def test_a_form_that_is_too_large(served: RunningGateway) -> None:
    body, headers = form(("image", bytes(1 << 20), "a.png"))
    assert served.ask("POST", "/enrich", body, headers).status == 413
    assert served.ask("POST", "/enrich", iter([body]), headers).status == 413
