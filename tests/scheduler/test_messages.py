"""What callers are told, word for word: the figures in a message are its use."""

from __future__ import annotations

import math

import pytest

from broker.scheduler.events import Answer, Asked, Kind, Refuse, WorkerLoadFailed
from broker.scheduler.state import State
from tests.scheduler.world import World, model


def message(w: World, request: int) -> str:
    answer = w.answer(request)
    assert isinstance(answer, Refuse), answer
    return answer.message


def test_a_deadline_that_passes_says_after_how_long_and_what_was_going_on() -> None:
    w = World([model("a")], 512)
    loading = w.ask("a", timeout=2.0)
    w.wait(3)
    assert message(w, loading) == (
        "a: the deadline passed after 2.00 s, while the model was loading (for 2.0 s so far)"
    )
    w.settle()
    running, _ahead = w.ask("a", timeout=2.0), w.ask("a")
    queued = [w.ask("a", timeout=1.0 + i / 8) for i in range(3)]
    w.wait(1.0)
    assert message(w, queued[0]) == "a: the deadline passed after 1.00 s, in the queue behind 2 others"
    w.wait(2)
    assert message(w, running) == "a: the deadline passed after 2.00 s, while it was running"
    assert w.answer(running).held


def test_a_deadline_that_passes_while_the_model_waits_for_room_says_for_what() -> None:
    w = World([model("a", 300), model("b", 300)], 512, patience_seconds=1000.0)
    w.load("a")
    w.lease("a")
    waiting = w.ask("b", timeout=2.0)
    w.wait(3)
    assert message(w, waiting).startswith("b: the deadline passed after 2.00 s, while the model waited for room: ")
    assert "1 lease" in message(w, waiting)


def test_a_deadline_that_passes_while_room_is_coming_back_says_so() -> None:
    w = World([model("a", 300), model("b", 300)], 512)
    w.load("a")
    waiting = w.ask("b", timeout=2.0)
    assert w.state("a") is State.EVICTING
    w.wait(3)
    expected = "b: the deadline passed after 2.00 s, while the model waited for room: memory is coming back"
    assert message(w, waiting) == expected


def test_a_deadline_that_passes_while_a_process_may_not_grow_yet_says_so() -> None:
    w = World([model("a", 300), model("busy", 300)], 700, footprint="measured")
    w.load("a", "busy")
    for _ in range(3):
        w.ask("busy")
    asked = w.ask("a", timeout=5.0)
    w.runs_out("a", used_mb=280, asked_mb=200)
    w.wait(6)
    assert message(w, asked).startswith("a: the deadline passed after 5.00 s, while it waited for more memory: ")
    assert "busy" in message(w, asked)


def test_an_unload_whose_deadline_passes_says_what_keeps_the_model() -> None:
    w = World([model("a")], 512)
    w.load("a")
    w.ask("a")
    unload = w.unload("a", timeout=1.0)
    w.wait(2)
    assert message(w, unload) == (
        "a: the deadline passed after 1.00 s, while it was being unloaded (a request in flight)"
    )


def test_a_request_that_is_too_late_when_its_turn_comes_says_so() -> None:
    w = World([model("a")], 512)
    w.load("a")
    for _ in range(3):  # one more lies ahead
        w.ask("a", client=b"first")
    late, others = w.ask("a", client=b"b", timeout=1.0), [w.ask("a", client=b"c") for _ in range(2)]
    w.now += 2.0
    w.done("a")
    w.done("a")
    assert message(w, late) == "a: the deadline passed after 2.00 s, in the queue before 2 others"
    w.settle()
    assert [w.code(n) for n in others] == ["ok"] * 2


def test_a_request_whose_deadline_comes_before_an_answer_can_is_told_how_long_that_takes() -> None:
    w = World([model("a")], 512)
    w.load("a")
    w.ask("a")
    w.now += 1.25
    w.done("a")
    soon = w.ask("a", timeout=0.5)
    assert w.code(soon) == "deadline_exceeded"
    assert message(w, soon) == (
        "a: 0.50 s are left until the deadline, and an answer takes 1.25 s at least: give it more time"
    )


def test_a_lease_whose_deadline_passed_while_the_model_was_getting_ready_is_not_granted() -> None:
    w = World([model("a")], 512)
    late = w.lease("a", timeout=1.0)
    w.now += 1.0
    w.ready("a")
    assert message(w, late) == "a: the deadline passed after 1.00 s, while the model was getting ready"
    assert not w.leases


