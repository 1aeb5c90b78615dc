"""What the scheduler does, told as behaviours. Virtual time; the world around it is in `world.py`."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from broker.scheduler.capacity.ledger import Device
from broker.scheduler.events import (
    Asked,
    Deliver,
    Finished,
    Forget,
    KillWorker,
    Kind,
    MemoryBack,
    Refuse,
    Released,
    Remembered,
    SendBatch,
    Settled,
    StartWorker,
    Stop,
    Tick,
    WorkerDone,
    WorkerReady,
)
from broker.scheduler.scheduler import Scheduler
from broker.scheduler.state import Phase, State
from broker.scheduler.state.states import diagram
from tests.scheduler.world import World, model
from zoo.config.schema import BrokerConfig

# ---------------------------------------------------------------- loading


def test_first_use_loads_and_the_second_does_not() -> None:
    w = World([model("a")], 512)
    first = w.ask("a")
    assert w.starts() == ["a"]
    w.settle()
    second = w.ask("a")
    w.settle()
    assert (w.code(first), w.code(second)) == ("ok", "ok")
    assert w.starts() == ["a"]


def test_twenty_simultaneous_first_requests_start_one_process() -> None:
    w = World([model("a")], 512)
    asked = [w.ask("a", client=b"c%d" % i) for i in range(20)]
    assert w.starts() == ["a"]
    w.settle()
    assert all(w.code(r) == "ok" for r in asked)
    assert w.starts() == ["a"]


def test_three_models_load_one_after_another_while_a_warm_one_is_served_at_once() -> None:
    w = World([model(n, 100) for n in ("a", "b", "c", "warm")], 1000)
    w.load("warm")
    asked = [w.ask(n) for n in ("a", "b", "c")]
    assert w.starts() == ["warm", "a"]
    served = w.ask("warm")
    assert w.dispatches() == [served], "a load never delays a request for a loaded model"
    w.ready("a")
    assert w.starts() == ["warm", "a", "b"]
    w.settle()
    assert w.starts() == ["warm", "a", "b", "c"]
    assert all(w.code(r) == "ok" for r in [*asked, served])


def test_with_concurrent_loads_two_load_side_by_side() -> None:
    w = World([model(n, 100) for n in ("a", "b", "c")], 1000, concurrent_loads=2)
    for n in ("a", "b", "c"):
        w.ask(n)
    assert w.starts() == ["a", "b"]
    w.ready("b")
    assert w.starts() == ["a", "b", "c"]


def test_a_failing_load_lets_the_next_one_start_before_its_process_is_gone() -> None:
    w = World([model("a", 100), model("b", 100)], 1000)
    w.ask("a")
    w.ask("b")
    w.load_fails("a")
    assert w.starts() == ["a", "b"]


def test_requests_of_a_model_go_by_priority_then_by_age() -> None:
    w = World([model("a")], 512)
    low, first, second, urgent = (w.ask("a", priority=p) for p in (3, 2, 2, 0))
    w.settle()
    assert w.dispatches() == [urgent, first, second, low]


# ---------------------------------------------------------------- eviction


def test_the_older_of_two_goes_when_both_do_not_fit() -> None:
    w = World([model("a"), model("b")], 512)
    w.load("a")
    asked = w.ask("b")
    assert w.state("a") is State.EVICTING
    assert w.starts() == ["a"], "no start before the memory is back"
    w.exits("a", "killed")
    assert w.starts() == ["a"]
    w.memory_back("a")
    assert w.starts() == ["a", "b"]
    w.settle()
    assert w.code(asked) == "ok"


def test_what_was_touched_stays() -> None:
    w = World([model(n, 200) for n in ("a", "b", "c")], 512)
    w.load("a", "b")
    w.ask("a")
    w.settle()
    w.ask("c")
    assert (w.state("a"), w.state("b")) == (State.LOADED, State.EVICTING)


def test_low_goes_before_critical_even_if_used_later() -> None:
    w = World([model("c", 200, "CRITICAL"), model("l", 200, "LOW"), model("n", 200, "CRITICAL")], 512)
    w.load("c", "l")
    w.ask("n")
    assert (w.state("c"), w.state("l")) == (State.LOADED, State.EVICTING)


def test_critical_survives_a_request_for_high() -> None:
    w = World([model("c", 300, "CRITICAL"), model("h", 300, "HIGH")], 512)
    w.load("c")
    asked = w.ask("h", timeout=5)
    w.wait(6)
    assert w.state("c") is State.LOADED
    assert w.code(asked) == "deadline_exceeded"
    assert "CRITICAL" in w.answer(asked).message


def test_critical_goes_for_critical() -> None:
    w = World([model("c", 300, "CRITICAL"), model("d", 300, "CRITICAL")], 512)
    w.load("c")
    asked = w.ask("d")
    w.settle()
    assert w.code(asked) == "ok"


def test_a_victim_that_turns_out_unnecessary_is_spared() -> None:
    w = World([model("small", 100), model("large", 400), model("new", 400)], 500)
    w.load("small", "large")
    w.ask("new")
    assert (w.state("small"), w.state("large")) == (State.LOADED, State.EVICTING)


def test_larger_than_the_budget_is_refused_and_no_model_goes() -> None:
    w = World([model("a"), model("huge", 513)], 512)
    w.load("a")
    asked = w.ask("huge")
    assert w.code(asked) == "model_too_large"
    assert not w.answer(asked).retryable
    assert w.kills() == []


def test_room_promised_to_a_waiter_is_not_taken_back_by_its_victim() -> None:
    """The victim's own queue is older; still the room is the claimant's."""
    w = World([model("a"), model("b")], 512, patience_seconds=1.0)
    w.load("a")
    w.ask("a")
    older = [w.ask("a") for _ in range(5)]
    waiter = w.ask("b")
    w.wait(2)
    w.done("a")
    w.done("a")  # the one that lay ahead at its worker
    assert w.state("a") is State.EVICTING
    w.gone("a")
    assert w.starts() == ["a", "b"]
    w.settle()
    w.wait(3)
    w.settle()
    assert all(w.code(r) == "ok" for r in [waiter, *older])


def test_an_older_claim_comes_before_a_more_urgent_later_one() -> None:
    w = World([model("old", 500, "LOW"), model("x", 400), model("y", 400)], 512)
    w.load("old")
    w.ask("x", priority=3)
    w.ask("y", priority=0)
    w.gone("old")
    assert w.starts() == ["old", "x"]


def test_free_room_may_be_used_while_another_waits_for_a_busy_model() -> None:
    w = World([model("busy", 600), model("large", 700), model("small", 300)], 1000)
    w.load("busy")
    w.ask("busy")
    w.ask("large")
    w.ask("small")
    assert w.starts() == ["busy", "small"]


def test_patience_a_constantly_busy_model_yields_and_is_served_again_later() -> None:
    w = World([model("busy"), model("other")], 512, patience_seconds=1.0)
    w.load("busy")
    for _ in range(3):
        w.ask("busy")
    waiter = w.ask("other")
    for _ in range(9):
        w.wait(0.1)
        w.done("busy")
        w.ask("busy")
    assert w.state("busy") is State.LOADED, "patience is not over"
    w.wait(0.2)
    w.done("busy")
    w.done("busy")
    assert w.state("busy") is State.EVICTING
    assert any("yields" in line for line in w.story("busy"))
    w.gone("busy")
    w.ready("other")
    w.done("other")
    assert w.code(waiter) == "ok"
    w.wait(2)
    w.settle()
    assert w.open_questions() == []


def test_a_model_stops_yielding_when_the_waiter_gives_up() -> None:
    w = World([model("busy"), model("other")], 512, patience_seconds=1.0)
    w.load("busy")
    w.ask("busy")
    queued = w.ask("busy")
    waiter = w.ask("other")
    w.wait(2)
    assert w.worker("busy").phase is Phase.YIELDING
    w.withdraw(waiter)
    assert w.worker("busy").phase is not Phase.YIELDING
    w.settle()
    assert w.code(queued) == "ok"
    assert w.starts() == ["busy"]


def test_a_lease_on_a_yielding_model_lets_all_that_yielded_with_it_serve_again() -> None:
    w = World([model("busy", 300), model("idle", 200), model("new", 500)], 512, patience_seconds=1.0)
    w.load("busy", "idle")
    w.ask("busy")
    w.ask("new")
    w.wait(2)
    queued = w.ask("idle")
    assert queued not in w.dispatches(), "it yields too, the room of both is wanted"
    w.lease("idle")
    assert queued in w.dispatches()


def test_free_room_is_kept_for_a_big_one_that_has_lost_patience() -> None:
    """Else small ones, one after another, could keep it out until its deadline; before that they may have the room."""
    small = [model(f"small{i}", 100) for i in range(4)]
    w = World([model("busy", 400), model("big", 700), *small], 700, patience_seconds=1.0)
    w.load("busy")
    w.ask("busy")
    w.ask("big")
    w.ask("small0")
    assert w.state("small0") is State.LOADING
    w.settle(holding={"busy"})
    w.wait(1.0)
    w.ask("small1")
    assert w.state("small1") is State.UNLOADED
    w.done("busy")
    assert w.state("busy") is w.state("small0") is State.EVICTING
    w.settle()
    assert w.s.models["big"].loads == 1


def test_two_busy_models_that_do_not_fit_together_take_turns() -> None:
    w = World([model("a"), model("b")], 512, patience_seconds=1.0)
    served = {"a": 0, "b": 0}
    for n in ("a", "b"):
        w.ask(n)
    for _ in range(400):
        for p in list(w.processes.values()):
            if p.running:
                w.ask(p.model)
                served[p.model] += 1
                w.emit_done(p)
            else:
                w.step(p)
        w.wait(0.05)
    assert min(served.values()) > 40, served
    assert len(w.starts()) < 30, "turns last at least as long as the patience"


# ---------------------------------------------------------------- leases and pins


def test_while_everything_is_leased_a_request_waits_and_gets_room_when_a_lease_ends() -> None:
    w = World([model("a"), model("b")], 512)
    held = w.lease("a")
    w.settle()
    asked = w.ask("b", timeout=20)
    w.wait(5)
    assert w.kills() == []
    w.release(w.granted(held))
    w.settle()
    assert w.code(asked) == "ok"


def test_while_everything_is_leased_a_request_ends_with_the_reason_and_no_model_is_harmed() -> None:
    w = World([model("a"), model("b")], 512)
    w.lease("a")
    w.settle()
    asked = w.ask("b", timeout=5)
    w.wait(5)
    answer = w.answer(asked)
    assert answer.code == "deadline_exceeded"
    assert answer.retryable
    for piece in ("300 MB", "212 of 512 MB", "a 300 MB", "1 lease"):
        assert piece in answer.message
    assert w.kills() == []
    assert not w.s.registry.demands


def test_nested_leases_load_once_and_make_room_only_when_the_outermost_ends() -> None:
    w = World([model("a"), model("b")], 512)
    leases = []
    for _ in range(3):
        asked = w.lease("a")
        w.settle()
        leases.append(w.granted(asked))
    assert w.starts() == ["a"]
    waiter = w.ask("b")
    for lease in leases[:2]:
        w.release(lease)
        assert w.kills() == []
    w.release(leases[2])
    assert w.state("a") is State.EVICTING
    w.settle()
    assert w.code(waiter) == "ok"


def test_a_lease_can_be_ended_by_its_own_session_only_and_only_once() -> None:
    w = World([model("a")], 512)
    asked = w.lease("a")
    w.settle()
    lease = w.granted(asked)
    w.emit(Released(b"stranger", lease))
    assert len(w.s.registry.leases) == 1
    w.release(lease)
    w.emit(Released(b"c", lease))
    assert not w.s.registry.leases


def test_a_lease_outlives_a_crash_and_the_next_request_reloads() -> None:
    w = World([model("a")], 512)
    asked = w.lease("a", keep_alive=0)
    w.settle()
    w.exits("a")
    w.memory_back("a")
    w.ask("a")
    w.settle()
    assert w.state("a") is State.LOADED
    w.release(w.granted(asked))
    assert w.state("a") is State.EVICTING, "its keep_alive = 0 survived too"


def test_a_pinned_model_is_never_evicted_and_goes_once_unpinned() -> None:
    w = World([model("a", pinned=True), model("b")], 512)
    w.load("a")
    asked = w.ask("b")
    w.wait(100)
    assert w.state("a") is State.LOADED
    w.pin("a", False)
    w.settle()
    assert w.code(asked) == "ok"


def test_a_lease_is_granted_though_the_queue_is_full() -> None:
    w = World([model("a")], 512, max_queue=1)
    w.load("a")
    w.ask("a")  # runs
    w.ask("a")  # lies ahead
    w.ask("a")  # waits
    assert w.code(w.ask("a")) == "queue_full"
    assert w.code(w.lease("a")) == "ok"


# ---------------------------------------------------------------- when loads fail


def test_a_failed_load_answers_each_request_and_leaves_nothing_raised() -> None:
    w = World([model("a")], 512)
    asked = [w.ask("a"), w.lease("a"), w.preload("a")]
    w.load_fails("a", "weights are corrupt")
    for r in asked:
        assert w.code(r) == "load_failed"
        assert "weights are corrupt" in w.answer(r).message
    w.settle()
    assert w.state("a") is State.FAILED
    assert not w.s.ledger.charges()
    assert not w.s.registry.sessions
    assert not w.s.models["a"].leases


def test_back_off_doubles_to_five_minutes_and_the_next_success_clears_it() -> None:
    w = World([model("a")], 512)
    waits = []
    for _ in range(11):
        w.ask("a")
        w.load_fails("a")
        w.settle()
        refused = w.ask("a")
        assert w.code(refused) == "load_failed"
        waits.append(w.answer(refused).retry_after)
        w.wait(waits[-1])
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    good = w.ask("a")
    w.settle()
    assert w.code(good) == "ok"
    w.cleanup()
    w.settle()
    w.ask("a")
    w.load_fails("a")
    assert w.model("a").failures.retry_at == w.now + 1


def test_a_load_that_takes_too_long_is_killed() -> None:
    w = World([model("a")], 512, load_timeout=60)
    asked = w.ask("a")
    w.wait(59.9)
    assert w.kills() == []
    w.wait(0.2)
    assert len(w.kills()) == 1
    assert w.code(asked) == "load_failed"
    assert "load_timeout" in w.answer(asked).message
    w.settle()
    assert not w.s.ledger.charges()


def test_a_process_that_dies_while_loading_fails_the_load() -> None:
    w = World([model("a")], 512)
    asked = w.ask("a")
    w.exits("a", "signal 11")
    assert w.code(asked) == "load_failed"
    assert "signal 11" in w.answer(asked).message
    assert w.kills() == [], "there is no process left to kill"
    w.memory_back("a")
    assert w.state("a") is State.FAILED


# ---------------------------------------------------------------- when workers crash or hang


def test_a_request_is_retried_once_on_a_fresh_process() -> None:
    w = World([model("a")], 512)
    w.load("a")
    asked = w.ask("a")
    w.exits("a")
    assert w.code(asked) is None
    w.memory_back("a")
    w.ready("a")
    last = [x for x in w.actions if isinstance(x, SendBatch)][-1]
    assert (last.batch, last.suspect) == ([(asked, f"in{asked}")], True)
    w.done("a")
    assert w.code(asked) == "ok"


def test_the_second_crash_ends_the_request_and_its_input_is_refused_from_then_on() -> None:
    w = World([model("a")], 512)
    w.load("a")
    asked = w.ask("a")
    bystander = w.ask("a")
    for _ in range(2):
        w.says("a", b"digest")
        w.exits("a")
        w.memory_back("a")
        w.ready("a")
    assert w.code(asked) == "worker_crashed"
    assert not w.answer(asked).retryable
    last = [x for x in w.actions if isinstance(x, SendBatch)][-1]
    assert (last.batch, last.suspect, last.refuse) == ([(bystander, f"in{bystander}")], False, (b"digest",))
    w.settle()
    assert w.code(bystander) == "ok"


def test_a_hanging_worker_is_killed_gently_and_the_frames_come_back_with_its_end() -> None:
    w = World([model("a")], 512, dispatch_timeout=30)
    w.load("a")
    asked = w.ask("a")
    queued = w.ask("a")
    w.wait(31)
    kill = next(x for x in w.actions if isinstance(x, KillWorker))
    assert kill.gentle
    assert w.code(asked) == "worker_hung"
    assert w.answer(asked).held
    assert not any(isinstance(x, Settled) for x in w.actions)
    w.exits("a", "signal 15")
    assert w.actions[-1] == Settled(asked, kill.worker)
    w.memory_back("a")
    w.settle()
    assert w.code(queued) == "ok"


def hang(w: World, digest: bytes | None = None) -> tuple[int, bool]:
    """A request of `a` hangs and its process ends: its number, and if it went as a suspect."""
    asked = w.ask("a", timeout=20.0)
    last = [x for x in w.actions if isinstance(x, SendBatch)][-1]
    if last.suspect and digest is not None:
        w.says("a", digest)
    w.wait(31)
    w.gone("a")
    return asked, last.suspect


def hung_twice() -> World:
    """A world in which the input `bad` has hung two processes of `a`."""
    w = World([model("a")], 512, dispatch_timeout=30)
    w.load("a")
    hang(w)
    w.load("a")
    hang(w, b"bad")
    w.load("a")
    return w


def refused(w: World) -> tuple[bytes, ...]:
    """What the model's worker is told to refuse with the next request."""
    w.ask("a")
    last = [x for x in w.actions if isinstance(x, SendBatch)][-1]
    w.settle()
    return last.refuse


