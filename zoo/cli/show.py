"""Answers of the broker as tables and lines.

Tables are plain columns, as wide as their longest cell, whether or not the output is a terminal: a line can be
searched and cut, a long name stays whole, and a narrow terminal folds the lines. `rich` was measured for this and left:
its table takes 10 lines of code where `table` takes 7, four packages (6 MB) in the base install, and 27 ms (`zoo ps`
181 ms instead of 154). In 80 columns it breaks the twelve columns of `zoo ps` within words, and when the reader of a
pipe has gone it ends the process itself, with status 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from zoo.doctor.finding import Finding

Row = dict[str, Any]


class Column(NamedTuple):
    head: str
    cell: Callable[[Row], str]
    right: bool = False


def table(columns: Sequence[Column], rows: Sequence[Row]) -> Iterator[str]:
    """A table's lines, the first with the heads."""
    cells = [[column.head for column in columns], *([column.cell(row) for column in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        places = zip(columns, line, widths, strict=True)
        yield "  ".join(cell.rjust(width) if c.right else cell.ljust(width) for c, cell, width in places).rstrip()


# ---------------------------------------------------------------- cells


def mb(value: float | None, unknown: str = "-") -> str:
    if value is None:
        return unknown
    return f"{value:,.0f} MB" if value >= 10 or value == int(value) else f"{value:.1f} MB"


def ago(at: str | None) -> str:
    """How long a moment of the wire (ISO 8601) is past."""
    if not at:
        return "never"
    from zoo.wire import moments

    seconds = max(0.0, time.time() - moments.to_seconds(at))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _note(row: Row) -> str:
    """What keeps the model from being served, in as few words as the columns before it leave to say."""
    if row["weights"] == "missing" and row["enabled"] and row["problem"]:
        by_hand = f"by hand: {row['source']}" if row["source"] else "by hand"
        return f"zoo pull {row['name']}" if "zoo pull" in row["problem"] else by_hand
    if row["problem"] or row["pinned"]:
        return str(row["problem"] or "pinned")
    if row["enabled"] and not row["vram_mb"] and row["measured_mb"] is None:
        return "no vram_mb: counted as 0 MB until it is measured"
    return ""


def _text(head: str, key: str) -> Column:
    return Column(head, lambda row: str(row[key] or "-"))


def _count(head: str, *keys: str) -> Column:
    return Column(head, lambda row: str(sum(row[key] for key in keys)), right=True)


def _size(head: str, key: str) -> Column:
    return Column(head, lambda row: mb(row[key]), right=True)


NAME, DEVICE = _text("NAME", "name"), _text("DEVICE", "device")
PRIORITY, STATE = _text("PRIORITY", "priority"), _text("STATE", "state")
DECLARED, MEASURED = _size("DECLARED", "declared_mb"), _size("MEASURED", "measured_mb")
CHARGED = _size("CHARGED", "vram_mb")
LAST_USED = Column("LAST USED", lambda row: ago(row["last_used"]), right=True)

# ---------------------------------------------------------------- answers


def models(rows: list[Row]) -> Iterator[str]:
    declared, weights = _size("DECLARED", "vram_mb"), _text("WEIGHTS", "weights")
    category, note = _text("CATEGORY", "category"), Column("NOTE", _note)
    return table((NAME, category, PRIORITY, declared, MEASURED, STATE, weights, note), rows)


def processes(rows: list[Row]) -> Iterator[str]:
    if not rows:
        return iter(["no model is loaded"])
    state = Column("STATE", lambda row: row["state"] + (", pinned" if row["pinned"] else ""))
    pid = Column("PID", lambda row: str(row["pid"] or "-"), right=True)
    counts = _count("LEASES", "leases"), _count("WAITING", "inflight", "queued"), _count("REQUESTS", "requests")
    used = _size("USED", "used_mb")
    return table((NAME, state, pid, DEVICE, DECLARED, MEASURED, CHARGED, used, *counts, LAST_USED), rows)


def footprints(rows: list[Row]) -> Iterator[str]:
    lives = Column("LAST LIVES, MB", lambda row: " ".join(f"{life:g}" for life in row["lives_mb"]))
    return table((NAME, DEVICE, DECLARED, MEASURED, _size("CHARGED", "charged_mb"), lives), rows)


def status(found: Row) -> Iterator[str]:
    broker = found["broker"]
    yield f"broker     process {broker['pid']} on {broker['endpoint']}" + (", stopping" if found["stopping"] else "")
    yield (
        f"budget     {mb(found['vram_used_mb'])} of {mb(found['vram_budget_mb'])} used"
        f" ({found['vram_utilization_percent']:.1f} %), {mb(found['vram_available_mb'])} free"
    )
    for device in found["devices"]:
        yield from _device(device)
    loading = f", loading {', '.join(found['pending_loads'])}" if found["pending_loads"] else ""
    yield f"models     {len(found['loaded_models'])} of {len(found['registered_models'])} loaded{loading}"
    yield f"requests   {found['running']} running, {found['requests'] - found['running']} waiting"
    yield f"clients    {found['sessions']} connected (this one included), {found['leases']} leases"
    if found["loaded_models"]:
        yield ""
        yield from table((NAME, PRIORITY, DECLARED, MEASURED, CHARGED, LAST_USED), found["loaded_models"])


def _device(device: Row) -> Iterator[str]:
    yield (
        f"device     {device['name']}: {mb(device['used_mb'])} of {mb(device['budget_mb'])} charged;"
        f" {mb(device['device_used_mb'], 'unknown')} of {mb(device['device_total_mb'], 'unknown')} in use by all"
    )
    if device["limit_mb"] < device["budget_mb"]:
        yield f"           other programs leave {mb(device['limit_mb'])} of that budget"
    if device["overrun_mb"]:
        yield f"           {mb(device['overrun_mb'])} more than may be are charged: nothing is loaded there"
    if device["unreturned_mb"]:
        yield f"           {mb(device['unreturned_mb'])} of ended processes have not come back"


def finding(found: Finding) -> Iterator[str]:
    """A line, and below it what to do."""
    yield f"{found.state:<9}{found.about:<15}{found.message}"
    if found.remedy:
        yield f"{'':<24}to do: {found.remedy}"
