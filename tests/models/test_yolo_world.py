"""The YOLO-World adapter against ultralytics and transformers, on the same checkpoint, texts and photographs."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

yolo_world = pytest.importorskip("workers.models.yolo_world")
import torch  # noqa: E402
from transformers import AutoTokenizer, CLIPTextModelWithProjection  # noqa: E402
from ultralytics import YOLO, YOLOWorld  # noqa: E402

from workers.models.base import Input, Spec  # noqa: E402
from zoo.errors import InvalidInput, LoadFailed, ModelUnavailable  # noqa: E402
from zoo.results import Detections  # noqa: E402
from zoo.weights import inventory as weights_of  # noqa: E402

pytestmark = pytest.mark.models

PROMPTS = ["a red bus", "person with a parcel", "knife"]
LOW = {"conf": 0.01, "max_det": 20}


@pytest.fixture(scope="module")
def weights(standin) -> Path:
    return standin("yolo-world-s")


def load(path: Path, *, trust: bool = True, **options):
    model = yolo_world.OpenVocabularyDetector()
    model.load(Spec(name="it", path=path, options=options, threads=1, trust_pickle=trust), "cpu")
    return model


@pytest.fixture(scope="module")
def detector(weights):
    return load(weights)


@pytest.fixture
def alone(weights, tmp_path) -> Path:
    """The checkpoint without a text encoder beside it."""
    shutil.copy(weights, tmp_path)
    return tmp_path / weights.name


def ask(model, *frames, **options):
    return model.predict([Input(frame, options) for frame in frames])


def vectors(folder: Path, prompts) -> torch.Tensor:
    """(n, 512) of unit length, by transformers."""
    tokens = AutoTokenizer.from_pretrained(folder)(list(prompts), padding=True, return_tensors="pt")
    with torch.inference_mode():
        found = CLIPTextModelWithProjection.from_pretrained(folder).eval()(**tokens).text_embeds
    return found / found.norm(dim=-1, keepdim=True)


def direct(path: Path, frame: np.ndarray, prompts=None, **options):
    """What a user of ultralytics gets from a BGR frame, with vectors set by hand as `set_classes` would set them."""
    world = YOLOWorld(str(path))
    if prompts is not None:
        world.model.txt_feats = vectors(path.parent / "text_encoder", prompts)[None]
        world.model.model[-1].nc = len(prompts)
        world.model.names = dict(enumerate(prompts))
    return world.predict(np.ascontiguousarray(frame[..., ::-1]), verbose=False, device="cpu", **options)[0]


def same(a, b) -> None:
    np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-2)
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-4)
    assert a.labels == b.labels


def test_boxes_for_prompts_are_those_of_the_library(detector, weights, bus):
    (found,) = ask(detector, bus, prompts=PROMPTS, **LOW)
    expected = direct(weights, bus, PROMPTS, iou=0.45, **LOW)
    assert isinstance(found, Detections)
    assert len(found.boxes) > 0
    np.testing.assert_allclose(found.boxes, expected.boxes.xyxy.numpy(), atol=1e-2)
    np.testing.assert_allclose(found.scores, expected.boxes.conf.numpy(), atol=1e-5)
    assert found.labels == [PROMPTS[int(i)] for i in expected.boxes.cls]
    assert found.labels == [PROMPTS[i] for i in found.class_ids]


def test_without_prompts_it_looks_for_the_classes_of_the_checkpoint(detector, weights, bus):
    (found,) = ask(detector, bus, **LOW)
    expected = direct(weights, bus, iou=0.45, **LOW)
    assert len(set(found.labels)) > 1
    assert found.labels == [expected.names[int(i)] for i in expected.boxes.cls]
    np.testing.assert_allclose(found.boxes, expected.boxes.xyxy.numpy(), atol=1e-2)
    np.testing.assert_allclose(found.scores, expected.boxes.conf.numpy(), atol=1e-5)


def test_a_batch_answers_as_its_members_alone_whatever_their_prompts(detector, bus):
    crop = bus[100:500, 200:700]
    inputs = [
        Input(bus, {"prompts": PROMPTS, **LOW}),
        Input(crop, {"prompts": PROMPTS[:1], **LOW}),
        Input(bus, LOW),
        Input(crop, {"prompts": PROMPTS, **LOW}),
        Input(bus[:, ::-1], {"prompts": PROMPTS, **LOW}),
    ]
    for together, item in zip(detector.predict(inputs), inputs, strict=True):
        (single,) = detector.predict([item])
        assert len(single.boxes) > 0
        same(together, single)


def test_vectors_are_made_once_per_set_of_prompts(weights, bus):
    model = load(weights, imgsz=64)
    made: list[tuple[str, ...]] = []
    compute = model._features._compute
    model._features._compute = lambda texts: made.append(texts) or compute(texts)
    for _ in range(3):
        ask(model, bus, prompts=PROMPTS)
        ask(model, bus, prompts=PROMPTS[:2])
    assert len(made) == 2
    for i in range(100):
        model._features((PROMPTS[0],) * (i % 2 + 1) + (PROMPTS[1],) * (i // 2))
    assert len(model._features._kept) < 50
    assert model.max_batch == 8


def test_vectors_from_a_file_answer_as_the_encoder_does(detector, weights, alone, bus):
    rows = vectors(weights.parent / "text_encoder", PROMPTS).numpy()
    np.savez(alone.parent / "embeddings.npz", names=PROMPTS, embeddings=rows)
    model = load(alone)
    same(ask(model, bus, prompts=PROMPTS, **LOW)[0], ask(detector, bus, prompts=PROMPTS, **LOW)[0])
    (mixed,) = ask(model, bus, prompts=["person", PROMPTS[0]], **LOW)  # the checkpoint's own are known too
    assert len(mixed.boxes) > 0
    with pytest.raises(InvalidInput, match=r"'gun'.*a red bus"):
        ask(model, bus, prompts=[PROMPTS[0], "gun"])


def test_without_vectors_only_the_classes_of_the_checkpoint_can_be_asked_for(alone, bus):
    model = load(alone)
    (found,) = ask(model, bus, prompts=["bus", "car"], **LOW)
    assert set(found.labels) <= {"bus", "car"}
    with pytest.raises(InvalidInput, match=r"'a red bus'.*text_encoder.*embeddings\.npz.*person, bicycle"):
        ask(model, bus, prompts=["bus", "a red bus"])
    with pytest.raises(LoadFailed, match="a red bus"):
        load(alone, prompts=["a red bus"])


def test_the_classes_of_the_checkpoint_can_be_asked_for_in_any_spelling(alone, bus):
    model = load(alone)
    (found,) = ask(model, bus, prompts=["Bus", "TRAFFIC_LIGHT", "car"], **LOW)
    (own,) = ask(model, bus, prompts=["bus", "traffic light", "car"], **LOW)
    np.testing.assert_array_equal(found.boxes, own.boxes)
    assert len({*found.labels}) > 1
    assert {*found.labels} <= {"Bus", "TRAFFIC_LIGHT", "car"}  # as it was asked


def test_prompts_of_the_configuration(weights, bus):
    model = load(weights, prompts=PROMPTS, conf=0.01)
    assert set(ask(model, bus)[0].labels) <= set(PROMPTS)
    assert set(ask(model, bus, prompts=["dog"])[0].labels) <= {"dog"}


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"prompts": []}, "prompts"),
        ({"prompts": ["a"] * 257}, "prompts"),
        ({"prompts": ["a" * 201]}, "prompts"),
        ({"prompts": [""]}, "prompts"),
        ({"prompts": [" "]}, "prompts"),
        ({"prompts": ["a", 7]}, "prompts"),
        ({"prompts": "knife"}, "prompts"),
        ({"prompts": ["x" * 100]}, "tokens"),  # more than CLIP reads: this tokenizer knows letters only
        ({"classes": ["knife"]}, "classes"),
        ({"iou": float("nan")}, "iou"),
        ({"half": True}, "half"),
        ({"text_encoder": "elsewhere"}, "text_encoder"),
    ],
)
def test_a_wrong_option_is_named(detector, bus, options, field):
    with pytest.raises(InvalidInput, match=field):
        ask(detector, bus, **options)
    assert ask(detector, bus, imgsz=64)


def test_half_precision(detector, weights, bus):
    model = load(weights, half=True)
    assert model._network.model.model[0].conv.weight.dtype == torch.float16
    (half,), (single,) = (ask(m, bus, prompts=PROMPTS, conf=0.01, max_det=1) for m in (model, detector))
    assert (half.boxes.dtype, half.scores.dtype) == (np.float32, np.float32)
    np.testing.assert_allclose(half.boxes, single.boxes, atol=25)  # see test_yolo.py
    assert half.labels == single.labels


def test_an_encoder_elsewhere(detector, weights, alone, bus):
    shutil.copytree(weights.parent / "text_encoder", alone.parent / "clip")
    shutil.copy(weights_of.marker(weights), alone.parent)
    model = load(alone, text_encoder="clip")
    same(ask(model, bus, prompts=PROMPTS, **LOW)[0], ask(detector, bus, prompts=PROMPTS, **LOW)[0])
    with pytest.raises(LoadFailed, match=r"nowhere must hold"):
        load(alone, text_encoder="nowhere")


def test_a_standin_encoder_never_speaks_for_real_weights(weights, alone):
    shutil.copytree(weights.parent / "text_encoder", alone.parent / "text_encoder")
    with pytest.raises(LoadFailed, match="stand-in"):
        load(alone)


@pytest.mark.parametrize("gone", ["model.safetensors", "config.json", "vocabulary"])
def test_half_an_encoder_fails_the_load(weights, alone, gone):
    folder = alone.parent / "text_encoder"
    shutil.copytree(weights.parent / "text_encoder", folder)
    weights_of.marker(folder).unlink()
    for name in ["vocab.json", "tokenizer.json"] if gone == "vocabulary" else [gone]:
        (folder / name).unlink()
    with pytest.raises(LoadFailed, match="text_encoder must hold"):
        load(alone)


def test_a_tokenizer_that_cannot_pad_fails_the_load(weights, alone):
    folder = alone.parent / "text_encoder"
    shutil.copytree(weights.parent / "text_encoder", folder)
    weights_of.marker(folder).unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(LoadFailed, match=r"text_encoder has no padding token.*tokenizer_config\.json"):
        load(alone)


def test_an_encoder_of_another_width_fails_the_load(weights, alone):
    folder = alone.parent / "text_encoder"
    shutil.copytree(weights.parent / "text_encoder", folder)
    config = CLIPTextModelWithProjection.from_pretrained(folder).config
    config.projection_dim = 64
    CLIPTextModelWithProjection(config).save_pretrained(folder)
    with pytest.raises(LoadFailed, match="64 numbers"):
        load(alone)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"names": ["a", "b"], "embeddings": np.eye(1, 512)}, "2 names"),
        ({"names": ["a"], "embeddings": np.eye(1, 64)}, "512"),
        ({"names": ["a"], "embeddings": np.ones((1, 512))}, "unit length"),
        ({"names": ["a"], "embeddings": np.full((1, 512), np.nan)}, "unit length"),
        ({"names": np.array(["a"], object), "embeddings": np.eye(1, 512)}, "allow_pickle"),
        ({"embeddings": np.eye(1, 512)}, "names"),
    ],
)
def test_a_wrong_file_of_vectors_fails_the_load(alone, content, reason):
    np.savez(alone.parent / "embeddings.npz", **content)
    with pytest.raises(LoadFailed, match=reason):
        load(alone)


def test_weights_that_cannot_be_served(weights, alone, tmp_path):
    with pytest.raises(ModelUnavailable, match="zoo pull"):
        load(tmp_path / "other.pt")
    with pytest.raises(LoadFailed, match="trust_pickle"):
        load(weights, trust=False)
    alone.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(LoadFailed, match="damaged"):
        load(alone)
    YOLO("yolo11n.yaml").save(alone)
    with pytest.raises(LoadFailed, match="not a YOLO-World checkpoint"):
        load(alone)
