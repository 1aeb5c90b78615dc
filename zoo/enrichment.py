"""What comes back from `zoo.enrich`: for each detection and for the event, answers, and why others are not there."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from zoo import results
from zoo.errors import ZooError

PIXELS = ("masks", "depth", "mask")  # fields of results with a value for every pixel


class Findings(msgspec.Struct, kw_only=True, eq=False):
    """What became of each model that was to look at something: it is in exactly one of the three.

    Attributes:
        answers: results, by model.
        missing: what went wrong, by model.
        skipped: the condition that was not met, in words, by model.
    """

    answers: dict[str, results.AnyResult] = {}
    missing: dict[str, ZooError] = {}
    skipped: dict[str, str] = {}

    def to_dict(self, *, maps: bool = False) -> dict[str, Any]:
        return {
            "answers": {model: _plain(answer, maps) for model, answer in self.answers.items()},
            "missing": {
                model: {"error": e.code, "message": str(e), "retryable": e.retryable, "retry_after": e.retry_after}
                for model, e in self.missing.items()
            },
            "skipped": dict(self.skipped),
        }


class Enriched(Findings, kw_only=True, eq=False):
    """One detection, and what is known about it now.

    Attributes:
        label, box, score: as they were given. The box is (x1, y1, x2, y2) in pixels of the frame.
        note: why no model was to look at it, or "".
    """

    label: str
    box: tuple[float, float, float, float]
    score: float
    note: str = ""

    def to_dict(self, *, maps: bool = False) -> dict[str, Any]:
        given = {"label": self.label, "box": list(self.box), "score": self.score, "note": self.note}
        return given | super().to_dict(maps=maps)


class Enrichment(msgspec.Struct, kw_only=True, eq=False):
    """An event's answers.

    Attributes:
        detections: in the order they were given.
        frame, missing, skipped: of the models that look at the whole frame, or at all frames; as in `Findings`.
        timings: seconds from asking a model to the end of it, an answer or an error; only of those that were asked.
        seconds: the whole of it.
    """

    detections: list[Enriched]
    frame: dict[str, results.AnyResult]
    missing: dict[str, ZooError]
    skipped: dict[str, str]
    timings: dict[str, float]
    seconds: float

    def to_dict(self, *, maps: bool = False) -> dict[str, Any]:
        """Plain JSON-like values.

        Args:
            maps: masks and depth maps pixel by pixel, tens of megabytes of JSON; else their shapes stand for them.
        """
        event = Findings(answers=self.frame, missing=self.missing, skipped=self.skipped).to_dict(maps=maps)
        return {
            "detections": [detection.to_dict(maps=maps) for detection in self.detections],
            "frame": event["answers"],
            "missing": event["missing"],
            "skipped": event["skipped"],
            "timings": dict(self.timings),
            "seconds": self.seconds,
        }

    def draw(self, frame: Any, *, color: str = "rgb") -> np.ndarray:
        """A copy of `frame`, HxWx3 uint8, with the detections and what was found on them painted on it.

        See `zoo.drawing.draw.draw`; of several frames, it is the last.
        """
        from zoo.drawing import draw

        return draw.draw(self, frame, color=color)


def _plain(answer: results.AnyResult, maps: bool) -> Any:
    if isinstance(answer, dict):
        return results.plain(answer)
    pixels = {} if maps else {name: v for name in PIXELS if (v := getattr(answer, name, None)) is not None}
    rest = msgspec.structs.replace(answer, **dict.fromkeys(pixels)).to_dict()
    if pixels and isinstance(answer, results.DepthMap):
        rest["median"] = answer.median
    return rest | {name: {"shape": list(array.shape)} for name, array in pixels.items()}
