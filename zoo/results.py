"""What a model answers: small typed records that hold numpy arrays.

Coordinates are pixels of the frame that was sent, x to the right and y down, boxes as (x1, y1, x2, y2); a
result for a crop (`boxes=`) is already moved into the frame. `to_dict()` is plain JSON; `draw(frame)` paints a
copy of the frame. An adapter of your own may just as well answer a plain dict, which `typed` makes a result like the
others.

Whatever depends on a result's type stands in its class: the shapes of its arrays, its words, how it is painted. Masks
and maps of a crop are painted where the crop was (`origin`); coordinates that are not numbers are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, Self, cast, get_args

import msgspec
import numpy as np

from zoo.drawing.canvas import RAMP, Canvas, hue, shade
from zoo.labels import folded
from zoo.timings import UNKNOWN, Timings

SEEN = 0.3  # a keypoint below this score is a guess, and is not drawn
LIKELY = 0.5  # a label of several that may apply at once does from this score on
CAPTION_LINES = 5
LIMBS = (
    ("left_ankle", "left_knee"), ("left_knee", "left_hip"), ("right_ankle", "right_knee"),
    ("right_knee", "right_hip"), ("left_hip", "right_hip"), ("left_shoulder", "left_hip"),
    ("right_shoulder", "right_hip"), ("left_shoulder", "right_shoulder"), ("left_shoulder", "left_elbow"),
    ("right_shoulder", "right_elbow"), ("left_elbow", "left_wrist"), ("right_elbow", "right_wrist"),
    ("left_eye", "right_eye"), ("nose", "left_eye"), ("nose", "right_eye"), ("left_eye", "left_ear"),
    ("right_eye", "right_ear"),
)  # fmt: skip


class Answered(Protocol):
    """What an answer came with: the broker's number for its request, and where the time went."""

    @property
    def request(self) -> int: ...

    @property
    def timings(self) -> Timings: ...


class _Nowhere(NamedTuple):
    request: int = 0
    timings: Timings = UNKNOWN


NOWHERE = _Nowhere()  # of a result that came from no broker


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


class TypedResult(msgspec.Struct, array_like=True, eq=False, kw_only=True, dict=True):
    """Base of the typed results.

    Attributes:
        stand_in: the model runs on random stand-in weights: the answer means nothing.
        shapes: of the arrays and lists, by field. One letter stands for one number all over a result; fields that end
            in "h", "w" have a value for every pixel.
    """

    shapes: ClassVar[dict[str, tuple[int | str, ...]]] = {}
    stand_in: bool = False

    @property
    def timings(self) -> Timings:
        """Where its time went, in seconds. Like `request` no part of what the model answered: not in `to_dict`."""
        return cast(Timings, self.__dict__.get("_came", NOWHERE).timings)

    @property
    def request(self) -> int:
        """The broker's number for the request, to have it explained; 0 where it is not known."""
        return cast(int, self.__dict__.get("_came", NOWHERE).request)

    def __reduce__(self) -> tuple[Any, ...]:
        return (*super().__reduce__(), self.__dict__)

    def __copy__(self) -> Self:
        return self._with()

    def _with(self, **changes: Any) -> Self:
        """A copy. (What msgspec itself copies has neither timings nor request.)"""
        made = msgspec.structs.replace(self, **changes)
        made.__dict__.update(self.__dict__)
        return made

    def to_dict(self, *, maps: bool = True) -> dict[str, Any]:
        """Plain JSON-like values, with the result's type under "type".

        Args:
            maps: masks and maps pixel by pixel, tens of megabytes of JSON; else their shapes stand for them.
        """
        values: dict[str, Any] = {"type": type(self).__name__}
        for name in self.__struct_fields__:
            value = getattr(self, name)
            is_map = value is not None and self.shapes.get(name, ())[-2:] == ("h", "w")
            values[name] = {"shape": list(value.shape)} if is_map and not maps else plain(value)
        return values

    def moved(self, dx: float, dy: float) -> Self:
        """The same result with its coordinates shifted by (dx, dy), whole pixels; without coordinates, itself."""
        shifted: dict[str, Any] = {}
        for name in ("boxes", "points"):
            if (value := getattr(self, name, None)) is not None:
                shifted[name] = value + np.resize(np.array([dx, dy], np.float32), value.shape[-1])
        if (origin := getattr(self, "origin", None)) is not None:
            shifted["origin"] = (origin[0] + round(dx), origin[1] + round(dy))
        return self._with(**shifted) if shifted else self

    def summary(self) -> list[str]:
        """All of it in lines for a person to read, the best first."""
        return [self.brief()]

    def brief(self) -> str:
        """A few words for a picture with much else on it; none for what is painted, and for what has no words."""
        return ""

    def draw(self, frame: Any, *, color: str = "rgb") -> np.ndarray:
        """A copy of `frame` with this result painted on it, HxWx3 uint8; what a stand-in answered is marked so.

        Args, Raises: see `zoo.drawing.canvas.Canvas`.
        """
        canvas = Canvas(frame, color)
        self.tint(canvas)
        self.outline(canvas)
        self.caption(canvas)
        canvas.mark_stand_ins([self.stand_in])
        return canvas.pixels()

    def tint(self, canvas: Canvas) -> None:
        """Paints the areas that it found."""

    def outline(self, canvas: Canvas, first: int = 0) -> None:
        """Paints the lines around what it found, with its names. `first`: number of the first hue, for persons."""

    def caption(self, canvas: Canvas) -> None:
        """Paints the words, or whatever else, that it has where it is alone on the picture."""


