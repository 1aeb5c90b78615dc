"""SegFormer against transformers itself, on the same folder, the same photographs and crops."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

segformer = pytest.importorskip("workers.models.segformer")
import torch  # noqa: E402
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation  # noqa: E402

from workers import inputs  # noqa: E402
from workers.models.base import Input, Spec  # noqa: E402
from zoo.demo.scenes import photograph  # noqa: E402
from zoo.errors import InvalidInput, LoadFailed  # noqa: E402
from zoo.wire import payload  # noqa: E402

pytestmark = pytest.mark.models

PEOPLE = [(50, 395, 245, 905), (222, 405, 345, 860), (670, 380, 810, 880)]


@pytest.fixture(scope="module")
def folder(standin) -> Path:
    return standin("segformer-b2-clothes")


def load(path: Path, **options) -> object:
    model = segformer.Segmenter()
    model.load(Spec(name="it", path=path, options=options, threads=1), "cpu")
    return model


@pytest.fixture(scope="module")
def segmenter(folder):
    return load(folder)


def ask(model, *frames, **options):
    return model.predict([Input(frame, options) for frame in frames])


def direct(path: Path, frame: np.ndarray) -> np.ndarray:
    """What a user of transformers gets."""
    processor = AutoImageProcessor.from_pretrained(path)
    model = AutoModelForSemanticSegmentation.from_pretrained(path).eval()
    with torch.inference_mode():
        outputs = model(**processor(Image.fromarray(frame), return_tensors="pt"))
    return processor.post_process_semantic_segmentation(outputs, target_sizes=[frame.shape[:2]])[0].numpy()


def same(a: np.ndarray, b: np.ndarray) -> None:
    """All but one pixel in ten thousand: where two classes score alike to the seventh digit, rounding decides."""
    assert a.shape == b.shape
    assert np.count_nonzero(a != b) <= 1e-4 * a.size


def test_masks_are_those_of_the_library(segmenter, folder, bus):
    frames = [bus, *(bus[y1:y2, x1:x2] for x1, y1, x2, y2 in PEOPLE)]
    for found, frame in zip(ask(segmenter, *frames), frames, strict=True):
        same(found.mask, direct(folder, frame))
        assert (found.mask.dtype, found.origin) == (np.uint8, (0, 0))
        assert len(np.unique(found.mask)) > 5


def test_labels_come_from_the_checkpoint(folder, tmp_path, bus):
    path = tmp_path / "model"
    shutil.copytree(folder, path)
    config = json.loads((path / "config.json").read_text())
    labels = [config["id2label"][str(i)] for i in range(18)]
    (found,) = ask(load(folder), bus)
    assert found.labels == labels
    config["id2label"]["4"] = "Poncho"
    (path / "config.json").write_text(json.dumps(config))
    assert ask(load(path), bus)[0].labels == [*labels[:4], "Poncho", *labels[5:]]


def test_coverage_is_the_share_of_all_pixels(segmenter, bus):
    (found,) = ask(segmenter, bus)
    for index, label in enumerate(found.labels):
        share = float((found.mask == index).mean())
        if label == "Background" or share < 0.01:
            assert label not in found.coverage
        else:
            assert found.coverage[label] == pytest.approx(share)
    shares = list(found.coverage.values())
    assert shares == sorted(shares, reverse=True)
    assert len(shares) > 3


def test_the_shares_of_classes_with_one_label_are_added(folder, tmp_path, bus):
    shutil.copytree(folder, tmp_path / "twice")
    config = tmp_path / "twice" / "config.json"
    told = json.loads(config.read_text())
    (plain,) = ask(load(folder), bus, min_coverage=0)
    first, second = list(plain.coverage)[:2]
    told["id2label"] = {key: first if label == second else label for key, label in told["id2label"].items()}
    config.write_text(json.dumps(told))
    (found,) = ask(load(tmp_path / "twice"), bus, min_coverage=0)
    assert found.coverage[first] == pytest.approx(plain.coverage[first] + plain.coverage[second])
    assert list(found.coverage.values()) == sorted(found.coverage.values(), reverse=True)


def test_min_coverage(segmenter, bus):
    (all_of_them,) = ask(segmenter, bus, min_coverage=0)
    (common,) = ask(segmenter, bus, min_coverage=0.07)
    assert set(all_of_them.coverage) == {all_of_them.labels[i] for i in np.unique(all_of_them.mask)} - {"Background"}
    assert 0 < len(common.coverage) < len(all_of_them.coverage)
    assert min(common.coverage.values()) >= 0.07
    assert ask(segmenter, bus, min_coverage=1)[0].coverage == {}


def test_crops_say_where_they_were(segmenter, folder, bus):
    described = payload.FrameRef(-1, 0, bus.shape, "|u1")
    given = inputs.read(payload.InferBody((described,), tuple(PEOPLE), {}), [bus.tobytes()], lambda _: None)
    answers = [a.moved(*corner) for a, corner in zip(segmenter.predict(given.items), given.corners, strict=True)]
    for answer, (x1, y1, x2, y2) in zip(answers, PEOPLE, strict=True):
        assert answer.origin == (x1, y1)
        same(answer.mask, direct(folder, bus[y1:y2, x1:x2]))


def test_a_batch_answers_as_its_members_alone(segmenter, bus):
    zidane = photograph("zidane.jpg")
    frames = [bus, zidane, bus[::-1], bus[10:60, 20:50]]
    alone = [ask(segmenter, frame)[0] for frame in frames]
    for how in ({}, {"max_batch": 3}):
        for together, single in zip(ask(segmenter, *frames, **how), alone, strict=True):
            same(together.mask, single.mask)


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 900, 3), (900, 1, 3)])
def test_the_smallest_pictures_are_answered(segmenter, folder, shape):
    frame = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    (found,) = ask(segmenter, frame)
    same(found.mask, direct(folder, frame))


def test_a_picture_whose_scores_would_take_gigabytes_is_refused(segmenter):
    with pytest.raises(InvalidInput, match=r"4096x4096.*8388608"):
        ask(segmenter, np.zeros((4096, 4096, 3), np.uint8))


def test_boxes_whose_masks_would_take_gigabytes_are_refused(segmenter):
    frame = np.zeros((2048, 4096, 3), np.uint8)
    box = (0, 0, 4096, 2048)
    with pytest.raises(InvalidInput, match="boxes: together"):
        segmenter.predict([Input(frame, {}, whole=frame, box=box)] * 17)


def test_more_classes_than_a_mask_can_tell_apart(folder, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(folder, path)
    config = json.loads((path / "config.json").read_text())
    many = {str(i): f"class {i}" for i in range(300)}
    (path / "config.json").write_text(json.dumps({**config, "id2label": many, "label2id": {}}))
    with pytest.raises(LoadFailed, match="300"):
        load(path)
