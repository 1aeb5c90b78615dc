"""What the scheduler is told about memory: looks at devices are asked for here, and readings become events.

One direction: threads read devices (`measuring.py`), the gauge adds their readings up (`gauge.py`), and this file says
what follows. Its caller passes each finding on, in order: an event to the scheduler, `Looked` to the worker's messages.

A device is looked at every second, when a load is through, when a process has ended, and when a worker says that it
has grown. Only two things wait for a look, neither for long. The message of a worker that has grown, or has worked for
the first time, is kept back until the worker was measured, unless the device is slow: else the model might be evicted
before it is known what it takes. And nothing is started on a device before a look that began after the last end of a
process there.

* Workers are read in turn as well, 5 ms of every second. `ps` shows what was last seen and reads nothing: it once
  held the loop for 48 ms. A worker looks at its own size after each batch (2 us; a reading takes a hundred times
  that), so growth is charged before the answer goes out.
* A worker's word waits up to 0.25 s for a reading, and not at all where readings take longer than 0.1 s; a start
  waits up to 3 s after the end of a process.
* Memory is back when a reading younger than the end shows it: NVML no longer lists the process; where it never did,
  the device's use is back to what others were last seen to use; and no process holds the worker's end of its lifeline
  any more, which every fork of it does. After 10 s the loss stays charged and is reported, until the memory comes
  back.
* When a nursery has died, pages that a worker shared with it may count as the worker's own. Where the device is host
  memory, its last charge then stays, and nothing is learnt from it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

import msgspec

from broker.memory.gauge import Gauge
from broker.memory.measuring import Measuring, Reading
from broker.memory.meters import Meter
from broker.scheduler.events import DeviceSeen, DeviceUnread, Event, Measured, MemoryBack, MemoryStuck

log = logging.getLogger("zoo.broker")

HOLD_S = 0.25  # the longest that a worker's message is kept back
FRESH_S = 3.0  # the longest that a start, or memory that comes back, waits for a look that does not come
BACK_LIMIT_S = 10.0  # memory that has not come back by then is stuck
POLL_S = 0.02
NOT_SEEN = "its memory has not been read since a process ended there"
NOT_YET = "its memory has not been read yet"


class Looked(msgspec.Struct, frozen=True):
    """The worker's messages are kept back no longer: it was measured, or the look has not come in time."""

    worker: int


Finding = Event | Looked


