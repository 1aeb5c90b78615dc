"""How the broker's log gets out; `zoo/system/log_lines.py` says what its lines look like.

`Log` takes all that this process would write to standard error, so that nothing but its thread ever waits for a reader
(see `outlet.py`).
"""

from __future__ import annotations

import io
import logging
import sys
import threading
from types import TracebackType

from broker.outlet import Outlet
from broker.recent import LogRing
from zoo.system.log_lines import MOST_TEXT, Kind, formatter

FLUSH_S = 2.0  # the most that an end waits for a reader of the log

log = logging.getLogger("zoo.log")


class Log(logging.Handler):
    """Everything that is logged, printed to `sys.stderr`, warned of or raised uncaught, on its way to a descriptor."""

    def __init__(self, kind: Kind, fd: int = 2) -> None:
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
