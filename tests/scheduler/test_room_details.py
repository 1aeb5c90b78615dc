"""Room, extra workers and batches at the border: the figures by which it is decided, and what is said of it."""

from __future__ import annotations

import pytest

from broker.scheduler.capacity.habits import Habits
from broker.scheduler.events import LoadedEarlier, SendBatch, StartWorker
from broker.scheduler.parts.scaling import likely
from broker.scheduler.state import Model, State
from tests.scheduler.world import World, model


def lines(w: World, kind: str) -> list[str]:
    return [line.text for line in w.s.decisions() if line.kind == kind]


def test_a_device_that_is_charged_too_much_says_who_goes_and_why() -> None:
    w = World([model("a", 200), model("b", 200)], 512)
    w.load("a", "b")
    w.now += 2.5
    w.reconfigure(None, 300)
    assert lines(w, "evicted") == ["evicted, 200 MB on gpu0: gpu0 is charged 400 MB, 300 may be; unused for 2.5 s"]
    assert lines(w, "overdrawn") == []


def test_a_device_on_which_none_may_go_is_told_once_and_once_again_when_it_fits() -> None:
    w = World([model("a", 200), model("b", 200)], 512)
    leases = [w.lease("a"), w.lease("b")]
    w.settle()
    w.reconfigure(None, 300.0014)
    w.ask("a")
    w.settle()
    (line,) = [line for line in w.s.decisions() if line.kind == "overdrawn"]
    assert line.text.startswith("gpu0 is charged 400 MB, 300.001 may be, and no model there may go: ")
    assert line.fields["over_mb"] == 99.999
    w.release(w.granted(leases[0]))
    w.settle()
    assert len(lines(w, "fits again")) == 1
    w.ask("b")
    w.settle()
    assert len(lines(w, "fits again")) == 1


def test_those_who_could_have_gone_as_well_are_told_four_of_them_by_name() -> None:
    w = World([model(n, 60) for n in "abcdefg"] + [model("big", 60)], 420)
    w.load(*"abcdefg")
    w.now += 1.0
    w.ask("big")
    (line,) = [line for line in w.s.decisions() if line.kind == "spared"]
    assert line.text.endswith(" and 2 more; a gave 60 MB, 60 were needed")
    assert len(line.fields["spared"]) == 4
    assert all(0.9 < unused < 1.1 for *_, unused in line.fields["spared"])


def test_a_request_without_a_chance_is_told_how_long_the_fastest_load_took_and_what_it_waited_for() -> None:
    w = World([model("a", 300), model("b", 300)], 512)
    w.preload("b")
    w.now += 4.0
    w.settle()
    w.cleanup()
    w.settle()
    w.load("a")
    w.lease("a")
    asked = w.ask("b", timeout=6.0)
    w.wait(5.9)
    text = w.answer(asked).message
    assert text.startswith("b is not loaded, its fastest load took 4.00 s, and ")
    assert "; it waited: " in text


def test_what_is_gone_on_with_at_once_is_no_extra_worker() -> None:
    """An extra worker pays when what has queued would take longer than a load, to the second."""
    for seconds, starts in ((1.0, 1), (1.01, 2)):
        w = World([model("a", 100, max_instances=2)], 512, 512)
        w.preload("a")
        w.now += 2.0
        w.settle()
        w.ask("a")
        w.now += seconds
        w.done("a")
        for _ in range(4):  # one runs, one lies ahead, two wait
            w.ask("a")
        assert len(w.starts()) == starts, seconds


def test_an_extra_worker_is_told_with_the_arithmetic() -> None:
    w = World([model("a", 100, max_instances=2)], 512, 512)
    w.preload("a")
    w.now += 2.0
    w.settle()
    w.ask("a")
    w.now += 3.0
    w.done("a")
    for _ in range(3):
        w.ask("a")
    assert lines(w, "growing") == ["1 waiting x 3 s / 1 = 3.00 s to work off, an extra worker loads in 2.00 s"]
    assert [w.s.registry.named(n).number for n in ("a", "a#2")] == [1, 2]


