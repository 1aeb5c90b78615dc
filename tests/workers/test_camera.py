"""Camera frames as adapters see them: what OpenCV makes of the whole, whatever the size, the rows and the crop."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from workers import camera, inputs
from zoo.errors import InvalidInput
from zoo.wire import formats, payload

CODES = {"nv12": cv2.COLOR_YUV2RGB_NV12, "i420": cv2.COLOR_YUV2RGB_I420}
NV12, PLANES = formats.PixelFormat("nv12"), formats.Planes(320, 240, 320, 240)
sides = st.integers(1, 70)


def no_arena(number: int) -> Any:
    raise AssertionError(f"arena {number} was asked for")


def read(array: np.ndarray, *boxes: tuple[float, float, float, float], **how: Any) -> inputs.Given:
    """What an adapter gets of a frame, which goes over the wire as a client sends it."""
    format = formats.sent(formats.check_format(**how), array.shape, array.dtype.str)
    frame = payload.FrameRef(-1, 0, array.shape, array.dtype.str, *format)
    raw = payload.pack_request(payload.InferBody((frame,), boxes or None))
    return inputs.read(payload.unpack_request(raw), [array.tobytes()], no_arena)


def noise(*shape: int, seed: int = 0, dtype: Any = np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def planes(width: int, height: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Y, U and V of a picture."""
    half = (height + 1) // 2, (width + 1) // 2
    return noise(height, width, seed=seed), noise(*half, seed=seed + 1), noise(*half, seed=seed + 2)


def by_opencv(y: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """OpenCV's own conversion of the whole frame: with its last row and column repeated where a side is odd."""
    height, width = y.shape
    even = np.pad(y, ((0, height % 2), (0, width % 2)), mode="edge")
    whole = np.concatenate([even.ravel(), u.ravel(), v.ravel()]).reshape(-1, even.shape[1])
    converted: np.ndarray = cv2.cvtColor(whole, cv2.COLOR_YUV2RGB_I420)
    return converted[:height, :width]


def laid_out(color: str, parts: tuple[np.ndarray, ...], stride: int, rows: int) -> np.ndarray:
    """The bytes of a frame, plane by plane, by the words of `zoo/wire/formats.py`; 77 is what is between."""

    def plane(of: np.ndarray, wide: int, high: int) -> np.ndarray:
        padded = np.full((high, wide), 77, np.uint8)
        padded[: of.shape[0], : of.shape[1]] = of
        return padded.ravel()

    y, u, v = parts
    down, across = (rows + 1) // 2, (stride + 1) // 2
    if color == "nv12":
        both = np.stack([u, v], axis=2).reshape(u.shape[0], -1)
        return np.concatenate([plane(y, stride, rows), plane(both, 2 * across, down)])
    return np.concatenate([plane(y, stride, rows), plane(u, across, down), plane(v, across, down)])


def near(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert found.dtype == np.uint8
    assert not found.flags.writeable
    assert np.abs(found.astype(int) - expected).max() <= 1


# Reaching beyond 2: what lies between 0 and 1 is taken for shares of the frame, and refused.
boxes_in = st.lists(st.tuples(st.floats(-4, 60), st.floats(-4, 60), st.floats(6.1, 70), st.floats(6.1, 70)), max_size=4)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["nv12", "i420"]), sides, sides, st.integers(0, 9), st.integers(0, 6), st.booleans(), boxes_in)
@example("nv12", 1, 1, 0, 0, True, [])
@example("i420", 1, 1, 0, 0, True, [])
@example("i420", 3, 5, 2, 0, True, [(1, 1, 9, 9)])
@example("nv12", 7, 7, 1, 1, False, [(0, 0, 7, 7), (5, 5, 2, 2)])
def test_yuv_is_converted_as_opencv_does_the_whole_frame(
    color: str, width: int, height: int, right: int, below: int, flat: bool, asked: list[tuple[float, ...]]
) -> None:
    parts = planes(width, height, seed=width * 100 + height)
    expected = by_opencv(*parts)
    if flat:
        array, how = laid_out(color, parts, width + right, height), {"stride": width + right}
    else:
        stride, rows = (width + right + 1) // 2 * 2, height + below
        array, how = laid_out(color, parts, stride, rows).reshape(-1, stride), {}
    boxes = [(x, y, x + w, y + h) for x, y, w, h in asked if x < width and y < height and x + w > 0 and y + h > 0]
    given = read(array, *boxes, color=color, size=(width, height), **how)
    assert len(given.items) == max(1, len(boxes))
    for item in given.items:
        x1, y1, x2, y2 = item.box or (0, 0, width, height)
        source = item.sources[0]
        assert isinstance(source, camera.Picture)
        near(source.frame.convert((x1, y1, x2, y2)), expected[y1:y2, x1:x2])  # cut first, whatever the size
        near(item.array, expected[y1:y2, x1:x2])
        near(item.whole, expected)


