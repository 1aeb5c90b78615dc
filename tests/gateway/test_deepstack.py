"""DeepStack and CodeProject.AI by `deepstack-python` and `codeproject-ai-api`, and by hand, over a real broker."""

from __future__ import annotations

import io
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import codeprojectai.core as codeproject
import deepstack.core as deepstack
import numpy as np
import pytest
import requests
from PIL import Image

from tests import support
from tests.gateway.serving import RunningGateway, beside
from tests.support import Running, tables, toy
from zoo.enrichment import Enriched
from zoo.gateway.doors.deepstack import answers

OBJECTS = [
    ["Dog", 0.7, 10.4, 20.6, 30, 40], ["person", 0.95, -3.0, 2, 15, 30], ["kite", 0.9, 1, 2, 3, 4],
    ["person", 0.3, 5, 5, 9, 9], *(["car", 0.5, i, 0, i + 20, 20] for i in range(30)),
]  # fmt: skip
PLATES = [["plate", 0.8, 10, 10, 50, 30], ["plate", 0.6, 0, 0, 20, 5], ["plate", 0.2, 10, 10, 50, 30]]


def finder(name: str, found: list[Any], deepstack: str = "", **options: Any) -> dict[str, Any]:
    options = {"found": found, **options}
    return {
        "name": name, "adapter": "tests.gateway.finding:Finder", "vram_mb": 10, "category": "detection",
        "deepstack": deepstack, "options": options,
    }  # fmt: skip


WEATHER = {"name": "weather", "adapter": "tests.gateway.finding:Weather", "vram_mb": 10, "deepstack": "scene"}
READER = {"name": "reader", "adapter": "tests.gateway.finding:Reader", "vram_mb": 10, "category": "ocr"}
MODELS = [
    finder("objects", OBJECTS, "detection", conf=0.4),
    finder("faces", [["0", 0.8, 1, 1, 9, 9]], "face"),
    finder("plates", PLATES, "alpr"),
    finder("custom", [["Fox", 0.9, 1, 1, 9, 9], ["person", 0.8, 1, 1, 9, 9]]),
    finder("few", [["dog", score, 1, 1, 9, 9] for score in (0.2, 0.4, 0.1, 0.7, 0.9)], conf=0.4),
    finder("slow", OBJECTS, load_seconds=1.7),
    WEATHER, READER, toy(), toy("off", enabled=False),
]  # fmt: skip
RULES = [
    {"for": ["car"], "models": ["plates"]},
    {"after": "plates", "models": ["reader"], "grow": 0.1, "options": {"mode": "line"}},
]
BOUNDARY = "boundary"


def picture() -> bytes:
    made = io.BytesIO()
    Image.fromarray(np.full((64, 96, 3), 3, np.uint8)).save(made, "PNG")
    return made.getvalue()


PICTURE = picture()


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    folder = Path("/tmp") / f"zoo-t-{os.getpid()}-d"
    folder.mkdir()
    made = Running(folder, tables("models", MODELS) + "\n" + tables("enrich.rules", RULES))
    try:
        yield made.start()
        made.close()
    finally:
        support.remove(folder)


def serve(running: Running, name: str, **keys: Any) -> Iterator[RunningGateway]:
    folder = running.folder / name
    folder.mkdir()
    made = Running(folder, "", endpoint=running.endpoint)
    yield from beside(made, tables("models", MODELS) + "\n" + tables("enrich.rules", RULES), **keys)


@pytest.fixture(scope="module")
def served(running: Running) -> Iterator[RunningGateway]:
    yield from serve(running, "open", deepstack_labels=["person", "dog", "car"], max_body_mb=1)


@pytest.fixture(scope="module")
def guarded(running: Running) -> Iterator[RunningGateway]:
    tokens = running.folder / "tokens"
    tokens.write_text("porch caller porch-porch-porch-1\npanel viewer panel-panel-panel-1\n")
    tokens.chmod(0o600)
    yield from serve(running, "guarded", tokens=tokens, max_body_mb=1, deepstack_seconds=1.0)