def test_the_names_of_extra_workers_are_the_lowest_that_are_free() -> None:
    w = World([model("a", 100, max_instances=3)], 512, 512, 512)
    w.load("a")
    w.scale_out("a", 12)
    w.ready("a#2")
    w.ready("a#3")
    assert sorted(worker.name for worker in w.model("a").workers) == ["a", "a#2", "a#3"]
    w.exits("a#2")
    w.memory_back("a#2")
    assert sorted(worker.name for worker in w.model("a").workers) == ["a", "a#2", "a#3"]


def test_a_batch_takes_fifty_milliseconds_and_not_more() -> None:
    for seconds, size in ((0.0124, 4), (0.0126, 3), (0.06, 1)):
        w = World([model("a")], 512, max_batch=4)
        w.load("a")
        w.ask("a")
        w.now += seconds
        w.done("a")
        for _ in range(8):
            w.ask("a")
        w.now += seconds
        w.done("a")
        w.now += seconds
        w.done("a")
        assert len(w.batches()[3]) == size, seconds


def test_a_look_for_room_because_of_usage_comes_ten_milliseconds_after_the_last() -> None:
    w = World([model("a", 300), model("b", 300)], 512, strict=False)
    w.load("a")
    w.ask("a")
    w.ask("b")
    looked = w.now
    w.now += 0.004
    w.ask("a")
    assert w.s.next_wakeup() == pytest.approx(looked + 0.01)


def test_what_holds_a_removed_or_disabled_model_lets_no_preload_in() -> None:
    for given, code in (([model("b")], "model_not_found"), ([model("a", enabled=False)], "model_disabled")):
        w = World([model("a"), model("b")], 1000)
        w.lease("a")
        w.settle()
        w.reconfigure(given)
        assert w.code(w.preload("a")) == code
        asked = w.ask("a")
        w.settle()
        assert w.code(asked) == "ok"


def test_what_was_loaded_before_the_start_comes_back_one_after_another_and_not_what_is_asked_for_by_name() -> None:
    w = World(
        [model("a", 100), model("b", 100, pinned=True), model("c", 100, enabled=False), model("d", 600),
         model("e", 100)], 512, restore=True, strict=False,
    )  # fmt: skip
    w.emit(LoadedEarlier(["b", "c", "d", "a", "e"]))
    assert w.starts() == ["a"]
    w.ready("a")
    assert w.starts() == ["a", "e"]
    w.ready("e")
    assert w.starts() == ["a", "e"]


def test_a_guess_that_ends_for_a_load_says_for_whose() -> None:
    w = World([model("a", 100), model("b", 300)], 512, restore=True, strict=False)
    w.emit(LoadedEarlier(["a"]))
    asked = w.ask("b")
    assert lines(w, "dropped") == ["its load ahead of any request ends: b waits for a load"]
    assert w.kills() == [1]
    w.settle()
    assert w.code(asked) == "ok"
    assert w.starts() == ["a", "b"]


def test_a_second_device_is_used_for_what_does_not_fit_on_the_first() -> None:
    w = World([model("a", 300), model("b", 300)], 400, 400)
    w.load("a", "b")
    assert sorted(a.device for a in w.actions if isinstance(a, StartWorker)) == ["gpu0", "gpu1"]


def test_a_lone_request_goes_as_a_batch_of_one() -> None:
    w = World([model("a")], 512, max_batch=8)
    w.load("a")
    asked = w.ask("a")
    (sent,) = [a for a in w.actions if isinstance(a, SendBatch)]
    assert (sent.batch, sent.suspect, sent.refuse) == ([(asked, f"in{asked}")], False, ())


def test_how_soon_callers_come_back_is_learnt_from_when_the_model_had_become_idle() -> None:
    w = World([model("a")], 512)
    w.load("a")
    w.now += 3.0
    w.ask("a")
    assert w.model("a").gap_s == float("inf"), "it had not been used yet"
    w.done("a")
    w.now += 2.0
    w.ask("a")
    assert w.model("a").gap_s == 2.0
    w.now += 1.0
    w.ask("a")
    assert w.model("a").gap_s == 2.0, "it is busy: the caller has not come back to an idle model"
    w.settle()
    w.now += 4.0
    w.ask("a")
    assert w.model("a").gap_s == pytest.approx(2.4)


