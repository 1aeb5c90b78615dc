"""Whatever a caller sends to whichever model: an answer, or an error that names the field; and nothing is left of it.

Each model is loaded once and meets everything in this file. After each of it the same process still gives the same
answer to a good request.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.models.served import NAMES
from tests.support import Running, stops_growing, wait_until
from zoo import Client, results
from zoo.errors import InvalidInput

pytest.importorskip("workers.models.classify")

pytestmark = pytest.mark.models

TWINS = {  # of another model here, but for their labels
    "yolo11-license-plate", "threat-detection-yolov8n", "violence-detection", "vit-gender-classifier"
}  # fmt: skip
FAMILIES = [name for name in NAMES if name not in TWINS]
SOONER = {
    "yolo11-face",
    "pet-classifier",
    "clip-vit-l",
    "xclip-base",
    "paddleocr",
    "brisque-quality",
    "onnx-detector",
}  # not slow
LOOKS_AROUND = {"vitpose-small", "depth-anything-v2-small"}  # the frame around a box counts
VIDEO = {"xclip-base"}
LEAST_SIDE = {"brisque-quality"}  # 32 pixels
LONGEST = {"depth-anything-v2-small"}  # 8:1
TOO_LARGE = {  # an 8K frame, and what is named then
    "brisque-quality": "frame",
    "depth-anything-v2-small": "frame",  # its map of 132 MB is more than `max_inline_mb`
    "segformer-b2-clothes": "frame",
    "vehicle-damage-detection": "max_det",
}
NAN, INF = float("nan"), float("inf")


class Target:
    """One model under attack.

    Attributes:
        options: with which it answers quickly, and finds something in a picture of a person.
    """

    def __init__(self, name: str, client: Client, person: np.ndarray) -> None:
        self.name = name
        self.client = client
        self.person = person
        self.options: dict[str, Any] = {}
        if name == "paddleocr":
            self.options = {"mode": "line", "min_score": 0.0}
        elif name.startswith(("yolo", "threat", "vehicle-damage", "onnx-detector")):
            self.options = {"conf": 0.001, "max_det": 3, "imgsz": 320}
        elif name == "coco-detector":
            self.options = {"conf": 0.05, "max_det": 3}
        self.answer = self.ask(person)
        self.pid = self.process()["pid"]

    def process(self) -> dict[str, Any]:
        (row,) = (row for row in self.client.processes() if row["name"] == self.name)
        return row

    def ask(self, frame: Any, **how: Any) -> Any:
        answer = self.client.infer(self.name, frame, **{**self.options, **how})
        return [*map(results.typed, answer)] if isinstance(answer, list) else results.typed(answer)

    def refused(self, frame: Any, field: str, **how: Any) -> str:
        """The message of the InvalidInput that it must get, from the field on: before it a worker says the model."""
        with pytest.raises(InvalidInput) as told:
            self.client.infer(self.name, frame, **how)
        said = str(told.value).removeprefix(f"{self.name}: ")
        assert said.startswith(field)
        return said

    def check(self) -> None:
        same(self.ask(self.person), self.answer)
        assert Path(f"/proc/{self.pid}").exists(), "the process did not survive"


def same(one: Any, other: Any) -> None:
    """Equal, but for the rounding of sums whose order depends on where in memory the numbers lie."""
    assert type(one) is type(other)
    if isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            same(a, b)
        return
    if isinstance(one, results.PlainAnswer):
        assert one.values.keys() == other.values.keys()
    parts = one.values if isinstance(one, results.PlainAnswer) else {n: getattr(one, n) for n in one.__struct_fields__}
    for field, a in parts.items():
        b = other.values[field] if isinstance(one, results.PlainAnswer) else getattr(other, field)
        if isinstance(a, np.ndarray):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=field)
        else:
            assert a == (pytest.approx(b) if isinstance(a, float | dict) else b), field


@pytest.fixture(scope="module")
def client(whole_zoo: Running) -> Iterator[Client]:
    with Client(whole_zoo.endpoint, timeout=60, arena_mb=160) as client:
        yield client


@pytest.fixture(scope="module")
def person(bus: np.ndarray) -> np.ndarray:
    return bus[395:905, 50:245]


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=() if name in SOONER else pytest.mark.slow) for name in NAMES]
)
def loaded(request: pytest.FixtureRequest, client: Client, person: np.ndarray) -> Iterator[Target]:
    made = Target(request.param, client, person)
    yield made
    assert made.process()["pid"] == made.pid
    assert client.unload(made.name) is True


@pytest.fixture
def target(loaded: Target) -> Iterator[Target]:
    yield loaded
    loaded.check()


@pytest.fixture(scope="module")
def eight_k(client: Client, bus: np.ndarray) -> Iterator[Any]:
    """7680x4320, in shared memory, written once."""
    with client.frame((4320, 7680, 3)) as frame:
        frame.array[:] = np.tile(bus, (4, 10, 1))[:4320, :7680]
        yield frame


def encoded(pixels: np.ndarray | Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    out = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(out, kind, **how)
    return out.getvalue()


def bomb() -> bytes:
    """A PNG of some hundred bytes that says it has 256 million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 16000, 16000, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1 << 20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


