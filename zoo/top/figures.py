"""What `zoo top` shows, made of what the broker says. Pure: no terminal, no clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Row = Mapping[str, Any]
STATES = ("loaded", "loading", "draining", "evicting", "failed", "unloaded")  # the order in which they are shown
SHARE = 0.5  # of a new rate in the shown one: a figure that can be read


class Seen(NamedTuple):
    """One look. `at`: seconds of a monotonic clock. `models` may be an older answer than the others."""

    at: float
    status: Row
    processes: Sequence[Row]
    models: Sequence[Row]


class Shown(NamedTuple):
    """A model's line. `charged_mb`, `running`, `answered`: of all its workers. `rate`: answers a second."""

    name: str
    state: str
    priority: str
    pinned: bool
    charged_mb: float
    running: int
    waiting: int
    leases: int
    answered: int
    rate: float
    problem: str


class Stretch(NamedTuple):
    """A piece of a bar. `kind`: "model", "ending" (charged, not a model's any more), "free" or "others"."""

    kind: str
    name: str
    mb: float
    cells: int


def rows(seen: Seen, before: Mapping[str, Shown] | None = None, seconds: float = 0.0) -> list[Shown]:
    """The models' lines: those that are loaded first, then by name.

    Args:
        before: the lines of the look before; None for the first.
        seconds: since then.
    """
    workers: dict[str, list[Row]] = {}
    for process in seen.processes:
        workers.setdefault(process["name"].partition("#")[0], []).append(process)
    found = [_row(model, workers.get(model["name"], []), seen.status) for model in seen.models]
    if before and seconds > 0:
        found = [row._replace(rate=_rate(row, before.get(row.name), seconds)) for row in found]
    return sorted(found, key=lambda row: (STATES.index(row.state) if row.state in STATES else 0, row.name))


def _row(model: Row, workers: list[Row], status: Row) -> Shown:
    name: str = model["name"]
    state = workers[0]["state"] if workers else "unloaded"  # a worker's is newer than the model's
    if not workers:
        state = "loading" if name in status["pending_loads"] else "failed" if model["state"] == "failed" else state
    return Shown(
        name,
        state,
        model["priority"],
        any(worker["pinned"] for worker in workers) if workers else bool(model["pinned"]),
        sum(worker["vram_mb"] for worker in workers),
        sum(worker["inflight"] for worker in workers),
        status.get("queued", {}).get(name, sum(worker["queued"] for worker in workers)),
        sum(worker["leases"] for worker in workers),
        max((worker["requests"] for worker in workers), default=0),
        0.0,
        "" if workers else str(model["problem"] or ""),
    )


def _rate(row: Shown, before: Shown | None, seconds: float) -> float:
    """Smoothed; a model that has no worker answers nothing, and one that comes back counts on."""
    if before is None or not row.answered or row.answered < before.answered or not before.answered:
        return 0.0
    new = (row.answered - before.answered) / seconds
    rate = SHARE * new + (1 - SHARE) * before.rate
    return rate if rate >= 0.05 else 0.0


def bar(device: Row, processes: Sequence[Row], width: int) -> list[Stretch]:
    """A device's budget cut into what is charged for each model, in `width` cells. The parts fill it exactly.

    `others`: what other programs take of the budget, at its end.
    """
    budget = max(device["budget_mb"], device["used_mb"], 1.0)
    charged: dict[str, float] = {}
    for process in processes:
        if process["device"] == device["name"]:
            name = process["name"].partition("#")[0]
            charged[name] = charged.get(name, 0.0) + process["vram_mb"]
    pieces = [("model", name, mb) for name, mb in sorted(charged.items(), key=lambda one: -one[1]) if mb > 0]
    ending = device["used_mb"] - sum(charged.values())
    if ending >= 1:
        pieces.append(("ending", "", ending))
    others = max(0.0, min(device["budget_mb"] - device["limit_mb"], budget - device["used_mb"]))
    pieces.append(("free", "", max(0.0, budget - device["used_mb"] - others)))
    if others >= 1:
        pieces.append(("others", "", others))
    ends, total = [], 0.0
    for _, _, mb in pieces:
        total += mb
        ends.append(min(width, round(width * total / budget)))
    ends[-1] = width
    starts = [0, *ends[:-1]]
    return [Stretch(*piece, end - start) for piece, start, end in zip(pieces, starts, ends, strict=True)]
