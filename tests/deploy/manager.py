"""A service manager, as far as sd_notify goes: a socket that hears what a unit's process says."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support import ROOT

UNITS = ROOT / "deploy" / "systemd"
INSTALLED, CONFIG = "/opt/zoo/bin/zoo", "/etc/zoo/config.toml"  # in the units


def settings(unit: str) -> dict[str, list[str]]:
    """Of a unit file, by name: all values, in their order."""
    found: dict[str, list[str]] = {}
    for line in (UNITS / unit).read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def command(unit: str, config: Path) -> list[str]:
    """The unit's command line, with this checkout and a configuration of the test's."""
    words = settings(unit)["ExecStart"][0].split()
    assert words[0] == INSTALLED
    assert CONFIG in words
    return [sys.executable, "-m", "zoo.cli", *(str(config) if word == CONFIG else word for word in words[1:])]


class Manager:
    """Runs a command as a unit of `Type=notify` and `WatchdogSec=` is run. `said`: every line that came."""

    def __init__(self, folder: Path, watchdog_s: float = 0.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(folder / "notify"))
        self._log = folder / "unit.log"
        self._environment = {"NOTIFY_SOCKET": str(folder / "notify")}
        if watchdog_s:
            self._environment["WATCHDOG_USEC"] = str(int(watchdog_s * 1e6))
        self.said: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, command: list[str]) -> subprocess.Popen[bytes]:
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **self._environment},
                cwd=ROOT,
            )  # fmt: skip
        return self.process

    def hear(self, line: str, timeout: float = 30.0) -> None:
        """Waits for a line, from now on."""
        assert self.hears(line, timeout), f"{line} was not said:\n{self.said}\n{self._log.read_text()}"

    def hears(self, line: str, timeout: float) -> bool:
        """Whether it comes within so many seconds."""
        end = time.monotonic() + timeout
        while (left := end - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                lines = self._socket.recv(4096).decode().splitlines()
            except TimeoutError:
                break
            self.said += lines
            if line in lines:
                return True
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        self._socket.close()
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(timeout=10.0)
