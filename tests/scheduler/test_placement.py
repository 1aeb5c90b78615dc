"""On which device a model is loaded: where it may, where there is room, and not where nothing loads any more."""

from __future__ import annotations

from broker.scheduler.capacity.placement import choose
from broker.scheduler.state import State
from tests.scheduler.world import World, model


def test_the_work_is_spread() -> None:
    assert choose({"a": 300, "b": 300}, {"a": 500, "b": 700}, []) == "b"
    assert choose({"a": 300, "b": 100}, {"a": 700, "b": 600}, []) == "b", "what is left counts, not what is there"
    assert choose({"a": 300, "b": 300}, {"a": 700, "b": 700}, []) == "a"


def test_but_the_last_place_of_the_largest_that_is_not_there_is_kept() -> None:
    room = {"a": 500.0, "b": 700.0}
    assert choose({"a": 300, "b": 300}, room, [{"a": 600, "b": 600}, {"a": 100, "b": 100}]) == "a"
    assert choose({"a": 300, "b": 300}, room, [{"a": 400, "b": 400}]) == "b", "it still fits on a"
    assert choose({"a": 300, "b": 300}, room, [{"a": 800, "b": 800}]) == "b", "it has no place to lose"
    assert choose({"a": 300, "b": 300}, {"a": 700, "b": 700, "c": 900}, [{"a": 800, "b": 800, "c": 800}]) == "a"


def test_what_is_placed_one_after_another_leaves_room_for_a_large_one() -> None:
    small = [model(f"s{i}", 100) for i in range(4)]
    w = World([*small, model("large", 900)], 1000, 1000)
    for m in small:
        w.load(m.name)
    assert [p.device for p in w.processes.values()] == ["gpu0", "gpu1", "gpu0", "gpu0"]
    w.load("large")
    assert w.kills() == []


def test_a_model_is_loaded_on_its_own_device_or_not_at_all() -> None:
    w = World([model("a", device="gpu1"), model("b", device="gpu1"), model("big", 600, device="gpu1")], 1000, 400)
    w.load("a")
    assert w.process("a").device == "gpu1"
    w.load("b")
    assert (w.state("a"), w.process("b").device) == (State.UNLOADED, "gpu1"), "room on gpu0 is of no use to it"
    asked = w.ask("big")
    assert w.code(asked) == "model_too_large"
    assert "big needs 600 MB, the whole budget of gpu1 is 400 MB" in w.answer(asked).message
    assert w.state("b") is State.LOADED


def test_another_device_in_config_toml_is_that_of_the_next_process() -> None:
    w = World([model("a"), model("b", 800)], 1000, 1000)
    w.load("a")
    w.lease("a")
    assert w.process("a").device == "gpu0"
    w.reconfigure([model("a", device="gpu1"), model("b", 800)])
    assert w.state("a") is State.LOADED, "no model in use is ended"
    w.release_all()
    w.settle()
    w.load("a")
    assert w.process("a").device == "gpu1"


def test_room_that_was_claimed_on_a_device_is_let_go_when_another_one_is_named() -> None:
    w = World([model("a", 900), model("b", 800)], 1000, 1000)
    w.load("a")
    w.lease("b", client=b"d")
    w.settle()
    w.release_all()
    w.now += 1
    c = model("c", 900)
    w.reconfigure([model("a", 900), model("b", 800), c])
    w.ask("c")
    assert w.s.registry.demands["c"].claim_on == "gpu1"
    w.reconfigure([model("a", 900), model("b", 800), model("c", 900, device="gpu0")])
    w.settle()
    assert w.process("c").device == "gpu0"


def test_a_failed_load_is_tried_on_another_device_next() -> None:
    w = World([model("a")], 1000, 1000)
    first = w.ask("a")
    assert w.process("a").device == "gpu0"
    w.load_fails("a")
    w.gone("a")
    assert w.code(first) == "load_failed"
    assert w.code(w.ask("a")) == "load_failed", "not at once: what is wrong with it is wrong everywhere, mostly"
    w.wait(1)
    w.ask("a")
    assert w.process("a").device == "gpu1"


def test_a_device_on_which_nothing_loads_does_not_attract_loads() -> None:
    names = ["a", "b", "c", "d"]
    w = World([*(model(n, 500) for n in names), model("bound", 500, device="gpu0")], 1000, 600)
    for n in names[:3]:
        w.ask(n)
        assert w.process(n).device == "gpu0"
        w.load_fails(n)
        w.gone(n)
    assert any("3 models in a row could not be loaded on gpu0" in line for line in w.story(""))
    w.load("d")
    assert w.process("d").device == "gpu1"
    w.wait(10)
    w.load("a")
    assert (w.state("d"), w.process("a").device) == (State.UNLOADED, "gpu1"), "empty as gpu0 is"
    w.load("bound")  # which has no choice, and clears it of doubt
    w.cleanup()
    w.settle()
    w.load("b")
    assert w.process("b").device == "gpu1", "not where its own last load failed"
    w.load("d")
    assert w.process("d").device == "gpu0"


def test_a_device_in_doubt_is_tried_again_after_a_while_and_at_once_by_who_waits_for_it() -> None:
    w = World([*(model(n, 500) for n in "abcd"), model("held", 500)], 1000, 600)
    w.s.models["held"].config.device = "gpu1"
    for n in "abc":
        w.ask(n)
        w.load_fails(n)
        w.gone(n)
    w.lease("held")
    w.settle()
    asked = w.ask("d")
    assert w.code(asked) is None
    assert not w.alive("d")
    w.wait(60)
    assert w.process("d").device == "gpu0"


def test_an_overdrawn_device_does_not_attract_loads() -> None:
    w = World([model("a", 300), model("b", 300)], 1000, 1000, footprint="measured")
    w.load("a")
    w.lease("a")
    assert w.process("a").device == "gpu0"
    w.others_use("gpu0", 1800, 2000)
    w.load("b")
    assert w.process("b").device == "gpu1"
    assert w.state("a") is State.LOADED