class Detections(TypedResult, tag="detections"):
    """Objects found in a frame, best first.

    Attributes:
        boxes: (n, 4) float32, xyxy. scores: (n,) float32 in 0..1. class_ids: (n,) int32.
        labels: n names, from the checkpoint.
        masks: (n, h, w) bool, each over the whole frame or crop that the model was given, or None.
        origin: (x, y), the pixel of the frame where the masks' upper left one lies: (0, 0), or the crop's corner.
    """

    shapes = {"boxes": ("n", 4), "scores": ("n",), "class_ids": ("n",), "labels": ("n",), "masks": ("n", "h", "w")}

    boxes: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray
    labels: list[str]
    masks: np.ndarray | None = None
    origin: tuple[int, int] = (0, 0)

    def summary(self) -> list[str]:
        return [
            f"{label}  {score:.2f}  {place(box)}"
            for label, score, box in zip(self.labels, self.scores, self.boxes, strict=True)
        ] or ["nothing was found"]

    def tint(self, canvas: Canvas) -> None:
        if self.masks is not None:
            for mask, class_id in zip(self.masks, self.class_ids, strict=True):
                canvas.tint(mask, self.origin, hue(int(class_id)), 0.45)

    def outline(self, canvas: Canvas, first: int = 0) -> None:
        # Worst first, so that the best box and its words lie on top. All boxes first, so that none crosses a word.
        order = [i for i in reversed(range(len(self.boxes))) if np.isfinite(self.boxes[i]).all()]
        for i in order:
            canvas.box(self.boxes[i], hue(int(self.class_ids[i])))
        for i in order:
            left, top = map(float, self.boxes[i, :2])
            canvas.tag(left, top, f"{self.labels[i]} {self.scores[i]:.2f}", hue(int(self.class_ids[i])))


