"""From a worker's start to its end, step by step: numbers, timers, counts, and what the story says of it."""

from __future__ import annotations

import pytest

from broker.scheduler.events import (
    KillWorker,
    LoadedEarlier,
    MemoryBack,
    MemoryStuck,
    SendBatch,
    Stop,
    Tick,
    WorkerDone,
    WorkerExited,
    WorkerLoadFailed,
    WorkerReady,
)
from broker.scheduler.state import State
from tests.scheduler.world import World, model


def text(w: World, name: str, kind: str) -> list[str]:
    return [line.text for line in w.s.decisions(name) if line.kind == kind]


def test_a_load_is_ended_at_its_timeout_and_not_before() -> None:
    w = World([model("a")], 512, load_timeout=30.0)
    asked = w.ask("a")
    w.wait(29.99)
    assert w.state("a") is State.LOADING
    assert w.s.next_wakeup() == pytest.approx(w.now + 0.01)
    w.wait(0.02)
    assert w.answer(asked).message == "a could not be loaded: it took longer than load_timeout (30 s)"
    assert text(w, "a", "load failed") == [
        "load failed: it took longer than load_timeout (30 s); no further try for 1 s"
    ]


def test_a_batch_is_ended_at_its_timeout_and_not_before() -> None:
    w = World([model("a")], 512, dispatch_timeout=10.0)
    w.load("a")
    hung = w.ask("a")
    w.wait(9.99)
    assert w.state("a") is State.LOADED
    w.wait(0.02)
    assert w.answer(hung).message == "a did not answer within dispatch_timeout (10 s) and was killed"
    assert w.answer(hung).held
    assert KillWorker(1, gentle=True) in w.actions
    assert text(w, "a", "killed") == [f"killed: request {hung} ran longer than dispatch_timeout (10 s)"]
    assert w.model("a").crashes == 1


def test_the_next_batch_has_the_whole_timeout() -> None:
    w = World([model("a")], 512, dispatch_timeout=10.0)
    w.load("a")
    w.ask("a")
    second = w.ask("a")
    w.wait(9.0)
    w.done("a")
    w.wait(9.5)
    assert w.code(second) is None
    w.wait(0.6)
    assert w.code(second) == "worker_hung"


def test_a_load_that_is_through_is_not_watched_any_more() -> None:
    w = World([model("a")], 512, load_timeout=30.0, idle_seconds=1000.0)
    w.preload("a")
    w.settle()
    assert w.s.next_wakeup() == w.now + 1000.0


def test_a_load_says_where_and_with_what_it_begins_and_how_long_it_took() -> None:
    w = World([model("a", 100), model("b", 200)], 512)
    w.load("a")
    w.ask("b")
    w.now += 1.23456
    w.settle()
    assert text(w, "b", "loading") == ["loading on gpu0: 1 waiting; 100 + 200 = 300 of 512 MB"]
    assert text(w, "b", "loaded") == ["loaded in 1.24 s"]
    (line,) = [line for line in w.s.decisions("b") if line.kind == "loaded"]
    assert line.fields["seconds"] == 1.235
    assert (w.model("b").loads, w.model("b").least_load_s) == (1, pytest.approx(1.23456))


def test_an_eviction_says_for_how_long_the_model_was_unused_and_is_counted_by_priority() -> None:
    w = World([model("a", 100, "LOW"), model("b", 100)], 512)
    w.load("a", "b")
    w.now += 2.5
    w.cleanup(2.0)
    (line,) = [line for line in w.s.decisions("a") if line.kind == "evicted"]
    assert line.text == "evicted, 100 MB on gpu0: clean-up: idle for 2.5 s"
    assert line.fields["unused_seconds"] == pytest.approx(2.502, abs=0.0011)
    w.settle()
    w.load("a")
    w.cleanup()
    assert w.s.evictions == {("a", "LOW"): 2, ("b", "MEDIUM"): 1}
    assert w.model("a").evictions == 2


def test_a_clean_up_takes_what_has_been_idle_for_just_so_long() -> None:
    w = World([model("a", 100), model("b", 100)], 512)
    w.load("a")
    w.now += 4.0
    w.load("b")
    a = w.worker("a").last_used
    w.now = a + 8.0
    w.cleanup(8.0)
    assert [w.state(n) for n in "ab"] == [State.EVICTING, State.LOADED]


def test_an_idle_model_goes_after_its_idle_time_and_says_so() -> None:
    w = World([model("a", 100, idle_seconds=5.0), model("b", 100)], 512, idle_seconds=8.0)
    w.load("a", "b")
    w.wait(10)
    assert text(w, "a", "evicted") == ["evicted, 100 MB on gpu0: idle for 5.0 s"]
    assert text(w, "b", "evicted") == ["evicted, 100 MB on gpu0: idle for 8.0 s"]


