"""Answers in a few lines that a person can read."""

from __future__ import annotations

from typing import Any


def summary(result: Any) -> list[str]:
    """A result in a few lines that a person can read."""
    from zoo import results

    match result:
        case results.Detections():
            rows = [
                f"{label}  {score:.2f}  {corners(box)}"
                for label, score, box in zip(result.labels, result.scores, result.boxes, strict=True)
            ]
            return _rows(rows, "nothing was found")
        case results.Keypoints():
            rows = [
                f"person {i}" + (f", {result.postures[i]}" if result.postures else "")
                + f": {int((result.scores[i] > 0.3).sum())} of {result.points.shape[1]} points seen"
                for i in range(len(result.points))
            ]  # fmt: skip
            return _rows(rows, "no person was found")
        case results.Classification() | results.Action():
            return _rows([f"{label}  {score:.3f}" for label, score in zip(result.labels, result.scores, strict=True)])
        case results.Embedding():
            head = ", ".join(f"{v:.4f}" for v in result.vector[:4])
            return [f"{result.vector.size} numbers of unit length: {head}, …"]
        case results.DepthMap():
            return [f"{_size(result.depth)} relative depths from {result.depth.min():.3g} to {result.depth.max():.3g}"
                    " (larger is nearer)"]  # fmt: skip
        case results.Segmentation():
            shares = sorted(result.coverage.items(), key=lambda item: -item[1])
            return [f"{_size(result.mask)} pixels", *_rows([f"{label}  {share:.1%}" for label, share in shares])]
        case results.OcrText():
            return [f"{result.text or '(no text)'}  {result.score:.2f}", *(f"line: {line}" for line in result.lines)]
        case results.Quality():
            return [f"{result.verdict or 'score'}  {result.score:.1f} (0 best, 100 worst)"]
        case dict():
            return _rows([f"{key}: {_short(value)}" for key, value in result.items()])
    return [str(result)]


def _rows(rows: list[str], none: str = "nothing") -> list[str]:
    return rows or [none]


def corners(box: Any) -> str:
    return f"x {box[0]:.0f} to {box[2]:.0f}, y {box[1]:.0f} to {box[3]:.0f} px"


def _size(array: Any) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"


def _short(value: Any) -> str:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    text = f"array of {shape} {dtype}" if shape is not None and value.size > 16 else str(value)
    return text if len(text) <= 200 else text[:199] + "…"
