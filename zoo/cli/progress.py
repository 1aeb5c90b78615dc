"""What long work shows while it is under way: a line of a terminal, written over and over, or plain lines elsewhere.

With `--json` nothing is shown. All of it goes to standard error.

`rich.progress` was measured for this and left: it would save 15 lines and bring four packages (6 MB) into the base
install. It hides the cursor, and a pull that is ended by SIGTERM leaves it hidden; in 60 columns its bar takes two
lines.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from zoo.cli.output import for_terminal, remark
from zoo.errors import ZooError

if TYPE_CHECKING:
    from zoo.client.client import Client

EVERY_S = 0.1  # between two pictures of a line
SAY_S = 10.0  # between two plain lines
FIRST_S = 1.0  # a wait that is shorter is not shown
LOOK_S = 0.5  # between two looks at what is waited for
BAR = 24  # characters


class Bar:
    """Follows one file after another; its methods are what a `zoo.weights.transfer.Watch` calls. `quiet`: nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._shown = not quiet and sys.stderr.isatty()
        self._file, self._drawn_at = "", 0.0
        self._began = 0.0, 0  # when, and with how many bytes of the file

    def progress(self, file: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if file != self._file:
            self._file, self._began = file, (now, done)
            self._drawn_at = now if not self._shown else 0.0
        if (done != total or not self._shown) and now - self._drawn_at < (EVERY_S if self._shown else SAY_S):
            return
        self._drawn_at = now
        began_at, began_with = self._began
        rate = (done - began_with) / (now - began_at) if now > began_at else 0.0
        if self._shown:
            _draw(line(file, done, total, rate, shutil.get_terminal_size().columns - 1))
        elif not self._quiet:
            remark(line(file, done, total, rate, bar=0))

    def note(self, text: str) -> None:
        self.close()
        if not self._quiet:
            remark(text)

    def close(self) -> None:
        """Leaves the line empty, for others to write."""
        self._file = ""
        if self._shown:
            _draw("")


class Meanwhile:
    """Shows, from a thread, what the block within it waits for, once that takes long.

    Args:
        look: gives it in words; "" for nothing to be shown. It may raise ZooError, which shows nothing either.
    """

    def __init__(self, look: Callable[[], str], *, quiet: bool) -> None:
        self._look = look
        self._quiet = quiet
        self._drawn = False
        self._over = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if not self._quiet:
            threading.Thread(target=self._show, name="zoo-waiting", daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        with self._lock, contextlib.suppress(OSError):
            if self._drawn:
                _draw("")

    def _show(self) -> None:
        began = time.monotonic()
        terminal = sys.stderr.isatty()
        pause = EVERY_S if terminal else LOOK_S
        text, said, said_at, looked_at = "", "", 0.0, 0.0
        self._over.wait(FIRST_S)
        while not self._over.is_set():
            now = time.monotonic()
            if now - looked_at >= LOOK_S:
                with contextlib.suppress(ZooError):
                    text = self._look()
                looked_at = now = time.monotonic()
            with self._lock, contextlib.suppress(OSError):
                if text and not self._over.is_set():
                    if terminal:
                        self._drawn = True
                        _draw(waiting_line(text, now - began, shutil.get_terminal_size().columns - 1))
                    elif text != said or now - said_at >= SAY_S:
                        said, said_at = text, now
                        remark(f"{text} ({now - began:.0f} s)")
            self._over.wait(pause)


def waits_of(zoo: Client) -> Callable[[], str]:
    """What the requests of this process wait for, as the broker says; for `Meanwhile`."""

    def look() -> str:
        rows = zoo.overview()["waiting"]
        mine = [row for row in rows if any(client["pid"] == os.getpid() for client in row["clients"])]
        return "; ".join(f"{row['model']}: {row['why']}" for row in mine)

    return look


def _draw(text: str) -> None:
    sys.stderr.write(f"\r\x1b[K{for_terminal(text)}")
    sys.stderr.flush()


def waiting_line(text: str, seconds: float, width: int) -> str:
    """A bar of which no end is known: something that moves to and fro."""
    at = round(seconds / EVERY_S) % (2 * BAR)
    at = min(at, 2 * BAR - at)
    bar = "".join("#" if abs(place - at) < 3 else "." for place in range(BAR))
    return f"[{bar}] {seconds:4.0f} s  {text}"[:width]


def line(file: str, done: int, total: int | None, rate: float, width: int | None = None, bar: int = BAR) -> str:
    """What the bar shows: `rate` in bytes per second, `width` and `bar` in characters."""
    if total is None:
        text = f"{file}  {_mb(done)} MB"
    else:
        share = done / total if total else 1.0
        filled = round(bar * share)
        drawn = f"[{'#' * filled}{'.' * (bar - filled)}] {share:4.0%}" if bar else f"{share:.0%}"
        text = f"{file}  {drawn}  {_mb(done)} of {_mb(total)} MB"
    if rate > 0:
        text += f"  {_mb(rate)} MB/s"
        if total is not None:
            minutes, seconds = divmod(round((total - done) / rate), 60)
            text += f"  {minutes}:{seconds:02d} left"
    return text[:width]


def _mb(size: float) -> str:
    return f"{size / 1e6:,.1f}" if size < 1e8 else f"{size / 1e6:,.0f}"
