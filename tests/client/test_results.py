"""Typed results: plain JSON, and their places when a crop's answer is moved into the frame."""

from __future__ import annotations

import json

import numpy as np
import pytest

from zoo import results

BOX = np.array([[1, 2, 3, 4]], np.float32)
MASK = np.zeros((5, 6), np.uint8)

PICTURES = [
    results.DepthMap(depth=np.ones((5, 6), np.float32)),
    results.Segmentation(mask=MASK, labels=["Background", "Hat"], coverage={"Hat": 0.5}),
    results.Detections(
        boxes=BOX,
        scores=np.array([0.5], np.float32),
        class_ids=np.array([0], np.int32),
        labels=["dent"],
        masks=MASK[None].astype(bool),
    ),
]


@pytest.mark.parametrize("found", PICTURES, ids=lambda r: type(r).__name__)
def test_a_picture_of_a_crop_knows_where_the_crop_was(found):
    assert found.origin == (0, 0)
    moved = found.moved(120.0, 60.0)
    assert moved.origin == (120, 60)
    assert moved.moved(-20.0, 5.0).origin == (100, 65)
    assert found.origin == (0, 0)
    assert json.loads(json.dumps(moved.to_dict()))["origin"] == [120, 60]
    for field in ("depth", "mask", "masks"):
        assert getattr(moved, field, None) is getattr(found, field, None)


def test_boxes_move_along_with_their_masks():
    np.testing.assert_array_equal(PICTURES[2].moved(10.0, 20.0).boxes, [[11, 22, 13, 24]])


def test_points_and_boxes_of_people_move():
    found = results.Keypoints(points=np.ones((1, 17, 2), np.float32), scores=np.ones((1, 17), np.float32), boxes=BOX)
    moved = found.moved(10.0, 20.0)
    np.testing.assert_array_equal(moved.points[0, 0], [11, 21])
    np.testing.assert_array_equal(moved.boxes, [[11, 22, 13, 24]])
    assert moved.points.dtype == moved.boxes.dtype == np.float32


def test_what_has_no_place_does_not_move():
    found = results.Quality(score=1.0)
    assert found.moved(10.0, 20.0) is found


def test_the_median_of_a_depth_map():
    assert results.DepthMap(depth=np.array([[1, 2, 9]], np.float32)).median == 2.0


def test_every_result_has_a_summary() -> None:
    two = np.array([0.9, 0.1], np.float32)
    boxes = np.zeros((2, 4), np.float32)
    given = [
        results.Detections(boxes=boxes, scores=two, class_ids=np.zeros(2, np.int32), labels=["a", "b"]),
        results.Keypoints(
            points=np.zeros((2, 3, 2), np.float32), scores=np.ones((2, 3), np.float32), names=["x", "y", "z"]
        ),
        results.Classification(labels=["a", "b"], scores=two),
        results.Embedding(vector=np.ones(512, np.float32)),
        results.DepthMap(depth=np.ones((4, 5), np.float32)),
        results.Segmentation(mask=np.zeros((4, 5), np.uint8), labels=["a"], coverage={"a": 1.0}),
        results.OcrText(text="AB1", lines=["ab 1"], scores=two[:1], score=0.9),
        results.Quality(score=31.0, verdict="good"),
        results.Action(labels=["run", "sit"], scores=two),
        {"answer": 42, "map": np.zeros((9, 9))},
        {},
    ]
    for result in given:
        lines = results.typed(result).summary()
        assert lines
        assert all(line and len(line) < 250 for line in lines)
    assert given[2].summary() == ["a  0.900", "b  0.100"]
    assert given[0].summary()[0] == "a  0.90  x 0 to 0, y 0 to 0 px"


def test_of_labels_that_may_apply_together_all_are_said_that_do() -> None:
    scores = np.array([0.9, 0.6, 0.2], np.float32)
    several = results.Classification(labels=["rain", "night", "snow"], scores=scores, multi_label=True)
    assert several.likely() == ["rain", "night"]
    assert several.likely(0.7) == ["rain"]
    assert several.brief() == "rain 0.90, night 0.60"
    assert several.summary() == ["rain  0.900", "night  0.600", "snow  0.200"]
    none = results.Classification(labels=["rain"], scores=scores[2:], multi_label=True)
    assert (none.likely(), none.brief()) == ([], "no label over 0.5")
    one = results.Classification(labels=["rain", "night", "snow"], scores=scores)
    assert (one.multi_label, one.brief()) == (False, "rain 0.90")


def test_a_plain_dict_is_a_result_like_the_others() -> None:
    answer = {"n": np.int64(3), "vector": np.ones(2), "stand_in": True}
    found = results.typed(answer)
    assert found.stand_in
    assert found.to_dict() == {"n": 3, "vector": [1.0, 1.0], "stand_in": True}
    assert results.typed(PICTURES[0]) is PICTURES[0]


def test_maps_are_left_out_of_json_where_they_are_not_wanted() -> None:
    assert PICTURES[0].to_dict(maps=False)["depth"] == {"shape": [5, 6]}
    assert PICTURES[0].to_dict(maps=False)["median"] == 1.0
    assert PICTURES[2].to_dict(maps=False)["masks"] == {"shape": [1, 5, 6]}
    assert PICTURES[2].to_dict(maps=False)["boxes"] == [[1, 2, 3, 4]]