def test_an_input_that_hangs_a_second_process_is_refused_from_then_on() -> None:
    w = World([model("a")], 512, dispatch_timeout=30)
    w.load("a")
    assert hang(w)[1] is False, "nothing is hashed on the normal path"
    w.load("a")
    asked, suspect = hang(w, b"bad")
    assert suspect, "the same input may come again"
    assert w.code(asked) == "deadline_exceeded", "answered long before the process was known to hang"
    w.load("a")
    assert refused(w) == (b"bad",)


def test_the_answer_says_that_the_input_is_refused_from_then_on() -> None:
    w = World([model("a")], 512, dispatch_timeout=30)
    w.load("a")
    hang(w)
    w.load("a")
    asked = w.ask("a")
    w.says("a", b"bad")
    w.wait(31)
    assert w.code(asked) == "worker_hung"
    assert "the same input will be refused from now on" in w.answer(asked).message


def test_after_a_hang_those_in_the_queue_and_those_who_come_are_suspects_for_a_while() -> None:
    w = World([model("a")], 512, dispatch_timeout=30, max_batch=4)
    w.load("a")
    w.ask("a")
    for _ in range(2):
        w.ask("a", client=b"queued")
    w.wait(31)
    w.gone("a")
    w.settle()
    w.ask("a")
    w.settle()
    sent = [x for x in w.actions if isinstance(x, SendBatch)][-3:]
    assert [(len(x.batch), x.suspect) for x in sent] == [(1, True)] * 3
    w.wait(300.0)
    w.load("a")
    w.ask("a")
    w.settle()
    assert not [x for x in w.actions if isinstance(x, SendBatch)][-1].suspect


