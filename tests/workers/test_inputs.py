"""From a request body to what an adapter sees: views of one frame, and where in it each crop lies."""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from workers import inputs
from workers.models.base import Input
from zoo.drawing.picture import size_of
from zoo.errors import InvalidInput
from zoo.wire import payload

FRAME = np.arange(40 * 60 * 3, dtype=np.uint32).astype(np.uint8).reshape(40, 60, 3)


def read(*boxes: tuple[float, float, float, float], color: str = "rgb", **options) -> inputs.Given:
    frame = payload.FrameRef(-1, 0, FRAME.shape, "|u1", color)
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
    frame = payload.FrameRef(-1, 0, FRAME.shape, "|u1")
    assert inputs.read(payload.InferBody((frame,), ()), [FRAME.tobytes()], no_arena) == ([], [])


@pytest.mark.parametrize(
    "box", [(5, 5, 5, 9), (9, 5, 5, 9), (60, 0, 70, 9), (0, -9, 9, 0), (0, 0, float("nan"), 9), (0, 0, float("inf"), 9)]
)
def test_a_box_that_holds_nothing_is_named(box):
    with pytest.raises(InvalidInput, match=r"boxes\[1\]"):
        read((0, 0, 9, 9), box)


@pytest.mark.parametrize("boxes", [[(0.1, 0.2, 0.5, 0.6)], [(0, 0, 1, 1)], [(0.5, 0.5, 1.01, 1), (-0.05, 0, 0.3, 0.2)]])
def test_boxes_in_shares_of_the_frame_are_refused_with_the_remedy(boxes):
    with pytest.raises(InvalidInput, match=r"boxes: .*in pixels: multiply x by the width, 60, and y by the height, 40"):
        read(*boxes)


def test_boxes_in_pixels_are_not_taken_for_shares():
    """One that reaches beyond the first pixel shows that all are in pixels, and so does a frame of a pixel or two."""
    small = (0.1, 0.2, 0.5, 0.6)
    assert [item.box for item in read(small, (0, 0, 1, 2)).items] == [(0, 0, 1, 1), (0, 0, 1, 2)]
    for shape in ((2, 60, 3), (40, 2, 3), (1, 1, 3)):
        frame = payload.FrameRef(-1, 0, shape, "|u1")
        given = inputs.read(payload.InferBody((frame,), (small,)), [bytes(math.prod(shape))], no_arena)
        assert given.items[0].box == (0, 0, 1, 1)


def test_an_input_made_by_hand_is_a_whole_frame():
    item = Input(FRAME, {})
    assert (item.whole is FRAME, item.box, len(item.frames)) == (True, None, 1)


def test_a_fingerprint_covers_whatever_a_model_can_see():
    """Also the frame around a box: a model may look there."""
    box = (10, 10, 20, 20)
    told = {
        "whole": inputs.fingerprint(read()),
        "crop": inputs.fingerprint(read(box)),
        "two": inputs.fingerprint(read(box, box)),
        "elsewhere": inputs.fingerprint(read((11, 10, 20, 20))),
        "with an option": inputs.fingerprint(read(box, conf=0.5)),
    }
    assert len(set(told.values())) == len(told)
    assert told["crop"] == inputs.fingerprint(read(box))
    around = FRAME.copy()
    around[0, 0] += 1
    frame = payload.FrameRef(-1, 0, FRAME.shape, "|u1")
    given = inputs.read(payload.InferBody((frame,), (box,)), [around.tobytes()], no_arena)
    assert inputs.fingerprint(given) != told["crop"]


# ---------------------------------------------------------------- encoded images

PICTURE = Image.fromarray(FRAME)
GREY16 = np.arange(40 * 60, dtype=np.uint16).reshape(40, 60) * 27


def encoded(image: Image.Image, kind: str = "PNG", **how) -> np.ndarray:
    out = io.BytesIO()
    image.save(out, kind, **how)
    return np.frombuffer(out.getvalue(), np.uint8)