def test_a_keep_alive_ends_with_the_process_unless_a_lease_outlives_it() -> None:
    for leased, left in ((False, None), (True, 50.0)):
        w = World([model("a")], 512)
        w.preload("a", keep_alive=50.0)
        w.settle()
        if leased:
            w.lease("a")
        w.exits("a")
        w.memory_back("a")
        assert w.model("a").keep_alive == left


def test_a_client_that_goes_is_told_with_what_went_with_it() -> None:
    w = World([model("a"), model("b", 100)], 700)
    w.load("a")
    w.lease("a")
    w.ask("b")
    w.ask("b")
    w.close(b"c")
    assert lines(w, "client gone") == ["a client went away: 1 leases released, 2 requests dropped"]
    assert lines(w, "unwanted") == ["the load goes on, though no request waits for it"]
    w.close(b"c")
    assert len(lines(w, "client gone")) == 1


def test_an_extra_worker_that_is_ready_before_the_first_becomes_the_first() -> None:
    w = World([model("a", 100, max_instances=2)], 512, 512)
    w.load("a")
    w.scale_out("a", 4)
    assert w.starts() == ["a", "a"]
    w.exits("a")  # the first ends while the extra one loads, which takes its place
    assert lines(w, "first") == ["its primary worker is the one on gpu1 from now on"]
    assert (w.worker("a").number, w.state("a")) == (2, State.LOADING)
    w.settle()
    assert not w.open_questions()


def test_a_suspect_waits_for_no_company() -> None:
    w = World([model("a", max_delay_ms=100)], 512, max_batch=4)
    w.load("a")
    w.ask("a")
    w.wait(0.2)
    w.exits("a")
    w.memory_back("a")
    w.ready("a")
    assert [a.suspect for a in w.actions if isinstance(a, SendBatch)] == [False, True]


def test_what_follows_half_of_the_time_is_worth_a_guess_and_what_follows_less_often_is_not() -> None:
    habits = Habits()
    for name in ("a", "b", *"xxxxxxxx", "a"):
        habits.asked(name)
    models = [Model(model(name)) for name in "abc"]
    for known in models:
        known.config.available = True
    assert [(p, m.name) for p, m in likely(habits, "a", models)] == [(0.5, "b")]
    models[1].failures.add("no such file", 0.0, extra=False, guessed=False, permanent=False)
    assert likely(habits, "a", models) == []
    models[1].failures.clear()
    assert len(likely(habits, "a", models)) == 1
    models[1].pinned = True
    assert likely(habits, "a", models) == []
    models[1].pinned = False
    models[1].config.available = False
    assert likely(habits, "a", models) == []


def test_a_request_that_has_to_wait_for_a_place_has_a_line_and_one_that_lies_ahead_has_none() -> None:
    w = World([model("a")], 512)
    w.load("a")
    running, ahead, waiting = w.ask("a"), w.ask("a"), w.ask("a")
    w.settle()
    told = [line.text for line in w.s.explain("a") if line.kind == "request"]
    assert [any(text.startswith(f"request {n}") for text in told) for n in (running, ahead, waiting)] == [
        False, False, True,
    ]  # fmt: skip


def test_what_a_worker_says_of_memory_that_ran_out_is_passed_on() -> None:
    w = World([model("a", 300)], 512)
    w.load("a")
    asked = w.ask("a")
    w.runs_out("a")
    w.runs_out("a")
    assert w.answer(asked).message == "no more memory; a is charged 300 MB on gpu0, and so it did before"


def test_an_extra_worker_that_does_not_load_is_tried_again_when_its_back_off_is_over() -> None:
    w = World([model("a", 100, max_instances=2)], 512, 512)
    w.load("a")
    w.scale_out("a", 6)
    w.load_fails("a#2")
    w.gone("a#2")
    assert w.state("a") is State.LOADED
    assert len(w.starts()) == 2
    w.now += 0.99
    w.ask("a")
    assert len(w.starts()) == 2
    w.now += 0.01
    w.ask("a")
    assert len(w.starts()) == 3


