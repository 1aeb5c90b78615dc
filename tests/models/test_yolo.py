"""The ultralytics adapter against ultralytics itself, on the same checkpoint and the same photographs."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

yolo = pytest.importorskip("workers.models.yolo")
import torch  # noqa: E402
from ultralytics import YOLO  # noqa: E402
from ultralytics.data.augment import LetterBox  # noqa: E402
from ultralytics.utils import nms, ops  # noqa: E402

from workers.models import standins  # noqa: E402
from workers.models.base import Input, Spec  # noqa: E402
from workers.models.shared import predictor as yolo_predictor  # noqa: E402
from zoo.errors import InvalidInput, LoadFailed  # noqa: E402
from zoo.results import Detections, Keypoints  # noqa: E402
from zoo.weights import inventory as weights_of  # noqa: E402
from zoo.wire.boxes import crop_box  # noqa: E402

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def weights(standin, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("weights")
    segment = standins.yolo.yolo("yolo11n-seg.yaml", ["crack", "dent"])
    return {
        "detect": standin("threat-detection-yolov8n"),
        "pose": standin("yolov8n-pose"),
        "segment": standins.place(segment, folder / "damage" / "best.pt", "damage"),
    }


def load(path: Path, *, trust: bool = True, **options) -> object:
    model = yolo.Detector()
    model.load(Spec(name="it", path=path, options=options, threads=1, trust_pickle=trust), "cpu")
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


def test_labels_come_from_the_checkpoint(detector, weights, bus):
    (found,) = ask(detector, bus, conf=0.01)
    names = YOLO(str(weights["detect"])).names
    assert found.labels == [names[i] for i in found.class_ids]
    assert len(set(found.labels)) > 1
    assert detector.labels == [*names.values()]


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
    (empty,) = ask(poser, bus, conf=1.0)
    assert empty.points.shape == (0, 17, 2)


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


@pytest.fixture
def passes(detector) -> Iterator[list[int]]:
    """How many pictures went through the network in each forward pass."""
    seen: list[int] = []
    hook = detector._network.model.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    yield seen
    hook.remove()


def test_crops_share_a_pass_when_the_network_sees_them_in_one_shape(detector, passes, bus):
    """Four sizes, three of which become 640x288."""
    crops = [bus[y : y + h, x : x + w] for x, y, w, h in ((0, 0, 90, 210), (50, 9, 200, 460), (9, 400, 112, 250))]
    wide = bus[300:400, 100:300]
    options = {"conf": 0.01, "max_det": 5}
    inputs = [Input(crop, options) for crop in (crops[0], wide, *crops[1:])]
    together = detector.predict(inputs)
    assert passes == [3, 1]
    for found, item in zip(together, inputs, strict=True):
        (alone,) = detector.predict([item])
        assert len(alone.boxes) > 0
        same(found, alone)


def test_max_batch(detector, passes, bus):
    frames = [bus[:96, :96], bus[96:192, :96], bus[:96, 96:192], bus[96:192, 96:192], bus[192:288, :96]]
    ask(detector, *frames, imgsz=96, max_batch=2)
    assert passes == [2, 2, 1]
    assert detector.max_batch == 8


def test_a_request_gets_no_more_room_than_the_configuration(weights, bus):
    """`max_batch` frames of `imgsz`: larger ones share it, in smaller batches or not at all."""
    model = load(weights["detect"], imgsz=64, max_batch=4)
    passes: list[int] = []
    model._network.model.register_forward_pre_hook(lambda _, given: passes.append(len(given[0])))
    square = bus[:64, :64]
    with pytest.raises(InvalidInput, match="max_batch: 5 is more than the 4"):
        ask(model, square, max_batch=5)
    ask(model, *[square] * 3, imgsz=64)
    ask(model, *[square] * 3, imgsz=96)
    ask(model, *[square] * 2, imgsz=128)
    assert passes == [3, 1, 1, 1, 1, 1]
    ask(model, bus[:64, :32], imgsz=160)  # 160x96 of the network's pixels
    with pytest.raises(InvalidInput, match="imgsz: 160x160"):
        ask(model, square, imgsz=160)


def test_masks_that_are_too_large_to_be_sent_are_not_made(segmenter, bus, monkeypatch):
    monkeypatch.setattr(yolo_predictor, "MAX_MASKS", 4 * bus.shape[0] * bus.shape[1])
    for frames in ([bus] * 2, [bus[:540], bus[540:]] * 2):
        assert all(len(found.masks) for found in ask(segmenter, *frames, max_det=2))
    for frames, count in (([bus], 5), ([bus] * 2, 3), ([bus[:540]] * 3, 3)):
        with pytest.raises(InvalidInput, match=rf"max_det: {count} masks over 810x"):
            ask(segmenter, *frames, max_det=count)
    assert len(ask(segmenter, bus, max_det=4)[0].masks) == 4


@pytest.mark.parametrize("kind", ["detector", "poser", "segmenter"])
def test_boxes_of_a_crop_are_moved_into_the_frame(kind, request, weights, bus):
    model = request.getfixturevalue(kind)
    given = (100.4, 199.5, 700.0, 900.0)
    x1, y1, x2, y2 = crop_box(given, bus.shape[1], bus.shape[0])
    assert (x1, y1) == (100, 199)
    crop = bus[y1:y2, x1:x2]
    (found,) = model.predict([Input(crop, {"conf": 0.01, "max_det": 5}, whole=bus, box=(x1, y1, x2, y2))])
    moved = found.moved(x1, y1)
    name = {"detector": "detect", "poser": "pose", "segmenter": "segment"}[kind]
    expected = direct(weights[name], crop, conf=0.01, max_det=5, retina_masks=True)
    assert len(found.boxes) > 0
    np.testing.assert_allclose(moved.boxes, expected.boxes.xyxy.numpy() + np.array([x1, y1, x1, y1]), atol=1e-2)
    if kind == "poser":
        np.testing.assert_allclose(moved.points, expected.keypoints.xy.numpy() + np.array([x1, y1]), atol=1e-2)
    if kind == "segmenter":
        assert moved.masks.shape[1:] == crop.shape[:2]
        assert moved.origin == (x1, y1)


def test_half_precision(weights, bus):
    """Against the same network in half precision, whose output is then finished in single."""
    (found,) = ask(load(weights["detect"], half=True), bus, conf=0.01, max_det=20)
    whole = YOLO(str(weights["detect"])).model.fuse(verbose=False).half().to(memory_format=torch.channels_last)
    picture = LetterBox((640, 640), auto=True, stride=32)(image=bus)
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].half() / 255
    with torch.inference_mode():
        output = whole(pixels)[0]
    assert output.dtype == torch.float16
    (rows,) = nms.non_max_suppression(output.float(), 0.01, 0.7, max_det=20)
    boxes = ops.scale_boxes(pixels.shape[2:], rows[:, :4], bus.shape)
    assert len(found.boxes) > 0
    assert (found.boxes.dtype, found.scores.dtype) == (np.float32, np.float32)
    np.testing.assert_array_equal(found.boxes, boxes.numpy())
    np.testing.assert_array_equal(found.scores, rows[:, 4].numpy())


@pytest.mark.parametrize("kind", ["pose", "segment"])
def test_half_precision_of_other_tasks_is_near_single(kind, weights, bus):
    """Within 25 pixels of 1080: a random network, unlike a trained one, carries rounding on from layer to layer."""
    (half,), (single,) = (ask(load(weights[kind], half=half), bus, conf=0.01, max_det=1) for half in (True, False))
    assert len(half.boxes) == len(single.boxes) == 1
    np.testing.assert_allclose(half.boxes, single.boxes, atol=25)
    if kind == "pose":
        assert half.points.dtype == np.float32
        np.testing.assert_allclose(half.points, single.points, atol=25)
    else:
        assert np.count_nonzero(half.masks & single.masks) > 0.9 * np.count_nonzero(half.masks | single.masks)


def test_half_is_not_for_a_request(detector, bus):
    with pytest.raises(InvalidInput, match="half"):
        ask(detector, bus, half=True)


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
    (last,) = ask(model, bus, conf=0.001, classes=[3])
    assert {*last.labels} == {model.labels[3]}
    for spelling in ("Knife", "knife", "KNIFE"):
        same(ask(model, bus, conf=0.001, classes=[spelling])[0], last)
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
        ({"max_batch": 0}, "max_batch"),
        ({"classes": ["sword"]}, "'sword' is none of Gun, Explosive, GRENADE, Knife"),
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


def renamed(weights, folder: Path, names: dict[int, str]) -> Path:
    """The detector's checkpoint with other labels, a stand-in no more."""
    file = folder / "renamed.pt"
    checkpoint = torch.load(weights["detect"], weights_only=False)
    checkpoint["model"].names = names
    torch.save(checkpoint, file)
    return file


