"""Frames as cameras have them, by every way that a frame goes: what a model sees is what OpenCV makes of the frame."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.client.inside import slots
from tests.support import Running
from zoo import AsyncClient, Client, InvalidInput

Start = Callable[..., Running]
NV12 = np.random.default_rng(0).integers(0, 256, (36, 32), np.uint8)
RGB = cv2.cvtColor(NV12, cv2.COLOR_YUV2RGB_NV12)
WIDE = np.random.default_rng(1).integers(0, 4096, (24, 32), np.uint16)
BOXES = [(3, 5, 12, 20), (1.5, 0, 32, 7.2)]


@pytest.fixture
def zoo(shared_broker: Running) -> Iterator[Client]:
    with Client(shared_broker.endpoint, timeout=20.0, arena_mb=8) as client:
        yield client
        assert slots(client) == 0


def seen(answer: Any) -> np.ndarray:
    array: np.ndarray = answer["array"]
    return array


@pytest.mark.parametrize("color", ["nv12", "i420"])
def test_a_frame_is_seen_as_rgb(zoo: Client, color: str) -> None:
    whole = cv2.cvtColor(NV12, cv2.COLOR_YUV2RGB_NV12 if color == "nv12" else cv2.COLOR_YUV2RGB_I420)
    np.testing.assert_array_equal(seen(zoo.infer("toy", NV12, color=color, do="echo")), whole)
    for answer, part in zip(
        zoo.infer("toy", NV12, color=color, boxes=BOXES, do="echo"), (whole[5:20, 3:12], whole[:8, 1:32]), strict=True
    ):
        np.testing.assert_array_equal(seen(answer), part)


def test_the_same_bytes_of_a_request_are_other_pixels(zoo: Client) -> None:
    """A camera that writes into shared memory: the worker may keep where a frame lies, and not what it showed."""
    with zoo.frame(NV12.shape) as frame:
        for turn in range(4):
            frame.array[:] = NV12 + turn
            answer = zoo.infer_many(frame, ["toy", "toy2"], color="nv12")["toy"]
            assert answer["shape"] == [24, 32, 3]
            assert answer["mean"] == pytest.approx(cv2.cvtColor(NV12 + turn, cv2.COLOR_YUV2RGB_NV12).mean())
            assert answer["writeable"] is False


def test_rows_may_be_padded_and_sides_odd(zoo: Client) -> None:
    with zoo.frame((36, 64)) as frame:
        frame.array[:, :32], frame.array[:, 32:] = NV12, 99
        answer = zoo.infer("toy", frame, color="nv12", size=(31, 23), stride=64, do="echo")
        np.testing.assert_array_equal(seen(answer), RGB[:23, :31])
        shapes = [zoo.infer("toy", frame, color="nv12", size=size)["shape"] for size in (None, (30, 22), None, (3, 1))]
        assert shapes == [[24, 64, 3], [22, 30, 3], [24, 64, 3], [1, 3, 3]]
    tight = np.concatenate([NV12[:23, :31].ravel(), NV12[24:].ravel()])
    np.testing.assert_array_equal(seen(zoo.infer("toy", tight, color="nv12", size=(31, 23), do="echo")), RGB[:23, :31])


def test_a_film_of_such_frames(zoo: Client) -> None:
    answer = zoo.infer("toy", [NV12, NV12 + 1, NV12], color="nv12", do="echo")
    assert answer["frames"] == 3
    np.testing.assert_array_equal(seen(answer), RGB)


def test_grey_and_sixteen_bits(zoo: Client) -> None:
    np.testing.assert_array_equal(seen(zoo.infer("toy", NV12, color="gray", do="echo")), np.dstack([NV12] * 3))
    scaled = np.rint(np.clip(WIDE * (255 / 4095), 0, 255)).astype(np.uint8)
    for sent in (WIDE, WIDE.astype(">u2"), np.dstack([WIDE] * 3)):
        np.testing.assert_array_equal(seen(zoo.infer("toy", sent, scale=(0, 4095), do="echo")), np.dstack([scaled] * 3))
    (part,) = zoo.infer("toy", WIDE, color="gray", scale=(0, 4095), boxes=[(1, 2, 9, 9)], do="echo")
    np.testing.assert_array_equal(seen(part), np.dstack([scaled] * 3)[2:9, 1:9])


def test_a_lease_takes_them_too(zoo: Client) -> None:
    with zoo.load("toy") as toy:
        np.testing.assert_array_equal(seen(toy(NV12[:, :], color="nv12", size=(32, 24), stride=32, do="echo")), RGB)
        assert seen(toy(WIDE, scale=(0, 4095), do="echo")).dtype == np.uint8


def test_the_asynchronous_client_takes_them_too(shared_broker: Running) -> None:
    async def work() -> list[Any]:
        async with AsyncClient(shared_broker.endpoint, timeout=20.0, arena_mb=8) as zoo, zoo.load("toy") as toy:
            return [
                await zoo.infer("toy", NV12, color="nv12", do="echo"),
                await toy(NV12, color="nv12", do="echo"),
                (await zoo.infer_many(NV12, ["toy"], color="nv12", size=(32, 24), do="echo"))["toy"],
            ]

    for answer in asyncio.run(work()):
        np.testing.assert_array_equal(seen(answer), RGB)


def test_tcp_carries_them_inline(far_broker: Start) -> None:
    running = far_broker()
    zoo = running.start().client()
    np.testing.assert_array_equal(seen(zoo.infer("toy", NV12, color="nv12", do="echo")), RGB)
    np.testing.assert_array_equal(seen(zoo.infer("toy", NV12[:, :30], color="nv12", do="echo")), RGB[:, :30])
    with zoo.frame((36, 64)) as frame:
        frame.array[:, :32] = NV12
        (part,) = zoo.infer("toy", frame, color="nv12", size=(32, 24), boxes=[(0, 0, 5, 5)], do="echo")
        np.testing.assert_array_equal(seen(part), RGB[:5, :5])


def test_what_is_no_frame_is_refused_and_the_worker_lives_on(zoo: Client) -> None:
    pid = zoo.infer("toy", NV12, color="nv12")["pid"]
    for frame, how, field in (
        (NV12, {"color": "yuv"}, "color"),
        (NV12[:35], {"color": "nv12"}, "size"),
        (NV12[:34], {"color": "nv12"}, "frame"),
        (NV12, {"color": "nv12", "size": (40, 24)}, "size"),
        (NV12, {"color": "nv12", "stride": 32}, "stride"),
        (NV12, {"color": "nv12", "scale": (0, 9)}, "scale"),
        (NV12.astype("f4"), {"color": "nv12"}, "color"),
        (NV12.tobytes(), {"color": "nv12"}, "color"),
        ([NV12, NV12[:34]], {"color": "nv12"}, "frame"),
        (WIDE, {"color": "gray"}, "scale"),
        (WIDE, {"scale": (9, 9)}, "scale"),
        (RGB, {"size": (32, 24)}, "size"),
        (NV12, {"color": "nv12", "boxes": [(40, 0, 50, 9)]}, "boxes"),
    ):
        with pytest.raises(InvalidInput, match=rf"^(toy: )?{field}"):
            zoo.infer("toy", frame, **how)
    with zoo.frame((35, 32)) as shared, pytest.raises(InvalidInput, match=r"^size"):
        zoo.infer("toy", shared, color="nv12")
    assert zoo.infer("toy", NV12, color="nv12")["pid"] == pid


def test_an_encoded_picture_can_lie_in_a_frame(shared_broker):
    """Written piece by piece, before its size is known."""
    data = np.frombuffer(jpeg(), np.uint8)
    with shared_broker.client() as zoo, zoo.frame((2 * data.size,)) as frame:
        frame.array[: data.size] = data
        frame.cut(data.size)
        assert zoo.infer("toy", frame, color="encoded")["shape"] == [24, 32, 3]
        assert zoo.infer("toy", data, color="encoded")["shape"] == [24, 32, 3]
        assert zoo.infer("toy", data.tobytes(), color="encoded")["shape"] == [24, 32, 3]
        with pytest.raises(InvalidInput, match="color: the bytes of an encoded image are uint8"):
            zoo.infer("toy", np.zeros((4, 4, 3), np.uint8), color="encoded")


def jpeg() -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (32, 24), "red").save(made, "JPEG")
    return made.getvalue()
