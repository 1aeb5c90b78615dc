"""Stand-ins for the image classifiers of transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from workers.models.standins.common import SMALL, Builder, built, named

AGES = ["0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "more than 70"]
WEATHER = ["cloudy/overcast", "foggy/hazy", "rain/storm", "snow/frosty", "sun/clear"]
SMALL_RESNET = {"embedding_size": 16, "hidden_sizes": [16, 32, 64, 128], "depths": [2, 2, 2, 2], "layer_type": "basic"}


def classifier(family: str, labels: Sequence[str], size: Mapping[str, Any] | None = None) -> Builder:
    """A transformers image classifier, "vit", "siglip" or "resnet", of the published layout.

    Args:
        size: of the network, in the words of its configuration; small if not given.
    """
    network = size or (SMALL_RESNET if family == "resnet" else SMALL)

    def make() -> tuple[Any, Any]:
        import torch

        # Through the adapter, which sets the environment that the library reads at import.
        transformers: Any = import_module("workers.models.classify").transformers

        model: Any
        processor: Any
        names = named(labels)
        if family == "vit":
            config = transformers.ViTConfig(image_size=224, patch_size=16, **network, **names)
            model = transformers.ViTForImageClassification(config)
            processor = transformers.ViTImageProcessor()
        elif family == "siglip":
            # The classifier has no text half, but its configuration is checked all the same.
            text = {**SMALL, "vocab_size": 8, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
            vision = dict(image_size=224, patch_size=16, **network)
            config = transformers.SiglipConfig(text_config=text, vision_config=vision, **names)
            model = transformers.SiglipForImageClassification(config)
            processor = transformers.SiglipImageProcessor(size={"height": 224, "width": 224})
        else:
            model = transformers.ResNetForImageClassification(transformers.ResNetConfig(**network, **names))
            processor = transformers.ConvNextImageProcessor(size={"shortest_edge": 224}, crop_pct=0.875)
        # A fresh head answers every label alike; a livelier one makes different pictures differ.
        for layer in model.classifier.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight.normal_(0, 0.3)
        return model, processor

    return built(make)


STANDINS: dict[str, tuple[str, Builder]] = {
    "pet-classifier": ("pet-classifier", classifier("resnet", ["cats", "dogs"])),
    "vit-age-classifier": ("vit-age-classifier", classifier("vit", AGES)),
    "vit-gender-classifier": ("vit-gender-classifier", classifier("vit", ["female", "male"])),
    "violence-detection": ("violence-detection", classifier("vit", ["non-violent", "violent"])),
    "weather-classification": ("weather-classification", classifier("siglip", WEATHER)),
}
