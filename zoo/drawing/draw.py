"""Results as pictures: what `result.draw(frame)` paints. Pillow and numpy only, so that a client needs no more.

A frame is never painted on; a copy is. Lines and letters grow with the frame, so the same call suits a 1080p frame
and a small crop. Coordinates outside the frame are cut off at its edge, and those that are not numbers are left out.
Masks and maps of a crop are painted where the crop was (`origin`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from zoo import results
from zoo.drawing import glyphs, picture
from zoo.enrichment import Enrichment, Findings

Color = tuple[int, int, int]

# Twelve hues that stay apart from each other on a photograph.
PALETTE: tuple[Color, ...] = (
    (255, 92, 56), (0, 190, 255), (120, 220, 60), (255, 200, 0), (200, 110, 255), (0, 215, 160),
    (255, 90, 170), (90, 130, 255), (190, 190, 60), (255, 150, 110), (110, 230, 230), (220, 160, 220),
)  # fmt: skip

# Dark to bright in even steps of lightness (far to near), in the manner of matplotlib's inferno.
DEPTH_RAMP: tuple[Color, ...] = (
    (0, 0, 8), (34, 12, 74), (88, 16, 110), (140, 36, 104), (188, 56, 82),
    (226, 90, 50), (248, 140, 16), (248, 200, 50), (252, 252, 176),
)  # fmt: skip

LIMBS = (
    ("left_ankle", "left_knee"), ("left_knee", "left_hip"), ("right_ankle", "right_knee"),
    ("right_knee", "right_hip"), ("left_hip", "right_hip"), ("left_shoulder", "left_hip"),
    ("right_shoulder", "right_hip"), ("left_shoulder", "right_shoulder"), ("left_shoulder", "left_elbow"),
    ("right_shoulder", "right_elbow"), ("left_elbow", "left_wrist"), ("right_elbow", "right_wrist"),
    ("left_eye", "right_eye"), ("nose", "left_eye"), ("nose", "right_eye"), ("left_eye", "left_ear"),
    ("right_eye", "right_ear"),
)  # fmt: skip

SEEN = 0.3  # a keypoint below this score is a guess, and is not drawn
MASK_OPACITY = 0.45
STAND_IN = ("STAND-IN: random weights, this means nothing", "STAND-IN")  # the first that there is room for
SOME_STAND_INS = ("STAND-INS among them: their answers mean nothing", "STAND-INS")
CAPTION_LINES = 5


def draw(result: results.Result | Enrichment | dict[str, Any], frame: Any, *, color: str = "rgb") -> np.ndarray:
    """A copy of `frame` with the result painted on it; for a dict, its plain values as a caption.

    What a stand-in answered is marked so at the lower edge.

    Args:
        frame: what `infer` was given: an HxWx3 uint8 array, a `Frame`, JPEG or PNG bytes, or a list of them, of which
            the last one is painted on.
        color: order of the array's channels, "rgb" or "bgr" (OpenCV), and of those of the picture.

    Returns:
        HxWx3 uint8. An encoded image is turned upright, as the model saw it.

    Raises:
        InvalidInput: the frame is something else.
    """
    canvas = _Canvas(picture.seen(frame, color), 54 if isinstance(result, Enrichment) else 34)
    match result:
        case results.Detections():
            _detections(canvas, result)
        case results.Keypoints():
            _keypoints(canvas, result)
        case results.DepthMap():
            _depth(canvas, result)
        case results.Segmentation():
            _segmentation(canvas, result)
        case results.OcrText():
            _ocr(canvas, result)
        case results.Classification() | results.Action():
            canvas.caption(_scored(result.labels, result.scores))
        case results.Quality():
            canvas.caption([f"{result.verdict or 'quality'} {result.score:.0f}", "0 best, 100 worst"])
        case Enrichment():
            _enrichment(canvas, result)
        case results.Embedding():
            canvas.caption([f"embedding, {result.vector.size} numbers"])
        case dict():
            canvas.caption(_values(result))
    if any(marks := _stand_ins(result)):
        canvas.banner(STAND_IN if all(marks) else SOME_STAND_INS)
    painted = canvas.pixels()
    return np.ascontiguousarray(painted[..., ::-1]) if color == "bgr" else painted


def marked(frame: np.ndarray) -> np.ndarray:
    """A copy of the frame (HxWx3 uint8) with nothing on it but that a stand-in was asked."""
    canvas = _Canvas(frame, 54)
    canvas.banner(STAND_IN)
    return canvas.pixels()


def is_stand_in(answer: results.Result | dict[str, Any]) -> bool:
    return answer.get("stand_in") is True if isinstance(answer, dict) else answer.stand_in


def _stand_ins(result: results.Result | Enrichment | dict[str, Any]) -> list[bool]:
    """Of each answer that is in it, whether a stand-in gave it."""
    if not isinstance(result, Enrichment):
        return [is_stand_in(result)]
    found = [result.frame, *(detection.answers for detection in result.detections)]
    return [is_stand_in(answer) for answers in found for answer in answers.values()]


class _Canvas:
    """The copy being painted, and the sizes that suit it. `rows`: of letters that would fill the shorter side."""

    def __init__(self, frame: np.ndarray, rows: int) -> None:
        self.image = Image.fromarray(np.array(frame, order="C"))
        self.width, self.height = self.image.size
        side = min(self.width, self.height)
        self.line = max(1, round(side / 360))
        self.size = max(10, round(side / rows))
        self.pen = ImageDraw.Draw(self.image)
        self._panels: list[tuple[int, int, int, int]] = []  # where captions are

    def pixels(self) -> np.ndarray:
        return np.array(self.image)

    def blend(self, mask: np.ndarray, origin: tuple[int, int], color: Color, opacity: float = MASK_OPACITY) -> None:
        """Tints the pixels where `mask` (bool, its upper left pixel at `origin`) is true."""
        stencil = Image.fromarray(mask.astype(np.uint8) * round(opacity * 255))
        area = (*origin, origin[0] + stencil.width, origin[1] + stencil.height)
        self.image.paste(color, area, stencil)

    def box(self, corners: np.ndarray, color: Color) -> None:
        x1, y1, x2, y2 = self._inside(corners)
        self.pen.rectangle((x1, y1, x2, y2), outline=color, width=self.line)

    def tag(self, x: float, y: float, text: str, color: Color) -> None:
        """A word on a patch of colour standing on (x, y); below it where there is no room above."""
        text, font = glyphs.fitted(text, self.size)
        left, top, right, bottom = self.pen.textbbox((0, 0), text, font=font)
        gap = self.line + 1
        width, height = right - left + 2 * gap, bottom - top + 2 * gap
        x = min(max(0.0, x), max(0.0, self.width - width))
        y = y - height if y >= height else y
        y = min(max(0.0, y), max(0.0, self.height - height))
        self.pen.rectangle((x, y, x + width - 1, y + height - 1), fill=color)
        bright = 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2] > 110
        ink = (0, 0, 0) if bright else (255, 255, 255)
        self.pen.text((x + gap - left, y + gap - top), text, fill=ink, font=font)

    def caption(self, lines: Sequence[str], swatches: Sequence[Color] = (), corner: tuple[int, int] = (0, 0)) -> None:
        """Lines on a darkened panel, each with a patch of colour if `swatches` has one.

        The panel stands on `corner` (the frame's, or a crop's), or hangs from it where there is no room above. Where
        another one is, it moves up or down as far as it must.
        """
        if not lines:
            return
        words = [glyphs.fitted(line, self.size) for line in lines]
        step, gap = max(sum(font.getmetrics()) for _, font in words), self.line + 2
        indent = step if swatches else 0
        width = int(max(self.pen.textlength(text, font=font) for text, font in words)) + indent + 2 * gap
        height = step * len(lines) + 2 * gap
        left = max(0, min(corner[0], self.width - width))
        top = max(0, min(corner[1] - height if corner[1] >= height else corner[1], self.height - height))
        top = self._free(left, top, width, height)
        area = (left, top, min(self.width, left + width), min(self.height, top + height))
        self._panels.append(area)
        panel = self.image.crop(area)
        self.image.paste(Image.blend(panel, Image.new("RGB", panel.size), 0.65), area)
        for i, (text, font) in enumerate(words):
            x, y = left + gap, top + gap + i * step
            if i < len(swatches):
                self.pen.rectangle((x, y + step * 0.2, x + step * 0.6, y + step * 0.8), fill=swatches[i])
            self.pen.text((x + indent, y), text, fill=(255, 255, 255), font=font)

    def _free(self, left: int, top: int, width: int, height: int) -> int:
        """The place nearest to `top` where a panel covers no other; `top` if there is none."""
        beside = [(y1, y2) for x1, y1, x2, y2 in self._panels if x1 < left + width and left < x2]
        tops = [top, *(y1 - height for y1, _ in beside), *(y2 for _, y2 in beside)]
        free = [
            t for t in tops if 0 <= t <= self.height - height and all(t + height <= y1 or y2 <= t for y1, y2 in beside)
        ]
        return min(free, key=lambda t: abs(t - top), default=top)

    def banner(self, texts: Sequence[str]) -> None:
        """A bar over the lower edge with the first of `texts` that fits, else with the last, made to fit."""
        size = max(self.size, 12)
        fits = (text for text in texts if self.pen.textlength(text, font=glyphs.builtin(size)) <= self.width - 8)
        text = next(fits, texts[-1])
        while size > 5 and self.pen.textlength(text, font=glyphs.builtin(size)) > self.width - 2:
            size -= 1
        font = glyphs.builtin(size)
        height = min(sum(font.getmetrics()) + 2 * self.line, self.height)
        self.pen.rectangle((0, self.height - height, self.width, self.height), fill=(0, 0, 0))
        middle = (self.width / 2, self.height - height / 2)
        self.pen.text(middle, text, fill=(255, 210, 60), font=font, anchor="mm")

    def _inside(self, corners: np.ndarray) -> tuple[float, float, float, float]:
        x1, x2 = sorted(float(min(max(v, 0), self.width - 1)) for v in (corners[0], corners[2]))
        y1, y2 = sorted(float(min(max(v, 0), self.height - 1)) for v in (corners[1], corners[3]))
        return x1, y1, x2, y2


def _detections(canvas: _Canvas, found: results.Detections) -> None:
    colors = [PALETTE[int(i) % len(PALETTE)] for i in found.class_ids]
    if found.masks is not None:
        for mask, color in zip(found.masks, colors, strict=True):
            canvas.blend(mask, found.origin, color)
    # Worst first, so that the best box and its words lie on top. All boxes first, so that none crosses a word.
    order = [i for i in reversed(range(len(found.boxes))) if np.isfinite(found.boxes[i]).all()]
    for i in order:
        canvas.box(found.boxes[i], colors[i])
    for i in order:
        canvas.tag(
            float(found.boxes[i, 0]), float(found.boxes[i, 1]), f"{found.labels[i]} {found.scores[i]:.2f}", colors[i]
        )


def _keypoints(canvas: _Canvas, found: results.Keypoints, first: int = 0, *, tags: bool = True) -> None:
    """`first`: of the palette's colours, that of the first person. `tags`: with the postures in words."""
    index = {name: i for i, name in enumerate(found.names)}
    limbs = [(index[a], index[b]) for a, b in LIMBS if a in index and b in index]
    radius = canvas.line + 1
    for n, (points, scores) in enumerate(zip(found.points, found.scores, strict=True)):
        color = PALETTE[(first + n) % len(PALETTE)]
        seen = (scores >= SEEN) & np.isfinite(points).all(axis=1)
        for a, b in limbs:
            if seen[a] and seen[b]:
                canvas.pen.line((*map(float, points[a]), *map(float, points[b])), fill=color, width=canvas.line + 1)
        for x, y in points[seen].tolist():
            around = (x - radius, y - radius, x + radius, y + radius)
            canvas.pen.ellipse(around, fill=(255, 255, 255), outline=color, width=canvas.line)
    if found.boxes is not None:
        for n, box in enumerate(found.boxes):
            if np.isfinite(box).all():
                color = PALETTE[(first + n) % len(PALETTE)]
                canvas.box(box, color)
                if tags and n < len(found.postures):
                    canvas.tag(float(box[0]), float(box[1]), found.postures[n], color)


