"""What a new configuration changes, what it leaves as it is, and from when on."""

from __future__ import annotations

import math

import pytest

from broker.scheduler.events import Reconfigured
from broker.scheduler.state import State
from tests.scheduler.world import World, model


def waiting_with_a_claim() -> tuple[World, int]:
    """Model `b` waits for the room of `a`, which is ending and was claimed for it."""
    w = World([model("a", 300), model("b", 300), model("c", 300)], 512)
    w.load("a")
    asked = w.ask("b")
    assert w.s.registry.demands["b"].claim
    return w, asked


def test_a_reload_keeps_the_claim_of_a_model_whose_device_stays() -> None:
    for device in ("", "gpu0"):
        w, asked = waiting_with_a_claim()
        before = w.s.registry.demands["b"].claim
        w.reconfigure([model("a", 300), model("b", 300, device=device), model("c", 300)])
        assert w.s.registry.demands["b"].claim == before
        w.settle()
        assert w.code(asked) == "ok"


def test_a_reload_of_a_model_that_was_waited_for_takes_no_longer_because_of_others() -> None:
    w, asked = waiting_with_a_claim()
    w.reconfigure([model("b", 300), model("c", 300)])  # `a` is removed while it ends
    w.settle()
    assert w.code(asked) == "ok"
    assert list(w.s.models) == ["b", "c"]


def test_what_changed_is_told_with_the_model_it_changed_for() -> None:
    w = World([model("a")], 512)
    given = [w.model("a").config]
    w.emit(Reconfigured(w.config, {}, given, set(), [("a", "a: priority HIGH"), ("", "idle_seconds = 3")]))
    assert [(line.model, line.text) for line in w.s.explain() if line.kind == "changed"] == [
        ("a", "a: priority HIGH"), ("", "idle_seconds = 3"),
    ]  # fmt: skip


def test_a_broker_that_is_shutting_down_takes_over_nothing() -> None:
    w = World([model("a")], 512)
    w.load("a")
    w.ask("a")
    w.shut_down(5.0)
    w.emit(Reconfigured(w.config, {"gpu0": 100.0}, [], set(), [("a", "removed")]))
    assert list(w.s.models) == ["a"]
    assert w.s.ledger.devices["gpu0"].budget_mb == 512
    assert "removed" not in w.story()


@pytest.mark.parametrize("mb", [math.nan, -1.0, math.inf])
def test_a_budget_that_is_no_number_changes_nothing(mb: float) -> None:
    w = World([model("a")], 512)
    w.emit(Reconfigured(w.config, {"gpu0": mb, "gpu9": 100.0}, [w.model("a").config], set(), []))
    assert {name: d.budget_mb for name, d in w.s.ledger.devices.items()} == {"gpu0": 512}


def test_another_size_is_charged_at_once_for_what_is_loaded_and_not_for_what_is_ending() -> None:
    w = World([model("a", 100), model("b", 100)], 512)
    w.load("a", "b")
    w.unload("b")
    w.reconfigure([model("a", 150), model("b", 150)])
    assert (w.worker("a").mb, w.worker("b").mb) == (150, 100)
    assert w.s.ledger.used_mb("gpu0") == 250


def test_a_size_that_stays_leaves_a_process_charged_for_what_it_was_seen_to_use() -> None:
    w = World([model("a", 100)], 512, footprint="measured")
    w.load("a")
    w.ask("a")
    w.done("a")
    w.measure("a", 700)  # one request took more than the budget, which is not remembered
    assert w.worker("a").mb == 700
    w = World([model("a", 100)], 512, footprint="measured")
    w.load("a")
    w.lease("a")
    w.ask("a")
    w.done("a")
    w.measure("a", 700)
    w.reconfigure([model("a", 100, "HIGH")])
    assert w.worker("a").mb == 700


def test_a_pin_given_at_run_time_outlives_a_reload_that_does_not_speak_of_it() -> None:
    w = World([model("a")], 512)
    w.pin("a")
    w.reconfigure([model("a", priority="HIGH")])
    assert w.model("a").pinned
    w.reconfigure([model("a", pinned=True)])
    assert w.model("a").pinned
    w.reconfigure([model("a")])
    assert not w.model("a").pinned


