"""What a line of the log looks like: text for people, or one JSON object per line for programs; and how it gets out.

Names and messages may hold anything that a client or a library said. Whatever they hold, a line stays one line, and
is valid: line breaks and other control characters are escaped, and what is not text is. `Log` takes all that this
process would write to standard error, so that nothing but its thread ever waits for a reader (see `outlet.py`).
"""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
import time
from types import TracebackType
from typing import Any, Literal

from broker.outlet import Outlet
from broker.recent import LogRing
from zoo.system import program

FLUSH_S = 2.0  # the most that an end waits for a reader of the log
MOST_TEXT = 16_000  # characters of a message, and of a traceback

log = logging.getLogger("zoo.log")


def formatter(kind: Literal["text", "json"]) -> logging.Formatter:
    return _Json() if kind == "json" else _Text("%(asctime)s %(levelname)s %(name)s: %(message)s")


class Log(logging.Handler):
    """Everything that is logged, printed to `sys.stderr`, warned of or raised uncaught, on its way to a descriptor."""

    def __init__(self, kind: Literal["text", "json"], fd: int = 2) -> None:
        super().__init__()
        self.kind = kind
        self.setFormatter(formatter(kind))
        self.outlet = Outlet(fd, self._note)
        self.recent = LogRing()
        self._json = formatter("json")

    def install(self, level: str) -> None:
        """Becomes the only way out, for the whole process."""
        logging.basicConfig(level=level, handlers=[self], force=True)
        logging.captureWarnings(True)
        sys.stderr = _Printed(self)
        sys.excepthook = _uncaught
        threading.excepthook = lambda e: _uncaught(
            e.exc_type, e.exc_value or e.exc_type(), e.exc_traceback, e.thread.name if e.thread is not None else "?"
        )
        sys.unraisablehook = lambda e: log.error(
            "%s %r", e.err_msg or "exception ignored in", e.object, exc_info=e.exc_value or True
        )

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._put(record)
        except Exception as e:  # a broken message costs itself
            self._put(_plain(logging.ERROR, f"a message of {record.name} cannot be shown: {e!r}"))

    def printed(self, line: str) -> None:
        """A line that was not logged but written to standard error."""
        record = _plain(logging.WARNING, line, "stderr")
        self._put(record, None if self.kind == "json" else line[:MOST_TEXT])

    def _put(self, record: logging.LogRecord, text: str | None = None) -> None:
        """`text`: instead of the record's own."""
        kept = self._json.format(record)
        self.outlet.put(kept if self.kind == "json" else self.format(record) if text is None else text)
        line = getattr(record, "line", None)
        named = line.models if line is not None else {getattr(record, "model", "").partition("#")[0]}
        self.recent.put(kept, frozenset(named))

    def end(self) -> None:
        """Bounded: a reader that does not read keeps no process."""
        self.outlet.flush(FLUSH_S)

    def _note(self, count: int) -> str:
        text = f"{count} lines of the log were dropped: it was not read fast enough, or could not be written"
        return self.format(_plain(logging.WARNING, text))


def _plain(level: int, text: str, logger: str = "zoo.log") -> logging.LogRecord:
    return logging.LogRecord(logger, level, "", 0, "%s", (text,), None)


def installed() -> Log | None:
    """The log of this process; None where it is not ours (tests, benchmarks)."""
    return next((handler for handler in logging.getLogger().handlers if isinstance(handler, Log)), None)


def dropped() -> int:
    """Lines of the log that were never written."""
    found = installed()
    return found.outlet.dropped if found is not None else 0


class _Printed(io.TextIOBase):
    """`sys.stderr`: whole lines become lines of the log."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, to: Log) -> None:
        self._to = to
        self._rest = ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._to.printed(line)
        if len(self._rest) > MOST_TEXT:
            self._to.printed(self._rest)
            self._rest = ""
        return len(text)

    def flush(self) -> None:
        rest, self._rest = self._rest, ""
        if rest:
            self._to.printed(rest)

    def fileno(self) -> int:
        return 2

    def writable(self) -> bool:
        return True


def _uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None, thread: str = "main"
) -> None:
    if issubclass(kind, SystemExit):
        return
    log.critical("uncaught in thread %s: %s", thread, kind.__name__, exc_info=(kind, error, trace))
    if thread == "main" and (ours := installed()) is not None:
        ours.end()


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
            "message": _cut(line.text if line is not None else record.getMessage()),
        }
        if (worker := getattr(record, "worker", None)) is not None:  # what a worker has printed
            said |= {"event": "printed", "model": getattr(record, "model", ""), "worker": worker}
        if line is not None:
            said |= {key: value for key, value in line.fields.items() if key not in said}
        if record.exc_info:
            said["exception"] = _cut(self.formatException(record.exc_info))
        return json.dumps({key: _valid(value) for key, value in said.items()}, default=str)  # ASCII, on one line
