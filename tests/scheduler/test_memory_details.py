"""Figures of memory: readings at the border, what is learnt when memory runs out, and what is said of it."""

from __future__ import annotations

import pytest

from broker.scheduler.events import DeviceSeen, Forgotten, LoadedEarlier, Measured, Remembered, WorkerExited
from broker.scheduler.state import Peak, State
from tests.scheduler.world import World, model


def kinds(w: World, name: str = "") -> list[str]:
    return [line.kind for line in w.s.decisions() if line.model == name]


def test_other_programs_are_told_of_when_the_limit_falls_below_the_budget_and_when_it_is_whole_again() -> None:
    w = World([model("a")], 512, footprint="measured", reserve_mb=10)
    w.others_use("gpu0", 478, 1000)  # just as much as the budget is left
    assert kinds(w) == []
    w.others_use("gpu0", 479, 1000)
    w.others_use("gpu0", 500, 1000)
    assert kinds(w) == ["limited"]
    w.others_use("gpu0", 478, 1000)
    assert kinds(w) == ["limited", "limited"]
    w.others_use("gpu0", 0, 1000)
    assert kinds(w) == ["limited", "limited"]
    assert w.story()[0] == (
        "other programs use 479 of gpu0's 1000 MB, 10 are kept free: 511 of the budget's 512 MB may be charged"
    )


def test_readings_of_a_device_that_make_no_sense_are_passed_over() -> None:
    w = World([model("a")], 512, footprint="measured", reserve_mb=0)
    for device, others, total in (("gpu0", -1.0, 100.0), ("gpu0", 10.0, -1.0), ("gpu9", 10.0, 20.0)):
        w.emit(DeviceSeen(device, others, total))
        assert w.s.ledger.limit_mb("gpu0") == 512
    w.others_use("gpu0", 900, 800)
    assert w.s.ledger.limit_mb("gpu0") == 0


def test_a_measurement_that_changes_the_charge_is_told_once() -> None:
    w = World([model("a", 300)], 512, footprint="measured")
    w.load("a")
    w.measure("a", 300)
    assert "measured" not in kinds(w, "a")
    w.measure("a", 310.2)
    w.measure("a", 311)
    (line,) = [line.text for line in w.s.decisions("a") if line.kind == "measured"]
    assert line == "measured: uses 311 MB on gpu0, charged 311 instead of 300 MB (declared 300)"


def test_a_process_that_ends_is_charged_for_what_it_takes_and_nothing_is_learnt_from_it() -> None:
    w = World([model("a", 300)], 1000, footprint="measured")
    w.load("a")
    w.cleanup()
    w.measure("a", 400)
    assert w.s.ledger.used_mb("gpu0") == 400
    w.measure("a", 350)
    assert w.s.ledger.used_mb("gpu0") == 400
    assert (w.model("a").peaks, w.s.learnt) == ({}, 0)


def test_what_a_request_took_beyond_the_budget_is_charged_and_not_remembered_but_what_a_load_takes_is() -> None:
    w = World([model("a", 300)], 512, footprint="measured")
    w.load("a")
    w.lease("a")
    w.measure("a", 513)
    assert w.model("a").measured_mb("gpu0") == 513
    w = World([model("a", 300)], 512, footprint="measured")
    w.load("a")
    w.lease("a")
    w.ask("a")
    w.measure("a", 513)
    assert (w.model("a").measured_mb("gpu0"), w.worker("a").mb) == (None, 513)
    w.done("a")
    w.measure("a", 512)
    assert w.model("a").measured_mb("gpu0") == 512


def test_a_footprint_that_is_forgotten_is_told_and_of_nothing_known_nothing_is_said() -> None:
    w = World([model("a", 300)], 512, footprint="measured")
    for name in ("a", "unknown"):
        w.emit(Forgotten(name))
    assert (w.s.learnt, w.story()) == (0, [])
    w.load("a")
    w.ask("a")
    w.done("a")
    w.measure("a", 400)
    before = w.s.learnt
    w.peaks.clear()
    w.lives.clear()
    w.s.handle(Forgotten("a"), w.now)
    assert w.s.learnt == before + 1
    assert w.story("a")[-1] == "its footprint is forgotten: the declared 300 MB count until it is measured"
    w.s.handle(Measured(w.process("a").worker, 410.0, True), w.now)
    assert w.model("a").peaks["gpu0"] == Peak(410, True, (410,))


