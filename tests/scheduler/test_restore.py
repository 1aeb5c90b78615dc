"""After a restart the broker brings back what was loaded, as far as no request is in want of anything."""

from __future__ import annotations

from broker.scheduler.events import LoadedEarlier
from broker.scheduler.state import State
from tests.scheduler.world import World, model


def restored(*names: str, budget: float = 1000.0) -> World:
    w = World([model(name, 300) for name in "abcd"], budget, restore=True)
    w.emit(LoadedEarlier(list(names)))
    return w


def test_what_was_resident_comes_back_the_last_used_first_one_after_another() -> None:
    w = restored("c", "a", "gone")
    assert w.starts() == ["c"]
    w.settle()
    assert w.starts() == ["c", "a"]
    assert w.state("b") is State.UNLOADED


def test_as_room_allows() -> None:
    w = restored("c", "a", "b", "d")
    w.settle()
    assert w.starts() == ["c", "a", "b"], "no model goes for the fourth"


def test_a_request_for_another_model_goes_first() -> None:
    w = restored("c", "a")
    asked = w.ask("d")
    w.settle()
    assert w.code(asked) == "ok"
    assert "d" in w.starts()[:2]
    assert w.state("a") is State.LOADED, "and then it goes on"


def test_what_came_back_is_not_in_the_way_of_what_is_asked_for() -> None:
    w = restored("c", "a", "b")
    w.settle()
    asked = w.ask("d")
    w.settle()
    assert w.code(asked) == "ok"


def test_without_it_nothing_is_started() -> None:
    w = World([model("a", 300)], 1000)
    w.wait(5)
    assert not w.starts()


def test_the_last_used_comes_first_in_what_is_noted() -> None:
    w = World([model(name, 100) for name in "abc"], 1000)
    w.load("a", "b")
    w.ask("a")
    w.settle()
    assert w.s.resident() == ["a", "b"]
