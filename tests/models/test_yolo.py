"""The ultralytics adapter against ultralytics itself, on the same checkpoint and the same photographs."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

yolo = pytest.importorskip("workers.models.yolo")
import torch  # noqa: E402
from ultralytics import YOLO  # noqa: E402
from ultralytics.utils import ASSETS  # noqa: E402

from workers.models import standins  # noqa: E402
from workers.models.base import Input, Spec  # noqa: E402
from zoo import weights as weights_of  # noqa: E402
from zoo.errors import InvalidInput, LoadFailed, ModelUnavailable  # noqa: E402
from zoo.results import Detections, Keypoints  # noqa: E402

pytestmark = pytest.mark.models

THREATS = ["knife", "pistol", "rifle", "threat_object"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("weights")
    segment = standins.yolo.yolo("yolo11n-seg.yaml", ["crack", "dent"])
    return {
        "detect": standins.make("threat-detection-yolov8n", folder),
        "pose": standins.make("yolov8n-pose", folder),
        "segment": standins.place(segment, folder / "damage" / "best.pt", "damage"),
    }


@pytest.fixture(scope="module")
def bus() -> np.ndarray:
    return np.asarray(Image.open(ASSETS / "bus.jpg").convert("RGB"))


@pytest.fixture(scope="module")
def zidane() -> np.ndarray:
    return np.asarray(Image.open(ASSETS / "zidane.jpg").convert("RGB"))


def load(path: Path, **options) -> object:
    model = yolo.Detector()
    model.load(Spec(name="it", path=path, options=options, threads=1), "cpu")
    return model


@pytest.fixture(scope="module")
def detector(weights):
    return load(weights["detect"])


@pytest.fixture(scope="module")
def poser(weights):
    return load(weights["pose"])


@pytest.fixture(scope="module")
def segmenter(weights):
    return load(weights["segment"])


def ask(model, *frames, **options):
    return model.predict([Input(frame, options) for frame in frames])


def direct(path: Path, frame: np.ndarray, **options):
    """What a user of ultralytics gets from a BGR frame."""
    return YOLO(str(path)).predict(np.ascontiguousarray(frame[..., ::-1]), verbose=False, device="cpu", **options)[0]


def same(a, b) -> None:
    """Equal to a hundredth of a pixel; of a mask, all but one pixel in a hundred thousand (those on its rim)."""
    for name in ("boxes", "scores", "points", "class_ids"):
        if getattr(a, name, None) is not None:
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=1e-2)
    if getattr(a, "masks", None) is not None:
        assert np.count_nonzero(a.masks != b.masks) <= 1e-5 * a.masks.size


def test_boxes_are_those_of_the_library(detector, weights, bus):
    (found,) = ask(detector, bus)
    expected = direct(weights["detect"], bus).boxes
    assert isinstance(found, Detections)
    assert len(found.boxes) > 0
    np.testing.assert_allclose(found.boxes, expected.xyxy.numpy(), atol=1e-3)
    np.testing.assert_allclose(found.scores, expected.conf.numpy(), atol=1e-5)
    assert found.class_ids.tolist() == expected.cls.int().tolist()
    assert (np.diff(found.scores) <= 0).all()
    assert (found.boxes.dtype, found.scores.dtype, found.class_ids.dtype) == (np.float32, np.float32, np.int32)


def test_labels_come_from_the_checkpoint(detector, bus):
    (found,) = ask(detector, bus, conf=0.01)
    assert found.labels == [THREATS[i] for i in found.class_ids]
    assert len(set(found.labels)) > 1


def test_masks_cover_the_frame(segmenter, weights, bus):
    (found,) = ask(segmenter, bus, max_det=5)
    expected = direct(weights["segment"], bus, max_det=5, retina_masks=True)
    assert found.masks.shape == (len(found.boxes), *bus.shape[:2])
    assert found.masks.dtype == bool
    assert len(found.boxes) > 0
    np.testing.assert_array_equal(found.masks, expected.masks.data.numpy().astype(bool))
    (nothing,) = ask(segmenter, bus, conf=1.0)
    assert nothing.masks.shape == (0, *bus.shape[:2])


def test_keypoints_are_those_of_the_library(poser, weights, bus):
    (found,) = ask(poser, bus)
    expected = direct(weights["pose"], bus)
    assert isinstance(found, Keypoints)
    assert len(found.points) > 0
    assert found.names[:2] == ["nose", "left_eye"]
    np.testing.assert_allclose(found.points, expected.keypoints.data[..., :2].numpy(), atol=1e-2)
    np.testing.assert_allclose(found.scores, expected.keypoints.conf.numpy(), atol=1e-4)
    np.testing.assert_allclose(found.boxes, expected.boxes.xyxy.numpy(), atol=1e-2)
    (nobody,) = ask(poser, bus, conf=1.0)
    assert nobody.points.shape == (0, 17, 2)


@pytest.mark.parametrize("kind", ["detector", "poser", "segmenter"])
def test_a_batch_answers_as_its_members_alone(kind, request, bus, zidane):
    model = request.getfixturevalue(kind)
    crop = bus[100:500, 200:700]
    inputs = [
        Input(bus, {"max_det": 5, "conf": 0.01}),
        Input(zidane, {"max_det": 5, "conf": 0.01}),
        Input(bus[::-1], {"max_det": 5, "conf": 0.01}),
        Input(crop, {"max_det": 3, "conf": 0.001}),
    ]
    for together, item in zip(model.predict(inputs), inputs, strict=True):
        (alone,) = model.predict([item])
        assert len(alone.boxes) > 0
        same(together, alone)


def test_strided_and_read_only_views(detector, bus):
    bgr = np.ascontiguousarray(bus[..., ::-1])
    bgr.flags.writeable = False
    (found,) = ask(detector, bus[200:900, 100:700])
    (of_bgr,) = ask(detector, bgr[200:900, 100:700, ::-1])
    same(found, of_bgr)
    (wrong_order,) = ask(detector, bgr[200:900, 100:700])
    assert found.boxes.shape != wrong_order.boxes.shape or not np.allclose(found.scores, wrong_order.scores)


def test_options_default_to_the_configured_ones(weights, bus):
    model = load(weights["detect"], max_det=2, imgsz=320)
    assert len(ask(model, bus, conf=0.001)[0].boxes) == 2
    assert len(ask(model, bus, conf=0.001, max_det=4)[0].boxes) == 4
    (knives,) = ask(model, bus, conf=0.001, classes=["knife"])
    (zeros,) = ask(model, bus, conf=0.001, classes=[0])
    assert set(knives.labels) == {"knife"}
    same(knives, zeros)
    with pytest.raises(LoadFailed, match="cofn"):
        load(weights["detect"], cofn=1)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"conf": "high"}, "conf"),
        ({"conf": 1.5}, "conf"),
        ({"conf": float("nan")}, "conf"),
        ({"conf": True}, "conf"),
        ({"iou": -0.1}, "iou"),
        ({"imgsz": 100_000}, "imgsz"),
        ({"imgsz": [640, 640, 640]}, "imgsz"),
        ({"max_det": 0}, "max_det"),
        ({"classes": ["sword"]}, "sword"),
        ({"classes": [17]}, "17"),
        ({"classes": "knife"}, "classes"),
        ({"threshold": 0.5}, "threshold"),
    ],
)
def test_a_wrong_option_is_named(detector, bus, options, field):
    with pytest.raises(InvalidInput, match=field):
        ask(detector, bus, **options)


def test_options_survive_garbage_collection(detector, bus):
    """A union that msgspec 0.22 cannot hold ended the process at the next collection."""
    for size in (320, [320, 256]):
        ask(detector, bus, imgsz=size)
        gc.collect()


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 4), (0, 8, 3)])
def test_what_is_no_picture_is_refused(detector, shape):
    with pytest.raises(InvalidInput, match="frame"):
        ask(detector, np.zeros(shape, np.uint8))
    with pytest.raises(InvalidInput, match="float32"):
        ask(detector, np.zeros((8, 8, 3), np.float32))


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 900, 3), (900, 1, 3)])
def test_the_smallest_pictures_are_answered(detector, shape):
    assert isinstance(ask(detector, np.zeros(shape, np.uint8))[0], Detections)


def test_weights_that_are_not_there(tmp_path):
    with pytest.raises(ModelUnavailable, match="zoo pull"):
        load(tmp_path / "best.pt")


@pytest.mark.parametrize("keep", [0, 1000, 100_000])
def test_damaged_weights_fail_the_load(weights, tmp_path, keep):
    path = tmp_path / "best.pt"
    path.write_bytes(weights["detect"].read_bytes()[:keep])
    with pytest.raises(LoadFailed, match=r"best\.pt"):
        load(path)


def test_a_pickle_with_code_of_its_own_does_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"model": Evil()}, tmp_path / "best.pt")
    with pytest.raises(LoadFailed):
        load(tmp_path / "best.pt")
    assert not (tmp_path / "ran").exists()


def test_threads_are_those_it_was_given(weights):
    load(weights["detect"], imgsz=64)
    assert torch.get_num_threads() == 1


def test_real_weights_are_never_replaced(tmp_path):
    from zoo.errors import ZooError

    target = tmp_path / "yolo11-face" / "model.pt"
    target.parent.mkdir()
    target.write_bytes(b"real")
    weights_of.marker(target).write_text("left from before")
    with pytest.raises(ZooError, match="left alone"):
        standins.make("yolo11-face", tmp_path)
    assert target.read_bytes() == b"real"


def test_a_standin_is_marked_and_always_the_same(weights, tmp_path):
    assert weights_of.is_stand_in(weights["detect"])
    again = standins.make("threat-detection-yolov8n", tmp_path)
    ours, theirs = (YOLO(str(p)).model.state_dict() for p in (weights["detect"], again))
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
