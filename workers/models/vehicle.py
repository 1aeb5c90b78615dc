"""Kinds of vehicles: a torchvision ResNet-50 with a last layer and labels of its own.

The folder holds `pytorch_model.bin` or `model.safetensors`, the state dict (see `state_dict.py`), and `classes.txt`, a
label per line in the order of the last layer. Importing this module imports everything that loading and predicting
touch and runs no tensor operation: the nursery preloads it.

Options: `top_k`, how many labels to answer with, the most probable first, all of them without it; `max_batch`, most
pictures in one forward pass. In config.toml alone: `half`, to run in half precision.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torchvision.models import resnet50

from workers.models.base import AnyResult, Input, Spec, damaged, images, not_there, require_numbers, unservable
from workers.models.shared import batches, pictures, state_dict
from zoo.system import files
from zoo.weights.labels import lines

SIDE = 224
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
LABELS = "classes.txt"


class VehicleClassifier:
    """Answers `Classification`."""

    max_frames = 1

    def load(self, spec: Spec, device: str) -> None:
        """Raises ModelUnavailable without weights, LoadFailed when they are not trusted, damaged or of another kind,
        or the labels are not as many as the last layer has outputs.
        """
        self._options = batches.Configured(spec, batches.RankOptions)
        self.max_batch = self._options.own.max_batch
        self._device = device
        path = spec.path
        file = next((path / name for name in WEIGHTS if (path / name).is_file()), None) if path else None
        if path is None or file is None:
            raise not_there(spec, f"no weights in {path}")
        torch.set_num_threads(spec.threads)
        tensors = state_dict.read(spec, file)
        if "fc.weight" not in tensors:
            raise unservable(spec, f"{file} has no fc.weight; it is not of a torchvision ResNet")
        outputs = len(tensors["fc.weight"])
        self.labels = _read_labels(spec, outputs)
        make, what = functools.partial(resnet50, num_classes=outputs), "a torchvision ResNet-50"
        self._network = state_dict.build(spec, make, tensors, what, device, half=self._options.own.half)
        # Kernels are chosen while the load is being measured.
        require_numbers(spec, self._forward([np.zeros((SIDE, SIDE, 3), np.uint8)]))

    def predict(self, inputs: list[Input]) -> list[AnyResult]:
        """All inputs in one forward pass, or in as few as `max_batch` allows."""
        return batches.classified(self.labels, self._options.of(inputs), images(inputs), self._forward)

    def _forward(self, frames: Any) -> np.ndarray:
        """(n, labels) float32 probabilities."""
        pixels = pictures.squeezed(frames, SIDE, SIDE, self._device, self._network.fc.weight.dtype)
        with torch.inference_mode():
            probabilities: np.ndarray = self._network(pixels).float().softmax(-1).cpu().numpy()
        return probabilities


def _read_labels(spec: Spec, outputs: int) -> list[str]:
    assert spec.path is not None
    file = spec.path / LABELS
    try:
        labels = lines(files.read_regular(file, files.MAX_TEXT))
    except (OSError, UnicodeDecodeError) as e:
        raise damaged(spec, f"the labels, {file}, cannot be read ({e})") from e
    if len(labels) != outputs:
        raise unservable(spec, f"{file} has {len(labels)} labels, the checkpoint {outputs} classes")
    return labels