# ---------------------------------------------------------------- frames


def test_what_is_no_rgb_frame(target: Target) -> None:
    rgb = target.person
    for array in (
        rgb[..., 0],
        rgb[..., :1],
        np.dstack([rgb, rgb[..., :1]]),
        rgb.astype(np.uint16) * 257,
        rgb.astype(np.int8),
        rgb.astype(np.float32) / 255,
        rgb.astype(np.complex64),
        rgb > 127,
        rgb[None],
        rgb[0, 0],
    ):
        assert str(array.dtype) in target.refused(array, "frame")
    with pytest.raises(InvalidInput, match=f"^{target.name}: frame: "):
        target.ask(rgb[0])
    for width, height in ((16385, 1), (1, 16385)):
        assert "16384 a side" in target.refused(np.zeros((height, width, 3), np.uint8), "frame")


def test_the_smallest_frames(target: Target) -> None:
    for height, width in ((1, 1), (1, 195), (510, 1)):
        frame = np.ascontiguousarray(target.person[:height, :width])
        if target.name in LEAST_SIDE or (target.name in LONGEST and height != width):
            target.refused(frame, "frame")
        else:
            assert type(target.ask(frame)) is type(target.answer)


def test_a_crop_of_an_8k_frame(target: Target, eight_k: Any) -> None:
    """Answered as the same pixels alone, in coordinates of the frame."""
    if target.name == "depth-anything-v2-small":
        return  # it would look at the whole frame: see the slow tests
    (found,) = target.ask(eight_k, boxes=[(4100.5, 395, 4294.5, 905)])
    crop = np.array(eight_k.array[395:905, 4100:4295])
    if target.name not in LOOKS_AROUND:
        same(found, target.ask(crop).moved(4100.0, 395.0))
    for places in (getattr(found, "boxes", None), getattr(found, "origin", None)):
        if places is not None and np.size(places):
            assert (np.reshape(places, (-1, 2)) >= (4100, 395)).all()


@pytest.mark.slow
def test_an_8k_frame(target: Target, eight_k: Any) -> None:
    field = TOO_LARGE.get(target.name)
    if field is not None:
        assert field in target.refused(eight_k, "options" if field == "max_det" else field)
    else:
        assert type(target.ask(eight_k)) is type(target.answer)


# ---------------------------------------------------------------- encoded images


def test_an_encoded_image_is_answered_as_its_pixels(target: Target) -> None:
    same(target.ask(encoded(target.person)), target.answer)


