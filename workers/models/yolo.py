"""Ultralytics checkpoints: boxes, boxes with masks, or people with keypoints, whichever the weights were made for.

Importing this module imports everything that loading and predicting touch and runs no tensor operation: the
nursery preloads it and every worker is forked from there. Labels are the checkpoint's own (`model.names`).

Options, in config.toml's `options` table or with a request: `conf`, `iou`, `imgsz`, `max_det`, `classes`.

Checkpoints are pickles. They are read with ultralytics' allow-list of model classes, so a file cannot run code of
its own while it loads; `ULTRALYTICS_SAFE_LOAD=false` in the environment turns that off for a file that you trust.
"""

from __future__ import annotations

import os

# Before ultralytics is imported, because it reads them then: it would install packages and look for the network.
os.environ.setdefault("YOLO_AUTOINSTALL", "false")
os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_VERBOSE", "false")
os.environ.setdefault("ULTRALYTICS_SAFE_LOAD", "true")

from typing import Annotated, Any

import msgspec
import numpy as np
import torch
import torch.utils.serialization
import torchvision  # noqa: F401  (its operators do the non-maximum suppression)
import ultralytics.models.yolo.detect
import ultralytics.models.yolo.pose
import ultralytics.models.yolo.segment
import ultralytics.nn.tasks
import ultralytics.utils.events
import ultralytics.utils.nms
from ultralytics import YOLO

from workers.models.base import AnyResult, Input, Spec, read_options, require_image
from zoo.errors import InvalidInput, LoadFailed, ModelUnavailable
from zoo.results import Detections, Keypoints

# Said again, for somebody else may have imported the library before this module could say it above.
ultralytics.nn.tasks.SAFE_LOAD = os.environ["ULTRALYTICS_SAFE_LOAD"].lower() != "false"

TASKS = ("detect", "segment", "pose")
STRIDE = 32  # the coarsest grid of every published checkpoint; sizes are rounded up to it

