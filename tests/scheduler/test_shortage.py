"""Memory that runs out: what is learnt, who goes for it, and that it is tried once more and no oftener."""

from __future__ import annotations

from broker.scheduler.events import KillWorker
from broker.scheduler.state import BATCHES_FIRST, State
from tests.scheduler.world import World, model
from zoo.config.schema import ModelConfig


def world(models: list[ModelConfig], *budgets: float, **more: object) -> World:
    return World(models, *budgets, footprint="measured", **more)  # type: ignore[arg-type]


def charged(w: World, name: str) -> float:
    return w.process(name).mb


# ---------------------------------------------------------------- loads


def test_a_load_that_ran_out_is_tried_once_more_with_room_for_what_it_asked_for() -> None:
    w = world([model("a", 300), model("old", 200), model("new", 200)], 800)
    w.load("old", "new")
    asked = w.ask("a")
    w.load_runs_out("a", used_mb=250, asked_mb=180)
    assert w.state("a") is State.EVICTING
    assert "it is tried once more, with 430 MB" in w.story("a")[-1]
    w.settle()
    assert w.code(asked) == "ok"
    assert charged(w, "a") == 430
    assert (w.state("old"), w.state("new")) == (State.UNLOADED, State.LOADED), "no more go than needed"
    assert not w.model("a").failures.cause
    assert w.s.models["a"].shortages == {"load": 1}


def test_a_load_that_runs_out_twice_fails_with_the_arithmetic_and_a_back_off() -> None:
    w = world([model("a", 300)], 800)
    asked = w.ask("a")
    w.load_runs_out("a")
    w.gone("a")
    assert charged(w, "a") == 375, "it is not known what was asked for: a quarter more"
    w.load_runs_out("a")
    assert w.code(asked) == "out_of_memory"
    assert w.answer(asked).retryable
    assert w.answer(asked).retry_after == 1.0
    assert "memory ran out, charged 375 MB on gpu0: no more memory; so it did before" in w.answer(asked).message
    w.gone("a")
    assert w.starts() == ["a", "a"]
    assert w.code(w.ask("a")) == "load_failed"
    w.wait(1)
    again = w.ask("a")
    assert charged(w, "a") == 469, "what was learnt is kept"
    w.settle()
    assert w.code(again) == "ok"


def test_a_guess_ends_at_the_budget_but_what_is_known_may_not_fit_at_all() -> None:
    w = world([model("a", 300), model("b", 100)], 500.5)
    w.load("b")
    asked = w.ask("a")
    for most in (375, 469, 500):
        w.load_runs_out("a")
        w.gone("a")
        if w.code(asked) is not None:
            w.wait(400)
            asked = w.ask("a")
        w.unload("b")
        w.settle(holding={"a"})
        assert charged(w, "a") == most
    w.ready("a")
    w.settle()
    w.unload("a")
    w.settle()
    w.load("b")
    asked = w.ask("a")
    w.settle(holding={"a"})
    w.load_runs_out("a", used_mb=490, asked_mb=100)
    assert w.code(asked) == "model_too_large"
    assert "a needs 590 MB, the whole budget is 500.5 MB" in w.answer(asked).message
    w.gone("a")
    w.load("b")
    kills = len(w.kills())
    assert w.code(w.ask("a")) == "model_too_large"
    assert len(w.kills()) == kills


def test_a_load_whose_process_the_kernel_ended_for_want_of_memory_is_tried_once_more() -> None:
    w = world([model("a", 300)], 800)
    asked = w.ask("a")
    w.exits("a", starved=True)
    w.settle()
    assert w.code(asked) == "ok"
    assert charged(w, "a") == 375


def test_a_load_that_was_charged_enough_teaches_nothing() -> None:
    w = world([model("a", 300)], 800)
    w.ask("a")
    w.load_runs_out("a", used_mb=100, asked_mb=50)
    w.settle()
    assert charged(w, "a") == 300


