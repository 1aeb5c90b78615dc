"""What the demo looks at: real photographs, one with a plate pasted in, and a drawn street with a plate on its car."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

PLATE = "ZOO 4217"
CAR = (420, 240, 880, 670)  # in the street
PERSONS = [(48, 398, 246, 903), (222, 405, 346, 858), (668, 390, 810, 880)]  # in bus.jpg, as one sees them
FACE = (370, 40, 620, 360)  # in zidane.jpg
BUS = (20, 230, 808, 745)  # in bus.jpg
PASTED, SPANISH = (545, 636, 657, 660), "4217 KZM"  # the plate in `bus_with_plate`, and its text
PICTURES = (("ultralytics", "assets"), ("skimage", "data"))  # packages that carry photographs, and where


def photograph(name: str) -> np.ndarray:
    """One of the photographs that ultralytics (bus.jpg, zidane.jpg) and scikit-image (astronaut.png, …) carry.

    Returns:
        HxWx3 uint8 RGB.
    """
    for package, inside in PICTURES:
        found = importlib.util.find_spec(package)  # imports nothing
        for folder in (found and found.submodule_search_locations) or ():
            if (file := Path(folder) / inside / name).is_file():
                with Image.open(file) as image:
                    return np.array(image.convert("RGB"))
    raise SystemExit("the demo needs the model libraries: pip install 'model-zoo[workers]'")


def bus_with_plate(text: str = SPANISH, height: int = PASTED[3] - PASTED[1]) -> np.ndarray:
    """bus.jpg with a rendered license plate pasted onto the bus, its upper left corner that of `PASTED`: no photograph
    here shows one.
    """
    image = Image.fromarray(photograph("bus.jpg"))
    plate = Image.new("RGB", (560, 120), (20, 20, 20))
    draw = ImageDraw.Draw(plate)
    draw.rounded_rectangle((5, 5, 554, 114), 12, fill=(240, 240, 236))
    draw.text((280, 60), text, font=ImageFont.load_default(size=96), fill=(15, 15, 20), anchor="mm")
    image.paste(plate.resize((height * 14 // 3, height), Image.Resampling.LANCZOS), PASTED[:2])
    return np.array(image)


def street_scene() -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """A drawn street with a car and its plate, and where the plate is."""
    image = Image.new("RGB", (1280, 720), (170, 200, 225))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 400, 1280, 720), fill=(88, 88, 92))
    for x, width, height, shade in ((0, 260, 300, 150), (270, 200, 360, 120), (900, 380, 330, 140)):
        draw.rectangle((x, 410 - height, x + width, 410), fill=(shade, shade - 15, shade - 30))
        for wx in range(x + 20, x + width - 30, 50):
            for wy in range(430 - height, 380, 60):
                draw.rectangle((wx, wy, wx + 26, wy + 34), fill=(shade + 10, shade - 2, shade - 14))
    draw.rounded_rectangle((430, 330, 870, 610), 46, fill=(150, 24, 28))
    draw.rounded_rectangle((490, 250, 810, 400), 40, fill=(120, 16, 20))
    draw.rounded_rectangle((515, 270, 785, 380), 24, fill=(190, 215, 230))
    for x in (455, 765):
        draw.ellipse((x, 430, x + 80, 490), fill=(250, 240, 200))
        draw.rounded_rectangle((x, 580, x + 80, 660), 20, fill=(20, 20, 20))
    box = (530, 505, 770, 565)
    draw.rounded_rectangle(box, 10, fill=(250, 250, 250), outline=(20, 20, 20), width=3)
    font = ImageFont.load_default(size=44)
    draw.text(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), PLATE, font=font, fill=(15, 15, 20), anchor="mm")
    return np.array(image), box


def degraded(frame: np.ndarray) -> dict[str, np.ndarray]:
    """The frame as it is, blurred, and with sensor noise."""
    blurred = np.array(Image.fromarray(frame).filter(ImageFilter.GaussianBlur(1.5)))
    noise = np.random.default_rng(0).normal(0, 60, frame.shape)
    return {"sharp": frame, "blurred": blurred, "noisy": np.clip(frame + noise, 0, 255).astype(np.uint8)}
