"""Drawing: every kind of result, on large, small and odd frames, never on the caller's own pixels."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from zoo import results
from zoo.draw import LIMBS, PALETTE, draw
from zoo.errors import InvalidInput

NAMES = sorted({name for limb in LIMBS for name in limb})


def floats(*values) -> np.ndarray:
    return np.array(values, np.float32)


def detections(boxes: np.ndarray, masks: np.ndarray | None = None) -> results.Detections:
    n = len(boxes)
    return results.Detections(
        boxes=boxes,
        scores=np.full(n, 0.5, np.float32),
        class_ids=np.arange(n, dtype=np.int32),
        labels=["person"] * n,
        masks=masks,
    )


def one_of_each(height: int, width: int) -> dict[str, results.AnyResult]:
    box = floats([0.2 * width, 0.3 * height, 0.8 * width, 0.9 * height])
    corners = floats([0, 0], [width, 0], [width, height], [0, height])
    points = np.random.default_rng(0).uniform(0, [width, height], (1, len(NAMES), 2)).astype(np.float32)
    depth = np.arange(height * width, dtype=np.float32).reshape(height, width)
    mask = np.zeros((height, width), np.uint8)
    mask[: height // 2] = 1
    return {
        "detections": detections(box, np.ones((1, height, width), bool)),
        "keypoints": results.Keypoints(
            points=points, scores=np.ones((1, len(NAMES)), np.float32), boxes=box, names=NAMES, postures=["standing"]
        ),
        "classification": results.Classification(labels=["cat", "dog"], scores=floats(0.9, 0.1)),
        "action": results.Action(labels=["walking"], scores=floats(0.9)),
        "embedding": results.Embedding(vector=floats(0, 1)),
        "depth": results.DepthMap(depth=depth),
        "segmentation": results.Segmentation(mask=mask, labels=["Background", "Hat"], coverage={"Hat": 0.5}),
        "ocr": results.OcrText(text="AB", lines=["AB"], scores=floats(0.9), boxes=corners[None] * 0.5, score=0.9),
        "one line": results.OcrText(text="AB", lines=["AB"], scores=floats(0.9), score=0.9),
        "quality": results.Quality(score=53.0, verdict="blurry"),
        "dict": {"brightness": 0.25, "name": "x", "array": floats(1)},
    }


KINDS = list(one_of_each(4, 4))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1080, 1920), (120, 90), (3, 5), (1, 1)])
def test_a_copy_is_painted(kind, shape):
    frame = np.random.default_rng(1).integers(0, 255, (*shape, 3), np.uint8)
    frame.flags.writeable = False
    before = frame.copy()
    painted = draw(one_of_each(*shape)[kind], frame)
    assert painted.shape == frame.shape
    assert painted.dtype == np.uint8
    assert not np.shares_memory(painted, frame)
    np.testing.assert_array_equal(frame, before)
    if shape != (1, 1):
        assert (painted != frame).any()


def test_a_box_is_where_it_was_found():
    painted = draw(detections(floats([100, 60, 300, 200])), np.zeros((400, 400, 3), np.uint8))
    assert tuple(painted[130, 100]) == PALETTE[0]
    assert tuple(painted[200, 200]) == PALETTE[0]
    assert not painted[130, 150:250].any()
    assert not painted[250:].any()


def test_strided_views_are_drawn_on_as_they_look():
    frame = np.random.default_rng(1).integers(0, 255, (60, 80, 3), np.uint8)
    found = detections(floats([10, 30, 50, 50]))
    np.testing.assert_array_equal(draw(found, frame[::-1, :, ::-1]), draw(found, frame[::-1, :, ::-1].copy()))


def test_boxes_outside_the_frame_or_not_numbers_do_no_harm():
    boxes = floats([-50, -50, 1e9, 1e9], [np.nan, 0, 5, 5], [np.inf, 0, 5, 5], [40, 40, 10, 10])
    assert draw(detections(boxes), np.zeros((50, 50, 3), np.uint8)).any()


def test_nothing_found_paints_nothing():
    frame = np.full((50, 50, 3), 9, np.uint8)
    np.testing.assert_array_equal(draw(detections(np.zeros((0, 4), np.float32)), frame), frame)


def cropped(height: int, width: int) -> dict[str, results.Result]:
    """Results whose array covers a crop of this size, with every pixel of it painted."""
    mask = np.ones((height, width), np.uint8)
    return {
        "detections": detections(floats([0, 0, width, height]), mask[None].astype(bool)),
        "segmentation": results.Segmentation(mask=mask, labels=["Background", "Hat"]),
        "depth": results.DepthMap(depth=1 + np.arange(height * width, dtype=np.float32).reshape(height, width)),
    }


@pytest.mark.parametrize("kind", cropped(1, 1))
def test_the_picture_of_a_crop_lies_where_the_crop_was(kind):
    painted = draw(cropped(40, 30)[kind].moved(120.0, 60.0), np.full((200, 300, 3), 200, np.uint8))
    where = (painted != 200).any(axis=2)
    assert where[60:100, 120:150].all()
    where[:101, 120:] = False  # itself, its outline, and its words, which stand on it
    assert not where.any()


@pytest.mark.parametrize("kind", cropped(1, 1))
@pytest.mark.parametrize("corner", [(-20, -10), (90, 90), (500, 500), (-500, 0)])
def test_the_part_of_it_outside_the_frame_is_cut_off(kind, corner):
    assert draw(cropped(40, 30)[kind].moved(*corner), np.zeros((100, 100, 3), np.uint8)).shape == (100, 100, 3)


def test_unsure_keypoints_are_left_out():
    points = floats([10, 10], [40, 40])[None]
    found = results.Keypoints(points=points, scores=floats([0.9, 0.1]), names=["nose", "left_eye"])
    painted = draw(found, np.zeros((50, 50, 3), np.uint8))
    assert painted[10, 10].any()
    assert not painted[35:45, 35:45].any()


def test_near_is_bright():
    depth = np.repeat(np.linspace(0, 1, 200, dtype=np.float32)[None], 100, axis=0)
    painted = draw(results.DepthMap(depth=depth), np.zeros((100, 200, 3), np.uint8))
    assert painted[90, 190].sum() > painted[90, 100].sum() > painted[90, 10].sum()
    flat = draw(results.DepthMap(depth=np.full((9, 9), np.nan, np.float32)), np.zeros((50, 50, 3), np.uint8))
    assert flat.shape == (50, 50, 3)


def test_classes_a_palette_apart_differ_in_colour():
    mask = np.repeat(np.array([[1, 13]], np.uint8), 50, axis=1).repeat(80, axis=0)
    found = results.Segmentation(mask=mask, labels=[f"class {i}" for i in range(14)])
    painted = draw(found, np.zeros((80, 100, 3), np.uint8))
    assert painted[79, 10].sum() > 1.3 * painted[79, 90].sum() > 0


@pytest.mark.parametrize(
    "frame", [np.zeros((5, 5), np.uint8), np.zeros((5, 5, 3), np.float32), np.zeros((0, 5, 3), np.uint8)]
)
def test_what_is_no_rgb_frame_is_refused(frame):
    with pytest.raises(InvalidInput, match="frame"):
        draw(results.Quality(score=1.0), frame)


def test_results_draw_themselves_with_pillow_alone():
    code = (
        "import sys, numpy as np; from zoo.results import Quality;"
        "Quality(score=1.0).draw(np.zeros((9, 9, 3), np.uint8));"
        "print([m for m in ('cv2', 'torch', 'scipy', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
