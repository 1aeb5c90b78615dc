"""Drawing: every kind of result, on large, small and odd frames, never on the caller's own pixels."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFont

from workers import inputs
from zoo import results
from zoo.client.frames import Frame, Slot
from zoo.drawing import glyphs
from zoo.drawing.canvas import PALETTE
from zoo.enrichment import Enriched, Enrichment
from zoo.errors import InvalidInput
from zoo.results import LIMBS

NAMES = sorted({name for limb in LIMBS for name in limb})


def floats(*values) -> np.ndarray:
    return np.array(values, np.float32)


def draw(answer: results.AnyResult | Enrichment, frame: object) -> np.ndarray:
    return (answer if isinstance(answer, Enrichment) else results.typed(answer)).draw(frame)


def detections(boxes: np.ndarray, masks: np.ndarray | None = None) -> results.Detections:
    n = len(boxes)
    return results.Detections(
        boxes=boxes,
        scores=np.full(n, 0.5, np.float32),
        class_ids=np.arange(n, dtype=np.int32),
        labels=["person"] * n,
        masks=masks,
    )


def one_of_each(height: int, width: int) -> dict[str, results.AnyResult]:
    box = floats([0.2 * width, 0.3 * height, 0.8 * width, 0.9 * height])
    corners = floats([0, 0], [width, 0], [width, height], [0, height])
    points = np.random.default_rng(0).uniform(0, [width, height], (1, len(NAMES), 2)).astype(np.float32)
    depth = np.arange(height * width, dtype=np.float32).reshape(height, width)
    mask = np.zeros((height, width), np.uint8)
    mask[: height // 2] = 1
    return {
        "detections": detections(box, np.ones((1, height, width), bool)),
        "keypoints": results.Keypoints(
            points=points, scores=np.ones((1, len(NAMES)), np.float32), boxes=box, names=NAMES, postures=["standing"]
        ),
        "classification": results.Classification(labels=["cat", "dog"], scores=floats(0.9, 0.1)),
        "several labels": results.Classification(labels=["a", "b"], scores=floats(0.9, 0.6), multi_label=True),
        "action": results.Action(labels=["walking"], scores=floats(0.9)),
        "embedding": results.Embedding(vector=floats(0, 1)),
        "depth": results.DepthMap(depth=depth),
        "segmentation": results.Segmentation(mask=mask, labels=["Background", "Hat"], coverage={"Hat": 0.5}),
        "ocr": results.OcrText(text="AB", lines=["AB"], scores=floats(0.9), boxes=corners[None] * 0.5, score=0.9),
        "one line": results.OcrText(text="AB", lines=["AB"], scores=floats(0.9), score=0.9),
        "quality": results.Quality(score=53.0, verdict="blurry"),
        "dict": {"brightness": 0.25, "name": "x", "array": floats(1)},
    }


KINDS = list(one_of_each(4, 4))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1080, 1920), (120, 90), (3, 5), (1, 1)])
def test_a_copy_is_painted(kind, shape):
    frame = np.random.default_rng(1).integers(0, 255, (*shape, 3), np.uint8)
    frame.flags.writeable = False
    before = frame.copy()
    painted = draw(one_of_each(*shape)[kind], frame)
    assert painted.shape == frame.shape
    assert painted.dtype == np.uint8
    assert not np.shares_memory(painted, frame)
    np.testing.assert_array_equal(frame, before)
    if shape != (1, 1):
        assert (painted != frame).any()


def test_a_box_is_where_it_was_found():
    painted = draw(detections(floats([100, 60, 300, 200])), np.zeros((400, 400, 3), np.uint8))
    assert tuple(painted[130, 100]) == PALETTE[0]
    assert tuple(painted[200, 200]) == PALETTE[0]
    assert not painted[130, 150:250].any()
    assert not painted[250:].any()


def test_strided_views_are_drawn_on_as_they_look():
    frame = np.random.default_rng(1).integers(0, 255, (60, 80, 3), np.uint8)
    found = detections(floats([10, 30, 50, 50]))
    np.testing.assert_array_equal(draw(found, frame[::-1, :, ::-1]), draw(found, frame[::-1, :, ::-1].copy()))


def test_boxes_outside_the_frame_or_not_numbers_do_no_harm():
    boxes = floats([-50, -50, 1e9, 1e9], [np.nan, 0, 5, 5], [np.inf, 0, 5, 5], [40, 40, 10, 10])
    assert draw(detections(boxes), np.zeros((50, 50, 3), np.uint8)).any()


def test_nothing_found_paints_nothing():
    frame = np.full((50, 50, 3), 9, np.uint8)
    np.testing.assert_array_equal(draw(detections(np.zeros((0, 4), np.float32)), frame), frame)


def cropped(height: int, width: int) -> dict[str, results.TypedResult]:
    """Results whose array covers a crop of this size, with every pixel of it painted."""
    mask = np.ones((height, width), np.uint8)
    return {
        "detections": detections(floats([0, 0, width, height]), mask[None].astype(bool)),
        "segmentation": results.Segmentation(mask=mask, labels=["Background", "Hat"]),
        "depth": results.DepthMap(depth=1 + np.arange(height * width, dtype=np.float32).reshape(height, width)),
    }


@pytest.mark.parametrize("kind", cropped(1, 1))
def test_the_picture_of_a_crop_lies_where_the_crop_was(kind):
    painted = draw(cropped(40, 30)[kind].moved(120.0, 60.0), np.full((200, 300, 3), 200, np.uint8))
    where = (painted != 200).any(axis=2)
    assert where[60:100, 120:150].all()
    where[:101, 120:] = False  # itself, its outline, and its words, which stand on it
    assert not where.any()


@pytest.mark.parametrize("kind", cropped(1, 1))
@pytest.mark.parametrize("corner", [(-20, -10), (90, 90), (500, 500), (-500, 0)])
def test_the_part_of_it_outside_the_frame_is_cut_off(kind, corner):
    assert draw(cropped(40, 30)[kind].moved(*corner), np.zeros((100, 100, 3), np.uint8)).shape == (100, 100, 3)


def test_unsure_keypoints_are_left_out():
    points = floats([10, 10], [40, 40])[None]
    found = results.Keypoints(points=points, scores=floats([0.9, 0.1]), names=["nose", "left_eye"])
    painted = draw(found, np.zeros((50, 50, 3), np.uint8))
    assert painted[10, 10].any()
    assert not painted[35:45, 35:45].any()


def test_near_is_bright():
    depth = np.repeat(np.linspace(0, 1, 200, dtype=np.float32)[None], 100, axis=0)
    painted = draw(results.DepthMap(depth=depth), np.zeros((100, 200, 3), np.uint8))
    assert painted[90, 190].sum() > painted[90, 100].sum() > painted[90, 10].sum()
    flat = draw(results.DepthMap(depth=np.full((9, 9), np.nan, np.float32)), np.zeros((50, 50, 3), np.uint8))
    assert flat.shape == (50, 50, 3)


def test_classes_a_palette_apart_differ_in_colour():
    mask = np.repeat(np.array([[1, 13]], np.uint8), 50, axis=1).repeat(80, axis=0)
    found = results.Segmentation(mask=mask, labels=[f"class {i}" for i in range(14)])
    painted = draw(found, np.zeros((80, 100, 3), np.uint8))
    assert painted[79, 10].sum() > 1.3 * painted[79, 90].sum() > 0


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((5, 5), np.uint8),
        np.zeros((5, 5, 3), np.float32),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        None,
        "bus.jpg",
        [],
        b"",
        b"no picture",
        {"frame": 1},
    ],
    ids=repr,
)
def test_what_is_no_rgb_frame_is_refused(frame):
    with pytest.raises(InvalidInput, match="frame"):
        draw(results.Quality(score=1.0), frame)


def test_results_draw_themselves_with_pillow_alone():
    code = (
        "import sys, numpy as np; from zoo.results import Quality;"
        "Quality(score=1.0).draw(np.zeros((9, 9, 3), np.uint8));"
        "print([m for m in ('cv2', 'torch', 'scipy', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------- what it is drawn on

RNG = np.random.default_rng(3)
PIXELS = np.repeat(np.repeat(RNG.integers(0, 255, (15, 20, 3), np.uint8), 8, axis=0), 8, axis=1)
FOUND = detections(floats([10, 20, 90, 100]))
EVENT = Enrichment(
    detections=[Enriched(label="person", box=(10, 20, 90, 100), score=0.5)],
    frame={}, missing={}, skipped={}, timings={}, seconds=0.1,
)  # fmt: skip


def encoded(kind: str, orientation: int = 1, mode: str = "RGB") -> bytes:
    out, exif = io.BytesIO(), Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(PIXELS).convert(mode).save(out, kind, exif=exif)
    return out.getvalue()


@pytest.mark.parametrize("result", [FOUND, EVENT], ids=["result", "enrichment"])
class TestWhatInferTakes:
    def test_a_frame(self, result) -> None:
        frame = Frame(Slot(None, PIXELS.shape, "|u1", PIXELS.copy()))
        np.testing.assert_array_equal(result.draw(frame), result.draw(PIXELS))
        np.testing.assert_array_equal(frame.array, PIXELS)
        frame.close()
        with pytest.raises(InvalidInput, match="frame"):
            result.draw(frame)

    @pytest.mark.parametrize("orientation", [1, 3, 6, 8, 9])
    @pytest.mark.parametrize("kind", ["JPEG", "PNG"])
    def test_an_encoded_image_as_the_worker_saw_it(self, result, kind, orientation) -> None:
        raw = encoded(kind, orientation)
        saw = inputs.decode(np.frombuffer(raw, np.uint8))
        assert saw.shape == ((160, 120, 3) if orientation in (6, 8) else (120, 160, 3))
        for same in (raw, bytearray(raw), memoryview(raw)):
            np.testing.assert_array_equal(result.draw(same), result.draw(saw))

    def test_encoded_grey(self, result) -> None:
        assert result.draw(encoded("JPEG", mode="L")).shape == PIXELS.shape

    def test_of_a_video_the_last_frame(self, result) -> None:
        np.testing.assert_array_equal(result.draw([PIXELS // 2, PIXELS]), result.draw(PIXELS))

    def test_blue_first(self, result) -> None:
        bgr = PIXELS[..., ::-1]
        np.testing.assert_array_equal(result.draw(bgr, color="bgr"), result.draw(PIXELS)[..., ::-1])
        assert result.draw(bgr, color="bgr").flags.c_contiguous
        raw = encoded("PNG")
        np.testing.assert_array_equal(result.draw(raw, color="bgr"), result.draw(PIXELS)[..., ::-1])
        with pytest.raises(InvalidInput, match="color"):
            result.draw(PIXELS, color="grey")


# ---------------------------------------------------------------- stand-ins


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(480, 640), (120, 90), (1, 1)])
def test_the_answer_of_a_stand_in_is_marked(kind, shape):
    frame = np.full((*shape, 3), 200, np.uint8)
    answer, standing_in = one_of_each(*shape)[kind], one_of_each(*shape)[kind]
    if isinstance(standing_in, dict):
        standing_in["stand_in"] = True
    else:
        standing_in.stand_in = True
    real, marked = draw(answer, frame), draw(standing_in, frame)
    if shape == (1, 1):
        return
    edge = marked[-5:]
    assert (edge.reshape(-1, 3) == 0).all(axis=1).any()  # a bar over the lower edge
    assert (real != marked).any()
    middle = marked[-30:].astype(int)
    assert ((middle[..., 0] > 150) & (middle[..., 2] < 120)).any()  # with yellow words


def test_stand_ins_among_what_enriches_an_event_are_marked():
    frame = np.full((480, 640, 3), 200, np.uint8)

    def event(*marks: bool) -> Enrichment:
        answers = {f"m{i}": results.Quality(score=1.0, verdict="sharp", stand_in=mark) for i, mark in enumerate(marks)}
        person = Enriched(label="person", box=(300, 250, 400, 300), score=0.5, answers=answers)
        return Enrichment(detections=[person], frame={}, missing={}, skipped={}, timings={}, seconds=0.1)

    none, some, every = (event(*marks).draw(frame) for marks in ((False, False), (False, True), (True, True)))
    assert (none[-10:] == 200).all()
    assert (some[-10:, 0] == 0).all()
    assert (some[-30:] != every[-30:]).any()  # it does not call all of them stand-ins
    assert (some[:300] != none[:300]).any()  # which of them it is, its line says


# ---------------------------------------------------------------- many words


def test_captions_of_people_side_by_side_do_not_cover_each_other():
    """Each alone paints as many bright pixels as it adds where all are drawn together."""
    frame = np.full((480, 640, 3), 90, np.uint8)
    people = [
        Enriched(
            label="person", box=(200 + 30 * i, 250, 220 + 30 * i, 300), score=0.5,
            answers={"what-is-it": results.Action(labels=["something long to say"], scores=floats(0.5))},
        )
        for i in range(3)
    ]  # fmt: skip

    def bright(*shown: Enriched) -> int:
        event = Enrichment(detections=[*shown], frame={}, missing={}, skipped={}, timings={}, seconds=0.1)
        return int((event.draw(frame) > 170).all(axis=2).sum())

    assert bright(*people) == pytest.approx(sum(bright(one) for one in people), rel=0.02)


def test_where_there_is_no_room_for_captions_they_are_drawn_all_the_same():
    crowd = [Enriched(label="person", box=(1, 9, 20, 30), score=0.5) for _ in range(30)]
    event = Enrichment(detections=crowd, frame={}, missing={}, skipped={}, timings={}, seconds=0.1)
    assert event.draw(np.zeros((40, 60, 3), np.uint8)).any()


def test_a_person_has_one_colour():
    """The box and the limbs."""
    points = results.Keypoints(points=floats([10, 200], [60, 260])[None], scores=np.ones((1, 2), np.float32),
                               names=["left_knee", "left_ankle"])  # fmt: skip
    people = [
        Enriched(label="person", box=(5, 190, 70, 270), score=0.5),
        Enriched(label="person", box=(5, 190, 70, 270), score=0.5, answers={"pose": points}),
    ]
    event = Enrichment(detections=people, frame={}, missing={}, skipped={}, timings={}, seconds=0.1)
    painted = event.draw(np.zeros((480, 480, 3), np.uint8))
    assert tuple(painted[230, 35]) == PALETTE[1]


# ---------------------------------------------------------------- letters


@pytest.fixture
def chinese(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The only fonts of this system: one that has two Chinese letters, a filled square and a narrow one."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    def square(width: int) -> object:
        pen = TTGlyphPen(None)
        pen.moveTo((0, 0))
        for corner in ((0, 700), (width, 700), (width, 0)):
            pen.lineTo(corner)
        pen.closePath()
        return pen.glyph()

    made = FontBuilder(1000, isTTF=True)
    made.setupGlyphOrder([".notdef", "capital", "a"])
    made.setupCharacterMap({ord("京"): "capital", ord("沪"): "capital", ord("A"): "a"})
    made.setupGlyf({".notdef": square(100), "capital": square(900), "a": square(400)})
    made.setupHorizontalMetrics(dict.fromkeys((".notdef", "capital", "a"), (1000, 0)))
    made.setupHorizontalHeader(ascent=800, descent=-200)
    made.setupNameTable({"familyName": "Two", "styleName": "Regular"})
    made.setupOS2(sTypoAscender=800, usWinAscent=800, usWinDescent=200)
    made.setupPost()
    file = tmp_path / "fonts" / "NotoSansSC-Regular.ttf"
    file.parent.mkdir()
    made.save(file)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_DIRS", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    glyphs.installed.cache_clear()
    yield file
    glyphs.installed.cache_clear()


def test_chinese_is_written_with_a_font_that_has_it(chinese: Path) -> None:
    text, font = glyphs.fitted("京A沪", 20)
    assert text == "京A沪"
    assert font.path == str(chinese)


def test_letters_that_no_font_has_are_written_as_their_numbers(chinese: Path) -> None:
    assert glyphs.fitted("京A津", 20)[0] == "京A\\u6d25"
    assert glyphs.fitted("\x00\ud800\u202e😀", 20)[0] == "\\x00\\ud800\\u202e\\U0001f600"
    chinese.unlink()
    glyphs.installed.cache_clear()
    assert glyphs.fitted("京A", 20)[0] == "\\u4eacA"


def test_plain_letters_are_written_as_ever(chinese: Path) -> None:
    text, font = glyphs.fitted("size …\n two", 20)
    assert text == "size …  two"
    assert isinstance(font, ImageFont.FreeTypeFont)
    assert font.path != str(chinese)


WORDS = ["京A12345", "中文", "\ud800", "two\nlines", "\x00", "مرحبا", "नमस्ते", "😀", "x" * 3000, ""]


@pytest.mark.parametrize("words", WORDS, ids=range(len(WORDS)))
@pytest.mark.parametrize("kind", ["ocr", "one line", "classification", "dict", "enrichment"])
def test_whatever_is_read_can_be_drawn(kind: str, words: str) -> None:
    read = results.OcrText(text=words, lines=[words], scores=floats(0.9), score=0.9)
    made = {
        "ocr": results.OcrText(
            text=words, lines=[words], scores=floats(0.9), boxes=floats([9, 40], [90, 40], [90, 60], [9, 60])[None]
        ),
        "one line": read,
        "classification": results.Classification(labels=[words], scores=floats(0.9)),
        "dict": {words: words},
        "enrichment": Enrichment(
            detections=[Enriched(label=words, box=(9, 40, 90, 60), score=0.5, answers={words: read})],
            frame={words: read}, missing={}, skipped={}, timings={}, seconds=0.1,
        ),
    }  # fmt: skip
    frame = np.full((120, 160, 3), 128, np.uint8)
    assert (draw(made[kind], frame) != frame).any()


def test_chinese_in_a_picture_is_no_row_of_empty_boxes() -> None:
    """With or without a font that has it, two texts are two pictures."""
    frame = np.full((120, 160, 3), 128, np.uint8)
    one, other = (
        draw(results.OcrText(text=text, lines=[text], scores=floats(0.9), score=0.9), frame) for text in ("京", "沪")
    )
    assert (one != other).any()