COCO_KEYPOINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Side = Annotated[int, msgspec.Meta(ge=STRIDE, le=4096)]
# Not `tuple[Side, Side]`: in msgspec 0.22 a bounded number in a union with a fixed-length tuple corrupts its type
# information, and the next garbage collection ends the process.
Sides = Annotated[tuple[Side, ...], msgspec.Meta(min_length=2, max_length=2)]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a request may ask for.

    Attributes:
        conf: least score of a box. iou: boxes of one class that overlap more are one. Both 0 to 1.
        imgsz: pixels that the frame's longer side is scaled to, or (height, width); a multiple of 32.
        max_det: most boxes per frame, the best ones.
        classes: only these, by label or by number; None for all.
    """

    conf: Share = 0.25
    iou: Share = 0.7
    imgsz: Side | Sides = 640
    max_det: Annotated[int, msgspec.Meta(ge=1, le=3000)] = 300
    classes: tuple[int | str, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("conf", "iou"):
            value = getattr(self, name)
            if value != value:
                raise ValueError(f"{name} is not a number (NaN)")


class Detector:
    """One checkpoint, answering `Detections` (with masks from a segmentation one) or `Keypoints`."""

    def load(self, spec: Spec, device: str) -> None:
        """Raises ModelUnavailable without weights, LoadFailed when they are damaged or of another kind."""
        if spec.path is None or not spec.path.is_file():
            raise ModelUnavailable(f"{spec.name}: no weights at {spec.path}; fetch them with: zoo pull {spec.name}")
        self._configured = spec.options
        # First, or every small operation of the load is split over all cores: three times slower where those are busy.
        torch.set_num_threads(spec.threads)
        try:
            yolo = YOLO(str(spec.path))
        except Exception as e:
            raise LoadFailed(
                f"{spec.name}: {spec.path} is not an ultralytics checkpoint, or is damaged "
                f"({type(e).__name__}: {_first_line(e)}); fetch it again with: zoo pull {spec.name}",
                retryable=False,
            ) from e
        if yolo.task not in TASKS:
            raise LoadFailed(
                f"{spec.name}: the checkpoint is for {yolo.task!r}; this adapter serves {', '.join(TASKS)}",
                retryable=False,
            )
        self._yolo: Any = yolo
        self._device = device
        self._names: dict[int, str] = {int(i): str(name) for i, name in dict(yolo.names).items()}
        self._numbers = {name: i for i, name in self._names.items()}
        self._keypoint_names = _keypoint_names(yolo.model)
        try:
            options = self._options({})
        except InvalidInput as e:
            raise LoadFailed(f"{spec.name}: options in config.toml: {e}", retryable=False) from e
        # The predictor asks for a copy of the model and gets the model: nobody else uses it.
        given = yolo.model
        given.__deepcopy__ = lambda _: given
        if device == "cpu":  # it compiles nothing, so the smallest frame will do to set everything up
            options = msgspec.structs.replace(options, imgsz=STRIDE)
        # Elsewhere a whole frame, so that kernels are chosen and the memory of a prediction is seen during the load.
        side = options.imgsz if isinstance(options.imgsz, tuple) else (options.imgsz, options.imgsz)
        self._run([np.zeros((*side, 3), np.uint8)], options)
        del given.__deepcopy__
        yolo.model = yolo.predictor.model.model
        yolo.ckpt = {}
        torch.set_num_threads(spec.threads)  # again, for ultralytics sets its own when it first predicts on a CPU

    def predict(self, inputs: list[Input]) -> list[AnyResult]:
        """One call of the library for the inputs that agree in options and size.

        Frames of different sizes are not mixed: in a mixed batch ultralytics pads them all to a square, and the
        answer for a frame would depend on its company.
        """
        groups: dict[tuple[Options, tuple[int, ...]], list[int]] = {}
        frames = [require_image(item) for item in inputs]
        for i, item in enumerate(inputs):
            if frames[i].size == 0:
                raise InvalidInput(f"frame: it has no pixels, its shape is {frames[i].shape}")
            groups.setdefault((self._options(item.options), frames[i].shape), []).append(i)
        out: dict[int, AnyResult] = {}
        for (options, _), members in groups.items():
            # ultralytics expects OpenCV's order. A BGR frame that the runtime looks at backwards is contiguous again
            # once it is turned round, and is not copied.
            bgr = [np.ascontiguousarray(frames[i][..., ::-1]) for i in members]
            for i, found in zip(members, self._run(bgr, options), strict=True):
                out[i] = self._result(found)
        return [out[i] for i in range(len(inputs))]

    def _options(self, asked: dict[str, Any]) -> Options:
        options = read_options(self._configured, asked, Options)
        known = set(self._names) | set(self._numbers)
        if unknown := [c for c in options.classes or () if c not in known]:
            raise InvalidInput(f"options: classes: {unknown[0]!r} is none of {', '.join(self._names.values())}")
        return options

    def _run(self, bgr: list[np.ndarray], options: Options) -> list[Any]:
        size = options.imgsz
        found = self._yolo.predict(
            bgr,
            batch=len(bgr),
            conf=options.conf,
            iou=options.iou,
            imgsz=_whole(size) if isinstance(size, int) else [_whole(side) for side in size],
            max_det=options.max_det,
            classes=None if options.classes is None else [self._number(c) for c in options.classes],
            retina_masks=True,  # masks of the frame's size, not of the padded network input
            device=self._device,
            verbose=False,
            save=False,
        )
        return list(found)

    def _number(self, label: int | str) -> int:
        return label if isinstance(label, int) else self._numbers[label]

    def _result(self, found: Any) -> AnyResult:
        rows = found.boxes.data.cpu().numpy().astype(np.float32, copy=False).reshape(-1, 6)
        order = np.argsort(-rows[:, 4], kind="stable")
        boxes, scores = rows[order, :4], rows[order, 4]
        if self._yolo.task == "pose":
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
        class_ids = rows[order, 5].astype(np.int32)
        masks = None
        if self._yolo.task == "segment":
            if found.masks is None:
                masks = np.zeros((0, *found.orig_shape), bool)
            else:
                masks = found.masks.data.cpu().numpy().astype(bool)[order]
        return Detections(
            boxes=boxes,
            scores=scores,
            class_ids=class_ids,
            labels=[self._names[int(i)] for i in class_ids],
            masks=masks,
        )


def _whole(side: int) -> int:
    return -(-side // STRIDE) * STRIDE


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


def _keypoint_names(model: Any) -> list[str]:
    """The checkpoint's own names if it carries them, COCO's for 17 points, else numbers."""
    count = int(getattr(model, "kpt_shape", (0,))[0])
    named = getattr(model, "kpt_names", None)
    if isinstance(named, dict) and named:
        first = [str(name) for name in next(iter(named.values()))]
        if len(first) == count:
            return first
    return list(COCO_KEYPOINTS) if count == len(COCO_KEYPOINTS) else [f"point_{i}" for i in range(count)]
