"""Recorded requests through the scheduler again: what is recorded comes out, and a change does what it would do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.advise.recordings import asked, begun, part, traffic
from tests.support import Running, toy
from zoo import InvalidInput, recording
from zoo.advise.advice import Advisor
from zoo.advise.change import Change
from zoo.cli.recordings import fetched
from zoo.config.schema import ModelPriority
from zoo.recording import RecordedEnd, RecordedLoad, RecordedPin, RecordedRelease

TWO = {"a": 600.0, "b": 600.0}  # of which 1,000 MB hold one


def turns(*names: str, **keys: Any) -> list[Any]:
    """Requests for these, ten seconds apart."""
    return [asked(10.0 * i, name, **keys) for i, name in enumerate(names)]


def replayed(head: Any, said: list[Any], **change: Any) -> dict[str, Any]:
    return Advisor(part(head, *said)).replay(Change(**change)).figures.summary()


@pytest.mark.slow
def test_a_replay_agrees_with_the_broker_that_was_recorded(broker: Callable[..., Running]) -> None:
    """Three models of which two fit, asked for in turn: each request needs a load, in truth and in the replay."""
    models = [toy(name, vram_mb=40, options={"load_seconds": 0.1}) for name in "abc"]
    client = broker(models, vram_budget_gb=0.1).client()
    client.record("start")
    for i in range(12):
        client.infer("abc"[i % 3], np.zeros((8, 8, 3), np.uint8), do="sleep", seconds=0.01)
    advisor = Advisor(recording.parse([line.encode() for line in fetched(client)], "the broker's"))
    was, now = advisor.recorded.figures, advisor.present.figures
    assert was.loads == 12
    assert abs(now.loads - 12) <= 2
    assert (was.requests, now.requests, now.missed, now.refused) == (12, 12, 0, 0)
    enough = advisor.replay(Change(budget_mb=200.0)).figures
    assert enough.loads == 3
    assert enough.waiting_s < now.waiting_s


def test_what_was_loaded_is_loaded_at_the_beginning() -> None:
    head = begun(TWO, 2000.0)
    head.models[0] = type(head.models[0])(head.models[0].config, loaded_on=["cuda:0"], unused_s=3.0)
    assert replayed(head, turns("a", "a"))["loads"] == 0
    assert replayed(head, turns("a", "b"))["loads"] == 1


def test_loads_take_what_they_took() -> None:
    loads = [RecordedLoad(0.0, "a", 1, 2.0), RecordedLoad(20.0, "a", 2, 4.0)]
    found = replayed(begun(TWO, 1000.0), [*turns("a", "b", "a"), *loads])
    assert found["loads"] == 3
    assert found["load_s"] == pytest.approx(2.0 + 0.9 + 4.0)  # b was never seen loading: 0.3 s + 1 s per 1,000 MB


def test_a_larger_budget_a_second_device_and_a_pin_save_loads() -> None:
    head, said = begun(TWO, 1000.0), turns(*"abab")
    assert replayed(head, said)["loads"] == 4
    assert replayed(head, said, budget_mb=1200.0)["loads"] == 2
    assert replayed(head, said, devices={"cuda:1": 1000.0})["loads"] == 2
    pinned = replayed(head, said, pins=("a",))
    assert (pinned["loads"], pinned["missed"]) == (1, 2)
    assert pinned["p95_s"] is None


def test_a_copy_in_host_memory_shortens_the_loads_after_the_first() -> None:
    head, said = begun(TWO, 1000.0), turns(*"abab")
    found = replayed(head, said, broker={"host_cache_mb": 1200.0})
    assert found["load_s"] == pytest.approx(2 * 0.9 * (1 + 1 / 7), abs=0.001)
    seen = [*said, RecordedLoad(5.0, "a", 9, 0.2, True)]
    assert replayed(head, seen, broker={"host_cache_mb": 600.0})["load_s"] > found["load_s"]  # it holds one of the two


def test_a_start_without_a_process_that_waits_takes_longer() -> None:
    head, said = begun(TWO, 1000.0), turns(*"ab")
    more = replayed(head, said, broker={"standby": 0})["load_s"] - replayed(head, said)["load_s"]
    assert more == pytest.approx(2 * 0.03)


def test_memory_comes_back_as_fast_as_it_did() -> None:
    """Each eviction was followed by a load 0.4 s later."""
    said = turns(*"ababababab")
    for i in range(10):
        said += [RecordedEnd(10.0 * i, "ba"[i % 2], "evicted"), RecordedLoad(10.0 * i + 1.4, "ab"[i % 2], i, 1.0)]
    advisor = Advisor(part(begun(TWO, 1000.0), *said))
    assert advisor.times.kill_s == pytest.approx(0.4)
    assert advisor.present.figures.took[5] == pytest.approx(0.4 + 1.0 + 0.01)


def test_a_lease_is_held_as_long_as_it_was() -> None:
    lease = asked(0.0, "a", kind="lease")
    said = [lease, asked(10.0, "b", deadline_s=100.0), RecordedRelease(50.0, "a", 1)]
    found = Advisor(part(begun(TWO, 1000.0), *said)).present.figures
    assert 40.0 < found.took[1] < 45.0
    forever = Advisor(part(begun(TWO, 1000.0), *said[:2])).present.figures
    assert forever.missed == 1


def test_pins_and_withdrawals_come_when_they_came() -> None:
    said = [
        asked(0.0, "a"),
        RecordedPin(5.0, "a", True),
        asked(10.0, "b", deadline_s=1.0),
        RecordedPin(20.0, "a", False),
    ]
    assert replayed(begun(TWO, 1000.0), [*said, asked(30.0, "b")])["missed"] == 1
    gone = replayed(begun(TWO, 1000.0), [asked(0.0, "a", outcome="cancelled", took=0.2)])
    assert (gone["requests"], gone["loads"]) == (0, 1)


def test_priorities_and_policies_are_those_of_the_scheduler() -> None:
    """`b` may not evict `a`, which is CRITICAL now."""
    head, said = begun(TWO, 1000.0), turns(*"ab")
    assert replayed(head, said, priorities={"a": ModelPriority.CRITICAL})["missed"] == 1
    advisor = Advisor(part(*traffic(1)))
    adaptive = advisor.replay(Change(broker={"eviction": "adaptive"})).figures
    assert adaptive.load_s != advisor.present.figures.load_s


def test_a_batch_takes_as_long_as_batches_took() -> None:
    """Four at once took twice what one took: a third of one's time for each further request."""
    alone = [asked(10.0 * i, "a", took=0.004, batch=i + 1) for i in range(5)]
    four = [asked(100.0, "a", took=0.008, batch=100) for _ in range(4)]
    advisor = Advisor(part(begun(TWO, 1000.0), *alone, *four, RecordedLoad(0.0, "a", 1, 1.0, max_batch=4)))
    assert advisor.times.in_batch["a"] == pytest.approx(1 / 3)
    assert advisor.times.own_s == pytest.approx([0.004] * 9)
    assert advisor.present.figures.took[8] == pytest.approx(
        0.004 * (1 + 1 + 4 / 3)
    )  # one runs, one lies ahead, then two


def test_what_was_refused_for_its_own_sake_is_left_out() -> None:
    said = [asked(0.0, "a", outcome="model_unavailable", batch=0), asked(1.0, "a")]
    advisor = Advisor(part(begun(TWO, 1000.0), *said))
    assert (advisor.recorded.figures.requests, advisor.present.figures.requests) == (1, 1)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"pins": ("c",)}, "no model 'c'"),
        ({"priorities": {"c": ModelPriority.LOW}}, "no model 'c'"),
        ({"devices": {"cuda:0": 1.0}}, "a device cuda:0 already"),
        ({"broker": {"standby": 1000}}, "standby"),
        ({"broker": {"eviction": "mine"}}, "eviction"),
        ({"broker": {"endpoint": "ipc:///x"}}, "a replay knows the keys"),
    ],
)
def test_a_change_of_what_is_not_there_is_refused(change: dict[str, Any], what: str) -> None:
    with pytest.raises(InvalidInput, match=what):
        replayed(begun(TWO, 1000.0), turns("a"), **change)