def test_what_is_no_whole_image(target: Target) -> None:
    jpeg, png = encoded(target.person, "JPEG"), encoded(target.person)
    for data in (jpeg[: len(jpeg) // 2], png[: len(png) // 2], jpeg[:3], b"no image at all", b"\0" * 1000, bomb()):
        target.refused(data, "frame")
    for how in ({}, {"boxes": [(0, 0, 9, 9)]}):
        target.refused(b"", "frame", **how)


# ---------------------------------------------------------------- boxes


def test_boxes_that_hold_nothing(target: Target) -> None:
    for box in (
        (5, 5, 5, 9), (9, 5, 5, 9), (195, 0, 200, 9), (0, -9, 9, 0), (1e308, 0, 1.7e308, 9),
        (0, 0, NAN, 9), (0, 0, INF, 9), (-INF, 0, 9, 9),
    ):  # fmt: skip
        target.refused(target.person, "boxes[0]", boxes=[box])
        target.refused(target.person, "boxes[1]", boxes=[(0, 0, 40, 40), box])
    target.refused(target.person, "boxes", boxes=[(0, 0, 40, 40)] * 1025)
    target.refused(target.person, "boxes", boxes=[(0, 0, 9)])
    target.refused([target.person] * 2, "boxes", boxes=[(0, 0, 40, 40)])
    assert target.ask(target.person, boxes=[]) == []


def test_the_smallest_box(target: Target) -> None:
    box = (20.5, 30.5, 20.6, 30.6)  # grown to a pixel
    if target.name in LEAST_SIDE:
        target.refused(target.person, "frame", boxes=[box])
        return
    (found,) = target.ask(target.person, boxes=[box])
    assert type(found) is type(target.answer)
    assert getattr(found, "origin", (20, 30)) == (20, 30)


@pytest.mark.slow
@pytest.mark.parametrize(
    "loaded",
    ["yolo11-face", "clip-vit-l", "depth-anything-v2-small", "vit-age-classifier", "brisque-quality"],
    indirect=True,
)
def test_as_many_boxes_as_may_be(target: Target) -> None:
    boxes = [(i % 32, i // 32, i % 32 + 40, i // 32 + 40) for i in range(1024)]
    how = {"imgsz": 32} if target.name == "yolo11-face" else {}
    found = target.ask(target.person, boxes=boxes, **how)
    assert len(found) == 1024
    same(found[-1], target.ask(target.person, boxes=boxes[-1:], **how)[0])


# ---------------------------------------------------------------- options


def names_of_options(target: Target) -> list[str]:
    said = target.refused(target.person, "options", florble=1)
    assert "florble" in said
    return said.rpartition("this model takes ")[2].split(", ")


def test_options_of_the_wrong_kind(target: Target) -> None:
    """Of every option that the model has, by its own account."""
    for option in names_of_options(target):
        for value in ({"a": [NAN]}, [[]], NAN, -1, -INF, "\0"):
            assert option in target.refused(target.person, "options", **{option: value}), value
        if option != "top_k":  # all there are
            assert option in target.refused(target.person, "options", **{option: 1 << 62})
    target.refused(target.person, "options", **{"x" * 100_000: 1})
    target.refused(target.person, "options", florble=list(range(100_000)))


def test_prompts_that_cannot_be_said(target: Target) -> None:
    if "prompts" not in names_of_options(target):
        assert "prompts" in target.refused(target.person, "options", prompts=["a cat"])
        return
    for prompts in (
        [], ["a"] * 257, ["a"] * 10_000, [1], [None], ["a", ["b"]], "a cat", [""], [" \n"], ["a" * 10_000],
        ["b" * 150], {"a": "b"}, [b"bytes"],
    ):  # fmt: skip
        assert "prompts" in target.refused(target.person, "options", prompts=prompts)
    found = target.ask(target.person, prompts=["a cat \0", "é 猫 🐈", "</w>", "<|endoftext|>"])
    assert type(found) is type(target.answer)


# ---------------------------------------------------------------- videos


def test_videos(target: Target) -> None:
    frame, other = target.person, target.person[:300, :100]
    same(target.ask([frame]), target.answer)
    target.refused([frame] * 65, "frame")
    target.refused([frame, frame[..., 0]], "frame")
    target.refused([frame, b"no image"], "frame")
    for video in ([frame] * 2, [other] * 64, [frame, other, encoded(frame)]):
        if target.name in VIDEO:
            assert type(target.ask(video)) is type(target.answer)
        else:
            assert f"a video of {len(video)} frames" in target.refused(video, "frame")


# ---------------------------------------------------------------- what is left of it


@pytest.mark.slow
@pytest.mark.parametrize("loaded", FAMILIES, indirect=True)
def test_a_thousand_bad_requests_leave_nothing(target: Target, whole_zoo: Running) -> None:
    person = target.person
    bad: list[tuple[Any, dict[str, Any]]] = [
        (person[..., 0], {}),
        (person.astype(np.float32), {}),
        (np.zeros((1, 16385, 3), np.uint8), {}),
        (encoded(person, "JPEG")[:-500], {}),
        (bomb(), {}),
        (b"no image at all", {}),
        (person, {"boxes": [(0, 0, 9, 9), (0, 0, NAN, 9)]}),
        (person, {"boxes": [(0, 0, 9, 9)] * 1025}),
        (person, {"florble": 1}),
        (person, {"max_batch": "many", "prompts": ["a"] * 10_000}),
        (person, {"prompts": ["a" * 10_000]}),
        (person, {"prompts": ["b" * 150]}),
        ([person, person[..., 0]], {}),
    ]

    def ask(times: int) -> None:
        for i in range(times):
            frame, how = bad[i % len(bad)]
            with pytest.raises(InvalidInput):
                target.client.infer(target.name, frame, **how)

    def copied() -> bool:
        kept = target.client.get_status()["host_cache"]["models"]
        return target.name in kept or f"{target.name}: no copy" in whole_zoo.log()

    pids = (target.pid, whole_zoo.pid)
    ask(300)
    wait_until(copied, what="the broker has the copy that it keeps of the model, in a descriptor")
    before = [Usage(pid) for pid in pids]
    # No good request between: where its pictures come to lie moves a process by some megabytes.
    for pid in pids:
        stops_growing(lambda pid=pid: Usage(pid).private_mb, lambda: ask(500), slack=1.0)
    for was, pid in zip(before, pids, strict=True):  # one more for a moment is a file that is being read
        wait_until(lambda was=was, pid=pid: Usage(pid).descriptors <= was.descriptors, what="no descriptor is left")
        assert Usage(pid).threads <= was.threads


class Usage:
    """What a process holds now."""

    def __init__(self, pid: int) -> None:
        self.descriptors = len(os.listdir(f"/proc/{pid}/fd"))
        self.threads = len(os.listdir(f"/proc/{pid}/task"))
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        self.private_mb = sum(int(line.split()[1]) for line in rollup if line.startswith("Private_")) / 1024

    def __repr__(self) -> str:
        return f"{self.descriptors} descriptors, {self.threads} threads, {self.private_mb:.1f} MB"
