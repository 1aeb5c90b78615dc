"""Processes of a peer: started with its own environment, in a session of their own, and ended to the last one.

A peer's servers start processes of their own, some in sessions of their own. Their orphans come to this process
(`PR_SET_CHILD_SUBREAPER`), so that all are found below it, and killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LISTS = Path(__file__).parent  # of packages, NAME.txt
ENVIRONMENTS = ROOT / ".peers"
PR_SET_CHILD_SUBREAPER = 36


@contextlib.contextmanager
def adopting() -> Iterator[None]:
    """Orphans below this process come to it."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0)


def python(environment: str) -> str:
    """Of a peer's environment; of this process for one without libraries of its own."""
    return str(ENVIRONMENTS / environment / "bin/python") if environment else sys.executable


def below(pid: int) -> list[int]:
    """A process and all that it has started, whatever their sessions."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


class Process:
    """One command, and whatever it starts. Its output is kept in a file."""

    def __init__(self, environment: str, module: str, arguments: list[str], log: Path, extra: dict[str, str]) -> None:
        self._log = log.open("ab")
        self._process = subprocess.Popen(
            [python(environment), "-m", f"benchmarks.peers.{module}", *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", **extra},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if module == "driving" else self._log,
            stderr=self._log,
            start_new_session=True,
        )
        self.log = log
        self._seen: set[int] = set()

    def pids(self) -> list[int]:
        """Those that are there now. Remembered, for an orphan is below this process, but no longer below its own."""
        self._seen.update(below(self._process.pid))
        self._seen &= set(below(os.getpid()))
        return sorted(self._seen)

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def end(self) -> None:
        """At once: nothing here is worth a farewell, and some wait long for one."""
        for _ in range(50):
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()
            self._reap()
            if not self.pids():
                break
            time.sleep(0.02)
        self._log.close()

    def _reap(self) -> None:
        for pid in self._seen:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

    def told(self) -> str:
        """The last line of its log that says something, for a report."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:200] if lines else ""


class Failed(Exception):
    """A peer did not start, gave a wrong answer, or none in time. It says which."""


class Never(Exception):
    """The client does not do this, by design."""


class Driver(Process):
    """A client (`driving.py`)."""

    def __init__(self, server: Server, client: str, seconds: float) -> None:
        super().__init__(
            server.environment, "driving", [server.module, client, str(server.where), str(seconds)],
            server.where / "clients.log", server.extra,
        )  # fmt: skip
        self._server = server

    def ready(self, seconds: float) -> None:
        """Returns when its first answer has come. No longer than the server lives."""
        end = time.monotonic() + seconds
        while not select.select([self._process.stdout], [], [], 0.5)[0]:
            if self._server.ended or time.monotonic() > end:
                raise Failed("the server has ended" if self._server.ended else f"not there after {seconds:.0f} s")
        self._answer(seconds)

    def run(self, workload: str, calls: int, most: float, timeout: float) -> list[float]:
        """Microseconds of each call."""
        self.ask(workload, calls, 0, most)
        return self.answer(timeout)

    def ask(self, workload: str, calls: int, seconds: float, most: float) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps([workload, calls, seconds, most]).encode() + b"\n")
            self._process.stdin.flush()

    def answer(self, timeout: float) -> list[float]:
        found: list[float] = self._answer(timeout)
        return found

    def _answer(self, timeout: float) -> Any:
        line, out = b"", self._process.stdout
        assert out is not None
        end = time.monotonic() + timeout
        while not line.endswith(b"\n"):
            if not select.select([out], [], [], max(0.0, end - time.monotonic()))[0]:
                raise Failed(f"no answer within {timeout:.0f} s")
            if not (more := os.read(out.fileno(), 1 << 16)):
                raise Failed(f"its client ended: {self.told()}")
            line += more
        said = json.loads(line)
        if isinstance(said, dict):
            raise Never(said["never"]) if "never" in said else Failed(said["error"])
        return said


class Server(Process):
    def __init__(self, environment: str, module: str, where: Path, extra: dict[str, str]) -> None:
        where.mkdir()
        (where / "port").write_text(str(_free_ports()))
        (where / "token").write_text(secrets.token_hex(16))
        self.environment, self.module, self.where, self.extra = environment, module, where, extra
        super().__init__(environment, "serving", [module, str(where)], where / "server.log", extra)


def _free_ports(count: int = 3) -> int:
    """The first of so many that are free one after another."""
    while True:
        with contextlib.ExitStack() as held, contextlib.suppress(OSError, OverflowError):
            first = 20000 + secrets.randbelow(12000)
            for port in range(first, first + count):
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
