"""What the command line does when its output cannot be written, and how `--json` tells errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.support import ROOT, Running, config_text, toy
from zoo import LoadFailed
from zoo.cli import output

COMMANDS = ["ls", "ps", "status", "explain", "footprint", "reload", "load toy", "unload toy", "pin toy", "unpin toy",
            "check --config CONFIG", "doctor --config CONFIG", "pull toy --config CONFIG", "logs", "logs -f",
            "--help", "ls --help", "--version"]  # fmt: skip


def shell(running: Running, command: str, redirect: str, **environment: str) -> subprocess.CompletedProcess[str]:
    config = running.folder / "checked.toml"
    config.write_text(config_text([toy()]))
    line = (
        f"{sys.executable} -m zoo.cli --endpoint {running.endpoint} {command.replace('CONFIG', str(config))} {redirect}"
    )
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_an_answer_that_cannot_be_written_is_one_line_and_a_status_of_its_own(
    shared_broker: Running, command: str
) -> None:
    full = shell(shared_broker, command, ">/dev/full")
    assert full.returncode == 4
    assert full.stderr.splitlines()[-1] == "zoo: output: the answer could not be written: No space left on device"
    assert "Traceback" not in full.stderr


@pytest.mark.parametrize("command", ["status", "load toy", "--help"])
def test_a_closed_standard_output_is_told_by_the_status(shared_broker: Running, command: str) -> None:
    closed = shell(shared_broker, command, ">&-")
    assert closed.returncode == 4
    assert "Traceback" not in closed.stderr


def test_with_standard_error_closed_or_full_the_status_tells(shared_broker: Running) -> None:
    for redirect in ("2>&-", "2>/dev/full"):
        done = shell(shared_broker, "load nobody", redirect)
        assert (done.returncode, done.stdout) == (1, "")


def test_the_reader_of_a_pipe_may_go(shared_broker: Running) -> None:
    for command in ("ls", "status", "status --json"):
        done = shell(shared_broker, command, "| head -1")
        assert done.returncode in (0, 141)  # 0: all of it was in the pipe before
        assert done.stderr == ""
        assert done.stdout.count("\n") == 1


@pytest.mark.parametrize(("command", "status", "error"), [
    ("load nobody", 1, "model_not_found"), ("load off", 1, "model_disabled"), ("load broken", 1, "load_failed"),
    ("sl", 2, "usage"), ("ls --no-such", 2, "usage"), ("infer toy /no/such.jpg", 2, "usage"),
    ("check --config /no/such.toml", 2, "config_error"), ("pull nobody --config CONFIG", 1, "model_not_found"),
    ("--endpoint ipc:///tmp/zoo-none/b --timeout 0.1 ps", 3, "broker_unreachable"),
])  # fmt: skip
def test_with_json_an_error_is_one_json_object(shared_broker: Running, command: str, status: int, error: str) -> None:
    done = shell(shared_broker, command + " --json", "")
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.count("\n") == 1
    said = json.loads(done.stderr)
    assert (said["error"], said["status"]) == (error, status)
    assert said["message"]
    assert said["retryable"] in (True, False)
    plain = shell(shared_broker, command, "")
    assert (plain.returncode, plain.stderr.count("\n"), plain.stderr[:5]) == (status, 1, "zoo: ")


@pytest.mark.parametrize(("seconds", "said"), [(0.02, "in 0.1 s "), (1.26, "in 1.3 s "), (None, "")])
def test_an_error_never_asks_to_wait_no_time(
    capsys: pytest.CaptureFixture[str], seconds: float | None, said: str
) -> None:
    e = LoadFailed("no such file")
    e.retryable, e.retry_after = True, seconds
    assert output.complain(e, as_json=False) == 1
    assert capsys.readouterr().err == f"zoo: load failed: no such file (trying again {said}may help)\n"


def test_a_table_is_the_same_in_any_terminal_and_locale(broker: Callable[..., Running]) -> None:
    running = broker([toy(), toy("large", vram_mb=9000), toy("off", enabled=False)], vram_budget_gb=1.0)
    plain = shell(running, "ls", "")
    bare = {"COLUMNS": "20", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TERM": "dumb"}
    assert shell(running, "ls", "", **bare).stdout == plain.stdout
    assert plain.stdout.count("\n") == 4
    assert "the whole budget is 1024 MB" in plain.stdout, "a cell wider than the terminal is there in full"
    assert "\x1b" not in plain.stdout
