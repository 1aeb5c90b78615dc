"""Advice as text and as JSON."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

from zoo.advise.advice import Advisor, Recommended, Row, in_gb
from zoo.advise.change import gigabytes
from zoo.wire import moments

HEAD = ("", "loads", "load s", "evictions", "p50 s", "p95 s", "p99 s", "missed", "refused", "waiting s")
COLUMNS = ("loads", "load_s", "evictions", "p50_s", "p95_s", "p99_s", "missed", "refused", "waiting_s")


def as_json(advisor: Advisor, rows: list[Row], recommended: Recommended | None) -> dict[str, Any]:
    part = advisor.part
    found: dict[str, Any] = {
        "recorded": {
            "since": moments.to_text(part.began.wall + part.began.at), "seconds": round(part.seconds, 3),
            "requests": len(part.requests), "parts": part.parts, "unreadable_lines": part.unreadable,
            "budget_mb": round(advisor.budget_mb, 3), "assumed_loads": sorted(advisor.times.assumed),
        },
        "agreement": advisor.agreement(),
        "rows": [{"label": row.label, **row.figures.summary()} for row in rows],
    }  # fmt: skip
    if recommended is not None:
        best = recommended.budget_mb
        found["recommended"] = {
            "p95_s": recommended.p95_s,
            "vram_budget_gb": None if best is None else in_gb(best),
            "tried": [
                {"budget_mb": round(one.budget_mb, 1), "met": one.met, **one.figures.summary()}
                for one in recommended.tried
            ],
            "smaller_that_met_it_too_mb": [round(mb, 1) for mb in recommended.smaller],
        }
    return found


def as_text(advisor: Advisor, rows: list[Row], recommended: Recommended | None) -> Iterator[str]:
    part = advisor.part
    since = moments.to_text(part.began.wall + part.began.at)
    length = datetime.timedelta(seconds=round(part.seconds))
    models = len({request.model for request in part.requests})
    yield f"{len(part.requests)} requests for {models} models in {length}, recorded since {since}" + _left_out(advisor)
    yield _agreement(advisor)
    if advisor.times.assumed:
        yield f"never seen loading, 0.3 s + 1 s per 1,000 MB is assumed: {', '.join(sorted(advisor.times.assumed))}"
    yield ""
    yield from _table(rows)
    if recommended is not None:
        yield ""
        yield from _recommended(advisor, recommended)


def _left_out(advisor: Advisor) -> str:
    part = advisor.part
    others = f"; the configuration changed or the broker ended: of {part.parts} parts this is the longest"
    unread = f"; {part.unreadable} lines cannot be read and are left out"
    return (others if part.parts > 1 else "") + (unread if part.unreadable else "")


def _agreement(advisor: Advisor) -> str:
    found = advisor.agreement()
    (loads, replayed), (p95, p95_replayed) = found["loads"], found["p95_s"]
    return (
        f"a replay of the present configuration has {replayed} loads (recorded: {loads}), p95 {_cell(p95_replayed)} s "
        f"({_cell(p95)}), {found['missed'][1]} missed ({found['missed'][0]}); {found['near']:.0%} of its answers come "
        "within 25 % or 50 ms of the recorded ones"
    )


def _table(rows: list[Row]) -> Iterator[str]:
    cells: list[tuple[str, ...]] = [HEAD]
    for row in rows:
        summary = row.figures.summary()
        cells.append((row.label, *(_cell(summary[column]) for column in COLUMNS)))
    widths = [max(len(row[i]) for row in cells) for i in range(len(HEAD))]
    for first, *rest in cells:
        numbers = "  ".join(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
        yield f"{first.ljust(widths[0])}  {numbers}".rstrip()


def _cell(value: float | None) -> str:
    """A percentile that lies among requests that were never answered is None."""
    if value is None:
        return "never"
    return f"{value:.3g}" if isinstance(value, float) and value < 1000 else f"{value:.0f}"


def _recommended(advisor: Advisor, found: Recommended) -> Iterator[str]:
    wish = f"95 % of the requests answered within {found.p95_s:g} s"
    if found.budget_mb is None:
        most = next(one for one in reversed(found.tried))
        p95 = _cell(most.figures.summary()["p95_s"])
        yield f"{wish}: no budget does that; with {gigabytes(found.most_mb)}, which hold all models, it is {p95} s"
        return
    best = next(one for one in found.tried if one.budget_mb == found.budget_mb)
    summary = best.figures.summary()
    yield (
        f"{wish}: vram_budget_gb = {in_gb(found.budget_mb):g} is the smallest budget found (now "
        f"{gigabytes(advisor.budget_mb)}): p95 {_cell(summary['p95_s'])} s, {summary['loads']} loads"
    )
    below = [one for one in found.tried if one.budget_mb < found.budget_mb and not one.met]
    if below:
        near = below[-1]
        yield f"  {gigabytes(near.budget_mb)} do not: p95 {_cell(near.figures.summary()['p95_s'])} s"
    else:
        yield "  it is what the largest model needs"
    if found.smaller:
        those = ", ".join(gigabytes(mb) for mb in found.smaller)
        yield f"  more is not always better here: {those} did as well, but more than that did not"
