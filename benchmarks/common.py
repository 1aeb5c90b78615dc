"""What the benchmarks share: a broker to measure, clocks of other processes, tables, JSON."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import zoo
from zoo.system.smaps import unique_mb

RESULTS = Path(__file__).parent / "results"


@contextlib.contextmanager
def folder() -> Iterator[str]:
    path = tempfile.mkdtemp(prefix="zoo-bench-")
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def broker(config: str, where: str) -> Iterator[tuple[str, int]]:
    """Starts `python -m zoo.broker`; gives its endpoint and process id, and sees it gone."""
    file = Path(where) / "config.toml"
    file.write_text(config)
    endpoint = f"ipc://{where}/zoo"
    process = subprocess.Popen(
        [sys.executable, "-m", "zoo.broker", "--config", str(file), "--endpoint", endpoint, "--log-level", "WARNING"]
    )
    try:
        with zoo.Client(endpoint, timeout=30) as client:
            client.get_status()
        yield endpoint, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far, by its own clock: /proc counts in hundredths of a second."""
    return time.clock_gettime((~pid << 3) | 2)  # clock_getcpuclockid(3), which the standard library lacks


def resident_mb(pid: int) -> float:
    return _status_mb(pid, "VmRSS")


def private_peak_mb(pid: int) -> float:
    """The most that a process has had to itself: its largest resident set less the pages that it shares now."""
    unique = unique_mb(pid)
    if unique is None:
        raise LookupError(pid)
    return _status_mb(pid, "VmHWM") - (_status_mb(pid, "VmRSS") - unique)


def _status_mb(pid: int, key: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise LookupError(pid)


@contextlib.contextmanager
def on_cores(pids: list[int], cores: Collection[int]) -> Iterator[None]:
    """Every thread of these processes on these cores alone, and afterwards on all that this one may use now."""
    before = os.sched_getaffinity(0)
    tasks = [int(task.name) for pid in pids for task in Path(f"/proc/{pid}/task").iterdir()]
    try:
        for task in tasks:
            os.sched_setaffinity(task, cores)
        yield
    finally:
        for task in tasks:
            os.sched_setaffinity(task, before)


def machine() -> dict[str, Any]:
    return {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}


def save(name: str, figures: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": machine(), **figures}, indent=1) + "\n")


def table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
