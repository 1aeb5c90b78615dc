"""The OCR adapter: plates rendered here, read with the real weights inside the rapidocr package."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

ocr = pytest.importorskip("workers.models.ocr")
import rapidocr  # noqa: E402

from workers.models.base import Input, Spec  # noqa: E402
from zoo.demo.scenes import photograph  # noqa: E402
from zoo.errors import InvalidInput, LoadFailed, ModelUnavailable  # noqa: E402

pytestmark = pytest.mark.models

FONT = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans-Bold.ttf"


def plate(text: str, size: int = 48, ground: str = "white") -> np.ndarray:
    font = ImageFont.truetype(str(FONT), size)
    left, top, right, bottom = font.getbbox(text)
    image = Image.new("RGB", (right - left + size, bottom - top + size // 2), ground)
    ImageDraw.Draw(image).text((size // 2 - left, size // 4 - top), text, fill="black", font=font)
    return np.asarray(image)


def load(path: Path | None = None, **options) -> object:
    model = ocr.PlateReader()
    model.load(Spec(name="paddleocr", path=path, options=options, threads=2), "cpu")
    return model


@pytest.fixture(scope="module")
def reader():
    return load()


@pytest.fixture(scope="module")
def street() -> np.ndarray:
    """A photograph with two plates in it, one above the other on the right, and one on the left."""
    frame = photograph("zidane.jpg")
    for text, x, y in (("XY34 ZAB", 850, 60), ("KLM 5678", 860, 600), ("AB12 CDE", 60, 66)):
        pixels = plate(text)
        frame[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
    return frame


def ask(model, *frames, **options):
    return model.predict([Input(frame, options) for frame in frames])


@pytest.mark.parametrize(("text", "ground"), [("AB12 CDE", "white"), ("KA 7 PX 903", "yellow")])
def test_a_plate_is_read(reader, text, ground):
    (line,) = ask(reader, plate(text, ground=ground), mode="line")
    assert line.text == text.replace(" ", "")
    assert line.score > 0.9
    assert line.boxes is None
    assert line.scores.dtype == np.float32


@pytest.mark.parametrize("height", [14, 16, 24])
def test_small_plates_are_read_whole_tight_or_in_two_lines(reader, zidane, height):
    """The library alone finds nothing in most of them, for it scales a crop of any size up to 736 pixels."""
    one, upper, lower = plate("AB12 CDE", 96), plate("XY34", 96), plate("5678", 96)
    around = zidane[100 : 100 + round(1.7 * len(one)), 40 : 40 + round(1.1 * one.shape[1])].copy()
    around[round(0.35 * len(one)) :, 30:][: len(one), : one.shape[1]] = one
    width = min(upper.shape[1], lower.shape[1])
    two = np.concatenate([upper[:, :width], lower[:, :width]])
    for picture, text, lines in ((one, "AB12CDE", 1), (around, "AB12CDE", 1), (two, "XY345678", 2)):
        scale = height * lines / (len(picture) if lines == 2 else len(one))
        size = round(picture.shape[1] * scale), round(picture.shape[0] * scale)
        small = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX)) * 0.85 + 20
        small = (small + np.random.default_rng(height).normal(0, 4, small.shape)).clip(0, 255).astype(np.uint8)
        (found,) = ask(reader, small)
        assert found.text == text
        assert found.score > 0.8
        assert (found.boxes >= 0).all()
        assert (found.boxes <= np.array(size) - 1).all()
    assert ask(reader, small, mode="line")[0].text != text, "two lines are not one"


def test_plates_in_a_photograph_are_read_in_order(reader, street):
    (found,) = ask(reader, street)
    assert found.text == "AB12CDEXY34ZABKLM5678"
    assert found.boxes.shape == (3, 4, 2)
    assert found.boxes.dtype == np.float32
    x, y = found.boxes[0].mean(axis=0)
    assert 60 < x < 400
    assert 60 < y < 140
    assert found.score == pytest.approx(found.scores.mean())


def test_it_answers_as_the_library(reader, street):
    direct = rapidocr.RapidOCR(params={"Global.log_level": "error"})
    expected = direct(np.ascontiguousarray(street[..., ::-1]))
    (found,) = ask(reader, street)
    assert sorted(found.lines) == sorted(expected.txts)
    np.testing.assert_allclose(np.sort(found.scores), np.sort(expected.scores), atol=1e-4)
    assert {tuple(b.ravel()) for b in found.boxes} == {tuple(np.asarray(b, np.float32).ravel()) for b in expected.boxes}


def test_no_request_changes_the_next(reader, street):
    """rapidocr remembers per-call flags: after a line, a whole frame must still be searched."""
    small = plate("AB12 CDE", 32)
    line, full, again = reader.predict(
        [Input(small, {"mode": "line"}), Input(street, {"min_score": 0.99}), Input(small, {"mode": "line"})]
    )
    assert line.text == again.text == "AB12CDE"
    assert full.boxes is not None
    assert len(ask(reader, street)[0].lines) == 3


def test_lines_below_the_threshold_are_left_out(reader):
    (nothing,) = ask(reader, plate("AB12 CDE"), mode="line", min_score=1.0)
    assert (nothing.text, nothing.lines, nothing.score) == ("", [], 0.0)


def test_a_frame_without_text(reader, capfd):
    blank = np.full((200, 200, 3), 128, np.uint8)
    (full,) = ask(reader, blank)
    (line,) = ask(reader, blank, mode="line")
    assert full.text == line.text == ""
    assert full.boxes.shape == (0, 4, 2)
    assert capfd.readouterr() == ("", "")


def test_strided_and_read_only_views(reader, street):
    bgr = np.ascontiguousarray(street[..., ::-1])
    bgr.flags.writeable = False
    (of_bgr,) = ask(reader, bgr[40:160, 820:1200, ::-1], mode="line")
    (found,) = ask(reader, street[40:160, 820:1200], mode="line")
    assert of_bgr.lines == found.lines
    np.testing.assert_array_equal(of_bgr.scores, found.scores)


def test_a_long_strip_is_searched_at_a_bounded_size(reader):
    strip = np.full((40, 900, 3), 255, np.uint8)
    pixels = plate("AB12 CDE", 24)
    strip[2 : 2 + pixels.shape[0], 600 : 600 + pixels.shape[1]] = pixels
    (found,) = ask(reader, strip)
    assert found.text == "AB12CDE"
    assert found.boxes[0][:, 0].min() > 500
    assert found.boxes[0][:, 1].max() < 40


def test_reading_order():
    def box(x: float, y: float, h: float = 20) -> list[list[float]]:
        return [[x, y], [x + 50, y], [x + 50, y + h], [x, y + h]]

    boxes = np.array([box(100, 105), box(0, 100), box(0, 10), box(200, 14), box(0, 140)], np.float32)
    assert ocr.reading_order(boxes) == [2, 3, 1, 0, 4]
    assert ocr.reading_order(boxes[:0]) == []


def test_plain():
    assert ocr.plain("ab-12 ·cdé") == "AB12CD"


@pytest.mark.parametrize(
    ("options", "field"),
    [({"min_score": 2}, "min_score"), ({"mode": "word"}, "mode"), ({"lang": "en"}, "lang"), ({"mode": 1}, "mode")],
)
def test_a_wrong_option_is_named(reader, options, field):
    with pytest.raises(InvalidInput, match=field):
        ask(reader, plate("A1"), **options)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 4), (0, 8, 3)])
def test_what_is_no_picture_is_refused(reader, shape):
    with pytest.raises(InvalidInput, match="frame"):
        ask(reader, np.zeros(shape, np.uint8))


@pytest.mark.parametrize("mode", ["full", "line"])
@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 40, 3), (40, 2, 3)])
def test_the_smallest_pictures_are_answered(reader, mode, shape):
    assert ask(reader, np.zeros(shape, np.uint8), mode=mode)[0].text == ""


def test_weights_of_ones_own(tmp_path):
    for file in ocr.PACKAGED.glob("*.onnx"):
        (tmp_path / file.name).symlink_to(file)
    assert ask(load(tmp_path), plate("AB12 CDE"), mode="line")[0].text == "AB12CDE"
    next(tmp_path.glob("*rec*")).unlink()
    with pytest.raises(ModelUnavailable, match="rec"):
        load(tmp_path)
    (tmp_path / "rec.onnx").write_bytes(b"no network")
    with pytest.raises(LoadFailed):
        load(tmp_path)
