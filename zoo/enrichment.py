"""What comes back from `zoo.enrich`: for each detection and for the event, answers, and why others are not there."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from zoo import results
from zoo.drawing.canvas import SMALL_ROWS, Canvas, hue
from zoo.errors import ZooError


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
            "answers": {model: results.typed(answer).to_dict(maps=maps) for model, answer in self.answers.items()},
            "missing": {
                model: {"error": e.code, "message": str(e), "retryable": e.retryable, "retry_after": e.retry_after}
                for model, e in self.missing.items()
            },
            "skipped": dict(self.skipped),
        }

    def lines(self) -> list[str]:
        """A line for each model that has something to say, or has failed to."""
        typed = {model: results.typed(answer) for model, answer in self.answers.items()}
        lines = [
            f"{model}{' (stand-in)' if answer.stand_in else ''}: {words}"
            for model, answer in typed.items()
            if (words := answer.brief())
        ]
        return lines + [f"{model}: {error.code.replace('_', ' ')}" for model, error in self.missing.items()]


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
        event = self._event().to_dict(maps=maps)
        return {
            "detections": [detection.to_dict(maps=maps) for detection in self.detections],
            "frame": event.pop("answers"),
            **event,
            "timings": dict(self.timings),
            "seconds": self.seconds,
        }

    def draw(self, frame: Any, *, color: str = "rgb") -> np.ndarray:
        """A copy of `frame`, HxWx3 uint8, with the detections and what was found on them painted on it.

        What stand-ins answered is marked so. Args, Raises: see `zoo.drawing.canvas.Canvas`; of several frames, the last
        is painted on.
        """
        canvas = Canvas(frame, color, SMALL_ROWS)
        shown = [detection for detection in self.detections if np.isfinite(detection.box).all()]
        for detection in shown:  # areas first, words last, so that nothing covers a word
            for answer in detection.answers.values():
                results.typed(answer).tint(canvas)
        for i, detection in enumerate(shown):
            canvas.box(detection.box, hue(i))
            for answer in detection.answers.values():
                results.typed(answer).outline(canvas, i)
        for i, detection in enumerate(shown):
            left, top = map(round, detection.box[:2])
            canvas.caption([f"{detection.label} {detection.score:.2f}", *detection.lines()], [hue(i)], (left, top))
        canvas.caption(self._event().lines())
        answers = [self.frame, *(detection.answers for detection in self.detections)]
        canvas.mark_stand_ins([results.typed(answer).stand_in for some in answers for answer in some.values()])
        return canvas.pixels()

    def _event(self) -> Findings:
        """Of the whole event."""
        return Findings(answers=self.frame, missing=self.missing, skipped=self.skipped)