def test_a_model_that_is_disabled_or_removed_is_pinned_no_more() -> None:
    for given in ([model("a", pinned=True, enabled=False)], []):
        w = World([model("a", pinned=True)], 512)
        w.load("a")
        w.reconfigure(given)
        assert w.state("a") is State.EVICTING
        w.settle()
        assert not w.processes


def test_why_a_model_drains_is_told() -> None:
    cases = (
        ([], set(), "removed from config.toml"),
        ([model("a", enabled=False)], set(), "disabled"),
        ([model("a", options={"x": 1})], {"a"}, "its settings changed"),
    )
    for given, restart, why in cases:
        w = World([model("a")], 512)
        w.load("a")
        w.ask("a")
        w.reconfigure(given, restart=restart)
        (line,) = [line.text for line in w.s.decisions("a") if line.kind == "draining"]
        assert line == f"draining: {why} (a request in flight)"


def test_requests_that_wait_for_a_model_that_is_taken_away_are_told_at_once() -> None:
    for given, code in (([model("b")], "model_not_found"), ([model("a", enabled=False), model("b")], "model_disabled")):
        w = World([model("a"), model("b")], 512)
        w.lease("b")
        w.settle()
        waiting = w.ask("a")
        w.reconfigure(given)
        assert w.answer(waiting).code == code
        assert w.answer(waiting).message == "a is not in config.toml any more, or disabled there"
        assert not w.s.registry.demands


def test_what_came_while_a_model_drained_is_told_when_the_model_is_taken_away() -> None:
    w = World([model("a")], 512)
    w.load("a")
    running = w.ask("a")
    w.unload("a")
    later = w.ask("a")
    w.reconfigure([])
    assert (w.code(running), w.code(later)) == (None, "model_not_found")
    w.settle()
    assert w.code(running) == "ok"


def test_a_load_that_config_toml_wants_no_more_is_drained_when_it_is_through() -> None:
    w = World([model("a")], 512)
    asked = w.preload("a")
    w.reconfigure([model("a", enabled=False)])
    assert w.code(asked) == "model_disabled"
    assert w.state("a") is State.LOADING
    w.ready("a")
    assert w.state("a") is State.EVICTING
    (line,) = [line.text for line in w.s.decisions("a") if line.kind == "draining"]
    assert line == "draining: disabled (idle)"


def test_a_load_that_config_toml_wants_again_before_it_is_through_stays() -> None:
    w = World([model("a")], 512)
    w.preload("a")
    w.reconfigure([model("a", enabled=False)])
    w.reconfigure([model("a")])
    w.ready("a")
    assert w.state("a") is State.LOADED


def test_a_removed_model_that_comes_back_in_time_is_a_model_like_any_other() -> None:
    w = World([model("a")], 512)
    w.load("a")
    w.ask("a")
    w.reconfigure([])
    w.reconfigure([model("a")])
    later = w.ask("a")
    assert w.code(later) is None
    w.settle()
    assert w.code(later) == "ok"


def test_a_model_that_drains_and_is_pinned_by_a_reload_serves_what_has_come_meanwhile() -> None:
    w = World([model("a")], 512)
    w.load("a")
    w.ask("a")
    unload, later = w.unload("a"), w.ask("a")
    w.reconfigure([model("a", pinned=True)])
    assert w.state("a") is State.LOADED
    assert w.code(unload) == "model_in_use"
    w.done("a")
    w.done("a")
    assert w.code(later) == "ok"
    assert w.starts() == ["a"]


def test_new_timeouts_count_from_when_the_work_began() -> None:
    w = World([model("a", 100), model("b", 100)], 512, load_timeout=100.0, dispatch_timeout=100.0)
    w.load("a")
    w.ask("a")
    w.ask("b")
    w.now += 5.0
    w.reconfigure(None, load_timeout=8.0, dispatch_timeout=10.0)
    w.wait(2.99)
    assert w.kills() == []
    w.wait(0.02)
    assert w.state("b") is State.EVICTING
    assert w.state("a") is State.LOADED
    w.wait(2.0)
    assert w.state("a") is State.EVICTING


