"""Which frames there are: where their planes lie, and what of a description is wrong, by the name of the argument."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.errors import InvalidInput
from zoo.wire import formats

FULL = (1620, 1920)


def described(shape: tuple[int, ...], dtype: str = "|u1", **how: Any) -> formats.Planes | None:
    return formats.planes_of(formats.sent(formats.check_format(**how), shape, dtype), shape, dtype)


@pytest.mark.parametrize(
    ("shape", "how", "planes"),
    [
        (FULL, {"color": "nv12"}, (1920, 1080, 1920, 1080)),
        (FULL, {"color": "i420", "size": (1920, 1080)}, (1920, 1080, 1920, 1080)),
        ((1620, 2048), {"color": "nv12", "size": (1920, 1080)}, (1920, 1080, 2048, 1080)),
        ((1620, 2048), {"color": "nv12", "size": (1920, 1080), "stride": 2048}, (1920, 1080, 2048, 1080)),
        ((1632, 1920), {"color": "nv12", "size": [1920, 1080]}, (1920, 1080, 1920, 1088)),  # padded below
        ((540, 640), {"color": "i420", "size": (639, 359)}, (639, 359, 640, 360)),
        ((539, 640), {"color": "i420", "size": (639, 359)}, (639, 359, 640, 359)),
        ((2, 2), {"color": "nv12", "size": (1, 1)}, (1, 1, 2, 1)),
        ((3,), {"color": "i420", "size": (1, 1)}, (1, 1, 1, 1)),
        ((3110400,), {"color": "nv12", "size": (1920, 1080)}, (1920, 1080, 1920, 1080)),
        ((3 * 5 + 4 * 3,), {"color": "nv12", "size": (3, 5)}, (3, 5, 3, 5)),
        ((7 * 5 + 8 * 3,), {"color": "i420", "size": np.array([3, 5]), "stride": np.int64(7)}, (3, 5, 7, 5)),
        ((5, 7), {"color": "gray"}, (7, 5, 7, 5)),
        ((5, 7), {"color": "gray", "size": (6, 5)}, (6, 5, 7, 5)),
        ((35,), {"color": "gray", "size": (6, 5), "stride": 7}, (6, 5, 7, 5)),
    ],
)
def test_where_a_picture_lies(shape: tuple[int, ...], how: dict[str, Any], planes: tuple[int, ...]) -> None:
    assert described(shape, **how) == planes


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_where_16_bits_lie(dtype: str) -> None:
    scale = {"scale": (0, 4095)}
    assert described((5, 7), dtype, color="gray", **scale) == (7, 5, 14, 5)
    assert described((5, 7), dtype, **scale) == (7, 5, 14, 5)
    assert described((5, 7, 3), dtype, color="bgr", **scale) == (7, 5, 42, 5)
    assert described((40,), dtype, color="gray", size=(7, 5), stride=16, **scale) == (7, 5, 16, 5)


@pytest.mark.parametrize("shape", [(5, 7, 3), (5, 7), (5,), (1, 2, 3, 4)])
@pytest.mark.parametrize("dtype", ["|u1", "<u2", "<f4"])
def test_plain_frames_are_what_they_ever_were(shape: tuple[int, ...], dtype: str) -> None:
    """Whatever an adapter takes: their colour concerns HxWx3 uint8 only."""
    for color in ("rgb", "bgr"):
        assert described(shape, dtype, color=color) is None


SCALE = {"scale": (0, 4095)}


@pytest.mark.parametrize(
    ("shape", "dtype", "how", "says"),
    [
        (FULL, "|u1", {"color": "yuv"}, "color: 'yuv' is not one of rgb, bgr, nv12, i420, gray"),
        (FULL, "|u1", {"color": "gray16"}, "color"),
        (FULL, "|u1", {"color": None}, "color"),
        ((1620, 1920, 3), "|u1", {"color": "nv12"}, "frame"),
        ((1080, 1920, 3), "|u1", {"color": "gray"}, "frame"),
        ((1080, 1920, 1), "|u1", {"color": "gray"}, "frame"),
        ((1081, 1920), "|u1", {"color": "nv12"}, "frame"),
        ((1620, 1919), "|u1", {"color": "i420", "size": (1919, 1080)}, "frame"),
        ((0, 0), "|u1", {"color": "nv12"}, "frame"),
        ((539, 640), "|u1", {"color": "nv12"}, "size"),
        (FULL, "|u1", {"color": "nv12", "size": (1921, 1080)}, "size"),
        (FULL, "|u1", {"color": "nv12", "size": (1920, 1081)}, "size"),
        (FULL, "|u1", {"color": "nv12", "size": (0, 1080)}, "size"),
        (FULL, "|u1", {"color": "nv12", "size": (-1, 1080)}, "size"),
        (FULL, "|u1", {"color": "nv12", "size": 1920}, "size"),
        (FULL, "|u1", {"color": "nv12", "size": (1920.0, 1080)}, "size"),
        (FULL, "|u1", {"color": "nv12", "size": (True, True)}, "size"),
        (FULL, "|u1", {"color": "nv12", "size": "xy"}, "size"),
        (FULL, "|u1", {"color": "nv12", "stride": 1920}, "stride: it needs size"),
        (FULL, "|u1", {"color": "nv12", "size": (1920, 1080), "stride": 2048}, "stride"),
        (FULL, "|u1", {"color": "nv12", "size": (1920, 1080), "stride": 0}, "stride"),
        (FULL, "|u1", {"color": "nv12", "size": (1920, 1080), "stride": 1920.0}, "stride"),
        ((3110400,), "|u1", {"color": "nv12"}, "size"),
        ((3110400,), "|u1", {"color": "nv12", "size": (1920, 1080), "stride": 1919}, "stride"),
        ((3110399,), "|u1", {"color": "nv12", "size": (1920, 1080)}, "frame: 3110399 bytes; nv12 of 1920x1080"),
        ((3110401,), "|u1", {"color": "nv12", "size": (1920, 1080)}, "frame"),
        ((6,), "|u1", {"color": "nv12", "size": (1 << 30, 1 << 30)}, "frame"),
        (FULL, "<u2", {"color": "nv12"}, "color"),
        (FULL, "<i2", {"color": "gray"}, "color"),
        (FULL, "<f4", {"color": "gray"}, "color"),
        (FULL, "|b1", {"color": "gray"}, "color"),
        (FULL, "<u2", {"color": "gray"}, "scale: a 16-bit frame needs"),
        (FULL, "<u2", {"color": "nv12", **SCALE}, "scale"),
        (FULL, "|u1", {"color": "gray", **SCALE}, "scale"),
        ((40,), "|u1", {"color": "encoded", **SCALE}, "scale: it goes with 16-bit frames, not with color 'encoded'"),
        ((4, 4, 3), "|u1", SCALE, "scale"),
        ((4, 4, 3), "<f4", SCALE, "scale"),
        ((4, 4, 4), "<u2", SCALE, "frame"),
        ((0, 4, 3), "<u2", SCALE, "frame"),
        ((4, 4, 3), "<u2", {**SCALE, "size": (4, 4)}, "frame"),
        ((40,), "<u2", {**SCALE, "size": (7, 5), "stride": 15}, "stride"),
        ((4, 4), "<u2", {"scale": (1, 1)}, "scale"),
        ((4, 4), "<u2", {"scale": (9, 1)}, "scale"),
        ((4, 4), "<u2", {"scale": (-1, 9)}, "scale"),
        ((4, 4), "<u2", {"scale": (0, 65536)}, "scale"),
        ((4, 4), "<u2", {"scale": (0, float("nan"))}, "scale"),
        ((4, 4), "<u2", {"scale": (0, 10**400)}, "scale"),
        ((4, 4), "<u2", {"scale": ("0", "9")}, "scale"),
        ((4, 4), "<u2", {"scale": True}, "scale"),
        ((4, 4, 3), "|u1", {"size": (4, 4)}, "size: it goes with color nv12, i420, gray, not with color 'rgb'"),
        ((4, 4, 3), "|u1", {"color": "bgr", "size": (4, 4), "stride": 12}, "size"),
    ],
)
def test_what_is_no_frame_names_the_argument(
    shape: tuple[int, ...], dtype: str, how: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        described(shape, dtype, **how)
    assert str(refused.value).startswith(says if ":" in says else f"{says}:")


def test_bytes_are_an_encoded_image() -> None:
    assert formats.encoded(formats.check_format("bgr")).color == "encoded"
    for how in ({"color": "nv12"}, {"size": (4, 4)}, {"color": "gray", "stride": 4}, {"scale": (0, 9)}):
        with pytest.raises(InvalidInput, match=f"^{list(how)[-1]}: .* np.frombuffer"):
            formats.encoded(formats.check_format(**how))


whole = st.integers(-(1 << 63), (1 << 64) - 1) | st.integers(-4, 40)


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from([*formats.COLORS, *formats.CAMERA, *formats.WIDE, "encoded", ""]) | st.text(max_size=6),
    st.none() | st.tuples(whole, whole),
    st.none() | whole,
    st.none() | st.tuples(st.floats(), st.floats()),
    st.lists(st.integers(0, 40), max_size=4).map(tuple),
    st.sampled_from(["|u1", "<u2", ">u2", "<f4", "|b1"]),
)
def test_whatever_travels_lies_in_its_array_or_is_refused(
    color: str, size: Any, stride: int | None, scale: Any, shape: tuple[int, ...], dtype: str
) -> None:
    """A worker trusts nothing: this is what comes off the wire."""
    try:
        planes = formats.planes_of(formats.PixelFormat(color, size, stride, scale), shape, dtype)
    except InvalidInput as refused:
        field = str(refused).split(":")[0]
        assert field in ("color", "size", "stride", "scale", "frame")
        return
    if planes is not None:
        width, height, step, rows = planes
        item = np.dtype(dtype).itemsize * (3 if len(shape) == 3 else 1)
        assert min(width, height) > 0
        assert width * item <= step
        assert height <= rows
        assert step * rows <= np.prod(shape, dtype=int) * np.dtype(dtype).itemsize
