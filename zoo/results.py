"""What a model answers: small typed records that hold numpy arrays.

Coordinates are pixels of the frame that was sent, x to the right and y down, boxes as (x1, y1, x2, y2); a
result for a crop (`boxes=`) is already moved into the frame. `to_dict()` is plain JSON; `draw(frame)` paints a
copy of the frame. An adapter of your own may just as well answer a plain dict.
"""

from __future__ import annotations

from typing import Any, Self

import msgspec
import numpy as np


def plain(value: Any) -> Any:
    """A result's value as JSON-like ones: arrays become lists."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def _shifted(origin: tuple[int, int], dx: float, dy: float) -> tuple[int, int]:
    return origin[0] + round(dx), origin[1] + round(dy)


class Result(msgspec.Struct, array_like=True, eq=False, kw_only=True):
    """Base of the typed results.

    Attributes:
        stand_in: the model runs on random stand-in weights: the answer means nothing.
    """

    stand_in: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-like values, with the result's type under "type"."""
        fields = {name: plain(getattr(self, name)) for name in self.__struct_fields__}
        return {"type": type(self).__name__, **fields}

    def moved(self, dx: float, dy: float) -> Self:
        """The same result with its coordinates shifted by (dx, dy), whole pixels; without coordinates, itself."""
        return self

    def draw(self, frame: Any, *, color: str = "rgb") -> np.ndarray:
        """A copy of `frame` with this result painted on it, HxWx3 uint8: see `zoo.drawing.draw.draw`."""
        from zoo.drawing import draw

        return draw.draw(self, frame, color=color)


class Detections(Result, tag="detections"):
    """Objects found in a frame, best first.

    Attributes:
        boxes: (n, 4) float32, xyxy. scores: (n,) float32 in 0..1. class_ids: (n,) int32.
        labels: n names, from the checkpoint.
        masks: (n, h, w) bool, each over the whole frame or crop that the model was given, or None.
        origin: (x, y), the pixel of the frame where the masks' upper left one lies: (0, 0), or the crop's corner.
    """

    boxes: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray
    labels: list[str]
    masks: np.ndarray | None = None
    origin: tuple[int, int] = (0, 0)

    def moved(self, dx: float, dy: float) -> Self:
        shift = np.array([dx, dy, dx, dy], np.float32)
        return msgspec.structs.replace(self, boxes=self.boxes + shift, origin=_shifted(self.origin, dx, dy))


class Keypoints(Result, tag="keypoints"):
    """Body keypoints per person.

    Attributes:
        points: (n, k, 2) float32, xy. scores: (n, k) float32. boxes: (n, 4) float32 or None.
        names: k names. postures: n words, or empty.
    """

    points: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray | None = None
    names: list[str] = []
    postures: list[str] = []

    def moved(self, dx: float, dy: float) -> Self:
        boxes = None if self.boxes is None else self.boxes + np.array([dx, dy, dx, dy], np.float32)
        return msgspec.structs.replace(self, points=self.points + np.array([dx, dy], np.float32), boxes=boxes)


class Classification(Result, tag="classification"):
    """Labels with their probabilities, most probable first.

    Attributes:
        labels: names, from the checkpoint. scores: (n,) float32.
    """

    labels: list[str]
    scores: np.ndarray

    @property
    def label(self) -> str:
        """The most probable label."""
        return self.labels[0]

    @property
    def score(self) -> float:
        return float(self.scores[0])


class Embedding(Result, tag="embedding"):
    """`vector`: (d,) float32 of unit length."""

    vector: np.ndarray


class DepthMap(Result, tag="depth"):
    """How near everything is.

    Attributes:
        depth: (h, w) float32, relative inverse depth: larger is nearer. Not metres. Of one scale all over a frame,
            so the boxes of a frame compare with each other, and not with those of another frame.
        origin: (x, y), the pixel of the frame where the map's upper left one lies: (0, 0), or the box's corner.
    """

    depth: np.ndarray
    origin: tuple[int, int] = (0, 0)

    @property
    def median(self) -> float:
        """How near what fills most of the map is: one number for a box, whatever shows in its corners."""
        return float(np.median(self.depth))

    def moved(self, dx: float, dy: float) -> Self:
        return msgspec.structs.replace(self, origin=_shifted(self.origin, dx, dy))


class Segmentation(Result, tag="segmentation"):
    """What each pixel belongs to.

    Attributes:
        mask: (h, w) uint8, the class of each pixel. labels: `labels[i]` names class i, from the checkpoint.
        coverage: share of the pixels per label, the largest first.
        origin: (x, y), the pixel of the frame where the mask's upper left one lies: (0, 0), or the crop's corner.
    """

    mask: np.ndarray
    labels: list[str]
    coverage: dict[str, float] = {}
    origin: tuple[int, int] = (0, 0)

    def moved(self, dx: float, dy: float) -> Self:
        return msgspec.structs.replace(self, origin=_shifted(self.origin, dx, dy))


class OcrText(Result, tag="ocr"):
    """Text that was read.

    Attributes:
        text: all lines joined, upper case, only A-Z and 0-9. lines: as read. scores: (n,) float32.
        boxes: (n, 4, 2) float32 corner points of each line, or None when only recognition ran.
        score: mean confidence over the lines, 0 when nothing was read.
    """

    text: str
    lines: list[str]
    scores: np.ndarray
    boxes: np.ndarray | None = None
    score: float = 0.0

    def moved(self, dx: float, dy: float) -> Self:
        if self.boxes is None:
            return self
        return msgspec.structs.replace(self, boxes=self.boxes + np.array([dx, dy], np.float32))


class Quality(Result, tag="quality"):
    """`score`: 0 to 100, higher is worse; `verdict`: "good", "blurry" or "noisy" by the model's thresholds."""

    score: float
    verdict: str = ""


class Action(Result, tag="action"):
    """What happens in a clip. `labels` and `scores` (n,) float32, most probable first."""

    labels: list[str]
    scores: np.ndarray


AnyResult = (
    Detections
    | Keypoints
    | Classification
    | Embedding
    | DepthMap
    | Segmentation
    | OcrText
    | Quality
    | Action
    | dict[str, Any]
)
