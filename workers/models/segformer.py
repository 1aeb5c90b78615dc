"""SegFormer: a class for every pixel of a picture, from a local transformers folder; here, a person's clothes.

Importing this module imports everything that loading and predicting touch and runs no tensor operation: the nursery
preloads it. Labels are the checkpoint's `id2label`.

Options: `min_coverage`, the share of the picture that a label has to cover to be reported; `max_batch`, most pictures
in one forward pass. In config.toml alone: `half`, to run in half precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np
import torch
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.models.segformer.image_processing_segformer import SegformerImageProcessor
from transformers.models.segformer.modeling_segformer import SegformerForSemanticSegmentation

from workers.models.base import AnyResult, Input, Spec, images, unservable
from workers.models.shared import batches, folder
from zoo.errors import InvalidInput
from zoo.labels import folded
from zoo.results import Segmentation

WHAT = "a SegFormer segmentation model"
MAX_CLASSES = 256  # of an 8-bit mask

# The library scales the scores of all classes to the picture's size before it takes the best: 18 of them cost 72 bytes
# per pixel, 600 MB for a 4K frame. What is larger would not stay within the model's share of the budget.
MAX_PIXELS = 1 << 23
MAX_MASKS = 1 << 27  # pixels, and bytes, of all masks of one call


class SegmenterOptions(batches.PassOptions, frozen=True, forbid_unknown_fields=True):
    """`min_coverage`: share of the picture that a label has to cover to be reported."""

    max_batch: Annotated[int, msgspec.Meta(ge=1, le=256)] = 8
    min_coverage: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.01


class Segmenter:
    """One folder with config.json, preprocessor_config.json and model.safetensors."""

    max_frames = 1

    def load(self, spec: Spec, device: str) -> None:
        """Raises ModelUnavailable without the folder, LoadFailed when what is in it cannot be served."""
        self._options = batches.Configured(spec, SegmenterOptions)
        self.max_batch = self._options.own.max_batch
        config = folder.open_config(spec, "segformer", WHAT)
        if config.num_labels > MAX_CLASSES:
            raise unservable(spec, f"{spec.path} has {config.num_labels} classes; at most {MAX_CLASSES} fit a mask")
        self._vision = folder.Vision(
            spec, device, SegformerForSemanticSegmentation, WHAT, processor=SegformerImageProcessor,
            half=self._options.own.half, config=config,
        )  # fmt: skip
        self.labels = folder.labels_of(spec, config)
        self._forward([np.zeros((512, 512, 3), np.uint8)])  # kernels are chosen while the load is being measured

    def predict(self, inputs: list[Input]) -> list[AnyResult]:
        """All inputs in one forward pass, or in as few as `max_batch` allows.

        Raises:
            InvalidInput: a picture has more than `MAX_PIXELS` pixels, or all together more than `MAX_MASKS`.
        """
        asked = self._options.of(inputs)
        frames = images(inputs)
        for frame in frames:
            height, width = frame.shape[:2]
            if height * width > MAX_PIXELS:
                raise InvalidInput(
                    f"frame: {width}x{height} pixels are too many; at most {MAX_PIXELS} are taken: send a crop (boxes)"
                )
        total = sum(frame.shape[0] * frame.shape[1] for frame in frames)
        if total > MAX_MASKS:
            raise InvalidInput(f"boxes: together they have {total} pixels; at most {MAX_MASKS} are taken at once")
        masks = batches.in_passes(asked, frames, self._forward)
        return [
            Segmentation(mask=mask, labels=self.labels, coverage=self._coverage(mask, options.min_coverage))
            for mask, options in zip(masks, asked, strict=True)
        ]

    def _coverage(self, mask: np.ndarray, least: float) -> dict[str, float]:
        """The share of all pixels per label, the largest first, without the background: it is none of the things."""
        shares = np.bincount(mask.reshape(-1), minlength=len(self.labels)) / mask.size
        found: dict[str, float] = {}
        for label, share in zip(self.labels, shares, strict=True):  # several classes may have one label
            found[label] = found.get(label, 0.0) + float(share)
        things = [(label, share) for label, share in found.items() if folded(label) != "background"]
        return {
            label: share for label, share in sorted(things, key=lambda thing: -thing[1]) if share > 0 and share >= least
        }

    def _forward(self, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
        """(h, w) uint8 for each of the frames."""
        with torch.inference_mode():
            logits = self._vision(frames).logits.float()
            # One at a time, for the library keeps the enlarged scores of all that it is given together.
            found = [
                self._vision.processor.post_process_semantic_segmentation(
                    SemanticSegmenterOutput(logits=logits[i : i + 1]), target_sizes=[frame.shape[:2]]
                )[0]
                for i, frame in enumerate(frames)
            ]
            return [mask.to(torch.uint8).cpu().numpy() for mask in found]