def test_a_model_is_wary_of_so_many_requests_after_a_hang_and_no_more() -> None:
    w = World([model("a")], 512, dispatch_timeout=30)
    w.load("a")
    hang(w)
    w.load("a")
    for _ in range(250):
        w.ask("a")
        w.settle()
    sent = [x for x in w.actions if isinstance(x, SendBatch)]
    assert 190 <= sum(x.suspect for x in sent) <= 200
    assert not sent[-1].suspect


def test_an_unload_lifts_the_quarantine() -> None:
    w = hung_twice()
    assert refused(w) == (b"bad",)
    w.unload("a")
    w.settle()
    w.load("a")
    assert refused(w) == ()


def test_an_unload_of_a_model_that_is_not_loaded_lifts_it_too_and_one_that_is_refused_does_not() -> None:
    w = hung_twice()
    lease = w.lease("a")
    assert w.code(w.unload("a")) == "model_in_use"
    w.release(w.granted(lease))
    assert refused(w) == (b"bad",)
    w.cleanup()
    w.settle()
    w.unload("a")
    w.load("a")
    assert refused(w) == ()


def test_other_weights_or_another_adapter_lift_the_quarantine_and_the_back_off() -> None:
    w = hung_twice()
    w.emit(Remembered("a", "first", {}))
    assert refused(w) == (b"bad",), "it is only now known which they are"
    w.emit(Remembered("a", "second", {}))
    assert refused(w) == ()
    w.cleanup()
    w.settle()
    w.preload("a")
    w.load_fails("a")
    w.settle()
    assert w.code(w.ask("a")) == "load_failed"
    w.emit(Remembered("a", "third", {}))
    asked = w.ask("a")
    w.settle()
    assert w.code(asked) == "ok", "at once"


