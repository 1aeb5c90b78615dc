"""Image classifiers from a local transformers folder: ViT, SigLIP, ResNet and whatever else its config names.

Importing this module imports the model code of the catalogue's families and runs no tensor operation: the nursery
preloads it. Other families work too and are imported during the load. Labels are the checkpoint's `id2label`. A ViT may
have timm's names for its weights: see `timm_vit.py`.

Options: `top_k`, how many labels to answer with, the most probable first, all of them without it; `max_batch`, most
pictures in one forward pass. In config.toml alone: `half`, to run in half precision; `labels`, for a checkpoint that
names none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
import torch
import transformers
import transformers.models.convnext.image_processing_convnext
import transformers.models.resnet.modeling_resnet
import transformers.models.siglip.image_processing_siglip
import transformers.models.siglip.modeling_siglip
import transformers.models.vit.image_processing_vit
import transformers.models.vit.modeling_vit  # noqa: F401
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, ViTForImageClassification

from workers.models.base import AnyResult, Input, Spec, chunks, images, load_options, read_options, require_numbers
from workers.models.shared import folder, timm_vit
from workers.models.shared.pictures import preprocess
from zoo.results import Classification

WHAT = "an image classifier"


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What config.toml may say, and a request but for `half` and `labels`.

    Attributes:
        top_k: how many labels to answer with; None for all.
        max_batch: pictures in one pass.
        half: in half precision.
        labels: what to call the classes of a checkpoint that names none, in order.
    """

    top_k: Annotated[int, msgspec.Meta(ge=1)] | None = None
    max_batch: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 32
    half: bool = False
    labels: tuple[str, ...] | None = None


class ImageClassifier:
    """One folder with config.json, preprocessor_config.json and model.safetensors."""

    max_frames = 1

    def load(self, spec: Spec, device: str) -> None:
        """Raises ModelUnavailable without the folder, LoadFailed when what is in it cannot be served."""
        options = load_options(spec, Options)
        self._configured = spec.options
        self.max_batch = options.max_batch
        self._device = device
        config = folder.open_processor(spec, AutoConfig, WHAT)
        kind, tensors = AutoModelForImageClassification, None
        if config.model_type == "vit" and (tensors := timm_vit.read(spec)) is not None:
            kind, config.layer_norm_eps = ViTForImageClassification, timm_vit.EPSILON
        self._model: Any = folder.open_model(
            spec, device, kind, WHAT, half=options.half, tensors=tensors, config=config
        )
        self._processor: Any = folder.open_processor(spec, AutoImageProcessor, WHAT)
        self._labels = folder.labels_of(spec, self._model.config, options.labels or ())
        # Kernels are chosen while the load is being measured.
        require_numbers(spec, self._forward([np.zeros((224, 224, 3), np.uint8)]))

    def predict(self, inputs: list[Input]) -> list[AnyResult]:
        """All inputs in one forward pass, or in as few as `max_batch` allows."""
        asked = [read_options(self._configured, item.options, Options, fixed=("half", "labels")) for item in inputs]
        frames = images(inputs)
        size = min((options.max_batch for options in asked), default=1)
        rows = [row for some in chunks(frames, size) for row in self._forward(some)]
        out: list[AnyResult] = []
        for row, options in zip(rows, asked, strict=True):
            order = np.argsort(-row, kind="stable")[: options.top_k]
            out.append(Classification(labels=[self._labels[i] for i in order], scores=row[order]))
        return out

    def _forward(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """(n, labels) float32 probabilities."""
        pixels = preprocess(self._processor, frames, self._device)
        with torch.inference_mode():
            logits = self._model(pixel_values=pixels.to(self._device, self._model.dtype)).logits
            probabilities: np.ndarray = logits.float().softmax(-1).cpu().numpy()
        return probabilities
