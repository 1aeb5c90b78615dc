"""A broker on a device of the tests' making: `python -m tests.metered` for `python -m zoo.broker`.

The device has 100,000 MB. Its workers use what they really do, other programs what the file `others` beside
config.toml says (in MB). It does not let go of the memory of processes that have ended while there is a file `held`
there. Memory that has not come back after 0.3 s is stuck. The kernel's count of what it has killed
for want of memory is the file `oom` there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from broker.memory import meters, oom_killer, usage
from zoo import broker

TOTAL_MB = 100_000.0


def ended(pid: int) -> bool:
    """The process is gone, or a zombie: its memory is free either way."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except (OSError, IndexError):
        return True


class All(frozenset[int]):
    """Every process there ever was."""

    def __contains__(self, _: object) -> bool:
        return True


class Meter(meters.HostMeter):
    def __init__(self) -> None:
        super().__init__()
        self._ours: dict[int, float] = {}

    def read(self, pids: Sequence[int], more: Sequence[int] = ()) -> meters.Figures:
        figures, others = super().read(pids, more), Path("others")
        self._ours |= figures.own_mb
        ours = sum(mb for pid, mb in self._ours.items() if not ended(pid))
        return msgspec.structs.replace(
            figures,
            used_mb=ours + (float(others.read_text() or 0) if others.exists() else 0.0),
            total_mb=TOTAL_MB,
            listed=All() if Path("held").exists() else figures.listed,
        )


if __name__ == "__main__":
    meters.HostMeter = Meter  # type: ignore[misc]
    oom_killer.counters = lambda: iter([Path("oom")])
    usage.BACK_LIMIT_S = 0.3
    sys.exit(broker.main())
