"""Models that find what their options say, and read what they are shown."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from workers.models.base import Input, Spec
from zoo import results


class Finder:
    """Answers `found`, rows of label, score and a box, from the score `conf` on.

    Options of the model: found, conf, load_seconds.
    """

    def load(self, spec: Spec, device: str) -> None:
        time.sleep(spec.options.get("load_seconds", 0.0))
        self._options = spec.options

    def predict(self, inputs: list[Input]) -> list[Any]:
        return [self._one(item.options) for item in inputs]

    def _one(self, options: dict[str, Any]) -> results.Detections:
        least = options.get("conf", self._options.get("conf", 0.0))
        found = [row for row in self._options["found"] if row[1] >= least]
        return results.Detections(
            boxes=np.array([row[2:] for row in found], np.float32).reshape(-1, 4),
            scores=np.array([row[1] for row in found], np.float32),
            class_ids=np.zeros(len(found), np.int32),
            labels=[row[0] for row in found],
        )


class Reader:
    """Reads the size of what it is shown, and the option `mode`; nothing on what is 10 pixels high or less."""

    def load(self, spec: Spec, device: str) -> None: ...

    def predict(self, inputs: list[Input]) -> list[Any]:
        return [self._one(*item.array.shape[:2], item.options.get("mode", "")) for item in inputs]

    def _one(self, height: int, width: int, mode: str) -> results.OcrText:
        text = f"{width}X{height}{mode.upper()}" if height > 10 else ""
        return results.OcrText(text=text, lines=[text], scores=np.array([0.75], np.float32), score=0.75)


class Weather:
    """Sees rain, rather."""

    def load(self, spec: Spec, device: str) -> None: ...

    def predict(self, inputs: list[Input]) -> list[Any]:
        scores = np.array([0.7, 0.3], np.float32)
        return [results.Classification(labels=["rain", "snow"], scores=scores) for _ in inputs]
