"""What a command shows while it waits: a moving line in a terminal, plain lines elsewhere, nothing with --json."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

import pytest

from tests.support import ROOT, Running, toy
from zoo.cli import main, progress
from zoo.errors import BrokerUnreachable

WAIT_S = 30.0


@pytest.fixture
def awaited(broker: Any, tmp_path: Path) -> tuple[Running, Path]:
    """A broker whose model `toy` is loaded once a file is there."""
    flag = tmp_path / "flag"
    return broker([toy(options={"awaited": str(flag)})]), flag


def command(running: Running, *words: str, err: Any) -> subprocess.Popen[bytes]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    line = [sys.executable, "-m", "zoo.cli", "--endpoint", running.endpoint, *words]
    return subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=err, env=env, cwd=ROOT)


def read_until(file: IO[bytes], wanted: bytes) -> bytes:
    """Fails by the test's own time limit where it never comes."""
    said = b""
    while wanted not in said and (more := os.read(file.fileno(), 1 << 16)):
        said += more
    assert wanted in said
    return said


def test_in_a_terminal_a_load_shows_what_it_waits_for_and_leaves_nothing(awaited: tuple[Running, Path]) -> None:
    running, flag = awaited
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as terminal, command(running, "load", "toy", err=theirs) as process:
        os.close(theirs)
        said = read_until(terminal, b"toy: it is loading")
        assert b"\r\x1b[K[" in said
        flag.touch()
        with contextlib.suppress(OSError):  # the other end is closed
            while more := terminal.read(1 << 16):
                said += more
        assert said.endswith(b"\r\x1b[K")
        out, _ = process.communicate(timeout=WAIT_S)
        assert process.returncode == 0
        assert out.startswith(b"toy is loaded (")


def test_into_a_pipe_go_plain_lines(awaited: tuple[Running, Path]) -> None:
    running, flag = awaited
    with command(running, "load", "toy", err=subprocess.PIPE) as process:
        assert process.stderr is not None
        said = read_until(process.stderr, b"toy: it is loading")
        flag.touch()
        out, rest = process.communicate(timeout=WAIT_S)
        assert process.returncode == 0
        assert out.startswith(b"toy is loaded (")
        assert (said + rest).startswith(b"zoo: toy: it is loading (")
        assert b"\r" not in said + rest


def test_with_json_nothing_is_shown(
    broker: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "FIRST_S", 0.0)
    monkeypatch.setattr(progress, "LOOK_S", 0.02)
    running = broker([toy(options={"load_seconds": 0.3})])
    assert main.main(["--endpoint", running.endpoint, "load", "toy", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["loaded"]
    assert err == ""


def test_what_cannot_be_told_is_not_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "FIRST_S", 0.0)
    looked = threading.Event()

    def look() -> str:
        looked.set()
        raise BrokerUnreachable("gone")

    with progress.Meanwhile(look, quiet=False):
        assert looked.wait(WAIT_S)
    assert capsys.readouterr().err == ""


def test_a_moving_bar_has_no_end_and_fits_the_terminal() -> None:
    lines = [progress.waiting_line("toy: it is loading", tenth / 10, 79) for tenth in range(100)]
    assert lines[0] == "[###.....................]    0 s  toy: it is loading"
    assert lines[24] == "[......................##]    2 s  toy: it is loading"
    assert lines[48] == lines[0].replace("   0 s", "   5 s")
    assert len(progress.waiting_line("x" * 200, 1.0, 79)) == 79


def test_a_download_says_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for quiet in (False, True):
        now, bar = 100.0, progress.Bar(quiet=quiet)
        for step in range(41):
            now = 100.0 + step
            bar.progress("a.pt", step * 1_000_000, 40_000_000)
        bar.note("it broke off")
        lines = capsys.readouterr().err.splitlines()
        said = [
            "zoo: a.pt  25%  10.0 of 40.0 MB  1.0 MB/s  0:30 left",
            "zoo: a.pt  50%",
            "zoo: a.pt  75%",
            "zoo: a.pt  100%",
        ]
        assert not quiet or lines == []
        assert quiet or all(line.startswith(one) for line, one in zip(lines, [*said, "zoo: it broke off"], strict=True))
