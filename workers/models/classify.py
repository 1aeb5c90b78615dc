"""Image classifiers from a local transformers folder: ViT, SigLIP, ResNet and whatever else its config names.

Importing this module imports the model code of the catalogue's families and runs no tensor operation: the nursery
preloads it. Other families work too and are imported during the load. Labels are the checkpoint's `id2label`.

Weights are read from safetensors only: a pickle can run code of its own while it loads.

Option: `top_k`, how many labels to answer with, the most probable first; all of them without it.
"""

from __future__ import annotations

import os

# Before the libraries read them: a load never reaches out.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from typing import Annotated, Any

import msgspec
import numpy as np
import torch
import torchvision.transforms.v2.functional  # noqa: F401
import transformers
import transformers.models.convnext.image_processing_convnext
import transformers.models.resnet.modeling_resnet
import transformers.models.siglip.image_processing_siglip
import transformers.models.siglip.modeling_siglip
import transformers.models.vit.image_processing_vit
import transformers.models.vit.modeling_vit
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from workers.models.base import AnyResult, Input, Spec, read_options, require_image
from zoo.errors import InvalidInput, LoadFailed, ModelUnavailable
from zoo.results import Classification

transformers.utils.logging.disable_progress_bar()
get_checkpoint_conversion_mapping("")  # compiles a thousand regular expressions, which every load asks for


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`top_k`: how many labels to answer with; None for all."""

    top_k: Annotated[int, msgspec.Meta(ge=1)] | None = None


class ImageClassifier:
    """One folder with config.json, preprocessor_config.json and model.safetensors."""

    def load(self, spec: Spec, device: str) -> None:
        """Raises ModelUnavailable without the folder, LoadFailed when what is in it cannot be served."""
        path = spec.path
        if path is None or not (path / "config.json").is_file():
            raise ModelUnavailable(f"{spec.name}: no model folder at {path}; fetch it with: zoo pull {spec.name}")
        if not any(path.glob("*.safetensors")):
            raise ModelUnavailable(
                f"{spec.name}: {path} holds no .safetensors, and pickled weights are not read; "
                f"fetch or convert them with: zoo pull {spec.name}"
            )
        self._configured = spec.options
        try:
            read_options(self._configured, {}, Options)
        except InvalidInput as e:
            raise LoadFailed(f"{spec.name}: options in config.toml: {e}", retryable=False) from e
        torch.set_num_threads(spec.threads)
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._processor: Any = AutoImageProcessor.from_pretrained(path, **local)
            model, report = AutoModelForImageClassification.from_pretrained(
                path,
                use_safetensors=True,
                # Half-precision checkpoints stay half on a GPU; CPUs are slow at it and some operators lack it.
                dtype=torch.float32 if device == "cpu" else "auto",
                output_loading_info=True,
                **local,
            )
        except Exception as e:
            raise LoadFailed(
                f"{spec.name}: {path} cannot be loaded as an image classifier "
                f"({type(e).__name__}: {str(e).strip()[:300]}); fetch it again with: zoo pull {spec.name}",
                retryable=False,
            ) from e
        # transformers fills what is missing with random numbers and goes on; such a model must not answer.
        if absent := sorted(set(report["missing_keys"]) | {str(k) for k in report.get("mismatched_keys", ())}):
            raise LoadFailed(
                f"{spec.name}: {path} lacks weights for {', '.join(absent[:3])} ({len(absent)} in all); "
                "it is not a checkpoint of this classifier",
                retryable=False,
            )
        self._device = device
        self._model: Any = model.to(device).eval()
        self._labels = [str(model.config.id2label[i]) for i in range(model.config.num_labels)]
        self._forward([np.zeros((224, 224, 3), np.uint8)])  # kernels are chosen while the load is being measured

    def predict(self, inputs: list[Input]) -> list[AnyResult]:
        """All inputs in one forward pass."""
        wanted = [read_options(self._configured, item.options, Options).top_k for item in inputs]
        frames = [require_image(item) for item in inputs]
        for frame in frames:
            if frame.size == 0:
                raise InvalidInput(f"frame: it has no pixels, its shape is {frame.shape}")
        out: list[AnyResult] = []
        for row, top_k in zip(self._forward(frames), wanted, strict=True):
            order = np.argsort(-row, kind="stable")[:top_k]
            out.append(Classification(labels=[self._labels[i] for i in order], scores=row[order]))
        return out

    def _forward(self, frames: list[np.ndarray]) -> np.ndarray:
        """(n, labels) float32 probabilities."""
        # A copy in the caller's order of pixels: torch takes neither a backward view nor read-only memory. The order
        # of the axes is said, because a frame three pixels high could be taken either way.
        pixels = self._processor(
            [torch.from_numpy(frame.copy(order="C")) for frame in frames],
            input_data_format="channels_last",
            return_tensors="pt",
            device=self._device,
        )["pixel_values"]
        with torch.inference_mode():
            logits = self._model(pixel_values=pixels.to(self._device, self._model.dtype)).logits
            probabilities: np.ndarray = logits.float().softmax(-1).cpu().numpy()
        return probabilities
