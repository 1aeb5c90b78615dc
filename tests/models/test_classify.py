"""The transformers adapter against transformers itself, on the same folder and the same photographs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

classify = pytest.importorskip("workers.models.classify")
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import (  # noqa: E402
    AutoImageProcessor,
    AutoModelForImageClassification,
    ConvNextImageProcessor,
    ViTImageProcessor,
    pipeline,
)

from workers.models import standins  # noqa: E402
from workers.models.base import Input, Spec  # noqa: E402
from workers.models.shared import pictures  # noqa: E402
from zoo.errors import InvalidInput, LoadFailed  # noqa: E402
from zoo.labels import folded  # noqa: E402

pytestmark = pytest.mark.models

NAMES = ["vit-age-classifier", "weather-classification", "pet-classifier"]  # ViT, SigLIP, ResNet


@pytest.fixture(scope="module")
def folders(standin) -> dict[str, Path]:
    return {name: standin(name) for name in NAMES}


def load(path: Path, **options) -> object:
    model = classify.ImageClassifier()
    model.load(Spec(name="it", path=path, options=options, threads=1), "cpu")
    return model


@pytest.fixture(scope="module")
def models(folders):
    return {name: load(path) for name, path in folders.items()}


def ask(model, *frames, **options):
    return model.predict([Input(frame, options) for frame in frames])


def as_dict(found) -> dict[str, float]:
    return dict(zip(found.labels, found.scores.tolist(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_probabilities_are_those_of_the_library(name, models, folders, bus):
    (found,) = ask(models[name], bus)
    processor = AutoImageProcessor.from_pretrained(folders[name])
    model = AutoModelForImageClassification.from_pretrained(folders[name]).eval()
    with torch.inference_mode():
        logits = model(**processor(Image.fromarray(bus), return_tensors="pt")).logits[0]
    expected = {model.config.id2label[i]: p for i, p in enumerate(logits.softmax(-1).tolist())}
    assert as_dict(found) == pytest.approx(expected, abs=1e-5)
    assert (np.diff(found.scores) <= 0).all()
    assert found.scores.sum() == pytest.approx(1, abs=1e-5)
    assert found.scores.dtype == np.float32


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_answers_as_its_members_alone(name, models, bus, zidane):
    frames = [bus, zidane, bus[::-1], bus[10:60, 20:50]]
    for together, frame in zip(ask(models[name], *frames), frames, strict=True):
        (alone,) = ask(models[name], frame)
        assert as_dict(together) == pytest.approx(as_dict(alone), abs=1e-5)


def test_labels_come_from_the_checkpoint(models, folders):
    written = json.loads((folders["vit-age-classifier"] / "config.json").read_text())["id2label"]
    (found,) = ask(models["vit-age-classifier"], np.zeros((50, 50, 3), np.uint8))
    assert sorted(found.labels) == sorted(written.values())


def test_strided_and_read_only_views(models, bus):
    bgr = np.ascontiguousarray(bus[..., ::-1])
    bgr.flags.writeable = False
    model = models["vit-age-classifier"]
    (found,) = ask(model, bus[200:900, 100:700])
    (of_bgr,) = ask(model, bgr[200:900, 100:700, ::-1])
    (wrong_order,) = ask(model, bgr[200:900, 100:700])
    assert as_dict(found) == as_dict(of_bgr)
    assert as_dict(found) != pytest.approx(as_dict(wrong_order), abs=1e-4)


def test_top_k(models, bus):
    model = models["vit-age-classifier"]
    (all_of_them,) = ask(model, bus)
    (two,) = ask(model, bus, top_k=2)
    assert two.labels == all_of_them.labels[:2]
    assert len(ask(model, bus, top_k=100)[0].labels) == 9
    mixed = model.predict([Input(bus, {"top_k": 1}), Input(bus, {})])
    assert [len(found.labels) for found in mixed] == [1, 9]


@pytest.mark.parametrize(
    ("options", "field"), [({"top_k": 0}, "top_k"), ({"top_k": "two"}, "top_k"), ({"topk": 2}, "topk")]
)
def test_a_wrong_option_is_named(models, bus, options, field):
    with pytest.raises(InvalidInput, match=field):
        ask(models["pet-classifier"], bus, **options)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 900, 3), (900, 2, 3)])
def test_the_smallest_pictures_are_answered(models, name, shape):
    assert ask(models[name], np.full(shape, 7, np.uint8))[0].scores.sum() == pytest.approx(1, abs=1e-5)


def test_of_a_strip_only_what_reaches_the_network_is_scaled(models, bus):
    """ResNet's processor scales the shorter side to 256 and keeps the middle: of 1x16384 it would make gigabytes."""
    strip = np.tile(bus[500:501], (1, 20, 1))[:, :16200]
    (found,) = ask(models["pet-classifier"], strip)
    (middle,) = ask(models["pet-classifier"], strip[:, 8092:8108])
    assert as_dict(found) == as_dict(middle)
    (whole,) = ask(models["vit-age-classifier"], strip)  # it sees all of any picture
    (part,) = ask(models["vit-age-classifier"], strip[:, 8092:8108])
    assert as_dict(whole) != pytest.approx(as_dict(part), abs=1e-3)


