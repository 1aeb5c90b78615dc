"""Depth Anything: how near everything in a frame is, from a local transformers folder.

Depth is relative to the rest of the picture, so the map is always the whole frame's, computed once, and each box gets
its part of it: boxes of one frame compare with each other. Larger is nearer (inverse depth, as the network was
trained); a checkpoint made for metres, where larger is farther, is refused.

Importing this module imports everything that loading and predicting touch and runs no tensor operation: the nursery
preloads it.

Options: `max_batch`, most frames in one forward pass. In config.toml alone: `half`, to run in half precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np
import torch
import transformers.models.dinov2.modeling_dinov2  # noqa: F401
from transformers.modeling_outputs import DepthEstimatorOutput
from transformers.models.depth_anything.modeling_depth_anything import DepthAnythingForDepthEstimation
from transformers.models.dpt.image_processing_dpt import DPTImageProcessor

from workers.models.base import AnyResult, Input, Spec, images, require_numbers, unservable
from workers.models.shared import batches, folder
from zoo.errors import InvalidInput
from zoo.results import DepthMap

WHAT = "a Depth Anything model"

# The library scales one side to the network's 518 and keeps the proportions: for a longer frame the input, and with it
# the time and the memory, grow without bound, or the shorter side vanishes. At 8:1 it is eight times the usual one.
MAX_RATIO = 8


class DepthOptions(batches.PassOptions, frozen=True, forbid_unknown_fields=True):
    """With fewer in one pass."""

    max_batch: Annotated[int, msgspec.Meta(ge=1, le=256)] = 4


class DepthEstimator:
    """One folder with config.json, preprocessor_config.json and model.safetensors."""

    max_frames = 1

    def load(self, spec: Spec, device: str) -> None:
        """Raises ModelUnavailable without the folder, LoadFailed when what is in it cannot be served."""
        self._options = batches.Configured(spec, DepthOptions)
        self.max_batch = self._options.own.max_batch
        config = folder.open_config(spec, "depth_anything", WHAT)
        if config.depth_estimation_type != "relative":
            raise unservable(
                spec,
                f"{spec.path} estimates {config.depth_estimation_type} depth, where larger is farther; "
                "this adapter serves relative inverse depth, where larger is nearer",
            )
        self._vision = folder.Vision(
            spec, device, DepthAnythingForDepthEstimation, WHAT, processor=DPTImageProcessor,
            half=self._options.own.half, config=config,
        )  # fmt: skip
        # Kernels are chosen while the load is being measured.
        require_numbers(spec, *self._forward([np.zeros((518, 518, 3), np.uint8)]))

    def predict(self, inputs: list[Input]) -> list[AnyResult]:
        """Each frame once, however many boxes look at it; frames of one size in as few passes as `max_batch` allows.

        Raises:
            InvalidInput: a frame is more than `MAX_RATIO` times as long as it is wide.
        """
        asked = self._options.of(inputs)
        images(inputs)
        frames = {id(item.whole): item.whole for item in inputs}
        alike: dict[tuple[int, ...], list[int]] = {}
        for key, frame in frames.items():
            height, width = frame.shape[:2]
            if max(height, width) > MAX_RATIO * min(height, width):
                raise InvalidInput(f"frame: {width}x{height} is too long; at most {MAX_RATIO}:1 is taken")
            alike.setdefault(frame.shape, []).append(key)
        maps: dict[int, np.ndarray] = {}
        for keys in alike.values():
            maps |= zip(keys, batches.in_passes(asked, [frames[key] for key in keys], self._forward), strict=True)
        out: list[AnyResult] = []
        for item in inputs:
            x1, y1, x2, y2 = item.box or (0, 0, item.whole.shape[1], item.whole.shape[0])
            out.append(DepthMap(depth=maps[id(item.whole)][y1:y2, x1:x2]))
        return out

    def _forward(self, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
        """(h, w) float32 for each of the frames, which are of one size."""
        sizes = [frame.shape[:2] for frame in frames]
        with torch.inference_mode():
            depth = self._vision(frames).predicted_depth.float()
            found = self._vision.processor.post_process_depth_estimation(
                DepthEstimatorOutput(predicted_depth=depth), target_sizes=sizes
            )
        # The library drops sides of one pixel.
        return [item["predicted_depth"].cpu().numpy().reshape(size) for item, size in zip(found, sizes, strict=True)]
