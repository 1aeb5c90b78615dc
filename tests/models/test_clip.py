"""The CLIP adapters against transformers and open_clip themselves, on the same folders and the same photographs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

clip = pytest.importorskip("workers.models.clip")
import open_clip  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch.nn.functional import normalize  # noqa: E402
from transformers import CLIPModel, CLIPProcessor  # noqa: E402

from workers.models import standins  # noqa: E402
from workers.models.base import Input, Spec  # noqa: E402
from workers.models.shared import pictures, prompts  # noqa: E402
from zoo.errors import InvalidInput, LoadFailed, ModelUnavailable  # noqa: E402
from zoo.results import Classification, Embedding  # noqa: E402

pytestmark = pytest.mark.models

FORMS = ["transformers", "open_clip"]
CLOTHES = ["hoodie", "red dress", "suit", "jeans", "T-shirt"]
TEMPLATE = "a photo of a {}"


@pytest.fixture(scope="module")
def folders(standin, tmp_path_factory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("weights")
    return {
        "embedder": standin("clip-vit-l"),
        "transformers": standin("fashion-clip"),
        "open_clip": standins.place(standins.clip.open_clip, directory / "marqo", "fashion-clip"),
        "vit": standin("vit-age-classifier"),
    }


def load(kind, path: Path, *, trust_pickle: bool = False, **options) -> object:
    model = kind()
    model.load(Spec(name="it", path=path, options=options, threads=1, trust_pickle=trust_pickle), "cpu")
    return model


@pytest.fixture(scope="module")
def embedder(folders):
    return load(clip.ClipEmbedder, folders["embedder"])


@pytest.fixture(scope="module")
def classifiers(folders):
    return {form: load(clip.PromptClassifier, folders[form], prompts=CLOTHES) for form in FORMS}


@pytest.fixture(params=FORMS)
def form(request) -> str:
    return request.param


@pytest.fixture
def classifier(form, classifiers):
    return classifiers[form]


@pytest.fixture
def copied(folders, tmp_path):
    def copy(name: str) -> Path:
        return shutil.copytree(folders[name], tmp_path / "model")

    return copy


def ask(model, *frames, **options):
    return model.predict([Input(frame, options) for frame in frames])


def as_dict(found) -> dict[str, float]:
    return dict(zip(found.labels, found.scores.tolist(), strict=True))


def network_of(model):
    part = model if isinstance(model, clip.ClipEmbedder) else model._clip
    return part._vision.network if hasattr(part, "_vision") else part._model


def passes(model, half: str) -> list[int]:
    """Grows by the size of the batch with each pass through that half of the network, "text" or "vision"."""
    network = network_of(model)
    module = getattr(network, f"{half}_model", None)
    if module is None:  # open_clip's names
        module = {"text": network.ln_final, "vision": network.visual}[half]
    seen: list[int] = []
    module.register_forward_hook(lambda _module, _args, out: seen.append(len(out[0] if half == "text" else out)))
    return seen


# ---------------------------------------------------------------- vectors


def direct_vector(folder: Path, frame: np.ndarray) -> np.ndarray:
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    with torch.inference_mode():
        found = model.get_image_features(**processor(images=Image.fromarray(frame), return_tensors="pt"))
    return normalize(found.pooler_output, dim=-1)[0].numpy()


def test_vectors_are_those_of_the_library(embedder, folders, bus, zidane):
    (found, other) = ask(embedder, bus, zidane)
    assert isinstance(found, Embedding)
    np.testing.assert_allclose(found.vector, direct_vector(folders["embedder"], bus), atol=1e-6)
    assert found.vector.shape == (768,)
    assert found.vector.dtype == np.float32
    assert np.linalg.norm(found.vector) == pytest.approx(1, abs=1e-6)
    assert found.vector @ other.vector < 0.99


def test_the_image_half_alone_is_loaded(embedder):
    assert {name.split(".")[0] for name, _ in embedder._vision.network.named_parameters()} == {
        "vision_model",
        "visual_projection",
    }


def test_a_batch_of_vectors_is_that_of_its_members_alone(embedder, bus, zidane):
    frames = [bus, zidane, bus[::-1], bus[10:60, 20:50], bus[:3]]
    for together, frame in zip(ask(embedder, *frames), frames, strict=True):
        np.testing.assert_allclose(together.vector, ask(embedder, frame)[0].vector, atol=1e-6)


def test_as_few_passes_as_max_batch_allows(folders, bus, zidane):
    model = load(clip.ClipEmbedder, folders["embedder"], max_batch=4)
    seen = passes(model, "vision")
    ask(model, *[bus[:200], zidane[:200]] * 3)
    ask(model, bus, bus, max_batch=1)
    assert len(seen) == 2 + 2


def test_the_length_of_the_vectors_is_the_whole_models(copied, bus):
    """Older configurations give `projection_dim` at the top alone."""
    path = copied("embedder")
    config = json.loads((path / "config.json").read_text())
    del config["vision_config"]["projection_dim"]
    (path / "config.json").write_text(json.dumps(config))
    assert ask(load(clip.ClipEmbedder, path), bus)[0].vector.shape == (768,)


def test_vectors_in_half_precision(embedder, folders, bus):
    half = load(clip.ClipEmbedder, folders["embedder"], half=True)
    assert half._vision.network.dtype == torch.float16
    (found,) = ask(half, bus)
    assert found.vector.dtype == np.float32
    # Half precision keeps three digits.
    np.testing.assert_allclose(found.vector, ask(embedder, bus)[0].vector, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_batch": 0}, "max_batch"),
        ({"max_batch": "all"}, "max_batch"),
        ({"prompts": ["a dog"]}, "prompts"),
        ({"half": True}, "half"),
    ],
)
def test_a_wrong_option_of_the_embedder_is_named(embedder, bus, options, field):
    with pytest.raises(InvalidInput, match=field):
        ask(embedder, bus, **options)


# ---------------------------------------------------------------- prompts


def direct_probabilities(form: str, folder: Path, frame: np.ndarray, texts: list[str]) -> list[float]:
    """By each library's own recipe."""
    picture = Image.fromarray(frame)
    with torch.inference_mode():
        if form == "transformers":
            model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
            inputs = processor(text=texts, images=picture, return_tensors="pt", padding=True)
            return model(**inputs).logits_per_image[0].softmax(-1).tolist()
        model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        logits, _ = model.eval().get_logits(preprocess(picture)[None], tokenizer(texts))
        return logits[0].softmax(-1).tolist()


