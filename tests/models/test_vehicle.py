"""The vehicle classifier against torchvision, on the same state dict and the same photographs."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

vehicle = pytest.importorskip("workers.models.vehicle")
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torchvision import models as torchvision_models  # noqa: E402
from torchvision import transforms  # noqa: E402

from workers.models.base import Input, Spec  # noqa: E402
from zoo.errors import InvalidInput, LoadFailed  # noqa: E402
from zoo.results import Classification  # noqa: E402

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def folder(standin) -> Path:
    return standin("vehicle-segment-classification")


@pytest.fixture(scope="module")
def tensors(folder) -> dict[str, torch.Tensor]:
    return torch.load(folder / "pytorch_model.bin", weights_only=True)


def load(path: Path, *, trust: bool = True, **options):
    model = vehicle.VehicleClassifier()
    model.load(Spec(name="it", path=path, options=options, threads=1, trust_pickle=trust), "cpu")
    return model


@pytest.fixture(scope="module")
def classifier(folder):
    return load(folder)


@pytest.fixture
def labelled(folder, tmp_path) -> Path:
    """A folder with the labels alone."""
    shutil.copy(folder / "classes.txt", tmp_path)
    return tmp_path


def ask(model, *frames, **options):
    return model.predict([Input(frame, options) for frame in frames])


def as_dict(found) -> dict[str, float]:
    return dict(zip(found.labels, found.scores.tolist(), strict=True))


def direct(folder: Path, frame: np.ndarray, *, side: int = 224, half: bool = False) -> dict[str, float]:
    """As the published model's card has it."""
    labels = (folder / "classes.txt").read_text().splitlines()
    network = torchvision_models.resnet50(num_classes=len(labels)).eval()
    network.load_state_dict(torch.load(folder / "pytorch_model.bin", weights_only=True))
    prepare = transforms.Compose(
        [
            transforms.Resize((side, side)),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    pixels = prepare(Image.fromarray(frame))[None]
    with torch.inference_mode():
        logits = network.half()(pixels.half()).float() if half else network(pixels)
    return dict(zip(labels, logits.softmax(-1)[0].tolist(), strict=True))


def test_probabilities_are_those_of_the_library(classifier, folder, bus):
    (found,) = ask(classifier, bus)
    assert isinstance(found, Classification)
    assert as_dict(found) == pytest.approx(direct(folder, bus), abs=1e-6)
    assert (np.diff(found.scores) <= 0).all()
    assert found.scores.dtype == np.float32


def test_half_precision(folder, bus, monkeypatch):
    monkeypatch.setattr(vehicle, "SIDE", 64)  # a CPU takes seconds for a picture of 224x224 in half precision
    model = load(folder, half=True)
    (found,) = ask(model, bus)
    assert as_dict(found) == pytest.approx(direct(folder, bus, side=64, half=True), abs=1e-6)
    assert found.scores.dtype == np.float32
    with pytest.raises(InvalidInput, match="half"):
        ask(model, bus, half=True)


def test_a_batch_answers_as_its_members_alone_in_one_pass(classifier, bus, zidane):
    frames = [bus, zidane, bus[::-1], bus[10:60, 20:50], bus[:, :, ::-1]]
    passes: list[int] = []
    hook = classifier._network.register_forward_pre_hook(lambda _, given: passes.append(len(given[0])))
    batch = ask(classifier, *frames)
    ask(classifier, *frames, max_batch=2)
    hook.remove()
    assert passes == [5, 2, 2, 1]
    assert classifier.max_batch == 32
    for together, frame in zip(batch, frames, strict=True):
        (alone,) = ask(classifier, frame)
        assert as_dict(together) == pytest.approx(as_dict(alone), abs=1e-5)
    assert as_dict(batch[0]) != pytest.approx(as_dict(batch[4]), abs=1e-4)  # the order of colours counts


def test_labels_come_from_the_folder_and_top_k(labelled, tensors, bus):
    save_file({k: v.contiguous() for k, v in tensors.items()}, labelled / "model.safetensors")
    names = [f"kind {i}" for i in range(11)]
    (labelled / "classes.txt").write_text("\n".join(names) + "\n\n")
    (found,) = ask(load(labelled, trust=False), bus, top_k=3)
    assert len(found.labels) == 3
    assert set(found.labels) < set(names)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"top_k": 0}, "top_k"),
        ({"top_k": "two"}, "top_k"),
        ({"topk": 2}, "topk"),
        ({"max_batch": 0}, "max_batch"),
        ({"max_batch": float("nan")}, "max_batch"),
    ],
)
def test_a_wrong_option_is_named(classifier, folder, bus, options, field):
    with pytest.raises(InvalidInput, match=field):
        ask(classifier, bus, **options)
    with pytest.raises(LoadFailed, match=field):
        load(folder, **options)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 900, 3), (900, 2, 3)])
def test_the_smallest_pictures_are_answered(classifier, shape):
    assert ask(classifier, np.full(shape, 7, np.uint8))[0].scores.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda tensors: {f"module.{k}": v for k, v in tensors.items()},
        lambda tensors: {f"module.model.{k}": v for k, v in tensors.items()},
        lambda tensors: {"state_dict": tensors, "epoch": 7},
    ],
)
def test_what_a_training_script_puts_around_the_tensors_is_taken_off(classifier, labelled, tensors, bus, wrapped):
    torch.save(wrapped(tensors), labelled / "pytorch_model.bin")
    assert as_dict(ask(load(labelled), bus)[0]) == as_dict(ask(classifier, bus)[0])


def test_a_pickle_is_read_only_when_it_is_trusted_and_runs_no_code_even_then(folder, labelled):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (labelled / "ran",))

    torch.save({"fc.weight": Evil()}, labelled / "pytorch_model.bin")
    with pytest.raises(LoadFailed, match="trust_pickle"):
        load(labelled, trust=False)
    with pytest.raises(LoadFailed, match=r"pytorch_model\.bin"):
        load(labelled)
    assert not (labelled / "ran").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "damaged"),
        (b"not a checkpoint at all", "damaged"),
        ([1, 2], "state dict"),
        ({}, "state dict"),
        ({"epoch": 3}, "state dict"),
        ({"conv1.weight": torch.zeros(1)}, r"fc\.weight"),
        ({"fc.weight": torch.zeros(11, 2048)}, "not a checkpoint of a torchvision ResNet-50"),
    ],
)
def test_what_is_no_resnet50_fails_the_load(labelled, content, reason):
    file = labelled / "pytorch_model.bin"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(LoadFailed, match=reason):
        load(labelled)


@pytest.mark.parametrize(
    ("text", "reason"), [(None, r"classes\.txt"), ("car\nbus\n", "2 labels.* 11 classes"), ("", "0 labels")]
)
def test_labels_missing_or_too_few_fail_the_load(labelled, folder, text, reason):
    (labelled / "pytorch_model.bin").symlink_to(folder / "pytorch_model.bin")
    (labelled / "classes.txt").unlink() if text is None else (labelled / "classes.txt").write_text(text)
    with pytest.raises(LoadFailed, match=reason):
        load(labelled)
