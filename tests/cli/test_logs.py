"""`zoo logs`: what the broker has logged, of all or of one model, and what comes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from tests.support import ROOT, Running, toy, wait_until
from zoo.cli import logs

FRAME = np.full((8, 8, 3), 7, np.uint8)
LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} (INFO|WARNING|ERROR) .")


@contextmanager
def following(running: Running, *argv: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """`zoo logs -f`, and the lines that it has written so far."""
    command = [sys.executable, "-m", "zoo.cli", "--endpoint", running.endpoint, "logs", "-f", *argv]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        lines: list[str] = []
        out = process.stdout
        reader = threading.Thread(target=lambda: lines.extend(iter(out.readline, "")), daemon=True)
        reader.start()
        try:
            yield process, lines
        finally:
            process.kill()
            reader.join()


def test_decisions_and_what_workers_print_are_there_of_one_model_or_of_all(
    broker: Callable[..., Running], run: Callable[..., tuple[int, str, str]]
) -> None:
    running = broker([toy(), toy("other")])
    with running.client() as client:
        client.get_model("other")
        client.infer("toy", FRAME, do="print", text="a \x1b[31mred\x1b[0m word", lines=1)
    here = ("--endpoint", running.endpoint, "logs")
    wait_until(lambda: "red" in run(*here)[1])
    status, out, err = run(*here)
    assert (status, err) == (0, "")
    assert all(LINE.match(line) for line in out.splitlines())
    assert "serving on" in out.splitlines()[0] or "serving on" in out
    assert re.search(r"toy \(worker \d+\): a .*red.* word", out)
    assert "\x1b" not in out
    mine = run(*here, "toy")[1].splitlines()
    assert mine == [line for line in out.splitlines() if " toy: " in line or " toy (" in line]
    assert any("loaded" in line for line in mine)
    assert run(*here, "toy", "-n", "1")[1].splitlines() == mine[-1:]
    document = json.loads(run(*here, "toy", "--json")[1])
    assert [row["model"] for row in document] == ["toy"] * len(mine)
    assert {"loaded", "printed"} <= {row["event"] for row in document}
    status, out, err = run(*here, "tow")
    assert (status, out, "did you mean 'toy'?" in err) == (1, "", True)
    assert run(*here, "-n", "-1")[0] == 2


def test_following_goes_on_with_the_next_broker(broker: Callable[..., Running]) -> None:
    running = broker()
    with following(running, "--json", "-n", "1") as (process, lines):
        wait_until(lambda: lines)
        running.client().get_model("toy")
        wait_until(lambda: any(json.loads(line)["event"] == "loaded" for line in lines))
        running.kill()
        running.start()
        wait_until(lambda: sum("serving on" in json.loads(line)["message"] for line in list(lines[1:])) == 1)
        running.client().get_model("toy")
        wait_until(lambda: sum(json.loads(line)["event"] == "loaded" for line in lines) == 2)
        at = [json.loads(line)["time"] for line in lines]
        assert at == sorted(at)
        process.send_signal(signal.SIGINT)
        assert process.wait(30.0) == 130


def test_following_ends_when_its_reader_has_gone(broker: Callable[..., Running]) -> None:
    """Although nothing more is logged."""
    running = broker()
    line = f"{sys.executable} -m zoo.cli --endpoint {running.endpoint} logs -f | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, timeout=60,
                          check=False, env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (141, "", 1)


def test_a_traceback_follows_its_line_and_takes_no_control_of_a_terminal() -> None:
    line = {"time": "2026-01-02T03:04:05.006Z", "level": "ERROR", "model": "", "message": "it\nfailed",
            "exception": "Traceback:\n  \x1b[2J boom"}  # fmt: skip
    first, *rest = logs.shown(line)
    assert first.endswith("ERROR it\\nfailed")
    assert rest == ["    Traceback:", "      \\x1b[2J boom"]


def test_the_log_is_long_and_comes_whole(broker: Callable[..., Running]) -> None:
    """More than one page of it."""
    running = broker([toy()])
    client = running.client()
    client.infer("toy", FRAME, do="print", text="x" * 3000, lines=300)
    reading = logs.LogReader(client, "toy")
    got: list[dict[str, Any]] = []

    def printed() -> int:
        got.extend(reading.new())
        return sum(line["event"] == "printed" for line in got)

    wait_until(lambda: printed() >= 300)
    assert printed() == 300