def post(gateway: RunningGateway, route: str, files: Any = None, **fields: Any) -> Any:
    given = {"image": PICTURE} if files is None else files
    answer = requests.post(f"http://{gateway.address}/v1/{route}", files=given, data=fields, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(answer: Any, code: int, text: str) -> None:
    assert answer["success"] is False
    assert answer["code"] == code, answer
    assert text in answer["error"]
    assert answer["message"] == answer["error"]
    assert not {"predictions", "faces", "models", "count"} & {*answer}


# ---------------------------------------------------------------- the clients of the package index


def clients(kind: str, gateway: RunningGateway, **keys: Any) -> Any:
    of = {"objects": ("DeepstackObject", "CodeProjectAIObject"), "face": ("DeepstackFace", "CodeProjectAIFace")}[kind]
    return [
        getattr(deepstack, of[0])("127.0.0.1", gateway.port, **keys),
        getattr(codeproject, of[1])("127.0.0.1", gateway.port, **keys),
    ]


def test_both_clients_detect_objects(served: RunningGateway) -> None:
    for client in clients("objects", served):
        found = client.detect(PICTURE)
        assert found[0] == {"label": "person", "confidence": 0.95, "x_min": 0, "y_min": 2, "x_max": 15, "y_max": 30}
        assert found[1] == {"label": "dog", "confidence": 0.7, "x_min": 10, "y_min": 21, "x_max": 30, "y_max": 40}
        assert len(found) == 20
        assert deepstack.get_objects(found) == ["car", "dog", "person"]
        assert codeproject.get_objects_summary(found) == {"person": 1, "dog": 1, "car": 18}
    for client in clients("objects", served, custom_model="custom"):
        assert deepstack.get_objects(client.detect(PICTURE)) == ["person"]


def test_both_clients_detect_faces_and_learn_that_none_is_recognised(served: RunningGateway) -> None:
    errors = deepstack.DeepstackException, codeproject.CodeProjectAIException
    for client, error in zip(clients("face", served), errors, strict=True):
        (face,) = client.detect(PICTURE)
        assert (face["label"], face["confidence"], face["x_max"]) == ("face", 0.8, 9)
        with pytest.raises(error, match="detected here, not recognised"):
            client.register("me", PICTURE)
        with pytest.raises(KeyError, match="predictions"):
            client.recognize(PICTURE)
        with pytest.raises(KeyError, match="faces"):
            client.get_registered_faces()


def test_the_scene_by_its_client(served: RunningGateway) -> None:
    found = deepstack.DeepstackScene("127.0.0.1", served.port).recognize(PICTURE)
    assert (found["label"], found["confidence"]) == ("rain", 0.7)


# ---------------------------------------------------------------- routes


def test_the_envelope(served: RunningGateway) -> None:
    answer = post(served, "vision/detection", min_confidence="0.6")
    assert {
        "success", "message", "error", "count", "predictions", "command", "moduleId", "moduleName", "executionProvider",
        "canUseGPU", "inferenceMs", "processMs", "analysisRoundTripMs", "processedBy", "timestampUTC", "code",
        "duration",
    } == {*answer}  # fmt: skip
    assert (answer["success"], answer["count"], answer["code"]) == (True, 2, 200)
    assert (answer["message"], answer["error"]) == ("Found person, dog", "")
    assert (answer["executionProvider"], answer["canUseGPU"]) == ("CPU", False)


def test_the_least_confidence_is_the_callers_even_below_the_models_own(served: RunningGateway) -> None:
    def found(**fields: str) -> list[float]:
        return [one["confidence"] for one in post(served, "vision/custom/few", **fields)["predictions"]]

    assert found(min_confidence="0.7") == [0.9, 0.7]
    assert found() == found(min_confidence="") == [0.9, 0.7, 0.4]
    assert found(min_confidence="0.2") == [0.9, 0.7, 0.4, 0.2]


def test_nothing_found_is_an_empty_list(served: RunningGateway) -> None:
    answer = post(served, "vision/custom/custom", min_confidence="0.95")
    assert (answer["success"], answer["predictions"], answer["message"]) == (True, [], "No objects found")


def test_a_confidence_below_the_models_own_is_asked_of_the_model(
    guarded: RunningGateway, served: RunningGateway
) -> None:
    few = [row for row in OBJECTS if row[0] == "person"]
    assert len(few) == 2
    answer = post(guarded, "vision/detection", min_confidence="0.1", api_key="porch-porch-porch-1")
    assert answer["predictions"][2]["label"] == "Dog"  # no labels are configured there: all, as the model spells them
    assert answer["predictions"][1]["label"] == "kite"


@pytest.mark.parametrize("text", ["much", "-0.1", "1.5", "nan", "inf"])
def test_a_confidence_that_is_none(served: RunningGateway, text: str) -> None:
    refused(post(served, "vision/detection", min_confidence=text), 400, "min_confidence")


@pytest.mark.parametrize("route", ["vision/alpr", "image/alpr"])
def test_plates_are_found_and_read_by_the_table(served: RunningGateway, route: str) -> None:
    answer = post(served, route)
    assert answer["predictions"] == [
        {
            "label": "Plate: 48X24LINE", "plate": "48X24LINE", "confidence": 0.75,
            "x_min": 10, "y_min": 10, "x_max": 50, "y_max": 30,
        }
    ]  # fmt: skip


def test_custom_models_are_all_that_have_no_route_and_can_be_served(served: RunningGateway) -> None:
    for files in ({}, None):
        answer = requests.post(f"http://{served.address}/v1/vision/custom/list", data={"a": "b"}, files=files).json()
        assert answer["models"] == ["custom", "few", "slow", "reader", "toy"]
    assert (answer["success"], answer["code"], answer["command"], answer["statusData"]) == (
        True,
        200,
        "list-custom",
        {},
    )
    assert {"moduleId", "moduleName", "executionProvider", "canUseGPU", "analysisRoundTripMs", "processedBy"} <= {
        *answer
    }


def test_status_routes(served: RunningGateway) -> None:
    for path in ("status/ping", "status/version", "status/updateavailable", "server/status/ping"):
        answer = served.ask("GET", f"/v1/{path}")
        assert answer.status == 200
        assert answer.json["success"] is True
    assert served.ask("GET", "/v1/status/updateavailable").json["updateAvailable"] is False
    assert {*served.ask("GET", "/v1/status/version").json["version"]} == {"major", "minor", "patch"}


@pytest.mark.parametrize("what", ["recognize", "register", "list", "delete", "match"])
def test_what_is_not_offered_says_so(served: RunningGateway, what: str) -> None:
    refused(post(served, f"vision/face/{what}", userid="me"), 400, "detected here, not recognised")


# ---------------------------------------------------------------- errors


def test_errors_are_answers_with_status_200_and_without_predictions(served: RunningGateway) -> None:
    refused(post(served, "vision/custom/unknown"), 404, "unknown")
    refused(post(served, "vision/custom/off"), 404, "enabled = false")
    refused(post(served, "vision/custom/toy"), 400, "toy answers no boxes")
    refused(post(served, "vision/custom/reader"), 400, "reader answers no boxes")
    refused(post(served, "vision/detection", {"image": b"no picture"}), 400, "not an image")
    refused(post(served, "vision/detection", {"image": b"0" * (2 << 20)}), 413, "larger than 1 MB")


def test_a_model_that_still_loads_is_no_empty_answer_and_goes_on_loading(guarded: RunningGateway) -> None:
    def ask() -> Any:
        return post(guarded, "vision/custom/slow", api_key="porch-porch-porch-1")

    answer = ask()
    refused(answer, 504, "slow")
    assert answer["retryable"] is True
    support.wait_until(lambda: ask()["success"], 20.0, "it is loaded")


def test_a_route_without_a_model(running: Running) -> None:
    folder = running.folder / "bare"
    folder.mkdir()
    for gateway in beside(Running(folder, "", endpoint=running.endpoint)):
        for route in ("detection", "face", "scene", "alpr"):
            refused(post(gateway, f"vision/{route}"), 404, f'deepstack = "{route}"')


# ---------------------------------------------------------------- who calls


def test_the_api_key_counts_wherever_it_stands(guarded: RunningGateway) -> None:
    key = "porch-porch-porch-1"
    assert post(guarded, "vision/detection", api_key=key)["success"]
    after = {"image": PICTURE, "api_key": (None, key)}
    assert post(guarded, "vision/detection", after)["count"] == 20
    assert post(guarded, "vision/custom/list", {}, api_key=key)["success"]
    address = f"http://{guarded.address}/v1/vision/detection"
    assert requests.post(address, files={"image": PICTURE}, headers={"X-API-Key": key}, timeout=30).json()["success"]
    assert len(deepstack.DeepstackObject("127.0.0.1", guarded.port, key).detect(PICTURE)) == 20


def test_without_a_good_key(guarded: RunningGateway) -> None:
    refused(post(guarded, "vision/detection"), 401, "needs a token")
    refused(post(guarded, "vision/detection", api_key="wrong"), 401, "not known here")
    refused(post(guarded, "vision/detection", {"image": PICTURE, "api_key": (None, "wrong")}), 401, "not known here")
    refused(post(guarded, "vision/custom/list", {}), 401, "needs a token")
    refused(post(guarded, "vision/detection", api_key="panel-panel-panel-1"), 403, "viewer")
    assert post(guarded, "vision/custom/list", {}, api_key="panel-panel-panel-1")["success"]


def test_pictures_that_wait_for_their_keys_share_one_limit(guarded: RunningGateway) -> None:
    """The limit is 1 MB: a second picture of 0.6 MB is one too many while the first one's form has not ended."""
    body = part("image", b"0" * 600_000, FILE)
    head = (
        f"POST /v1/vision/detection HTTP/1.1\r\nHost: {guarded.address}\r\nContent-Length: {len(body) + 100}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", guarded.port), timeout=20) as link:
        link.sendall(head.encode() + body)

        def full() -> bool:
            answer = post(guarded, "vision/detection", {"image": b"0" * 600_000})
            return bool(answer["code"] == 429 and "before their tokens" in answer["error"])

        support.wait_until(full, 10.0, "the first picture waits")
    keyed = {"image": PICTURE, "api_key": (None, "porch-porch-porch-1")}
    support.wait_until(lambda: post(guarded, "vision/detection", keyed)["success"], 10.0, "its bytes are free again")


