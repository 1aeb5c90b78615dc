"""Kinds of vehicles: a torchvision ResNet-50 with a last layer and labels of its own.

The folder holds `pytorch_model.bin` or `model.safetensors`, the state dict (see `state_dict.py`), and `classes.txt`, a
label per line in the order of the last layer. Importing this module imports everything that loading and predicting
touch and runs no tensor operation: the nursery preloads it.

Options: `top_k`, how many labels to answer with, the most probable first, all of them without it; `max_batch`, most
pictures in one forward pass. In config.toml alone: `half`, to run in half precision.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import numpy as np
import torch
from torchvision.models import resnet50

from workers.models.base import AnyResult, Input, Spec, chunks, images, load_options, read_options, require_numbers
from workers.models.shared import state_dict
from workers.models.shared.imagenet import squeezed
from zoo.errors import LoadFailed, ModelUnavailable
from zoo.results import Classification
from zoo.system import files

SIDE = 224
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
LABELS = "classes.txt"


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`top_k`: how many labels to answer with; None for all. `max_batch`: pictures in one pass. `half`: precision."""

    top_k: Annotated[int, msgspec.Meta(ge=1)] | None = None
    max_batch: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 32
    half: bool = False


class VehicleClassifier:
    """Answers `Classification`."""

    max_frames = 1

    def load(self, spec: Spec, device: str) -> None:
        """Raises ModelUnavailable without weights, LoadFailed when they are not trusted, damaged or of another kind,
        or the labels are not as many as the last layer has outputs.
        """
        options = load_options(spec, Options)
        path = spec.path
        file = next((path / name for name in WEIGHTS if (path / name).is_file()), None) if path else None
        if path is None or file is None:
            raise ModelUnavailable(f"{spec.name}: no weights in {path}; fetch them with: zoo pull {spec.name}")
        torch.set_num_threads(spec.threads)
        tensors = state_dict.read(spec, file)
        if "fc.weight" not in tensors:
            raise LoadFailed(
                f"{spec.name}: {file} has no fc.weight; it is not of a torchvision ResNet", retryable=False
            )
        outputs = len(tensors["fc.weight"])
        self._labels = _read_labels(spec, outputs)
        self._configured = spec.options
        self.max_batch = options.max_batch
        self._device = device
        self._network = state_dict.build(
            spec, lambda: resnet50(num_classes=outputs), tensors, "a torchvision ResNet-50", device, half=options.half
        )
        # Kernels are chosen while the load is being measured.
        require_numbers(spec, self._forward([np.zeros((SIDE, SIDE, 3), np.uint8)]))

    def predict(self, inputs: list[Input]) -> list[AnyResult]:
        """All inputs in one forward pass, or in as few as `max_batch` allows."""
        asked = [read_options(self._configured, item.options, Options, fixed=("half",)) for item in inputs]
        frames = images(inputs)
        size = min((options.max_batch for options in asked), default=1)
        rows = [row for some in chunks(frames, size) for row in self._forward(some)]
        out: list[AnyResult] = []
        for row, options in zip(rows, asked, strict=True):
            order = np.argsort(-row, kind="stable")[: options.top_k]
            out.append(Classification(labels=[self._labels[i] for i in order], scores=row[order]))
        return out

    def _forward(self, frames: Any) -> np.ndarray:
        """(n, labels) float32 probabilities."""
        pixels = squeezed(frames, SIDE, SIDE, self._device, self._network.fc.weight.dtype)
        with torch.inference_mode():
            probabilities: np.ndarray = self._network(pixels).float().softmax(-1).cpu().numpy()
        return probabilities


def _read_labels(spec: Spec, outputs: int) -> list[str]:
    assert spec.path is not None
    file = spec.path / LABELS
    try:
        lines = files.read_regular(file, files.MAX_TEXT).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise LoadFailed(
            f"{spec.name}: the labels, {file}, cannot be read ({e}); fetch them with: zoo pull {spec.name}",
            retryable=False,
        ) from e
    labels = [line.strip() for line in lines if line.strip()]
    if len(labels) != outputs:
        raise LoadFailed(
            f"{spec.name}: {file} has {len(labels)} labels, the checkpoint {outputs} classes", retryable=False
        )
    return labels
