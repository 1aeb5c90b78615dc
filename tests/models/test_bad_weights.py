"""Weights that are missing, damaged or another model's: the load fails, and says of which model and where."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models.served import MODELS
from tests.support import Running, wait_until
from zoo import Client
from zoo.errors import LoadFailed, ModelUnavailable, ZooError

pytest.importorskip("workers.models.classify")
import torch
from safetensors.torch import load_file, save_file

from workers.models.base import Spec

pytestmark = [pytest.mark.models, pytest.mark.slow]

CONFIGURED = {model.name: model for model in MODELS}
CLASSIFIERS = ["vit-age-classifier", "weather-classification", "pet-classifier"]  # ViT, SigLIP, ResNet
FOLDERS = [
    *CLASSIFIERS, "coco-detector", "clip-vit-l", "fashion-clip", "xclip-base", "vitpose-small",
    "depth-anything-v2-small", "segformer-b2-clothes", "vehicle-segment-classification",
]  # fmt: skip
YOLOS = ["yolo11-face", "yolov8n-pose", "vehicle-damage-detection", "yolo-world-s"]
GRAPHS = ["onnx-detector", "onnx-classifier"]
FILES = ["osnet-x0-25", *YOLOS, *GRAPHS]
FAMILIES = [*FOLDERS, *FILES]
BESIDE = {  # what else has to lie beside the weights
    **dict.fromkeys(FOLDERS, ("config.json", "preprocessor_config.json")),
    "vehicle-segment-classification": ("classes.txt",),
    "yolo-world-s": tuple(
        f"text_encoder/{name}" for name in ("config.json", "tokenizer_config.json", "model.safetensors")
    ),
}
TOKENIZERS = {  # would be made of vocab.json and merges.txt if they were not there
    "fashion-clip": "tokenizer.json", "xclip-base": "tokenizer.json", "yolo-world-s": "text_encoder/tokenizer.json"
}  # fmt: skip
TEXT = b"This is no checkpoint.\n"


def load(name: str, path: Path | None, **options: Any) -> Any:
    """The model as config.toml has it, with these weights."""
    model = CONFIGURED[name]
    module, _, adapter = model.adapter.partition(":")
    made = getattr(import_module(module), adapter)()
    spec = Spec(name, path, model.category, {**model.options, **options}, 1, model.trust_pickle)
    made.load(spec, "cpu")
    return made


def fails(name: str, path: Path, error: type[ZooError] | tuple[type[ZooError], ...] = LoadFailed) -> str:
    """The message of the error that the load must end in. It names the model and the place, and no retry helps."""
    with pytest.raises(error) as told:
        load(name, path)
    assert str(told.value).startswith(f"{name}: ")
    assert str(path if path.is_dir() else path.parent) in str(told.value)
    assert not told.value.retryable
    return str(told.value)


def home(path: Path) -> Path:
    """The folder in which all of a model's files are."""
    return path.parent if path.suffix else path


def weights_of(path: Path) -> Path:
    """The file that holds them."""
    if path.suffix:
        return path
    return next(file for file in path.iterdir() if file.suffix in (".safetensors", ".bin"))


