"""What a caller is told about options and frames that a model cannot take: which one, why, and what to send instead."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import numpy as np
import pytest

from workers.models.base import Input, read_options, require_image
from zoo.errors import InvalidInput
from zoo.wire import payload


class Options(msgspec.Struct, forbid_unknown_fields=True):
    conf: float = 0.5
    count: int = 3
    mode: Literal["full", "line"] = "full"
    prompts: tuple[str, ...] = ()
    layout: Literal["rows", "columns"] | None = None
    half: bool = False


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"conf": "0.5"}, "options: conf: expected float, got str"),
        ({"count": 2.5}, "options: count: expected int, got float"),
        ({"prompts": [1]}, "options: prompts[0]: expected str, got int"),
        ({"mode": "word"}, "options: mode: invalid enum value 'word'; it is one of full, line"),
        ({"layout": "x"}, "options: layout: invalid enum value 'x'; it is one of rows, columns; this model"),
        ({"cnof": 0.5}, "options: cnof is no option of this model"),
        ({"inputs": ["x"]}, "options: inputs is no option of this model, and it takes no dict of arrays as frame"),
        ({"x\n" * 10_000: 1}, f"options: {'x' + chr(10)}"),
    ],
)
def test_a_wrong_option_comes_first_and_those_that_a_request_may_bring_after_it(asked, says):
    with pytest.raises(InvalidInput) as refused:
        read_options({}, asked, Options, ("half",))
    assert str(refused.value).startswith(says)
    assert str(refused.value).endswith("; this model takes conf, count, mode, prompts, layout")
    assert len(str(refused.value)) < 250


def test_a_computed_threshold_is_a_number():
    options: dict[str, Any] = {"conf": np.float32(0.25), "count": np.int64(7), "prompts": ["a"]}
    body = payload.unpack_request(payload.pack_request(payload.InferBody((), None, options)))
    assert read_options({}, body.options, Options) == Options(conf=0.25, count=7, prompts=("a",))
    with pytest.raises(InvalidInput, match="options: ndarray is no JSON-like value"):
        payload.pack_request(payload.InferBody((), None, {"conf": np.ones(2)}))


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (np.zeros((4, 5, 3), np.float32), r"float32; of 0 to 1, send \(frame \* 255\)"),
        (np.zeros((4, 5), np.float64), "float64; of 0 to 1"),
        (np.zeros((4, 5, 4), np.uint8), r"send frame\[..., :3\]"),
        (np.zeros((4, 5), np.uint8), 'color="gray", YUV .* color="nv12"'),
        (np.zeros((4, 5, 1), np.uint8), r'send frame\[..., 0\] with color="gray"'),
        (np.zeros(20, np.uint8), 'color="encoded"'),
        (np.zeros(20, np.float32), "of 0 to 1"),
        (np.zeros((4, 5), np.uint16), "scale="),
        (np.zeros((3, 4, 5), np.uint8), r"got shape \(3, 4, 5\) of uint8$"),
        (np.zeros((), np.uint8), r"got shape \(\) of uint8$"),
    ],
)
def test_a_frame_of_another_kind_is_refused_with_what_to_send_instead(frame, says):
    with pytest.raises(InvalidInput, match=says):
        require_image(Input(frame, {}))