def test_shutting_down_is_told_with_when_to_try_again() -> None:
    w = World([model("a")], 512)
    w.load("a")
    running, lies_ahead, unload = w.ask("a"), w.ask("a"), w.unload("a")
    w.shut_down(1.0)
    late = w.ask("a")
    for request in (unload, late):
        assert w.answer(request) == Refuse(request, "broker_unreachable", "the broker is shutting down", True, 1.0)
    w.wait(2.0)
    for request in (running, lies_ahead):
        assert w.answer(request) == Refuse(
            request, "broker_unreachable", "the broker is shutting down", True, 1.0, held=True
        )


def test_an_unload_of_a_model_in_use_says_who_uses_it() -> None:
    w = World([model("a", pinned=True)], 512)
    w.load("a")
    w.lease("a")
    w.lease("a")
    refused = w.unload("a")
    assert w.answer(refused) == Refuse(refused, "model_in_use", "a is in use (2 leases, pinned); not unloaded")


def test_an_unload_that_turns_out_to_be_of_a_model_in_use_is_told_to_the_story_and_counts_as_an_error() -> None:
    w = World([model("a")], 512)
    w.load("a")
    w.ask("a")
    refused = w.unload("a")
    w.pin("a")
    assert message(w, refused) == "a is in use (pinned, a request in flight); not unloaded"
    assert any(f"refused request {refused}: a is in use" in line for line in w.story("a"))
    assert w.model("a").errors == {"model_in_use": 1}


def test_a_model_that_failed_to_load_says_why_and_when_the_next_try_is_possible() -> None:
    w = World([model("a")], 512)
    first = w.ask("a")
    w.load_fails("a", "no such file")
    assert w.answer(first) == Refuse(first, "load_failed", "a could not be loaded: no such file", True, 1.0)
    assert w.s.trouble("a", w.now) == "the last load failed (no such file); the next try is possible in 1 s"
    w.settle()
    w.now += 0.25
    again = w.ask("a")
    text = "a failed to load (no such file); the next try is possible in 0.8 s"
    assert w.answer(again) == Refuse(again, "load_failed", text, True, 0.75)
    w.now += 0.75 - 2**-6
    last = w.answer(w.ask("a"))
    assert isinstance(last, Refuse)
    assert last.message == "a failed to load (no such file); the next try is possible in 0.1 s", "not in 0.0 s"
    assert w.s.trouble("a", w.now) == "the last load failed (no such file); the next try is possible in 1 s"
    w.now += 2**-6
    assert (
        w.s.trouble("a", w.now) == "the last load failed (no such file); the next try is possible with the next request"
    )
    assert w.code(w.ask("a")) is None, "it is tried when its time has come, to the instant"


def test_a_load_that_failed_for_good_is_not_said_to_be_worth_another_try() -> None:
    w = World([model("a")], 512)
    first = w.ask("a")
    w.emit(WorkerLoadFailed(w.process("a").worker, "load_failed", "no such adapter", retryable=False))
    assert w.answer(first) == Refuse(first, "load_failed", "a could not be loaded: no such adapter", False, 1.0)
    w.settle()
    again = w.ask("a")
    text = "a failed to load (no such adapter); the next try is possible in 1.0 s"
    assert w.answer(again) == Refuse(again, "load_failed", text, False, 1.0)
    assert w.s.trouble("a", w.now) == (
        "the last load failed (no such adapter); the next try is possible in 1 s, though nothing but a change of the "
        "model or its files will help"
    )


def test_a_code_that_is_none_of_ours_becomes_one_of_ours() -> None:
    w = World([model("a")], 512)
    loading = w.ask("a")
    w.load_fails("a", code="made_up")
    assert w.code(loading) == "load_failed"
    w = World([model("a")], 512)
    w.load("a")
    known, unknown = w.ask("a"), w.ask("a")
    w.done("a", ("invalid_input", "no picture"))
    w.done("a", ("made_up", "hm"))
    assert (w.code(known), w.code(unknown)) == ("invalid_input", "inference_failed")
    assert (message(w, known), message(w, unknown)) == ("no picture", "hm")
    assert w.model("a").errors == {"invalid_input": 1, "inference_failed": 1}


def test_trouble_is_told_of_models_that_would_need_a_load_and_cannot_have_it() -> None:
    w = World([model("a", 300), model("large", 2000), model("off", 3000, enabled=False)], 512)
    w.load("a")
    assert w.s.trouble("a", w.now) is None
    assert w.s.trouble("off", w.now) is None
    assert w.s.trouble("large", w.now) == "large needs 2000 MB, the whole budget is 512 MB"
    asked = w.ask("large")
    assert w.answer(asked) == Refuse(
        asked, "model_too_large", "large needs 2000 MB, the whole budget is 512 MB; nothing was evicted"
    )
    w.cleanup()
    w.settle()
    assert w.s.trouble("a", w.now) is None


