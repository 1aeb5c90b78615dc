"""Detectors of the DETR family against transformers itself, on the same folders, photographs and crops."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

detr = pytest.importorskip("workers.models.detr")
import torch  # noqa: E402
from transformers import AutoImageProcessor, AutoModelForObjectDetection  # noqa: E402

from workers import inputs  # noqa: E402
from workers.models import standins  # noqa: E402
from workers.models.base import Input, Spec  # noqa: E402
from workers.models.standins.common import spelled  # noqa: E402
from workers.models.standins.detr import COCO, detector  # noqa: E402
from zoo.errors import InvalidInput, LoadFailed  # noqa: E402
from zoo.labels import folded  # noqa: E402
from zoo.results import Detections  # noqa: E402
from zoo.wire import payload  # noqa: E402

pytestmark = pytest.mark.models

FAMILIES = ["rt_detr_v2", "rt_detr", "d_fine", "rf_detr"]
CROPS = [(50, 395, 245, 905), (222, 405, 345, 860), (0, 0, 810, 300)]
LABELS = spelled(COCO)  # as the stand-ins have them
LOW = 0.05  # at which a network of random weights finds something


@pytest.fixture(scope="module")
def folders(standin: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each family: the catalogue's stand-in, and the same in the others."""
    made = tmp_path_factory.mktemp("detr")
    others = {name: standins.place(detector(name), made / name, "coco-detector") for name in FAMILIES[1:]}
    return {"rt_detr_v2": standin("coco-detector"), **others}


def load(path: Path, device: str = "cpu", **options: Any) -> Any:
    model = detr.ObjectDetector()
    model.load(Spec(name="it", path=path, options=options, threads=1), device)
    return model


@pytest.fixture(scope="module")
def detectors(folders: dict[str, Path]) -> dict[str, Any]:
    return {name: load(path) for name, path in folders.items()}


@pytest.fixture(scope="module")
def model(detectors: dict[str, Any]) -> Any:
    return detectors["rt_detr_v2"]


def ask(model: Any, *frames: np.ndarray, **options: Any) -> list[Detections]:
    found: list[Detections] = model.predict([Input(frame, options) for frame in frames])
    return found


def direct(path: Path, frame: np.ndarray, conf: float) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """What a user of transformers gets: boxes, scores, class numbers."""
    processor = AutoImageProcessor.from_pretrained(path)
    network = AutoModelForObjectDetection.from_pretrained(path).eval()
    with torch.inference_mode():
        outputs = network(**processor(Image.fromarray(frame), return_tensors="pt"))
    (found,) = processor.post_process_object_detection(outputs, threshold=conf, target_sizes=[frame.shape[:2]])
    return found["boxes"].numpy(), found["scores"].numpy(), found["labels"].tolist()


def same(a: Detections, b: Detections) -> None:
    """But for the rounding of sums, by which a box of about the least score may be missing, and two change places."""
    assert len(a.boxes)
    for one, other in ((a, b), (b, a)):
        for box, score, label in zip(one.boxes, one.scores, one.labels, strict=True):
            if score > one.scores.min() + 0.01:
                near = (np.abs(other.boxes - box).max(1) < 1) & (np.abs(other.scores - score) < 0.005)
                assert label in np.array(other.labels)[near]


@pytest.mark.parametrize("family", FAMILIES)
def test_boxes_are_those_of_the_library(
    family: str, folders: dict[str, Path], detectors: dict[str, Any], bus: np.ndarray
) -> None:
    for frame in (bus, bus[395:905, 50:245]):
        boxes, scores, numbers = direct(folders[family], frame, LOW)
        (found,) = ask(detectors[family], frame, conf=LOW)
        assert len(boxes) > 3
        np.testing.assert_allclose(found.boxes, boxes, atol=0.01)
        np.testing.assert_allclose(found.scores, scores, atol=1e-5)
        assert found.class_ids.tolist() == numbers
        assert found.labels == [LABELS[number] for number in numbers]
        assert (np.diff(found.scores) <= 0).all()
        assert (found.boxes.dtype, found.scores.dtype, found.class_ids.dtype) == (np.float32, np.float32, np.int32)


def test_an_event_can_begin_with_it(model: Any, bus: np.ndarray) -> None:
    """At its own threshold, which is that of `enrich`, it finds persons, cars or dogs: the stand-in's part."""
    (found,) = ask(model, bus)
    assert {folded(label) for label in found.labels} & {"person", "car", "dog"}
    assert found.scores.min() > 0.5
    assert model.labels == LABELS


def test_boxes_of_crops_are_in_coordinates_of_the_frame(model: Any, folders: dict[str, Path], bus: np.ndarray) -> None:
    described = payload.FrameRef(-1, 0, bus.shape, "|u1")
    given = inputs.read(payload.InferBody((described,), tuple(CROPS), {"conf": LOW}), [bus.tobytes()], lambda _: None)
    answers = [a.moved(*corner) for a, corner in zip(model.predict(given.items), given.corners, strict=True)]
    for answer, (x1, y1, x2, y2) in zip(answers, CROPS, strict=True):
        boxes, scores, numbers = direct(folders["rt_detr_v2"], bus[y1:y2, x1:x2], LOW)
        boxes += np.array([x1, y1, x1, y1], np.float32)
        same(answer, Detections(boxes, scores, np.array(numbers), [LABELS[number] for number in numbers]))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_answers_as_its_members_alone(
    family: str, detectors: dict[str, Any], bus: np.ndarray, zidane: np.ndarray
) -> None:
    frames = [bus, zidane, bus[10:60, 20:50], np.ascontiguousarray(zidane[::-1])]
    alone = [ask(detectors[family], frame, conf=0.2)[0] for frame in frames]
    for how in ({}, {"max_batch": 3}):
        for together, single in zip(ask(detectors[family], *frames, conf=0.2, **how), alone, strict=True):
            same(together, single)


