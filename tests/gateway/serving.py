"""A gateway beside a broker, as a process of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import support
from tests.support import ROOT, Running, config_text, wait_until


class Answer:
    """Of HTTP: `status`, `headers` (names in lower case), `body`."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.body = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class RunningGateway:
    """`python -m zoo.gateway` with a config.toml of its own, for a broker's endpoint. `address`: "127.0.0.1:PORT"."""

    def __init__(self, folder: Path, endpoint: str, models: list[dict[str, Any]] | str = "", **keys: Any) -> None:
        self.config_path = folder / "gateway.toml"
        self._log = folder / "gateway.log"
        self.write(models, endpoint, **keys)
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0

    def write(self, models: list[dict[str, Any]] | str, endpoint: str, **keys: Any) -> None:
        table = config_text("", **{"http": "127.0.0.1:0", **keys}).replace("[broker]", "[gateway]")
        self.config_path.write_text(config_text(models, endpoint=endpoint) + table)

    def start(self, *, wait: bool = True) -> RunningGateway:
        self._starts += 1
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "zoo.gateway", "--config", str(self.config_path)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT,
            )  # fmt: skip
        if wait:
            wait_until(lambda: self.process.poll() is not None or len(self._ports()) == self._starts, 20.0, "it serves")
            assert self.process.poll() is None, self.log()
        return self

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def _ports(self) -> list[str]:
        return re.findall(r"serving on http://[^\n]+:(\d+)\n", self.log())

    @property
    def port(self) -> int:
        return int(self._ports()[-1])

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, *, timeout: float = 30.0
    ) -> Answer:
        """One request on a connection of its own; a dict goes as JSON. An answer may come before all was sent."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            given = json.dumps(body) if isinstance(body, dict) else body
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, path, given, headers or {})
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def stop(self) -> None:
        """SIGTERM; it has to end by itself, with status 0."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout=20.0)
        assert status == 0, f"the gateway ended with status {status}:\n{self.log()[-4000:]}"

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(timeout=10.0)


def beside(running: Running, models: list[dict[str, Any]] | str = "", **keys: Any) -> Iterator[RunningGateway]:
    """One that serves a broker until the end of a test."""
    made = RunningGateway(running.folder, running.endpoint, models, **keys)
    try:
        yield made.start()
        made.stop()
    finally:
        made.kill()


@contextlib.contextmanager
def served_alone(models: list[dict[str, Any]] | str, **keys: Any) -> Iterator[RunningGateway]:
    """A broker with these models, and a gateway (`keys`) beside it, for all tests of a file."""
    with both_alone(models, **keys) as (_, gateway):
        yield gateway


@contextlib.contextmanager
def both_alone(
    models: list[dict[str, Any]] | str, broker: dict[str, Any] | None = None, **keys: Any
) -> Iterator[tuple[Running, RunningGateway]]:
    """`served_alone`, with the broker (of these keys)."""
    folder = Path(tempfile.mkdtemp(prefix="zoo-t-", dir="/tmp"))
    running = Running(folder, models, **(broker or {}))
    try:
        running.start()
        with contextlib.contextmanager(beside)(running, **keys) as gateway:
            yield running, gateway
    finally:
        running.close()
        support.remove(folder)


@pytest.fixture
def gateway_of() -> Iterator[Any]:
    """`gateway_of(running, **keys)` starts a gateway for a broker."""
    begun: list[Iterator[RunningGateway]] = []

    def start(running: Running, models: list[dict[str, Any]] | str = "", **keys: Any) -> RunningGateway:
        one = beside(running, models, **keys)
        made = next(one)
        begun.append(one)
        return made

    yield start
    for one in begun:
        next(one, None)
