"""What a line of a log looks like: text for people, or one JSON object per line for programs.

Names and messages may hold anything that a client or a library said. Whatever they hold, a line stays one line, and is
valid: line breaks and other control characters are escaped, and what is not text is.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, Literal

from zoo.system import program

Kind = Literal["text", "json"]
MOST_TEXT = 16_000  # characters of a message, and of a traceback


def formatter(kind: Kind) -> logging.Formatter:
    return _Json() if kind == "json" else _Text("%(asctime)s %(levelname)s %(name)s: %(message)s")


def install(kind: Kind, level: str) -> None:
    """For a process whose log goes straight to standard error: all that is logged, warned of or raised uncaught."""
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(kind))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    sys.excepthook = lambda kind, error, trace: logging.getLogger("zoo.log").critical(
        "uncaught: %s", kind.__name__, exc_info=(kind, error, trace)
    )


def _cut(text: str) -> str:
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]} … ({len(text)} characters)"


def _valid(value: Any) -> Any:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


class _Text(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        if worker := getattr(record, "worker", 0):  # what a worker has printed
            record.message = f"{getattr(record, 'model', '') or 'no model'} (worker {worker}): {record.message}"
        record.message = program.one_line(_cut(record.message))
        return super().formatMessage(record)


class _Json(logging.Formatter):
    """`event`, `model` and the numbers of a decision come from the record's `line`, where it has one (a decision)."""

    def format(self, record: logging.LogRecord) -> str:
        line = getattr(record, "line", None)
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        said = {
            "time": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "event": line.kind if line is not None else "log",
            "model": line.model if line is not None else "",
            "message": _cut(line.text if line is not None else record.getMessage()),
        }
        if (worker := getattr(record, "worker", None)) is not None:  # what a worker has printed
            said |= {"event": "printed", "model": getattr(record, "model", ""), "worker": worker}
        if line is not None:
            said |= {key: value for key, value in line.fields.items() if key not in said}
        if record.exc_info:
            said["exception"] = _cut(self.formatException(record.exc_info))
        return json.dumps({key: _valid(value) for key, value in said.items()}, default=str)  # ASCII, on one line
