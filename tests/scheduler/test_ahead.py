"""`prefetch`: what usually follows is loaded ahead, where that costs no other model anything."""

from __future__ import annotations

import pytest

from broker.scheduler.events import KillWorker
from broker.scheduler.state import Guess, State
from tests.scheduler.world import World, model

FOUR = [model("plate", 100), model("text", 100), model("big", 800), model("other", 300)]


def used_to(*sequence: str, models=FOUR, budget: float = 1000.0, **more) -> World:
    """A broker that has seen the sequence a few times, and has nothing loaded."""
    w = World([model(m.name, m.vram_mb, m.priority.name) for m in models], budget, prefetch=True, **more)
    for _ in range(3):
        for name in sequence:
            w.ask(name)
            w.settle()
            w.wait(1.0)
        for _ in range(10):  # the next round is another story
            w.s.registry.habits.asked("another model")
    forget(w)
    return w


def forget(w: World) -> None:
    w.s.registry.asked_last = ""
    w.cleanup(0.0)
    w.settle()
    for m in w.s.models.values():
        m.guess = Guess.NONE
    assert all(m.state is State.UNLOADED for m in w.s.models.values())


def story(w: World, name: str) -> str:
    return "\n".join(line.text for line in w.s.story.about(name))


@pytest.mark.parametrize("eviction", ["priority", "adaptive"])
def test_what_usually_follows_is_loaded_once_the_load_that_is_wanted_is_through(eviction: str) -> None:
    w = used_to("plate", "text", eviction=eviction)
    w.ask("plate")
    assert w.state("text") is State.UNLOADED, "not beside a load that a request waits for"
    w.settle()
    assert w.state("text") is State.LOADED
    assert "loaded ahead: follows plate 75% of the time, and needs 100 of" in story(w, "text")


def test_nothing_is_loaded_ahead_unless_that_is_wanted() -> None:
    w = used_to("plate", "text")
    w.reconfigure(prefetch=False)
    w.ask("plate")
    w.settle()
    assert w.state("text") is State.UNLOADED


@pytest.mark.parametrize(("budget", "state"), [(1000.0, State.LOADED), (950.0, State.UNLOADED)])
def test_no_model_is_evicted_for_a_guess(budget: float, state: State) -> None:
    w = used_to("plate", "text", budget=budget)
    w.load("big")
    w.ask("plate")
    w.settle()
    assert w.state("text") is state
    assert w.state("big") is State.LOADED


@pytest.mark.parametrize("priority", ["LOW", "CRITICAL"])
@pytest.mark.parametrize("eviction", ["priority", "adaptive"])
def test_a_guess_goes_before_any_other_model_whatever_its_priority(priority: str, eviction: str) -> None:
    models = [model("plate", 100, "LOW"), model("text", 300, priority), model("other", 600), model("new", 300)]
    w = used_to("plate", "text", models=models, budget=1000.0, eviction=eviction)
    w.ask("other")
    w.settle()
    w.ask("plate")
    w.settle()
    assert w.state("text") is State.LOADED
    w.wait(5.0)
    w.ask("plate")
    w.settle()
    w.ask("new")
    assert w.state("text") is State.EVICTING
    assert "loaded ahead, and not asked for since" in story(w, "text")
    w.settle()
    assert w.state("new") is State.LOADED
    assert w.state("plate") is State.LOADED


def test_a_guess_that_was_asked_for_is_a_model_like_any_other() -> None:
    models = [model("plate", 100, "LOW"), model("text", 300, "HIGH"), model("other", 600, "LOW"), model("new", 300)]
    w = used_to("plate", "text", models=models)
    w.ask("other")
    w.settle()
    w.ask("plate")
    w.settle()
    w.ask("text")
    w.settle()
    w.ask("new")
    w.settle()
    assert w.state("text") is State.LOADED
    assert w.state("other") is State.UNLOADED


def test_a_load_ahead_ends_at_once_when_another_is_waited_for() -> None:
    w = used_to("plate", "text")
    w.ask("plate")
    w.settle(holding={"text"})
    assert w.state("text") is State.LOADING
    w.ask("other")
    assert w.state("text") is State.EVICTING
    assert isinstance(w.actions[-2], KillWorker)
    assert w.state("other") is State.LOADING
    assert "its load ahead of any request ends: other waits for a load" in story(w, "text")
    w.settle()
    w.ask("plate")
    w.settle()
    assert w.state("text") is State.UNLOADED, "not guessed again before it has been asked for"


def test_a_request_joins_the_load_that_was_made_ahead_of_it() -> None:
    w = used_to("plate", "text")
    w.ask("plate")
    w.settle(holding={"text"})
    w.ask("text")
    w.ask("other")
    assert w.state("text") is State.LOADING
    w.settle()
    assert w.state("text") is State.LOADED
    assert w.s.models["text"].loads == 2


def test_a_pinned_model_is_not_loaded_ahead_and_one_that_is_pinned_meanwhile_stays() -> None:
    w = used_to("plate", "text")
    w.pin("text", True)
    w.ask("plate")
    w.settle()
    assert w.state("text") is State.UNLOADED
    w.pin("text", False)
    w.ask("plate")
    w.settle()
    w.pin("text", True)
    w.ask("big")
    w.settle()
    assert w.state("text") is State.LOADED


def test_a_guess_whose_load_fails_keeps_no_request_from_trying() -> None:
    w = used_to("plate", "text")
    w.ask("plate")
    w.ready("plate")
    w.done("plate")
    assert w.state("text") is State.LOADING
    w.load_fails("text")
    w.gone("text")
    w.ask("plate")
    w.done("plate")
    assert w.state("text") is State.FAILED, "not guessed again"
    asked = w.ask("text")
    w.settle()
    assert w.code(asked) == "ok"
