"""Image classifiers from a local transformers folder: ViT, SigLIP, ResNet and whatever else its config names.

Importing this module imports the model code of the catalogue's families and runs no tensor operation: the nursery
preloads it. Other families work too and are imported during the load. Labels are the checkpoint's `id2label`. A ViT may
have timm's names for its weights: see `timm_vit.py`.

Options: `top_k`, how many labels to answer with, the most probable first, all of them without it; `max_batch`, most
pictures in one forward pass. In config.toml alone: `half`, to run in half precision; `labels`, for a checkpoint that
names none.

Scores are those of the library's pipeline, by config.json's `problem_type`: of "multi_label_classification", and of a
single class, each label's own probability (sigmoid); otherwise probabilities that sum to 1 (softmax).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import transformers
import transformers.models.convnext.image_processing_convnext
import transformers.models.resnet.modeling_resnet
import transformers.models.siglip.image_processing_siglip
import transformers.models.siglip.modeling_siglip
import transformers.models.vit.image_processing_vit
import transformers.models.vit.modeling_vit  # noqa: F401
from transformers import AutoConfig, AutoModelForImageClassification, ViTForImageClassification

from workers.models.base import AnyResult, Input, Spec, images, require_numbers, unservable
from workers.models.shared import batches, folder, timm_vit

WHAT = "an image classifier"


class ClassifierOptions(batches.RankOptions, frozen=True, forbid_unknown_fields=True):
    """`labels`: what to call the classes of a checkpoint that names none, in order; in config.toml alone."""

    labels: tuple[str, ...] | None = None


class ImageClassifier:
    """One folder with config.json, preprocessor_config.json and model.safetensors."""

    max_frames = 1

    def load(self, spec: Spec, device: str) -> None:
        """Raises ModelUnavailable without the folder, LoadFailed when what is in it cannot be served."""
        self._options = batches.Configured(spec, ClassifierOptions, "labels")
        own = self._options.own
        self.max_batch = own.max_batch
        config = folder.open_processor(spec, AutoConfig, WHAT)
        if config.problem_type == "regression":
            raise unservable(
                spec, f'{spec.path} says problem_type "regression": it gives numbers, and no label that would apply'
            )
        self._multi_label = config.problem_type == "multi_label_classification" or config.num_labels == 1
        kind, tensors = AutoModelForImageClassification, None
        if config.model_type == "vit" and (tensors := timm_vit.read(spec)) is not None:
            kind, config.layer_norm_eps = ViTForImageClassification, timm_vit.EPSILON
        self._vision = folder.Vision(spec, device, kind, WHAT, half=own.half, tensors=tensors, config=config)
        self.labels = folder.labels_of(spec, self._vision.network.config, own.labels or ())
        # Kernels are chosen while the load is being measured.
        require_numbers(spec, self._forward([np.zeros((224, 224, 3), np.uint8)]))

    def predict(self, inputs: list[Input]) -> list[AnyResult]:
        """All inputs in one forward pass, or in as few as `max_batch` allows."""
        asked = self._options.of(inputs)
        return batches.classified(self.labels, asked, images(inputs), self._forward, multi_label=self._multi_label)

    def _forward(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """(n, labels) float32 probabilities."""
        logits = self._vision(frames).logits.float()
        probabilities: np.ndarray = (logits.sigmoid() if self._multi_label else logits.softmax(-1)).cpu().numpy()
        return probabilities