def test_the_watch_counts_from_each_dispatch() -> None:
    w = World([model("a", dispatch_timeout=10.0)], 512)
    w.load("a")
    w.ask("a")
    w.wait(9)
    w.ask("a")
    w.done("a")
    w.wait(9)
    assert w.kills() == []
    w.wait(1.1)
    assert len(w.kills()) == 1


def test_when_the_killed_hanging_worker_was_all_that_stood_in_the_way_room_is_made_at_once() -> None:
    w = World([model("hung", 300), model("idle", 200), model("new", 500)], 512, dispatch_timeout=5, patience_seconds=1)
    w.load("idle", "hung")
    w.ask("hung")
    w.ask("new")
    w.wait(6)
    assert (w.state("hung"), w.state("idle")) == (State.EVICTING, State.EVICTING)


# ---------------------------------------------------------------- idle, keep_alive, unload


def test_idle_models_go_after_idle_seconds() -> None:
    w = World([model("a", 100), model("b", 100, idle_seconds=10.0)], 512, idle_seconds=300)
    w.load("a", "b")
    w.wait(11)
    assert (w.state("a"), w.state("b")) == (State.LOADED, State.EVICTING)
    w.wait(290)
    assert w.state("a") is State.EVICTING


def test_leased_pinned_and_recently_used_models_are_not_idle() -> None:
    w = World([model(n, 100) for n in ("leased", "pinned", "used")], 512, idle_seconds=300)
    w.load("leased", "pinned", "used")
    w.lease("leased")
    w.pin("pinned")
    for _ in range(5):
        w.wait(200)
        w.ask("used")
        w.settle()
    assert w.kills() == []
    assert [worker.name for worker in w.s.idle_workers(0.0, w.now)] == ["used"]