def test_numbers_of_workers_batches_and_leases_begin_with_1_and_are_never_used_twice() -> None:
    w = World([model("a")], 512)
    leases = [w.lease("a"), w.lease("a")]
    w.settle()
    assert [w.granted(n) for n in leases] == [1, 2]
    first, second = w.ask("a"), w.ask("a")
    assert [w.s.registry.requests[n].batch for n in (first, second)] == [1, 2]
    w.exits("a")
    w.memory_back("a")
    assert w.process("a").worker == 2
    w.settle()
    assert w.granted(w.lease("a")) == 3


def test_late_words_of_a_worker_that_is_gone_change_nothing() -> None:
    w = World([model("a")], 512)
    w.load("a")
    number = w.process("a").worker
    late = [
        WorkerReady(number), WorkerLoadFailed(number, "load_failed", "late"), WorkerDone(number, []),
    ]  # fmt: skip
    for event in late:
        assert w.s.handle(event, w.now) == []
        assert w.state("a") is State.LOADED
    w.cleanup()
    w.settle()
    for event in (*late, WorkerExited(number, "late"), MemoryBack(number), MemoryStuck(number)):
        assert w.s.handle(event, w.now) == []
        assert w.state("a") is State.UNLOADED
    assert (w.model("a").crashes, dict(w.model("a").errors)) == (0, {})
    assert w.model("a").loads == 1


def test_memory_that_is_back_before_the_exit_was_seen_ends_the_process_all_the_same() -> None:
    w = World([model("a")], 512)
    w.load("a")
    asked = w.ask("a")
    w.wait(1e4)  # it hangs, and is killed
    assert w.code(asked) == "worker_hung"
    number = w.process("a").worker
    actions = w.s.handle(MemoryBack(number), w.now)
    assert [type(a).__name__ for a in actions] == ["Settled"]
    assert w.s.registry.running == 0
    assert not w.s.registry.workers


def test_a_crash_is_told_with_what_was_running_and_counted() -> None:
    w = World([model("a")], 512, max_batch=4)
    w.load("a")
    w.ask("a")
    w.ask("a")
    two = [w.ask("a"), w.ask("a")]
    w.done("a")
    w.done("a")
    w.exits("a", "signal 11")
    expected = f"its process ended (signal 11) while running requests {two[0]}, {two[1]}"
    assert text(w, "a", "crashed") == [expected]
    assert w.model("a").crashes == 1
    assert w.s.registry.running == 0


def test_a_second_crash_is_told_with_how_many_there_were() -> None:
    w = World([model("a")], 512)
    w.load("a")
    asked = w.ask("a")
    w.exits("a", "signal 11")
    w.settle()  # the next process takes it, and is through
    assert w.code(asked) == "ok"
    asked = w.ask("a")
    w.exits("a", "signal 11")
    w.memory_back("a")
    w.ready("a")
    w.exits("a", "signal 6")
    answer = w.answer(asked)
    assert (answer.code, answer.retryable) == ("worker_crashed", False)
    assert answer.message == "a's process ended under this request, 2 times (signal 6)"


def test_a_request_whose_deadline_has_come_is_not_tried_again() -> None:
    w = World([model("a")], 512)
    w.load("a")
    w.ask("a", timeout=2.0)
    w.now += 2.0
    w.s.handle(WorkerExited(w.process("a").worker, "signal 11"), w.now)
    line = [line for line in w.s.explain("a") if line.kind == "refused"][-1]
    assert line.fields["message"] == "a's process ended under this request, 1 times (signal 11)"


def test_requests_are_counted_by_worker_and_model() -> None:
    w = World([model("a")], 512, max_batch=4)
    w.load("a")
    for _ in range(5):
        w.ask("a")
    w.settle()
    assert (w.worker("a").requests, w.model("a").requests) == (5, 5)


def test_what_a_request_takes_is_its_share_of_the_batch() -> None:
    w = World([model("a")], 512, max_batch=4)
    w.load("a")
    for _ in range(4):
        w.ask("a")
    w.done("a")
    w.done("a")
    w.now += 0.02
    w.done("a")
    assert [len(batch) for batch in w.batches()] == [1, 1, 2]
    assert w.worker("a").service_s == pytest.approx(0.01)


def test_an_adapter_that_says_it_takes_none_at_once_is_given_one() -> None:
    w = World([model("a")], 512)
    w.ask("a")
    w.s.handle(WorkerReady(w.process("a").worker, 0), w.now)
    assert w.worker("a").max_batch == 1