def test_probabilities_are_those_of_the_library(classifier, form, folders, bus, zidane):
    for frame in (bus, zidane, bus[300:900, 50:250]):
        (found,) = ask(classifier, frame, top_k=None, template=TEMPLATE)
        expected = direct_probabilities(form, folders[form], frame, [TEMPLATE.format(name) for name in CLOTHES])
        assert isinstance(found, Classification)
        assert as_dict(found) == pytest.approx(dict(zip(CLOTHES, expected, strict=True)), abs=1e-5)
        assert (np.diff(found.scores) <= 0).all()
        assert found.scores.dtype == np.float32


def test_labels_are_the_prompts_without_their_template(classifier, bus):
    (plain,) = ask(classifier, bus)
    (told,) = ask(classifier, bus, template=TEMPLATE)
    assert len(plain.labels) == len(told.labels) == 3
    assert set(told.labels) < set(CLOTHES)
    assert as_dict(plain) != as_dict(told)


def test_the_template_of_config_goes_with_its_prompts_alone(form, folders, bus):
    model = load(clip.PromptClassifier, folders[form], prompts=CLOTHES, template=TEMPLATE)
    asked = [
        ({}, [TEMPLATE.format(name) for name in CLOTHES]),
        ({"prompts": ["a dog", "a cat"]}, ["a dog", "a cat"]),
        ({"prompts": ["dog", "cat"], "template": "a {} on a sofa"}, ["a dog on a sofa", "a cat on a sofa"]),
        ({"template": "{}"}, CLOTHES),
    ]
    for options, texts in asked:
        (found,) = ask(model, bus, top_k=None, **options)
        expected = direct_probabilities(form, folders[form], bus, texts)
        labels = options.get("prompts", CLOTHES)
        assert as_dict(found) == pytest.approx(dict(zip(labels, expected, strict=True)), abs=1e-5)