class Keypoints(TypedResult, tag="keypoints"):
    """Body keypoints per person.

    Attributes:
        points: (n, k, 2) float32, xy. scores: (n, k) float32. boxes: (n, 4) float32 or None.
        names: k names. postures: n words, or empty.
    """

    shapes = {
        "points": ("n", "k", 2), "scores": ("n", "k"), "boxes": ("n", 4), "names": ("k",), "postures": ("n",),
    }  # fmt: skip

    points: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray | None = None
    names: list[str] = []
    postures: list[str] = []

    def summary(self) -> list[str]:
        postures = [f", {posture}" for posture in self.postures] or [""] * len(self.points)
        return [
            f"person {i}{posture}: {int((scores > SEEN).sum())} of {self.points.shape[1]} points seen"
            for i, (posture, scores) in enumerate(zip(postures, self.scores, strict=True))
        ] or ["no person was found"]

    def brief(self) -> str:
        return ", ".join(self.postures[:3])

    def outline(self, canvas: Canvas, first: int = 0) -> None:
        index = {name: i for i, name in enumerate(self.names)}
        limbs = [(index[a], index[b]) for a, b in LIMBS if a in index and b in index]
        for n, (points, scores) in enumerate(zip(self.points, self.scores, strict=True), first):
            seen = (scores >= SEEN) & np.isfinite(points).all(axis=1)
            for ends in limbs:
                if seen[[*ends]].all():
                    canvas.path(points[[*ends]], hue(n), canvas.line + 1)
            for x, y in points[seen].tolist():
                canvas.dot(x, y, hue(n))
        for n, box in self._whole_boxes():
            canvas.box(box, hue(first + n))

    def caption(self, canvas: Canvas) -> None:
        for n, box in self._whole_boxes():
            if n < len(self.postures):
                canvas.tag(float(box[0]), float(box[1]), self.postures[n], hue(n))

    def _whole_boxes(self) -> list[tuple[int, np.ndarray]]:
        boxes = () if self.boxes is None else self.boxes
        return [(n, box) for n, box in enumerate(boxes) if np.isfinite(box).all()]


class _Ranked(TypedResult):
    """Labels with their scores, the highest first.

    Attributes:
        labels: names, from the checkpoint. scores: (n,) float32.
    """

    shapes = {"labels": ("n",), "scores": ("n",)}

    labels: list[str]
    scores: np.ndarray

    def summary(self) -> list[str]:
        return _scored(self.labels, self.scores, "  ", 3) or ["nothing"]

    def brief(self) -> str:
        return "".join(_scored(self.labels, self.scores)[:1])

    def caption(self, canvas: Canvas) -> None:
        canvas.caption(_scored(self.labels, self.scores)[:CAPTION_LINES])


class Classification(_Ranked, tag="classification", kw_only=True):
    """What a picture shows: see `labels` and `scores`, most probable first.

    Attributes:
        multi_label: several labels may apply, or none: each score is that label's own probability. Otherwise one label
            applies, and the scores of all of them sum to 1.
    """

    multi_label: bool = False  # after `stand_in` on the wire

    @property
    def label(self) -> str:
        """The most probable label."""
        return self.labels[0]

    def likely(self, least: float = LIKELY) -> list[str]:
        """The labels with a score of `least` or more: several, one or none."""
        return [label for label, score in zip(self.labels, self.scores, strict=True) if score >= least]

    def brief(self) -> str:
        if not self.multi_label:
            return super().brief()
        likely = _scored(self.labels, self.scores)[: len(self.likely())]
        return ", ".join(likely[:3]) or f"no label over {LIKELY}"

    @property
    def score(self) -> float:
        return float(self.scores[0])


class Embedding(TypedResult, tag="embedding"):
    """`vector`: (d,) float32 of unit length."""

    shapes = {"vector": ("d",)}

    vector: np.ndarray

    def summary(self) -> list[str]:
        return [f"{self.vector.size} numbers of unit length: {', '.join(f'{v:.4f}' for v in self.vector[:4])}, …"]

    def caption(self, canvas: Canvas) -> None:
        canvas.caption([f"embedding, {self.vector.size} numbers"])