def test_cleanup_takes_what_is_not_used() -> None:
    w = World([model(n, 100) for n in ("a", "b", "busy")], 512)
    w.load("a")
    w.wait(60)
    w.load("b", "busy")
    w.ask("busy")
    w.cleanup(30)
    assert [w.state(n) for n in ("a", "b", "busy")] == [State.EVICTING, State.LOADED, State.LOADED]


def test_keep_alive_0_unloads_with_the_last_reference() -> None:
    w = World([model("a")], 512)
    first, second = w.lease("a", keep_alive=0), w.lease("a")
    w.settle()
    w.release(w.granted(first))
    assert w.state("a") is State.LOADED
    w.release(w.granted(second))
    assert w.state("a") is State.EVICTING


def test_keep_alive_5_unloads_five_seconds_after_the_last_use() -> None:
    w = World([model("a")], 512)
    held = w.lease("a", keep_alive=5)
    w.settle()
    w.wait(100)
    w.release(w.granted(held))
    w.wait(4.9)
    assert w.state("a") is State.LOADED
    w.wait(0.2)
    assert w.state("a") is State.EVICTING


def test_a_preload_with_a_shorter_keep_alive_counts_though_the_model_is_loaded_and_idle() -> None:
    w = World([model("a")], 512, idle_seconds=300)
    w.load("a")
    w.preload("a", keep_alive=5)
    w.wait(6)
    assert w.state("a") is State.EVICTING


def test_unload_drains_newcomers_wait_for_the_next_life_and_true_comes_after_the_memory() -> None:
    w = World([model("a")], 512)
    w.load("a")
    running, queued = w.ask("a"), w.ask("a")
    gone = w.unload("a")
    later = w.ask("a")
    assert w.state("a") is State.DRAINING
    w.done("a")
    w.done("a")
    assert (w.code(running), w.code(queued)) == ("ok", "ok")
    assert w.state("a") is State.EVICTING
    w.exits("a", "killed")
    assert w.code(gone) is None
    w.memory_back("a")
    assert w.answer(gone).value is True
    w.settle()
    assert w.code(later) == "ok"
    assert w.starts() == ["a", "a"]


def test_unload_of_what_is_not_loaded_says_so() -> None:
    w = World([model("a")], 512)
    assert w.answer(w.unload("a")).value is False


def test_unload_of_a_leased_or_pinned_model_is_refused() -> None:
    w = World([model("a", 100), model("p", 100, pinned=True)], 512)
    w.lease("a")
    w.settle()
    w.load("p")
    for name, why in (("a", "1 lease"), ("p", "pinned")):
        asked = w.unload(name)
        assert w.code(asked) == "model_in_use"
        assert why in w.answer(asked).message
    assert w.kills() == []


def test_unload_while_loading_lets_waiters_have_their_answers_first() -> None:
    w = World([model("a")], 512)
    asked = w.ask("a")
    gone = w.unload("a")
    w.settle()
    assert w.code(asked) == "ok"
    assert w.answer(gone).value is True
    assert w.starts() == ["a"]


def test_unload_while_loading_is_refused_if_a_lease_was_waiting() -> None:
    w = World([model("a")], 512)
    w.lease("a")
    gone = w.unload("a")
    w.settle()
    assert w.code(gone) == "model_in_use"
    assert w.state("a") is State.LOADED


def test_a_pin_during_the_drain_keeps_the_model() -> None:
    w = World([model("a")], 512)
    w.load("a")
    w.ask("a")
    gone = w.unload("a")
    later, held = w.ask("a"), w.lease("a")
    w.pin("a")
    assert w.state("a") is State.LOADED
    assert w.code(gone) == "model_in_use"
    assert w.code(held) == "ok"
    w.settle()
    assert w.code(later) == "ok"
    assert w.kills() == []


def test_an_unload_makes_room_for_what_waits() -> None:
    w = World([model("c", 300, "CRITICAL"), model("i", 200), model("new", 512)], 512)
    w.load("c", "i")
    w.ask("new")
    w.unload("c")
    assert w.state("i") is State.EVICTING, "at once, not only when the memory of the first is back"


# ---------------------------------------------------------------- clients


def test_a_closed_session_releases_its_leases_and_drops_its_queue() -> None:
    w = World([model("a"), model("b")], 512)
    w.lease("a", client=b"gone")
    w.settle()
    running = w.ask("a", client=b"gone")
    queued = w.ask("a", client=b"gone")
    cold = w.ask("b", client=b"gone")
    waiter = w.ask("b", client=b"other")
    w.close(b"gone")
    assert all(isinstance(w.answer(r), Forget) for r in (running, queued, cold))
    w.done("a")
    assert any(isinstance(x, Settled) and x.request == running for x in w.actions)
    w.settle()
    assert w.code(waiter) == "ok"
    assert not w.s.registry.sessions


def test_a_queued_request_can_be_withdrawn() -> None:
    w = World([model("a")], 512)
    w.load("a")
    w.ask("a"), w.ask("a")
    queued = w.ask("a")
    w.withdraw(queued)
    assert w.code(queued) == "cancelled"
    assert not w.answer(queued).held
    w.settle()
    assert queued not in w.dispatches()


def test_a_running_request_can_be_withdrawn_and_its_frames_come_back_when_the_worker_lets_go() -> None:
    w = World([model("a")], 512)
    w.load("a")
    running = w.ask("a")
    w.withdraw(running)
    assert w.answer(running).held
    w.done("a")
    settled = next(x for x in w.actions if isinstance(x, Settled))
    assert (settled.request, settled.body) == (running, f"out{running}")
    assert not any(isinstance(x, Deliver) for x in w.actions)


def test_a_full_queue_refuses_and_says_when_to_retry() -> None:
    w = World([model("a")], 512, max_queue=3)
    for _ in range(3):
        w.ask("a")
    refused = w.answer(w.ask("a"))
    assert (refused.code, refused.retryable) == ("queue_full", True)
    assert refused.retry_after > 0


