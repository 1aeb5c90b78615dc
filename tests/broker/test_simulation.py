"""The scheduler in virtual time: every request gets its answer, or the simulation says that it is wrong."""

from __future__ import annotations

import pytest

from benchmarks import traces
from benchmarks.world import World
from broker.scheduler.capacity.ledger import Device
from broker.scheduler.events import Action, Asked, Deliver, Event, Kind, Refuse
from broker.simulation.simulation import Answered, Costs, NeverAnswered, Simulation
from zoo.config.schema import BrokerConfig, ModelConfig

COSTS = Costs(lambda model, device: 1.0, lambda model, batch: 0.1, lambda model: 4)


def two_models(budget_mb: float = 100, **keys: object) -> tuple[Simulation, list[tuple[float, int, Answered]]]:
    """`a` and `b`, of which only one fits, and what is answered when."""
    told: list[tuple[float, int, Answered]] = []
    models = [ModelConfig(name=name, vram_mb=80) for name in "ab"]
    made = Simulation(
        BrokerConfig(**keys),  # type: ignore[arg-type]
        [Device("gpu0", "cuda", budget_mb)], models, COSTS, lambda n, a: told.append((made.now, n, a)),
    )  # fmt: skip
    return made, told


def ask(simulation: Simulation, at: float, number: int, model: str, seconds: float = 30.0) -> None:
    simulation.at(at, lambda: simulation.ask(Asked(number, b"one", model, Kind.INFER, at + seconds)))


def test_loads_requests_and_evictions_take_their_time() -> None:
    simulation, told = two_models()
    ask(simulation, 0.0, 1, "a")
    ask(simulation, 5.0, 2, "b")
    simulation.run()
    assert [(n, type(a)) for _, n, a in told] == [(1, Deliver), (2, Deliver)]
    assert [at for at, _, _ in told] == pytest.approx([1.1, 5.0 + COSTS.kill_s + 1.1])
    assert (simulation.counts.loads, simulation.counts.evictions, simulation.counts.load_s) == (2, 1, 2.0)


def test_time_passes_between_requests() -> None:
    """What goes because it is idle has gone when the next request comes, though none was open meanwhile."""
    simulation, told = two_models(budget_mb=200, idle_seconds=10.0)
    ask(simulation, 0.0, 1, "a")
    ask(simulation, 60.0, 2, "a")
    simulation.run()
    assert told[1][0] == pytest.approx(61.1)
    assert simulation.counts.evictions == 1


def test_a_deadline_is_kept() -> None:
    simulation, told = two_models()
    ask(simulation, 0.0, 1, "a", seconds=0.5)
    simulation.run()
    ((at, _, answer),) = told
    assert at == pytest.approx(0.5)
    assert isinstance(answer, Refuse)
    assert answer.code == "deadline_exceeded"


def test_requests_in_order_are_all_answered() -> None:
    """A trace of which an earlier simulation lost all but a few when a wake-up was due already."""
    trace = traces.zipf(1, requests=400)
    figures = World(trace, {m.name: 0.3 + m.vram_mb / 1000 for m in trace.models}, in_order=True).run()
    assert figures.requests == len(figures.waits) == 400


def test_a_request_without_an_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    simulation, _ = two_models()
    handle = simulation.scheduler.handle

    def forgetful(event: Event, now: float) -> list[Action]:
        return [action for action in handle(event, now) if not isinstance(action, Deliver)]

    monkeypatch.setattr(simulation.scheduler, "handle", forgetful)
    ask(simulation, 0.0, 7, "a")
    with pytest.raises(NeverAnswered, match="1 requests were never answered, the first is 7"):
        simulation.run()


def test_a_second_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    simulation, _ = two_models()
    handle = simulation.scheduler.handle

    def insistent(event: Event, now: float) -> list[Action]:
        actions = handle(event, now)
        return actions + [action for action in actions if isinstance(action, Deliver)]

    monkeypatch.setattr(simulation.scheduler, "handle", insistent)
    ask(simulation, 0.0, 7, "a")
    with pytest.raises(KeyError):
        simulation.run()
