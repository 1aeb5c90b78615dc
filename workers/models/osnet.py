"""People as vectors, to tell whether two pictures show the same person: OSNet x0.25 (`osnet_network.py`).

The weights are a state dict (see `state_dict.py`) with the published names; those of a classifier, which differ in
number by what it was trained on, are left alone. Importing this module imports everything that loading and predicting
touch and runs no tensor operation: the nursery preloads it.

Options: `max_batch`, most persons in one forward pass. In config.toml alone: `half`, to run in half precision.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from workers.models.base import AnyResult, Input, Spec, images, not_there, require_numbers
from workers.models.shared import state_dict
from workers.models.shared.batches import Configured, PassOptions, in_passes
from workers.models.shared.osnet_network import osnet_x0_25
from workers.models.shared.pictures import squeezed
from zoo.results import Embedding

HEIGHT, WIDTH = 256, 128


class PersonEmbedder:
    """Answers an `Embedding` of 512 numbers per crop of a person: the scalar product of two is their likeness."""

    max_frames = 1

    def load(self, spec: Spec, device: str) -> None:
        """Raises ModelUnavailable without weights, LoadFailed when they are not trusted, damaged or of another kind."""
        self._options = Configured(spec, PassOptions)
        self.max_batch = self._options.own.max_batch
        self._device = device
        if spec.path is None or not spec.path.is_file():
            raise not_there(spec, f"no weights at {spec.path}")
        torch.set_num_threads(spec.threads)
        tensors = state_dict.read(spec, spec.path)
        kept = {name: value for name, value in tensors.items() if not name.startswith("classifier.")}
        network = state_dict.build(spec, osnet_x0_25, kept, "an OSNet x0.25", device, half=self._options.own.half)
        # Its many small convolutions take a fifth less time on a CPU with channels that lie side by side.
        self._network = network.to(memory_format=torch.channels_last)
        # Kernels are chosen while the load is being measured.
        require_numbers(spec, self._forward([np.zeros((HEIGHT, WIDTH, 3), np.uint8)]))

    def predict(self, inputs: list[Input]) -> list[AnyResult]:
        """All inputs in one forward pass, or in as few as `max_batch` allows."""
        rows = in_passes(self._options.of(inputs), images(inputs), self._forward)
        return [Embedding(vector=row) for row in rows]

    def _forward(self, frames: Any) -> np.ndarray:
        """(n, 512) float32, each of unit length."""
        pixels = squeezed(frames, HEIGHT, WIDTH, self._device, self._network.conv1.conv.weight.dtype)
        with torch.inference_mode():
            vectors: np.ndarray = normalize(self._network(pixels).float(), dim=-1).cpu().numpy()
        return vectors
