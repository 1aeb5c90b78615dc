"""What a line of the log looks like: text for people, or one JSON object per line for programs.

Names and messages may hold anything that a client or a library said. Whatever they hold, a line stays one line, and
is valid: line breaks and other control characters are escaped, and what is not text is.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Any, Literal


def formatter(kind: Literal["text", "json"]) -> logging.Formatter:
    return _Json() if kind == "json" else _Text("%(asctime)s %(levelname)s %(name)s: %(message)s")


def _printable(text: str) -> str:
    """On one line, and without what UTF-8 cannot say (undecodable bytes, which Python keeps as lone surrogates)."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _valid(value: Any) -> Any:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


class _Text(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        if (worker := getattr(record, "worker", None)) is not None:  # what a worker has printed
            record.message = f"{getattr(record, 'model', '') or 'no model'} (worker {worker}): {record.message}"
        record.message = _printable(record.message)
        return super().formatMessage(record)


class _Json(logging.Formatter):
    """`event`, `model` and the numbers of a decision come from the record's `line`, where it has one (`story.Line`)."""

    def format(self, record: logging.LogRecord) -> str:
        line = getattr(record, "line", None)
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        said = {
            "time": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "event": line.kind if line is not None else "log",
            "model": line.model if line is not None else "",
            "message": line.text if line is not None else record.getMessage(),
        }
        if (worker := getattr(record, "worker", None)) is not None:  # what a worker has printed
            said |= {"event": "printed", "model": getattr(record, "model", ""), "worker": worker}
        if line is not None:
            said |= {key: value for key, value in line.fields.items() if key not in said}
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        return json.dumps({key: _valid(value) for key, value in said.items()}, default=str)  # ASCII, on one line
