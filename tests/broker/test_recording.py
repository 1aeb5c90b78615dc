"""The broker keeps what was asked of it, while it is told to; whatever becomes of the file, requests go on."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from broker.recording import file as record_file
from tests.support import Running, toy, wait_until
from zoo import Client, DeadlineExceeded, InvalidInput, recording
from zoo.cli.output import LOST
from zoo.cli.recordings import fetched

Run = Callable[..., tuple[int, str, str]]
FRAME = np.full((8, 8, 3), 7, np.uint8)


def parsed(client: Client) -> recording.RecordingPart:
    return recording.parse([line.encode() for line in fetched(client)], "the broker's")


def test_a_recording_holds_what_was_asked(broker: Callable[..., Running]) -> None:
    running = broker([toy("a", vram_mb=60), toy("b", vram_mb=60)], vram_budget_gb=0.1)
    client = running.client()
    client.infer("a", FRAME)
    client.record("start")
    client.infer("a", FRAME, priority="HIGH", word="an-option")
    with client.load("a") as lease:
        lease(FRAME)
    client.pin("a"), client.unpin("a")
    client.infer("b", FRAME, timeout=15.0)
    with pytest.raises(InvalidInput):
        client.infer("b", FRAME, do="refuse")
    with pytest.raises(DeadlineExceeded):
        client.infer("b", FRAME, do="sleep", seconds=1.0, timeout=0.1)
    wait_until(lambda: client.record()["requests"] == 6, what="the last one is answered")
    told = client.record("stop")
    assert (told["recording"], told["requests"], told["dropped"]) == (False, 6, 0)
    client.infer("b", FRAME)
    found = parsed(client)
    client.record("start")
    client.infer("b", FRAME)
    again = parsed(client)
    assert [r.model for r in again.requests] == ["b"]
    assert {m.config.name: m.loaded_on for m in again.began.models} == {"a": [], "b": ["cpu"]}
    assert [(r.model, r.kind, r.outcome) for r in found.requests] == [
        ("a", "infer", ""), ("a", "lease", ""), ("a", "infer", ""), ("b", "infer", ""), ("b", "infer", "invalid_input"),
        ("b", "infer", "deadline_exceeded"),
    ]  # fmt: skip
    assert [r.priority for r in found.requests[:2]] == [1, 2]
    assert 14.0 < found.requests[3].deadline_s <= 15.0
    assert all(r.took >= r.sent_s for r in found.requests)
    assert len({r.session for r in found.requests}) == 1
    assert [(load.model, load.copied) for load in found.loads] == [("b", False)]
    assert [(end.model, end.how) for end in found.ends] == [("a", "evicted")]
    assert [r.model for r in found.releases] == ["a"]
    assert [(pin.model, pin.on) for pin in found.pins] == [("a", True), ("a", False)]
    assert {m.config.name: m.loaded_on for m in found.began.models} == {"a": ["cpu"], "b": []}
    assert found.began.broker.vram_budget_gb == 0.1
    text = "".join(fetched(client))
    for word in ("an-option", str(running.folder), running.endpoint):
        assert word not in text


@pytest.mark.slow
def test_a_file_is_kept_from_the_start_and_bounded(broker: Callable[..., Running]) -> None:
    running = broker(record="kept/requests", record_mb=1)
    file = running.folder / "kept" / "requests"
    client = running.client()
    assert client.record()["file"] == str(file)
    older = Path(f"{file}.1")
    while not older.exists():
        for _ in range(500):
            client.infer("toy", FRAME)
    client.infer("toy", FRAME)
    wait_until(lambda: file.exists() and b"begun" in file.read_bytes(), what="the new file holds the state of things")
    client.infer("toy", FRAME)
    wait_until(lambda: b'["request"' in file.read_bytes().partition(b'["begun"')[2], what="and what came then")
    assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0
    assert older.stat().st_size + file.stat().st_size < 2 << 20
    both = recording.read(file)
    older.unlink()
    alone = recording.read(file)
    assert both.began.part == alone.began.part
    assert len(both.requests) > 1000 > len(alone.requests)
    assert (both.unreadable, alone.unreadable) == (0, 0)
    running.stop()
    assert recording.read(file).began.part == both.began.part


@pytest.mark.slow
def test_a_file_that_cannot_be_written_costs_no_request(broker: Callable[..., Running]) -> None:
    running = broker(start=False, record="folder/requests")
    (running.folder / "folder").write_text("no folder")
    running.start()
    client = running.client()
    for _ in range(20):
        client.infer("toy", FRAME)
    wait_until(lambda: client.record()["problem"], what="the broker knows")
    assert running.log().count("cannot be written, it goes on in memory alone") == 1
    assert len(parsed(client).requests) == 20
    assert client.record()["dropped"] > 0


def test_the_file_goes_on_when_it_can_be_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_file, "RETRY_S", 0.0)
    file = record_file.RecordFile(tmp_path / "away" / "requests", 1 << 20)
    (tmp_path / "away").write_text("no folder")
    assert not file.write([b"lost\n"])
    assert file.problem
    (tmp_path / "away").unlink()
    assert file.write([b"kept\n"])
    file.close()
    assert (file.problem, (tmp_path / "away" / "requests").read_bytes()) == ("", b"kept\n")


def test_a_torn_line_is_ended_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "requests"
    path.write_bytes(b'["begun",1,"torn')
    file = record_file.RecordFile(path, 1 << 20)
    file.write([b"next\n"])
    file.close()
    assert path.read_bytes().split(b"\n")[1] == b"next"


@pytest.mark.slow
def test_a_new_configuration_begins_a_new_part(broker: Callable[..., Running]) -> None:
    running = broker()
    client = running.client()
    client.record("start")
    client.infer("toy", FRAME)
    running.config_path.write_text(running.config_path.read_text().replace("[broker]", "[broker]\nidle_seconds = 77"))
    client.reload()
    wait_until(lambda: any("77.0" in line for line in fetched(client)), what="the new part")
    client.infer("toy", FRAME)
    found = parsed(client)
    assert (found.parts, found.began.broker.idle_seconds, len(found.requests)) == (2, 77.0, 1)


@pytest.mark.slow
def test_the_commands_record_fetch_and_advise(broker: Callable[..., Running], run: Run, tmp_path: Path) -> None:
    running = broker()
    at = "--endpoint", running.endpoint
    assert "not recording" in run("record", "status", *at)[1]
    assert "recording since" in run("record", "start", *at)[1]
    for _ in range(5):
        running.client().infer("toy", FRAME)
    status, out, _ = run("record", "status", "--json", *at)
    assert (status, json.loads(out)["requests"]) == (0, 5)
    file = tmp_path / "requests"
    assert "wrote 7 lines" in run("record", "fetch", file, *at)[1]  # the state of things, and a load
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "not recording, 5 requests" in run("record", "stop", *at)[1]
    for given in ((file,), at):
        status, out, err = run("advise", *given, "--budget", "2")
        assert (status, err) == (0, "")
        assert "5 requests for 1 models" in out
        assert "budget 2 GB" in out
    status, _, err = run("record", "fetch", tmp_path / "away" / "requests", *at)
    assert (status, "cannot be written" in err) == (LOST, True)


def test_what_is_no_question_is_refused(shared_broker: Running) -> None:
    with Client(shared_broker.endpoint, timeout=20.0) as client, pytest.raises(InvalidInput, match="start, stop"):
        client.record("erase")