class DepthMap(TypedResult, tag="depth"):
    """How near everything is.

    Attributes:
        depth: (h, w) float32, relative inverse depth: larger is nearer. Not metres. Of one scale all over a frame,
            so the boxes of a frame compare with each other, and not with those of another frame.
        origin: (x, y), the pixel of the frame where the map's upper left one lies: (0, 0), or the box's corner.
    """

    shapes = {"depth": ("h", "w")}

    depth: np.ndarray
    origin: tuple[int, int] = (0, 0)

    @property
    def median(self) -> float:
        """How near what fills most of the map is: one number for a box, whatever shows in its corners."""
        return float(np.median(self.depth))

    def to_dict(self, *, maps: bool = True) -> dict[str, Any]:
        return super().to_dict(maps=maps) | ({} if maps else {"median": self.median})

    def summary(self) -> list[str]:
        low, high = self.depth.min(), self.depth.max()
        return [f"{_size(self.depth)} relative depths from {low:.3g} to {high:.3g} (larger is nearer)"]

    def brief(self) -> str:
        return f"{self.median:.3g}, larger is nearer"

    def caption(self, canvas: Canvas) -> None:
        depth = np.nan_to_num(self.depth.astype(np.float32), posinf=0.0, neginf=0.0)
        low, high = float(depth.min()), float(depth.max())
        canvas.levels((depth - low) / (high - low) if high > low else np.zeros_like(depth), self.origin)
        canvas.caption(["near", "far"], [RAMP[-1], RAMP[1]], self.origin)


class Segmentation(TypedResult, tag="segmentation"):
    """What each pixel belongs to.

    Attributes:
        mask: (h, w) uint8, the class of each pixel. labels: `labels[i]` names class i, from the checkpoint.
        coverage: share of the pixels per label, the largest first.
        origin: (x, y), the pixel of the frame where the mask's upper left one lies: (0, 0), or the crop's corner.
    """

    shapes = {"mask": ("h", "w")}

    mask: np.ndarray
    labels: list[str]
    coverage: dict[str, float] = {}
    origin: tuple[int, int] = (0, 0)

    def summary(self) -> list[str]:
        shares = sorted(self.coverage.items(), key=lambda item: -item[1])
        return [f"{_size(self.mask)} pixels", *([f"{label}  {share:.1%}" for label, share in shares] or ["nothing"])]

    def brief(self) -> str:
        return ", ".join(self._legend()[1][:3])

    def tint(self, canvas: Canvas) -> None:
        for i in self._legend()[0]:
            canvas.tint(self.mask == i, self.origin, shade(i), 0.55)

    def caption(self, canvas: Canvas) -> None:
        present, shares = self._legend()
        shown = CAPTION_LINES + 3
        canvas.caption(shares[:shown], [shade(i) for i in present[:shown]], self.origin)

    def _legend(self) -> tuple[list[int], list[str]]:
        """The classes to be seen, the largest first and the background left out, and their shares in words."""
        share = np.bincount(self.mask.reshape(-1), minlength=256) / self.mask.size
        names = dict(enumerate(self.labels))
        order = [int(i) for i in np.argsort(-share, kind="stable") if share[i] > 0]
        present = [i for i in order if folded(names.get(i, "")) != "background"]
        return present, [f"{names.get(i, f'class {i}')} {share[i]:.0%}" for i in present]


class OcrText(TypedResult, tag="ocr"):
    """Text that was read.

    Attributes:
        text: all lines joined, upper case, only A-Z and 0-9. lines: as read. scores: (n,) float32.
        boxes: (n, 4, 2) float32 corner points of each line, or None when only recognition ran.
        score: mean confidence over the lines, 0 when nothing was read.
    """

    shapes = {"lines": ("n",), "scores": ("n",), "boxes": ("n", 4, 2)}

    text: str
    lines: list[str]
    scores: np.ndarray
    boxes: np.ndarray | None = None
    score: float = 0.0

    def summary(self) -> list[str]:
        return [f"{self.text or '(no text)'}  {self.score:.2f}", *(f"line: {line}" for line in self.lines)]

    def brief(self) -> str:
        return self.text or "no text"

    def caption(self, canvas: Canvas) -> None:
        lines = _scored(self.lines, self.scores)
        if self.boxes is None:
            canvas.caption(lines[:CAPTION_LINES] or ["no text"])
            return
        whole = [i for i, corners in enumerate(self.boxes) if np.isfinite(corners).all()]
        for i in whole:
            canvas.path(self.boxes[i][[0, 1, 2, 3, 0]], hue(3), canvas.line)
        for i in whole:
            left, top = map(float, self.boxes[i].min(axis=0))
            canvas.tag(left, top, lines[i], hue(3))


