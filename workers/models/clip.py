"""CLIP: pictures as vectors, and pictures against prompts.

Importing this module imports the model code of both forms that it serves (a transformers folder, and open_clip's: see
`shared/openclip.py`) and runs no tensor operation: the nursery preloads it.

`ClipEmbedder` loads the image half of a transformers CLIP alone; it takes the options `max_batch`, most pictures in one
forward pass, and, in config.toml alone, `half`, to run in half precision. `PromptClassifier` takes those and
`prompts`, `template` and `top_k` (see `shared/prompts.py`). Its labels are the caller's prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
import transformers.models.clip.image_processing_clip
import transformers.models.clip.modeling_clip  # noqa: F401
from torch.nn.functional import normalize
from transformers import CLIPModel, CLIPVisionModelWithProjection

from workers.models.base import AnyResult, Input, Spec, chunks, images, require_numbers
from workers.models.shared import folder, openclip
from workers.models.shared.batches import Configured, PassOptions, by_options, in_passes
from workers.models.shared.prompts import PromptOptions, TextEncoder, as_said, configured_features
from zoo.results import Classification, Embedding

WHAT = "CLIP"
BLANK = np.zeros((224, 224, 3), np.uint8)


class ClipEmbedder:
    """One folder with config.json, preprocessor_config.json and model.safetensors, answering `Embedding`."""

    max_frames = 1

    def load(self, spec: Spec, device: str) -> None:
        """Raises ModelUnavailable without the folder, LoadFailed when what is in it cannot be served."""
        self._options = Configured(spec, PassOptions)
        self.max_batch = self._options.own.max_batch
        whole = folder.open_config(spec, "clip", WHAT)
        config = whole.vision_config
        config.projection_dim = whole.projection_dim  # the one that CLIP itself goes by
        half = self._options.own.half
        self._vision = folder.Vision(spec, device, CLIPVisionModelWithProjection, WHAT, half=half, config=config)
        # Kernels are chosen while the load is being measured.
        require_numbers(spec, self._forward([BLANK]))

    def predict(self, inputs: list[Input]) -> list[AnyResult]:
        """All inputs in one forward pass, or in as few as `max_batch` allows."""
        rows = in_passes(self._options.of(inputs), images(inputs), self._forward)
        return [Embedding(vector=row) for row in rows]

    def _forward(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """(n, d) float32, each of unit length."""
        vectors: np.ndarray = normalize(self._vision(frames).image_embeds.float(), dim=-1).cpu().numpy()
        return vectors


class DualEncoder(Protocol):
    """A CLIP of either form.

    Attributes:
        scale: the factor that the network learned for its cosines.
    """

    scale: float

    def image_features(self, frames: Sequence[np.ndarray]) -> Any:
        """(n, d) float32 of n frames, each of unit length, on the model's device."""

    def text_features(self, texts: tuple[str, ...]) -> Any:
        """(k, d) float32 of k texts, likewise. Raises InvalidInput for a text that is too long."""


class TransformersClip:
    """A transformers folder: config.json, preprocessor_config.json, model.safetensors and the tokenizer's files."""

    def __init__(self, spec: Spec, device: str, *, half: bool) -> None:
        folder.open_config(spec, "clip", WHAT)
        self._vision = folder.Vision(spec, device, CLIPModel, WHAT, half=half)
        self._texts = TextEncoder(spec, self._vision.network, WHAT)
        self.scale = self._vision.network.logit_scale.exp().item()

    def image_features(self, frames: Sequence[np.ndarray]) -> Any:
        with torch.inference_mode():
            found = self._vision.network.get_image_features(pixel_values=self._vision.pixels(frames))
            return normalize(found.pooler_output.float(), dim=-1)

    def text_features(self, texts: tuple[str, ...]) -> Any:
        return normalize(self._texts.features(texts).float(), dim=-1)


class PromptClassifier:
    """A CLIP folder of either form, answering `Classification` over the prompts."""

    max_frames = 1

    def load(self, spec: Spec, device: str) -> None:
        """Raises ModelUnavailable without the folder or its tokenizer, LoadFailed when they cannot be served."""
        self._options = Configured(spec, PromptOptions)
        options = self._options.own
        self.max_batch = options.max_batch
        self.labels = [*(options.prompts or ())]
        form = openclip.OpenClip if openclip.is_open_clip(spec.path) else TransformersClip
        self._clip: DualEncoder = form(spec, device, half=options.half)
        texts = configured_features(spec, options, self._clip.text_features)
        # Kernels are chosen while the load is being measured.
        require_numbers(spec, self._probabilities([BLANK], texts))

    def predict(self, inputs: list[Input]) -> list[AnyResult]:
        """The inputs that agree in their options in one forward pass, or in as few as `max_batch` allows."""
        return by_options(self._options.of(inputs, as_said), images(inputs), self._find)

    def _find(self, options: PromptOptions, frames: list[np.ndarray]) -> list[AnyResult]:
        texts = self._clip.text_features(options.texts)
        rows = [row for some in chunks(frames, options.max_batch) for row in self._probabilities(some, texts)]
        return [Classification(labels=labels, scores=scores) for labels, scores in map(options.ranked, rows)]

    def _probabilities(self, frames: Sequence[np.ndarray], texts: Any) -> np.ndarray:
        """(n, k) float32."""
        with torch.inference_mode():
            logits = self._clip.scale * self._clip.image_features(frames) @ texts.T
            probabilities: np.ndarray = logits.softmax(-1).cpu().numpy()
        return probabilities
