"""Measured footprints: what is charged follows what was seen, and what no longer fits is made to fit, or said."""

from __future__ import annotations

from broker.scheduler.events import Forgotten, Measured, Remembered
from broker.scheduler.state import Peak, State
from tests.scheduler.world import World, model
from zoo.config.schema import ModelConfig


def world(models: list[ModelConfig], *budgets: float, **more: object) -> World:
    return World(models, *budgets, footprint="measured", **more)  # type: ignore[arg-type]


def work(w: World, name: str, mb: float) -> None:
    """One request, and a look at the process after it."""
    w.ask(name)
    w.settle()
    w.measure(name, mb)


def charged(w: World, name: str) -> float:
    return w.process(name).mb


def row(w: World, device: int = 0) -> dict[str, float]:
    found: dict[str, float] = w.s.status(w.now)["devices"][device]
    return found


def test_the_declaration_counts_until_a_request_has_run() -> None:
    w = world([model("a", 300)], 1000)
    w.load("a")
    w.measure("a", 120)
    assert charged(w, "a") == 300
    work(w, "a", 150.2)
    assert charged(w, "a") == 151


def test_a_figure_of_a_process_that_is_not_said_to_have_worked_is_that_of_a_load() -> None:
    w = world([model("a", 300)], 1000)
    w.load("a")
    w.emit(Measured(w.process("a").worker, 120.0))
    assert charged(w, "a") == 300
    assert [found["worked"] for found in w.s.footprints("a")] == [False]


def test_what_a_load_takes_beyond_the_declaration_is_charged_at_once() -> None:
    w = world([model("a", 300)], 1000)
    w.load("a")
    w.measure("a", 420)
    assert charged(w, "a") == 420
    assert "measured: uses 420 MB on gpu0, charged 420 instead of 300 MB (declared 300)" in w.story("a")


def test_a_footprint_grows_and_never_shrinks_also_over_lives() -> None:
    w = world([model("a", 300)], 1000)
    for seen, charge in ((100, 100), (140, 140), (90, 140)):
        work(w, "a", seen)
        assert charged(w, "a") == charge
    w.unload("a")
    w.settle()
    w.ask("a")
    assert charged(w, "a") == 140


def test_room_that_a_measurement_finds_is_used() -> None:
    w = world([model("a", 400), model("b", 400)], 512)
    with_lease = w.lease("a")
    w.settle()
    w.granted(with_lease)
    waiting = w.ask("b")
    w.settle()
    assert w.code(waiting) is None
    work(w, "a", 100)
    w.settle()
    assert w.code(waiting) == "ok"
    assert w.state("a") is State.LOADED


def test_devices_are_learnt_apart() -> None:
    w = world([model("a", 300), model("b", 500)], 350, 600)
    w.load("b")
    work(w, "b", 400)
    assert w.s.models["b"].need_mb("gpu1") == 400
    assert w.s.models["b"].need_mb("gpu0") == 500


def test_what_was_remembered_is_charged_from_the_first_start() -> None:
    w = world([model("a", 300)], 1000)
    w.peaks["a", "gpu0"] = (180, True)
    w.emit(Remembered("a", "v1", {"gpu0": Peak(180.0, True)}))
    w.load("a")
    assert charged(w, "a") == 180
    w.unload("a")
    w.settle()
    w.peaks.clear()
    w.emit(Remembered("a", "v2", {}))
    w.load("a")
    assert charged(w, "a") == 300


def test_what_is_idle_longest_goes_when_a_worker_outgrows_its_charge() -> None:
    w = world([model(n, 200) for n in "abc"], 700)
    w.load("a", "b", "c")
    lease = w.lease("c")
    w.measure("c", 320)
    assert (w.state("a"), w.state("b"), w.state("c")) == (State.EVICTING, State.LOADED, State.LOADED)
    assert any("gpu0 is charged 720 MB, 700 may be; unused for" in line for line in w.story("a"))
    w.settle()
    assert row(w)["overrun_mb"] == 0
    w.release(w.granted(lease))


def test_no_worker_is_killed_for_growth_that_what_is_ending_makes_good() -> None:
    w = world([model(n, 200) for n in "abc"], 700)
    w.load("a", "b", "c")
    w.unload("a")
    w.measure("c", 320)
    assert w.state("b") is State.LOADED
    assert row(w)["overrun_mb"] == 20
    w.settle()
    assert row(w)["overrun_mb"] == 0


