"""The log: one line each, whatever it holds; as JSON, with the numbers."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker import logs, outlet
from broker.scheduler.story.story import Line
from tests.support import ROOT, Running, config_text, toy, wait_until
from zoo import Client
from zoo import broker as entry
from zoo.system import log_lines

FRAME = np.full((8, 8, 3), 7, np.uint8)

NASTY = 'a\nb\r\x1b[31m "c" \u2028 \udcff é'


def record(message: str, **more: Any) -> logging.LogRecord:
    made = logging.LogRecord("zoo.broker", logging.WARNING, "", 0, "%s", (message,), None)
    made.__dict__.update(more)
    return made


@pytest.mark.parametrize("kind", ["text", "json"])
def test_whatever_a_message_holds_it_stays_one_line_that_can_be_written(kind: str) -> None:
    line = log_lines.formatter(kind).format(record(NASTY))  # type: ignore[arg-type]
    assert len(line.splitlines()) == 1
    line.encode("utf-8")
    assert "\x1b" not in line
    if kind == "json":
        assert json.loads(line)["message"] == NASTY.replace("\udcff", "\\udcff")


def test_a_decision_has_its_numbers_as_fields() -> None:
    line = Line(5.0, "a\nb", "killed", {"limit_seconds": 300.0, "running": [1, 2], "message": "not this"})
    made = record("a\nb: killed", line=line, created=1e9, msecs=5.0)
    assert json.loads(log_lines.formatter("json").format(made)) == {
        "time": "2001-09-09T01:46:40.005Z",
        "level": "WARNING",
        "logger": "zoo.broker",
        "event": "killed",
        "model": "a\nb",
        "message": line.text,
        "limit_seconds": 300.0,
        "running": [1, 2],
    }


def test_an_exception_is_part_of_its_line() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as e:
        made = record("it broke", exc_info=(type(e), e, e.__traceback__))
    line = log_lines.formatter("json").format(made)
    assert len(line.splitlines()) == 1
    assert "two\nlines" in json.loads(line)["exception"]


def test_a_format_that_does_not_exist_is_a_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        entry.main(["--log-format", "xml"])
    assert end.value.code == 2
    assert "invalid choice: 'xml'" in capsys.readouterr().err


def test_a_broker_logs_json_if_told_to(tmp_path: Path) -> None:
    running = Running(tmp_path, [toy("a")], arguments=["--log-format", "json"])
    try:
        running.start()
        running.client().get_model("a")
    finally:
        running.close()
    lines = [json.loads(line) for line in running.log().splitlines()]
    loaded = next(line for line in lines if line["event"] == "loaded")
    assert (loaded["model"], loaded["level"]) == ("a", "INFO")
    assert 0 < loaded["seconds"] < 20
    assert abs((datetime.fromisoformat(loaded["time"]) - datetime.now(UTC)).total_seconds()) < 60
    assert any("serving on" in line["message"] for line in lines)


# ---------------------------------------------------------------- a log that is not read, or cannot be written


@contextlib.contextmanager
def serving(zoo_dir: Path, stderr: int, *arguments: str, **how: Any) -> Iterator[tuple[Client, Any]]:
    """A broker whose standard error is that descriptor; a client of it, once it answers."""
    file = zoo_dir / "config.toml"
    file.write_text(config_text([toy()], endpoint=f"ipc://{zoo_dir}/b", device="cpu", footprint="declared", standby=0))
    process = subprocess.Popen(
        [sys.executable, "-m", "zoo.broker", "--config", str(file), *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, cwd=zoo_dir,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, **how,
    )  # fmt: skip
    try:
        wait_until(lambda: process.poll() is not None or (zoo_dir / "b").exists(), what="the broker listens")
        with Client(f"ipc://{zoo_dir}/b", timeout=20.0) as client:
            yield client, process
    finally:
        process.kill()
        process.wait()


def flood(client: Client, count: int) -> None:
    """Each of these is a line of the log of about 100 bytes."""
    for i in range(count):
        client.pin("toy") if i % 2 == 0 else client.unpin("toy")


def ends(process: subprocess.Popen[bytes]) -> int:
    process.terminate()
    return process.wait(timeout=15.0)


@pytest.mark.parametrize("kind", ["text", pytest.param("json", marks=pytest.mark.slow)])
def test_a_log_that_is_never_read_stops_neither_requests_nor_the_end(zoo_dir: Path, kind: str) -> None:
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    try:
        with serving(zoo_dir, write, "--log-format", kind) as (client, process):
            assert client.infer("toy", FRAME)["first"] == [7, 7, 7]
            flood(client, 200)
            assert client.infer("toy", FRAME, timeout=5.0)["first"] == [7, 7, 7]
            assert ends(process) == 0
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.parametrize(
    "where", ["/dev/full", "nothing", pytest.param("a pipe without a reader", marks=pytest.mark.slow)]
)
def test_a_log_that_cannot_be_written_costs_nothing_but_the_log(zoo_dir: Path, where: str) -> None:
    if where == "/dev/full":
        fd = os.open("/dev/full", os.O_WRONLY)
    else:
        read, fd = os.pipe()
        os.close(read)
    how = {"preexec_fn": lambda: os.closerange(0, 3)} if where == "nothing" else {}
    try:
        with serving(zoo_dir, fd, **how) as (client, process):
            flood(client, 20)
            assert client.infer("toy", FRAME)["first"] == [7, 7, 7]
            assert ends(process) == 0
    finally:
        os.close(fd)


@pytest.mark.parametrize("kind", ["text", "json"])
def test_a_configuration_that_is_refused_says_so_though_the_log_cannot_be_written(tmp_path: Path, kind: str) -> None:
    (tmp_path / "config.toml").write_text("[broker]\nnonsense = 1\n")
    command = [sys.executable, "-m", "zoo.broker", "--config", str(tmp_path / "config.toml"), "--log-format", kind]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with open("/dev/full", "wb") as full:
        assert subprocess.run(command, stderr=full, timeout=30, env=env, check=False).returncode == 2
    said = subprocess.run(command, capture_output=True, text=True, timeout=30, env=env, check=False)
    assert said.returncode == 2
    assert "nonsense" in said.stderr
    if kind == "json":
        assert [json.loads(line)["logger"] for line in said.stderr.splitlines()] == ["stderr"]


def drained(read: int, until: str) -> str:
    """What comes out of a pipe, up to a text."""
    seen = b""
    end = time.monotonic() + 10.0
    while until.encode() not in seen:
        assert time.monotonic() < end, seen[-2000:]
        if select.select([read], [], [], 0.1)[0]:
            seen += os.read(read, 1 << 16)
    return seen.decode()


def test_dropped_lines_are_counted_and_said_when_the_log_is_read_again() -> None:
    read, write = os.pipe()
    out = logs.Log("text", write)
    for i in range(outlet.MOST_LINES + 5000):
        out.emit(record(f"line {i}"))
    lost = out.outlet.dropped
    assert 0 < lost <= 5000
    said = drained(read, "were dropped")
    assert f"{lost} lines of the log were dropped" in said
    assert "line 0\n" in said
    assert all(re.fullmatch(r"\S+ \S+ WARNING zoo\.\w+: .*", line) for line in said.splitlines()[:100])
    while not out.outlet.flush(0.01):
        os.read(read, 1 << 16)
    out.emit(record("the end"))
    assert "were dropped" not in drained(read, "the end").partition("the end")[0][-200:]


def test_a_flood_of_long_lines_has_a_bound_in_bytes() -> None:
    read, write = os.pipe()
    out = logs.Log("json", write)
    for _ in range(1000):
        out.emit(record("x" * (1 << 20)))
    assert out.outlet._bytes <= outlet.MOST_BYTES
    assert out.outlet.dropped > 0
    first = json.loads(drained(read, "\n").splitlines()[0])
    assert len(first["message"]) < 2 * log_lines.MOST_TEXT


OUTPUTS = """
import sys, threading, traceback, warnings, logging
from broker import logs
out = logs.Log("json")
out.install("INFO")
logging.getLogger("prometheus_client").warning("a library's")
logging.getLogger("x").error("%d", "not a number")
warnings.warn("watch out")
print("printed,", "in pieces", file=sys.stderr)
sys.stderr.write("no end of line")
sys.stderr.flush()
try:
    raise ValueError("shown \\udcff")
except ValueError:
    traceback.print_exc()
thread = threading.Thread(target=lambda: 1 / 0, name="poor")
thread.start()
thread.join()
class Dying:
    def __del__(self): raise OSError("in its end")
Dying()
raise RuntimeError("at last")
"""


def test_whatever_is_written_and_by_whom_each_line_is_one_json_object() -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", OUTPUTS], capture_output=True, text=True, timeout=30, env=env, check=False
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    said = " | ".join(line["message"] + line.get("exception", "") for line in lines)
    for text in ("a library's", "cannot be shown", "watch out", "printed, in pieces", "no end of line", "shown \\udcff",
                 "uncaught in thread poor", "ZeroDivisionError", "in its end", "at last"):  # fmt: skip
        assert text in said
