"""Moments as clients read them: ISO 8601 in UTC, "2024-01-15T10:30:00Z". On the wire they are Unix time in seconds."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterable
from typing import Any


def to_text(at: Any) -> Any:
    """Unix time in whole seconds as text; None for 0, which is never. What is no such number stays as it is."""
    if isinstance(at, int | float):
        with contextlib.suppress(ValueError, OverflowError, OSError):  # a clock that is far off
            moment = datetime.datetime.fromtimestamp(int(at), datetime.UTC)
            return moment.strftime("%Y-%m-%dT%H:%M:%SZ") if at else None
    return at


def to_seconds(text: str | None) -> float:
    """The reverse; 0 for None."""
    return datetime.datetime.fromisoformat(text).timestamp() if text else 0.0


def readable(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows off the wire, their `last_used` as text."""
    return [{**row, "last_used": to_text(row["last_used"])} if "last_used" in row else row for row in rows]


def readable_status(status: dict[str, Any]) -> dict[str, Any]:
    """The broker's answer to `status`, with the moments of its `loaded_models` as text."""
    return {**status, "loaded_models": readable(status.get("loaded_models", ()))}
