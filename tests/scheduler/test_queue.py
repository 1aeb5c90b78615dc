"""Whose turn it is among the clients of one model."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given, settings

from broker.scheduler.state import Queue
from broker.scheduler.state.queue import LONGEST, PRIORITIES
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


def test_withdrawn_requests_take_no_client_s_turn() -> None:
    w = busy()
    many = [w.ask("a", client=b"many") for _ in range(100)]
    w.ask("a", client=b"one")
    for request in many[:99]:
        w.withdraw(request)
    w.settle()
    assert served(w) == [b"many", b"one"]


# ------------------------------------------------------------ urgent, not a monopoly


class Plain:
    """As much of a request as a queue knows."""

    def __init__(self, session: bytes, priority: int, seq: int) -> None:
        self.session, self.priority, self.seq = session, priority, seq
        self.queue: Queue[Plain] | None = None


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 3)), max_size=300))
def test_no_request_waits_for_more_than_the_longest_run_of_other_priorities(steps) -> None:
    """Whatever is pushed, taken and dropped: between two of a priority that waits, at most `LONGEST`."""
    queue: Queue[Plain] = Queue()
    waiting: list[Plain] = []
    passed = [0] * PRIORITIES
    for seq, (priority, client, deed) in enumerate(steps):
        if deed < 2:
            waiting.append(Plain(b"%d" % client, priority, seq))
            queue.push(waiting[-1])
        elif deed == 2 and waiting:
            queue.drop(waiting.pop(seq % len(waiting)))
        elif (taken := queue.pop()) is not None:
            waiting.remove(taken)
            for other in range(PRIORITIES):
                there = any(request.priority == other for request in waiting)
                passed[other] = passed[other] + 1 if there and other != taken.priority else 0
            assert max(passed) <= LONGEST


@settings(max_examples=30, deadline=None)
@given(attackers=st.integers(1, 5), priority=st.integers(1, 3), others=st.integers(0, 3), batch=st.sampled_from([1, 4]))
def test_streams_of_urgent_requests_keep_no_request_waiting_for_long(attackers, priority, others, batch) -> None:
    """Each client in its turn, each priority after `LONGEST` others at most, whatever comes in meanwhile."""
    w = busy(max_batch=batch)
    for client in range(attackers):
        for _ in range(20):
            w.ask("a", client=b"urgent%d" % client, priority=0)
    for client in range(others):
        w.ask("a", client=b"other%d" % client, priority=priority)
    patient = w.ask("a", client=b"patient", priority=priority)
    before = len(w.dispatches())
    while w.code(patient) is None:
        assert len(w.dispatches()) - before <= (others + 1) * (LONGEST + 1) + 3 * batch
        w.done("a")
        for client in range(attackers):
            for _ in range(batch):
                w.ask("a", client=b"urgent%d" % client, priority=0)


def test_of_a_stream_of_urgent_requests_eight_are_served_before_one_that_waits() -> None:
    w = busy()
    for _ in range(30):
        w.ask("a", client=b"urgent", priority=0)
    w.ask("a", client=b"patient", priority=3)
    w.ask("a", client=b"patient", priority=3)
    w.settle()
    assert [n for n, client in enumerate(served(w)) if client == b"patient"] == [8, 17]


def test_a_busy_model_gives_way_in_the_end_though_its_requests_are_more_urgent() -> None:
    w = World([model("a"), model("b")], 512, request_timeout=1000.0)
    w.load("a", "b")  # both have a load time, 0 here
    w.load("a")
    urgent = [w.ask("a", client=b"urgent", priority=0, timeout=1e6) for _ in range(3)]
    patient = w.ask("b", client=b"patient", timeout=1e6)
    for _ in range(2000):
        if w.code(patient):
            break
        w.wait(0.1)
        w.settle(holding={"a"})
        if w.alive("a") and w.process("a").running:
            w.done("a")
            urgent.append(w.ask("a", client=b"urgent", priority=0, timeout=1e6))
        else:
            w.settle()
    assert w.code(patient) == "ok"


def test_who_waits_for_room_becomes_more_urgent() -> None:
    w = World([model("a", 500), model("b", 500), model("c", 500)], 512, request_timeout=20.0)
    w.load("a")
    w.lease("a", client=b"holder", timeout=1e6)
    old = w.ask("b", client=b"patient", priority=3, timeout=1e6)
    w.wait(16.0)
    w.ask("c", client=b"urgent", priority=0, timeout=1e6)
    w.release_all()
    w.settle(holding={"b"})
    assert w.starts() == ["a", "b"], "it has waited so long that it is as urgent, and it was first"
    w.settle()
    assert w.code(old) == "ok"
