"""What an encoded picture would cost is seen before it is decoded: of one, of a request's together, of a batch's."""

from __future__ import annotations

import io
import math
import os
import struct
import time
import zlib
from collections import deque
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from workers import dispatches, encoded, inputs
from workers.batch import Task
from workers.encoded import Encoded
from workers.loading import LoadedModel
from workers.models.base import Input
from zoo.drawing.picture import size_of
from zoo.errors import InvalidInput
from zoo.wire import payload, protocol

FRAME = np.random.default_rng(1).integers(0, 256, (40, 60, 3), np.uint8)
PICTURE = Image.fromarray(FRAME)


def saved(kind: str, image: Image.Image = PICTURE, **how: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **how)
    return out.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


OTHERS = [PICTURE.transpose(Image.Transpose.ROTATE_180)] * 3


@pytest.mark.parametrize(
    "raw",
    [
        *(saved(kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")),
        *(saved(kind, save_all=True, append_images=OTHERS) for kind in ("PNG", "WEBP", "GIF", "TIFF", "MPO")),
        *(saved("TIFF", compression=how) for how in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")),
        saved("TIFF", big_tiff=True),
        saved("JPEG", progressive=True, exif=turned(3), icc_profile=bytes(200_000)),
        saved("GIF", comment=b"x" * 5000),
        saved("WEBP", lossless=True, exif=turned(1)),
        saved("JPEG") + b"\xff\xda" * 5000,  # what cameras put behind the picture is no part of it
        saved("JPEG", exif=b"Exif\0\0MM\0*" + b"\xff\xda" * 5000),
    ],
)  # fmt: skip
def test_what_programs_and_cameras_write_is_decoded(raw: bytes) -> None:
    picture = Encoded(raw)
    assert picture.pixels == 40 * 60
    assert picture.decode().shape == (40, 60, 3)


def many_scans(count: int) -> bytes:
    raw = saved("JPEG", progressive=True)
    last = raw.rindex(b"\xff\xda")
    return raw[:last] + raw[last:-2] * count + raw[-2:]


def png(*chunks: tuple[bytes, bytes], size: tuple[int, int] = (60, 40)) -> bytes:
    header = struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(bytes(61 * 40))), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def tiff(*tags: tuple[int, int, int, int]) -> bytes:
    """A grey picture of 8x8 pixels. `tags`: (number, type, count, value)."""
    own = {256: (3, 1, 8), 257: (3, 1, 8), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 277: (3, 1, 1)}
    own |= {number: rest for number, *rest in tags}
    entries = b"".join(struct.pack("<HHLL", number, *own[number]) for number in sorted(own))
    return b"II*\0" + struct.pack("<LH", 8, len(own)) + entries + bytes(4 + (1 << 20))


def tiled(width: int, height: int) -> bytes:
    return tiff((322, 4, 1, width), (323, 4, 1, height), (324, 4, 1, 200), (325, 4, 1, 64))


def webp(width: int, height: int, *chunks: bytes) -> bytes:
    side = [(n - 1).to_bytes(3, "little") for n in (width, height)]
    body = b"WEBPVP8X" + struct.pack("<IB3x", 10, 2) + side[0] + side[1] + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bmp(width: int, height: int, compression: int, data: bytes) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, compression, len(data), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + len(data), 0, 0, 54 + 1024) + header + bytes(1024) + data


MANY = 1_000_000


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (many_scans(6000), "more than 64 scans"),
        (b"\xff\xd8" + b"\xff" * 5_000_000, "more than 65536 segments"),
        (b"\xff\xd8" + b"\xff\xe1\0\x08Exif\0\0" * MANY, "more than 65536 segments"),
        (png(*[(b"abCd", b"")] * 100_000), "more than 65536 chunks"),
        (png(size=(9000, 9000)), "9000x9000 pixels"),
        (b"GIF89a" + struct.pack("<HHBBB", 60, 40, 0, 0, 0) + b"\x21\xfe" + b"\x01x" * MANY, "more than 65536 blocks"),
        (b"GIF89a" + struct.pack("<HHBBB", 60, 40, 0, 0, 0) + b"\x21\xfe\x01x\0" * MANY, "more than 65536 blocks"),
        (webp(16384, 16384), "16384x16384 pixels"),
        (webp(60, 40, *[b"ANMF" + struct.pack("<I", 16) + bytes(16)] * 100_000), "more than 65536 chunks"),
        (bmp(4000, 4000, 1, b"\x01\x00" * 100), "4000x4000 pixels with run lengths"),
        (bmp(1000, 1000, 1, b"\0\0" * 4_000_000), "with run lengths"),
        (tiled(40_000, 40_000), "1 tiles of 40000x40000 pixels"),
        (tiled(16, 1 << 30), "at most 67108864 pixels are decoded"),
        (tiff((273, 4, 200_000, 200), (279, 4, 200_000, 200)), "strips, tiles or numbers"),
        (tiff(*((number, 7, 1, 0) for number in range(40_000, 45_000))), "more than 65536 tags"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_what_would_be_dear_is_refused_before_it_is_decoded(
    raw: bytes, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it was decoded"))
    started = time.process_time()
    with pytest.raises(InvalidInput, match=f"frame: .*{says}"):
        Encoded(raw)
    assert time.process_time() - started < 5.0


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt", b"iTXt"])
def test_text_of_a_png_is_not_unpacked_without_bounds(kind: bytes) -> None:
    bomb = zlib.compress(bytes(200 << 20))
    between = {b"iCCP": b"x\0\0", b"zTXt": b"x\0\0", b"iTXt": b"x\0\x01\0\0\0"}[kind]
    raw = png(*[(kind, between + bomb)] * 20)
    started = time.process_time()
    try:
        Encoded(raw).decode()
    except InvalidInput as e:
        assert "frame: " in str(e)  # noqa: PT017
    assert time.process_time() - started < 5.0


# ---------------------------------------------------------------- together

SMALL = saved("PNG")
LARGE = saved("PNG", Image.new("1", (8192, 8192)))


def request(*pictures: bytes, boxes: Any = None) -> tuple[payload.InferBody, list[bytes]]:
    frames = tuple(payload.FrameRef(-1, i, (len(raw),), "|u1", "encoded") for i, raw in enumerate(pictures))
    return payload.InferBody(frames, boxes), list(pictures)


def no_arena(number: int) -> Any:
    raise AssertionError(f"arena {number} was asked for")


@pytest.fixture
def nothing_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it was decoded"))


@pytest.mark.usefixtures("nothing_decoded")
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_pictures_of_a_request_are_bounded_together() -> None:
    with pytest.raises(InvalidInput, match=r"frame: the 6 encoded images have 402653184 pixels .* 134217728"):
        inputs.read(*request(*[LARGE] * 6), no_arena)


@pytest.mark.usefixtures("nothing_decoded")
def test_a_video_for_a_model_of_pictures_is_refused_undecoded() -> None:
    with pytest.raises(InvalidInput, match="frame: this model takes one image, got a video of 2 frames"):
        inputs.read(*request(SMALL, SMALL), no_arena, max_frames=1)
    with pytest.raises(InvalidInput, match="frame: this model takes at most 2 frames, got a video of 3"):
        inputs.read(*request(*[SMALL] * 3), no_arena, max_frames=2)


@pytest.mark.usefixtures("nothing_decoded")
def test_boxes_are_counted_before_anything_is_decoded() -> None:
    with pytest.raises(InvalidInput, match="boxes: they go with a single frame"):
        inputs.read(*request(SMALL, SMALL, boxes=((0, 0, 1, 1),)), no_arena)


def test_all_crops_of_a_request_are_bounded_together() -> None:
    """A model copies what it scales: a thousand boxes over all of a large frame would be gigabytes."""
    frame = np.zeros((4320, 7680, 3), np.uint8)
    body = payload.InferBody((payload.FrameRef(-1, 0, frame.shape, "|u1"),), ((0.0, 0.0, 7680.0, 4320.0),) * 5)
    with pytest.raises(InvalidInput, match=r"boxes: the first 5 have 165888000 pixels together; at most 134217728"):
        inputs.read(body, [frame.tobytes()], no_arena)
    few = payload.InferBody(body.frames, ((0.0, 0.0, 7680.0, 4320.0),) * 4)
    assert len(inputs.read(few, [frame.tobytes()], no_arena).items) == 4


class Counts:
    """Answers how many inputs came together."""

    max_batch = 8

    def load(self, *_: Any) -> None:
        pass

    def predict(self, given: list[Input]) -> list[Any]:
        return [{"together": len(given), "shape": list(item.array.shape)} for item in given]


def answered(requests: list[tuple[payload.InferBody, list[bytes]]], model: Any) -> list[Any]:
    """What a worker says to these requests of one dispatch: answers, or (code, message)."""
    lifeline = SimpleNamespace(recent=inputs.Recent(), place=lambda _: None, take_back=lambda _: None)
    launch = SimpleNamespace(model="m", device="cpu", inline_bytes=32 << 20)
    worker: Any = dispatches.Dispatches(launch, LoadedModel(model, 8, None, False, False, 0.0), lifeline)  # type: ignore[arg-type]
    jobs, parts = [], [b""]
    for number, (body, buffers) in enumerate(requests):
        jobs.append(protocol.Job(number, (), True, 1 + len(buffers)))
        parts += [payload.pack_request(body), *buffers]
    first, *bodies = worker.answer([protocol.pack(protocol.Dispatch(tuple(jobs))), *parts[1:]])
    done = protocol.unpack_from_worker(first)
    decode = payload.result_decoder(lambda *_: pytest.fail("no arena"))
    left = deque(bodies)
    return [(o.code and (o.code, o.message)) or decode(left.popleft()).results[0] for o in done.outcomes]


def test_a_dispatch_is_cut_where_it_would_decode_too_much_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is answered, in order; a request alone is not refused for its company."""
    monkeypatch.setattr(encoded, "MAX_REQUEST_PIXELS", 2 * 40 * 60)
    one, two, three = (request(*[SMALL] * n) for n in (1, 2, 3))
    together = [a["together"] if isinstance(a, dict) else a[0] for a in answered([one, one, one, two, one], Counts())]
    assert together == [2, 2, 1, 1, 1]
    told = answered([one, three, one], Counts())
    assert [a["together"] if isinstance(a, dict) else a[0] for a in told] == [2, "invalid_input", 2]


def test_the_pictures_of_a_part_are_let_go_before_the_next_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded, "MAX_REQUEST_PIXELS", 40 * 60)
    held: list[Task] = []
    alive: list[int] = []
    fresh = dispatches.Task

    def make(job: Any) -> Task:
        held.append(fresh(job))
        return held[-1]

    class Looks(Counts):
        def predict(self, given: list[Input]) -> list[Any]:
            alive.append(sum(len(task.given.items) for task in held))
            return super().predict(given)

    monkeypatch.setattr(dispatches, "Task", make)
    answered([request(SMALL)] * 3, Looks())
    assert alive == [1, 1, 1]


# ---------------------------------------------------------------- both ends


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(12))
def test_client_and_worker_turn_a_picture_alike(kind: str, orientation: int) -> None:
    """There are orientations 1 to 8; what is none of them turns nothing."""
    raw = saved(kind, exif=turned(orientation))
    shape = Encoded(raw).decode().shape
    assert size_of(raw) == (shape[1], shape[0])
    assert (shape[0] > shape[1]) == (orientation in (5, 6, 7, 8))


@pytest.mark.filterwarnings("ignore")
def test_noise_in_a_header_is_never_more_than_a_refusal() -> None:
    """Every format, with bytes of its beginning changed: it is decoded, or refused as an input."""
    noise = np.random.default_rng(int(os.environ.get("ZOO_SEED", "7")))
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"):
        whole = saved(kind)
        for _ in range(150):
            raw = bytearray(whole)
            for at in noise.integers(2, min(len(raw), 200), 4):
                raw[at] = noise.integers(256)
            try:
                picture = Encoded(bytes(raw))
                assert picture.pixels <= encoded.MAX_PIXELS
                if picture.pixels < 1 << 22:
                    assert math.prod(picture.decode().shape) % 3 == 0
            except InvalidInput:
                continue


def test_a_few_small_pictures_do_not_fatten_a_model(broker: Any) -> None:
    """Six of 190 KB would be 1.2 GB decoded: the request is refused, and the model's footprint stays what it was."""
    client = broker(footprint="measured").client()
    client.infer("toy", FRAME)
    with pytest.raises(InvalidInput, match=r"the 6 encoded images have 402653184 pixels together"):
        client.infer("toy", [LARGE] * 6)
    client.infer("toy", FRAME)
    (loaded,) = client.get_status()["loaded_models"]
    assert loaded["vram_mb"] < 400
