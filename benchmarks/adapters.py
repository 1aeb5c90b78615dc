"""Models for measuring: they do next to nothing, so that what is measured is the zoo."""

from __future__ import annotations

import importlib
import os
import time

import numpy as np

from workers.models.base import AnyResult, Input, Spec
from zoo.results import Detections


class Peek:
    """Looks at one pixel of each frame."""

    max_batch = 32

    def load(self, spec: Spec, device: str) -> None:
        pass

    def predict(self, inputs: list[Input]) -> list[AnyResult]:
        return [{"value": int(item.array[540, 960, 0])} for item in inputs]


class Instant:
    """A detector that finds nothing, at once."""

    def load(self, spec: Spec, device: str) -> None:
        self._none = Detections(
            boxes=np.zeros((0, 4), np.float32),
            scores=np.zeros(0, np.float32),
            class_ids=np.zeros(0, np.int32),
            labels=[],
        )

    def predict(self, inputs: list[Input]) -> list[AnyResult]:
        return [self._none for _ in inputs]


class Blind:
    """Looks at nothing, so that nothing is converted for it either."""

    def load(self, spec: Spec, device: str) -> None:
        pass

    def predict(self, inputs: list[Input]) -> list[AnyResult]:
        return [{"value": 0} for _ in inputs]


class Corner:
    """Looks at one pixel of whatever it gets, a frame or a crop."""

    def load(self, spec: Spec, device: str) -> None:
        pass

    def predict(self, inputs: list[Input]) -> list[AnyResult]:
        return [{"value": int(item.array[0, 0, 0])} for item in inputs]


class SlowToLoad:
    """Its load takes option `seconds`."""

    def load(self, spec: Spec, device: str) -> None:
        time.sleep(spec.options["seconds"])

    def predict(self, inputs: list[Input]) -> list[AnyResult]:
        return [{"value": int(item.array[0, 0, 0])} for item in inputs]


class Waits:
    """Its load takes option `seconds`, and each answer as long as the request says."""

    def load(self, spec: Spec, device: str) -> None:
        time.sleep(spec.options["seconds"])

    def predict(self, inputs: list[Input]) -> list[AnyResult]:
        time.sleep(sum(item.options["seconds"] for item in inputs))
        return [{"value": 0} for _ in inputs]


class Frail:
    """Its process dies of each request."""

    def load(self, spec: Spec, device: str) -> None:
        pass

    def predict(self, inputs: list[Input]) -> list[AnyResult]:
        os._exit(3)


class Wide:
    """Answers with 1 MB, which goes through an arena of its own."""

    def load(self, spec: Spec, device: str) -> None:
        pass

    def predict(self, inputs: list[Input]) -> list[AnyResult]:
        return [{"field": np.full((1024, 1024), item.array[0, 0, 0], np.uint8)} for item in inputs]


class Product:
    """A square matrix times its transpose, on the device, by a library that the nursery has imported."""

    def load(self, spec: Spec, device: str) -> None:
        self._torch = importlib.import_module("torch")
        self._torch.set_num_threads(spec.threads)
        self._device = device

    def predict(self, inputs: list[Input]) -> list[AnyResult]:
        answers = []
        for item in inputs:
            given = self._torch.tensor(item.array, device=self._device)
            answers.append({"pid": os.getpid(), "product": (given @ given.T).cpu().numpy()})
        return answers
