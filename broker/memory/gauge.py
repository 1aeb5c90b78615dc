"""Who uses how much of each device: our workers one by one, and all other programs. Adds up readings, decides nothing.

Where the driver tells the use of a process, that figure counts. Where it does not (containers, WSL), a worker's use is
the rise of the whole device's use around its load, if no other worker started or ended on the device meanwhile. What
such a worker takes later cannot be told from other programs, and is counted as theirs.

Readings are taken elsewhere (`measuring.py`) and arrive late, so each counts only for what was so before it began.
"""

from __future__ import annotations

import math
import os
import select
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from broker.memory.measuring import Reading
from broker.memory.meters import Figures

BACK_TOLERANCE = 0.1  # of a worker's use, where only the whole device can be looked at
BACK_TOLERANCE_MB = 32.0


@dataclass(slots=True)
class _Device:
    """`last`: the latest reading; `shown`: the latest that has figures. The moments are those of workers there."""

    name: str
    last: Reading | None = None
    shown: Reading | None = None
    others_mb: float = 0.0
    changed: float = -math.inf  # when a load or a process ended
    exited: float = -math.inf  # when a process ended


@dataclass(slots=True, eq=False)
class _Use:
    """What one worker uses.

    Attributes:
        before: MB of the whole device in use ahead of its load; None: unknown.
        alone: no other worker has started or ended on the device since it started, and none was loading then.
        told: the driver tells what it uses.
        sound: whether its own use is what its model takes (see `Gauge.born`).
        briefed, loaded, ended: when it was told its model, had loaded it, was gone; inf before that.
        settling: its load is through, and no reading has shown that yet.
        hold: a copy of its lifeline's descriptor, from its end on.
    """

    device: _Device
    before: float | None
    alone: bool
    pid: int = 0
    sound: Callable[[], bool] = lambda: True
    mb: float = 0.0
    told: bool = False
    worked: bool = False
    briefed: float = math.inf
    loaded: float = math.inf
    ended: float = math.inf
    settling: bool = False
    hold: int = -1

    @property
    def loading(self) -> bool:
        return self.settling or self.loaded == math.inf

    @property
    def running(self) -> bool:
        return self.pid > 0 and self.ended == math.inf


