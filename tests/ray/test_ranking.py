"""Which node a request goes to, as a pure function."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from zoo.ray import ranking
from zoo.ray.board import DOUBT_S, Board
from zoo.ray.ranking import CopyLimits, Need, Sight, rank
from zoo.ray.reports import NodeReport, Residency, Room, Step, plain, read

NEED = Need("m", 100.0)


def node(
    name: str, free: float = 0.0, *steps: tuple[float, tuple[float, ...]], budget: float = 1000.0, **keys: object
) -> Sight:
    """A node with one device. `steps`: what would be free, at which loss. `models`: name → (state, requests)."""
    models = {model: Residency(*told) for model, told in dict(keys.pop("models", {})).items()}  # type: ignore[call-overload]
    own, sent, coming = keys.pop("own", False), keys.pop("sent", {}), keys.pop("coming", {})
    room = Room(budget, budget, (Step(free), *(Step(*step) for step in steps)))
    return Sight(name, NodeReport({"gpu": room}, models, {}, **keys), own, sent, coming)  # type: ignore[arg-type]


def test_a_request_goes_where_its_model_is() -> None:
    assert rank(NEED, [node("a", 900.0), node("b", models={"m": ("loaded", 9)}), node("c", 100.0)])[0] == "b"


def test_a_model_that_loads_is_there() -> None:
    assert rank(NEED, [node("a", 900.0), node("b", models={"m": ("loading", 1)})])[0] == "b"


def test_a_model_that_was_sent_to_a_node_is_there_before_the_node_says_so() -> None:
    assert rank(NEED, [node("a", 900.0), node("b", 100.0, coming={"m": 100.0})])[0] == "b"


def test_of_two_that_have_it_the_shorter_queue_and_then_the_own_node() -> None:
    a, b = (node(name, models={"m": ("loaded", n)}) for name, n in (("a", 3), ("b", 2)))
    assert rank(NEED, [a, b]) == ["b", "a"]
    assert rank(NEED, [a, b._replace(sent={"m": 5})]) == ["a", "b"], "its own requests are not in the report yet"
    same = [node(name, models={"m": ("loaded", 2)}, own=name == "b") for name in "abc"]
    assert rank(NEED, same)[0] == "b"


def test_free_room_comes_before_any_loss_and_the_most_room_is_the_best() -> None:
    full = node("a", 0.0, (500.0, (0.1,)))
    assert rank(NEED, [full, node("b", 100.0), node("c", 400.0)]) == ["c", "b", "a"]


def test_what_comes_there_takes_room() -> None:
    assert rank(NEED, [node("a", 400.0, coming={"x": 350.0}), node("b", 150.0)])[0] == "b"


def test_a_model_that_waits_for_its_load_is_there_after_all_where_it_is_loaded_or_loads() -> None:
    waits, loads = node("a", 900.0, models={"m": ("unloaded", 1)}), node("b", models={"m": ("loading", 9)})
    assert rank(NEED, [node("c", 900.0), waits])[0] == "a"
    assert rank(NEED, [node("c", 900.0), waits, loads]) == ["b", "a", "c"]


def test_a_line_of_loads_comes_before_any_loss_and_room_behind_a_long_one_is_none() -> None:
    line = {"x": ("loading", 1), "y": ("unloaded", 2), "z": ("evicting", 1)}
    cheap, dear = node("a", 0.0, (500.0, (0.1,)), models={"x": ("loading", 1)}), node("b", 0.0, (500.0, (9.0,)))
    assert rank(NEED, [cheap, dear]) == ["b", "a"]
    assert rank(NEED, [node("a", 500.0, models=dict([*line.items()][:2])), dear])[0] == "a"
    assert rank(NEED, [node("a", 500.0, models=line), dear])[0] == "b"
    assert rank(NEED, [node("a", 500.0, coming={"x": 10.0}), node("b", 300.0)])[0] == "b"


def test_where_room_has_to_be_made_the_least_loss_decides() -> None:
    a = node("a", 0.0, (50.0, (-3.0, 50.0)), (150.0, (-2.0, 150.0)))
    b = node("b", 0.0, (120.0, (-3.0, 120.0)))
    assert rank(NEED, [a, b]) == ["b", "a"]


def test_critical_models_go_for_critical_ones_alone() -> None:
    room = Room(1000.0, 1000.0, (Step(0.0), Step(200.0, (0.0, 200.0), True)))
    a = Sight("a", NodeReport({"gpu": room}, {}, {}))
    b = node("b", 0.0, (200.0, (5.0, 200.0)))
    assert rank(NEED, [a, b]) == ["b", "a"]
    assert rank(NEED._replace(critical=True), [a, b]) == ["a", "b"]


def test_a_node_that_can_never_hold_it_is_left_out() -> None:
    small, stopping = node("a", 50.0, budget=50.0), node("b", 500.0, stopping=True)
    refuses = node("c", 500.0, refuses=frozenset({"m"}))
    assert rank(NEED, [small, stopping, refuses]) == []
    assert rank(NEED, [small, node("d", 0.0)]) == ["d"], "there it waits for models in use"


def test_a_measured_model_needs_what_was_measured() -> None:
    large = Sight("a", NodeReport({"gpu": Room(1000.0, 1000.0, (Step(200.0),))}, {}, {"m": {"gpu": 300.0}}))
    assert rank(NEED, [large, node("b", 150.0)])[0] == "b"


def test_demand_makes_copies_in_free_room_up_to_a_limit() -> None:
    busy = node("a", models={"m": ("loaded", 16)})
    others = [node("b", 200.0), node("c", 0.0, (900.0, (0.1,)))]
    assert rank(NEED, [busy, *others], CopyLimits(2, 16)) == ["b", "a", "c"]
    assert rank(NEED, [busy, *others], CopyLimits(1, 16))[0] == "a"
    assert rank(NEED, [busy, *others], CopyLimits(2, 17))[0] == "a"
    assert rank(NEED, [busy, others[1]], CopyLimits(2, 16))[0] == "a", "no model has to go for a copy"


STATES = st.sampled_from(["loaded", "loading", "evicting"])
SIGHTS = st.lists(
    st.builds(
        lambda free, steps, models, sent, own: (free, steps, models, sent, own),
        st.floats(0, 500),
        st.lists(st.tuples(st.floats(1, 300), st.floats(0, 10)), max_size=4),
        st.dictionaries(st.sampled_from("mxyz"), st.tuples(STATES, st.integers(0, 40))),
        st.dictionaries(st.sampled_from("mx"), st.integers(1, 40)),
        st.booleans(),
    ),
    max_size=6,
)  # fmt: skip


@given(SIGHTS, st.floats(1, 800), st.integers(1, 3), st.integers(1, 20), st.randoms())
def test_the_order_is_one_of_all_able_nodes_and_does_not_depend_on_theirs(drawn, mb, copies, copy_at, rng) -> None:  # type: ignore[no-untyped-def]
    sights = []
    for i, (free, steps, models, sent, own) in enumerate(drawn):
        total, loss, stair = free, 0.0, []
        for more, worth in steps:
            total, loss = total + more, loss + worth
            stair.append((total, (loss, total)))
        sights.append(node(f"n{i}", free, *stair, models=models, sent=sent, own=own))
    wanted, limits = Need("m", mb), CopyLimits(copies, copy_at)
    order = rank(wanted, sights, limits)
    assert len(order) == len(set(order)) == len(sights), "each could hold it"
    rng.shuffle(sights)
    assert rank(wanted, sights, limits) == order
    here = [s.node for s in sights if s.report.models.get("m", Residency("", 0)).state in ranking.HERE]
    if here and not all(ranking.requests("m", s) >= copy_at for s in sights if s.node in here):
        assert order[0] in here
    if len(here) >= copies:
        assert order[0] in here


# ---------------------------------------------------------------- what a process knows of the nodes


def report(number: int, **models: tuple[str, int]) -> NodeReport:
    room = Room(1000.0, 1000.0, (Step(500.0),))
    return NodeReport({"gpu": room}, {name: Residency(*told) for name, told in models.items()}, {}, number=number)


def test_the_newer_report_counts() -> None:
    board = Board()
    board.there_are({"a": "place"})
    board.heard("a", report(2, x=("loaded", 0)))
    board.heard("a", report(1))
    assert board.holds("x") == ["a"]
    assert board.number("a") == 2
    board.heard("b", report(9))
    assert board.number("b") == 0, "a node that is gone may still be heard of"


def test_a_model_that_was_sent_is_coming_until_two_reports_later() -> None:
    board = Board()
    board.there_are({"a": "place"})
    board.heard("a", report(1))
    board.sent("a", "m", 100.0)
    board.heard("a", report(2))
    assert board.sights()[0].coming == {"m": 100.0}
    board.heard("a", report(3))
    assert board.sights()[0].coming == {}
    board.sent("a", "m", 100.0)
    board.heard("a", report(4, m=("loading", 1)))
    assert board.sights()[0].coming == {}
    assert board.sights()[0].sent == {"m": 2}
    for _ in range(3):
        board.ended("a", "m")
    assert board.sights()[0].sent == {}


def test_a_node_in_doubt_is_left_out_while_there_are_others() -> None:
    board = Board()
    board.there_are({"a": "one", "b": "two"})
    board.doubt("a")
    assert [s.node for s in board.sights("two")] == ["b"]
    assert board.sights("two")[0].own
    board.doubt("b")
    assert len(board.sights()) == 2
    assert len(board.sights(at=math.inf)) == 2, f"after {DOUBT_S} s"


def test_a_node_is_doubted_by_its_actor() -> None:
    board = Board()
    board.there_are({"a": "one", "b": "two"}, {"a": "77", "b": "88"})
    board.doubt(actor="77")
    assert [s.node for s in board.sights()] == ["b"]
    board.there_are({"b": "two", "c": "three"})
    board.doubt(actor="")
    assert [s.node for s in board.sights()] == ["b", "c"]


def test_a_report_travels_as_plain_values() -> None:
    one = report(3, m=("loaded", 2))
    assert read(plain(one)) == one
