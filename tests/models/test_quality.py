"""BRISQUE: the package's own arithmetic, and the order of qualities that it is used for."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

quality = pytest.importorskip("workers.models.quality")
from brisque import BRISQUE  # noqa: E402
from skimage import data  # noqa: E402

from workers.models.base import Input, Spec  # noqa: E402
from zoo.demo.scenes import photograph  # noqa: E402
from zoo.errors import InvalidInput, LoadFailed  # noqa: E402

pytestmark = pytest.mark.models


class Untouched(BRISQUE):
    """The package with nothing changed but what stops it on numpy 2.4."""

    def scale_features(self, features):
        return super().scale_features([np.asarray(value).item() for value in features])


def load(**options) -> object:
    model = quality.Brisque()
    model.load(Spec(name="brisque-quality", options=options, threads=2), "cpu")
    return model


@pytest.fixture(scope="module")
def judge():
    return load()


@pytest.fixture(scope="module")
def blurred(bus) -> np.ndarray:
    return np.asarray(Image.fromarray(bus).filter(ImageFilter.GaussianBlur(1)))


@pytest.fixture(scope="module")
def noisy(bus) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 25, bus.shape)
    return np.clip(bus + noise, 0, 255).astype(np.uint8)


def ask(model, *frames, **options):
    return model.predict([Input(frame, options) for frame in frames])


def test_scores_are_those_of_the_package(judge, bus, blurred, noisy):
    package = Untouched(url=False)
    odd = bus[3:300:1, 5:212:1]  # an odd height and an odd width
    others = data.coffee()[:200, :301], data.chelsea()
    for frame in (bus, blurred, noisy, odd, photograph("zidane.jpg"), *others):
        expected = min(100.0, max(0.0, package.score(frame)))
        assert ask(judge, frame)[0].score == pytest.approx(expected, abs=0.1)


def test_the_picture_is_halved_by_the_kernel_that_the_regressor_was_trained_with(judge, bus, monkeypatch):
    """Two pixels to the left and right of each, a = -0.75, as in OpenCV 2: no other kernel gives these scores."""
    weights = np.array([-3, 19, 19, -3]) / 32  # at the middle between two pixels
    halved = []

    def half(picture, size, fx, fy, interpolation):
        padded = np.pad(picture, 1, "edge")
        rows = sum(w * padded[i : i + picture.shape[0] - 1 : 2] for i, w in enumerate(weights))
        halved.append(sum(w * rows[:, i : i + picture.shape[1] - 1 : 2] for i, w in enumerate(weights)))
        return halved[-1]

    (expected,) = ask(judge, bus)
    monkeypatch.setattr(quality.cv2, "resize", half)
    (found,) = ask(judge, bus)
    assert halved[0].shape == (bus.shape[0] // 2, bus.shape[1] // 2)
    assert found.score == pytest.approx(expected.score, abs=0.01)


def test_sharp_is_better_than_blurred_is_better_than_noisy(judge, bus, blurred, noisy):
    sharp, soft, grain = (found.score for found in ask(judge, bus, blurred, noisy))
    assert 0 <= sharp < soft < grain <= 100


def test_more_of_a_fault_is_worse(judge, bus):
    softer = [np.asarray(Image.fromarray(bus).filter(ImageFilter.GaussianBlur(r))) for r in (0, 1, 2, 3)]
    noise = np.random.default_rng(0).normal(0, 1, bus.shape)
    grainier = [np.clip(bus + sigma * noise, 0, 255).astype(np.uint8) for sigma in (0, 10, 25, 40)]
    for frames in (softer, grainier):
        scores = [found.score for found in ask(judge, *frames)]
        assert scores == sorted(scores)


def test_the_verdict_follows_the_thresholds(judge, bus):
    (found,) = ask(judge, bus)
    assert found.verdict == "good"
    low = found.score - 1
    assert ask(judge, bus, blurry_at=low)[0].verdict == "blurry"
    assert ask(judge, bus, blurry_at=low - 1, noisy_at=low)[0].verdict == "noisy"
    assert ask(load(blurry_at=low), bus)[0].verdict == "blurry"


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_flat_frame_is_refused(judge, level):
    with pytest.raises(InvalidInput, match="flat"):
        ask(judge, np.full((120, 160, 3), level, np.uint8))


@pytest.mark.parametrize("seed", range(3))
def test_an_almost_flat_frame_gives_a_score_or_a_typed_error(judge, seed):
    frame = np.zeros((120, 160, 3), np.uint8)
    frame[seed * 30, seed * 40] = 255 if seed else 1
    try:
        (found,) = ask(judge, frame)
    except InvalidInput as e:
        assert "flat" in str(e)  # noqa: PT017
    else:
        assert 0 <= found.score <= 100


def test_strided_and_read_only_views(judge, bus):
    bgr = np.ascontiguousarray(bus[..., ::-1])
    bgr.flags.writeable = False
    (found,) = ask(judge, bus[100:500, 50:600])
    assert ask(judge, bgr[100:500, 50:600, ::-1])[0].score == found.score
    assert ask(judge, bgr[100:500, 50:600])[0].score != found.score


@pytest.mark.parametrize("shape", [(8, 8), (64, 64, 4), (0, 64, 3), (31, 64, 3), (4320, 7680, 3)])
def test_what_cannot_be_judged_is_refused(judge, shape):
    with pytest.raises(InvalidInput, match="frame"):
        ask(judge, np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"blurry_at": "50"}, "blurry_at"),
        ({"noisy_at": 101}, "noisy_at"),
        ({"blurry_at": 70}, "noisy_at"),
        ({"x": 1}, "x"),
    ],
)
def test_a_wrong_option_is_named(judge, bus, options, field):
    with pytest.raises(InvalidInput, match=field):
        ask(judge, bus, **options)
    with pytest.raises(LoadFailed, match=field):
        load(**options)
