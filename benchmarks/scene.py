"""What the models are shown: a 1080p frame made of the two photographs inside the ultralytics package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

Box = tuple[int, int, int, int]  # x1, y1, x2, y2

SHAPE = (1080, 1920, 3)
BUS: Box = (20, 230, 805, 750)
SIGN: Box = (38, 325, 148, 370)  # "M1 SOL/SEVILLA"
FACE: Box = (1340, 70, 1620, 450)
PERSONS: list[Box] = [(50, 395, 245, 905), (222, 405, 345, 860), (670, 380, 810, 880)]
CROPS: list[Box] = [  # of all sorts
    *PERSONS, (1120, 60, 1690, 1075), (820, 300, 1100, 1075), (0, 550, 60, 880), FACE, BUS,
]  # fmt: skip


def frame() -> np.ndarray:
    """(1080, 1920, 3) uint8 RGB."""
    package = importlib.util.find_spec("ultralytics")  # without importing it
    assert package is not None
    assert package.submodule_search_locations is not None
    assets = Path(package.submodule_search_locations[0]) / "assets"
    bus, zidane = (Image.open(assets / name).convert("RGB") for name in ("bus.jpg", "zidane.jpg"))
    return np.hstack([np.asarray(bus), np.asarray(zidane.crop((540, 0, 1280, 720)).resize((1110, 1080)))])


def video(still: np.ndarray, count: int = 8) -> list[np.ndarray]:
    """Frames of the same size that begin one after another a little farther to the left, as when a camera turns."""
    return [np.roll(still, 16 * i, axis=1) for i in range(count)]
