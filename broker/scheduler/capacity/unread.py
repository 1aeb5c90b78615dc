"""Devices whose memory cannot be read, or has not been for too long: nothing is started there.

Where a reading is only late, a device is kept from starts for a moment, and then goes by the ledger alone. Where
readings fail, it is for as long as they do. Pure, like all of the scheduler.

Unknown is a value: a device that has never told its memory (DGX Spark, Jetson, processes in WSL) is charged as
`vram_mb` declares, and serves. An error of a device that has told before is different, and stops starts there until a
reading succeeds; what is loaded serves on, and other devices go on.
"""

from __future__ import annotations

import math


class Unread:
    """By device: why, and until when."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, float]] = {}

    def note(self, device: str, why: str, until: float) -> bool:
        """`why` is empty when the device can be read. True: readings have begun to fail, otherwise or no more."""
        failing = self._failing(device)
        if failing and why and until < math.inf:
            return False  # a reading that is late as well changes nothing
        self._known.pop(device, None)
        if why:
            self._known[device] = why, until
        return self._failing(device) != failing

    def _failing(self, device: str) -> str:
        why, until = self._known.get(device, ("", 0.0))
        return why if until == math.inf else ""

    def why_not(self, device: str) -> str:
        """Why nothing is started there; "" if something may be."""
        return self._known.get(device, ("", 0.0))[0]

    def is_late(self, device: str) -> bool:
        """It is only for a moment."""
        return 0.0 < self._known.get(device, ("", 0.0))[1] < math.inf

    def expired(self, now: float) -> list[tuple[str, str]]:
        """(device, why) of those that have waited long enough for a reading; they are forgotten."""
        over = [(device, why) for device, (why, until) in self._known.items() if now >= until]
        for device, _ in over:
            del self._known[device]
        return over

    def next_end(self) -> float:
        """When the next of them has waited long enough."""
        return min((until for _, until in self._known.values()), default=math.inf)
