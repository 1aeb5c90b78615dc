"""Real photographs, HxWx3 RGB uint8 and read-only: those inside the ultralytics package."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image


def photograph(name: str) -> np.ndarray:
    from ultralytics.utils import ASSETS

    return np.asarray(Image.open(ASSETS / name).convert("RGB"))


@pytest.fixture(scope="session")
def bus() -> np.ndarray:
    return photograph("bus.jpg")


@pytest.fixture(scope="session")
def zidane() -> np.ndarray:
    return photograph("zidane.jpg")