def test_what_is_remembered_replaces_what_was_known_and_what_makes_no_sense_is_not_remembered() -> None:
    w = World([model("a", 300)], 512, footprint="measured")
    peaks = {"gpu0": Peak(400, True, (400,)), "gpu1": Peak(9000, True, (9000,)), "gpu2": Peak(-1.0)}
    w.s.handle(Remembered("unknown", "1", peaks), w.now)
    w.s.handle(Remembered("a", "1", peaks), w.now)
    assert w.model("a").peaks == {"gpu0": peaks["gpu0"], "gpu1": peaks["gpu1"]}
    w.s.handle(Remembered("a", "1", {"gpu0": Peak(600, True, (600,))}), w.now)
    assert w.model("a").peaks == {}, "one process took more than the whole budget"
    declared = World([model("a", 300)], 512)
    declared.s.handle(Remembered("a", "1", peaks), w.now)
    assert declared.model("a").peaks == {}


def test_other_weights_forget_a_failed_load_and_the_same_ones_do_not() -> None:
    for version, code in (("1", "load_failed"), ("2", None)):
        w = World([model("a")], 512)
        w.emit(Remembered("a", "1", {}))
        w.ask("a")
        w.load_fails("a")
        w.settle()
        w.emit(Remembered("a", version, {}))
        assert w.code(w.ask("a")) == code


def test_models_that_are_unknown_are_not_loaded_again() -> None:
    w = World([model("a")], 512, restore=True, strict=False)
    w.emit(LoadedEarlier(["gone", "a"]))
    assert w.starts() == ["a"]
    assert w.story("a")[0] == "loaded again, as it was before the broker's start: 300 of 512 MB on gpu0"


def test_a_request_that_ran_out_says_what_it_would_need_and_what_there_is() -> None:
    w = World([model("a", 300)], 512, footprint="measured")
    w.load("a")
    asked = w.ask("a")
    w.runs_out("a", used_mb=300, asked_mb=300)
    answer = w.answer(asked)
    assert (answer.code, answer.retryable) == ("model_too_large", False)
    assert answer.message == (
        "no more memory; a is charged 300 MB on gpu0, would need 600, and the whole budget is 512; nothing was evicted"
    )
    assert w.model("a").shortages == {"request": 1}
    assert w.model("a").peaks == {}


def test_a_request_that_another_device_could_hold_is_told_that_memory_ran_out() -> None:
    for need, code in ((700, "out_of_memory"), (701, "model_too_large")):
        w = World([model("a", 300, device=""), model("b", 600)], 512, 700, footprint="measured")
        w.lease("b")
        w.settle()
        w.load("a")
        assert w.process("a").device == "gpu0"
        asked = w.ask("a")
        w.runs_out("a", used_mb=300, asked_mb=need - 300)
        assert w.code(asked) == code


def test_a_request_that_needs_just_the_whole_budget_is_tried_once_more() -> None:
    w = World([model("a", 300)], 512, footprint="measured")
    w.load("a")
    asked = w.ask("a")
    w.runs_out("a", used_mb=300, asked_mb=212)
    assert w.code(asked) is None
    assert w.worker("a").mb == 512
    (grown,) = [line.text for line in w.s.decisions("a") if line.kind == "grown"]
    assert grown == (
        "charged 512 instead of 300 MB on gpu0, 512 of 512 MB in all: what ran out of memory is tried once more"
    )
    w.runs_out("a", used_mb=512)
    assert w.answer(asked).message == ("no more memory; a is charged 512 MB on gpu0, and so it did before")
    assert w.model("a").shortages == {"request": 2}


