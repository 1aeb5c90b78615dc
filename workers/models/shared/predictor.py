"""An ultralytics network: its checkpoint opened, and frames run through it by the library's own predictor.

The adapters of YOLO and YOLO-World share this. Three things are done before the library would do them its way:

* **Letterboxing.** Asked for pictures of different sizes at once, ultralytics pads them all to a square, and the answer
  for one would depend on its company. Here each is scaled into its own smallest rectangle, as it would be alone, and
  those whose rectangles agree share a pass.
* **Memory.** What config.toml gives the model, `max_batch` frames of `imgsz`, is the most that goes through the network
  at once, whatever a request asks for; and masks are counted before they are made.
* **Colours.** ultralytics expects OpenCV's order. The scaled picture is turned round, not the whole frame.

Checkpoints are pickles of whole model objects: see `base.require_trust`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import cv2
import msgspec
import numpy as np
import torch
import torch.utils.serialization
import torchvision  # noqa: F401  (its operators do the non-maximum suppression)
import ultralytics.nn.tasks
import ultralytics.utils.events
import ultralytics.utils.nms  # noqa: F401
from ultralytics.data.augment import LetterBox
from ultralytics.models.yolo.detect import DetectionPredictor
from ultralytics.models.yolo.pose import PosePredictor
from ultralytics.models.yolo.segment import SegmentationPredictor
from ultralytics.nn.autobackend import AutoBackend

from workers.models.base import Spec, chunks, damaged, not_there, require_trust, unservable
from workers.models.shared import batches, ultralytics_files
from zoo.errors import InvalidInput, ZooError

MAX_MASKS = 128 << 20  # bytes of all masks of one call
STRIDE = 32  # the coarsest grid of every published checkpoint; sizes are rounded up to it

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Side = Annotated[int, msgspec.Meta(ge=STRIDE, le=4096)]
# Not `tuple[Side, Side]`: in msgspec 0.22 a bounded number in a union with a fixed-length tuple corrupts its type
# information, and the next garbage collection ends the process.
Sides = Annotated[tuple[Side, ...], msgspec.Meta(min_length=2, max_length=2)]


class YoloOptions(batches.PassOptions, frozen=True, forbid_unknown_fields=True):
    """What every YOLO takes, in config.toml's `options` table or with a request.

    Attributes:
        conf: least score of a box. iou: boxes of one class that overlap more are one. Both 0 to 1.
        imgsz: pixels that the frame's longer side is scaled to, or (height, width); a multiple of 32.
        max_det: most boxes per frame, the best ones.
        max_batch, half: see `PassOptions`.
    """

    conf: Share = 0.25
    iou: Share = 0.7
    imgsz: Side | Sides = 640
    max_det: Annotated[int, msgspec.Meta(ge=1, le=3000)] = 300
    max_batch: batches.BatchSize = 8

    @property
    def rectangle(self) -> tuple[int, int]:
        """`imgsz` as (height, width) in whole strides."""
        sides = self.imgsz if isinstance(self.imgsz, tuple) else (self.imgsz, self.imgsz)
        height, width = (-(-side // STRIDE) * STRIDE for side in sides)
        return height, width


class CountedMasks(SegmentationPredictor):  # type: ignore[misc]
    """Counts the masks of a call before it makes them: 300 of an 8K frame would be 10 GB.

    Attributes:
        left: bytes that may still be made, a byte per pixel and mask.
    """

    left = MAX_MASKS

    def construct_result(self, rows: Any, pixels: Any, frame: np.ndarray, *rest: Any) -> Any:
        height, width = frame.shape[:2]
        self.left -= len(rows) * height * width
        if self.left < 0:
            raise InvalidInput(
                f"options: max_det: {len(rows)} masks over {width}x{height} pixels are too many: all of an answer may "
                f"have {MAX_MASKS >> 20} MB; ask for fewer, or of smaller boxes"
            )
        return super().construct_result(rows, pixels, frame, *rest)


PREDICTORS = {"detect": DetectionPredictor, "segment": CountedMasks, "pose": PosePredictor}


class Network:
    """One checkpoint on its device, its normalisation folded into its convolutions.

    Attributes:
        model: the torch module, an ultralytics `BaseModel`.
        task: "detect", "segment" or "pose".
        names: the checkpoint's own labels, by class number.
    """

    def __init__(self, spec: Spec, device: str, settings: YoloOptions) -> None:
        """Raises ModelUnavailable without weights, LoadFailed when they are not trusted, damaged or of another kind.

        Args:
            settings: of config.toml.
        """
        # First, or every small operation of the load is split over all cores: three times slower where those are busy.
        torch.set_num_threads(spec.threads)
        model = _open(spec)
        self.task = str(model.task)
        if self.task not in PREDICTORS:
            raise unservable(spec, f"the checkpoint is for {self.task!r}; this adapter serves {', '.join(PREDICTORS)}")
        self.names = _names(spec, model)
        predictor = PREDICTORS[self.task](
            overrides={
                "mode": "predict",
                "save": False,
                "verbose": False,
                "retina_masks": True,  # masks of the frame's size, not of the network's input
            }
        )
        # What `predictor.setup_model` would make, of the model itself instead of a copy.
        predictor.model = AutoBackend(model, torch.device(device), verbose=False, end2end=predictor.args.nms is False)
        predictor.device = predictor.model.device
        predictor.pre_transform = self._letterboxed
        if settings.half:  # not asked of AutoBackend, which ignores it on a CPU
            predictor.model.backend.model.half()
            predictor.model.backend.fp16 = True
            finish = predictor.postprocess
            # In single precision from here on: half a pixel of 1080p cannot be said in half.
            predictor.postprocess = lambda found, *rest: finish(_single(found), *rest)
        self.model: Any = predictor.model.backend.model
        self._predictor = predictor
        height, width = settings.rectangle
        self._pixels = settings.max_batch * height * width

    def warm_up(self, settings: YoloOptions) -> None:
        """One empty frame. On a GPU a whole one, so that kernels are chosen and the memory of a prediction is seen
        during the load; a CPU has nothing to prepare that the smallest would not show.
        """
        if self._predictor.device.type == "cpu":
            settings = msgspec.structs.replace(settings, imgsz=STRIDE)
        self([np.zeros((*settings.rectangle, 3), np.uint8)], settings)

    def __call__(
        self, frames: Sequence[np.ndarray], settings: YoloOptions, classes: list[int] | None = None
    ) -> list[Any]:
        """One ultralytics `Results` per frame (HxWx3 RGB uint8, any strides), in as few passes as shapes allow.

        Args:
            classes: only these class numbers; None for all.

        Raises:
            InvalidInput: the network would need more memory for one frame, or all masks would, than the model has.
        """
        args = self._predictor.args
        args.conf, args.iou, args.max_det, args.classes = settings.conf, settings.iou, settings.max_det, classes
        args.imgsz = list(settings.rectangle)
        self._predictor.left = MAX_MASKS
        alike: dict[tuple[int, int], list[int]] = {}
        for i, frame in enumerate(frames):
            alike.setdefault(_input_shape(self._letterbox(args.imgsz), frame), []).append(i)
        found: dict[int, Any] = {}
        for (height, width), members in alike.items():
            most = self._pixels // (height * width)
            if not most:
                raise InvalidInput(
                    f"options: imgsz: {width}x{height} is more at once than the {self._pixels} pixels that config.toml "
                    "gives this model (max_batch frames of its imgsz)"
                )
            for some in chunks(members, min(settings.max_batch, most)):
                found.update(zip(some, self._predictor([frames[i] for i in some]), strict=True))
        return [found[i] for i in range(len(frames))]

    def _letterbox(self, size: list[int]) -> Any:
        return LetterBox(size, auto=True, stride=self._predictor.model.stride)

    def _letterboxed(self, frames: list[np.ndarray]) -> list[np.ndarray]:
        """Each frame in its own smallest rectangle, in BGR order."""
        letterbox = self._letterbox(self._predictor.imgsz)
        # A BGR frame that the runtime looks at backwards is turned round again; OpenCV would copy it otherwise.
        return [
            letterbox(image=frame[..., ::-1])
            if frame.strides[2] < 0
            else cv2.cvtColor(letterbox(image=frame), cv2.COLOR_RGB2BGR)
            for frame in frames
        ]


def rows_of(found: Any) -> tuple[np.ndarray, np.ndarray]:
    """The boxes of an ultralytics `Results` as (n, 6) float32: x1, y1, x2, y2, score, class number; the best first.

    Returns:
        The rows, and where each was before they were put in order.
    """
    rows: np.ndarray = found.boxes.data.cpu().numpy().astype(np.float32, copy=False).reshape(-1, 6)
    order = np.argsort(-rows[:, 4], kind="stable")
    return rows[order], order


@contextlib.contextmanager
def served(spec: Spec) -> Iterator[None]:
    """Around what is done with a checkpoint once it is read: it may hold any object, and fail anywhere.

    Raises:
        LoadFailed: in place of what is no error of the zoo's, nor of the device's.
    """
    try:
        yield
    except (ZooError, torch.AcceleratorError):
        raise
    except Exception as e:
        raise damaged(
            spec,
            f"{spec.path} was read, and cannot be served: it is damaged, or of another release of ultralytics "
            f"({_first_line(e)})",
        ) from e


def _open(spec: Spec) -> Any:
    path = spec.path
    if path is None or not path.is_file():
        raise not_there(spec, f"no weights at {path}")
    require_trust(spec, path)
    try:
        return ultralytics_files.load_checkpoint(path)
    except Exception as e:
        raise damaged(spec, f"{path} is not an ultralytics checkpoint, or is damaged ({_first_line(e)})") from e


def _names(spec: Spec, model: Any) -> dict[int, str]:
    given = getattr(model, "names", None) or {}
    given = given.items() if isinstance(given, dict) else enumerate(given)
    names = dict(sorted((int(i), str(name)) for i, name in given))
    if missing := [i for i in range(int(model.model[-1].nc)) if i not in names]:
        raise unservable(spec, f"the checkpoint has no label for class {missing[0]}")
    return names


def _input_shape(letterbox: Any, frame: np.ndarray) -> tuple[int, int]:
    """(height, width) of the network's input for this frame."""
    plan = letterbox.get_params({"img": frame})
    width, height = plan["new_unpad"]
    return height + plan["top"] + plan["bottom"], width + plan["left"] + plan["right"]


def _single(found: Any) -> list[Any]:
    """A network's output with its first part, the only one that is read, in single precision: boxes, or boxes and
    masks.
    """
    first, *rest = found
    return [tuple(part.float() for part in first) if isinstance(first, tuple) else first.float(), *rest]


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"