@pytest.mark.parametrize("color", ["nv12", "i420"])
def test_an_even_frame_needs_no_words(color: str) -> None:
    array = noise(36, 32)
    (item,) = read(array, color=color).items
    near(item.array, cv2.cvtColor(array, CODES[color]))
    assert item.whole is item.array
    assert item.frames[0] is item.array


@settings(max_examples=100, deadline=None)
@given(sides, sides, st.integers(0, 9), st.booleans(), st.booleans())
def test_grey_is_repeated(width: int, height: int, right: int, flat: bool, wide: bool) -> None:
    dtype, item = (np.uint16, 2) if wide else (np.uint8, 1)
    padded = noise(height, width + right, dtype=dtype)
    how: dict[str, Any] = {"scale": (0, 65535)} if wide else {}
    if flat:
        how["stride"] = (width + right) * item
    given = read(padded.ravel() if flat else padded, (0, 0, width, 1), color="gray", size=(width, height), **how)
    expected = np.rint(padded[:, :width] / 257 if wide else padded[:, :width])
    near(given.items[0].whole, np.repeat(expected[..., None], 3, axis=2))
    near(given.items[0].array, np.repeat(expected[:1, :, None], 3, axis=2))


@settings(max_examples=100, deadline=None)
@given(
    st.floats(0, 65535), st.floats(1, 65535), st.sampled_from(["rgb", "bgr", "gray"]), st.sampled_from(["<u2", ">u2"])
)
@example(65534.0, 1.0, "rgb", "<u2")
@example(1000.5, 1.0, "gray", "<u2")
def test_sixteen_bits_are_scaled_as_they_were_said_to_be(lo: float, range: float, color: str, dtype: str) -> None:
    lo = min(lo, 65534.0)
    hi = min(lo + range, 65535.0)
    array = noise(9, 11, 3, dtype=np.uint16)
    array[0, :4, 0] = 0, 65535, int(lo), int(hi)
    sent = array[..., 0] if color == "gray" else array
    if lo + 1 > hi:
        with pytest.raises(InvalidInput, match=r"^scale"):
            read(sent.astype(dtype), color=color, scale=(lo, hi))
        return
    exact = np.clip((array.astype(float) - lo) * 255 / (hi - lo), 0, 255)
    expected = {"rgb": exact, "bgr": exact[..., ::-1], "gray": np.repeat(exact[..., :1], 3, axis=2)}[color]
    (item,) = read(sent.astype(dtype), color=color, scale=(lo, hi)).items
    near(item.array, np.rint(expected))


def test_sixteen_bits_of_one_channel_are_grey_whatever_the_order_of_colours() -> None:
    array = noise(5, 7, dtype=np.uint16)
    near(read(array, scale=(0, 65535)).items[0].array, read(array, color="gray", scale=(0, 65535)).items[0].array)


def test_only_what_is_looked_at_is_converted() -> None:
    """Crops alone where they are few, the frame once where they are many."""
    array = noise(600, 400)
    few = read(array, (0, 0, 10, 10), (50, 50, 60, 60), color="nv12")
    assert not np.shares_memory(few.items[0].array, few.items[1].array)
    assert few.items[0].array.nbytes == 300
    large = [(0.0, 0.0, 400.0, 250.0), (0.0, 150.0, 400.0, 400.0)]
    for many in (large, [(x, y, x + 8.0, y + 8.0) for x, y in np.ndindex(4, 4)]):
        first, second, *_ = read(array, *many, color="nv12").items
        assert np.shares_memory(first.array, second.array)
        assert first.whole is second.whole
        assert np.shares_memory(first.whole, first.array)