def test_a_request_whose_deadline_passes_in_the_queue_is_never_dispatched() -> None:
    w = World([model("a")], 512)
    w.load("a")
    w.ask("a"), w.ask("a")
    queued = w.ask("a", timeout=1)
    w.wait(1)
    assert w.code(queued) == "deadline_exceeded"
    w.settle()
    assert queued not in w.dispatches()


def test_an_expired_request_is_not_dispatched_even_if_the_tick_is_late() -> None:
    w = World([model("a")], 512)
    w.load("a")
    w.ask("a"), w.ask("a")
    queued, held, fresh = w.ask("a", timeout=1), w.ask("a", timeout=1), w.ask("a")
    w.now += 2
    w.done("a")
    assert w.code(queued) == w.code(held) == "deadline_exceeded"
    assert w.dispatches()[-1] == fresh


def test_an_expired_lease_is_not_granted_when_the_model_becomes_ready() -> None:
    w = World([model("a")], 512)
    late = w.lease("a", timeout=1)
    w.now += 2
    w.ready("a")
    assert w.code(late) == "deadline_exceeded"
    assert not w.s.registry.leases


def test_a_deadline_while_running_answers_at_once_and_holds_the_frames() -> None:
    w = World([model("a")], 512)
    w.load("a")
    asked = w.ask("a", timeout=1)
    w.wait(1)
    assert w.code(asked) == "deadline_exceeded"
    assert w.answer(asked).held
    w.done("a")
    assert w.questions[asked].settled == 1


@pytest.mark.parametrize(
    ("more", "ask", "code"),
    [
        ({}, {"name": "b"}, "model_not_found"),
        ({"enabled": False}, {"name": "a"}, "model_disabled"),
        ({}, {"name": "a", "problem": "run `zoo pull a`"}, "model_unavailable"),
        ({}, {"name": "a", "timeout": 0.0}, "deadline_exceeded"),
    ],
)
def test_what_cannot_be_served_is_refused_at_once(more, ask, code) -> None:
    w = World([model("a", **more)], 512)
    assert w.code(w.ask(**ask)) == code
    assert not w.starts()
    assert not w.s.registry.sessions


def test_a_problem_with_the_weights_does_not_matter_while_the_model_is_loaded() -> None:
    w = World([model("a")], 512)
    w.load("a")
    asked = w.ask("a", problem="its weights were deleted")
    w.settle()
    assert w.code(asked) == "ok"


# ---------------------------------------------------------------- memory and devices


def test_memory_that_does_not_come_back_stays_charged_and_is_reported_until_it_does() -> None:
    w = World([model("a"), model("b")], 512)
    w.load("a")
    asked = w.ask("b", timeout=100)
    w.exits("a", "killed")
    w.memory_stuck("a")
    assert w.s.status(w.now)["vram_used_mb"] == 300
    assert any("have not come back" in line for line in w.story("a"))
    w.wait(1)
    assert w.starts() == ["a"]
    w.memory_back("a")
    w.settle()
    assert w.code(asked) == "ok"


def test_a_model_goes_to_the_device_where_it_fits() -> None:
    w = World([model("a"), model("b"), model("large", 600)], 512, 1024)
    for n in ("a", "b", "large"):
        w.ask(n)
    w.settle()
    assert {p.model: p.device for p in w.processes.values()} == {"a": "gpu1", "b": "gpu0", "large": "gpu1"}
    assert w.kills() == []


def test_of_two_devices_the_one_with_the_less_valuable_victims_gives_room() -> None:
    w = World([model("h", 300, "HIGH"), model("l", 500, "LOW"), model("new", 300, "HIGH")], 400, 512)
    w.load("h", "l")
    w.ask("new")
    assert (w.state("h"), w.state("l")) == (State.LOADED, State.EVICTING)


def test_a_claimant_does_not_have_others_killed_on_the_second_device_while_the_first_loads() -> None:
    w = World([model("v", 300), model("k", 700, "HIGH"), model("new", 400), model("s", 50)], 500, 700)
    w.load("v", "k")
    w.ask("new")
    assert (w.state("v"), w.state("k")) == (State.EVICTING, State.LOADED)
    w.ask("s")
    assert w.state("s") is State.LOADING
    w.ask("s")
    w.gone("v")
    assert w.state("k") is State.LOADED
    w.settle()
    assert w.state("new") is State.LOADED
    assert w.state("k") is State.LOADED


# ---------------------------------------------------------------- shutting down


def test_shutdown_finishes_what_runs_refuses_the_rest_and_stops() -> None:
    w = World([model("a", 200), model("b", 200)], 512)
    w.load("a")
    running, queued, cold = w.ask("a"), w.ask("a"), w.ask("b")
    w.shut_down(grace=5)
    assert w.code(cold) == "broker_unreachable"
    assert w.code(w.ask("a")) == "broker_unreachable"
    w.done("a")
    w.done("a")
    assert (w.code(running), w.code(queued)) == ("ok", "ok")
    assert len(w.kills()) == 2
    w.settle()
    assert isinstance(w.actions[-1], Stop)


def test_shutdown_ends_with_the_grace_period() -> None:
    w = World([model("a")], 512)
    w.load("a")
    running = w.ask("a")
    w.shut_down(grace=5)
    w.wait(5)
    assert w.code(running) == "broker_unreachable"
    assert w.answer(running).held
    w.settle()
    assert w.stopped
    assert w.questions[running].settled == 1


def test_shutdown_lets_a_draining_model_finish_and_ends_yielding() -> None:
    w = World([model("a", 200), model("b", 300), model("new", 500)], 512, patience_seconds=1)
    w.load("a", "b")
    draining = w.ask("a")
    w.unload("a")
    running, queued = w.ask("b"), w.ask("b")
    w.ask("new")
    w.wait(2)
    w.shut_down(grace=5)
    w.done("b")
    w.done("b")
    w.done("a")
    assert [w.code(r) for r in (draining, running, queued)] == ["ok"] * 3
    w.settle()
    assert w.stopped
    assert not w.s.registry.sessions