class Gauge:
    """Readings of the workers that `start` and are not `back` yet. Moments are those of the readings' clock."""

    def __init__(self, devices: Iterable[str]) -> None:
        self._uses: dict[int, _Use] = {}  # those not read for longest come first
        self._devices = {name: _Device(name) for name in devices}

    def _on(self, device: _Device) -> Iterator[_Use]:
        return (use for use in self._uses.values() if use.device is device)

    # ------------------------------------------------------------ what becomes of workers

    def start(self, worker: int, device: str) -> None:
        """A process is about to be told to load."""
        where = self._devices[device]
        seen = where.shown
        before = seen.figures.used_mb if seen and seen.figures and seen.began >= where.changed else None
        alone = not any(use.loading and use.ended == math.inf for use in self._on(where))
        self._disturb(where)
        self._uses[worker] = _Use(where, before, alone)

    def _disturb(self, device: _Device) -> None:
        """What the device shows from now on is not the doing of a single worker."""
        for use in self._on(device):
            use.alone = False

    def born(self, worker: int, pid: int, sound: Callable[[], bool] = lambda: True) -> None:
        """Its process runs.

        Args:
            sound: whether what is read of the process is what its model takes.
        """
        use = self._uses[worker]
        use.pid, use.sound = pid, sound

    def briefed(self, worker: int, now: float) -> None:
        """It has been told what to load: what a look shows that ends later may be its load."""
        self._uses[worker].briefed = now

    def loaded(self, worker: int, now: float) -> None:
        """Its load is through: if the driver does not tell, what the device shows more than before is its own."""
        use = self._uses[worker]
        use.loaded = use.device.changed = now
        use.settling = True

    def worked(self, worker: int) -> None:
        """It has run a request."""
        self._uses[worker].worked = True

    def end(self, worker: int, line: int | None, now: float) -> None:
        """Its process has ended. `line`: the descriptor of its lifeline, whose other end all of its copies hold."""
        use = self._uses[worker]
        use.ended = use.device.changed = use.device.exited = now
        try:
            use.hold = os.dup(line) if line is not None else -1
        except OSError:  # no descriptor is left: a copy of it that lives on is then not noticed
            use.hold = -1
        self._disturb(use.device)

    def forget(self, worker: int) -> None:
        use = self._uses.pop(worker, None)
        if use is not None and use.hold >= 0:
            os.close(use.hold)

    def close(self) -> None:
        for worker in list(self._uses):
            self.forget(worker)

    # ------------------------------------------------------------ readings

    def take(self, reading: Reading) -> list[int]:
        """Notes a reading; gives the workers of which it has shown something."""
        where = self._devices[reading.device]
        where.last = reading
        if (figures := reading.figures) is None:
            return []
        where.shown = reading
        shown = []
        for worker, use in list(self._uses.items()):
            if use.device is not where:
                continue
            if reading.ended <= use.briefed and reading.began >= where.changed:
                use.before = figures.used_mb
            mb = figures.own_mb.get(use.pid) if use.running else None
            if mb is not None:
                use.mb, use.told = mb, True
                self._uses[worker] = self._uses.pop(worker)
                shown.append(worker)
            if use.settling and reading.began >= use.loaded:
                use.settling = False
                if not use.told and use.alone and use.before is not None and figures.used_mb is not None:
                    use.mb = max(0.0, figures.used_mb - use.before)
                    shown.append(worker)
        return shown

    def figures(self, device: str) -> Figures | None:
        """What the last look has shown; None if it has failed, or there was none."""
        last = self._devices[device].last
        return last.figures if last is not None else None

    def ours_mb(self, device: str) -> float:
        """What our workers were seen to use there, those whose memory is not back included."""
        return sum(use.mb for use in self._on(self._devices[device]))

    def fails(self, device: str) -> bool:
        """The last look has failed."""
        last = self._devices[device].last
        return last is not None and last.figures is None

    def is_fresh(self, device: str) -> bool:
        """The last look has succeeded, and began after the last process of ours had ended there."""
        where = self._devices[device]
        return where.last is not None and where.last is where.shown and where.last.began >= where.exited

    def device(self, worker: int) -> str:
        return self._uses[worker].device.name

    def pid(self, worker: int) -> int:
        """Of its process, while that runs; else 0."""
        use = self._uses.get(worker)
        return use.pid if use is not None and use.running else 0

    def told_mb(self, worker: int) -> float | None:
        """What it uses; None where the driver does not tell."""
        use = self._uses.get(worker)
        return use.mb if use is not None and use.told else None

    def measured(self, worker: int) -> tuple[float, bool] | None:
        """(MB that it uses, whether a request is in that); None where its last reading says nothing of its model."""
        use = self._uses.get(worker)
        if use is None or not use.running or not use.mb or not use.sound():
            return None
        return use.mb, use.worked and use.told

    def loading(self, device: str) -> list[int]:
        """Processes that load there."""
        return [use.pid for use in self._on(self._devices[device]) if use.running and use.loading]

    def stalest(self, device: str) -> list[int]:
        """Processes that run there, those not read for longest first."""
        return [use.pid for use in self._on(self._devices[device]) if use.running and not use.loading]

    def others(self, device: str) -> tuple[float, float] | None:
        """(MB used by others than our workers, MB of the whole device); None when that cannot be told now."""
        figures, where = self.figures(device), self._devices[device]
        if not self.is_fresh(device) or figures is None or figures.used_mb is None or figures.total_mb is None:
            return None
        if any(not use.told and (use.loading or use.ended < math.inf) for use in self._on(where)):
            return None
        where.others_mb = max(0.0, figures.used_mb - sum(use.mb for use in self._on(where)))
        return where.others_mb, figures.total_mb

    def back(self, worker: int, *, unseen: bool = False) -> bool:
        """Its memory is seen free, and the worker forgotten. `unseen`: no look is waited for any more."""
        use = self._uses[worker]
        shown = use.device.shown
        if not _let_go(use.hold):
            return False
        if shown is not None and shown.figures is not None and shown.began >= use.ended:
            if not self._is_free(use, shown.figures):
                return False
        elif not unseen:
            return False
        self.forget(worker)
        return True

    def _is_free(self, use: _Use, figures: Figures) -> bool:
        if figures.listed is not None and use.pid in figures.listed:
            return False
        if figures.free_at_end or use.told or not use.mb or figures.used_mb is None:
            return True
        ours = sum(other.mb for other in self._on(use.device) if other is not use)
        return figures.used_mb - ours <= use.device.others_mb + BACK_TOLERANCE * use.mb + BACK_TOLERANCE_MB


def _let_go(hold: int) -> bool:
    """No process holds the other end any more: a fork of the worker would, and with it the worker's memory."""
    if hold < 0:
        return True
    poll = select.poll()
    poll.register(hold, 0)
    return any(what & select.POLLHUP for _, what in poll.poll(0))
