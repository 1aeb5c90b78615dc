"""What every builder of stand-ins uses: repeatable random numbers, and real photographs to calibrate on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Builder = Callable[[Path, int], None]  # where the file or folder goes, seed


@contextmanager
def repeatable(seed: int) -> Iterator[None]:
    """The same random numbers and the same order of summation every time, and the caller's own ones afterwards."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums split among threads round differently
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def photos() -> list[Any]:
    """The photographs inside the ultralytics package as (1, 3, h, w) in 0..1, scaled by its own code.

    By its own, because a random network is sensitive to fine grain, and libraries smooth differently.
    """
    import numpy as np
    import torch
    from PIL import Image
    from ultralytics.data.augment import LetterBox
    from ultralytics.utils import ASSETS

    photos = []
    for name in ("bus.jpg", "zidane.jpg"):
        scaled = LetterBox((640, 640), auto=True, stride=32)(image=np.array(Image.open(ASSETS / name).convert("RGB")))
        photos.append(torch.from_numpy(scaled).permute(2, 0, 1)[None].float() / 255)
    return photos
