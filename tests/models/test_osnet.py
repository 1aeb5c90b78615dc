"""The vectors of people against the network called directly, and the network against what the paper says of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

osnet = pytest.importorskip("workers.models.osnet")
import torch  # noqa: E402
from torchvision import transforms  # noqa: E402

from workers.models.base import Input, Spec  # noqa: E402
from workers.models.shared.osnet_network import osnet_x0_25  # noqa: E402
from zoo.demo.scenes import photograph  # noqa: E402
from zoo.errors import InvalidInput, LoadFailed, ModelUnavailable  # noqa: E402
from zoo.results import Embedding  # noqa: E402

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def weights(standin) -> Path:
    return standin("osnet-x0-25")


@pytest.fixture(scope="module")
def tensors(weights) -> dict[str, torch.Tensor]:
    return torch.load(weights, weights_only=True)


def load(path: Path, *, trust: bool = True, **options):
    model = osnet.PersonEmbedder()
    model.load(Spec(name="it", path=path, options=options, threads=1, trust_pickle=trust), "cpu")
    return model


@pytest.fixture(scope="module")
def embedder(weights):
    return load(weights)


@pytest.fixture(scope="module")
def people() -> list[np.ndarray]:
    """Crops of the persons in two photographs."""
    bus, zidane = (photograph(name) for name in ("bus.jpg", "zidane.jpg"))
    return [bus[400:900, 50:250], bus[400:860, 220:345], bus[380:880, 670:810], zidane[40:710, 740:1150]]


def ask(model, *frames, **options) -> list[np.ndarray]:
    found = model.predict([Input(frame, options) for frame in frames])
    assert all(isinstance(one, Embedding) for one in found)
    return [one.vector for one in found]


def direct(tensors: dict[str, torch.Tensor], frame: np.ndarray, half: bool = False) -> np.ndarray:
    """The network on torchvision's pixels."""
    network = osnet_x0_25().eval()
    network.load_state_dict({k: v for k, v in tensors.items() if not k.startswith("classifier")})
    prepare = transforms.Compose(
        [
            transforms.Resize((256, 128)),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    pixels = prepare(Image.fromarray(frame))[None]
    with torch.inference_mode():
        features = network.half()(pixels.half()).float() if half else network(pixels)
    return (features / features.norm(dim=-1, keepdim=True))[0].numpy()


def test_vectors_are_those_of_the_network(embedder, tensors, people):
    (found,) = ask(embedder, people[0])
    assert (found.shape, found.dtype) == ((512,), np.float32)
    np.testing.assert_allclose(found, direct(tensors, people[0]), atol=1e-6)


def test_half_precision(weights, tensors, people):
    model = load(weights, half=True)
    (found,) = ask(model, people[0])
    assert found.dtype == np.float32
    # Sums in another order differ in the last of the three digits that 16 bits hold.
    np.testing.assert_allclose(found, direct(tensors, people[0], half=True), atol=5e-3)
    with pytest.raises(InvalidInput, match="half"):
        ask(model, people[0], half=True)


def test_vectors_have_unit_length_and_differ(embedder, people):
    vectors = np.stack(ask(embedder, *people))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    likeness = vectors @ vectors.T
    assert (likeness[~np.eye(len(people), dtype=bool)] < 0.999).all()


def test_a_batch_answers_as_its_members_alone_in_one_pass(embedder, people):
    frames = [*people, people[0][:, :, ::-1], people[1][::-1]]
    passes: list[int] = []
    hook = embedder._network.register_forward_pre_hook(lambda _, given: passes.append(len(given[0])))
    batch = ask(embedder, *frames)
    ask(embedder, *frames, max_batch=4)
    hook.remove()
    assert passes == [6, 4, 2]
    assert embedder.max_batch == 32
    for together, frame in zip(batch, frames, strict=True):
        np.testing.assert_allclose(together, ask(embedder, frame)[0], atol=1e-5)
    assert np.abs(batch[0] - batch[4]).max() > 1e-3  # the order of colours counts


def test_parameters_are_as_many_as_published():
    """206,994 with a classifier of 10 people, as the authors' own code counts."""
    network = osnet_x0_25()
    assert sum(p.numel() for p in network.parameters()) + (512 * 10 + 10) == 206_994


def test_names_are_those_of_the_published_checkpoint(tensors):
    expected = {
        "conv1.conv.weight", "conv1.bn.running_mean", "conv2.0.conv1.conv.weight", "conv2.0.conv2a.conv1.weight",
        "conv2.0.conv2b.1.conv2.weight", "conv2.0.conv2d.3.bn.weight", "conv2.0.gate.fc1.weight",
        "conv2.0.gate.fc2.bias", "conv2.0.conv3.conv.weight", "conv2.0.downsample.conv.weight",
        "conv2.2.0.conv.weight", "conv3.2.0.bn.weight", "conv4.1.conv3.bn.bias", "conv5.conv.weight", "fc.0.weight",
        "fc.1.running_var", "classifier.weight",
    }  # fmt: skip
    assert expected <= tensors.keys()
    assert "conv2.1.downsample.conv.weight" not in tensors  # only where the number of channels changes


@pytest.mark.parametrize(
    ("options", "field"), [({"max_batch": 0}, "max_batch"), ({"top_k": 1}, "top_k"), ({"half": "yes"}, "half")]
)
def test_a_wrong_option_is_named(embedder, weights, people, options, field):
    with pytest.raises(InvalidInput, match=field):
        ask(embedder, people[0], **options)
    with pytest.raises(LoadFailed, match=field):
        load(weights, **options)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 900, 3), (900, 2, 3)])
def test_the_smallest_pictures_are_answered(embedder, shape):
    (found,) = ask(embedder, np.full(shape, 7, np.uint8))
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-5)


def test_what_training_put_around_the_tensors_is_taken_off(embedder, tensors, people, tmp_path):
    torch.save({"state_dict": {f"module.{k}": v for k, v in tensors.items()}, "epoch": 60}, tmp_path / "osnet.pth")
    np.testing.assert_array_equal(ask(load(tmp_path / "osnet.pth"), people[0])[0], ask(embedder, people[0])[0])


def test_weights_that_cannot_be_served(weights, tensors, tmp_path):
    file = tmp_path / "osnet.pth"
    with pytest.raises(ModelUnavailable, match="zoo pull"):
        load(file)
    with pytest.raises(LoadFailed, match="trust_pickle"):
        load(weights, trust=False)
    file.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(LoadFailed, match="damaged"):
        load(file)
    torch.save({k: v for k, v in tensors.items() if "gate.fc1" not in k}, file)
    with pytest.raises(LoadFailed, match=r"not a checkpoint of an OSNet x0\.25.*gate\.fc1"):
        load(file)
    torch.save({**tensors, "conv1.conv.weight": torch.zeros(64, 3, 7, 7)}, file)  # OSNet x1.0 begins like this
    with pytest.raises(LoadFailed, match=r"conv1\.conv\.weight"):
        load(file)
