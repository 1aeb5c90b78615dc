"""A device whose memory cannot be read, or has not been for too long, is left as it is."""

from __future__ import annotations

import pytest

from broker.scheduler.events import Deliver, DeviceUnread, Refuse
from tests.scheduler.world import World, model

GPU = "gpu0"


@pytest.fixture
def world() -> World:
    return World([model("a", 100), model("b", 100)], 512.0, footprint="measured")


def test_what_is_loaded_serves_on_and_nothing_new_is_started(world: World) -> None:
    world.ask("a")
    world.ready("a")
    world.done("a")
    world.cannot_read(GPU)
    served = world.ask("a")
    world.done("a")
    assert isinstance(world.questions[served].answer, Deliver)
    waiting = world.ask("b")
    assert not world.alive("b")
    world.wait(100)
    assert not world.alive("b")
    world.can_read(GPU)
    assert world.alive("b")
    world.ready("b")
    world.done("b")
    assert isinstance(world.questions[waiting].answer, Deliver)


def test_who_waits_is_told_why_in_time(world: World) -> None:
    world.cannot_read(GPU, "NVML: GPU is lost")
    request = world.ask("b", timeout=5)
    world.wait(5)
    answer = world.questions[request].answer
    assert isinstance(answer, Refuse)
    assert answer.code == "deadline_exceeded"
    assert "nothing is started on gpu0: NVML: GPU is lost" in answer.message
    assert any("gpu0 cannot be read: NVML: GPU is lost" in line for line in world.story())
    assert any("nothing is started on gpu0: NVML: GPU is lost" in line for line in world.story("b"))


def test_other_devices_go_on() -> None:
    world = World([model("a", 100), model("b", 100)], 512.0, 512.0, footprint="measured")
    world.cannot_read(GPU)
    world.ask("a")
    assert world.process("a").device == "gpu1"
    world.ready("a")
    world.done("a")
    world.ask("b")
    assert world.process("b").device == "gpu1"


def test_nothing_is_evicted_for_what_cannot_be_started() -> None:
    world = World([model("a", 400), model("b", 400)], 512.0, footprint="measured")
    world.ask("a")
    world.ready("a")
    world.done("a")
    world.cannot_read(GPU)
    world.ask("b", timeout=60)
    world.wait(30)
    assert world.alive("a")
    world.can_read(GPU)
    world.gone("a")
    assert world.alive("b")


def test_a_late_reading_is_waited_for_and_not_for_ever(world: World) -> None:
    world.cannot_read(GPU, "not read since", seconds=3)
    world.ask("a")
    world.wait(2.9)
    assert not world.alive("a")
    world.wait(0.2)
    assert world.alive("a")
    assert any("gpu0: not read since, for too long" in line for line in world.story())


def test_a_reading_in_time_starts_at_once_and_tells_no_story(world: World) -> None:
    world.cannot_read(GPU, "not read since", seconds=3)
    world.ask("a")
    world.can_read(GPU)
    assert world.alive("a")
    assert not [line for line in world.story() if "cannot be read" in line or "can be read" in line]


def test_a_late_reading_does_not_end_a_failure(world: World) -> None:
    world.cannot_read(GPU, "GPU is lost")
    world.emit(DeviceUnread(GPU, "not read since", 3.0))
    world.ask("a")
    world.wait(10)
    assert not world.alive("a")


def test_news_of_another_device_changes_nothing(world: World) -> None:
    assert world.emit(DeviceUnread("gpu7", "lost")) == []
    world.ask("a")
    assert world.alive("a")


def test_nothing_is_loaded_ahead_or_as_a_further_worker_there() -> None:
    world = World([model("a", 100, max_instances=2, device="")], 512.0, 512.0, footprint="measured", max_batch=1)
    world.ask("a")
    world.cannot_read("gpu1" if world.process("a").device == GPU else GPU)
    world.wait(1)
    world.ready("a")
    for _ in range(30):
        world.ask("a")
    for _ in range(5):
        world.wait(1)
        world.done("a")
    assert sum(p.model == "a" for p in world.processes.values()) == 1
