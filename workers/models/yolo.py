"""Ultralytics checkpoints: boxes, boxes with masks, or people with keypoints, whichever the weights were made for.

Importing this module imports everything that loading and predicting touch and runs no tensor operation: the
nursery preloads it and every worker is forked from there. Labels are the checkpoint's own (`model.names`).

Options, in config.toml's `options` table or with a request: those of `predictor.YoloOptions`, and `classes`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from workers.models.base import AnyResult, Input, Spec, configured, images, unservable
from workers.models.shared import batches, keypoints, predictor
from zoo.labels import Classes
from zoo.results import Detections, Keypoints


class DetectorOptions(predictor.YoloOptions, frozen=True, forbid_unknown_fields=True):
    """`classes`: only these, by label (see `zoo.labels`) or by number; None for all."""

    classes: tuple[int | str, ...] | None = None


class Detector:
    """One checkpoint, answering `Detections` (with masks from a segmentation one) or `Keypoints`."""

    max_frames = 1

    def load(self, spec: Spec, device: str) -> None:
        """Raises ModelUnavailable without weights, LoadFailed when they are not trusted, damaged or of another kind."""
        self._options = batches.Configured(spec, DetectorOptions)
        self.max_batch = self._options.own.max_batch
        with predictor.served(spec):
            self._open(spec, device, self._options.own)

    def _open(self, spec: Spec, device: str, options: DetectorOptions) -> None:
        self._network = predictor.Network(spec, device, options)
        task, category = self._network.task, spec.category
        if category in ("detection", "pose") and (category == "pose") != (task == "pose"):
            raise unservable(
                spec, f"{spec.path} is a checkpoint for {task!r}; config.toml says category = {category!r}"
            )
        self.labels = [*self._network.names.values()]
        self._classes = Classes(self._network.names)
        self._keypoint_names = _keypoint_names(self._network.model)
        with configured(spec):
            self._classes.numbers(options.classes)
        self._network.warm_up(options)

    def predict(self, inputs: list[Input]) -> list[AnyResult]:
        """One call of the network for the inputs that agree in their options."""
        frames = images(inputs)
        asked = self._options.of(inputs)
        classes = {options: self._classes.numbers(options.classes) for options in asked}
        found = batches.by_options(asked, frames, lambda options, some: self._network(some, options, classes[options]))
        return [self._result(one) for one in found]

    def _result(self, found: Any) -> AnyResult:
        rows, order = predictor.rows_of(found)
        boxes, scores = rows[:, :4], rows[:, 4]
        if self._network.task == "pose":
            points = found.keypoints.data.cpu().numpy().astype(np.float32, copy=False)
            points = points.reshape(-1, len(self._keypoint_names), points.shape[-1])[order]
            # A checkpoint without visibilities gives each point the score of its person.
            seen = points[..., 2] if points.shape[-1] == 3 else np.repeat(scores[:, None], points.shape[1], 1)
            return Keypoints(
                points=np.ascontiguousarray(points[..., :2]),
                scores=np.ascontiguousarray(seen),
                boxes=boxes,
                names=self._keypoint_names,
            )
        class_ids = rows[:, 5].astype(np.int32)
        masks = None
        if self._network.task == "segment":
            if found.masks is None:
                masks = np.zeros((0, *found.orig_shape), bool)
            else:
                masks = found.masks.data.cpu().numpy()[order].view(bool)  # they are bytes of 0 and 1
        return Detections(
            boxes=boxes,
            scores=scores,
            class_ids=class_ids,
            labels=[self._network.names[int(i)] for i in class_ids],
            masks=masks,
        )


def _keypoint_names(model: Any) -> list[str]:
    """The checkpoint's own names if it carries them, COCO's for 17 points, else numbers."""
    count = int(getattr(model, "kpt_shape", (0,))[0])
    named = getattr(model, "kpt_names", None)
    if isinstance(named, dict) and named:
        first = [str(name) for name in next(iter(named.values()))]
        if len(first) == count:
            return first
    return keypoints.unnamed(count)
