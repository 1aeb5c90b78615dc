"""A new configuration is taken over while everything goes on: no model in use is ended for it."""

from __future__ import annotations

import msgspec

from broker.scheduler.state import State
from tests.scheduler.world import World, model


def test_a_smaller_budget_evicts_the_idle_by_policy_and_never_the_leased() -> None:
    w = World([model(n, 200) for n in "abc"], 700)
    w.load("a", "b", "c")
    lease = w.lease("a")
    w.reconfigure(None, 450)
    assert [w.state(n) for n in "abc"] == [State.LOADED, State.EVICTING, State.LOADED]
    w.settle()
    w.reconfigure(None, 100)
    w.settle()
    assert [w.state(n) for n in "abc"] == [State.LOADED, State.UNLOADED, State.UNLOADED]
    assert w.s.status(w.now)["devices"][0]["overrun_mb"] == 100
    w.release(w.granted(lease))
    w.settle()
    assert w.s.status(w.now)["devices"][0]["used_mb"] == 0


def test_a_larger_budget_serves_who_waited_for_it() -> None:
    w = World([model("a", 300), model("b", 300)], 512)
    w.lease("a")
    w.settle()
    waiting = w.ask("b")
    w.reconfigure(None, 600)
    w.settle()
    assert w.code(waiting) == "ok"


def test_what_waits_for_a_model_that_the_new_budget_can_never_hold_is_told() -> None:
    w = World([model("a", 300), model("b", 300)], 512)
    w.lease("a")
    w.settle()
    waiting = w.ask("b")
    w.reconfigure(None, 200)
    assert w.code(waiting) == "model_too_large"


def test_an_added_model_is_served_and_a_removed_one_is_unknown() -> None:
    w = World([model("a"), model("b")], 1000)
    w.load("a", "b")
    w.reconfigure([model("a"), model("c")])
    asked = w.ask("c")
    assert w.code(w.ask("b")) == "model_not_found"
    w.settle()
    assert w.code(asked) == "ok"
    assert list(w.s.models) == ["a", "c"]


def test_a_removed_model_finishes_what_it_has_accepted() -> None:
    w = World([model("a"), model("b")], 1000)
    w.load("a")
    accepted = [w.ask("a") for _ in range(4)]
    w.reconfigure([model("b")])
    late = w.ask("a")
    w.settle()
    assert [w.code(r) for r in accepted] == ["ok"] * 4
    assert w.code(late) == "model_not_found"
    assert list(w.s.models) == ["b"]


def test_a_leased_model_that_was_removed_or_disabled_serves_until_the_lease_ends() -> None:
    for given in ([model("b")], [model("a", enabled=False), model("b")]):
        w = World([model("a"), model("b")], 1000)
        lease = w.lease("a")
        w.settle()
        w.reconfigure(given)
        asked = w.ask("a")
        w.settle()
        assert w.code(asked) == "ok"
        assert w.code(w.lease("a")) in ("model_not_found", "model_disabled")
        w.release(w.granted(lease))
        w.settle()
        assert not w.processes
        assert w.code(w.ask("a")) in ("model_not_found", "model_disabled")


def test_new_options_reach_the_next_process_and_newcomers_wait_for_it() -> None:
    w = World([model("a")], 512)
    w.load("a")
    running = w.ask("a")
    w.reconfigure([model("a", options={"conf": 0.5})], restart={"a"})
    assert w.state("a") is State.DRAINING
    newcomer = w.ask("a")
    w.settle()
    assert (w.code(running), w.code(newcomer)) == ("ok", "ok")
    assert w.starts() == ["a", "a"]


def test_a_mended_model_is_tried_at_once() -> None:
    w = World([model("a")], 512)
    w.ask("a")
    w.load_fails("a")
    w.settle()
    assert w.code(w.ask("a")) == "load_failed"
    w.reconfigure([model("a", adapter="x:Y")], restart={"a"})
    asked = w.ask("a")
    w.settle()
    assert w.code(asked) == "ok"


def test_priorities_and_idle_times_count_from_now_on() -> None:
    w = World([model("a", 200), model("b", 200), model("c", 200)], 512)
    w.load("a", "b")
    configs = {name: msgspec.structs.replace(m.config) for name, m in w.s.models.items()}
    configs["b"] = model("b", 200, "LOW")
    w.reconfigure(list(configs.values()))
    w.ask("c")
    assert (w.state("a"), w.state("b")) == (State.LOADED, State.EVICTING)
    w.settle()
    w.reconfigure(None, idle_seconds=2.0)
    w.wait(3)
    assert w.state("a") is State.EVICTING


def test_a_request_that_waits_for_more_memory_gets_it_from_a_larger_budget() -> None:
    w = World([model("a", 300), model("busy", 300)], 700, footprint="measured")
    w.load("a", "busy")
    w.ask("busy")
    asked = w.ask("a")
    w.runs_out("a", used_mb=280, asked_mb=200)
    assert w.code(asked) is None
    w.reconfigure(None, 800)
    assert w.process("a").mb == 480
    w.done("a")
    assert w.code(asked) == "ok"


def test_a_request_that_waits_for_more_memory_than_the_new_budget_has_is_told_and_the_model_serves_on() -> None:
    w = World([model("a", 300), model("busy", 300)], 700, footprint="measured")
    w.load("a", "busy")
    w.ask("busy")
    asked = w.ask("a")
    w.runs_out("a", used_mb=280, asked_mb=200)
    other = w.ask("a")
    w.reconfigure(None, 400)
    assert w.code(asked) == "out_of_memory"
    w.settle()
    assert w.code(other) == "ok"
