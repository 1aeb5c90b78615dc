"""The log: one line each, whatever it holds; as JSON, with the numbers."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from broker import logs
from broker.story import Line
from tests.support import Running, toy
from zoo import broker as entry

NASTY = 'a\nb\r\x1b[31m "c" \u2028 \udcff é'


def record(message: str, **more: Any) -> logging.LogRecord:
    made = logging.LogRecord("zoo.broker", logging.WARNING, "", 0, "%s", (message,), None)
    made.__dict__.update(more)
    return made


@pytest.mark.parametrize("kind", ["text", "json"])
def test_whatever_a_message_holds_it_stays_one_line_that_can_be_written(kind: str) -> None:
    line = logs.formatter(kind).format(record(NASTY))  # type: ignore[arg-type]
    assert len(line.splitlines()) == 1
    line.encode("utf-8")
    assert "\x1b" not in line
    if kind == "json":
        assert json.loads(line)["message"] == NASTY.replace("\udcff", "\\udcff")


def test_a_decision_has_its_numbers_as_fields() -> None:
    line = Line(5.0, "a\nb", "evicted, 300 MB", "evicted", {"mb": 300.0, "running": [1, 2], "message": "not this"})
    made = record("a\nb: evicted, 300 MB", line=line, created=1e9, msecs=5.0)
    assert json.loads(logs.formatter("json").format(made)) == {
        "time": "2001-09-09T01:46:40.005Z",
        "level": "WARNING",
        "logger": "zoo.broker",
        "event": "evicted",
        "model": "a\nb",
        "message": "evicted, 300 MB",
        "mb": 300.0,
        "running": [1, 2],
    }


def test_an_exception_is_part_of_its_line() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as e:
        made = record("it broke", exc_info=(type(e), e, e.__traceback__))
    line = logs.formatter("json").format(made)
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
