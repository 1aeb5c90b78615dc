"""The rules: applied until nothing is left to do, and gone on with after an error."""

from __future__ import annotations

import pytest

from broker.scheduler.capacity.by_priority import ByPriority
from broker.scheduler.events import Asked, Kind, Tick
from broker.scheduler.soundness import Unsound
from tests.scheduler.world import World, model


class FailsOnce(ByPriority):
    """A policy with a mistake in it."""

    def __init__(self) -> None:
        self.failed = False

    def loss(self, victims):
        if not self.failed:
            self.failed = True
            raise ZeroDivisionError
        return super().loss(victims)


def waiting_for_room(w: World) -> None:
    """A request that needs the room of an idle model, when the decision about it raises."""
    w.s.registry.policy = FailsOnce()
    with pytest.raises(ZeroDivisionError):
        w.s.handle(Asked(1000, b"c", "new", Kind.INFER, w.now + 9), w.now)


def full_world() -> World:
    w = World([model("old", 400), model("new", 400)], 512)
    w.load("old")
    return w


def test_what_an_error_in_a_rule_left_undone_is_done_by_the_next_settling() -> None:
    w = full_world()
    waiting_for_room(w)
    with pytest.raises(Unsound, match="has not settled"):
        w.s.check()
    assert w.s.take_actions() == []
    assert [action.worker for action in w.s.settle()] == [w.worker("old").number], "the victim goes"
    w.s.check()


def test_or_by_the_next_event() -> None:
    w = full_world()
    waiting_for_room(w)
    assert [action.worker for action in w.s.handle(Tick(), w.now)] == [w.worker("old").number]
    w.s.check()
