"""What every builder of stand-ins uses: repeatable random numbers, and real photographs to calibrate on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Builder = Callable[[Path, int], None]  # where the file or folder goes, seed
# A network of the stand-ins, in the words of transformers' configurations.
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}


@contextmanager
def repeatable(seed: int) -> Iterator[None]:
    """The same random numbers and the same order of summation every time, and the caller's own ones afterwards."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums split among threads round differently
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def built(make: Callable[[], tuple[Any, Any]]) -> Builder:
    """A builder of the model and processor of transformers that `make` makes of random numbers."""

    def build(target: Path, seed: int) -> None:
        import torch

        with repeatable(seed), torch.no_grad():
            for part in make():
                part.save_pretrained(target)

    return build


SPELLINGS: tuple[Callable[[str], str], ...] = (
    str,
    lambda label: label.replace("_", " ").capitalize(),
    lambda label: label.replace("_", "-").upper(),
)


def spelled(labels: Sequence[str]) -> list[str]:
    """The labels in several spellings, one after the other: published checkpoints differ so, and nothing may rely on
    one.
    """
    return [SPELLINGS[i % len(SPELLINGS)](label) for i, label in enumerate(labels)]


def named(labels: Sequence[str]) -> dict[str, Any]:
    """The labels of a network, `spelled`, in the words of transformers' configurations."""
    names = spelled(labels)
    return {"id2label": dict(enumerate(names)), "label2id": {label: i for i, label in enumerate(names)}}


def photos() -> list[Any]:
    """Two of the photographs inside the scikit-image package as (1, 3, h, w) in 0..1, 640 pixels at their longest."""
    import numpy as np
    import torch
    from PIL import Image

    from zoo.demo.scenes import photograph

    found = []
    for name in ("astronaut.png", "motorcycle_left.png"):
        picture = Image.fromarray(photograph(name))
        scale = 640 / max(picture.size)
        scaled = picture.resize([round(side * scale) for side in picture.size], Image.Resampling.BILINEAR)
        found.append(torch.from_numpy(np.array(scaled)).permute(2, 0, 1)[None].float() / 255)
    return found


def pieces() -> list[Any]:
    """The photographs and nine parts of each as HxWx3 uint8 arrays: enough pictures to take statistics of."""
    found = []
    for photo in photos():
        frame = (photo[0].permute(1, 2, 0) * 255).round().byte().numpy()
        height, width = frame.shape[0] // 3, frame.shape[1] // 3
        corners = [(y * height, x * width) for y in range(3) for x in range(3)]
        found += [frame, *(frame[y : y + height, x : x + width] for y, x in corners)]
    return found


def lively(model: Any) -> None:
    """Larger weights than a fresh network has, so that pictures still differ at its end."""
    import torch

    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            torch.nn.init.kaiming_normal_(layer.weight)


def settle(network: Any, batch: Any) -> None:
    """Gives the normalisation layers the statistics of this batch; with random weights, activations fade or grow from
    layer to layer otherwise. Leaves the network in evaluation mode.
    """
    import torch

    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d)]
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.momentum = 1.0
    with torch.no_grad():
        network.train()(batch)
    for m, momentum in zip(norms, momenta, strict=True):
        m.momentum = momentum
    network.eval()
