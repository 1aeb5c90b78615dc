"""A copy of a frame to paint on. It knows shapes and words, and no result: each result paints itself with them.

Drawn with Pillow and numpy only, so that a client needs no more. Lines and letters grow with the frame, so the same
calls suit a 1080p frame and a small crop. Coordinates outside the frame are cut off at its edge.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from zoo.drawing import glyphs, picture

Color = tuple[int, int, int]

# Twelve hues that stay apart from each other on a photograph.
PALETTE: tuple[Color, ...] = (
    (255, 92, 56), (0, 190, 255), (120, 220, 60), (255, 200, 0), (200, 110, 255), (0, 215, 160),
    (255, 90, 170), (90, 130, 255), (190, 190, 60), (255, 150, 110), (110, 230, 230), (220, 160, 220),
)  # fmt: skip

# Dark to bright in even steps of lightness, in the manner of matplotlib's inferno.
RAMP: tuple[Color, ...] = (
    (0, 0, 8), (34, 12, 74), (88, 16, 110), (140, 36, 104), (188, 56, 82),
    (226, 90, 50), (248, 140, 16), (248, 200, 50), (252, 252, 176),
)  # fmt: skip

STAND_IN = ("STAND-IN: random weights, this means nothing", "STAND-IN")  # the first that there is space for
SOME_STAND_INS = ("STAND-INS among them: their answers mean nothing", "STAND-INS")
SMALL_ROWS = 54  # lines of the smaller letters that would fill the shorter side: for pictures with many words


def hue(index: int) -> Color:
    """A colour for each number, the twelve of the palette in turn."""
    return PALETTE[index % len(PALETTE)]


def shade(index: int) -> Color:
    """A colour for each number: the palette, then the palette darker, and so on."""
    r, g, b = hue(index)
    share = 0.55 ** (index // len(PALETTE))
    return round(r * share), round(g * share), round(b * share)


def marked(frame: np.ndarray) -> np.ndarray:
    """A copy of the frame (HxWx3 uint8) with nothing on it but that a stand-in was asked."""
    canvas = Canvas(frame, rows=SMALL_ROWS)
    canvas.mark_stand_ins([True])
    return canvas.pixels()


class Canvas:
    """The copy being painted, and the sizes that suit it.

    Args:
        frame: what `infer` was given: an HxWx3 uint8 array, a `Frame`, JPEG or PNG bytes, or a list of them, of which
            the last one is painted on. An encoded image is turned upright, as the model saw it.
        color: order of an array's channels, "rgb" or "bgr" (OpenCV), and of those of the picture.
        rows: how many lines of letters would fill the shorter side.

    Raises:
        InvalidInput: the frame is something else.
    """

    def __init__(self, frame: Any, color: str = "rgb", rows: int = 34) -> None:
        self._image = Image.fromarray(np.array(picture.seen(frame, color), order="C"))
        self._color = color
        self.width, self.height = self._image.size
        side = min(self.width, self.height)
        self.line = max(1, round(side / 360))
        self._size = max(10, round(side / rows))
        self._pen = ImageDraw.Draw(self._image)
        self._panels: list[tuple[int, int, int, int]] = []  # where captions are

    def pixels(self) -> np.ndarray:
        """The picture, HxWx3 uint8, in the order of colours of the frame."""
        painted = np.array(self._image)
        return np.ascontiguousarray(painted[..., ::-1]) if self._color == "bgr" else painted

    def tint(self, mask: np.ndarray, origin: tuple[int, int], color: Color, opacity: float) -> None:
        """Tints the pixels where `mask` (bool, its upper left pixel at `origin`) is true."""
        stencil = Image.fromarray(mask.astype(np.uint8) * round(opacity * 255))
        area = (*origin, origin[0] + stencil.width, origin[1] + stencil.height)
        self._image.paste(color, area, stencil)

    def levels(self, level: np.ndarray, origin: tuple[int, int]) -> None:
        """Covers an area with numbers from 0 to 1 as colours of the ramp."""
        # By a table of 256: a colour per pixel straight from the ramp would cost three interpolations of the whole map.
        self._image.paste(Image.fromarray(_ramp()[(level * 255).astype(np.uint8)]), origin)

    def box(self, corners: Sequence[float] | np.ndarray, color: Color) -> None:
        """The outline of (x1, y1, x2, y2)."""
        x1, x2 = sorted(float(min(max(v, 0), self.width - 1)) for v in (corners[0], corners[2]))
        y1, y2 = sorted(float(min(max(v, 0), self.height - 1)) for v in (corners[1], corners[3]))
        self._pen.rectangle((x1, y1, x2, y2), outline=color, width=self.line)

    def path(self, points: np.ndarray, color: Color, width: int) -> None:
        """A line through (n, 2) points."""
        self._pen.line([(x, y) for x, y in points.tolist()], fill=color, width=width, joint="curve")

    def dot(self, x: float, y: float, color: Color) -> None:
        radius = self.line + 1
        around = (x - radius, y - radius, x + radius, y + radius)
        self._pen.ellipse(around, fill=(255, 255, 255), outline=color, width=self.line)

    def tag(self, x: float, y: float, text: str, color: Color) -> None:
        """A word on a patch of colour standing on (x, y); below it where there is no space above."""
        text, font = glyphs.fitted(text, self._size)
        left, top, right, bottom = self._pen.textbbox((0, 0), text, font=font)
        gap = self.line + 1
        width, height = right - left + 2 * gap, bottom - top + 2 * gap
        x = min(max(0.0, x), max(0.0, self.width - width))
        y = y - height if y >= height else y
        y = min(max(0.0, y), max(0.0, self.height - height))
        self._pen.rectangle((x, y, x + width - 1, y + height - 1), fill=color)
        bright = 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2] > 110
        ink = (0, 0, 0) if bright else (255, 255, 255)
        self._pen.text((x + gap - left, y + gap - top), text, fill=ink, font=font)

    def caption(self, lines: Sequence[str], swatches: Sequence[Color] = (), corner: tuple[int, int] = (0, 0)) -> None:
        """Lines on a darkened panel, each with a patch of colour if `swatches` has one.

        The panel stands on `corner` (the frame's, or a crop's), or hangs from it where there is no space above. Where
        another one is, it moves up or down as far as it must.
        """
        if not lines:
            return
        words = [glyphs.fitted(line, self._size) for line in lines]
        step, gap = max(sum(font.getmetrics()) for _, font in words), self.line + 2
        indent = step if swatches else 0
        width = int(max(self._pen.textlength(text, font=font) for text, font in words)) + indent + 2 * gap
        height = step * len(lines) + 2 * gap
        left = max(0, min(corner[0], self.width - width))
        top = max(0, min(corner[1] - height if corner[1] >= height else corner[1], self.height - height))
        top = self._free(left, top, width, height)
        area = (left, top, min(self.width, left + width), min(self.height, top + height))
        self._panels.append(area)
        panel = self._image.crop(area)
        self._image.paste(Image.blend(panel, Image.new("RGB", panel.size), 0.65), area)
        for i, (text, font) in enumerate(words):
            x, y = left + gap, top + gap + i * step
            if i < len(swatches):
                self._pen.rectangle((x, y + step * 0.2, x + step * 0.6, y + step * 0.8), fill=swatches[i])
            self._pen.text((x + indent, y), text, fill=(255, 255, 255), font=font)

    def _free(self, left: int, top: int, width: int, height: int) -> int:
        """The place nearest to `top` where a panel covers no other; `top` if there is none."""
        beside = [(y1, y2) for x1, y1, x2, y2 in self._panels if x1 < left + width and left < x2]
        tops = [top, *(y1 - height for y1, _ in beside), *(y2 for _, y2 in beside)]
        free = [
            t for t in tops if 0 <= t <= self.height - height and all(t + height <= y1 or y2 <= t for y1, y2 in beside)
        ]
        return min(free, key=lambda t: abs(t - top), default=top)

    def mark_stand_ins(self, answers: Collection[bool]) -> None:
        """Says over the lower edge that a stand-in gave all, or some, of the answers shown; nothing if it gave none."""
        if not any(answers):
            return
        texts = STAND_IN if all(answers) else SOME_STAND_INS
        size = max(self._size, 12)
        fits = (text for text in texts if self._pen.textlength(text, font=glyphs.font(size)) <= self.width - 8)
        text = next(fits, texts[-1])
        while size > 5 and self._pen.textlength(text, font=glyphs.font(size)) > self.width - 2:
            size -= 1
        font = glyphs.font(size)
        height = min(sum(font.getmetrics()) + 2 * self.line, self.height)
        self._pen.rectangle((0, self.height - height, self.width, self.height), fill=(0, 0, 0))
        middle = (self.width / 2, self.height - height / 2)
        self._pen.text(middle, text, fill=(255, 210, 60), font=font, anchor="mm")


@lru_cache(maxsize=1)
def _ramp() -> np.ndarray:
    """(256, 3) uint8."""
    stops = np.linspace(0, 255, len(RAMP))
    channels = np.array(RAMP, np.float64).T
    table = np.stack([np.interp(np.arange(256), stops, channel) for channel in channels], axis=1)
    return table.round().astype(np.uint8)