def test_a_label_that_several_classes_have_asks_for_all_of_them(weights, tmp_path, bus):
    model = load(renamed(weights, tmp_path, {0: "cat", 1: "dog", 2: "Cat", 3: "cat"}), conf=0.0001)
    (cats,) = ask(model, bus, classes=["cat"])
    (by_number,) = ask(model, bus, classes=[0, 2, 3])
    assert {*cats.class_ids.tolist()} == {0, 2, 3}
    assert {*cats.labels} == {"cat", "Cat"}
    same(cats, by_number)
    (dogs,) = ask(model, bus, classes=["dog", 1])
    assert {*dogs.class_ids.tolist()} == {1}


@pytest.mark.parametrize("break_it", ["layer", "attribute", "stride"])
def test_what_breaks_after_it_was_unpickled_fails_the_load_for_good(weights, tmp_path, break_it):
    file = tmp_path / "broken.pt"
    checkpoint = torch.load(weights["detect"], weights_only=False)
    model = checkpoint["model"]
    if break_it == "layer":
        model.model[1] = torch.nn.Linear(3, 3).half()
    elif break_it == "attribute":
        del model.model
    else:
        model.stride = "eight"
    torch.save(checkpoint, file)
    with pytest.raises(LoadFailed, match=r"^it: ") as told:
        load(file)
    assert str(file) in str(told.value)
    assert not told.value.retryable


