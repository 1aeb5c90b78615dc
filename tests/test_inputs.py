"""From a request body to what an adapter sees: views of one frame, and where in it each crop lies."""

from __future__ import annotations

import numpy as np
import pytest

from workers import inputs, runtime
from workers.models.base import Input
from zoo import payload
from zoo.errors import InvalidInput

FRAME = np.arange(40 * 60 * 3, dtype=np.uint32).astype(np.uint8).reshape(40, 60, 3)


def read(*boxes: tuple[float, float, float, float], color: str = "rgb", **options) -> inputs.Given:
    frame = payload.Frame(-1, 0, FRAME.shape, "|u1", color)
    return inputs.read(payload.InferBody((frame,), boxes or None, options), [FRAME.tobytes()], no_arena)


def no_arena(number: int):
    raise AssertionError(f"arena {number} was asked for")


def test_a_whole_frame_is_its_own_whole():
    (item,) = read().items
    assert item.whole is item.array
    assert item.box is None
    np.testing.assert_array_equal(item.array, FRAME)


@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_crops_are_views_of_one_frame(color):
    given = read((10.2, 5.0, 20.0, 30.9), (-5, -5, 8, 8), color=color)
    first, second = given.items
    assert first.whole is second.whole
    assert (first.box, second.box) == ((10, 5, 20, 31), (0, 0, 8, 8))
    assert given.corners == [(10.0, 5.0), (0.0, 0.0)]
    for item in given.items:
        x1, y1, x2, y2 = item.box
        np.testing.assert_array_equal(item.array, item.whole[y1:y2, x1:x2])
        assert np.shares_memory(item.array, item.whole)
        assert not item.whole.flags.writeable
        assert len(item.frames) == 1
    np.testing.assert_array_equal(first.whole, FRAME if color == "rgb" else FRAME[..., ::-1])


def test_no_boxes_at_all_are_no_items():
    frame = payload.Frame(-1, 0, FRAME.shape, "|u1")
    assert inputs.read(payload.InferBody((frame,), ()), [FRAME.tobytes()], no_arena) == ([], [])


@pytest.mark.parametrize(
    "box", [(5, 5, 5, 9), (9, 5, 5, 9), (60, 0, 70, 9), (0, -9, 9, 0), (0, 0, float("nan"), 9), (0, 0, float("inf"), 9)]
)
def test_a_box_that_holds_nothing_is_named(box):
    with pytest.raises(InvalidInput, match=r"boxes\[1\]"):
        read((0, 0, 9, 9), box)


def test_an_input_made_by_hand_is_a_whole_frame():
    item = Input(FRAME, {})
    assert (item.whole is FRAME, item.box, len(item.frames)) == (True, None, 1)


def test_a_fingerprint_covers_whatever_a_model_can_see():
    """Also the frame around a box: a model may look there."""
    box = (10, 10, 20, 20)
    told = {
        "whole": runtime.fingerprint(read()),
        "crop": runtime.fingerprint(read(box)),
        "two": runtime.fingerprint(read(box, box)),
        "elsewhere": runtime.fingerprint(read((11, 10, 20, 20))),
        "with an option": runtime.fingerprint(read(box, conf=0.5)),
    }
    assert len(set(told.values())) == len(told)
    assert told["crop"] == runtime.fingerprint(read(box))
    around = FRAME.copy()
    around[0, 0] += 1
    frame = payload.Frame(-1, 0, FRAME.shape, "|u1")
    given = inputs.read(payload.InferBody((frame,), (box,)), [around.tobytes()], no_arena)
    assert runtime.fingerprint(given) != told["crop"]