def test_requests_of_one_batch_keep_their_own_options(model: Any, bus: np.ndarray) -> None:
    asked = [{"conf": LOW}, {"conf": LOW, "max_det": 2}, {"conf": LOW, "classes": ["dog"]}, {"conf": 0.99}]
    everything, two, dogs, sure = model.predict([Input(bus, options) for options in asked])
    same(two, Detections(everything.boxes[:2], everything.scores[:2], everything.class_ids[:2], everything.labels[:2]))
    assert {*map(folded, dogs.labels)} == {"dog"}
    assert len(sure.boxes) == 0
    assert sure.boxes.shape == (0, 4)


def test_classes_by_label_in_any_spelling_or_by_number(model: Any, bus: np.ndarray) -> None:
    (everything,) = ask(model, bus, conf=LOW)
    wanted = everything.class_ids == COCO.index("person")
    assert wanted.any()
    for classes in (["person"], ["PERSON"], [COCO.index("person")]):
        (found,) = ask(model, bus, conf=LOW, classes=classes)
        assert len(found.boxes) >= wanted.sum()  # others take no places
        np.testing.assert_allclose(found.boxes[: wanted.sum()], everything.boxes[wanted], atol=1e-3)
        assert {*map(folded, found.labels)} == {"person"}
    (lights,) = ask(model, bus, conf=0, classes=["Traffic_Light"])
    assert {*map(folded, lights.labels)} == {"traffic light"}


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"conf": 1.5}, "conf"), ({"conf": float("nan")}, "conf"), ({"max_det": 0}, "max_det"), ({"iou": 0.5}, "iou"),
        ({"max_batch": 0}, "max_batch"), ({"max_batch": 9}, "max_batch"), ({"half": True}, "half"),
        ({"classes": ["unicorn"]}, "unicorn"), ({"classes": [80]}, "80"), ({"classes": [-1]}, "-1"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_named(options: dict[str, Any], field: str, model: Any, bus: np.ndarray) -> None:
    with pytest.raises(InvalidInput, match=field):
        ask(model, bus, **options)


def test_options_of_config_are_used_and_checked(folders: dict[str, Path], bus: np.ndarray) -> None:
    path = folders["rt_detr_v2"]
    configured = load(path, conf=LOW, classes=["dog"], max_det=1, max_batch=3)
    assert configured.max_batch == 3
    assert [folded(label) for label in ask(configured, bus)[0].labels] == ["dog"]
    with pytest.raises(LoadFailed, match="unicorn"):
        load(path, classes=["unicorn"])


def test_half_precision_on_a_cpu_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(LoadFailed, match="half") as told:
        load(folders["rt_detr_v2"], half=True)
    assert not told.value.retryable


def test_strided_and_read_only_views(model: Any, bus: np.ndarray) -> None:
    crop = bus[395:905, 50:245]
    bgr = np.ascontiguousarray(crop[..., ::-1])
    bgr.flags.writeable = False
    (found,), (view,), (turned,) = (
        ask(model, frame, conf=LOW) for frame in (np.ascontiguousarray(crop), crop, bgr[..., ::-1])
    )
    same(found, view)
    same(found, turned)


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 900, 3), (900, 1, 3), (5000, 20, 3)])
def test_odd_pictures_are_answered(shape: tuple[int, ...], model: Any) -> None:
    frame = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    (found,) = ask(model, frame, conf=0.0)
    assert np.isfinite(found.boxes).all()
    assert len(found.boxes) == 100


@pytest.fixture
def changed(folders: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    def change(file: str, **values: Any) -> Path:
        path = tmp_path / "model"
        shutil.copytree(folders["rt_detr_v2"], path)
        told = json.loads((path / file).read_text())
        (path / file).write_text(json.dumps({**told, **values}))
        return path

    return change


def test_labels_come_from_the_checkpoint(changed: Callable[..., Path], model: Any, bus: np.ndarray) -> None:
    names = {str(i): label.upper() for i, label in enumerate(LABELS)}
    path = changed("config.json", id2label=names)
    (found,), (before,) = ask(load(path), bus, conf=LOW), ask(model, bus, conf=LOW)
    assert found.labels == [label.upper() for label in before.labels]


def test_another_kind_of_model_is_refused_by_its_type(standin: Callable[[str], Path]) -> None:
    with pytest.raises(LoadFailed, match=r"'segformer'.*rt_detr_v2"):
        load(standin("segformer-b2-clothes"))


def test_a_processor_that_keeps_proportions_is_refused(changed: Callable[..., Path]) -> None:
    path = changed("preprocessor_config.json", size={"shortest_edge": 480, "longest_edge": 640})
    with pytest.raises(LoadFailed, match="one size"):
        load(path)