def test_a_model_whose_load_failed_is_not_guessed_before_its_next_try() -> None:
    w = World([model("a", 100), model("b", 100)], 512, restore=True, strict=False)
    w.ask("a")
    w.load_fails("a")
    w.settle()
    w.emit(LoadedEarlier(["a", "b"]))
    assert w.starts() == ["a", "b"], "what has failed is not tried for no request"


def test_an_unload_of_a_loading_model_is_answered_when_it_was_loaded_and_is_gone() -> None:
    w = World([model("a")], 512)
    w.preload("a")
    unload = w.unload("a")
    assert w.state("a") is State.LOADING
    assert w.code(unload) is None
    w.ready("a")
    assert w.state("a") is State.EVICTING
    assert lines(w, "draining") == ["draining: unload was asked for while it was loading (idle)"]
    assert w.code(unload) is None
    w.gone("a")
    assert w.code(unload) == "ok"


def test_an_input_that_was_refused_is_told_to_be_run_again_after_an_unload() -> None:
    w = World([model("a")], 512)
    w.load("a")
    w.kill_twice("a", b"\x01" * 16)
    w.unload("a")
    assert lines(w, "lifted") == ["unload was asked for: no input is refused any more"]
    w.unload("a")
    assert len(lines(w, "lifted")) == 1


def test_a_timer_that_is_due_is_gone_when_it_was_looked_at() -> None:
    w = World([model("a", idle_seconds=5.0)], 512)
    w.load("a")
    w.lease("a")
    w.wait(20.0)
    assert w.state("a") is State.LOADED
    assert w.s.next_wakeup() is None
    w.release_all()
    assert w.s.next_wakeup() == w.now + 5.0


def test_pins_hold_against_the_clean_up_the_idle_time_and_an_unload() -> None:
    w = World([model("a", idle_seconds=5.0, pinned=True)], 512)
    w.load("a")
    w.wait(20.0)
    w.cleanup()
    assert w.code(w.unload("a")) == "model_in_use"
    assert w.state("a") is State.LOADED
    assert [worker.name for worker in w.s.idle_workers(0.0, w.now)] == []
    w.pin("a", False)


def test_a_request_that_waits_for_company_has_a_line_with_its_model() -> None:
    w = World([model("a", max_delay_ms=100)], 512, max_batch=4)
    w.load("a")
    asked = w.ask("a")
    w.wait(0.2)
    w.done("a")
    assert any(line.text.startswith(f"request {asked}") for line in w.s.explain("a"))


def test_who_waits_for_company_leaves_twice_the_time_that_all_of_the_batch_takes() -> None:
    w = World([model("a", max_delay_ms=1000)], 512, max_batch=4)
    w.load("a")
    w.ask("a")
    w.wait(1.0)
    w.now += 0.01
    w.done("a")
    w.ask("a", timeout=0.5)
    w.ask("a", timeout=0.5)
    begun = w.now
    assert w.s.next_wakeup() == pytest.approx(begun + 0.25)
    w.ask("a", timeout=0.1)
    assert w.s.next_wakeup() == pytest.approx(begun + 0.1 - 2 * 3 * w.worker("a").service_s)


def test_room_that_a_critical_model_made_is_not_taken_by_one_that_could_not_have_made_it() -> None:
    models = [model("going", 300), model("kept", 100, "CRITICAL"), model("large", 500), model("small", 100)]
    w = World([*models, model("needed", 100, "CRITICAL")], 612)
    w.load("going", "kept")
    first = w.ask("large")
    assert w.state("going") is State.EVICTING
    waits = w.ask("small")
    assert "kept 100 MB (CRITICAL, idle)" in w.story("small")[-1]
    w.ask("needed")
    assert w.starts()[2:] == ["needed"]
    w.settle()
    assert w.code(first) == w.code(waits) == "ok"