def test_a_strip_is_what_the_library_makes_of_it(models, folders, bus):
    """Up to 16 times as long as wide exactly; beyond, all but what the scaling moves by less than a pixel."""
    processor = AutoImageProcessor.from_pretrained(folders["pet-classifier"])
    model = AutoModelForImageClassification.from_pretrained(folders["pet-classifier"]).eval()
    for strip, tolerance in ((bus[:1072, 400:467], 1e-5), (bus[:, 400:420], 0.02)):
        (found,) = ask(models["pet-classifier"], strip)
        with torch.inference_mode():
            logits = model(**processor(Image.fromarray(strip), return_tensors="pt")).logits[0]
        expected = {model.config.id2label[i]: p for i, p in enumerate(logits.softmax(-1).tolist())}
        assert as_dict(found) == pytest.approx(expected, abs=tolerance)


def test_a_processor_that_scales_all_of_a_picture_gets_all_of_it():
    def keeps(**how) -> bool:
        return pictures.keeps_middle(ConvNextImageProcessor(**how))

    assert keeps(size={"shortest_edge": 224})
    assert not keeps(size={"shortest_edge": 384})
    assert not pictures.keeps_middle(ViTImageProcessor())


def test_pickled_weights_are_refused(folders, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(folders["pet-classifier"], path)
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    with pytest.raises(LoadFailed, match="trust_pickle"):
        load(path)


def test_a_checkpoint_without_its_head_is_not_served_with_a_random_one(folders, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(folders["vit-age-classifier"], path)
    weights = {k: v for k, v in load_file(path / "model.safetensors").items() if not k.startswith("classifier")}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LoadFailed, match="classifier"):
        load(path)


@pytest.fixture
def unnamed(folders, tmp_path) -> Path:
    """A folder whose config.json names none of its two classes."""
    path = tmp_path / "model"
    shutil.copytree(folders["pet-classifier"], path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if k not in ("id2label", "label2id")})
    )
    return path


def test_a_checkpoint_without_names_is_not_served_under_made_up_ones(unnamed, bus):
    with pytest.raises(LoadFailed, match="names none of its 2 classes"):
        load(unnamed)
    with pytest.raises(LoadFailed, match="names none of its 2 classes"):
        load(unnamed, labels=["cat"])
    (found,) = ask(load(unnamed, labels=["cat", "dog"]), bus)
    assert sorted(found.labels) == ["cat", "dog"]


def test_names_of_the_configuration_do_not_replace_those_of_the_checkpoint(folders, bus):
    model = load(folders["pet-classifier"], labels=["day", "night"])
    assert sorted(map(folded, ask(model, bus)[0].labels)) == ["cats", "dogs"]
    with pytest.raises(InvalidInput, match="labels is set in config"):
        ask(model, bus, labels=["day", "night"])


def changed(folder: Path, target: Path, **config) -> Path:
    """A copy of the folder, whose config.json says so."""
    shutil.copytree(folder, target)
    text = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(text | config))
    return target


def of_the_library(path: Path, frame: np.ndarray) -> dict[str, float]:
    """What the library's own pipeline answers."""
    answers = pipeline("image-classification", model=str(path), device=-1)(Image.fromarray(frame), top_k=100)
    return {answer["label"]: answer["score"] for answer in answers}


