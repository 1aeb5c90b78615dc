"""What this process may use of the machine: the smaller of the machine and of the control groups that it is in.

`/proc/meminfo` and `os.cpu_count()` know no container. A limit counts for all groups below the one that has it, so each
group from our own up to the root is looked at, of either version of control groups. A file that is missing, unreadable
or makes no sense is passed over.

File pages that the kernel can take back do not count as used. The same holds for processor quotas and the affinity, for
`worker_threads`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

MB = 1 << 20
CGROUPS = "sys/fs/cgroup"
# Of a control group: the files with limits, the one with what is used, and the line of memory.stat with file pages.
_VERSION_2 = ("memory.max", "memory.high"), "memory.current", "inactive_file "
_VERSION_1 = ("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file "


def own_groups(root: Path = Path("/")) -> Iterator[tuple[set[str], str]]:
    """(controllers, path) of each control group that this process is in; version 2 names no controllers."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        yield set(filter(None, controllers.split(","))), path


class Container:
    """Our control groups, as found when this is made.

    Attributes:
        root: of the file system; another one in tests.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root
        self._unified: list[Path] = []  # version 2; the innermost group first
        self._memory: list[Path] = []  # version 1
        self._cpu: list[Path] = []
        for controllers, path in own_groups(root):
            if not controllers:
                self._unified += self._up(CGROUPS, path)
            if "memory" in controllers:
                self._memory += self._up(f"{CGROUPS}/memory", path)
            if "cpu" in controllers:
                self._cpu += self._up(f"{CGROUPS}/cpu", path)

    def _up(self, mount: str, path: str) -> Iterator[Path]:
        """The group and all that it is in. In a container the path may be the host's, and only its end be there."""
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for n in range(len(parts), -1, -1):
            yield self.root.joinpath(mount, *parts[:n])

    def memory_mb(self) -> tuple[float, float]:
        """(MB in use, MB in all) of the host memory that this process may use.

        Raises:
            OSError, ValueError: not even the machine's own figures can be read.
        """
        machine = {}
        for line in (self.root / "proc/meminfo").read_text().splitlines():
            key, _, rest = line.partition(":")
            if key in ("MemTotal", "MemAvailable"):
                machine[key] = int(rest.split()[0]) / 1024
        if machine.keys() != {"MemTotal", "MemAvailable"}:
            raise ValueError("/proc/meminfo does not say how much memory there is")
        total, available = machine["MemTotal"], machine["MemAvailable"]
        for limit, used in self._limits():
            if limit < machine["MemTotal"]:  # version 1 writes no limit as a very large one
                total, available = min(total, limit), min(available, max(0.0, limit - used))
        return total - available, total

    def _limits(self) -> Iterator[tuple[float, float]]:
        """(limit, what is used of it and cannot be taken back at once) in MB, of each group that has a limit."""
        for groups, (names, current, reclaimable) in ((self._unified, _VERSION_2), (self._memory, _VERSION_1)):
            for group in groups:
                if limits := [limit for name in names if (limit := _number(group / name)) is not None]:
                    lines = _text(group / "memory.stat").splitlines()
                    files = next((_whole(line.split()[-1]) for line in lines if line.startswith(reclaimable)), None)
                    yield min(limits) / MB, max(0, (_number(group / current) or 0) - (files or 0)) / MB

    def cores(self) -> int:
        """How many processors this process may use, in whole ones, at least 1."""
        try:
            most = float(len(os.sched_getaffinity(0)))
        except OSError:
            most = float(os.cpu_count() or 1)
        for group in self._unified:
            quota, _, period = _text(group / "cpu.max").strip().partition(" ")
            most = min(most, _ratio(quota, period))
        for group in self._cpu:
            most = min(most, _ratio(_text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")))
        return max(1, int(most))


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, ValueError):
        return ""


def _whole(text: str) -> int | None:
    """A number above 0, and no other."""
    return int(text) if text.isascii() and text.isdecimal() and int(text) > 0 else None


def _number(file: Path) -> int | None:
    return _whole(_text(file).strip())


def _ratio(quota: str, period: str) -> float:
    """In processors; infinite where there is no quota."""
    time, per = _whole(quota.strip()), _whole(period.strip())
    return time / per if time and per else float("inf")