def test_a_request_that_runs_out_while_its_model_drains_is_not_tried_again() -> None:
    w = World([model("a", 300)], 512, footprint="measured")
    w.load("a")
    asked = w.ask("a")
    w.unload("a")
    w.runs_out("a", used_mb=300, asked_mb=100)
    assert w.code(asked) == "out_of_memory"
    assert w.answer(asked).message == "no more memory; a is charged 300 MB on gpu0"


def test_a_load_that_runs_out_twice_says_how_much_is_charged_in_all() -> None:
    w = World([model("a", 300), model("b", 100)], 800, footprint="measured")
    w.load("b")
    asked = w.ask("a")
    w.load_runs_out("a", used_mb=250, asked_mb=100)
    w.gone("a")
    w.load_runs_out("a", used_mb=350)
    assert w.answer(asked).message == (
        "a could not be loaded: memory ran out, charged 350 MB on gpu0: no more memory; so it did before, and of "
        "800 MB 450 are charged in all"
    )
    assert w.model("a").shortages == {"load": 2}


def test_a_process_that_the_kernel_ended_is_counted_and_the_next_is_charged_a_quarter_more() -> None:
    w = World([model("a", 300)], 512, footprint="measured")
    w.load("a")
    w.ask("a")
    w.exits("a", starved=True)
    assert w.model("a").shortages == {"request": 1}
    assert w.s.learnt == 1
    told = [line for line in w.s.explain("a") if line.kind == "out of memory"]
    assert told[0].text == "charged 300 MB on gpu0, and 375 from now on"
    w.memory_back("a")
    assert w.process("a").mb == 375
    w.ready("a")
    w.exits("a", starved=True)
    assert [a.code for a in w.actions if getattr(a, "code", None)] == ["out_of_memory"]


def test_a_batch_that_got_its_process_ended_teaches_a_limit_and_no_footprint() -> None:
    w = World([model("a", 300)], 512, footprint="measured", max_batch=8)
    w.load("a")
    for _ in range(6):
        w.ask("a")
    w.done("a")
    w.done("a")
    assert len(w.worker("a").inflight) == 4
    w.exits("a", starved=True)
    assert w.model("a").shortages == {"batch": 1}
    assert w.model("a").peaks == {}
    assert "memory ran out under 4 requests at once: at most 2 from now on" in w.story("a")


def test_a_suspect_whose_time_is_over_when_its_process_ends_is_not_held_to_have_ended_two() -> None:
    w = World([model("a")], 512, dispatch_timeout=10.0)
    w.load("a")
    w.ask("a")
    w.wait(10.5)  # it hangs, so that those who come are suspects for a while
    w.gone("a")
    suspect = w.ask("a", timeout=5.0)
    w.ready("a")
    w.says("a", b"\x02" * 16)
    w.now += 5.0
    w.s.handle(WorkerExited(w.process("a").worker, "signal 11"), w.now)
    assert suspect not in w.s.registry.requests
    assert not w.model("a").quarantine.refused


def test_a_device_is_in_doubt_after_three_models_and_that_is_told() -> None:
    w = World([model(n, 100) for n in "abc"], 512)
    for name in "abc":
        assert "in doubt" not in kinds(w)
        w.ask(name)
        w.load_fails(name)
        w.settle()
    (told,) = [line.text for line in w.s.decisions() if line.kind == "in doubt"]
    assert told == "3 models in a row could not be loaded on gpu0: for 60 s nothing is loaded there that fits elsewhere"


@pytest.mark.parametrize("mb", [100.0, 600.0])
def test_memory_that_came_back_late_is_free_again(mb: float) -> None:
    w = World([model("a", mb)], 700)
    w.load("a")
    w.exits("a")
    w.memory_stuck("a")
    assert w.s.unreturned_mb("gpu0") == mb
    assert w.state("a") is State.UNLOADED
    w.memory_back("a")
    assert w.s.unreturned_mb("gpu0") == 0
    assert w.s.ledger.used_mb("gpu0") == 0