def test_top_k(classifier, bus):
    (all_of_them,) = ask(classifier, bus, top_k=None)
    assert sorted(all_of_them.labels) == sorted(CLOTHES)
    assert all_of_them.scores.sum() == pytest.approx(1, abs=1e-5)
    assert ask(classifier, bus, top_k=1)[0].labels == all_of_them.labels[:1]
    assert ask(classifier, bus, top_k=100)[0].labels == all_of_them.labels


def test_a_batch_answers_as_its_members_alone(classifier, bus, zidane):
    inputs = [
        Input(bus, {}),
        Input(zidane, {}),
        Input(bus[10:60, 20:50], {}),
        Input(bus, {"prompts": ["day", "night"]}),
        Input(zidane, {"prompts": ["day", "night"]}),
    ]
    for together, item in zip(classifier.predict(inputs), inputs, strict=True):
        (alone,) = classifier.predict([item])
        assert as_dict(together) == pytest.approx(as_dict(alone), abs=1e-5)


def test_prompts_are_encoded_once(form, folders, bus, zidane):
    model = load(clip.PromptClassifier, folders[form], prompts=CLOTHES)
    texts, pictures_seen = passes(model, "text"), passes(model, "vision")
    ask(model, bus, zidane)
    assert texts == []  # those of config.toml were encoded with the load
    ask(model, bus, prompts=["a cat", "a dog"])
    ask(model, zidane, prompts=["a cat", "a dog"])
    ask(model, zidane, prompts=("a cat", "a dog"), top_k=1)
    assert len(texts) == 1
    ask(model, bus, prompts=["a dog", "a cat"])
    assert len(texts) == 2
    assert len(pictures_seen) == 5


def test_the_prompts_that_are_kept_are_bounded(folders, bus):
    model = load(clip.PromptClassifier, folders["transformers"], prompts=CLOTHES)
    texts = passes(model, "text")
    for i in range(prompts.PROMPT_SETS):
        ask(model, bus[:50], prompts=[f"a {i}"])
    assert len(texts) == prompts.PROMPT_SETS
    ask(model, bus[:50], prompts=["a 1"])
    assert len(texts) == prompts.PROMPT_SETS
    ask(model, bus[:50])  # the ones of the load have made room
    assert len(texts) == prompts.PROMPT_SETS + 1


def test_many_prompts_in_passes_of_a_bounded_size(classifier, form, folders, bus):
    asked = [f"number {i}" for i in range(150)]
    texts = passes(classifier, "text")
    (found,) = ask(classifier, bus, prompts=asked, top_k=None)
    assert len(texts) == 3
    expected = direct_probabilities(form, folders[form], bus, asked)
    assert as_dict(found) == pytest.approx(dict(zip(asked, expected, strict=True)), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"prompts": []}, r"prompts.*length >= 1"),
        ({"prompts": ["a"] * 10_000}, r"prompts.*length <= 256"),
        ({"prompts": ["a", ""]}, r"prompts.*length >= 1"),
        ({"prompts": ["   "]}, r"options: prompts.*: "),
        ({"prompts": ["a" * 201]}, r"prompts.*length <= 200"),
        ({"prompts": ["a", 7]}, r"options: prompts.*: "),
        ({"prompts": [b"a"]}, r"options: prompts.*: "),
        ({"prompts": "hoodie"}, r"options: prompts.*: "),
        ({"prompts": None}, "prompts"),
        ({"template": "a photo"}, "template"),
        ({"template": "{} and {}"}, "template"),
        ({"template": "{}" + "a" * 200}, r"options: template: "),
        ({"top_k": 0}, "top_k"),
        ({"max_batch": 0}, "max_batch"),
        ({"half": True}, "half"),
        ({"labels": ["a"]}, "labels"),
    ],
)
def test_a_wrong_option_is_named(classifier, bus, options, field):
    with pytest.raises(InvalidInput, match=field):
        ask(classifier, bus, **options)
    assert len(ask(classifier, bus)[0].labels) == 3


# Of both tokenizers each digit is a token, and each text has one before it and one after it.
def test_a_prompt_longer_than_the_context_is_refused_not_cut(classifier, form, folders, bus):
    longest = "1" * 75
    (found,) = ask(classifier, bus, prompts=["a cat", longest], top_k=None)
    expected = direct_probabilities(form, folders[form], bus, ["a cat", longest])
    assert as_dict(found) == pytest.approx({"a cat": expected[0], longest: expected[1]}, abs=1e-5)
    with pytest.raises(InvalidInput, match=r"prompts\[1\].*77 tokens"):
        ask(classifier, bus, prompts=["a cat", longest + "1"])
    with pytest.raises(InvalidInput, match=r"prompts\[0\].*77 tokens"):
        ask(classifier, bus, prompts=[longest], template="no {}")
    with pytest.raises(LoadFailed, match=r"config\.toml.*prompts\[0\]"):
        load(clip.PromptClassifier, folders[form], prompts=["1" * 76])