def test_a_model_with_a_device_of_its_own_is_measured_against_that_one() -> None:
    w = World([model("a", 400, device="gpu1"), model("b", 400)], 512, 300)
    assert message(w, w.ask("a")) == "a needs 400 MB, the whole budget of gpu1 is 300 MB; nothing was evicted"
    asked = w.ask("b")
    w.settle()
    assert w.code(asked) == "ok"


def test_a_model_as_large_as_the_budget_fits_to_the_last_megabyte() -> None:
    w = World([model("a", 512), model("b", 513)], 512)
    a, b = w.ask("a"), w.ask("b")
    w.settle()
    assert (w.code(a), w.code(b)) == ("ok", "model_too_large")


def test_a_name_that_is_almost_one_of_ours_is_answered_with_that_one() -> None:
    w = World([model("detector"), model("zz")], 512)
    assert w.s.no_such_model("detecter") == "there is no model 'detecter'; did you mean 'detector'?"
    assert w.s.no_such_model("qqqq") == "there is no model 'qqqq'; `zoo ls` lists the models"
    for long in (200, 201):
        text = w.s.no_such_model("x" * long)
        assert text == f"there is no model {'x' * 200!r}{'…' if long > 200 else ''}; `zoo ls` lists the models"
    w.ask("detecter")
    w.ask("detector", timeout=-1.0)
    assert [line.model for line in w.s.explain() if line.kind == "refused"] == ["", "detector"]


def test_a_request_that_comes_too_late_is_refused_to_the_instant() -> None:
    w = World([model("a")], 512)
    for _ in range(2):  # cold, then warm
        late = w.ask("a", timeout=0.0)
        text = "the request for a had no time left when it came in"
        assert w.answer(late) == Refuse(late, "deadline_exceeded", text, True)
        w.load("a")


def test_a_disabled_model_says_where_that_is_written() -> None:
    w = World([model("a", enabled=False)], 512)
    asked = w.ask("a")
    assert w.answer(asked) == Refuse(asked, "model_disabled", "a has enabled = false in config.toml")


def test_a_client_with_as_many_leases_as_it_may_have_is_told_how_many_those_are() -> None:
    w = World([model("a"), model("b")], 700, max_leases_per_client=2)
    w.load("a")
    w.lease("a")
    w.ask("b")
    waiting = w.lease("b")
    assert w.code(waiting) is None
    text = "this client holds 2 leases already (max_leases_per_client = 2); release some"
    assert message(w, w.lease("a")) == text
    assert w.code(w.preload("a")) == "ok"
    assert w.code(w.lease("a", client=b"other")) == "ok"


@pytest.mark.parametrize(("priority", "taken"), [(-5, 0), (0, 0), (3, 3), (4, 3), (99, 3)])
def test_a_priority_that_there_is_not_is_taken_for_the_nearest(priority: int, taken: int) -> None:
    w = World([model("a")], 512)
    w.load("a")
    asked = w.ask("a", priority=priority)
    assert w.s.registry.requests[asked].priority == taken


def test_an_unload_with_a_deadline_that_is_no_number_is_due_at_once() -> None:
    w = World([model("a")], 512)
    w.load("a")
    w.ask("a")
    actions = w.s.handle(Asked(99, b"c", "a", Kind.UNLOAD, math.nan), w.now)
    assert actions == []
    assert w.s.next_wakeup() == w.now


def test_a_keep_alive_that_is_no_number_is_none() -> None:
    w = World([model("a")], 512, idle_seconds=50.0)
    w.load("a")
    for strange in (math.nan, -1.0):
        w.preload("a", keep_alive=strange)
        assert w.model("a").keep_alive is None
    w.preload("a", keep_alive=7.0)
    assert w.model("a").keep_alive == 7.0


def test_a_request_number_that_is_used_twice_is_heard_once() -> None:
    w = World([model("a")], 512)
    w.ask("a")
    assert w.s.handle(Asked(1, b"c", "a", Kind.INFER, w.now + 9), w.now) == []
    assert len(w.s.registry.requests) == 1


def test_an_unload_of_a_model_that_is_not_loaded_is_answered_without_waiting() -> None:
    w = World([model("a")], 512)
    asked = w.unload("a")
    assert w.answer(asked) == Answer(asked, False)
    w.load("a")
    asked = w.unload("a")
    w.settle()
    assert w.answer(asked) == Answer(asked, True)
