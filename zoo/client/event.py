"""What a caller wants enriched: the frames of an event, and what an upstream detector found in the last of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from zoo import results
from zoo.drawing import picture
from zoo.enrichment import Enriched
from zoo.errors import InvalidInput
from zoo.wire import arrays, formats
from zoo.wire.arrays import ODD, shown
from zoo.wire.boxes import MAX_BOXES, check_pixels

PERSON = "person"


class Event:
    """Checked arguments of `Client.enrich`.

    Args:
        frame: as in `Client.infer`; of a list, the detections belong to the last one.
        detections: see `read_detections`.
        suspicious: some models look only at suspicious events.
        min_score: detections below it are left alone; None takes the table's.
        how: what the caller says of the frame.

    Raises:
        InvalidInput: naming the argument that is wrong; boxes that were given as shares of the frame are. What is
            wrong with one box is not: it is missing its answers.
    """

    def __init__(
        self,
        frame: Any,
        detections: Any,
        suspicious: bool = False,
        min_score: float | None = None,
        how: formats.PixelFormat = formats.RGB,
    ) -> None:
        if min_score is not None and (not isinstance(min_score, int | float) or not 0 <= min_score <= 1):
            raise InvalidInput(f"min_score: {shown(min_score)} is not between 0 and 1")
        self.frames = arrays.check_frames(frame)
        self.size = picture.size_of(self.frames[-1], how)
        self.detections = read_detections(detections)
        if isinstance(detections, list | tuple):  # typed results are in pixels
            check_pixels((one.box for one in self.detections), *self.size, "detections")
        self.suspicious = suspicious
        self.min_score = min_score


def read_detections(given: Any) -> list[Enriched]:
    """What was found, in one form, about which nothing more is known yet.

    Args:
        given: `Detections`; `Keypoints` that have boxes, which are persons with a score of 1, for they do not say how
            sure the detector was of each; or a list of (label, box), (label, box, score) or dicts with these keys
            (others are left alone). Boxes are (x1, y1, x2, y2) in pixels, scores 0 to 1, and 1 where there is none.

    Raises:
        InvalidInput: naming what is wrong. What is wrong with a box of four numbers is for later, and for it alone.
    """
    rows: Iterable[tuple[Any, ...]]
    match given:
        case results.Detections():
            rows = zip(given.labels, given.boxes.tolist(), given.scores.tolist(), strict=True)
        case results.Keypoints() if given.boxes is not None:
            rows = ((PERSON, box) for box in given.boxes.tolist())
        case list() | tuple():
            rows = (_row(item, number) for number, item in enumerate(given))
        case _:
            raise InvalidInput(
                f"detections: a {type(given).__name__}; give Detections, Keypoints with boxes, or a list of "
                "(label, box, score)"
            )
    found = [_detection(number, *row) for number, row in enumerate(rows)]
    if len(found) > MAX_BOXES:
        raise InvalidInput(f"detections: {len(found)} of them, at most {MAX_BOXES} are taken")
    return found


def _row(item: Any, number: int) -> tuple[Any, ...]:
    if isinstance(item, dict) and {"label", "box"} <= item.keys():
        return item["label"], item["box"], item.get("score", 1.0)
    if isinstance(item, list | tuple) and len(item) in (2, 3):
        return tuple(item)
    raise InvalidInput(f"detections[{number}]: {shown(item)} is no (label, box), (label, box, score) or dict of these")


def _detection(number: int, label: Any, box: Any, score: Any = 1.0) -> Enriched:
    if not isinstance(label, str) or not label:
        raise InvalidInput(f"detections[{number}]: {shown(label)} is no label")
    try:
        x1, y1, x2, y2 = (float(v) for v in box)
        sure = float(score)
    except ODD:
        raise InvalidInput(
            f"detections[{number}]: expected a box of four numbers and a score, got {shown(box)} and {shown(score)}"
        ) from None
    if not 0 <= sure <= 1:
        raise InvalidInput(f"detections[{number}]: a score of {shown(score)} is not between 0 and 1")
    return Enriched(label=label, box=(x1, y1, x2, y2), score=sure)