def test_an_overrun_that_nothing_may_end_is_said_and_holds_loads_until_it_ends() -> None:
    w = world([model("a", 300), model("b", 200), model("c", 10)], 512)
    leases = [w.lease(n) for n in "ab"]
    w.settle()
    w.measure("a", 400)
    assert (w.state("a"), w.state("b")) == (State.LOADED, State.LOADED)
    assert row(w)["overrun_mb"] == 88
    why = "charged 600 MB, 512 may be, and no model there may go: all pinned or leased: a 400 MB (MEDIUM, 1 lease)"
    assert any(why in s for s in w.story())
    waiting = w.ask("c")
    w.settle()
    assert w.code(waiting) is None, "nothing is loaded while more is charged than may be"
    w.release(w.granted(leases[1]))
    assert w.state("b") is State.EVICTING
    w.settle()
    assert w.code(waiting) == "ok"
    assert row(w)["overrun_mb"] == 0
    assert "what gpu0 is charged fits again, or will when what is ending is gone" in w.story()


def test_a_busy_model_goes_when_its_request_is_done() -> None:
    w = world([model("a", 300)], 512)
    w.load("a")
    asked = w.ask("a")
    w.measure("a", 600)
    assert w.state("a") is State.DRAINING
    w.done("a")
    assert w.code(asked) == "ok"
    assert w.state("a") is State.EVICTING


def test_a_model_that_outgrew_every_budget_is_refused_and_evicts_nothing() -> None:
    w = world([model("a", 300), model("b", 100)], 512)
    w.load("b", "a")
    w.measure("a", 600)
    w.settle()
    assert w.state("a") is State.UNLOADED
    w.load("b")
    refused = w.ask("a")
    assert w.code(refused) == "model_too_large"
    assert "a needs 600 MB, the whole budget is 512 MB" in w.answer(refused).message
    assert w.state("b") is State.LOADED


def test_what_waits_for_a_model_that_turns_out_too_large_is_told() -> None:
    w = world([model("a", 300), model("b", 400)], 512)
    w.load("b")
    w.lease("b")
    first = w.ask("a")
    second = w.ask("a")
    w.emit(Remembered("a", "v", {"gpu0": Peak(600.0, True, (590.0, 600.0))}))
    assert [w.code(r) for r in (first, second)] == ["model_too_large"] * 2


def test_critical_models_go_last_but_they_go() -> None:
    w = world([model("c", 200, "CRITICAL"), model("l", 200, "LOW"), model("x", 100)], 512)
    w.load("c", "l", "x")
    lease = w.lease("x")
    w.measure("x", 250)
    assert (w.state("c"), w.state("l")) == (State.LOADED, State.EVICTING)
    w.settle()
    w.measure("x", 400)
    assert w.state("c") is State.EVICTING
    w.release(w.granted(lease))


def test_other_programs_take_from_what_may_be_charged_and_give_it_back() -> None:
    w = world([model("a", 300), model("b", 300)], 700, reserve_mb=100)
    w.load("a", "b")
    w.others_use("gpu0", 1200, 2000)
    assert row(w)["limit_mb"] == 700
    w.others_use("gpu0", 1400, 2000)
    assert row(w)["limit_mb"] == 500
    assert (w.state("a"), w.state("b")) == (State.EVICTING, State.LOADED)
    w.settle()
    w.pin("b")
    asked = w.ask("a")
    w.settle()
    assert w.code(asked) is None
    assert "other programs leave 500 of the budget's 700 MB" in w.s.registry.demands["a"].why
    w.others_use("gpu0", 0, 2000)
    w.settle()
    assert w.code(asked) == "ok"


def test_what_can_never_fit_is_told_from_what_cannot_fit_beside_others() -> None:
    w = world([model("a", 300)], 700)
    w.others_use("gpu0", 1900, 2000)
    asked = w.ask("a", timeout=3)
    assert w.code(asked) is None
    w.wait(3)
    assert w.code(asked) == "deadline_exceeded"


def test_declared_footprints_take_no_notice_of_meters() -> None:
    w = World([model("a", 300)], 512)
    w.load("a")
    w.ask("a")
    w.settle()
    w.measure("a", 500)
    w.others_use("gpu0", 2000, 2000)
    w.emit(Remembered("a", "v", {"gpu0": Peak(500.0, True)}))
    assert charged(w, "a") == 300
    assert row(w)["limit_mb"] == 512
    assert w.s.registry.learnt == 0