def test_with_declared_footprints_it_is_tried_once_more_as_things_are() -> None:
    w = World([model("a", 300), model("b", 200)], 512)
    w.load("b")
    asked = w.ask("a")
    w.load_runs_out("a", used_mb=290, asked_mb=500)
    w.settle()
    assert w.code(asked) == "ok"
    asked = w.ask("a")
    w.runs_out("a", used_mb=290, asked_mb=500)
    assert w.dispatches()[-1] == asked
    w.runs_out("a", used_mb=290, asked_mb=500)
    assert w.code(asked) == "out_of_memory"
    assert charged(w, "a") == 300
    assert w.state("b") is State.LOADED
    assert w.s.registry.learnt == 0


# ---------------------------------------------------------------- requests


def test_a_request_that_ran_out_is_tried_once_more_by_the_same_process_when_there_is_room() -> None:
    w = world([model("a", 300), model("old", 200), model("new", 200)], 800)
    w.load("a", "old", "new")
    asked, other = w.ask("a"), w.ask("a")
    w.runs_out("a", used_mb=280, asked_mb=150)
    assert w.worker("a").short
    assert (w.state("a"), w.state("old"), w.state("new")) == (State.LOADED, State.EVICTING, State.LOADED)
    assert any("a needs 130 MB more, 30 MB short of 800" in line for line in w.story("old"))
    w.done("a")
    assert charged(w, "a") == 300, "not before the room is there"
    w.gone("old")
    assert charged(w, "a") == 430
    assert w.batches()[-1] == [asked]
    w.settle()
    assert (w.code(asked), w.code(other)) == ("ok", "ok")
    assert w.starts().count("a") == 1


def test_a_request_that_runs_out_twice_is_told_and_the_process_lives_on() -> None:
    w = world([model("a", 300)], 800)
    w.load("a")
    asked = w.ask("a")
    w.runs_out("a", used_mb=280, asked_mb=150)
    w.runs_out("a", used_mb=400, asked_mb=150)
    assert w.code(asked) == "out_of_memory"
    assert "a is charged 430 MB on gpu0, and so it did before" in w.answer(asked).message
    assert w.state("a") is State.LOADED
    assert charged(w, "a") == 430
    w.ask("a")
    w.settle()
    assert w.open_questions() == []


def test_no_model_in_use_goes_for_a_request_that_ran_out_and_it_is_told_what_holds_the_room() -> None:
    w = world([model("a", 300), model("held", 300)], 700)
    w.load("a")
    w.lease("held")
    w.settle()
    asked = w.ask("a")
    next_one = w.ask("a")
    w.runs_out("a", used_mb=280, asked_mb=200)
    w.settle()
    assert w.code(asked) == "out_of_memory"
    assert "needs 480 MB on gpu0, 100 of 700 MB are free and no model there may go" in w.answer(asked).message
    assert "held 300 MB (MEDIUM, 1 lease)" in w.answer(asked).message
    assert w.code(next_one) == "ok"
    assert charged(w, "a") == 300
    w.measure("a", 250)
    assert charged(w, "a") == 300, "what it got no room for is not charged"


def test_critical_models_do_not_go_for_what_others_would_like_to_have() -> None:
    w = world([model("a", 300), model("c", 300, "CRITICAL")], 700)
    w.load("a", "c")
    asked = w.ask("a")
    w.runs_out("a", used_mb=280, asked_mb=200)
    assert w.code(asked) == "out_of_memory"
    assert w.state("c") is State.LOADED


def test_a_busy_neighbour_is_waited_for() -> None:
    w = world([model("a", 300), model("busy", 300)], 700)
    w.load("a", "busy")
    w.ask("busy")
    asked = w.ask("a")
    w.runs_out("a", used_mb=280, asked_mb=200)
    assert w.code(asked) is None
    w.done("busy")
    w.wait(2)
    w.settle()
    assert w.code(asked) == "ok"
    assert w.state("busy") is State.UNLOADED


def test_a_request_that_could_never_fit_is_refused_evicts_nothing_and_teaches_nothing() -> None:
    w = world([model("a", 300), model("b", 300)], 700)
    w.load("a", "b")
    asked = w.ask("a")
    w.runs_out("a", used_mb=280, asked_mb=20_000)
    assert w.code(asked) == "model_too_large"
    assert not w.answer(asked).retryable
    assert "would need 20280, and the whole budget is 700; nothing was evicted" in w.answer(asked).message
    assert w.kills() == []
    asked = w.ask("a")
    w.settle()
    assert w.code(asked) == "ok"
    w.unload("a")
    w.settle()
    w.load("a")
    assert charged(w, "a") == 300