@pytest.fixture
def copied(standin: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """`copied(name)` is the path of a copy of its stand-in, to be spoilt."""

    def copy(name: str) -> Path:
        path = standin(name)
        there = shutil.copytree(home(path), tmp_path / "weights")
        return there / path.name if path.suffix else there

    return copy


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_that_are_not_there(name: str, copied: Callable[[str], Path], tmp_path: Path) -> None:
    path = copied(name)
    weights_of(path).unlink()
    assert f"zoo pull {name}" in fails(name, path, ModelUnavailable)
    assert f"zoo pull {name}" in fails(name, tmp_path / "nowhere" / path.name, ModelUnavailable)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_that_is_something_else_or_not_whole(name: str, copied: Callable[[str], Path]) -> None:
    path = copied(name)
    file = weights_of(path)
    whole = file.read_bytes()
    for content in (TEXT, b"", bytes(len(whole)), whole[: len(whole) // 2], whole[:-1]):
        file.write_bytes(content)
        fails(name, path)
    file.write_bytes(whole)
    load(name, path)


@pytest.mark.parametrize("name", BESIDE)
def test_what_lies_beside_the_weights(name: str, copied: Callable[[str], Path]) -> None:
    path = copied(name)
    for beside in BESIDE[name]:
        file = home(path) / beside
        whole = file.read_bytes()
        file.unlink()
        fails(name, path, (LoadFailed, ModelUnavailable))
        spoils(name, path, file, whole)
    if name in TOKENIZERS:
        file = home(path) / TOKENIZERS[name]
        spoils(name, path, file, file.read_bytes())
    load(name, path)


def spoils(name: str, path: Path, file: Path, whole: bytes) -> None:
    """Nothing is served with this file wrong or cut off. Leaves it as it should be."""
    for content in (TEXT, whole[: len(whole) // 2]):
        file.write_bytes(content)
        fails(name, path)
    file.write_bytes(whole)


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_of_another_architecture(
    name: str, standin: Callable[[str], Path], copied: Callable[[str], Path]
) -> None:
    """All of another model in its place, and another's weights among its own files."""
    path = copied(name)
    alike = {"clip-vit-l", "fashion-clip"}  # of one architecture
    if name in FOLDERS:
        for other in FOLDERS:
            if other != name and not {name, other} <= alike and CONFIGURED[other].adapter != CONFIGURED[name].adapter:
                fails(name, standin(other), (LoadFailed, ModelUnavailable))
    own = weights_of(path)
    suffix = own.suffix
    own.unlink()
    for other in FAMILIES:
        file = weights_of(standin(other))
        takes = other == name or {name, other} <= alike or (other in YOLOS and name in YOLOS)
        takes |= (name, other) == ("onnx-classifier", "onnx-detector")  # which takes any graph of a picture
        if takes or (suffix == ".safetensors") != (file.suffix == ".safetensors"):
            continue
        shutil.copy(file, own)
        fails(name, path)


@pytest.mark.parametrize("name", [*CLASSIFIERS, "coco-detector", "segformer-b2-clothes", "vitpose-small"])
def test_no_labels(name: str, copied: Callable[[str], Path]) -> None:
    path = copied(name)
    config = json.loads((path / "config.json").read_text())
    _, *rest = config["id2label"]
    for labels in (None, {}, {key: config["id2label"][key] for key in rest}):
        told = {**{key: value for key, value in config.items() if key != "label2id"}, "id2label": labels}
        (path / "config.json").write_text(json.dumps(told))
        fails(name, path)


@pytest.mark.parametrize("name", [*FOLDERS[:9], "vehicle-segment-classification", "osnet-x0-25"])
def test_weights_that_are_not_numbers(name: str, copied: Callable[[str], Path]) -> None:
    path = copied(name)
    file = weights_of(path)
    pickled = file.suffix != ".safetensors"
    tensors = torch.load(file, weights_only=True) if pickled else load_file(file)
    for value in tensors.values():
        if value.is_floating_point():
            value.view(-1)[0] = float("nan")
    torch.save(tensors, file) if pickled else save_file(tensors, file, metadata={"format": "pt"})
    assert "not a number" in fails(name, path)


@pytest.mark.parametrize("name", [*FAMILIES, "paddleocr", "brisque-quality"])
def test_options_of_config_that_are_wrong(name: str, standin: Callable[[str], Path]) -> None:
    path = standin(name) if name in FAMILIES else None
    for options in ({"florble": 1}, {"max_batch": 0}, {"max_batch": float("nan")}, {"half": "yes"}):
        (option,) = options
        with pytest.raises(LoadFailed, match=rf"{name}: options in config\.toml: .*{option}") as told:
            load(name, path, **options)
        assert not told.value.retryable


# ---------------------------------------------------------------- through a broker


@pytest.fixture(scope="module")
def client(whole_zoo: Running) -> Iterator[Client]:
    with Client(whole_zoo.endpoint, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def spoilt(client: Client, standin: Callable[[str], Path]) -> dict[str, list[ZooError]]:
    """What each family's load ended in, twice, while a text lay in the place of its weights; it lies there no more."""
    found: dict[str, list[ZooError]] = {}
    files = {name: weights_of(standin(name)) for name in FAMILIES}
    aside = {name: file.with_name(f"{file.name}.aside") for name, file in files.items()}
    for name, file in files.items():
        client.unload(name)
        os.rename(file, aside[name])
    try:
        for name, file in files.items():
            file.write_bytes(TEXT)
            found[name] = []
            for _ in range(2):
                with pytest.raises(ZooError) as told:
                    client.get_model(name)
                found[name].append(told.value)
    finally:
        for name, file in files.items():
            os.replace(aside[name], file)
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_a_load_that_failed_is_told_with_its_back_off(
    name: str, spoilt: dict[str, list[ZooError]], standin: Callable[[str], Path]
) -> None:
    first, second = spoilt[name]
    for error in (first, second):
        assert type(error) is LoadFailed
        assert name in str(error)
        assert str(standin(name)) in str(error)
        assert error.retry_after is not None
    assert second.retry_after < first.retry_after, "the second was not tried: it was told how long is left"


@pytest.mark.parametrize("name", FAMILIES)
def test_the_next_load_works_once_the_file_is_right(
    name: str, spoilt: dict[str, list[ZooError]], client: Client, bus: np.ndarray
) -> None:
    def answered() -> bool:
        try:
            return bool(client.infer(name, bus[395:905, 50:245]))
        except LoadFailed:
            return False  # within the back-off

    assert wait_until(answered)
    assert client.unload(name) is True
