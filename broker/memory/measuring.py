"""Readings of devices, taken by a thread for each, so that nothing else waits for a driver.

NVML may take seconds for a call, fail, or hang, and /proc of a large process takes milliseconds. The loop asks for a
look and takes what has been seen, with the moments at which the look began and ended. A device that is slow, or hangs,
holds up its own thread only. After a look that failed the thread waits a while, longer each time, and has the meter
opened anew before the next.

A reading counts only for what was so before it began. After failures the next tries are 0.25 to 8 s apart.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from broker.memory.meters import Figures, Meter
from broker.memory.nvml import words

AGAIN_S = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # after the first failed look, the second, …
SLOW_S = 0.1  # nothing waits for a device whose looks take longer
JOIN_S = 0.2


class Reading(msgspec.Struct, frozen=True):
    """What a look has shown: `figures`, or else `why` it has failed. It shows nothing from before `began`."""

    device: str
    began: float
    ended: float
    figures: Figures | None = None
    why: str = ""


class _DeviceThread:
    """The thread of one device. `began`: of the look under way, 0 for none; `took`: the last one, in seconds."""

    def __init__(self, name: str, meter: Meter, deliver: Callable[[Reading], None]) -> None:
        self.began = self.took = 0.0
        self._name = name
        self._meter = meter
        self._deliver = deliver
        self._wanted: tuple[list[int], list[int]] | None = None  # processes to be read, and more if there is time
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
                if failures:
                    self._changed.wait_for(lambda: self._closing, AGAIN_S[min(failures, len(AGAIN_S)) - 1])
                self._changed.wait_for(lambda: self._closing or self._wanted is not None)
                if self._closing:
                    return
                pids, more = self._wanted or ([], [])
                self._wanted = None
            figures, why = None, ""
            self.began = began = time.monotonic()
            try:
                if failures:
                    self._meter.renew()
                figures = self._meter.read(pids, more)
            except Exception as e:
                why = words(e)
            ended = time.monotonic()
            self.began, self.took = 0.0, ended - began
            failures = failures + 1 if figures is None else 0
            self._deliver(Reading(self._name, began, ended, figures, why))


class Measuring:
    """`fileno()` becomes readable when there is something to `take`."""

    def __init__(self, meters: dict[str, Meter]) -> None:
        self._news = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._readings: deque[Reading] = deque()
        self._threads = {name: _DeviceThread(name, meter, self._put) for name, meter in meters.items()}

    def _put(self, reading: Reading) -> None:
        self._readings.append(reading)
        with contextlib.suppress(BlockingIOError):  # full: the loop has been told already
            os.eventfd_write(self._news, 1)

    def fileno(self) -> int:
        return self._news

    def ask(self, device: str, pids: Sequence[int] = (), more: Sequence[int] = ()) -> None:
        """Wants a look at the device that begins after this call; asked for several times before that, it is one."""
        self._threads[device].ask(pids, more)

    def is_slow(self, device: str) -> bool:
        """Its looks take so long that nothing should wait for one."""
        thread = self._threads[device]
        began = thread.began
        return thread.took > SLOW_S or (began > 0.0 and time.monotonic() - began > SLOW_S)

    def take(self) -> list[Reading]:
        """What has been seen since, in order."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._news)
        return [self._readings.popleft() for _ in range(len(self._readings))]

    def close(self) -> None:
        """Ends the threads, but for one that a driver holds: it ends with the process."""
        for thread in self._threads.values():
            thread.close()
        end = time.monotonic() + JOIN_S
        for thread in self._threads.values():
            thread.thread.join(max(0.0, end - time.monotonic()))
        if not any(thread.thread.is_alive() for thread in self._threads.values()):
            os.close(self._news)
