"""What the scheduler is told about memory: readings asked for, and turned into its events.

A device is looked at every second, when a load is through, when a process has ended, and when a worker says that it
has grown. Nothing waits for a look but two things, neither of them for long. The word of a worker that has grown, or
has worked for the first time, is kept back until that has been measured, unless the device is slow: else the model
might be evicted before it was known what it takes. And nothing is started on a device before a look that is younger
than the last end of a process there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from broker.memory.gauge import Gauge
from broker.memory.measuring import Measuring, Reading
from broker.memory.meters import Meter
from broker.scheduler.events import DeviceSeen, DeviceUnread, Event, Measured, MemoryBack, MemoryStuck

log = logging.getLogger("zoo.broker")

HOLD_S = 0.25  # the longest that a worker's word is kept back
FRESH_S = 3.0  # the longest that a start, or memory that comes back, waits for a look that does not come
BACK_LIMIT_S = 10.0
POLL_S = 0.02
NOT_SEEN = "its memory has not been read since a process ended there"
NOT_YET = "its memory has not been read yet"

Parts = list[bytes]


class _Held:
    """Words of a worker: the first waits for a look, the others behind it."""

    __slots__ = ("device", "since", "words")

    def __init__(self, device: str, since: float, first: Parts) -> None:
        self.device = device
        self.since = since
        self.words = [first]


class Usage:
    """See the module's docstring.

    Args:
        measures: footprints are measured, not only declared.
        handle: gives the scheduler an event.
        deliver: takes the words of a worker that were kept back.
        worked: whether the worker has run a request; None: what is read of it now says nothing about its model.
    """

    def __init__(
        self,
        meters: dict[str, Meter],
        measures: bool,
        handle: Callable[[Event], None],
        deliver: Callable[[int, list[Parts]], None],
        worked: Callable[[int], bool | None],
    ) -> None:
        self.gauge = Gauge(meters)
        self._devices = list(meters)
        self._measures = measures
        self._handle = handle
        self._deliver = deliver
        self._worked = worked
        self._held: dict[int, _Held] = {}
        self._ending: dict[int, tuple[str, float]] = {}  # worker → its device, and since when it has ended
        self._stuck: set[int] = set()
        self._unread: dict[str, str] = {}  # device → why nothing may be started there, as the scheduler was told
        self._warned: set[tuple[str, str]] = set()
        self._measuring = Measuring(meters)

    def open(self) -> None:
        """The first look."""
        for device in self._devices:
            self._say_unread(device, NOT_YET, FRESH_S)
        self.survey()

    def fileno(self) -> int:
        return self._measuring.fileno()

    def close(self) -> None:
        self._measuring.close()
        self.gauge.close()

    # ------------------------------------------------------------ looks wanted

    def survey(self) -> None:
        """Looks at every device, and at a few of its workers."""
        for device in self._devices:
            self._measuring.ask(device, self.gauge.loading(device), self.gauge.stalest(device))

    def look(self, device: str, worker: int = 0) -> None:
        """Looks at a device, and at one of its workers."""
        pid = self.gauge.pid(worker)
        self._measuring.ask(device, [*([pid] if pid else []), *self.gauge.loading(device)])

    def starts(self, worker: int, device: str) -> None:
        self.gauge.start(worker, device)
        self.look(device)

    def loaded(self, worker: int, device: str) -> None:
        self.gauge.loaded(worker, time.monotonic())
        self.look(device, worker)

    def ended(self, worker: int, device: str, line: int | None) -> None:
        """Its process is gone, and its memory watched from now on. `line`: see `Gauge.end`."""
        now = time.monotonic()
        self.gauge.end(worker, line, now)
        self._ending[worker] = device, now
        self._say_unread(device, NOT_SEEN, FRESH_S)
        self.look(device)

    # ------------------------------------------------------------ words kept back

    def hold(self, worker: int, device: str, word: Parts) -> bool:
        """Wants the worker measured, and keeps its word back until then. False: nothing is waited for."""
        if not self._measures:
            return False
        self.look(device, worker)
        if self._measuring.is_slow(device) or self.gauge.figures(device) is None:
            return False
        self._held[worker] = _Held(device, time.monotonic(), word)
        return True

    def queue(self, worker: int, word: Parts) -> bool:
        """Keeps back what comes after a word that is. False: there is none."""
        held = self._held.get(worker)
        if held is not None:
            held.words.append(word)
        return held is not None

    def release(self, worker: int) -> None:
        """What was kept back of the worker's words is said now."""
        held = self._held.pop(worker, None)
        if held is not None:
            self._deliver(worker, held.words)

    # ------------------------------------------------------------ what was seen

    def take(self) -> None:
        for reading in self._measuring.take():
            self._take(reading)

    def _take(self, reading: Reading) -> None:
        device = reading.device
        shown = self.gauge.take(reading)
        if reading.figures is None:
            self._say_unread(device, reading.why)
        else:
            self._warn(device, reading.figures.untold)
            back = [n for n, (where, _) in self._ending.items() if where == device and self.gauge.back(n)]
            for worker in shown:
                self._report(worker)
            if self._measures and (seen := self.gauge.others(device)) is not None:
                self._handle(DeviceSeen(device, *seen))
            if device in self._unread and self.gauge.is_fresh(device):
                del self._unread[device]
                self._handle(DeviceUnread(device))
            for worker in back:
                self._is_back(worker)
        for worker, held in list(self._held.items()):
            if held.device == device and (reading.began >= held.since or reading.figures is None):
                self.release(worker)

    def _report(self, worker: int) -> None:
        if self._measures and self.gauge.pid(worker) and (mb := self.gauge.seen_mb(worker)):
            worked = self._worked(worker)
            if worked is not None:
                self._handle(Measured(worker, mb, worked and self.gauge.is_told(worker)))

    def _say_unread(self, device: str, why: str, seconds: float | None = None) -> None:
        """Nothing may be started there, for so many seconds; None: until it can be read."""
        if not self._measures:
            return
        if seconds is None and self._unread.get(device) != why:
            self._unread[device] = why
            self._handle(DeviceUnread(device, why))
        elif seconds is not None and self._unread.get(device, why) in (NOT_SEEN, NOT_YET):
            self._unread[device] = why
            self._handle(DeviceUnread(device, why, seconds))

    def _warn(self, device: str, untold: str) -> None:
        if untold and (device, untold) not in self._warned:
            self._warned.add((device, untold))
            log.warning("%s never tells %s; what that leaves unknown is charged as vram_mb declares it", device, untold)

    # ------------------------------------------------------------ memory that comes back

    def due(self, now: float) -> float:
        """When `tick` has something to do at the latest; asked at every turn of the loop."""
        if not self._held and len(self._ending) == len(self._stuck):
            return now + BACK_LIMIT_S
        soonest = min((held.since + HOLD_S for held in self._held.values()), default=now + BACK_LIMIT_S)
        return min(soonest, now + POLL_S) if len(self._ending) > len(self._stuck) else soonest

    def tick(self, now: float) -> None:
        for worker, held in list(self._held.items()):
            if now >= held.since + HOLD_S:
                self.release(worker)
        for worker in list(self._ending):
            if worker not in self._stuck:
                self.look_for_memory(worker, now)

    def look_for_stuck(self, now: float) -> None:
        """To be called every second or so."""
        for worker in list(self._stuck):
            self.look_for_memory(worker, now)

    def look_for_memory(self, worker: int, now: float) -> None:
        device, since = self._ending[worker]
        # A device that only does not answer is taken at the kernel's word; one that says that it is broken is not.
        unseen = now - since >= FRESH_S and not (self._measures and self._fails(device))
        if self.gauge.back(worker, unseen=unseen):
            self._is_back(worker)
        elif worker not in self._stuck:
            if now - since > BACK_LIMIT_S:
                self._stuck.add(worker)
                self._handle(MemoryStuck(worker))
            else:
                self.look(device)

    def _fails(self, device: str) -> bool:
        return device in self.gauge.last and self.gauge.figures(device) is None

    def _is_back(self, worker: int) -> None:
        del self._ending[worker]
        self._stuck.discard(worker)
        self._handle(MemoryBack(worker))
