"""An adapter for tests of enrichment: a toy that finds something in what it is shown, and says where it was looking."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from tests.toy import Toy
from workers.models.base import Input
from zoo.results import Detections


class Finder(Toy):
    """Also takes do = "find" (a box around what is bright), "look" (what it was shown) and "clock" (when it ran)."""

    def _one(self, item: Input) -> Any:
        match item.options.get("do"):
            case "find":
                return bright(item.array)
            case "look":
                return {"box": item.box, "pixels": np.array(item.array), "frames": len(item.frames)}
            case "clock":
                started = time.monotonic()
                time.sleep(item.options["seconds"])
                return {"from": started, "to": time.monotonic()}
        return super()._one(item)


def bright(picture: np.ndarray) -> Detections:
    """The one box around everything whose red is above 200, if there is any."""
    rows, columns = np.nonzero(picture[..., 0] > 200)
    found = [[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]] if rows.size else []
    return Detections(
        boxes=np.array(found, np.float32).reshape(-1, 4),
        scores=np.ones(len(found), np.float32),
        class_ids=np.zeros(len(found), np.int32),
        labels=["bright"] * len(found),
    )