def test_a_crash_during_shutdown_does_not_use_up_the_grace_period() -> None:
    w = World([model("a")], 512)
    w.load("a")
    running = w.ask("a")
    w.shut_down(grace=100)
    w.exits("a")
    assert w.code(running) == "broker_unreachable"
    w.settle()
    assert w.stopped


def test_leases_end_with_the_shutdown() -> None:
    w = World([model("a")], 512)
    held = w.lease("a")
    w.settle()
    w.shut_down(grace=5)
    w.emit(Released(b"c", w.granted(held)))
    w.settle()
    assert w.stopped
    assert not w.s.registry.sessions
    assert not w.s.registry.leases


# ---------------------------------------------------------------- what it tells, what it keeps


def test_the_story_has_the_arithmetic() -> None:
    w = World([model("a"), model("b")], 512)
    w.load("a")
    w.ask("b")
    w.settle()
    story = "\n".join(w.story())
    assert "loading on gpu0: 1 waiting; 0 + 300 = 300 of 512 MB" in story
    assert "evicted, 300 MB on gpu0: b needs 300 MB, 88 MB short of 512; MEDIUM, unused for 0.0 s" in story


def test_the_story_is_not_flooded_while_a_request_waits() -> None:
    w = World([model("a", 300, "CRITICAL"), model("b")], 512)
    w.load("a")
    w.ask("b")
    before = w.s.story.count
    for _ in range(100):
        w.ask("a")
        w.settle()
    assert w.s.story.count == before


def test_timers_and_queues_do_not_grow_with_the_requests() -> None:
    """A hundred thousand requests with deadlines far away, one model; nothing of them is left."""
    s = Scheduler(BrokerConfig(), [Device("gpu0", "cuda", 512)], [model("a")])
    now, most = 0.0, 0
    s.handle(Asked(0, b"c", "a", Kind.PRELOAD, 1e9), now)
    s.handle(WorkerReady(1), now)
    for i in range(1, 100_001):
        now += 0.0005
        s.handle(Asked(i, b"c", "a", Kind.INFER, now + 30, 2, None, (i % 2) * 100.0), now)
        s.handle(WorkerDone(1, [Finished(i)]), now)
        wake = s.next_wakeup()
        if wake is not None and wake <= now:
            s.handle(Tick(), now)
        most = max(most, len(list(s.registry.timers)))
    assert most <= 2 * 4096 + 1
    assert not s.registry.requests
    assert not s.registry.sessions


def test_idle_timers_do_not_multiply_when_the_keep_alive_keeps_changing() -> None:
    w = World([model("a")], 512)
    w.load("a")
    for i in range(500):
        w.preload("a", keep_alive=[300.0, 5.0][i % 2])
        w.wait(1)
    for _ in range(20):
        w.preload("a", keep_alive=300.0)
        w.wait(100)
    assert len(list(w.s.registry.timers)) < 10


def test_a_queue_sweeps_out_what_was_answered() -> None:
    w = World([model("a")], 512, max_queue=10_000, strict=False)
    w.check_books = lambda: None  # type: ignore[method-assign]
    asked = [w.ask("a", client=b"x") for _ in range(1000)]
    for r in asked[1:]:
        w.withdraw(r)
    queue = w.model("a").queue
    assert queue.live == 1
    assert queue.entries <= 2 * queue.live + 64


def test_a_warm_request_costs_the_scheduler_some_ten_microseconds() -> None:
    s = Scheduler(BrokerConfig(), [Device("gpu0", "cuda", 512)], [model("a")])
    s.handle(Asked(0, b"c", "a", Kind.PRELOAD, 1e9), 0.0)
    s.handle(WorkerReady(1), 0.0)
    best, number = 1.0, 0
    for _ in range(10):
        begun = time.perf_counter()
        for _ in range(1000):
            number += 1
            s.handle(Asked(number, b"c", "a", Kind.INFER, 1e9), 1.0)
            s.handle(WorkerDone(1, [Finished(number)]), 1.0)
        best = min(best, (time.perf_counter() - begun) / 1000)
        s.next_wakeup()
    print(f"\n{best * 1e6:.1f} microseconds per warm request")
    assert best < 200e-6, "ten times what it costs on a quiet core"


def test_only_refusals_and_starts_come_without_a_worker() -> None:
    """A first request gives exactly one action: the start."""
    w = World([model("a")], 512)
    w.ask("a")
    assert [type(x) for x in w.actions] == [StartWorker]
    w.load_fails("a")
    assert [type(x) for x in w.actions] == [StartWorker, KillWorker, Refuse]


# ---------------------------------------------------------------- batches, and one of them ahead


def test_one_request_lies_ahead_at_the_worker_and_no_more() -> None:
    w = World([model("a")], 512)
    w.load("a")
    requests = [w.ask("a") for _ in range(4)]
    assert w.dispatches() == requests[:2]
    w.done("a")
    assert w.dispatches() == requests[:3]


def test_what_has_queued_goes_out_as_one_batch() -> None:
    w = World([model("a")], 512, max_batch=4)
    w.load("a")
    requests = [w.ask("a") for _ in range(9)]
    assert [len(batch) for batch in w.batches()] == [1, 1], "no request waits for company"
    w.done("a")
    w.done("a")
    assert [len(batch) for batch in w.batches()] == [1, 1, 4, 3]
    assert w.dispatches() == requests
    w.settle()
    assert {w.code(r) for r in requests} == {"ok"}


