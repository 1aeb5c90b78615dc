"""Depth Anything against transformers itself, on the same folder and the same photographs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

depth = pytest.importorskip("workers.models.depth")
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoImageProcessor, AutoModelForDepthEstimation  # noqa: E402

from workers import inputs  # noqa: E402
from workers.models.base import Input, Spec  # noqa: E402
from zoo.errors import InvalidInput, LoadFailed  # noqa: E402
from zoo.wire import payload  # noqa: E402

pytestmark = pytest.mark.models

BOXES = [(50, 395, 245, 905), (222.4, 405.9, 345, 860), (-30, 100, 101, 2000)]
PIXELS = [(50, 395, 245, 905), (222, 405, 345, 860), (0, 100, 101, 1080)]


@pytest.fixture(scope="module")
def folder(standin) -> Path:
    return standin("depth-anything-v2-small")


def load(path: Path, **options) -> object:
    model = depth.DepthEstimator()
    model.load(Spec(name="it", path=path, options=options, threads=1), "cpu")
    return model


@pytest.fixture(scope="module")
def estimator(folder):
    return load(folder)


def cut(frame: np.ndarray, boxes, **options) -> inputs.Given:
    """Inputs as the runtime makes them."""
    described = payload.FrameRef(-1, 0, frame.shape, "|u1")
    return inputs.read(payload.InferBody((described,), tuple(boxes), options), [frame.tobytes()], lambda _: None)


def direct(path: Path, frame: np.ndarray) -> np.ndarray:
    """What a user of transformers gets."""
    processor = AutoImageProcessor.from_pretrained(path)
    model = AutoModelForDepthEstimation.from_pretrained(path).eval()
    with torch.inference_mode():
        outputs = model(**processor(Image.fromarray(frame), return_tensors="pt"))
    (found,) = processor.post_process_depth_estimation(outputs, target_sizes=[frame.shape[:2]])
    return found["predicted_depth"].numpy().reshape(frame.shape[:2])


def test_depth_is_that_of_the_library(estimator, folder, bus, zidane):
    for frame in (bus, zidane):
        (found,) = estimator.predict([Input(frame, {})])
        assert (found.depth.shape, found.depth.dtype, found.origin) == (frame.shape[:2], np.float32, (0, 0))
        np.testing.assert_allclose(found.depth, direct(folder, frame), atol=1e-4)
        assert np.ptp(found.depth) > 1


def test_near_stays_large(folder, tmp_path, bus):
    """Nothing on the way turns the map round, scales it or shifts it: twice the network's output is twice the depth."""
    path = tmp_path / "model"
    shutil.copytree(folder, path)
    weights = load_file(path / "model.safetensors")
    last = [name for name in weights if name.startswith("head.conv3")]
    save_file({**weights, **{name: weights[name] * 2 for name in last}}, path / "model.safetensors", {"format": "pt"})
    ((once,), (twice,)) = (load(p).predict([Input(bus, {})]) for p in (folder, path))
    np.testing.assert_allclose(twice.depth, 2 * once.depth, atol=1e-3)
    assert twice.median == pytest.approx(2 * once.median, rel=1e-3)


def test_boxes_get_their_part_of_the_frames_map(estimator, folder, bus, monkeypatch):
    frames: list[int] = []
    whole = estimator._forward
    monkeypatch.setattr(estimator, "_forward", lambda some: frames.append(len(some)) or whole(some))
    given = cut(bus, BOXES)
    answers = [a.moved(*corner) for a, corner in zip(estimator.predict(given.items), given.corners, strict=True)]
    expected = direct(folder, bus)
    for answer, (x1, y1, x2, y2) in zip(answers, PIXELS, strict=True):
        assert answer.origin == (x1, y1)
        np.testing.assert_allclose(answer.depth, expected[y1:y2, x1:x2], atol=1e-4)
        assert answer.median == pytest.approx(float(np.median(expected[y1:y2, x1:x2])), abs=1e-4)
    assert frames == [1]


def test_a_camera_frame_is_run_once_for_all_its_boxes(estimator, bus, monkeypatch):
    """Converted once too: all boxes look at one object."""
    i420 = cv2.cvtColor(bus, cv2.COLOR_RGB2YUV_I420)
    described = payload.FrameRef(-1, 0, i420.shape, "|u1", "i420")
    body = payload.InferBody((described,), tuple(BOXES))
    given = inputs.read(body, [i420.tobytes()], lambda _: None)
    sizes: list[int] = []
    forward = estimator._forward
    monkeypatch.setattr(estimator, "_forward", lambda frames: sizes.append(len(frames)) or forward(frames))
    answers = estimator.predict(given.items)
    assert sizes == [1]
    expected = estimator.predict(cut(cv2.cvtColor(i420, cv2.COLOR_YUV2RGB_I420), BOXES).items)
    for answer, like in zip(answers, expected, strict=True):
        np.testing.assert_allclose(answer.depth, like.depth, atol=1e-4)


def test_a_part_of_a_map_travels(estimator, bus):
    """It is a strided view of the whole map."""
    (answer, *_) = estimator.predict(cut(bus, BOXES).items)
    raw, _ = payload.pack_result(payload.ResultBody([answer], many=True), lambda _: None)
    (arrived,) = payload.result_decoder(lambda *_: None)(raw).results
    np.testing.assert_array_equal(arrived.depth, answer.depth)


def test_a_batch_answers_as_its_members_alone(estimator, bus, zidane):
    items = [Input(bus, {}), *cut(zidane, [(0, 0, 300, 300)]).items, Input(bus[::-1], {}), *cut(bus, BOXES).items]
    for together, item in zip(estimator.predict(items), items, strict=True):
        (alone,) = estimator.predict([item])
        np.testing.assert_allclose(together.depth, alone.depth, atol=1e-4)


def test_frames_of_one_size_share_a_pass(estimator, bus, zidane, monkeypatch):
    sizes: list[int] = []
    whole = estimator._forward
    monkeypatch.setattr(estimator, "_forward", lambda some: sizes.append(len(some)) or whole(some))
    estimator.predict([Input(frame, {"max_batch": 2}) for frame in (bus, zidane, bus[::-1], bus[:, ::-1])])
    assert sizes == [2, 1, 1]


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 17, 3), (80, 10, 3)])
def test_small_and_long_pictures(estimator, folder, shape):
    frame = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    (found,) = estimator.predict([Input(frame, {})])
    np.testing.assert_allclose(found.depth, direct(folder, frame), atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 9, 3), (900, 3, 3), (300, 16384, 3)])
def test_too_long_a_picture_is_refused(estimator, shape):
    with pytest.raises(InvalidInput, match="8:1"):
        estimator.predict([Input(np.zeros(shape, np.uint8), {})])


def test_a_narrow_box_is_fine(estimator, bus):
    (found,) = estimator.predict(cut(bus, [(400, 0, 401, 1080)]).items)
    assert found.depth.shape == (1080, 1)


def test_a_checkpoint_for_metres_is_refused(folder, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(folder, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "depth_estimation_type": "metric", "max_depth": 20}))
    with pytest.raises(LoadFailed, match="metric"):
        load(path)
