"""A progress bar: one line of a terminal, written over and over. Where there is no terminal, only the notes.

`rich.progress` was measured for this and left: it would save 15 lines and bring four packages (6 MB) into the base
install. It hides the cursor, and a pull that is ended by SIGTERM leaves it hidden; in 60 columns its bar takes two
lines.
"""

from __future__ import annotations

import shutil
import sys
import time

from zoo.cli.output import remark

EVERY_S = 0.1
BAR = 24  # characters


class Bar:
    """Follows one file after another; its methods are what a `zoo.weights.transfer.Watch` calls."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._file, self._drawn_at = "", 0.0
        self._began = 0.0, 0  # when, and with how many bytes of the file

    def progress(self, file: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if file != self._file:
            self._file, self._began = file, (now, done)
        elif done != total and now - self._drawn_at < EVERY_S:
            return
        self._drawn_at = now
        if self._shown:
            began_at, began_with = self._began
            rate = (done - began_with) / (now - began_at) if now > began_at else 0.0
            self._write(line(file, done, total, rate, shutil.get_terminal_size().columns - 1))

    def note(self, text: str) -> None:
        self.close()
        remark(text)

    def close(self) -> None:
        """Leaves the line empty, for others to write."""
        self._file = ""
        if self._shown:
            self._write("")

    def _write(self, text: str) -> None:
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


def line(file: str, done: int, total: int | None, rate: float, width: int) -> str:
    """What the bar shows: `rate` in bytes per second, `width` in characters."""
    if total is None:
        text = f"{file}  {_mb(done)} MB"
    else:
        share = done / total if total else 1.0
        filled = round(BAR * share)
        text = f"{file}  [{'#' * filled}{'.' * (BAR - filled)}] {share:4.0%}  {_mb(done)} of {_mb(total)} MB"
    if rate > 0:
        text += f"  {_mb(rate)} MB/s"
        if total is not None:
            minutes, seconds = divmod(round((total - done) / rate), 60)
            text += f"  {minutes}:{seconds:02d} left"
    return text[:width]


def _mb(size: float) -> str:
    return f"{size / 1e6:,.1f}" if size < 1e8 else f"{size / 1e6:,.0f}"
