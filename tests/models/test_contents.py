"""Which files of a folder are its weights, and that nothing in it leads to a pickle unasked, to code, or out of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("workers.models.classify")
import torch
from safetensors.torch import load_file, save_file

from tests.support import ROOT
from workers.models import standins
from workers.models.base import Input, Spec
from zoo import load_config
from zoo.config.schema import BrokerConfig, ModelConfig, ZooConfig
from zoo.errors import LoadFailed, ModelUnavailable
from zoo.weights import catalogue

pytestmark = pytest.mark.models

CONFIGURED = {model.name: model for model in load_config(ROOT / "config.toml").models}
SAFE, INDEX, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"


ELSEWHERE = ["evil.bin", "../evil.safetensors", "/dev/zero", "sub/x.safetensors", ".x.safetensors"]
NO_INDEX = ["[]", "{}", '{"weight_map": 3}', '{"weight_map": {}}', '{"weight_map": {"a": "b.safetensors"}}']


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["EVIL"],)


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that appears when a pickle, or code that came with weights, is run."""
    monkeypatch.setenv("EVIL", str(tmp_path / "evil"))
    return tmp_path / "evil"


@pytest.fixture
def copied(standin: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: shutil.copytree(standin(name), tmp_path / name)


def load(name: str, path: Path, *, trust: bool = False) -> Any:
    model = CONFIGURED[name]
    module, _, adapter = model.adapter.partition(":")
    made = getattr(import_module(module), adapter)()
    made.load(Spec(name, path, model.category, model.options, 1, trust), "cpu")
    return made


def refused(name: str, path: Path, match: str, error: type[Exception] = LoadFailed, *, trust: bool = False) -> None:
    with pytest.raises(error, match=match) as told:
        load(name, path, trust=trust)
    assert str(path) in str(told.value)
    assert not told.value.retryable


def split(path: Path, names: tuple[str, str], index: str = INDEX) -> None:
    """Its weights in two files that an index names."""
    tensors = load_file(path / SAFE)
    (path / SAFE).unlink()
    keys = sorted(tensors)
    parts = keys[: len(keys) // 2], keys[len(keys) // 2 :]
    for name, part in zip(names, parts, strict=True):
        held = {key: tensors[key] for key in part}
        if name.endswith(".safetensors"):
            save_file(held, path / name, metadata={"format": "pt"})
        else:
            torch.save(held, path / name)
    where = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    (path / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))


def test_weights_in_several_files_answer_as_those_in_one(copied: Callable[[str], Path], bus: np.ndarray) -> None:
    path = copied("vit-age-classifier")
    (whole,) = load("vit-age-classifier", path).predict([Input(bus, {})])
    split(path, ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"))
    (answer,) = load("vit-age-classifier", path).predict([Input(bus, {})])
    np.testing.assert_allclose(answer.scores, whole.scores, rtol=1e-5)


@pytest.mark.parametrize("name", ["vit-age-classifier", "clip-vit-l", "depth-anything-v2-small"])
@pytest.mark.parametrize(
    "other", ["evil.bin", "../evil.safetensors", "/dev/zero", "sub/x.safetensors", ".x.safetensors"]
)
def test_an_index_names_safetensors_of_its_own_folder_alone(
    name: str, other: str, copied: Callable[[str], Path], evil: Path
) -> None:
    path = copied(name)
    split(path, ("model-1.safetensors", "model-2.safetensors"))
    torch.save(Evil(), path / "evil.bin")
    shutil.copy(path / "model-1.safetensors", path.parent / "evil.safetensors")
    index = json.loads((path / INDEX).read_text())
    index["weight_map"] = {k: v.replace("model-1.safetensors", other) for k, v in index["weight_map"].items()}
    (path / INDEX).write_text(json.dumps(index))
    for trust in (False, True):
        refused(name, path, r"only files \*\.safetensors in the same folder", trust=trust)
    assert not evil.exists()


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"weight_map": 3}', '{"weight_map": {}}', '{"weight_map": {"a": "b.safetensors"}}']
)
def test_an_index_of_nothing_is_refused(content: str, copied: Callable[[str], Path]) -> None:
    path = copied("vit-age-classifier")
    (path / SAFE).unlink()
    (path / INDEX).write_text(content)
    refused("vit-age-classifier", path, INDEX.replace(".", r"\."))


STRAY = ("adapter_model.safetensors", "optimizer.safetensors", "model.fp16.safetensors")


def test_other_safetensors_beside_a_pickle_are_not_the_weights(
    copied: Callable[[str], Path], bus: np.ndarray, evil: Path
) -> None:
    path = copied("vit-age-classifier")
    (whole,) = load("vit-age-classifier", path).predict([Input(bus, {})])
    torch.save(load_file(path / SAFE), path / PICKLE)
    (path / SAFE).unlink()
    for name in STRAY:
        save_file({"x": torch.zeros(1)}, path / name)
    (path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "somewhere/else"}))
    refused("vit-age-classifier", path, "is a pickle")
    (answer,) = load("vit-age-classifier", path, trust=True).predict([Input(bus, {})])
    np.testing.assert_allclose(answer.scores, whole.scores, rtol=1e-5)
    (path / PICKLE).unlink()
    refused("vit-age-classifier", path, "holds no weights", ModelUnavailable)
    split(copied("pet-classifier"), ("a.bin", "b.bin"), f"{PICKLE}.index.json")
    refused("pet-classifier", path.parent / "pet-classifier", "is a pickle")
    load("pet-classifier", path.parent / "pet-classifier", trust=True)


