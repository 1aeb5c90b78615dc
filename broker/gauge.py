"""Who uses how much of each device: our workers one by one, and everybody else. Adds up readings, decides nothing.

Where the driver tells a process's own use, that is read. Where it does not (containers, WSL), a worker's use is the
rise of the whole device's use around its load, when nothing else of ours started or ended there meanwhile; its growth
after that cannot be told from other programs', and is counted as theirs.
"""

from __future__ import annotations

import os
import select

from broker.meters import Meter

BACK_TOLERANCE = 0.1  # of a worker's use, where only the whole device can be looked at
BACK_TOLERANCE_MB = 32.0


class _Use:
    """One worker's. `told`: the driver tells it; `before`: of the whole device, ahead of its load."""

    __slots__ = ("before", "changes", "device", "ended", "hold", "loading", "mb", "pid", "told")

    def __init__(self, device: str, before: float, changes: int) -> None:
        self.device = device
        self.before = before
        self.changes = changes
        self.pid = 0
        self.mb = 0.0
        self.told = False
        self.loading = True
        self.ended = False
        self.hold = -1


class Gauge:
    """Readings of the workers that `start` and are not `back` yet."""

    def __init__(self, meters: dict[str, Meter]) -> None:
        self._meters = meters
        self._uses: dict[int, _Use] = {}  # those not read for longest come first
        self._changes = dict.fromkeys(meters, 0)  # starts and ends on the device
        self._others = dict.fromkeys(meters, 0.0)

    def start(self, worker: int, device: str) -> None:
        """A process is about to be started."""
        self._changes[device] += 1
        self._uses[worker] = _Use(device, self._meters[device].device_mb()[0], self._changes[device])

    def born(self, worker: int, pid: int) -> None:
        self._uses[worker].pid = pid

    def loaded(self, worker: int) -> None:
        """Its load is through: if the driver does not tell, what the device shows more than before is its own."""
        use = self._uses[worker]
        use.loading = False
        if self.read(worker) is None and self._changes[use.device] == use.changes:
            use.mb = max(0.0, self._meters[use.device].device_mb()[0] - use.before)

    def read(self, worker: int) -> float | None:
        """What its process uses now; None where the driver does not say."""
        use = self._uses.pop(worker)
        self._uses[worker] = use
        mb = self._meters[use.device].used_mb(use.pid) if use.pid and not use.ended else None
        if mb is not None:
            use.mb, use.told = mb, True
        return mb

    def seen_mb(self, worker: int) -> float:
        """What it was last seen to use."""
        return self._uses[worker].mb

    def is_told(self, worker: int) -> bool:
        return self._uses[worker].told

    def stalest(self) -> list[int]:
        """Workers that run, those not read for longest first."""
        return [worker for worker, use in self._uses.items() if use.pid and not use.ended and not use.loading]

    def others(self, device: str) -> tuple[float, float] | None:
        """(MB used by others than our workers, MB of the whole device); None when that cannot be told now."""
        used, total = self._meters[device].device_mb()  # first: what grows meanwhile is then ours, not others'
        ours = [(worker, use) for worker, use in self._uses.items() if use.device == device]
        for worker, use in ours:
            if use.loading and use.pid and not use.ended:
                self.read(worker)
            if not use.told and (use.loading or use.ended):
                return None
        self._others[device] = max(0.0, used - sum(use.mb for _, use in ours))
        return self._others[device], total

    def end(self, worker: int, line: int | None) -> None:
        """Its process has ended. `line`: the descriptor of its lifeline, whose other end all of its copies hold."""
        use = self._uses[worker]
        use.ended = True
        use.hold = os.dup(line) if line is not None else -1
        self._changes[use.device] += 1

    def back(self, worker: int) -> bool:
        """Its memory is seen free, and the worker forgotten."""
        use = self._uses[worker]
        if not self._meters[use.device].released(use.pid) or not _let_go(use.hold):
            return False
        if not use.told and use.mb:
            ours = sum(other.mb for n, other in self._uses.items() if n != worker and other.device == use.device)
            others = self._meters[use.device].device_mb()[0] - ours
            if others > self._others[use.device] + BACK_TOLERANCE * use.mb + BACK_TOLERANCE_MB:
                return False
        self.forget(worker)
        return True

    def forget(self, worker: int) -> None:
        use = self._uses.pop(worker, None)
        if use is not None and use.hold >= 0:
            os.close(use.hold)

    def close(self) -> None:
        for worker in list(self._uses):
            self.forget(worker)


def _let_go(hold: int) -> bool:
    """No process holds the other end any more: a fork of the worker would, and with it the worker's memory."""
    if hold < 0:
        return True
    poll = select.poll()
    poll.register(hold, 0)
    return any(what & select.POLLHUP for _, what in poll.poll(0))