def test_a_new_timeout_that_is_over_already_is_due_at_once() -> None:
    w = World([model("a")], 512, dispatch_timeout=100.0)
    w.load("a")
    hung = w.ask("a")
    w.now += 50.0
    w.reconfigure(None, dispatch_timeout=10.0)
    assert w.s.next_wakeup() == w.now
    w.tick()
    assert w.code(hung) == "worker_hung"


def test_a_reload_arms_no_timer_for_what_is_idle() -> None:
    w = World([model("a")], 512, idle_seconds=1000.0)
    w.load("a")
    before = w.s.next_wakeup()
    w.reconfigure(None, dispatch_timeout=3.0, load_timeout=3.0)
    assert w.s.next_wakeup() == before


def test_settings_that_take_another_process_forget_failures_and_refused_inputs_and_others_do_not() -> None:
    for restart, code in (({"a"}, None), (set(), "load_failed")):
        w = World([model("a")], 512)
        w.ask("a")
        w.load_fails("a")
        w.settle()
        w.reconfigure([model("a", priority="HIGH")], restart=restart)
        assert w.code(w.ask("a")) == code


def test_fewer_instances_end_the_extra_worker_only() -> None:
    w = World([model("a", 100, max_instances=2)], 512, 512)
    w.load("a")
    w.scale_out("a", 4)
    w.ready("a#2")
    w.reconfigure([model("a", 100, max_instances=2, priority="HIGH")])
    assert len(w.model("a").answering) == 2
    w.reconfigure([model("a", 100)])
    assert [worker.state for worker in w.model("a").workers] == [State.LOADED, State.DRAINING]
    w.done("a#2")
    w.settle()
    assert len(w.model("a").workers) == 1
    drains = [line.text for line in w.s.decisions() if line.kind == "draining"]
    assert drains == ["draining: config.toml wants fewer workers (a request in flight)"]
    w.reconfigure([])
    w.settle()
    assert not w.processes


def test_a_changed_model_ends_all_of_its_workers() -> None:
    w = World([model("a", 100, max_instances=2)], 512, 512)
    w.load("a")
    w.ask("a")
    w.now += 5.0
    w.done("a")
    asked = [w.ask("a") for _ in range(4)]
    w.ready("a#2")
    w.reconfigure([model("a", 100, max_instances=2, options={"x": 1})], restart={"a"})
    assert [worker.state for worker in w.model("a").workers] == [State.DRAINING] * 2
    w.settle()
    assert [w.code(n) for n in asked] == ["ok"] * 4
    assert not w.processes


def test_a_further_worker_of_a_changed_model_goes_although_a_lease_holds_the_primary_one() -> None:
    w = World([model("a", 100, max_instances=2)], 512, 512)
    w.load("a")
    w.scale_out("a", 4)
    w.ready("a#2")
    lease = w.lease("a")
    w.settle()
    w.reconfigure([model("a", 100, max_instances=2, options={"x": 1})], restart={"a"})
    w.settle()
    assert [worker.state for worker in w.model("a").workers] == [State.LOADED]
    w.release(w.granted(lease))
    w.settle()
    assert not w.processes


def test_a_model_that_was_added_is_known_from_the_reload_on_and_not_charged_before_it_is_asked_for() -> None:
    w = World([model("a")], 512)
    w.reconfigure([model("a"), model("b", 100)])
    assert w.starts() == []
    assert w.s.status(w.now)["registered_models"] == ["a", "b"]


def test_a_removed_model_stays_known_while_a_lease_holds_it_after_a_crash() -> None:
    w = World([model("a")], 512)
    lease = w.lease("a")
    w.settle()
    w.reconfigure([])
    w.exits("a")
    w.memory_back("a")
    assert list(w.s.models) == ["a"]
    w.release(w.granted(lease))
    assert list(w.s.models) == []


def test_refused_inputs_are_run_again_after_a_change_of_settings() -> None:
    w = World([model("a")], 512)
    w.load("a")
    w.kill_twice("a", b"\x01" * 16)
    assert w.model("a").quarantine.refused
    w.reconfigure([model("a", options={"x": 1})], restart={"a"})
    assert not w.model("a").quarantine.refused