def test_a_request_that_gives_up_waiting_for_more_memory_lets_the_others_pass() -> None:
    w = world([model("a", 300), model("busy", 300)], 700, patience_seconds=100.0)
    w.load("a", "busy")
    w.ask("busy")
    asked = w.ask("a", timeout=5)
    w.runs_out("a", used_mb=280, asked_mb=200)
    next_one = w.ask("a")
    assert next_one not in w.dispatches()
    w.wait(5)
    assert w.code(asked) == "deadline_exceeded"
    assert "while it waited for more memory: for busy to finish" in w.answer(asked).message
    assert next_one in w.dispatches()


def test_an_unload_of_a_model_that_waits_for_more_memory_ends_with_one_more_try() -> None:
    w = world([model("a", 300), model("busy", 300)], 700)
    w.load("a", "busy")
    w.ask("busy")
    asked = w.ask("a")
    w.runs_out("a", used_mb=280, asked_mb=200)
    w.unload("a")
    assert w.state("a") is State.DRAINING
    assert w.dispatches()[-1] == asked


def test_a_process_that_ends_while_a_request_waits_for_more_memory_is_followed_by_a_larger_one() -> None:
    w = world([model("a", 300), model("busy", 300)], 900)
    w.load("a", "busy")
    w.ask("busy")
    asked = w.ask("a")
    w.runs_out("a", used_mb=280, asked_mb=350)
    assert w.code(asked) is None
    w.exits("a")
    w.memory_back("a")
    w.done("busy")
    w.wait(2)
    w.settle()
    assert w.code(asked) == "ok"
    assert charged(w, "a") == 630


# ---------------------------------------------------------------- processes that the kernel ends


def test_a_request_whose_process_was_ended_for_want_of_memory_gets_a_larger_one() -> None:
    w = world([model("a", 400)], 800)
    w.load("a")
    asked = w.ask("a")
    w.exits("a", starved=True)
    w.memory_back("a")
    assert charged(w, "a") == 500
    w.ready("a")
    w.says("a", b"digest")
    w.exits("a", starved=True)
    assert w.code(asked) == "out_of_memory"
    assert not w.answer(asked).retryable, "it has cost two processes"
    assert w.s.models["a"].quarantine.refused == {b"digest": None}


# ---------------------------------------------------------------- batches


def test_batches_become_smaller_when_memory_runs_out_and_larger_again_after_a_while() -> None:
    w = world([model("a", 300)], 800, max_batch=8)
    w.load("a")

    def sizes(requests: int) -> list[int]:
        before = len(w.batches())
        w.ask("a")
        w.ask("a")  # lies ahead
        for _ in range(requests):
            w.ask("a")
        w.settle()
        return [len(batch) for batch in w.batches()[before + 2 :]]

    w.ask("a")
    w.ask("a")
    for _ in range(8):
        w.ask("a")
    w.done("a")
    w.done("a")
    w.emit_done(w.process("a"), halved=True)
    assert w.story("a")[-1] == "memory ran out under 8 requests at once: at most 4 from now on"
    assert sizes(8) == [4, 4]
    assert w.s.models["a"].shortages == {"batch": 1}
    rounds = 0
    while w.worker("a").batch_limit.most:
        assert max(sizes(8)) <= 4
        rounds += 1
    assert rounds >= BATCHES_FIRST / 4
    assert sizes(8) == [8]
    assert not any(isinstance(a, KillWorker) for a in w.actions)
    assert charged(w, "a") == 300


def test_a_batch_that_got_its_process_killed_is_tried_one_by_one_and_smaller_ones_follow() -> None:
    w = world([model("a", 300)], 800, max_batch=8)
    w.load("a")
    asked = [w.ask("a") for _ in range(6)]
    w.done("a")
    w.done("a")
    assert w.process("a").running == asked[2:]
    w.exits("a", starved=True)
    w.settle()
    assert [w.code(r) for r in asked] == ["ok"] * 6
    assert charged(w, "a") == 300
    assert w.worker("a").batch_limit.most == 2