def test_memory_is_used_again_when_nothing_refers_to_it() -> None:
    """Of an adapter that keeps a frame, or a part of it, it stays as it was."""
    first, second = noise(360, 320), noise(360, 320, seed=1)
    kept = read(first, color="nv12").items[0].array[:2, :2]
    before = kept.copy()
    at = read(second, color="nv12").items[0].array.ctypes.data  # its input is gone
    (item,) = read(first, color="i420").items
    assert item.array.ctypes.data == at
    assert not np.shares_memory(item.array, kept)
    np.testing.assert_array_equal(kept, before)
    film = [camera.Picture(camera.CameraFrame(one, NV12, PLANES)) for one in (first, second)]
    one, other = (picture.whole() for picture in film)
    assert not np.shares_memory(one, other)
    near(one, cv2.cvtColor(first, cv2.COLOR_YUV2RGB_NV12))


def test_little_memory_is_kept() -> None:
    """Of eight full HD frames, and none of them once a larger one comes."""
    buffers = camera.Buffers()
    held = [buffers.take((1080, 1920, 3)) for _ in range(8)]
    assert len({array.ctypes.data for array in held}) == 8
    memory = [weakref.ref(array.base) for array in held]
    held.clear()
    gc.collect()
    assert 0 < sum(1080 * 1920 * 3 for one in memory if one() is not None) <= camera.Buffers.MOST_BYTES
    part = buffers.take((500, 400, 3))
    assert part.shape == (500, 400, 3)
    assert any(part.base is one() for one in memory)
    del part
    assert buffers.take((2160, 3840, 3)).shape == (2160, 3840, 3)
    assert all(one() is None for one in memory)


def test_the_same_request_is_converted_anew_each_time() -> None:
    """Its bytes are the same, and its pixels are not: what is kept of it is where they lie."""
    array = noise(6, 4)
    (frame,) = (payload.FrameRef(5, 0, array.shape, "|u1", "nv12"),)
    body = payload.InferBody((frame,))
    recent = inputs.Recent()

    class Arena:
        memory, size = array, array.nbytes

    given = inputs.read(body, [], lambda number: Arena)  # type: ignore[arg-type, return-value]
    recent.keep(b"raw", (5,), body, given)
    before = given.items[0].array.copy()
    array[:] = noise(6, 4, seed=1)
    np.testing.assert_array_equal(given.items[0].array, before)
    again = recent.get(b"raw", (5,))
    assert again is not None
    near(again.items[0].array, cv2.cvtColor(array, cv2.COLOR_YUV2RGB_NV12))
    assert not np.array_equal(again.items[0].array, before)


def test_a_fingerprint_is_of_the_pixels() -> None:
    one, other = noise(6, 4), noise(6, 4, seed=1)
    prints = {inputs.fingerprint(read(array, color=color)) for array in (one, other) for color in ("nv12", "i420")}
    assert len(prints) == 4
    assert inputs.fingerprint(read(one, color="nv12")) in prints


def test_what_is_to_be_converted_counts_like_what_is_decoded() -> None:
    """Of a dispatch as of a request: 64 full HD frames at once, no more."""
    array = noise(12, 4)
    assert inputs.pixels_of(read(array, color="nv12")) == 32
    assert inputs.pixels_of(read(array, (0, 0, 2, 2), color="nv12")) == 32 + 4
    large = np.zeros((6144, 8192), np.uint8)
    frames = tuple(payload.FrameRef(-1, 0, large.shape, "|u1", "nv12") for _ in range(5))
    with pytest.raises(InvalidInput, match="pixels together"):
        inputs.read(payload.InferBody(frames), [large.tobytes()], no_arena)
    with pytest.raises(inputs.Wait):
        inputs.read(payload.InferBody(frames[:2]), [large.tobytes()], no_arena, left_pixels=(1 << 26) - 1)
    with pytest.raises(InvalidInput, match="frame: 16385x2 pixels"):
        read(np.zeros((2, 16385), np.uint8), color="gray")


def test_an_environment_without_opencv_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(InvalidInput, match=r"color: nv12 .*\[models\]"):
        read(noise(6, 4), color="nv12")
