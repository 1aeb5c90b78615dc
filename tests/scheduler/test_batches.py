"""Waiting for company: `max_delay_ms`."""

from __future__ import annotations

from typing import Any

import pytest

from broker.scheduler.state import State
from tests.scheduler.world import World, model


def waiting(delay_ms: float = 100.0, max_batch: int = 4, **how: Any) -> World:
    w = World([model("a", max_delay_ms=delay_ms)], 512, max_batch=max_batch, **how)
    w.load("a")
    w.actions.clear()
    return w


def test_by_default_no_request_waits_for_company() -> None:
    w = waiting(0.0)
    first = w.ask("a")
    assert w.batches() == [[first]]


def test_the_first_waits_for_others_as_long_as_it_was_told_to() -> None:
    w = waiting(100.0)
    asked = [w.ask("a")]
    assert w.s.next_wakeup() == pytest.approx(w.now + 0.1, abs=1e-6)
    w.wait(0.05)
    asked.append(w.ask("a"))
    w.wait(0.049)
    assert w.batches() == []
    w.wait(0.002)
    assert w.batches() == [asked]


def test_a_full_batch_goes_at_once() -> None:
    w = waiting(100.0, max_batch=3)
    asked = [w.ask("a") for _ in range(3)]
    assert w.batches() == [asked]


def test_an_adapter_that_takes_one_at_a_time_waits_for_no_other() -> None:
    w = waiting(100.0, max_batch=1)
    first = w.ask("a")
    assert w.batches() == [[first]]


def test_company_is_never_waited_for_past_a_deadline() -> None:
    w = waiting(10_000.0)
    w.ask("a", timeout=500.0)
    w.wait(1.0)
    hurried = w.ask("a", timeout=2.0)
    w.wait(1.01)
    assert [hurried in batch for batch in w.batches()] == [True], "with half of its time left"
    w.settle()
    assert w.code(hurried) == "ok"


@pytest.mark.parametrize("takes", [0.02, 0.3])
def test_the_time_that_the_work_takes_is_left(takes: float) -> None:
    w = waiting(10_000.0)
    for _ in range(2):
        w.ask("a", timeout=4 * takes)
        w.wait(2.5 * takes)
        w.now += takes
        w.step_any(set())
    assert [w.code(n) for n in w.questions] == ["ok"] * len(w.questions)


def test_what_came_while_the_worker_was_busy_has_waited_already() -> None:
    w = waiting(5.0)
    for _ in range(2):
        w.ask("a")
        w.wait(0.006)
    assert [len(batch) for batch in w.batches()] == [1, 1], "one runs, one lies ahead"
    late = [w.ask("a"), w.ask("a")]
    w.wait(0.006)
    w.done("a")
    assert w.batches()[-1] == late


def test_who_waits_for_company_keeps_no_request_waiting_for_room_longer_than_that() -> None:
    w = World([model("a", 400, max_delay_ms=100.0), model("b", 400)], 512, max_batch=4, patience_seconds=0.0)
    w.load("a")
    w.ask("a")
    other = w.ask("b", priority=0)
    w.wait(5.0)
    w.settle()
    w.wait(5.0)
    w.settle()
    assert w.code(other) == "ok"


def test_draining_and_stopping_wait_for_no_other() -> None:
    w = waiting(5_000.0)
    first = w.ask("a")
    w.unload("a")
    assert w.batches() == [[first]]
    w = waiting(5_000.0)
    first = w.ask("a")
    w.shut_down()
    assert w.batches() == [[first]]


def test_a_withdrawn_request_takes_its_timer_along() -> None:
    w = waiting(100.0)
    w.withdraw(w.ask("a"))
    w.wait(1.0)
    assert w.batches() == []
    asked = w.ask("a")
    w.wait(0.05)
    assert w.batches() == []
    w.wait(0.06)
    assert w.batches() == [[asked]]


def test_the_delay_can_change_while_the_broker_runs() -> None:
    w = waiting(5_000.0)
    first = w.ask("a")
    w.reconfigure([model("a")])
    assert w.batches() == [[first]]


def test_a_model_whose_company_came_too_late_may_go_at_once() -> None:
    """Found by chance: the timer of its batch refused the last request, and the model was not seen to be idle."""
    w = World([model("a", 300, max_delay_ms=20.0)], 1000.0, max_batch=2)
    w.load("a")
    late = w.ask("a", timeout=0.015)
    w.reconfigure(None, 200.0)
    assert w.state("a") is State.LOADED, "a request waits for it"
    w.now += 1.0
    w.tick()
    assert w.code(late) == "deadline_exceeded"
    assert w.state("a") is State.EVICTING
