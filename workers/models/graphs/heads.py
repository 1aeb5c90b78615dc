"""What YOLO exports answer, of which there are three layouts, made into boxes. Pure functions of arrays.

| layout | of | output per picture | boxes | scores |
|---|---|---|---|---|
| "v8" | YOLOv8, YOLO11, YOLO26 and the like | (4 + classes, places) | centre, size | of each class |
| "v5" | YOLOv5, YOLOv7 | (places, 5 + classes) | centre, size | of any object, times that of each class |
| "end2end" | exports with NMS inside, or without need of it | (n, 6) | corners | of its class; then the class number |

All in pixels of the rectangle that the graph was given. Places are the cells of the network's grids, in "v5" three for
each. From these numbers alone a layout is known, or it is not: then the graph is refused, and config.toml may say it.

Non-maximum suppression is ultralytics', step by step and in its precision (`ultralytics.utils.nms`), so that answers
are equal: the best class of each place, the best `MOST_PLACES`, boxes of each class moved to a place of their own, and
what overlaps a better box by more than `iou` is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LAYOUTS = ("v8", "v5", "end2end")
GRIDS = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32), (16, 32))  # strides of the published architectures
MOST_PLACES = 30000
APART = np.float32(7680)  # more than any rectangle's side: boxes of two classes do not meet


class Thresholds(NamedTuple):
    """What to keep: see the options of the adapter. `classes`: numbers; None for all."""

    conf: float
    iou: float
    max_det: int
    classes: Sequence[int] | None = None


def fits(layout: str, shape: tuple[int, ...], classes: int) -> bool:
    """Whether an output (pictures, rows, columns) can be of this layout."""
    _, rows, columns = shape
    return {"v8": rows == 4 + classes, "v5": columns == 5 + classes, "end2end": columns == 6}[layout]


def recognised(output: np.ndarray, sides: tuple[int, int], classes: int) -> str | None:
    """The only layout of which this output can be; None if there is none, or more than one.

    Args:
        output: (pictures, rows, columns), what the graph answered to pictures of (height, width) = `sides`.
    """
    _, rows, columns = output.shape
    places = {sum(-(-sides[0] // s) * -(-sides[1] // s) for s in strides) for strides in GRIDS}
    can_be = {
        "v8": columns in places,
        "v5": rows in {3 * n for n in places},
        "end2end": columns == 6 and _has_class_numbers(output, classes),
    }
    found = [layout for layout in LAYOUTS if can_be[layout] and fits(layout, output.shape, classes)]
    return found[0] if len(found) == 1 else None


def _has_class_numbers(output: np.ndarray, classes: int) -> bool:
    """Whole class numbers in the last column, and scores before them: what other networks answer has neither."""
    scores, numbers = output[..., 4], output[..., 5]
    return bool(
        ((numbers >= 0) & (numbers < classes) & (numbers == np.floor(numbers)) & (scores >= 0) & (scores <= 1)).all()
    )


def rows_of(output: np.ndarray, layout: str, wanted: Thresholds) -> np.ndarray:
    """(k, 6) float32 of one picture: x1, y1, x2, y2, score, class number; the best first.

    Args:
        output: (rows, columns).
    """
    if layout == "end2end":
        rows = output.astype(np.float32, copy=False)
        rows = _of_classes(rows[rows[:, 4] > wanted.conf], wanted.classes)[: wanted.max_det]
        return rows[np.argsort(-rows[:, 4], kind="stable")]
    rows = _of_classes(_candidates(output, layout, wanted.conf), wanted.classes)
    if len(rows) > MOST_PLACES:
        rows = rows[np.argsort(-rows[:, 4], kind="stable")[:MOST_PLACES]]
    kept = suppressed(rows[:, :4] + rows[:, 5:] * APART, rows[:, 4], wanted.iou, wanted.max_det)
    return np.ascontiguousarray(rows[kept])


def _candidates(output: np.ndarray, layout: str, conf: float) -> np.ndarray:
    """(k, 6) of the places whose best class scores more than `conf`."""
    if layout == "v8":
        places = output[:, output[4:].max(axis=0) > conf].T.astype(np.float32)
        scores = places[:, 4:]
    else:
        places = output[output[:, 4] > conf].astype(np.float32)
        scores = places[:, 5:] * places[:, 4:5]
    numbers = scores.argmax(axis=1)
    best = scores[np.arange(len(scores)), numbers]
    centres, halves = places[:, :2], places[:, 2:4] / 2
    rows: np.ndarray = np.column_stack([centres - halves, centres + halves, best, numbers.astype(np.float32)])
    return np.compress(best > conf, rows, axis=0)


def _of_classes(rows: np.ndarray, classes: Sequence[int] | None) -> np.ndarray:
    return rows if classes is None else rows[np.isin(rows[:, 5], classes)]


def suppressed(boxes: np.ndarray, scores: np.ndarray, iou: float, most: int) -> np.ndarray:
    """Indices of the boxes (n, 4) that remain, the best first, at most `most`: as `torchvision.ops.nms` does it."""
    order = np.argsort(-scores, kind="stable")
    boxes = boxes[order]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept: list[int] = []
    while order.size and len(kept) < most:
        kept.append(int(order[0]))
        sides = np.minimum(boxes[0, 2:], boxes[1:, 2:]) - np.maximum(boxes[0, :2], boxes[1:, :2])
        common = np.maximum(sides, 0).prod(axis=1)
        with np.errstate(invalid="ignore"):  # of two boxes without area
            left = ~(common / (areas[0] + areas[1:] - common) > iou)
        order, boxes, areas = order[1:][left], boxes[1:][left], areas[1:][left]
    return np.array(kept, np.intp)
