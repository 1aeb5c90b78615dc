"""The smallest budget for a wish, what is suggested, and how it is said."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.advise.recordings import asked, begun, lines, part, traffic, written
from tests.support import Running
from zoo import InvalidInput, recording
from zoo.advise import advice
from zoo.advise.advice import Advisor, in_gb
from zoo.advise.change import Change
from zoo.cli.output import REFUSED, USAGE
from zoo.config.schema import MB_PER_GB
from zoo.errors import ZooError

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 8))])
@pytest.mark.parametrize("wish", [0.1, 0.7])
def test_the_smallest_budget_meets_the_wish_and_a_smaller_one_does_not(seed: int, wish: float) -> None:
    advisor = Advisor(part(*traffic(seed, requests=100)))
    found = advisor.smallest(wish, Change())
    budgets = [one.budget_mb for one in found.tried]
    assert budgets == sorted({*budgets})
    assert all(one.met == (one.figures.percentile(0.95) <= wish) for one in found.tried)
    if found.budget_mb is None:
        assert not found.tried[-1].met
        return
    said_gb = in_gb(found.budget_mb)
    again = advisor.replay(Change(budget_mb=said_gb * MB_PER_GB)).figures
    assert again.percentile(0.95) <= wish
    assert all(one.met for one in found.tried if one.budget_mb >= found.budget_mb)
    below = [one for one in found.tried if one.budget_mb < found.budget_mb]
    if below:
        assert not below[-1].met
        assert found.budget_mb - below[-1].budget_mb <= max(5.0, 0.03 * found.budget_mb)
    assert found.smaller == [one.budget_mb for one in below if one.met]


def test_a_wish_that_no_budget_meets_gets_none() -> None:
    """The first load of each of the models is a large part of so few requests."""
    found = Advisor(part(*traffic(1, requests=20))).smallest(0.001, Change())
    assert found.budget_mb is None
    with pytest.raises(InvalidInput, match="positive"):
        Advisor(part(*traffic(1, requests=20))).smallest(math.nan, Change())


def test_what_is_suggested_can_be_replayed() -> None:
    advisor = Advisor(part(*traffic(2)))
    labels = {change.label for change in advisor.suggestions() if advisor.replay(change).figures.requests == 150}
    assert {'eviction = "adaptive"', "prefetch = true"} <= labels
    assert sum(label.startswith("budget") for label in labels) >= 2


@pytest.mark.slow
def test_replays_in_several_processes_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    advisor = Advisor(part(*traffic(2)))
    changes = [Change("one", budget_mb=1000.0), Change("two", broker={"eviction": "adaptive"})]
    alone = [row.figures.summary() for row in advisor.replay_all(changes)]
    monkeypatch.setattr(advice, "MANY", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert [row.figures.summary() for row in advisor.replay_all(changes)] == alone
    with pytest.raises(InvalidInput, match="no model"):
        advisor.replay_all([Change(pins=("nothing",)), *changes])


def test_the_agreement_compares_answers_one_by_one() -> None:
    close = part(begun({"a": 10.0}, 100.0), *[asked(float(i), "a", took=0.01) for i in range(20)])
    assert Advisor(close).agreement()["near"] >= 0.95  # all but the first, which the replay has to load the model for
    far = part(begun({"a": 10.0}, 100.0), *[asked(float(i), "a", took=0.9, sent_s=0.8) for i in range(20)])
    assert Advisor(far).agreement()["near"] == 0.0


# ---------------------------------------------------------------- the command


def test_it_says_what_another_configuration_would_have_done(run: Run, tmp_path: Path) -> None:
    file, picture = written(tmp_path, *traffic(3)), tmp_path / "advice.png"
    status, out, err = run("advise", file, "--p95", "0.7", "--pin", "m0", "--policy", "adaptive", "-o", picture)
    assert status == 0, err
    assert "150 requests for 6 models" in out
    assert "a replay of the present configuration has" in out
    assert "eviction = adaptive, m0 pinned" in out
    assert "is the smallest budget found" in out
    with Image.open(picture) as drawn:
        assert drawn.width > 500
        assert len(drawn.getcolors(1 << 20) or ()) > 5


def test_as_json_it_is_one_document(run: Run, tmp_path: Path) -> None:
    file = written(tmp_path, *traffic(3))
    status, out, _ = run("advise", file, "--budget", "1", "--budget", "2.5", "--p95", "0.7", "--json")
    found = json.loads(out)
    assert status == 0
    assert [row["label"] for row in found["rows"]] == ["as recorded", "as it is", "budget 1 GB", "budget 2.5 GB"]
    assert found["rows"][2]["loads"] > found["rows"][3]["loads"]
    assert 0.7 < found["recommended"]["vram_budget_gb"] < 3.1
    assert found["agreement"]["near"] <= 1.0


@pytest.mark.parametrize(
    ("arguments", "status", "what"),
    [
        (["nothing.here"], REFUSED, "nothing.here cannot be read"),
        (["FILE", "--pin", "unheard-of"], REFUSED, "no model 'unheard-of'"),
        (["FILE", "--p95", "0"], USAGE, "not a positive number of seconds"),
        (["FILE", "--budget", "-1"], USAGE, "not a positive number of gigabytes"),
        (["FILE", "--device", "cuda:1"], USAGE, "expected NAME=GB"),
        (["FILE", "--device", "cuda:0=1"], REFUSED, "a device cuda:0 already"),
        (["FILE", "--priority", "m0=FIRST"], USAGE, "expected MODEL=PRIORITY"),
        (["FILE", "--set", "colour=1"], REFUSED, "a replay knows the keys"),
        (["FILE", "--set", "idle_seconds=-3"], REFUSED, "idle_seconds"),
        (["FILE", "-o", "advice.txt"], USAGE, "name a picture file"),
        (["--endpoint", "ipc:///nowhere/zoo", "--timeout", "0.1"], 3, "no broker"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    run: Run, tmp_path: Path, arguments: list[str], status: int, what: str
) -> None:
    file = written(tmp_path, *traffic(3, requests=5))
    found, out, err = run("advise", *[str(file) if word == "FILE" else word for word in arguments])
    assert (found, out) == (status, "")
    assert what in err
    assert len(err.splitlines()) == 1


def test_a_broker_that_has_recorded_nothing_says_so(run: Run, shared_broker: Running) -> None:
    status, _, err = run("advise", "--endpoint", shared_broker.endpoint)
    assert status == REFUSED
    assert "zoo record start" in err
    assert run("record", "fetch", "--endpoint", shared_broker.endpoint)[0] == USAGE
    assert run("record", "start", "x", "--endpoint", shared_broker.endpoint)[0] == USAGE


# ---------------------------------------------------------------- files of others


def test_torn_lines_are_left_out_and_counted() -> None:
    said = lines(*traffic(1))
    torn = [*said[:50], said[50][:17], *said[51:]]
    found = recording.parse(torn, "a test")
    assert (len(found.requests), found.unreadable) == (149, 1)


@pytest.mark.parametrize(
    "data",
    [b"", b"\n\n", b"hello", b"[]", b'["begun"]', b"\x00" * 100, b"[" * 100_000, b'["request",1,2,3]\n' * 20],
    ids=["empty", "blank", "prose", "array", "short", "zeros", "deep", "no beginning"],
)
def test_what_is_no_recording_is_refused(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "recording"
    file.write_bytes(data)
    with pytest.raises(InvalidInput, match=r"is no recording|no request"):
        recording.read(file)


def test_a_pipe_or_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        recording.read(tmp_path)


def test_a_recording_of_a_later_release_is_refused() -> None:
    head = begun({"a": 1.0}, 10.0)
    head.version = 2
    with pytest.raises(InvalidInput, match="version 2"):
        part(head, asked(0.0, "a"))


def test_any_file_is_read_and_replayed_or_refused() -> None:
    """Lines of a recording with bytes changed, lost and doubled."""
    import random

    draw = random.Random(5)
    alphabet = b'0123456789.,-[]{}"eE\\abz\x00\xff'
    replays = 0
    for _ in range(300):
        said = lines(*traffic(draw.randrange(10), requests=12, models=3))
        for _ in range(draw.randrange(1, 4)):
            i = draw.randrange(len(said))
            line = bytearray(said[i])
            for _ in range(draw.randrange(1, 4)):
                at = draw.randrange(len(line)) if line else 0
                match draw.randrange(3):
                    case 0:
                        line[at : at + 1] = bytes([draw.choice(alphabet)])
                    case 1:
                        del line[at : at + draw.randrange(1, 9)]
                    case 2:
                        line[at:at] = line[at : at + draw.randrange(1, 9)]
            said[i] = bytes(line)
        try:
            Advisor(recording.parse(said, "a test"))
            replays += 1
        except ZooError:
            pass
    assert replays > 50