def test_a_pickle_is_not_read_unless_it_is_trusted(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"model": Evil()}, tmp_path / "best.pt")
    with pytest.raises(LoadFailed, match="trust_pickle"):
        load(tmp_path / "best.pt", trust=False)
    assert not (tmp_path / "ran").exists()


def test_labels_missing_from_the_checkpoint_fail_the_load(weights, tmp_path):
    checkpoint = torch.load(weights["detect"], weights_only=False)
    del checkpoint["model"].names[2]
    torch.save(checkpoint, tmp_path / "best.pt")
    with pytest.raises(LoadFailed, match="class 2"):
        load(tmp_path / "best.pt")


def test_a_checkpoint_for_another_task_fails_the_load(tmp_path):
    YOLO("yolo11n-cls.yaml").save(tmp_path / "best.pt")
    with pytest.raises(LoadFailed, match="classify"):
        load(tmp_path / "best.pt")


@pytest.mark.parametrize(("kind", "category"), [("detect", "pose"), ("segment", "pose"), ("pose", "detection")])
def test_a_checkpoint_that_would_answer_otherwise_than_its_category_fails_the_load(weights, kind, category):
    spec = Spec(name="it", path=weights[kind], category=category, trust_pickle=True)
    with pytest.raises(LoadFailed, match=f"'{kind}'.*category = '{category}'"):
        yolo.Detector().load(spec, "cpu")


def test_a_state_dict_is_no_ultralytics_checkpoint(tmp_path):
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "best.pt")
    with pytest.raises(LoadFailed, match="not an ultralytics checkpoint"):
        load(tmp_path / "best.pt")


def test_nothing_is_written(weights, bus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ask(load(weights["detect"], imgsz=64), bus)
    assert not list(tmp_path.iterdir())


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