def test_the_catalogue_says_so_before_the_load(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / PICKLE).write_bytes(b"x")
    (folder / STRAY[0]).write_bytes(b"x")
    model = ModelConfig(name="m", vram_mb=1, adapter="workers.models.classify:ImageClassifier", path="weights")
    config = ZooConfig(broker=BrokerConfig(weights_dir=str(tmp_path)), models=[model])
    assert "is a pickle" in catalogue.row(config, model)["problem"]
    (folder / SAFE).write_bytes(b"x")
    assert catalogue.row(config, model)["problem"] is None


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"transformers_weights": "adapter_model.bin"}, "transformers_weights"),
        ({"attn_implementation": "elsewhere/kernels"}, "attn_implementation"),
        ({"vision_config": {"_attn_implementation": "elsewhere/kernels:run"}}, "attn_implementation"),
        ({"use_pretrained_backbone": True, "backbone": "elsewhere/backbone"}, "backbone"),
    ],
)
def test_a_configuration_that_leads_out_of_its_folder_is_refused(
    more: dict[str, Any], match: str, copied: Callable[[str], Path], evil: Path
) -> None:
    path = copied("vit-age-classifier")
    torch.save(Evil(), path / "adapter_model.bin")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **more}))
    refused("vit-age-classifier", path, match)
    assert not evil.exists()


CODE = "import os\nos.mkdir(os.environ['EVIL'])\n"


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "tokenizer_config.json"])
def test_code_that_came_with_the_weights_is_not_run(
    file: str, copied: Callable[[str], Path], bus: np.ndarray, evil: Path
) -> None:
    path = copied("fashion-clip")
    (path / "own.py").write_text(CODE)
    content = json.loads((path / file).read_text())
    names = ("AutoConfig", "AutoModel", "AutoImageProcessor", "AutoTokenizer", "AutoModelForImageClassification")
    content["auto_map"] = dict.fromkeys(names, "own.It")
    content["auto_map"]["AutoTokenizer"] = ["own.It", None]
    (path / file).write_text(json.dumps(content))
    with contextlib.suppress(LoadFailed):
        load("fashion-clip", path)
    assert not evil.exists()


def test_open_clip_passes_no_trust_on_from_the_folder(tmp_path: Path, evil: Path) -> None:
    path = standins.place(standins.clip.open_clip, tmp_path / "marqo", "fashion-clip")
    load("fashion-clip", path)
    config = json.loads((path / "open_clip_config.json").read_text())
    (path / "own.py").write_text(CODE)
    if (path / "tokenizer_config.json").is_file():
        told = json.loads((path / "tokenizer_config.json").read_text())
        told["auto_map"] = {"AutoTokenizer": ["own.It", None]}
        (path / "tokenizer_config.json").write_text(json.dumps(told))
    for change, match in (
        ({"tokenizer_kwargs": {"trust_remote_code": True}}, "trust_remote_code"),
        ({"tokenizer_kwargs": {"tokenizer_file": "/etc/passwd"}}, "tokenizer_file"),
    ):
        changed = json.loads(json.dumps(config))
        changed["model_cfg"]["text_cfg"] |= change
        (path / "open_clip_config.json").write_text(json.dumps(changed))
        refused("fashion-clip", path, match)
    changed = json.loads(json.dumps(config))
    changed["model_cfg"]["vision_cfg"]["timm_model_name"] = "hf-hub:elsewhere/model"
    (path / "open_clip_config.json").write_text(json.dumps(changed))
    refused("fashion-clip", path, "timm fetches")
    assert not evil.exists()


@pytest.mark.parametrize("name", ["vit-age-classifier", "clip-vit-l", "segformer-b2-clothes"])
@pytest.mark.parametrize("odd", ["preprocessor_config.json", "config.json", "added_tokens.json", SAFE])
def test_a_folder_that_holds_what_is_no_file_does_not_keep_the_load_waiting(
    name: str, odd: str, copied: Callable[[str], Path]
) -> None:
    path = copied(name)
    (path / odd).unlink(missing_ok=True)
    os.mkfifo(path / odd)
    refused(name, path, "no regular file|no model folder|holds no weights", Exception)


def test_a_description_out_of_all_proportion_is_refused(copied: Callable[[str], Path]) -> None:
    path = copied("vit-age-classifier")
    with (path / "preprocessor_config.json").open("r+b") as file:
        file.truncate(1 << 30)
    refused("vit-age-classifier", path, "at most")


@pytest.mark.parametrize("key", ["image_processor_type", "feature_extractor_type"])
@pytest.mark.parametrize("name", ["vit-age-classifier", "clip-vit-l"])
def test_a_folder_of_transformers_4_has_its_image_processor(
    name: str, key: str, copied: Callable[[str], Path], bus: np.ndarray
) -> None:
    path = copied(name)
    (new,) = load(name, path).predict([Input(bus, {})])
    told = json.loads((path / "preprocessor_config.json").read_text())
    old = {"vit-age-classifier": "ViTFeatureExtractor", "clip-vit-l": "CLIPFeatureExtractor"}[name]
    told.pop("image_processor_type", None)
    (path / "preprocessor_config.json").write_text(json.dumps({**told, key: old}))
    (answer,) = load(name, path).predict([Input(bus, {})])
    assert [np.asarray(v).tolist() for v in answer.to_dict().values()] == [
        np.asarray(v).tolist() for v in new.to_dict().values()
    ]
