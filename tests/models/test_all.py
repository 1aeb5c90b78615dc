"""All models of the shipped config.toml and of docs/models.md, through one broker with room for a fifth of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.models import graphs
from tests.models import served as all_served
from tests.support import Running
from zoo import Client, load_config, results

pytest.importorskip("workers.models.classify")
from workers.models.standins import STANDINS
from zoo.weights import labels

pytestmark = pytest.mark.models

PROMISED: dict[str, type[results.TypedResult]] = {
    "coco-detector": results.Detections,
    "yolo11-license-plate": results.Detections,
    "yolo11-face": results.Detections,
    "paddleocr": results.OcrText,
    "clip-vit-l": results.Embedding,
    "yolo-world-s": results.Detections,
    "vitpose-small": results.Keypoints,
    "depth-anything-v2-small": results.DepthMap,
    "violence-detection": results.Classification,
    "weather-classification": results.Classification,
    "segformer-b2-clothes": results.Segmentation,
    "xclip-base": results.Action,
    "fashion-clip": results.Classification,
    "brisque-quality": results.Quality,
    "vehicle-segment-classification": results.Classification,
    "vehicle-damage-detection": results.Detections,
    "pet-classifier": results.Classification,
    "osnet-x0-25": results.Embedding,
    "threat-detection-yolov8n": results.Detections,
    "vit-age-classifier": results.Classification,
    "vit-gender-classifier": results.Classification,
    "yolov8n-pose": results.Keypoints,
    "onnx-detector": results.Detections,
    "onnx-classifier": results.PlainAnswer,
}
FEWER = {"vehicle-damage-detection": {"max_det": 2}}  # a mask is a million booleans as JSON
IN_PACKAGES = {"paddleocr", "brisque-quality"}  # with their published weights


class Served(NamedTuple):
    """One model's answer about the whole frame, and its rows in `processes()` and `models()` at that time."""

    answer: results.TypedResult
    process: dict[str, Any]
    model: dict[str, Any]


@pytest.fixture(scope="module")
def client(whole_zoo: Running) -> Iterator[Client]:
    with Client(whole_zoo.endpoint, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def served(client: Client, bus: np.ndarray) -> dict[str, Served]:
    """Every model asked in turn, and what the budget said each time."""
    found: dict[str, Served] = {}
    for name in PROMISED:
        answer = results.typed(client.infer(name, bus, **FEWER.get(name, {})))
        status = client.get_status()
        assert status["vram_used_mb"] <= status["vram_budget_mb"]
        (process,) = (row for row in client.processes() if row["name"] == name)
        (model,) = (row for row in client.models() if row["name"] == name)
        found[name] = Served(answer, process, model)
    return found


def test_all_are_here() -> None:
    assert list(PROMISED) == all_served.NAMES
    assert {*all_served.NAMES, *all_served.TENSORS} == {*STANDINS, *IN_PACKAGES, *graphs.STANDINS}


@pytest.mark.parametrize("name", PROMISED)
def test_it_answers_what_is_promised(name: str, served: dict[str, Served]) -> None:
    assert type(served[name].answer) is PROMISED[name]


@pytest.mark.parametrize("name", PROMISED)
def test_a_stand_in_is_called_one_wherever_it_shows(name: str, served: dict[str, Served]) -> None:
    answer, process, model = served[name]
    said = (answer.stand_in, answer.to_dict()["stand_in"], process["stand_in"], model["stand_in"])
    assert said == (name not in IN_PACKAGES,) * 4
    assert model["weights"] == ("in package" if name in IN_PACKAGES else "stand-in")


@pytest.mark.parametrize("name", PROMISED)
def test_its_labels_are_those_of_its_answers_and_of_its_files(
    name: str, served: dict[str, Served], whole_zoo: Running
) -> None:
    answer, _, told = served[name]
    assert told["labels_from"] == "model"
    assert {*getattr(answer, "labels", [])} <= {*told["labels"]}
    config = load_config(whole_zoo.config_path)
    (model,) = (model for model in config.models if model.name == name)
    path = config.weights(model)
    is_file = path is not None and path.is_file() and model.category not in labels.WITHOUT
    only_a_load_tells = is_file or model.category == "pose"
    assert labels.described(model, path) == (None if only_a_load_tells else told["labels"])


@pytest.mark.parametrize("name", PROMISED)
def test_its_answer_is_plain_json_and_a_picture(name: str, served: dict[str, Served], bus: np.ndarray) -> None:
    answer = served[name].answer
    text = json.dumps(answer.to_dict(), allow_nan=False)
    assert json.loads(text).get("type", "PlainAnswer") == PROMISED[name].__name__
    painted = answer.draw(bus)
    assert (painted.shape, painted.dtype) == (bus.shape, np.uint8)
    assert (painted != bus).any(), "the stand-in has found nothing: make its answer a livelier one"


def test_the_budget_was_kept_by_evictions(served: dict[str, Served], client: Client) -> None:
    loaded = {row["name"] for row in client.processes() if row["state"] == "loaded"}
    assert 0 < len(loaded) < len(served)
    assert all(row["available"] for row in client.models() if row["name"] in served)
    for name in loaded:
        assert client.unload(name) is True
    assert client.get_status()["vram_used_mb"] == 0
    assert client.get_status()["workers"] == 0