def test_prompts_may_be_left_to_the_request(form, folders, bus):
    model = load(clip.PromptClassifier, folders[form])
    with pytest.raises(InvalidInput, match="prompts"):
        ask(model, bus)
    assert ask(model, bus, prompts=["a cat"])[0].scores == pytest.approx([1])


def test_probabilities_in_half_precision(classifier, form, folders, bus):
    half = load(clip.PromptClassifier, folders[form], prompts=CLOTHES, half=True)
    assert torch.float16 in {p.dtype for p in network_of(half).parameters()}
    (found,) = ask(half, bus, top_k=None)
    assert found.scores.dtype == np.float32
    # Three digits of a cosine, times 100.
    assert as_dict(found) == pytest.approx(as_dict(ask(classifier, bus, top_k=None)[0]), abs=0.05)


def test_strided_and_read_only_views(classifier, embedder, bus):
    bgr = np.ascontiguousarray(bus[..., ::-1])
    bgr.flags.writeable = False
    crop = (slice(200, 900), slice(100, 700))
    (found,), (of_bgr,) = ask(classifier, bus[crop]), ask(classifier, bgr[crop][..., ::-1])
    (wrong_order,) = ask(classifier, bgr[crop])
    assert as_dict(found) == as_dict(of_bgr)
    assert as_dict(found) != pytest.approx(as_dict(wrong_order), abs=1e-4)
    np.testing.assert_array_equal(ask(embedder, bus[crop])[0].vector, ask(embedder, bgr[crop][..., ::-1])[0].vector)


# ---------------------------------------------------------------- pictures of every shape


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 900, 3), (900, 2, 3), (1, 16384, 3)])
def test_the_smallest_pictures_are_answered(classifier, embedder, shape):
    frame = np.full(shape, 7, np.uint8)
    assert ask(classifier, frame, top_k=None)[0].scores.sum() == pytest.approx(1, abs=1e-5)
    assert np.linalg.norm(ask(embedder, frame)[0].vector) == pytest.approx(1, abs=1e-5)


def test_a_strip_is_what_the_library_makes_of_it(embedder, folders, bus):
    """Up to 16 times as long as wide exactly; beyond, all but what the scaling moves by less than a pixel."""
    strip = bus[:, 400:467]  # 1080x67, 16.1 times
    np.testing.assert_allclose(
        ask(embedder, strip[:1072])[0].vector, direct_vector(folders["embedder"], strip[:1072]), atol=1e-6
    )
    narrow = bus[:, 400:420]
    assert pictures.middle(narrow).shape == (320, 20, 3)
    assert ask(embedder, narrow)[0].vector @ direct_vector(folders["embedder"], narrow) > 0.999


# ---------------------------------------------------------------- folders that cannot be served

KINDS = {"embedder": clip.ClipEmbedder, "transformers": clip.PromptClassifier, "open_clip": clip.PromptClassifier}


@pytest.mark.parametrize("name", KINDS)
def test_weights_that_are_not_there(name, copied):
    path = copied(name)
    for file in path.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(ModelUnavailable, match="zoo pull"):
        load(KINDS[name], path)


@pytest.mark.parametrize("name", KINDS)
def test_truncated_weights_fail_the_load(name, copied):
    path = copied(name)
    (file,) = path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(LoadFailed, match=str(path)):
        load(KINDS[name], path)


@pytest.mark.parametrize("name", KINDS)
def test_a_network_with_a_part_missing_is_not_served(name, copied):
    path = copied(name)
    (file,) = path.glob("*.safetensors")
    part = {"open_clip": "visual.proj"}.get(name, "visual_projection.weight")
    weights = load_file(file)
    del weights[part]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(LoadFailed, match=part):
        load(KINDS[name], path)