class Quality(TypedResult, tag="quality"):
    """`score`: 0 to 100, higher is worse; `verdict`: "good", "blurry" or "noisy" by the model's thresholds."""

    score: float
    verdict: str = ""

    def summary(self) -> list[str]:
        return [f"{self.verdict or 'score'}  {self.score:.1f} (0 best, 100 worst)"]

    def brief(self) -> str:
        return f"{self.verdict} {self.score:.0f}".strip()

    def caption(self, canvas: Canvas) -> None:
        canvas.caption([f"{self.verdict or 'quality'} {self.score:.0f}", "0 best, 100 worst"])


class Action(_Ranked, tag="action"):
    """What happens in a clip: see `labels` and `scores`, most probable first."""


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
TYPES = frozenset(get_args(AnyResult))


class PlainResult(dict[str, Any]):
    """A dict that an adapter answered, as the client gets it. `timings`, `request`: as those of a `TypedResult`."""

    __slots__ = ("_came",)

    @property
    def timings(self) -> Timings:
        return getattr(self, "_came", NOWHERE).timings

    @property
    def request(self) -> int:
        return getattr(self, "_came", NOWHERE).request


def answered(answer: Any, came: Answered) -> Any:
    """An answer that knows with which message it came."""
    if type(answer) is dict:
        answer = PlainResult(answer)
    answer._came = came
    return answer


class PlainAnswer(TypedResult):
    """A dict that an adapter answered, in the form of the other results. It never travels."""

    values: dict[str, Any]

    def to_dict(self, *, maps: bool = True) -> dict[str, Any]:
        return {str(key): plain(value) for key, value in self.values.items()}

    def summary(self) -> list[str]:
        return [f"{key}: {_shortened(value)}" for key, value in self.values.items()] or ["nothing"]

    def brief(self) -> str:
        return ", ".join(self._simple()[:3])

    def caption(self, canvas: Canvas) -> None:
        canvas.caption(self._simple())

    def _simple(self) -> list[str]:
        simple = [(k, v) for k, v in self.values.items() if isinstance(v, str | int | float)]
        return [f"{k}: {v:.3g}" if isinstance(v, float) else f"{k}: {v}" for k, v in simple]


def typed(answer: AnyResult) -> TypedResult:
    """An answer of any kind as a `TypedResult`: a plain dict in a `PlainAnswer`, a result as it is."""
    if not isinstance(answer, dict):
        return answer
    found = PlainAnswer(values=answer, stand_in=answer.get("stand_in") is True)
    return answered(found, answer) if isinstance(answer, PlainResult) else found


def place(box: Sequence[float] | np.ndarray) -> str:
    """A box in words."""
    return f"x {box[0]:.0f} to {box[2]:.0f}, y {box[1]:.0f} to {box[3]:.0f} px"


def _scored(labels: list[str], scores: np.ndarray, gap: str = " ", digits: int = 2) -> list[str]:
    return [f"{label}{gap}{score:.{digits}f}" for label, score in zip(labels, scores, strict=True)]


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"


def _shortened(value: Any) -> str:
    is_large = isinstance(value, np.ndarray) and value.size > 16
    text = f"array of {value.shape} {value.dtype}" if is_large else str(value)
    return text if len(text) <= 200 else text[:199] + "…"