def test_the_shutdown_says_how_long_it_may_take_and_ends_when_nothing_is_left() -> None:
    w = World([model("a")], 512)
    w.load("a")
    asked = w.ask("a")
    w.shut_down(5.0)
    assert w.story()[-1] == "shutting down: at most 5 s for what is running"
    assert w.s.next_wakeup() == w.now + 5.0
    assert w.s.status(w.now)["stopping"]
    w.done("a")
    assert w.code(asked) == "ok"
    assert KillWorker(1) in w.actions
    w.exits("a")
    assert not w.stopped
    w.memory_back("a")
    assert w.stopped
    assert sum(isinstance(a, Stop) for a in w.actions) == 1
    assert w.s.handle(Tick(), w.now) == []


def test_a_shutdown_that_is_told_again_is_sooner_and_never_later() -> None:
    for second, ends in ((2.0, 3.0), (4.0, 5.0), (20.0, 5.0)):
        w = World([model("a")], 512)
        w.load("a")
        w.ask("a")
        w.shut_down(5.0)
        w.wait(1.0)
        w.shut_down(second)
        w.wait(ends - 1.0 - 0.01)
        assert not w.kills(), (second, ends)
        w.wait(0.02)
        assert w.kills() == [1], (second, ends)


def test_a_shutdown_with_nothing_to_wait_for_ends_at_once() -> None:
    w = World([model("a")], 512)
    w.shut_down(5.0)
    assert w.stopped
    w = World([model("a")], 512)
    w.load("a")
    w.shut_down(5.0)
    assert w.kills() == [1]
    w.gone("a")
    assert w.stopped


def test_a_shutdown_does_not_kill_twice_what_is_ending() -> None:
    w = World([model("a", 100), model("b", 100)], 512)
    w.load("a", "b")
    w.cleanup()
    killed = w.kills()
    w.shut_down(0.0)
    assert w.kills() == killed
    w.gone("a")
    assert not w.stopped
    w.gone("b")
    assert w.stopped


def test_a_shutdown_ends_leases_and_forgets_the_clients() -> None:
    w = World([model("a")], 512)
    w.lease("a")
    w.settle()
    w.shut_down(0.0)
    registry = w.s.registry
    assert (registry.leases, registry.sessions, w.model("a").leases) == ({}, {}, {})


def test_what_waits_for_the_next_process_is_turned_away_at_a_shutdown_and_what_drains_is_finished() -> None:
    w = World([model("a")], 512)
    w.load("a")
    running = w.ask("a")
    w.unload("a")
    later = w.ask("a")
    w.shut_down(5.0)
    assert (w.code(running), w.code(later)) == (None, "broker_unreachable")
    w.done("a")
    assert w.code(running) == "ok"


def test_a_guess_that_is_pinned_meanwhile_is_a_model_like_any_other() -> None:
    w = World([model("a", 100), model("b", 300), model("c", 300)], 512, restore=True, strict=False)
    w.emit(LoadedEarlier(["a"]))
    assert w.state("a") is State.LOADING
    w.pin("a")
    w.ask("b")
    assert w.state("a") is State.LOADING, "its load does not end for another's"
    assert not w.kills()


def test_a_batch_tells_its_worker_what_is_suspect_and_what_is_refused() -> None:
    w = World([model("a")], 512)
    w.load("a")
    w.ask("a")
    w.exits("a")
    w.memory_back("a")
    w.ready("a")
    sent = [a for a in w.actions if isinstance(a, SendBatch)]
    assert [s.suspect for s in sent] == [False, True]
    w.says("a", b"\x01" * 16)
    w.exits("a")
    w.memory_back("a")
    w.ask("a")
    w.ready("a")
    sent = [a for a in w.actions if isinstance(a, SendBatch)]
    assert sent[-1].refuse == (b"\x01" * 16,)
    (line,) = [line.text for line in w.s.explain("a") if line.kind == "quarantined"]
    assert line == "input 010101010101 killed two processes: quarantined, until the model is unloaded or changes"


def test_a_shutdown_without_grace_ends_what_runs_at_once() -> None:
    for grace in (0.0, -1.0, float("nan")):
        w = World([model("a")], 512)
        w.load("a")
        asked = w.ask("a")
        w.shut_down(grace)
        assert w.code(asked) == "broker_unreachable"
        assert w.kills() == [1]


def test_a_primary_worker_that_ends_while_all_drain_is_followed_by_none() -> None:
    w = World([model("a", 100, max_instances=2)], 512, 512)
    w.load("a")
    w.scale_out("a", 4)
    w.ready("a#2")
    w.unload("a")
    w.exits("a")
    assert [line for line in w.s.decisions("a") if line.kind == "first"] == []
    w.settle()
    assert not w.open_questions()