def _depth(canvas: _Canvas, found: results.DepthMap) -> None:
    depth = np.nan_to_num(found.depth.astype(np.float32), posinf=0.0, neginf=0.0)
    low, high = float(depth.min()), float(depth.max())
    level = (depth - low) / (high - low) if high > low else np.zeros_like(depth)
    # By a table of 256: a colour per pixel straight from the ramp would cost three interpolations of the whole map.
    canvas.image.paste(Image.fromarray(_ramp()[(level * 255).astype(np.uint8)]), found.origin)
    canvas.caption(["near", "far"], [DEPTH_RAMP[-1], DEPTH_RAMP[1]], found.origin)


def _segmentation(canvas: _Canvas, found: results.Segmentation) -> None:
    legend = _tint(canvas, found)[: CAPTION_LINES + 3]
    canvas.caption([text for text, _ in legend], [color for _, color in legend], found.origin)


def _tint(canvas: _Canvas, found: results.Segmentation) -> list[tuple[str, Color]]:
    """Paints each class but the background; gives what each colour means, the largest first."""
    share = np.bincount(found.mask.reshape(-1), minlength=256) / found.mask.size
    present = [int(i) for i in np.argsort(-share, kind="stable") if share[i] > 0 and not _background(found, int(i))]
    for i in present:
        canvas.blend(found.mask == i, found.origin, _shade(i), 0.55)
    names = [found.labels[i] if i < len(found.labels) else f"class {i}" for i in present]
    return [(f"{name} {share[i]:.0%}", _shade(i)) for i, name in zip(present, names, strict=True)]