def png(width: int, height: int, bits: int, colour: int, rows: bytes) -> np.ndarray:
    """A PNG that says so of itself, whatever its rows hold."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in parts]
    return np.frombuffer(b"\x89PNG\r\n\x1a\n" + b"".join(chunks), np.uint8)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def test_a_decoded_picture_is_read_only_rgb():
    for kind in ("PNG", "BMP", "TIFF"):
        array = inputs.decode(encoded(PICTURE, kind))
        np.testing.assert_array_equal(array, FRAME)
        assert not array.flags.writeable
    for kind in ("JPEG", "WEBP", "GIF"):  # these lose something
        assert inputs.decode(encoded(PICTURE, kind)).shape == FRAME.shape


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "CMYK", "RGBA"])
def test_other_colours_become_rgb(mode):
    image = PICTURE.convert(mode)
    expected = image.convert("RGB") if mode != "LA" else PICTURE.convert("L").convert("RGB")
    array = inputs.decode(encoded(image, "TIFF" if mode == "CMYK" else "PNG"))
    np.testing.assert_array_equal(array, np.asarray(expected))


def test_transparency_is_dropped():
    """What lies under it shows, as in every library that a model may have been trained with."""
    hidden = PICTURE.copy()
    hidden.putalpha(0)
    np.testing.assert_array_equal(inputs.decode(encoded(hidden)), FRAME)
    palette = PICTURE.convert("P")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        array = inputs.decode(encoded(palette, transparency=bytes(256)))
    np.testing.assert_array_equal(array, np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_of_16_bits_the_upper_8_are_kept(kind, order):
    array = inputs.decode(encoded(Image.fromarray(GREY16.astype(order)), kind))
    np.testing.assert_array_equal(array, np.repeat((GREY16 // 256).astype(np.uint8)[..., None], 3, axis=2))
    assert len(np.unique(array)) > 200


def test_16_bits_of_each_colour_are_read_alike():
    colours = np.stack([GREY16, GREY16[::-1], GREY16[:, ::-1]], axis=2)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours)
    np.testing.assert_array_equal(inputs.decode(png(60, 40, 16, 2, rows)), colours // 256)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_without_a_range_are_refused(mode):
    with pytest.raises(InvalidInput, match=r"frame: .* 32 bits"):
        inputs.decode(encoded(PICTURE.convert("L").convert(mode), "TIFF"))


@pytest.mark.parametrize("image", [PICTURE, Image.fromarray(GREY16)], ids=["colour", "16 bits"])
def test_a_picture_is_turned_upright(image):
    upright = inputs.decode(encoded(image))
    np.testing.assert_array_equal(inputs.decode(encoded(image, exif=turned(6))), np.rot90(upright, -1))


@pytest.mark.parametrize("orientation", [0, 9, 21])
def test_an_orientation_that_there_is_none_of_turns_nothing(orientation):
    array = inputs.decode(encoded(PICTURE, exif=turned(orientation)))
    np.testing.assert_array_equal(array, FRAME)
    assert size_of(encoded(PICTURE, exif=turned(orientation)).tobytes()) == (60, 40)


def test_of_several_pictures_it_is_the_first():
    others = [PICTURE.transpose(Image.Transpose.ROTATE_180)] * 3
    for kind in ("PNG", "TIFF"):
        film = encoded(PICTURE, kind, save_all=True, append_images=others)
        np.testing.assert_array_equal(inputs.decode(film), FRAME)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "none of JPEG, PNG"),
        (b"\xff\xd8\xff\xe0", "none of JPEG, PNG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "none of JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "none of JPEG, PNG"),
        (encoded(PICTURE, "JPEG")[:-40].tobytes(), "truncated"),
        (encoded(PICTURE)[:200].tobytes(), "cannot be read"),
        (png(16000, 16000, 8, 2, bytes(9)).tobytes(), "too large"),
        (png(9000, 9000, 8, 2, bytes(9)).tobytes(), "9000x9000 pixels"),
        (png(16385, 1, 8, 0, bytes(16386)).tobytes(), "16385x1 pixels"),
        (png(60, 40, 8, 2, bytes(9)).tobytes(), "cannot be read"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_whole_picture_is_refused(data, says):
    with pytest.raises(InvalidInput, match=f"frame: .*{says}"):
        inputs.decode(np.frombuffer(data, np.uint8))
