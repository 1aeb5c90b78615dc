"""Readings of devices, taken by a thread for each, so that nothing else waits for a driver.

The loop asks for a look and takes what has been seen, with the moments at which the look began and ended. A device that
is slow, or hangs, holds up its own thread only. After a look that failed the thread waits a while, longer each time,
and has the meter opened anew before the next.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Sequence

import msgspec

from broker.memory.meters import Figures, Meter
from broker.memory.nvml import words

AGAIN_FIRST_S, AGAIN_MOST_S = 0.25, 8.0  # after a failed look
SLOW_S = 0.1  # nothing waits for a device whose looks take longer
JOIN_S = 0.2


class Reading(msgspec.Struct, frozen=True):
    """What a look has shown: `figures`, or else `why` it has failed. It shows nothing from before `began`."""

    device: str
    began: float
    ended: float
    figures: Figures | None = None
    why: str = ""


class _Desk:
    """One device. `wanted`: processes to be read by the next look, and more if there is time; None: no look."""

    def __init__(self, name: str, meter: Meter, readings: deque[Reading], news: int) -> None:
        self.began = 0.0  # of the look under way
        self.took = 0.0  # the last one
        self._name = name
        self._meter = meter
        self._readings = readings
        self._news = news
        self._wanted: tuple[list[int], list[int]] | None = None
        self._closing = False
        self._changed = threading.Condition()
        self.thread = threading.Thread(target=self._run, name=f"meter {name}", daemon=True)
        self.thread.start()

    def ask(self, pids: Sequence[int], more: Sequence[int]) -> None:
        with self._changed:
            before, before_more = self._wanted or ([], [])
            self._wanted = [*before, *pids], list(more) or before_more
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()

    def _run(self) -> None:
        failures = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._wanted is not None)
                if self._closing:
                    return
                pids, more = self._wanted or ([], [])
                self._wanted = None
            self.began = began = time.monotonic()
            try:
                if failures:
                    self._meter.renew()
                reading = Reading(self._name, began, 0.0, self._meter.read(pids, more))
            except Exception as e:
                reading = Reading(self._name, began, 0.0, None, words(e))
            ended = time.monotonic()
            self.began, self.took = 0.0, ended - began
            self._readings.append(msgspec.structs.replace(reading, ended=ended))
            with contextlib.suppress(BlockingIOError):  # full: the loop has been told already
                os.eventfd_write(self._news, 1)
            failures = failures + 1 if reading.figures is None else 0
            if failures:
                with self._changed:
                    self._changed.wait_for(
                        lambda: self._closing, min(AGAIN_MOST_S, AGAIN_FIRST_S * 2 ** min(failures - 1, 16))
                    )


class Measuring:
    """`fileno()` becomes readable when there is something to `take`."""

    def __init__(self, meters: dict[str, Meter]) -> None:
        self._news = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._readings: deque[Reading] = deque()
        self._desks = {name: _Desk(name, meter, self._readings, self._news) for name, meter in meters.items()}

    def fileno(self) -> int:
        return self._news

    def ask(self, device: str, pids: Sequence[int] = (), more: Sequence[int] = ()) -> None:
        """Wants a look at the device that begins after this call; asked for several times before that, it is one."""
        self._desks[device].ask(pids, more)

    def is_slow(self, device: str) -> bool:
        """Its looks take so long that nothing should wait for one."""
        desk = self._desks[device]
        began = desk.began
        return desk.took > SLOW_S or (began > 0.0 and time.monotonic() - began > SLOW_S)

    def take(self) -> list[Reading]:
        """What has been seen since, in order."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._news)
        taken = []
        while self._readings:
            taken.append(self._readings.popleft())
        return taken

    def close(self) -> None:
        """Ends the threads, but for one that a driver holds: it ends with the process."""
        for desk in self._desks.values():
            desk.close()
        end = time.monotonic() + JOIN_S
        for desk in self._desks.values():
            desk.thread.join(max(0.0, end - time.monotonic()))
        if not any(desk.thread.is_alive() for desk in self._desks.values()):
            os.close(self._news)