def _shade(index: int) -> Color:
    """A colour per class: the palette, then the palette darker, and so on."""
    r, g, b = PALETTE[index % len(PALETTE)]
    share = 0.55 ** (index // len(PALETTE))
    return round(r * share), round(g * share), round(b * share)


def _background(found: results.Segmentation, index: int) -> bool:
    return index < len(found.labels) and found.labels[index].lower() == "background"


def _ocr(canvas: _Canvas, found: results.OcrText) -> None:
    if found.boxes is None:
        canvas.caption(_scored(found.lines, found.scores) or ["no text"])
        return
    color = PALETTE[3]
    for corners in found.boxes:
        if np.isfinite(corners).all():
            outline = [(float(x), float(y)) for x, y in (*corners, corners[0])]
            canvas.pen.line(outline, fill=color, width=canvas.line, joint="curve")
    for corners, line, score in zip(found.boxes, found.lines, found.scores, strict=True):
        if np.isfinite(corners).all():
            canvas.tag(float(corners[:, 0].min()), float(corners[:, 1].min()), f"{line} {score:.2f}", color)


def _enrichment(canvas: _Canvas, found: Enrichment) -> None:
    shown = [d for d in found.detections if np.isfinite(d.box).all()]
    legends = [  # areas first, words last, so that nothing covers a word
        {
            model: ", ".join(text for text, _ in _tint(canvas, answer)[:3])
            for model, answer in detection.answers.items()
            if isinstance(answer, results.Segmentation)
        }
        for detection in shown
    ]
    for i, detection in enumerate(shown):
        canvas.box(np.array(detection.box), PALETTE[i % len(PALETTE)])
        for answer in detection.answers.values():
            if isinstance(answer, results.Detections):
                _detections(canvas, answer)
            elif isinstance(answer, results.Keypoints):
                _keypoints(canvas, answer, i, tags=False)
    for i, detection in enumerate(shown):
        color, (left, top) = PALETTE[i % len(PALETTE)], detection.box[:2]
        lines = [f"{detection.label} {detection.score:.2f}", *_findings(detection, legends[i])]
        canvas.caption(lines, [color], (round(left), round(top)))
    canvas.caption(_findings(Findings(answers=found.frame, missing=found.missing), {}))


def _findings(found: Findings, legends: dict[str, str]) -> list[str]:
    """A line for each model that has something to say, or has failed to."""
    said = {model: legends.get(model) or _in_words(answer) for model, answer in found.answers.items()}
    marks = {model: " (stand-in)" if is_stand_in(answer) else "" for model, answer in found.answers.items()}
    lines = [f"{model}{marks[model]}: {words}" for model, words in said.items() if words]
    return lines + [f"{model}: {error.code.replace('_', ' ')}" for model, error in found.missing.items()]


def _in_words(answer: results.AnyResult) -> str:
    """A few, or none for what is painted and what has no words."""
    match answer:
        case results.Classification() | results.Action():
            return ", ".join(_scored(answer.labels, answer.scores)[:1])
        case results.OcrText():
            return answer.text or "no text"
        case results.Keypoints():
            return ", ".join(answer.postures[:3])
        case results.Quality():
            return f"{answer.verdict} {answer.score:.0f}".strip()
        case results.DepthMap():
            return f"{answer.median:.3g}, larger is nearer"
        case dict():
            return ", ".join(_values(answer)[:3])
    return ""


def _values(answer: dict[str, Any]) -> list[str]:
    plain = [(k, v) for k, v in answer.items() if isinstance(v, str | int | float)]
    return [f"{k}: {v:.3g}" if isinstance(v, float) else f"{k}: {v}" for k, v in plain]


def _scored(labels: Iterable[str], scores: np.ndarray) -> list[str]:
    return [f"{label} {score:.2f}" for label, score in zip(labels, scores, strict=True)][:CAPTION_LINES]


@lru_cache(maxsize=1)
def _ramp() -> np.ndarray:
    """(256, 3) uint8."""
    stops = np.linspace(0, 255, len(DEPTH_RAMP))
    channels = np.array(DEPTH_RAMP, np.float64).T
    table = np.stack([np.interp(np.arange(256), stops, channel) for channel in channels], axis=1)
    return table.round().astype(np.uint8)
