"""The runner of `make bench-peers`, with the peers that need no packages of their own, and with bad ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers import contenders, job, report, run, servers, work
from tests.support import wait_until

BAD = run.Peer("", "tests.bad_peer", ("wrong", "never", "hangs"))


def test_floors_and_pipe_are_measured_and_their_answers_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    clients = run.PEERS["floor"].clients[::3]
    monkeypatch.setitem(run.PEERS, "floor", run.PEERS["floor"]._replace(clients=clients))
    figures = run.measure(["floor", "pickled pipe"], ["six", "depth"], rounds=1, share=0.1)
    assert not figures["failed"]
    assert not figures["never"]
    names = {*(run.title("floor", client) for client in clients), "pickled pipe"}
    assert all(set(found) == names for found in figures["workloads"].values())
    assert all(value > 0 for found in figures["workloads"].values() for of in found.values() for value in of["rounds"])
    assert figures["at_rest"]["pickled pipe"]["processes"] == 1 + work.PROCESSES
    figures["versions"] = {}
    assert "pickled pipe" in report.markdown(figures)
    assert "1080p depth map" in report.text(figures)


def test_what_misbehaves_is_reported_and_ended_to_the_last_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(run.PEERS, "bad", BAD)
    monkeypatch.setattr(run, "ANSWER_S", 0.3)
    with servers.adopting():
        bad = run.Running("bad", tmp_path, {})
        assert run.in_rounds([bad], "bytes", 1, 0.1) == {}
        wait_until((tmp_path / "apart").exists)
        bad.end()
    assert "bytes" in bad.failed["wrong"]
    assert "no answer within" in bad.failed["hangs"]
    assert bad.never == {("never", "bytes"): "it is not made for it"}
    assert not Path(f"/proc/{(tmp_path / 'apart').read_text()}").exists()


def test_what_is_not_installed_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(run.PEERS, "missing", run.Peer("not-there", "tests.bad_peer", ("wrong",)))
    absent = run.Running("missing", tmp_path, {})
    assert "make bench-peers" in absent.failed["wrong"]
    absent.end()


@pytest.mark.parametrize("model", [name for name in work.MODELS if name != "detector"])
def test_a_wrong_answer_is_seen(model: str, tmp_path: Path) -> None:
    function, given = work.MODELS[model].load(), work.example(model).copy()
    answer = function(given).copy()
    assert work.wrong(model, given, answer, tmp_path) is None
    work.mark(given, 1 + int(given.reshape(-1)[0]))
    assert work.wrong(model, given, answer, tmp_path), "the answer to another request"
    assert work.wrong(model, given, np.zeros_like(answer), tmp_path)


def test_a_ratio_is_that_within_a_round() -> None:
    assert report.ratio_of([10, 20, 400], [1, 2, 4], many=False) == 10
    assert report.ratio_of([10, 20, 400], [100, 200, 400], many=True) == 10


def test_models_in_one_process_stay_within_the_budget_and_the_longest_unused_goes(tmp_path: Path) -> None:
    """What the zoo is compared with has to be right."""
    for number, name in enumerate("abc"):
        job.write(tmp_path, name, 1, number)
    lru = contenders.Lru(tmp_path, dict.fromkeys("abc", 1.0), 2.0)
    frame = work.picture()
    assert [round(float(lru.infer(name, frame)[1])) for name in "abac"] == [0, 1, 0, 2]
    for name in "abc":
        (tmp_path / f"{name}.weights").unlink()
    assert [round(float(lru.infer(name, frame)[1])) for name in "ca"] == [2, 0], "they are loaded"
    with pytest.raises(FileNotFoundError):
        lru.infer("b", frame)
    with pytest.raises(FileNotFoundError):
        lru.infer("b", frame)  # and does not wait for the load that failed
    assert contenders.limits({"a": 4, "b": 2, "c": 1, "d": 1}, 6) == (2, 3)
