"""Ultralytics checkpoints: boxes, boxes with masks, or people with keypoints, whichever the weights were made for.

Importing this module imports everything that loading and predicting touch and runs no tensor operation: the
nursery preloads it and every worker is forked from there. Labels are the checkpoint's own (`model.names`).

Options, in config.toml's `options` table or with a request: those of `predictor.Settings`, and `classes`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from workers.models.base import AnyResult, Input, Spec, images, load_options, read_options
from workers.models.shared import keypoints
from workers.models.shared.predictor import Network, Settings, rows_of, served
from zoo.errors import InvalidInput, LoadFailed
from zoo.results import Detections, Keypoints


class Options(Settings, frozen=True, forbid_unknown_fields=True):
    """`classes`: only these, by label or by number; None for all."""

    classes: tuple[int | str, ...] | None = None


class Detector:
    """One checkpoint, answering `Detections` (with masks from a segmentation one) or `Keypoints`."""

    max_frames = 1

    def load(self, spec: Spec, device: str) -> None:
        """Raises ModelUnavailable without weights, LoadFailed when they are not trusted, damaged or of another kind."""
        options = load_options(spec, Options)
        self._configured = spec.options
        self.max_batch = options.max_batch
        with served(spec):
            self._open(spec, device, options)

    def _open(self, spec: Spec, device: str, options: Options) -> None:
        self._network = Network(spec, device, options)
        task, category = self._network.task, spec.category
        if category in ("detection", "pose") and (category == "pose") != (task == "pose"):
            raise LoadFailed(
                f"{spec.name}: {spec.path} is a checkpoint for {task!r}; config.toml says category = {category!r}",
                retryable=False,
            )
        self._numbers: dict[str, list[int]] = {}  # several where a checkpoint gives one label to several classes
        for i, name in self._network.names.items():
            self._numbers.setdefault(name, []).append(i)
        self._keypoint_names = _keypoint_names(self._network.model)
        try:
            self._classes(options)
        except InvalidInput as e:
            raise LoadFailed(f"{spec.name}: options in config.toml: {e}", retryable=False) from e
        self._network.warm_up(options)

    def predict(self, inputs: list[Input]) -> list[AnyResult]:
        """One call of the network for the inputs that agree in their options."""
        frames = images(inputs)
        groups: dict[Options, list[int]] = {}
        for i, item in enumerate(inputs):
            groups.setdefault(read_options(self._configured, item.options, Options, fixed=("half",)), []).append(i)
        classes = {options: self._classes(options) for options in groups}
        out: dict[int, AnyResult] = {}
        for options, members in groups.items():
            found = self._network([frames[i] for i in members], options, classes[options])
            out.update((i, self._result(one)) for i, one in zip(members, found, strict=True))
        return [out[i] for i in range(len(inputs))]

    def _classes(self, options: Options) -> list[int] | None:
        """Raises InvalidInput for one that the checkpoint does not have."""
        if options.classes is None:
            return None
        names = self._network.names
        if unknown := [c for c in options.classes if c not in names and c not in self._numbers]:
            raise InvalidInput(f"options: classes: {unknown[0]!r} is none of {', '.join(names.values())}")
        return [i for c in options.classes for i in ([c] if isinstance(c, int) else self._numbers[c])]

    def _result(self, found: Any) -> AnyResult:
        rows, order = rows_of(found)
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