def test_a_wrong_key_after_the_picture_is_refused_where_none_is_needed(served: RunningGateway) -> None:
    refused(post(served, "vision/detection", {"image": PICTURE, "api_key": (None, "wrong")}), 401, "not known here")


# ---------------------------------------------------------------- forms


def part(name: str, data: bytes, *more: str) -> bytes:
    head = "\r\n".join([f'Content-Disposition: form-data; name="{name}"{"".join(more)}'])
    return f"--{BOUNDARY}\r\n{head}\r\n\r\n".encode() + data + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()
FILE = '; filename="a.png"'
HOSTILE = {
    "nothing": b"",
    "no end": part("image", PICTURE, FILE),
    "cut in its picture": part("image", PICTURE, FILE)[:-40],
    "no boundary": b"x" * 5000,
    "only an end": END,
    "no picture": part("min_confidence", b"0.5") + END,
    "an empty picture": part("image", b"", FILE) + END,
    "a part without a name": f"--{BOUNDARY}\r\nContent-Type: image/png\r\n\r\n".encode() + PICTURE + b"\r\n" + END,
    "a head without an end": f"--{BOUNDARY}\r\n".encode() + b"X-A: b" * 20000,
    "many heads": f"--{BOUNDARY}\r\n".encode() + b"X-A: b\r\n" * 2000 + b"\r\n\r\n" + END,
    "many parts": part("a", b"b") * 5000 + part("image", PICTURE, FILE) + END,
    "a huge field": part("min_confidence", b"0" * 500_000) + part("image", PICTURE, FILE) + END,
    "bytes for a name": b'--boundary\r\nContent-Disposition: form-data; name="\xff\xfe\x00"\r\n\r\nx\r\n' + END,
    "an unknown charset": part("a", b"b", "; filename*=nonsense''%ff%fe") + END,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_forms_are_refused_and_the_connection_goes_on(served: RunningGateway, what: str) -> None:
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    answer = served.ask("POST", "/v1/vision/detection", HOSTILE[what], {"Content-Type": kind})
    assert answer.status == 200
    refused(answer.json, 400, "")
    assert post(served, "vision/detection")["count"] == 20


@pytest.mark.parametrize(
    "kind",
    [
        "", "image/png", "multipart/form-data", 'multipart/form-data; boundary=""',
        "multipart/form-data; boundary=\xe9",
        f"multipart/form-data; boundary={'b' * 3000}", "application/x-www-form-urlencoded",
    ],
)  # fmt: skip
def test_other_types_are_refused(served: RunningGateway, kind: str) -> None:
    body = part("image", PICTURE, FILE) + END
    answer = served.ask("POST", "/v1/vision/detection", body, {"Content-Type": kind})
    assert answer.status == 200
    refused(answer.json, 400, "")


def test_a_picture_byte_by_byte_and_without_a_file_name(served: RunningGateway) -> None:
    body = part("min_confidence", b"0.9") + part("image", PICTURE) + END + b"\r\nafterwards"
    head = (
        f"POST /v1/vision/detection HTTP/1.1\r\nHost: {served.address}\r\nTransfer-Encoding: chunked\r\n"
        f"Connection: close\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as link:
        link.sendall(head.encode())
        for byte in body:
            link.sendall(b"1\r\n" + bytes([byte]) + b"\r\n")
        link.sendall(b"0\r\n\r\n")
        answer = b"".join(iter(lambda: link.recv(65536), b""))
    assert b'"confidence":0.95' in answer


# ---------------------------------------------------------------- pure


def test_labels_are_compared_in_any_spelling_and_spelled_as_configured() -> None:
    found = [Enriched(label=label, box=(0, 0, 5, 5), score=0.5) for label in ("Traffic_Light", "person", "sofa")]
    found.append(Enriched(label="person", box=(0, 0, float("nan"), 5), score=0.5))
    assert [one.label for one in answers.chosen(found, 0.4, ["traffic light", "Person"])] == ["traffic light", "Person"]
    assert [one.label for one in answers.chosen(found, 0.4)] == ["Traffic_Light", "person", "sofa"]


def test_a_box_has_at_least_a_pixel() -> None:
    made = answers.prediction(Enriched(label="a", box=(3.2, 3.2, 3.3, 3.4), score=0.5))
    assert (made.x_min, made.x_max, made.y_min, made.y_max) == (3, 4, 3, 4)
