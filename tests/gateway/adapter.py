"""Models whose answers are of every kind, made of the frame and of nothing else."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from workers.models.base import Input, Spec
from zoo import results


class Every:
    """Answers what the option `kind` names, of as many objects as the frame's first number says."""

    max_batch = 4

    def load(self, spec: Spec, device: str) -> None:
        self.labels = ["cat", "dog"]

    def predict(self, inputs: list[Input]) -> list[Any]:
        return [answer(item.options.get("kind", "detections"), item.array, len(item.frames)) for item in inputs]


class Slow(Every):
    """Its load takes the model's option `seconds`; it is `late` by so many seconds where it finds `slow` objects."""

    def load(self, spec: Spec, device: str) -> None:
        super().load(spec, device)
        time.sleep(spec.options.get("seconds", 0.0))
        self.slow, self.late = spec.options.get("slow", -1), spec.options.get("late", 0.0)

    def predict(self, inputs: list[Input]) -> list[Any]:
        if any(int(item.array.reshape(-1)[0]) == self.slow for item in inputs):
            time.sleep(self.late)
        return super().predict(inputs)


class Marked(Every):
    """Its labels are markup."""

    def predict(self, inputs: list[Input]) -> list[Any]:
        text = "<script>window.pressed = 1</script><img src=x onerror='window.pressed = 1'>"
        scores = np.array([0.75], np.float32)
        return [results.Classification(labels=[text], scores=scores) for _ in inputs]


class Refusing(Every):
    """Its load fails with markup."""

    def load(self, spec: Spec, device: str) -> None:
        raise RuntimeError("the weights are made of <b>cheese</b>")


def answer(kind: str, array: np.ndarray, frames: int) -> Any:
    n = int(array.reshape(-1)[0]) % 5
    h, w = array.shape[:2]
    scores = np.linspace(0.9, 0.5, n, dtype=np.float32)
    boxes = np.stack([np.arange(4, dtype=np.float32) + i for i in range(n)]) if n else np.zeros((0, 4), np.float32)
    names = ["cat", "dog"] * 3
    made: dict[str, Any] = {
        "detections": lambda: results.Detections(
            boxes=boxes, scores=scores, class_ids=np.arange(n, dtype=np.int32), labels=names[:n]
        ),
        "masks": lambda: results.Detections(
            boxes=boxes, scores=scores, class_ids=np.arange(n, dtype=np.int32), labels=names[:n],
            masks=np.ones((n, h, w), np.bool_),
        ),
        "keypoints": lambda: results.Keypoints(
            points=np.ones((n, 2, 2), np.float32), scores=np.ones((n, 2), np.float32), names=["nose", "left_eye"]
        ),
        "classification": lambda: results.Classification(labels=names[:2], scores=np.array([0.75, 0.25], np.float32)),
        "embedding": lambda: results.Embedding(vector=np.arange(3, dtype=np.float32)),
        "depth": lambda: results.DepthMap(depth=np.full((h, w), n, np.float32)),
        "segmentation": lambda: results.Segmentation(
            mask=np.zeros((h, w), np.uint8), labels=["sky"], coverage={"sky": 1.0}
        ),
        "ocr": lambda: results.OcrText(text="ZOO42", lines=["zoo", "42"], scores=np.ones(2, np.float32), score=1.0),
        "quality": lambda: results.Quality(score=12.5, verdict="good"),
        "action": lambda: results.Action(labels=names[:2], scores=np.array([0.75, 0.25], np.float32)),
        "plain": lambda: {
            "mean": float(array.mean()), "frames": frames, "shape": list(array.shape), "name": "toy", "sure": True,
            "half": np.ones(2, np.float16), "nested": {"a": [1, 2]}, "none": None, "words": ["a", "ö"], "big": 1 << 63,
        },
        "complex": lambda: {"wave": np.ones(2, np.complex64)},
    }[kind]()  # fmt: skip
    return made
