"""Try it: a picture, a model's answer, and the picture with the answer drawn on it."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image

from zoo.drawing import picture
from zoo.errors import InvalidInput
from zoo.results import AnyResult, typed

MOST_BYTES = 16 << 20
MOST_PIXELS = 1 << 25  # 33 million, an 8K frame
SIDE = 1280  # pixels of the drawing's longer side
LINES = 12  # of the answer in words


def check(raw: bytes) -> None:
    """Raises InvalidInput: it is no picture, or one that is too large to be drawn on."""
    width, height = picture.size_of(raw) if raw else (0, 0)
    if not width * height < MOST_PIXELS or not raw:
        raise InvalidInput(f"image: send a JPEG or PNG file of at most {MOST_PIXELS >> 20} million pixels")


def drawn(raw: bytes, answer: AnyResult) -> dict[str, Any]:
    """The answer in words, where its time went, and a data: URL of the drawing. Takes tens of milliseconds."""
    found = typed(answer)
    made = io.BytesIO()
    image = Image.fromarray(found.draw(raw))
    image.thumbnail((SIDE, SIDE))
    image.save(made, "JPEG", quality=88)
    lines = found.summary()
    return {
        "lines": lines[:LINES],
        "more": max(0, len(lines) - LINES),
        "stand_in": found.stand_in,
        "request": found.request,
        "timings": {name: round(found.timings[name], 4) for name in found.timings},
        "picture": "data:image/jpeg;base64," + base64.b64encode(made.getvalue()).decode(),
    }
