"""Stand-ins: small checkpoints with random weights, in the very form and place of the published ones.

They are for machines without the published weights: tests, demonstrations, a laptop without a network. Everything
works as with the real ones (files, labels, shapes, timing of small networks) except that **the answers mean
nothing**. A `STAND-IN` file beside the weights says so.

    python -m workers.models.standins DIR yolo11-face pet-classifier    # names as in config.toml
    python -m workers.models.standins DIR                               # all of them

The same name always gives the same weights. Files appear whole or not at all. The STAND-IN file carries the weights'
digest, and weights that it does not vouch for are taken for somebody's real ones and never touched.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from zoo.errors import ZooError

MARKER = "STAND-IN"
NOTE = """\
The weights in this folder are a random stand-in for {name}, made by `python -m workers.models.standins`.
They are not the published weights, and what they answer means nothing.
For the published ones: remove this folder, then `zoo pull {name}`.
sha256 {digest}
"""

Builder = Callable[[Path, int], None]  # where the file or folder goes, seed

AGES = ["0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "more than 70"]


@contextmanager
def _repeatable(seed: int) -> Iterator[None]:
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


def yolo(architecture: str, labels: Sequence[str]) -> Builder:
    """An ultralytics checkpoint with these labels, from one of the package's own architecture files."""

    def build(target: Path, seed: int) -> None:
        # Through the adapter, which sets the environment that the library reads at import.
        YOLO: Any = import_module("workers.models.yolo").YOLO  # noqa: N806

        with _repeatable(seed):
            whole = YOLO(architecture)
            config = {**whole.model.yaml, "nc": len(labels)}
            config.pop("channels", None)
            model = type(whole.model)(config, verbose=False)
            model.names = dict(enumerate(labels))
            model.args, model.task = whole.model.args, whole.task
            _calibrate(model)
        whole.model = model
        whole.save(target)

    return build


