"""CLIP: pictures as vectors, and pictures against prompts.

Importing this module imports the model code of both forms that it serves (a transformers folder, and open_clip's: see
`openclip.py`) and runs no tensor operation: the nursery preloads it.

`ClipEmbedder` loads the image half of a transformers CLIP alone; it takes the options `max_batch`, most pictures in one
forward pass, and, in config.toml alone, `half`, to run in half precision. `PromptClassifier` takes those and
`prompts`, `template` and `top_k` (see `prompts.py`). Its labels are the caller's prompts.
"""

from __future__ import annotations

from typing import Annotated, Any, Protocol

import msgspec
import numpy as np
import torch
import transformers.models.clip.image_processing_clip
import transformers.models.clip.modeling_clip  # noqa: F401
from torch.nn.functional import normalize
from transformers import AutoImageProcessor, CLIPModel, CLIPVisionModelWithProjection

from workers.models import openclip
from workers.models.base import AnyResult, Input, Spec, chunks, images, load_options, read_options, require_numbers
from workers.models.shared import folder
from workers.models.shared.pictures import preprocess
from workers.models.shared.prompts import PromptOptions, TextEncoder, configured_features, read_prompt_options
from zoo.results import Classification, Embedding

WHAT = "CLIP"
BLANK = np.zeros((224, 224, 3), np.uint8)


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`max_batch`: pictures in one pass. `half`: precision."""

    max_batch: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 32
    half: bool = False


class ClipEmbedder:
    """One folder with config.json, preprocessor_config.json and model.safetensors, answering `Embedding`."""

    max_frames = 1

    def load(self, spec: Spec, device: str) -> None:
        """Raises ModelUnavailable without the folder, LoadFailed when what is in it cannot be served."""
        options = load_options(spec, Options)
        self.max_batch = options.max_batch
        self._configured = spec.options
        self._device = device
        whole = folder.open_config(spec, "clip", WHAT)
        config = whole.vision_config
        config.projection_dim = whole.projection_dim  # the one that CLIP itself goes by
        self._model: Any = folder.open_model(
            spec, device, CLIPVisionModelWithProjection, WHAT, half=options.half, config=config
        )
        self._processor: Any = folder.open_processor(spec, AutoImageProcessor, WHAT)
        # Kernels are chosen while the load is being measured.
        require_numbers(spec, self._forward([BLANK]))

    def predict(self, inputs: list[Input]) -> list[AnyResult]:
        """All inputs in one forward pass, or in as few as `max_batch` allows."""
        asked = [read_options(self._configured, item.options, Options, fixed=("half",)) for item in inputs]
        frames = images(inputs)
        size = min((options.max_batch for options in asked), default=1)
        return [Embedding(vector=row) for some in chunks(frames, size) for row in self._forward(list(some))]

    def _forward(self, frames: list[np.ndarray]) -> np.ndarray:
        """(n, d) float32, each of unit length."""
        pixels = preprocess(self._processor, frames, self._device)
        with torch.inference_mode():
            found = self._model(pixel_values=pixels.to(self._device, self._model.dtype)).image_embeds
            vectors: np.ndarray = normalize(found.float(), dim=-1).cpu().numpy()
        return vectors


class DualEncoder(Protocol):
    """A CLIP of either form.

    Attributes:
        scale: the factor that the network learned for its cosines.
    """

    scale: float

    def image_features(self, frames: list[np.ndarray]) -> Any:
        """(n, d) float32 of n frames, each of unit length, on the model's device."""

    def text_features(self, texts: tuple[str, ...]) -> Any:
        """(k, d) float32 of k texts, likewise. Raises InvalidInput for a text that is too long."""


class TransformersClip:
    """A transformers folder: config.json, preprocessor_config.json, model.safetensors and the tokenizer's files."""

    def __init__(self, spec: Spec, device: str, *, half: bool) -> None:
        folder.open_config(spec, "clip", WHAT)
        self._device = device
        self._model: Any = folder.open_model(spec, device, CLIPModel, WHAT, half=half)
        self._processor: Any = folder.open_processor(spec, AutoImageProcessor, WHAT)
        self._texts = TextEncoder(spec, self._model, WHAT)
        self.scale = self._model.logit_scale.exp().item()

    def image_features(self, frames: list[np.ndarray]) -> Any:
        pixels = preprocess(self._processor, frames, self._device).to(self._device, self._model.dtype)
        with torch.inference_mode():
            return normalize(self._model.get_image_features(pixel_values=pixels).pooler_output.float(), dim=-1)

    def text_features(self, texts: tuple[str, ...]) -> Any:
        return normalize(self._texts.features(texts).float(), dim=-1)


class PromptClassifier:
    """A CLIP folder of either form, answering `Classification` over the prompts."""

    max_frames = 1

    def load(self, spec: Spec, device: str) -> None:
        """Raises ModelUnavailable without the folder or its tokenizer, LoadFailed when they cannot be served."""
        options = load_options(spec, PromptOptions)
        self.max_batch = options.max_batch
        self._configured = spec.options
        form = openclip.OpenClip if openclip.is_open_clip(spec.path) else TransformersClip
        self._clip: DualEncoder = form(spec, device, half=options.half)
        texts = configured_features(spec, options, self._clip.text_features)
        # Kernels are chosen while the load is being measured.
        require_numbers(spec, self._probabilities([BLANK], texts))

    def predict(self, inputs: list[Input]) -> list[AnyResult]:
        """The inputs that agree in their options in one forward pass, or in as few as `max_batch` allows."""
        groups: dict[PromptOptions, list[int]] = {}
        for i, item in enumerate(inputs):
            options = read_prompt_options(self._configured, item.options, PromptOptions)
            groups.setdefault(options, []).append(i)
        frames = images(inputs)
        out: dict[int, AnyResult] = {}
        for options, members in groups.items():
            texts = self._clip.text_features(options.texts)
            for some in chunks(members, options.max_batch):
                for i, row in zip(some, self._probabilities([frames[i] for i in some], texts), strict=True):
                    labels, scores = options.ranked(row)
                    out[i] = Classification(labels=labels, scores=scores)
        return [out[i] for i in range(len(inputs))]

    def _probabilities(self, frames: list[np.ndarray], texts: Any) -> np.ndarray:
        """(n, k) float32."""
        with torch.inference_mode():
            logits = self._clip.scale * self._clip.image_features(frames) @ texts.T
            probabilities: np.ndarray = logits.softmax(-1).cpu().numpy()
        return probabilities
