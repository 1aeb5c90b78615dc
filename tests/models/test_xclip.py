"""The X-CLIP adapter against transformers itself, on the same folder and videos of the same photographs."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

xclip = pytest.importorskip("workers.models.xclip")
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import XCLIPModel, XCLIPProcessor  # noqa: E402

from workers.models import standins  # noqa: E402
from workers.models.base import Input, Spec  # noqa: E402
from workers.models.shared import pictures  # noqa: E402
from zoo.demo.scenes import photograph  # noqa: E402
from zoo.errors import InvalidInput, LoadFailed, ModelUnavailable  # noqa: E402
from zoo.results import Action  # noqa: E402

pytestmark = pytest.mark.models

ACTIONS = ["walking", "running", "climbing a fence", "opening a door", "falling down"]


@pytest.fixture(scope="module")
def folders(standin, tmp_path_factory) -> dict[int, Path]:
    directory = tmp_path_factory.mktemp("weights")
    return {
        8: standin("xclip-base"),
        16: standins.place(standins.clip.xclip(16), directory / "sixteen", "xclip-base"),
    }


def load(path: Path, *, trust_pickle: bool = False, **options) -> object:
    model = xclip.ActionRecognizer()
    model.load(Spec(name="it", path=path, options=options, threads=1, trust_pickle=trust_pickle), "cpu")
    return model


@pytest.fixture(scope="module")
def models(folders):
    return {frames: load(path, prompts=ACTIONS) for frames, path in folders.items()}


@pytest.fixture(scope="module")
def film() -> list[np.ndarray]:
    """Forty frames: the camera moves over two photographs."""
    shots = [photograph(name) for name in ("bus.jpg", "zidane.jpg")]
    return [shots[i // 20][10 * i : 10 * i + 300, 5 * i : 5 * i + 400] for i in range(40)]


def ask(model, *videos, **options):
    return model.predict([Input(video[0], options, video) for video in videos])


def as_dict(found) -> dict[str, float]:
    return dict(zip(found.labels, found.scores.tolist(), strict=True))


def direct(folder: Path, frames: list[np.ndarray], prompts: list[str] = ACTIONS) -> dict[str, float]:
    model, processor = XCLIPModel.from_pretrained(folder).eval(), XCLIPProcessor.from_pretrained(folder)
    inputs = processor(images=[Image.fromarray(f) for f in frames], text=prompts, return_tensors="pt", padding=True)
    with torch.inference_mode():
        return dict(zip(prompts, model(**inputs).logits_per_video[0].softmax(-1).tolist(), strict=True))


@pytest.mark.parametrize("frames", [8, 16])
def test_probabilities_are_those_of_the_library(frames, models, folders, film):
    for video in (film[:frames], film[-frames:]):
        (found,) = ask(models[frames], video, top_k=None)
        assert isinstance(found, Action)
        assert as_dict(found) == pytest.approx(direct(folders[frames], video), abs=1e-5)
        assert (np.diff(found.scores) <= 0).all()
        assert found.scores.dtype == np.float32
    assert as_dict(found) != pytest.approx(as_dict(ask(models[frames], film[:frames], top_k=None)[0]), abs=1e-3)


def test_the_order_of_the_frames_counts(models, film):
    (forward,), (backward,) = ask(models[8], film[16:24]), ask(models[8], film[16:24][::-1])
    assert as_dict(forward) != pytest.approx(as_dict(backward), abs=1e-4)


@pytest.mark.parametrize(
    ("given", "wanted", "indices"),
    [
        (8, 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (1, 8, [0, 0, 0, 0, 0, 0, 0, 0]),
        (5, 8, [0, 1, 2, 3, 4, 4, 4, 4]),
        (9, 8, [0, 1, 2, 3, 5, 6, 7, 8]),
        (16, 8, [1, 3, 5, 7, 9, 11, 13, 15]),
        (20, 8, [1, 3, 6, 8, 11, 13, 16, 18]),
        (40, 16, [1, 3, 6, 8, 11, 13, 16, 18, 21, 23, 26, 28, 31, 33, 36, 38]),
    ],
)
def test_the_frames_that_are_looked_at(given, wanted, indices, models, folders, film):
    assert xclip.sample(given, wanted) == indices
    (found,) = ask(models[wanted], film[:given], top_k=None)
    assert as_dict(found) == pytest.approx(direct(folders[wanted], [film[i] for i in indices]), abs=1e-5)


def test_a_single_frame_is_a_video_of_one(models, folders, film):
    """As it comes from a request with `boxes`: one crop, one video."""
    crops = [film[0][:200, :100], film[25][50:, 30:]]
    found = models[8].predict([Input(crop, {"top_k": None}) for crop in crops])
    for one, crop in zip(found, crops, strict=True):
        assert as_dict(one) == pytest.approx(direct(folders[8], [crop] * 8), abs=1e-5)


def test_frames_of_one_video_may_differ_in_size(models, folders, film):
    """Crops that follow a person do."""
    video = [frame[: 300 - 9 * i, : 120 + 20 * i] for i, frame in enumerate(film[10:18])]
    assert as_dict(ask(models[8], video, top_k=None)[0]) == pytest.approx(direct(folders[8], video), abs=1e-5)


def test_a_frame_that_is_looked_at_twice_is_prepared_once(models, film, monkeypatch):
    prepared = []
    whole = pictures.preprocess
    monkeypatch.setattr(
        pictures, "preprocess", lambda p, frames, d: prepared.append(len(frames)) or whole(p, frames, d)
    )
    ask(models[8], film[:1], film[:3], film)
    assert prepared == [1 + 3 + 8]


def test_a_batch_answers_as_its_members_alone(models, film):
    inputs = [
        Input(film[0], {}, film[:8]),
        Input(film[20], {}, film[20:40]),
        Input(film[30], {}),
        Input(film[0], {"prompts": ["day", "night"]}, film[:8]),
    ]
    for together, item in zip(models[8].predict(inputs), inputs, strict=True):
        (alone,) = models[8].predict([item])
        assert as_dict(together) == pytest.approx(as_dict(alone), abs=1e-5)


def test_as_few_passes_as_max_batch_allows(folders, film):
    model = load(folders[8], prompts=ACTIONS, max_batch=2)
    seen = []
    model._vision.network.vision_model.register_forward_hook(lambda *_: seen.append(1))
    ask(model, *[film[i : i + 8] for i in range(5)])
    assert len(seen) == 3


def test_prompts_are_encoded_once(folders, film):
    model = load(folders[8], prompts=ACTIONS)
    seen = []
    model._vision.network.text_model.register_forward_hook(lambda *_: seen.append(1))
    ask(model, film[:8], film[8:16])
    assert seen == []  # those of config.toml were encoded with the load
    first, second = (ask(model, video, prompts=["day", "night"])[0] for video in (film[:8], film[24:32]))
    assert len(seen) == 1
    assert as_dict(first) != pytest.approx(as_dict(second), abs=1e-4)


def test_prompts_of_the_request(models, folders, film):
    (found,) = ask(models[8], film[:8], prompts=["dog", "cat"], template="a {} on a sofa")
    expected = direct(folders[8], film[:8], ["a dog on a sofa", "a cat on a sofa"])
    assert as_dict(found) == pytest.approx({"dog": expected["a dog on a sofa"], "cat": expected["a cat on a sofa"]})


def test_top_k(models, film):
    (all_of_them,) = ask(models[8], film[:8], top_k=None)
    assert all_of_them.scores.sum() == pytest.approx(1, abs=1e-5)
    assert ask(models[8], film[:8])[0].labels == all_of_them.labels[:3]
    assert ask(models[8], film[:8], top_k=1)[0].labels == all_of_them.labels[:1]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"prompts": []}, "prompts"),
        ({"prompts": ["a"] * 10_000}, r"prompts.*length <= 256"),
        ({"prompts": [1]}, "prompts"),
        ({"prompts": ["a" * 76]}, r"prompts\[0\].*77 tokens"),
        ({"template": "{}{}"}, "template"),
        ({"top_k": 0}, "top_k"),
        ({"max_batch": 2000}, "max_batch"),
        ({"half": False}, "half"),
        ({"frames": 8}, "frames"),
    ],
)
def test_a_wrong_option_is_named(models, film, options, field):
    with pytest.raises(InvalidInput, match=field):
        ask(models[8], film[:8], **options)
    assert len(ask(models[8], film[:8])[0].labels) == 3


@pytest.mark.parametrize(
    "wrong", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((0, 8, 3), "u1")]
)
def test_one_frame_that_is_no_picture_is_refused(models, film, wrong):
    with pytest.raises(InvalidInput, match="frame"):
        ask(models[8], [*film[:3], wrong, *film[4:8]])


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 900, 3), (1, 16384, 3)])
def test_the_smallest_frames_are_answered(models, shape):
    (found,) = ask(models[8], [np.full(shape, 7, np.uint8)] * 8, top_k=None)
    assert found.scores.sum() == pytest.approx(1, abs=1e-5)


def test_strided_and_read_only_views(models, film):
    bgr = [np.ascontiguousarray(frame[..., ::-1]) for frame in film[:8]]
    for frame in bgr:
        frame.flags.writeable = False
    (found,), (of_bgr,) = ask(models[8], film[:8]), ask(models[8], [frame[..., ::-1] for frame in bgr])
    assert as_dict(found) == as_dict(of_bgr)
    assert as_dict(found) != pytest.approx(as_dict(ask(models[8], bgr)[0]), abs=1e-4)


def test_half_precision(models, folders, film):
    half = load(folders[8], prompts=ACTIONS, half=True)
    assert half._vision.network.dtype == torch.float16
    (found,) = ask(half, film[:8], top_k=None)
    assert found.scores.dtype == np.float32
    # Three digits of a cosine, times 100.
    assert as_dict(found) == pytest.approx(as_dict(ask(models[8], film[:8], top_k=None)[0]), abs=0.05)


# ---------------------------------------------------------------- folders that cannot be served


@pytest.fixture
def copied(folders, tmp_path) -> Path:
    return shutil.copytree(folders[8], tmp_path / "model")


def test_pickled_weights_want_trust(copied, models, film):
    torch.save(load_file(copied / "model.safetensors"), copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    with pytest.raises(LoadFailed, match="trust_pickle"):
        load(copied)
    trusted = load(copied, trust_pickle=True, prompts=ACTIONS)
    assert as_dict(ask(trusted, film[:8])[0]) == as_dict(ask(models[8], film[:8])[0])


def test_a_network_with_a_part_missing_is_not_served(copied):
    weights = load_file(copied / "model.safetensors")
    del weights["mit.position_embedding"]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LoadFailed, match=r"mit\.position_embedding"):
        load(copied)


def test_a_folder_without_its_tokenizer(copied):
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (copied / name).unlink()
    with pytest.raises(ModelUnavailable, match=r"tokenizer\.json.*zoo pull"):
        load(copied)