def _calibrate(model: Any) -> None:
    """Makes a random network answer a few boxes of ordinary scores instead of thousands of equal ones.

    With random weights, activations fade from layer to layer and every place scores alike. So the normalisation
    layers are given the statistics of the photographs inside the ultralytics package, and each class output is
    stretched so that on those photographs its fourth best place per grid scores 0.25 (its second, with more classes).
    """
    import torch
    from torch.nn.functional import pad

    photos = _photos()
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    momenta = [m.momentum for m in norms]
    head = model.model[-1]
    last = [branch[-1] for branch in head.cv3]
    seen: dict[int, list[Any]] = {level: [] for level in range(len(last))}
    hooks = [
        layer.register_forward_hook(lambda _m, _i, out, level=i: seen[level].append(out.flatten(2)[0]))
        for i, layer in enumerate(last)
    ]
    try:
        with torch.no_grad():
            for m in norms:
                m.momentum = 1.0  # take the statistics of this one batch as they are
            square = [pad(p, (0, 640 - p.shape[3], 0, 640 - p.shape[2]), value=114 / 255) for p in photos]
            model.train()(torch.cat(square))
            for m, momentum in zip(norms, momenta, strict=True):
                m.momentum = momentum
            model.eval()
            for grid in seen.values():
                grid.clear()
            for photo in photos:
                model(photo)
            for level, layer in enumerate(last):
                logits = torch.cat(seen[level], dim=1) - layer.bias.view(-1, 1)
                best = logits.topk(8, dim=1).values
                scale = 2.2 / (best[:, 0] - best[:, -1]).clamp_min(1e-6)  # best and eighth best 2.2 apart
                layer.weight *= scale.view(-1, 1, 1, 1)
                layer.bias.copy_(-1.1 - best[:, max(1, 3 // len(best))] * scale)
            if hasattr(head, "kpt_shape"):  # spread the points over a person, not over one cell of the grid
                for branch in head.cv4:
                    branch[-1].weight *= 4
    finally:
        for hook in hooks:
            hook.remove()


def _photos() -> list[Any]:
    """The photographs inside the ultralytics package as (1, 3, h, w) in 0..1, scaled by its own code.

    By its own, because a random network is sensitive to fine grain, and libraries smooth differently.
    """
    import numpy as np
    import torch
    from PIL import Image
    from ultralytics.data.augment import LetterBox
    from ultralytics.utils import ASSETS

    photos = []
    for name in ("bus.jpg", "zidane.jpg"):
        scaled = LetterBox((640, 640), auto=True, stride=32)(image=np.array(Image.open(ASSETS / name).convert("RGB")))
        photos.append(torch.from_numpy(scaled).permute(2, 0, 1)[None].float() / 255)
    return photos


def classifier(family: str, labels: Sequence[str]) -> Builder:
    """A transformers image classifier, "vit", "siglip" or "resnet", small but of the published layout."""

    def build(target: Path, seed: int) -> None:
        import torch

        # Through the adapter, which sets the environment that the library reads at import.
        transformers: Any = import_module("workers.models.classify").transformers

        names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
        small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
        with _repeatable(seed):
            model: Any
            processor: Any
            if family == "vit":
                model = transformers.ViTForImageClassification(
                    transformers.ViTConfig(image_size=224, patch_size=16, **small, **names)
                )
                processor = transformers.ViTImageProcessor()
            elif family == "siglip":
                # The classifier has no text half, but its configuration is checked all the same.
                text = {**small, "vocab_size": 8, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
                vision = dict(image_size=224, patch_size=16, **small)
                config = transformers.SiglipConfig(text_config=text, vision_config=vision, **names)
                model = transformers.SiglipForImageClassification(config)
                processor = transformers.SiglipImageProcessor(size={"height": 224, "width": 224})
            else:
                model = transformers.ResNetForImageClassification(
                    transformers.ResNetConfig(
                        embedding_size=16,
                        hidden_sizes=[16, 32, 64, 128],
                        depths=[2, 2, 2, 2],
                        layer_type="basic",
                        **names,
                    )
                )
                processor = transformers.ConvNextImageProcessor(size={"shortest_edge": 224}, crop_pct=0.875)
            # A fresh head answers every label alike; a livelier one makes different pictures differ.
            heads = model.classifier if isinstance(model.classifier, torch.nn.Sequential) else [model.classifier]
            with torch.no_grad():
                for layer in heads:
                    if isinstance(layer, torch.nn.Linear):
                        layer.weight.normal_(0, 0.3)
        model.save_pretrained(target)
        processor.save_pretrained(target)

    return build


# Paths are those of config.toml. Labels are the catalogue's description of the published models; their exact spelling
# in the published checkpoints may differ, which is why no code anywhere may depend on it.
STANDINS: dict[str, tuple[str, Builder]] = {
    "yolo11-face": ("yolo11-face/model.pt", yolo("yolo11n.yaml", ["face"])),
    "threat-detection-yolov8n": (
        "threat-detection-yolov8n/weights/best.pt",
        yolo("yolov8n.yaml", ["knife", "pistol", "rifle", "threat_object"]),
    ),
    "yolo11-license-plate": (
        "yolo11-license-plate/license-plate-finetune-v1n.pt",
        yolo("yolo11n.yaml", ["License_Plate"]),
    ),
    "yolov8n-pose": ("yolov8n-pose/yolov8n-pose.pt", yolo("yolov8n-pose.yaml", ["person"])),
    "pet-classifier": ("pet-classifier", classifier("resnet", ["cat", "dog"])),
    "vit-age-classifier": ("vit-age-classifier", classifier("vit", AGES)),
    "vit-gender-classifier": ("vit-gender-classifier", classifier("vit", ["female", "male"])),
    "violence-detection": ("violence-detection", classifier("vit", ["non-violent", "violent"])),
    "weather-classification": (
        "weather-classification",
        classifier("siglip", ["cloudy", "foggy", "rainy", "snowy", "clear"]),
    ),
}


def place(builder: Builder, target: Path, name: str, seed: int = 0) -> Path:
    """Builds into `target` (a file where it has a suffix, else a folder), whole or not at all, and marks it.

    Raises:
        ZooError: something is there already that is not a stand-in.
    """
    if target.exists() and not is_standin(target):
        raise ZooError(f"{name}: {target} is not a stand-in and is left alone; remove it first to have one there")
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the last step is a rename within one file system.
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        fresh = Path(scratch) / target.name
        builder(fresh, seed)
        _weights(fresh).chmod(0o644)  # safetensors writes for the owner alone; the server may be another user
        marker = (fresh.parent if target.suffix else fresh) / MARKER
        marker.write_text(NOTE.format(name=name, digest=_digest(_weights(fresh))))
        if target.suffix:
            # The marker first: a crash between the two must not leave unmarked random weights.
            os.replace(marker, target.parent / MARKER)
        elif target.exists():
            os.replace(target, Path(scratch) / "old")
        os.replace(fresh, target)
    return target


def is_standin(target: Path) -> bool:
    """Whether the weights at `target` (file or folder, as in config.toml) are a stand-in made here."""
    weights = _weights(target)
    marker = weights.parent / MARKER
    return marker.is_file() and weights.is_file() and f"sha256 {_digest(weights)}" in marker.read_text()


def _weights(target: Path) -> Path:
    return target if target.suffix else target / "model.safetensors"


def _digest(file: Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def make(kind: str, directory: str | os.PathLike[str], *, seed: int = 0) -> Path:
    """The stand-in for the catalogue's model `kind`, under the weights folder `directory`.

    Returns:
        Its file or folder.

    Raises:
        ZooError: there is no stand-in of that name, or real weights are in its place.
    """
    if kind not in STANDINS:
        raise ZooError(f"no stand-in for {kind!r}; there are: {', '.join(STANDINS)}")
    relative, builder = STANDINS[kind]
    return place(builder, Path(directory) / relative, kind, seed)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m workers.models.standins", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("directory", help="the weights folder (weights_dir in config.toml)")
    parser.add_argument("names", nargs="*", metavar="NAME", help="models as named in config.toml; none means all")
    args = parser.parse_args(argv)
    try:
        for name in args.names or STANDINS:
            print(f"{name}: {make(name, args.directory)}")
    except ZooError as e:
        print(e, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