class MemoryUsage:
    """Workers are known here from `starts` until their `MemoryBack`, or until the gauge forgets them.

    Args:
        measures: footprints are measured, not only declared.

    Attributes:
        gauge: what is known of each device and worker.
    """

    def __init__(self, meters: dict[str, Meter], measures: bool) -> None:
        self.gauge = Gauge(meters)
        self._meters = meters
        self._measures = measures
        self._waiting: dict[int, float] = {}  # worker → since when its messages are kept back
        self._ending: dict[int, float] = {}  # worker → when it has ended; its memory is not back
        self._stuck: dict[int, float] = {}  # the same, after BACK_LIMIT_S
        self._unread: dict[str, str] = {}  # device → why nothing may be started there, as the scheduler was told
        self._warned: set[tuple[str, str]] = set()
        self._measuring = Measuring(meters)

    def open(self) -> list[Finding]:
        """The first look."""
        self.survey()
        return [found for device in self._meters for found in self._not_fresh(device, NOT_YET)]

    def fileno(self) -> int:
        """Readable when there is something to `take`."""
        return self._measuring.fileno()

    def close(self) -> None:
        self._measuring.close()
        self.gauge.close()

    # ------------------------------------------------------------ what becomes of workers

    def starts(self, worker: int, device: str) -> None:
        self.gauge.start(worker, device)
        self._look(device)

    def born(self, worker: int, pid: int, shares_pages: Callable[[], bool]) -> None:
        """Its process runs.

        Args:
            shares_pages: whether pages that it has from its nursery still count as shared. When the nursery has died,
                they count as the worker's own: its last sound charge then stays, and nothing is learnt.
        """
        on_host = self._meters[self.gauge.device(worker)].cuda is None
        self.gauge.born(worker, pid, shares_pages if on_host else lambda: True)

    def loaded(self, worker: int) -> None:
        self.gauge.loaded(worker, time.monotonic())
        self._look(self.gauge.device(worker), worker)

    def ended(self, worker: int, line: int | None) -> list[Finding]:
        """Its process is gone, and its memory watched from now on. `line`: see `Gauge.end`."""
        now, device = time.monotonic(), self.gauge.device(worker)
        self.gauge.end(worker, line, now)
        self._ending[worker] = now
        self._look(device)
        return self._not_fresh(device, NOT_SEEN)

    # ------------------------------------------------------------ looks wanted

    def survey(self) -> None:
        """Looks at every device, and at a few of its workers."""
        for device in self._meters:
            self._measuring.ask(device, self.gauge.loading(device), self.gauge.stalest(device))

    def _look(self, device: str, worker: int = 0) -> None:
        """Looks at a device, at one of its workers, and at those that load: what they take is not others' use."""
        pid = self.gauge.pid(worker)
        loading = self.gauge.loading(device) if self._measures else ()
        self._measuring.ask(device, [*([pid] if pid else []), *loading])

    def hold(self, worker: int) -> bool:
        """Wants the worker measured. True: its messages are to be kept back until `Looked`."""
        if not self._measures:
            return False
        device = self.gauge.device(worker)
        self._look(device, worker)
        if self._measuring.is_slow(device) or self.gauge.figures(device) is None:
            return False
        self._waiting[worker] = time.monotonic()
        return True

    def release(self, worker: int) -> None:
        """Its messages are not kept back any more."""
        self._waiting.pop(worker, None)

    # ------------------------------------------------------------ what was seen

    def take(self) -> Iterator[Finding]:
        """What follows from the readings that have come."""
        for reading in self._measuring.take():
            yield from self._take(reading)

    def _take(self, reading: Reading) -> Iterator[Finding]:
        device, gauge = reading.device, self.gauge
        shown = gauge.take(reading)
        if reading.figures is None:
            yield from self._fails(device, reading.why)
        else:
            self._warn(device, reading.figures.untold)
            back = [n for n in (*self._ending, *self._stuck) if gauge.device(n) == device and gauge.back(n)]
            for worker in shown:
                if self._measures and (measured := gauge.measured(worker)) is not None:
                    yield Measured(worker, *measured)
            if self._measures and (seen := gauge.others(device)) is not None:
                yield DeviceSeen(device, *seen)
            if device in self._unread and gauge.is_fresh(device):
                del self._unread[device]
                yield DeviceUnread(device)
            for worker in back:
                yield self._is_back(worker)
        for worker, since in list(self._waiting.items()):
            if gauge.device(worker) == device and (reading.began >= since or reading.figures is None):
                yield self._looked(worker)

    def _looked(self, worker: int) -> Looked:
        self.release(worker)
        return Looked(worker)

    def _not_fresh(self, device: str, why: str) -> list[Finding]:
        """Nothing is to be started there before a look, or for FRESH_S; a device that fails waits for longer anyway."""
        if not self._measures or self._unread.setdefault(device, why) not in (NOT_SEEN, NOT_YET):
            return []
        self._unread[device] = why
        return [DeviceUnread(device, why, FRESH_S)]

    def _fails(self, device: str, why: str) -> Iterator[Finding]:
        """Nothing is to be started there until it can be read."""
        if self._measures and self._unread.get(device) != why:
            self._unread[device] = why
            yield DeviceUnread(device, why)

    def _warn(self, device: str, untold: str) -> None:
        if untold and (device, untold) not in self._warned:
            self._warned.add((device, untold))
            log.warning("%s never tells %s; what that leaves unknown is charged as vram_mb declares it", device, untold)

    # ------------------------------------------------------------ memory that comes back

    def due(self, now: float) -> float:
        """When `tick` has something to do at the latest; asked at every turn of the loop."""
        if not self._waiting and not self._ending:
            return now + BACK_LIMIT_S
        soonest = min(self._waiting.values(), default=now + BACK_LIMIT_S) + HOLD_S
        return min(soonest, now + POLL_S) if self._ending else soonest

    def tick(self, now: float) -> Iterator[Finding]:
        for worker, since in list(self._waiting.items()):
            if now >= since + HOLD_S:
                yield self._looked(worker)
        yield from self._look_for_memory(self._ending, now)

    def look_for_stuck(self, now: float) -> Iterator[Finding]:
        """To be called every second or so."""
        yield from self._look_for_memory(self._stuck, now)

    def _look_for_memory(self, ended: dict[int, float], now: float) -> Iterator[Finding]:
        for worker, since in list(ended.items()):
            device = self.gauge.device(worker)
            # A device that only does not answer counts as free with the process; one whose looks fail does not.
            unseen = now - since >= FRESH_S and not (self._measures and self.gauge.fails(device))
            if self.gauge.back(worker, unseen=unseen):
                yield self._is_back(worker)
            elif ended is self._ending and now - since <= BACK_LIMIT_S:
                self._look(device)
            elif ended is self._ending:
                self._stuck[worker] = self._ending.pop(worker)
                yield MemoryStuck(worker)

    def _is_back(self, worker: int) -> MemoryBack:
        self._ending.pop(worker, None)
        self._stuck.pop(worker, None)
        return MemoryBack(worker)
