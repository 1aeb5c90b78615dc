"""What the page shows, as plain data, made of what the broker says. Pure: no clock, no sockets.

The figures of a model are those of `zoo top` (`zoo/top/figures.py`). They are rounded to what is shown, so that a
section that looks the same is the same, and is not sent again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zoo.gateway.page.history import Decision
from zoo.top import figures
from zoo.top.figures import Row

MILLE = 1000  # cells of a bar

Sections = dict[str, Any]


def sections(
    seen: figures.Seen, rows: Sequence[figures.Shown], overview: Row, last: Mapping[str, Decision]
) -> Sections:
    """Each part of the page by its name.

    Args:
        rows: `figures.rows` of this look.
        overview: what the broker answered to the question of that name; empty from one that does not know it.
        last: the last decision about each model.
    """
    waiting = overview.get("waiting", ())
    return {
        "totals": _totals(seen.status, rows),
        "devices": [_device(device, seen.processes) for device in seen.status["devices"]],
        "models": _models(
            seen,
            rows,
            overview.get("times", {}),
            last,
            {row["model"]: row["why"] for row in waiting},
        ),
        "waiting": [{**row, "oldest": round(row["oldest"], 1)} for row in waiting],
    }


def _totals(status: Row, rows: Sequence[figures.Shown]) -> Row:
    return {
        "loaded": len(status["loaded_models"]),
        "registered": len(status["registered_models"]),
        "running": sum(row.running for row in rows),
        "waiting": sum(row.waiting for row in rows),
        "rate": round(sum(row.rate for row in rows), 1),
        "leases": status["leases"],
        "clients": status.get("sessions", 0),
        "stopping": status["stopping"],
        "errors": status.get("internal_errors", 0),
        "pid": status["broker"]["pid"],
    }


def _device(device: Row, processes: Sequence[Row]) -> Row:
    """`others_mb`: used by other programs, as far as the device shows it; else what they take of the budget."""
    ours = [process for process in processes if process["device"] == device["name"]]
    used, total = device.get("device_used_mb"), device.get("device_total_mb")
    others = max(0.0, device["budget_mb"] - device["limit_mb"])
    if used is not None:
        others = max(0.0, used - sum(process["used_mb"] or 0.0 for process in ours))
    pieces = figures.bar(device, ours, MILLE)
    return {
        "name": device["name"],
        "budget_mb": round(device["budget_mb"]),
        "used_mb": round(device["used_mb"]),
        "limit_mb": round(device["limit_mb"]),
        "overrun_mb": round(device["overrun_mb"]),
        "total_mb": None if total is None else round(total),
        "others_mb": round(others, -1),
        "pieces": [[piece.kind, piece.name, round(piece.mb), piece.cells] for piece in pieces],
    }


def _models(
    seen: figures.Seen,
    rows: Sequence[figures.Shown],
    times: Mapping[str, Row],
    last: Mapping[str, Decision],
    waits: Mapping[str, str],
) -> list[Row]:
    """In the order of config.toml: a row that moved under a finger would be pressed by mistake."""
    shown = {row.name: row for row in rows}
    workers: dict[str, list[Row]] = {}
    for process in seen.processes:
        workers.setdefault(process["name"].partition("#")[0], []).append(process)
    made: list[Row] = []
    for model in seen.models:
        name = model["name"]
        row, of = shown[name], workers.get(name, [])
        waits_for = "" if of else waits.get(name, "")
        why, at = _why(model, row, last.get(name), waits_for)
        took = times.get(name, {})
        made.append({
            "name": name,
            "category": model["category"],
            "state": "waiting" if waits_for else row.state,
            "enabled": model["enabled"],
            "priority": row.priority,
            "pinned": row.pinned,
            "leases": row.leases,
            "running": row.running,
            "waiting": row.waiting,
            "rate": round(row.rate, 1),
            "p50": took.get("p50"),
            "p95": took.get("p95"),
            "count": took.get("count", 0),
            "charged_mb": round(row.charged_mb),
            "declared_mb": round(model["vram_mb"]),
            "measured_mb": None if model["measured_mb"] is None else round(model["measured_mb"]),
            "workers": len(of),
            "devices": sorted({process["device"] for process in of}),
            "stand_in": any(process.get("stand_in") for process in of),
            "why": why,
            "why_at": at,
        })  # fmt: skip
    return made


def _why(model: Row, row: figures.Shown, last: Decision | None, waits: str) -> tuple[str, float]:
    """Why the model is where it is, and since when (Unix time; 0: not known)."""
    if waits:
        return f"waits: {waits}", 0.0
    if not model["enabled"]:
        return "disabled in config.toml", 0.0
    if row.problem:
        return row.problem, last.at if last is not None and row.state == "failed" else 0.0
    held = ["pinned"] * row.pinned + [f"{row.leases} lease{'s' * (row.leases > 1)}"] * (row.leases > 0)
    if last is not None and last.kind == "waits" and row.state == "unloaded":
        return f"its requests ended before it got room; the last {last.text.replace('waits:', 'waited:', 1)}", last.at
    if last is not None:
        return "; ".join([*held, last.text]), last.at
    return ", ".join(held) or ("not asked for yet" if row.state == "unloaded" else "no decision is kept"), 0.0