# ------------------------------------------------------------ one request, and eight lives


def test_a_request_that_takes_more_than_the_whole_budget_makes_no_model_too_large() -> None:
    w = world([model("a", 300), model("b", 200)], 700)
    w.load("b", "a")
    work(w, "a", 250)
    work(w, "a", 1264)
    assert w.state("a") is State.EVICTING, "it goes, and gives everything back"
    assert w.state("b") is State.LOADED, "and no other goes for it"
    assert any("has grown to 1264 MB, more than the whole budget" in line for line in w.story("a"))
    w.settle()
    told = {line.kind for line in w.s.decisions()}
    assert not told & {"overdrawn", "fits again"}, "what goes suffices, so nothing is short"
    assert w.s.models["a"].need_mb("gpu0") == 250
    again = w.ask("a")
    w.settle()
    assert w.code(again) == "ok"
    assert charged(w, "a") == 250


def test_a_process_that_has_outgrown_the_budget_finishes_what_it_has_and_those_who_come_wait_for_the_next() -> None:
    w = world([model("a", 300), model("b", 200)], 700)
    w.load("b", "a")
    running = [w.ask("a"), w.ask("a"), w.ask("a")]
    w.measure("a", 1264)
    assert w.state("a") is State.DRAINING
    assert row(w)["overrun_mb"] == 764
    late = w.ask("a")
    w.settle()
    assert [w.code(n) for n in (*running, late)] == ["ok"] * 4
    assert w.state("b") is State.LOADED
    assert len(w.starts()) == 3


def test_a_process_that_has_outgrown_the_budget_and_is_leased_stays() -> None:
    w = world([model("a", 300)], 700)
    w.load("a")
    lease = w.lease("a")
    work(w, "a", 1264)
    assert w.state("a") is State.LOADED
    assert charged(w, "a") == 1264, "an overrun is stated, never hidden"
    w.release(w.granted(lease))
    assert w.state("a") is State.EVICTING


def test_a_model_whose_load_alone_takes_more_than_the_budget_is_too_large() -> None:
    w = world([model("a", 300)], 700)
    w.load("a")
    w.measure("a", 800)
    w.settle()
    assert w.code(w.ask("a")) == "model_too_large"


def test_the_largest_of_the_last_eight_lives_counts() -> None:
    w = world([model("a", 300)], 1000)
    for life in range(10):
        work(w, "a", 600 if life == 0 else 100 + life)
        w.cleanup()
        w.settle()
        expected = 600 if life < 8 else 100 + life
        assert w.s.models["a"].need_mb("gpu0") == expected, f"after life {life}"


def test_a_life_in_which_nothing_ran_is_none() -> None:
    w = world([model("a", 300)], 1000)
    work(w, "a", 600)
    for _ in range(10):
        w.cleanup()
        w.settle()
        w.load("a")
        w.measure("a", 100)
    assert w.s.models["a"].need_mb("gpu0") == 600


def test_what_an_earlier_release_remembered_beyond_the_budget_is_forgotten() -> None:
    w = world([model("a", 300), model("b", 300), model("c", 300)], 700)
    w.emit(Remembered("a", "v", {"gpu0": Peak(1264.0, True)}))
    w.emit(Remembered("b", "v", {"gpu0": Peak(1264.0, True, (200.0, 1264.0))}))
    w.emit(Remembered("c", "v", {"gpu0": Peak(900.0, True, (800.0, 900.0))}))
    assert [w.s.models[name].need_mb("gpu0") for name in "abc"] == [300, 200, 900], "all of the last's lives were so"


def test_a_footprint_that_is_forgotten_counts_no_more_and_is_measured_again() -> None:
    w = world([model("a", 300)], 1000)
    work(w, "a", 600)
    learnt = w.s.registry.learnt
    w.peaks.clear(), w.lives.clear()
    w.emit(Forgotten("a"))
    assert w.s.models["a"].need_mb("gpu0") == 300
    assert charged(w, "a") == 600, "what lives stays charged"
    assert w.s.registry.learnt > learnt
    work(w, "a", 200)
    assert [row["lives_mb"] for row in w.s.footprints("a")] == [[200]]
