"""Who uses how much of each device: our workers one by one, and everybody else. Adds up readings, decides nothing.

Where the driver tells a process's own use, that is read. Where it does not (containers, WSL), a worker's use is the
rise of the whole device's use around its load, when nothing else of ours started or ended there meanwhile; its growth
after that cannot be told from other programs', and is counted as theirs.

Readings come from elsewhere (`measuring.py`) and are some time old: each counts only for what was so before it began.
Where a device never tells how much of it is used, no more is known than which processes it shows.
"""

from __future__ import annotations

import math
import os
import select
from collections.abc import Iterable

from broker.memory.measuring import Reading
from broker.memory.meters import Figures

BACK_TOLERANCE = 0.1  # of a worker's use, where only the whole device can be looked at
BACK_TOLERANCE_MB = 32.0


class _Use:
    """One worker's.

    Attributes:
        before: MB of the whole device in use ahead of its load; None: unknown.
        told: the driver tells what it uses.
        briefed, loaded, ended: when it was told its model, had loaded it, was gone; inf before that.
        settling: its load is through, and no reading has shown that yet.
    """

    __slots__ = (
        "before", "briefed", "changes", "device", "ended", "hold", "loaded", "mb", "pid", "settling", "told",
    )  # fmt: skip

    def __init__(self, device: str, before: float | None, changes: int) -> None:
        self.device = device
        self.before = before
        self.changes = changes
        self.pid = 0
        self.mb = 0.0
        self.told = False
        self.briefed = self.loaded = self.ended = math.inf
        self.settling = False
        self.hold = -1

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
        self.last: dict[str, Reading] = {}  # device → the latest; failed ones, too
        self._figures: dict[str, Reading] = {}  # the latest that has figures
        self._changes = dict.fromkeys(devices, 0)  # starts and ends on the device
        self._changed = dict.fromkeys(self._changes, -math.inf)  # when a load or a process ended there
        self._exited = dict(self._changed)
        self._others = dict.fromkeys(self._changes, 0.0)

    # ------------------------------------------------------------ what becomes of workers

    def start(self, worker: int, device: str) -> None:
        """A process is about to be told to load."""
        self._changes[device] += 1
        seen = self._figures.get(device)
        before = seen.figures.used_mb if seen and seen.figures and seen.began >= self._changed[device] else None
        alone = not any(use.device == device and use.loading and use.ended == math.inf for use in self._uses.values())
        self._uses[worker] = _Use(device, before, self._changes[device] if alone else -1)

    def born(self, worker: int, pid: int) -> None:
        self._uses[worker].pid = pid

    def briefed(self, worker: int, now: float) -> None:
        """It has been told what to load: what a look shows that ends later may be its load."""
        self._uses[worker].briefed = now

    def loaded(self, worker: int, now: float) -> None:
        """Its load is through: if the driver does not tell, what the device shows more than before is its own."""
        use = self._uses[worker]
        use.loaded = self._changed[use.device] = now
        use.settling = True

    def end(self, worker: int, line: int | None, now: float) -> None:
        """Its process has ended. `line`: the descriptor of its lifeline, whose other end all of its copies hold."""
        use = self._uses[worker]
        use.ended = self._changed[use.device] = self._exited[use.device] = now
        try:
            use.hold = os.dup(line) if line is not None else -1
        except OSError:  # no descriptor is left: a copy of it that lives on is then not noticed
            use.hold = -1
        self._changes[use.device] += 1

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
        self.last[reading.device] = reading
        if (figures := reading.figures) is None:
            return []
        self._figures[reading.device] = reading
        shown = []
        for worker, use in list(self._uses.items()):
            if use.device != reading.device:
                continue
            if reading.ended <= use.briefed and reading.began >= self._changed[use.device]:
                use.before = figures.used_mb
            mb = figures.own_mb.get(use.pid) if use.running else None
            if mb is not None:
                use.mb, use.told = mb, True
                self._uses[worker] = self._uses.pop(worker)
                shown.append(worker)
            if use.settling and reading.began >= use.loaded:
                use.settling = False
                if mb is None and not use.told and self._rise(use, figures):
                    shown.append(worker)
        return shown

    def _rise(self, use: _Use, figures: Figures) -> bool:
        """What the device shows more than before its load; False where something else has changed as well."""
        if self._changes[use.device] != use.changes or use.before is None or figures.used_mb is None:
            return False
        use.mb = max(0.0, figures.used_mb - use.before)
        return True

    def is_fresh(self, device: str) -> bool:
        """The last look has succeeded, and began after the last process of ours had ended there."""
        last = self.last.get(device)
        return last is not None and last.figures is not None and last.began >= self._exited[device]

    def figures(self, device: str) -> Figures | None:
        """What the last look has shown; None if it has failed."""
        last = self.last.get(device)
        return last.figures if last is not None else None

    def seen_mb(self, worker: int) -> float:
        """What it was last seen to use."""
        return self._uses[worker].mb

    def is_told(self, worker: int) -> bool:
        return self._uses[worker].told

    def pid(self, worker: int) -> int:
        """Of its process, while that runs; else 0."""
        use = self._uses.get(worker)
        return use.pid if use is not None and use.running else 0

    def loading(self, device: str) -> list[int]:
        """Processes that load there."""
        return [use.pid for use in self._uses.values() if use.device == device and use.running and use.loading]

    def stalest(self, device: str) -> list[int]:
        """Processes that run there, those not read for longest first."""
        return [use.pid for use in self._uses.values() if use.device == device and use.running and not use.loading]

    def others(self, device: str) -> tuple[float, float] | None:
        """(MB used by others than our workers, MB of the whole device); None when that cannot be told now."""
        figures = self.figures(device)
        if not self.is_fresh(device) or figures is None or figures.used_mb is None or figures.total_mb is None:
            return None
        ours = [use for use in self._uses.values() if use.device == device]
        if any(not use.told and (use.loading or use.ended < math.inf) for use in ours):
            return None
        self._others[device] = max(0.0, figures.used_mb - sum(use.mb for use in ours))
        return self._others[device], figures.total_mb

    def back(self, worker: int, *, unseen: bool = False) -> bool:
        """Its memory is seen free, and the worker forgotten. `unseen`: no look is waited for any more."""
        use = self._uses[worker]
        last = self._figures.get(use.device)
        if not _let_go(use.hold):
            return False
        if last is not None and last.figures is not None and last.began >= use.ended:
            if not self._is_free(worker, use, last.figures):
                return False
        elif not unseen:
            return False
        self.forget(worker)
        return True

    def _is_free(self, worker: int, use: _Use, figures: Figures) -> bool:
        if figures.listed is not None and use.pid in figures.listed:
            return False
        if use.told or not use.mb or figures.used_mb is None:
            return True
        ours = sum(other.mb for n, other in self._uses.items() if n != worker and other.device == use.device)
        others = figures.used_mb - ours
        return others <= self._others[use.device] + BACK_TOLERANCE * use.mb + BACK_TOLERANCE_MB


def _let_go(hold: int) -> bool:
    """No process holds the other end any more: a fork of the worker would, and with it the worker's memory."""
    if hold < 0:
        return True
    poll = select.poll()
    poll.register(hold, 0)
    return any(what & select.POLLHUP for _, what in poll.poll(0))