def test_a_folder_without_its_tokenizer(copied):
    """transformers would make one up, of three entries, and answer."""
    path = copied("transformers")
    (path / "tokenizer.json").unlink()
    load(clip.PromptClassifier, path)  # from vocab.json and merges.txt
    (path / "merges.txt").unlink()
    with pytest.raises(ModelUnavailable, match=r"tokenizer\.json.*zoo pull"):
        load(clip.PromptClassifier, path)
    (path / "tokenizer.json").write_text('{"version"')
    with pytest.raises(LoadFailed, match="tokenizer"):
        load(clip.PromptClassifier, path)


def test_a_tokenizer_of_another_model(copied):
    path = copied("transformers")
    config = json.loads((path / "config.json").read_text())
    config["text_config"]["vocab_size"] = 500
    (path / "config.json").write_text(json.dumps(config))
    weights = load_file(path / "model.safetensors")
    name = "text_model.embeddings.token_embedding.weight"
    save_file({**weights, name: weights[name][:500].clone()}, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LoadFailed, match="514 entries, the text encoder 500"):
        load(clip.PromptClassifier, path)


def test_options_of_config_that_are_wrong(form, folders):
    with pytest.raises(LoadFailed, match="promts"):
        load(clip.PromptClassifier, folders[form], promts=CLOTHES)


# ---------------------------------------------------------------- open_clip's form


def test_pickled_weights_want_trust(copied, classifiers, bus):
    path = copied("open_clip")
    torch.save(load_file(path / "open_clip_model.safetensors"), path / "open_clip_pytorch_model.bin")
    (path / "open_clip_model.safetensors").unlink()
    with pytest.raises(LoadFailed, match="trust_pickle"):
        load(clip.PromptClassifier, path)
    trusted = load(clip.PromptClassifier, path, trust_pickle=True, prompts=CLOTHES)
    assert as_dict(ask(trusted, bus)[0]) == as_dict(ask(classifiers["open_clip"], bus)[0])


def test_a_pickle_with_code_of_its_own_does_not_run(copied, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    path = copied("open_clip")
    (path / "open_clip_model.safetensors").unlink()
    torch.save({"visual.proj": Evil()}, path / "open_clip_pytorch_model.bin")
    with pytest.raises(LoadFailed, match=str(path)):
        load(clip.PromptClassifier, path, trust_pickle=True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "{}",
        '{"model_cfg": {"text_cfg": []}}',
        '{"model_cfg": {"text_cfg": {}}}',
        '{"model_cfg": {"text_cfg": {"hf_model_name": "elsewhere/somewhere"}}}',  # the library would go and fetch it
    ],
)
def test_a_configuration_that_cannot_be_read(content, copied):
    path = copied("open_clip")
    (path / "open_clip_config.json").write_text(content)
    with pytest.raises(LoadFailed, match=str(path)):
        load(clip.PromptClassifier, path)


def test_the_folders_own_tokenizer_where_the_configuration_names_one(copied, bus):
    path = copied("open_clip")
    config = json.loads((path / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= {"vocab_size": 514, "hf_tokenizer_name": "elsewhere/somewhere"}
    (path / "open_clip_config.json").write_text(json.dumps(config))
    weights = load_file(path / "open_clip_model.safetensors")
    weights["token_embedding.weight"] = weights["token_embedding.weight"][:514].clone()
    save_file(weights, path / "open_clip_model.safetensors", metadata={"format": "pt"})
    model = load(clip.PromptClassifier, path, prompts=CLOTHES)
    (found,) = ask(model, bus, top_k=None)
    expected = direct_probabilities("open_clip", path, bus, CLOTHES)
    assert as_dict(found) == pytest.approx(dict(zip(CLOTHES, expected, strict=True)), abs=1e-5)
    ask(model, bus, prompts=["1" * 75])
    with pytest.raises(InvalidInput, match=r"prompts\[0\].*77 tokens"):
        ask(model, bus, prompts=["1" * 76])
    for name in ("tokenizer.json", "vocab.json"):
        (path / name).unlink()
    with pytest.raises(ModelUnavailable, match="tokenizer"):
        load(clip.PromptClassifier, path)


def test_its_tokenizer_does_not_collect_words(classifiers, bus):
    model = classifiers["open_clip"]
    before = len(model._clip._tokenizer.cache)
    ask(model, bus, prompts=["never met before"])
    assert len(model._clip._tokenizer.cache) == before
