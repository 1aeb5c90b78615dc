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