def test_labels_that_may_apply_together_score_each_for_itself_as_by_the_library(folders, tmp_path, bus, zidane):
    path = changed(folders["vit-age-classifier"], tmp_path / "model", problem_type="multi_label_classification")
    model = load(path)
    for found, frame in zip(ask(model, bus, zidane), (bus, zidane), strict=True):
        assert found.multi_label
        assert as_dict(found) == pytest.approx(of_the_library(path, frame), abs=1e-5)
        assert found.scores.sum() > 1.5
        assert (np.diff(found.scores) <= 0).all()
        assert found.likely() == [label for label, score in as_dict(found).items() if score >= 0.5]
    assert len(ask(model, bus, top_k=2)[0].labels) == 2


@pytest.mark.parametrize("problem", [None, "single_label_classification"])
def test_labels_of_which_one_applies_share_a_sum_of_1_as_by_the_library(problem, folders, tmp_path, bus):
    path = changed(folders["vit-age-classifier"], tmp_path / "model", problem_type=problem)
    (found,) = ask(load(path), bus)
    assert not found.multi_label
    assert as_dict(found) == pytest.approx(of_the_library(path, bus), abs=1e-5)
    assert found.scores.sum() == pytest.approx(1, abs=1e-5)


def test_a_single_class_is_not_always_certain(folders, tmp_path, bus):
    path = changed(folders["vit-age-classifier"], tmp_path / "model", id2label={"0": "smoke"}, label2id={"smoke": 0})
    weights = load_file(path / "model.safetensors")
    head = {name: value[:1].clone() for name, value in weights.items() if name.startswith("classifier.")}
    save_file(weights | head, path / "model.safetensors", metadata={"format": "pt"})
    (found,) = ask(load(path), bus)
    assert (found.labels, found.multi_label) == (["smoke"], True)
    assert found.score == pytest.approx(of_the_library(path, bus)["smoke"], abs=1e-5)
    assert found.score < 0.999


def test_a_checkpoint_that_gives_numbers_is_no_classifier(folders, tmp_path):
    path = changed(folders["vit-age-classifier"], tmp_path / "model", problem_type="regression")
    with pytest.raises(LoadFailed, match="regression") as refused:
        load(path)
    assert not refused.value.retryable


# ---------------------------------------------------------------- weights under timm's names


@pytest.fixture
def timms(folders, tmp_path) -> tuple[Path, torch.nn.Module]:
    """A folder whose weights timm has saved, and the network of timm's that they are of."""
    timm = pytest.importorskip("timm")
    path = tmp_path / "model"
    shutil.copytree(folders["vit-age-classifier"], path)
    config = json.loads((path / "config.json").read_text())
    with standins.common.repeatable(0):
        network = timm.models.VisionTransformer(
            embed_dim=config["hidden_size"],
            depth=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            mlp_ratio=config["intermediate_size"] / config["hidden_size"],
            num_classes=len(config["id2label"]),
        )
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    save_file(network.state_dict(), path / "model.safetensors", metadata={"format": "pt"})
    return path, network.eval()


def test_weights_that_timm_saved_answer_as_in_timm(timms, bus):
    path, network = timms
    pixels = AutoImageProcessor.from_pretrained(path)(Image.fromarray(bus), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        probabilities = network(pixels).softmax(-1)[0].tolist()
    labels = json.loads((path / "config.json").read_text())["id2label"]
    expected = {labels[str(i)]: p for i, p in enumerate(probabilities)}
    assert max(probabilities) - min(probabilities) > 0.1
    assert as_dict(ask(load(path), bus)[0]) == pytest.approx(expected, abs=1e-5)


def test_weights_that_timm_saved_as_a_pickle_want_trust(timms, bus):
    path, network = timms
    (found,) = ask(load(path), bus)
    (path / "model.safetensors").unlink()
    torch.save(network.state_dict(), path / "pytorch_model.bin")
    with pytest.raises(LoadFailed, match="trust_pickle"):
        load(path)
    model = classify.ImageClassifier()
    model.load(Spec(name="it", path=path, threads=1, trust_pickle=True), "cpu")
    assert as_dict(ask(model, bus)[0]) == pytest.approx(as_dict(found), abs=1e-6)


def test_weights_that_timm_saved_have_to_be_all_there(timms):
    path, network = timms
    kept = {name: value for name, value in network.state_dict().items() if name != "blocks.1.mlp.fc1.weight"}
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LoadFailed, match=r"lacks weights for vit.*fc1"):
        load(path)
