"""Advice as a picture: a bar for each replay, and where a budget was looked for, the percentile over the budget."""

from __future__ import annotations

import math

from PIL import Image, ImageDraw, ImageFont

from zoo.advise.advice import Recommended, Row
from zoo.advise.change import gigabytes
from zoo.config.schema import MB_PER_GB

WIDTH, ROW, MARGIN, LABEL, PLOT = 960, 28, 24, 300, 300
INK, FAINT, BAR, WISH, BEST, BAD = "#222222", "#bbbbbb", "#4c78a8", "#e45756", "#54a24b", "#f2b8b5"
PART = 0.95


def draw(rows: list[Row], recommended: Recommended | None, budget_mb: float) -> Image.Image:
    """`budget_mb`: as it was."""
    height = 2 * MARGIN + ROW * (len(rows) + 1) + (PLOT + 2 * MARGIN if recommended is not None else 0)
    picture = Image.new("RGB", (WIDTH, height), "white")
    pen = ImageDraw.Draw(picture)
    pen.fontmode = "L"
    _bars(pen, rows)
    if recommended is not None:
        top = 2 * MARGIN + ROW * (len(rows) + 1)
        _curve(pen, recommended, budget_mb, (MARGIN + 60, top + MARGIN, WIDTH - MARGIN, top + PLOT))
    return picture


def _write(pen: ImageDraw.ImageDraw, at: tuple[float, float], text: str, anchor: str = "lm", ink: str = INK) -> None:
    pen.text(at, text, ink, ImageFont.load_default(14), anchor)


def _bars(pen: ImageDraw.ImageDraw, rows: list[Row]) -> None:
    _write(pen, (MARGIN, MARGIN + ROW / 2), "answered within, 95 % of the requests")
    times = [row.figures.percentile(PART) for row in rows]
    longest = max((seconds for seconds in times if math.isfinite(seconds)), default=0.0) or 1.0
    room = WIDTH - LABEL - 300
    for i, (row, seconds) in enumerate(zip(rows, times, strict=True), 1):
        middle = MARGIN + ROW * (i + 0.5)
        label = row.label if len(row.label) <= 40 else f"{row.label[:39]}…"
        _write(pen, (MARGIN, middle), label)
        length = room * min(1.0, seconds / longest)
        box = (LABEL, middle - ROW * 0.35, LABEL + max(1.0, length), middle + ROW * 0.35)
        pen.rectangle(box, BAR if math.isfinite(seconds) else BAD)
        p95 = f"{seconds:.3g} s" if math.isfinite(seconds) else "never"
        told = f"{p95}, {row.figures.loads} loads, {row.figures.missed} missed"
        _write(pen, (LABEL + length + 8, middle), told)


def _curve(
    pen: ImageDraw.ImageDraw, found: Recommended, budget_mb: float, box: tuple[float, float, float, float]
) -> None:
    left, top, right, bottom = box
    points = [(one.budget_mb, one.figures.percentile(PART), one.met) for one in found.tried]
    least, most = points[0][0], max(points[-1][0], budget_mb)
    finite = [seconds for _, seconds, _ in points if math.isfinite(seconds)]
    highest = 1.15 * max([found.p95_s, *finite])

    def x(mb: float) -> float:
        return left + (right - left) * (mb - least) / max(1e-9, most - least)

    def y(seconds: float) -> float:
        return bottom - (bottom - top) * min(1.0, seconds / highest)

    pen.line([(left, top), (left, bottom), (right, bottom)], INK)
    for part in (0.0, 0.25, 0.5, 0.75, 1.0):
        mb = least + (most - least) * part
        _write(pen, (x(mb), bottom + 12), f"{mb / MB_PER_GB:.3g}", "mm")
        _write(pen, (left - 8, y(highest * part)), f"{highest * part:.3g}", "rm")
    _write(pen, ((left + right) / 2, bottom + 30), "budget, GB: seconds within which 95 % are answered", "mm")
    pen.line([(left, y(found.p95_s)), (right, y(found.p95_s))], WISH)
    _write(pen, (left + 6, y(found.p95_s) - 9), f"wanted: {found.p95_s:g} s", "lm", WISH)
    if least <= budget_mb <= most:
        pen.line([(x(budget_mb), top), (x(budget_mb), bottom)], FAINT)
        _write(pen, (x(budget_mb), top - 9), f"now {gigabytes(budget_mb)}", "mm", FAINT)
    pen.line([(x(mb), y(min(seconds, highest))) for mb, seconds, _ in points], BAR, 2)
    for mb, seconds, met in points:
        at = x(mb), y(min(seconds, highest))
        pen.ellipse((at[0] - 4, at[1] - 4, at[0] + 4, at[1] + 4), BEST if met else WISH)
    if found.budget_mb is not None:
        pen.line([(x(found.budget_mb), top), (x(found.budget_mb), bottom)], BEST)
        _write(pen, (x(found.budget_mb) - 6, top + 10), gigabytes(found.budget_mb), "rm", BEST)
