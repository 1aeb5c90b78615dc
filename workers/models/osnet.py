"""People as vectors, to tell whether two pictures show the same person: OSNet x0.25 (`osnet_network.py`).

The weights are a state dict (see `state_dict.py`) with the published names; those of a classifier, which differ in
number by what it was trained on, are left alone. Importing this module imports everything that loading and predicting
touch and runs no tensor operation: the nursery preloads it.

Options: `max_batch`, most persons in one forward pass. In config.toml alone: `half`, to run in half precision.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import numpy as np
import torch
from torch.nn.functional import normalize

from workers.models.base import AnyResult, Input, Spec, chunks, images, load_options, read_options, require_numbers
from workers.models.shared import state_dict
from workers.models.shared.imagenet import squeezed
from workers.models.shared.osnet_network import osnet_x0_25
from zoo.errors import ModelUnavailable
from zoo.results import Embedding

HEIGHT, WIDTH = 256, 128


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`max_batch`: pictures in one pass. `half`: precision."""

    max_batch: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 32
    half: bool = False


class PersonEmbedder:
    """Answers an `Embedding` of 512 numbers per crop of a person: the scalar product of two is their likeness."""

    max_frames = 1

    def load(self, spec: Spec, device: str) -> None:
        """Raises ModelUnavailable without weights, LoadFailed when they are not trusted, damaged or of another kind."""
        options = load_options(spec, Options)
        if spec.path is None or not spec.path.is_file():
            raise ModelUnavailable(f"{spec.name}: no weights at {spec.path}; fetch them with: zoo pull {spec.name}")
        torch.set_num_threads(spec.threads)
        tensors = state_dict.read(spec, spec.path)
        kept = {name: value for name, value in tensors.items() if not name.startswith("classifier.")}
        self._configured = spec.options
        self.max_batch = options.max_batch
        self._device = device
        network = state_dict.build(spec, osnet_x0_25, kept, "an OSNet x0.25", device, half=options.half)
        # Its many small convolutions take a fifth less time on a CPU with channels that lie side by side.
        self._network = network.to(memory_format=torch.channels_last)
        # Kernels are chosen while the load is being measured.
        require_numbers(spec, self._forward([np.zeros((HEIGHT, WIDTH, 3), np.uint8)]))

    def predict(self, inputs: list[Input]) -> list[AnyResult]:
        """All inputs in one forward pass, or in as few as `max_batch` allows."""
        asked = [read_options(self._configured, item.options, Options, fixed=("half",)) for item in inputs]
        frames = images(inputs)
        size = min((options.max_batch for options in asked), default=1)
        return [Embedding(vector=row) for some in chunks(frames, size) for row in self._forward(some)]

    def _forward(self, frames: Any) -> np.ndarray:
        """(n, 512) float32, each of unit length."""
        pixels = squeezed(frames, HEIGHT, WIDTH, self._device, self._network.conv1.conv.weight.dtype)
        with torch.inference_mode():
            vectors: np.ndarray = normalize(self._network(pixels).float(), dim=-1).cpu().numpy()
        return vectors
