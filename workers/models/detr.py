"""Detectors that answer a set of boxes: RT-DETR, RT-DETRv2, D-FINE and RF-DETR, from a local transformers folder.

They need no non-maximum suppression, and scale a picture whole, whatever its proportions, to one size of their own, so
that crops of any shapes share a forward pass. A folder whose processor keeps proportions, with padding, is refused.

So is half precision on a CPU: there torch's `grid_sample`, by which these networks look around a box, reads memory that
is not its own in half precision (2.15), and answers NaN every now and then.

Importing this module imports everything that loading and predicting touch and runs no tensor operation: the nursery
preloads it. Labels are the checkpoint's `id2label`.

Options, in config.toml's `options` table or with a request: those of `DetrOptions`. In config.toml alone: `half`, to
run in half precision on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
import torch
import transformers.models.d_fine.modeling_d_fine
import transformers.models.hgnet_v2.modeling_hgnet_v2
import transformers.models.rf_detr.image_processing_rf_detr
import transformers.models.rf_detr.modeling_rf_detr
import transformers.models.rt_detr.image_processing_rt_detr
import transformers.models.rt_detr.modeling_rt_detr
import transformers.models.rt_detr.modeling_rt_detr_resnet
import transformers.models.rt_detr_v2.modeling_rt_detr_v2  # noqa: F401
from transformers import AutoConfig, AutoModelForObjectDetection

from workers.models.base import AnyResult, Input, Spec, configured, images, require_numbers, unservable
from workers.models.shared import batches, folder
from zoo.labels import Classes
from zoo.results import Detections

WHAT = "a detector of the DETR family"
FAMILIES = ("rt_detr", "rt_detr_v2", "d_fine", "rf_detr")


class DetrOptions(batches.PassOptions, frozen=True, forbid_unknown_fields=True):
    """What the detectors of this family take.

    Attributes:
        conf: least score of a box, 0 to 1. The default is the library's.
        classes: only these, by label or by number; None for all.
        max_det: most boxes per frame, the best ones; never more than the checkpoint has queries.
        max_batch, half: see `PassOptions`.
    """

    conf: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5
    classes: tuple[int | str, ...] | None = None
    max_det: Annotated[int, msgspec.Meta(ge=1, le=3000)] = 300
    max_batch: batches.BatchSize = 8


class Raw(NamedTuple):
    """What the network says of one frame: (queries, classes) logits and (queries, 4) boxes, on its device."""

    logits: Any
    pred_boxes: Any


class ObjectDetector:
    """One folder with config.json, preprocessor_config.json and model.safetensors."""

    max_frames = 1

    def load(self, spec: Spec, device: str) -> None:
        """Raises ModelUnavailable without the folder, LoadFailed when what is in it cannot be served."""
        self._options = batches.Configured(spec, DetrOptions)
        own = self._options.own
        self.max_batch = own.max_batch
        if own.half and device == "cpu":
            raise unservable(
                spec, "options in config.toml: half: on a CPU this network needs single precision; leave half out"
            )
        config = folder.open_processor(spec, AutoConfig, WHAT)
        if config.model_type not in FAMILIES:
            raise unservable(
                spec,
                f"{spec.path} holds a model of type {config.model_type!r}; this adapter serves {', '.join(FAMILIES)}",
            )
        self._vision = folder.Vision(spec, device, AutoModelForObjectDetection, WHAT, half=own.half, config=config)
        size = dict(getattr(self._vision.processor, "size", None) or {})
        if not size.get("height") or not size.get("width"):
            raise unservable(
                spec, f"{spec.path} scales pictures to {size}; this adapter serves one size, whatever comes"
            )
        self.labels = folder.labels_of(spec, config)
        self._classes = Classes(self.labels)
        with configured(spec):
            self._classes.numbers(own.classes)
        # Kernels are chosen while the load is being measured.
        (raw,) = self._forward([np.zeros((size["height"], size["width"], 3), np.uint8)])
        require_numbers(spec, raw.logits.cpu().numpy(), raw.pred_boxes.cpu().numpy())

    def predict(self, inputs: list[Input]) -> list[AnyResult]:
        """All inputs in one forward pass, or in as few as `max_batch` allows."""
        asked = self._options.of(inputs)
        frames = images(inputs)
        classes = [self._classes.numbers(options.classes) for options in asked]
        found = batches.in_passes(asked, frames, self._forward)
        return [self._detections(*one) for one in zip(found, frames, asked, classes, strict=True)]

    def _forward(self, frames: Sequence[np.ndarray]) -> list[Raw]:
        found = self._vision(frames)
        return [Raw(*one) for one in zip(found.logits.float(), found.pred_boxes.float(), strict=True)]

    def _detections(self, raw: Raw, frame: np.ndarray, options: DetrOptions, classes: list[int] | None) -> Detections:
        logits = raw.logits
        if classes is not None:  # before the best are chosen, so that others take no places
            logits = torch.full_like(logits, -torch.inf)
            logits[:, classes] = raw.logits[:, classes]
        (found,) = self._vision.processor.post_process_object_detection(
            Raw(logits[None], raw.pred_boxes[None]), threshold=options.conf, target_sizes=[frame.shape[:2]]
        )
        boxes, scores, numbers = (found[key][: options.max_det].cpu().numpy() for key in ("boxes", "scores", "labels"))
        return Detections(
            boxes=boxes,
            scores=scores,
            class_ids=numbers.astype(np.int32),
            labels=[self.labels[number] for number in numbers],
        )
