"""Whose turn it is among the clients of one model."""

from __future__ import annotations

from tests.scheduler.world import World, model


def served(w: World, name: str = "a") -> list[bytes]:
    """Whose requests went to the worker, in order."""
    return [
        w.questions[request].event.session for request in w.dispatches() if w.questions[request].event.model == name
    ]


def busy(**how: int) -> World:
    """A world in which the worker of `a` has a batch running and one ahead, of a client of its own."""
    w = World([model("a")], 512, **how)
    w.load("a")
    for _ in range(2):
        w.ask("a", client=b"first")
    w.actions.clear()
    return w


def test_one_client_s_queue_is_not_in_the_way_of_another_s_single_request() -> None:
    w = busy()
    for _ in range(200):
        w.ask("a", client=b"many")
    single = w.ask("a", client=b"one")
    for _ in range(4):
        w.done("a")
    assert w.code(single) == "ok", "after one request of the other client, and the two that were at the worker"
    assert served(w)[:2] == [b"many", b"one"]


def test_clients_take_turns_and_each_is_served_in_the_order_of_its_asking() -> None:
    w = busy()
    asked = {client: [w.ask("a", client=client) for _ in range(3)] for client in (b"x", b"y", b"z")}
    w.settle()
    assert served(w) == [b"x", b"y", b"z"] * 3
    for client, numbers in asked.items():
        assert [n for n in w.dispatches() if w.questions[n].event.session == client] == numbers


def test_an_earlier_deadline_does_not_overtake_among_one_client_s_requests() -> None:
    w = busy()
    asked = [w.ask("a", client=b"x", timeout=timeout) for timeout in (500.0, 50.0, 100.0)]
    w.settle()
    assert w.dispatches() == asked


def test_priority_comes_before_the_turn() -> None:
    w = busy()
    for _ in range(3):
        w.ask("a", client=b"low", priority=3)
    for _ in range(3):
        w.ask("a", client=b"high", priority=0)
    w.settle()
    assert served(w) == [b"high"] * 3 + [b"low"] * 3


def test_who_asks_again_and_again_does_not_overtake_who_waits() -> None:
    w = busy()
    for _ in range(10):
        w.ask("a", client=b"many")
    w.ask("a", client=b"again")
    for _ in range(20):
        w.ask("a", client=b"again") if served(w)[-1:] == [b"again"] else None
        w.done("a")
    assert served(w)[:10] == [b"many", b"again"] * 5


def test_a_batch_is_made_up_of_many_clients_requests() -> None:
    w = busy(max_batch=4)
    for client in (b"x", b"x", b"x", b"x", b"y", b"z"):
        w.ask("a", client=client)
    w.done("a")
    assert served(w) == [b"x", b"y", b"z", b"x"]


def test_withdrawn_requests_take_nobody_s_turn() -> None:
    w = busy()
    many = [w.ask("a", client=b"many") for _ in range(100)]
    w.ask("a", client=b"one")
    for request in many[:99]:
        w.withdraw(request)
    w.settle()
    assert served(w) == [b"many", b"one"]