def test_a_batch_does_not_take_much_longer_than_one_request() -> None:
    """The first in a batch waits for the last: a slow model runs them one by one."""
    w = World([model("a")], 512, max_batch=8)
    w.load("a")
    for _ in range(12):
        w.ask("a")
    w.wait(1)
    w.done("a")
    w.done("a")
    assert [len(batch) for batch in w.batches()] == [1, 1, 1, 1]


def test_one_bad_request_of_a_batch_fails_alone() -> None:
    w = World([model("a")], 512, max_batch=4)
    w.load("a")
    first, second, bad, good = [w.ask("a") for _ in range(4)]
    w.done("a")
    w.done("a")
    w.done("a", ("invalid_input", "boxes: NaN"))
    assert [w.code(r) for r in (first, second, bad, good)] == ["ok", "ok", "invalid_input", "ok"]


def test_after_a_crash_each_of_the_batch_is_tried_alone_and_only_the_culprit_is_refused() -> None:
    w = World([model("a")], 512, max_batch=4)
    w.load("a")
    requests = [w.ask("a") for _ in range(4)]
    w.done("a")
    w.done("a")
    w.exits("a")
    w.memory_back("a")
    w.ready("a")
    assert w.batches()[-1] == [requests[2]], "a suspect runs alone"
    w.exits("a")
    w.memory_back("a")
    w.settle()
    assert [w.code(r) for r in requests] == ["ok", "ok", "worker_crashed", "ok"]


def test_a_suspect_does_not_come_in_beside_others_in_place_of_one_that_is_too_late() -> None:
    w = World([model("a")], 512)
    w.load("a")
    suspect = w.ask("a")
    w.exits("a")
    w.memory_back("a")
    w.ask("a", priority=0), w.ask("a", priority=0)
    late = w.ask("a", priority=0, timeout=0.7)
    w.ready("a")
    w.now += 0.5
    w.done("a")
    assert w.code(late) == "deadline_exceeded", "0.2 s are left, and one takes 0.5 s"
    w.settle()
    assert w.code(suspect) == "ok"


def test_after_a_hang_each_of_the_batch_is_tried_alone() -> None:
    w = World([model("a", dispatch_timeout=1.0)], 512, max_batch=4)
    w.load("a")
    requests = [w.ask("a") for _ in range(4)]
    w.done("a")
    w.done("a")
    ahead = w.ask("a")
    w.wait(1)
    assert w.state("a") is State.EVICTING
    assert [w.code(r) for r in requests[2:]] == [None, None]
    w.gone("a")
    w.ready("a")
    w.wait(1)
    assert w.code(requests[2]) == "worker_hung"
    w.settle()
    assert (w.code(requests[3]), w.code(ahead)) == ("ok", "ok")


def test_the_clock_of_a_hang_starts_when_the_worker_gets_to_the_request() -> None:
    w = World([model("a", dispatch_timeout=10.0)], 512)
    w.load("a")
    w.ask("a"), w.ask("a", timeout=100)
    w.wait(9)
    w.done("a")
    w.wait(9)
    assert w.state("a") is State.LOADED
    w.wait(1)
    assert w.state("a") is State.EVICTING


def test_when_the_worker_crashes_the_one_ahead_is_not_to_blame() -> None:
    w = World([model("a")], 512)
    w.load("a")
    running, ahead = w.ask("a"), w.ask("a")
    w.exits("a")
    w.memory_back("a")
    w.ready("a")
    assert w.dispatches()[-1] == running, "the suspect runs alone"
    w.exits("a")
    assert w.code(running) == "worker_crashed"
    w.memory_back("a")
    w.settle()
    assert w.code(ahead) == "ok"


def test_when_the_worker_hangs_the_one_ahead_is_served_by_the_next() -> None:
    w = World([model("a", dispatch_timeout=1.0)], 512)
    w.load("a")
    stuck, ahead = w.ask("a"), w.ask("a")
    w.wait(1)
    assert w.code(stuck) == "worker_hung"
    w.settle()
    assert w.code(ahead) == "ok"


def test_a_withdrawn_request_that_lies_ahead_keeps_its_frames_until_the_worker_is_through() -> None:
    w = World([model("a")], 512)
    w.load("a")
    w.ask("a")
    ahead = w.ask("a")
    w.withdraw(ahead)
    assert w.answer(ahead).held
    w.settle()
    assert w.open_questions() == []


def test_the_picture_on_the_design_page_is_the_table_of_transitions() -> None:
    text = (Path(__file__).parents[2] / "docs" / "design.md").read_text()
    assert f"stateDiagram-v2\n{diagram()}\n" in text


def test_a_model_that_is_pinned_by_a_new_configuration_while_it_drains_stays() -> None:
    w = World([model("a", 300)])
    w.load("a")
    running = w.ask("a")
    unload = w.unload("a")
    assert w.state("a") is State.DRAINING
    w.reconfigure([model("a", 300, pinned=True)])
    assert w.code(unload) == "model_in_use"
    w.done("a")
    assert w.code(running) == "ok"
    assert w.state("a") is State.LOADED


def test_an_empty_answer_of_a_worker_that_has_nothing_is_not_heard() -> None:
    w = World([model("a", 300)])
    w.load("a")
    assert not w.emit(WorkerDone(w.process("a").worker, []))
    assert w.state("a") is State.LOADED


def test_memory_that_comes_back_from_a_worker_that_lives_changes_nothing() -> None:
    w = World([model("a", 300)])
    w.load("a")
    assert not w.emit(MemoryBack(w.process("a").worker))
    assert w.state("a") is State.LOADED


def test_leases_of_a_model_that_crashed_end_with_the_broker() -> None:
    w = World([model("a", 300)])
    w.load("a")
    w.lease("a")
    w.exits("a")
    w.shut_down(0.0)
    assert not w.s.registry.sessions
    w.memory_back("a")
    assert w.stopped
