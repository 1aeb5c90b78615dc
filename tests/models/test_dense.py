"""What holds alike for the models that answer about every pixel: keypoints, depth, segmentation."""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("workers.models.vitpose")
import torch
from safetensors.torch import load_file, save_file

from workers.models import standins
from workers.models.base import Input, Spec
from zoo import load_config
from zoo.demo.scenes import photograph
from zoo.errors import InvalidInput, LoadFailed
from zoo.weights import inventory

pytestmark = pytest.mark.models

ROOT = Path(__file__).resolve().parents[2]
HEADS = {"vitpose-small": "head.", "depth-anything-v2-small": "head.", "segformer-b2-clothes": "decode_head.classifier"}
NAMES = list(HEADS)
CONFIGURED = {model.name: model for model in load_config(ROOT / "config.toml").models if model.name in NAMES}


@pytest.fixture(scope="module")
def folders(standin) -> dict[str, Path]:
    return {name: standin(name) for name in NAMES}


def load(name: str, path: Path, **options) -> object:
    """The model as config.toml has it, with these weights."""
    module, _, adapter = CONFIGURED[name].adapter.partition(":")
    model = getattr(import_module(module), adapter)()
    configured = {**CONFIGURED[name].options, **options}
    model.load(Spec(name=name, path=path, options=configured, threads=1), "cpu")
    return model


@pytest.fixture(scope="module")
def models(folders):
    return {name: load(name, path) for name, path in folders.items()}


@pytest.fixture(scope="module")
def crop() -> np.ndarray:
    return photograph("bus.jpg")[395:905, 50:245]


@pytest.fixture
def copied(folders, tmp_path):
    def copy(name: str) -> Path:
        return Path(shutil.copytree(folders[name], tmp_path / "model"))

    return copy


def numbers(found) -> np.ndarray:
    """What an answer says, as one array."""
    for field in ("points", "depth", "mask"):
        if hasattr(found, field):
            return getattr(found, field)
    raise AssertionError(found)


def ask(model, *frames, **options):
    return model.predict([Input(frame, options) for frame in frames])


@pytest.mark.parametrize("name", NAMES)
def test_strided_and_read_only_views(name, models, crop):
    bgr = np.ascontiguousarray(crop[..., ::-1])
    bgr.flags.writeable = False
    (found,) = ask(models[name], np.ascontiguousarray(crop))
    (of_a_view,) = ask(models[name], crop)
    (of_bgr,) = ask(models[name], bgr[..., ::-1])
    (wrong_order,) = ask(models[name], bgr)
    np.testing.assert_array_equal(numbers(found), numbers(of_a_view))
    np.testing.assert_array_equal(numbers(found), numbers(of_bgr))
    assert (numbers(found) != numbers(wrong_order)).mean() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_as_many_requests_as_fit_one_pass_may_come_together(name, folders):
    assert load(name, folders[name], max_batch=3).max_batch == 3


@pytest.mark.parametrize("name", NAMES)
def test_half_precision(name, folders, models, crop):
    half = load(name, folders[name], half=True)
    assert half._vision.network.dtype == torch.float16
    ((found,), (exact,)) = ask(half, crop), ask(models[name], crop)
    assert numbers(found).dtype == numbers(exact).dtype
    # 16 bits hold three digits: most keypoints within a pixel, depths within a hundredth, classes but at their rims.
    match name:
        case "vitpose-small":
            assert np.median(np.abs(found.points - exact.points)) < 1
            np.testing.assert_allclose(found.scores, exact.scores, atol=0.02)
        case "depth-anything-v2-small":
            np.testing.assert_allclose(found.depth, exact.depth, atol=0.01 * float(exact.depth.max()))
        case _:
            assert (found.mask != exact.mask).mean() < 0.02


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_batch": 0}, "max_batch"),
        ({"max_batch": "all"}, "max_batch"),
        ({"half": True}, "half"),
        ({"labels": ["Hat"]}, "labels"),
    ],
)
def test_a_wrong_option_is_named(name, models, crop, options, field):
    with pytest.raises(InvalidInput, match=field):
        ask(models[name], crop, **options)


@pytest.mark.parametrize(("name", "field"), [("vitpose-small", "min_score"), ("segformer-b2-clothes", "min_coverage")])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "much"])
def test_a_share_is_one(name, field, value, folders, models, crop):
    with pytest.raises(InvalidInput, match=field):
        ask(models[name], crop, **{field: value})
    with pytest.raises(LoadFailed, match=field):
        load(name, folders[name], **{field: value})


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_without_its_head_is_not_served_with_a_random_one(name, copied):
    path = copied(name)
    kept = {k: v for k, v in load_file(path / "model.safetensors").items() if not k.startswith(HEADS[name])}
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LoadFailed, match=HEADS[name]):
        load(name, path)


@pytest.mark.parametrize("name", NAMES)
def test_a_standin_is_marked_and_always_the_same(name, folders, tmp_path):
    assert inventory.is_stand_in(folders[name])
    again = load_file(standins.make(name, tmp_path) / "model.safetensors")
    first = load_file(folders[name] / "model.safetensors")
    assert all(torch.equal(first[k], again[k]) for k in first.keys() | again.keys())
