"""What the scheduler shows of itself: the figures and rows of `zoo ps`, `zoo status` and the metrics."""

from __future__ import annotations

import pytest

from broker.scheduler.events import DeviceUnread, Finished, Measured, Settled
from broker.scheduler.state import State
from broker.scheduler.story.story import KEEP
from tests.scheduler.world import World, model


def test_a_status_has_the_figures_of_all_devices_and_of_each_in_thousandths() -> None:
    w = World([model("a", 100.1236), model("b", 300)], 500.1234, 511.0)
    w.load("a", "b")
    w.ask("b")
    w.lease("a")
    status = w.s.status(w.now)
    assert status["vram_budget_mb"] == 1011.123
    assert status["vram_used_mb"] == 400.124
    assert status["vram_available_mb"] == 611.0  # 610.9998
    assert status["vram_utilization_percent"] == 39.57
    assert status["registered_models"] == ["a", "b"]
    assert (status["leases"], status["requests"], status["running"], status["workers"]) == (1, 1, 1, 2)
    assert status["pending_loads"] == []
    assert not status["stopping"]
    a, b = sorted(status["devices"], key=lambda d: d["used_mb"])
    free = {"gpu0": 500.1234, "gpu1": 511.0}
    assert (a["used_mb"], b["used_mb"]) == (100.124, 300)
    for row, mb in ((a, 100.1236), (b, 300)):
        budget = free[row["name"]]
        assert row["budget_mb"] == row["limit_mb"] == round(budget, 3)
        assert row["free_mb"] == round(budget - mb, 3)
        assert (row["overrun_mb"], row["unreturned_mb"], row["kind"]) == (0, 0, "cuda")


def test_a_status_of_a_device_that_is_charged_too_much_shows_no_free_room_and_by_how_much() -> None:
    w = World([model("a", 300.0004), model("b", 200)], 512, footprint="measured")
    w.load("a")
    w.lease("a")
    w.reconfigure(None, 100.00087)
    status = w.s.status(w.now)
    (device,) = status["devices"]
    assert (status["vram_available_mb"], device["free_mb"], device["overrun_mb"]) == (0, 0, 200.0)
    assert status["vram_utilization_percent"] == 300.0


def test_a_device_without_a_budget_is_used_by_none_of_it() -> None:
    w = World([model("a")], 512)
    w.reconfigure(None, 0.0)
    assert w.s.status(w.now)["vram_utilization_percent"] == 0.0


def test_what_other_programs_take_is_seen_in_the_limit() -> None:
    w = World([model("a")], 512, footprint="measured", reserve_mb=10)
    w.others_use("gpu0", 599.8766, 1000)
    assert w.s.status(w.now)["devices"][0]["limit_mb"] == 390.123


def test_memory_that_did_not_come_back_is_shown_on_its_own_device_only() -> None:
    w = World([model("a", 100.0006, device="gpu0"), model("b", 200, device="gpu1")], 512, 512)
    w.load("a", "b")
    w.exits("a")
    w.memory_stuck("a")
    assert [d["unreturned_mb"] for d in w.s.status(w.now)["devices"]] == [100.001, 0]
    assert w.s.unreturned_mb("gpu0") == 100.0006
    assert w.story("a")[-1] == "its process is gone but 100.001 MB on gpu0 have not come back; they stay charged"


def test_loads_that_are_pending_are_those_under_way_and_those_that_wait_each_once() -> None:
    w = World([model("a", 300), model("b", 300), model("c", 100)], 512)
    w.ask("a")
    w.ask("b")
    w.ask("c")
    assert w.s.status(w.now)["pending_loads"] == ["a", "b", "c"]
    assert w.s.is_loading()
    assert not w.s.is_idle()


def test_a_process_that_waits_to_grow_is_no_pending_load() -> None:
    w = World([model("a", 300), model("busy", 300)], 700, footprint="measured")
    w.load("a", "busy")
    w.ask("busy")
    w.ask("a")
    w.runs_out("a", used_mb=280, asked_mb=200)
    assert w.s.status(w.now)["pending_loads"] == []


def test_at_rest_is_when_nothing_loads_and_nothing_runs() -> None:
    w = World([model("a")], 512)
    assert w.s.is_idle()
    w.preload("a")
    assert not w.s.is_idle()
    w.settle()
    assert w.s.is_idle()
    asked = w.ask("a")
    assert not w.s.is_idle()
    w.withdraw(asked)
    assert not w.s.is_idle(), "its worker is still at it"
    w.settle()
    assert w.s.is_idle()


def test_a_row_of_a_process_tells_what_is_its_own() -> None:
    w = World([model("a", 300, "HIGH", pinned=True)], 512, footprint="measured")
    w.preload("a")
    w.now += 1.23456
    w.settle()
    w.measure("a", 310)
    w.lease("a")
    w.ask("a")
    w.done("a")
    w.ask("a")
    w.ask("a")
    w.ask("a")
    (row,) = w.s.processes()
    assert row == {
        "name": "a", "state": "loaded", "worker": 1, "device": "gpu0", "vram_mb": 310, "declared_mb": 300,
        "measured_mb": 310, "priority": "HIGH", "pinned": True, "leases": 1, "inflight": 1, "queued": 1, "requests": 1,
        "last_used": w.now, "load_seconds": 1.235,
    }  # fmt: skip


def test_an_extra_worker_has_no_pin_no_leases_and_no_queue_of_its_own() -> None:
    w = World([model("a", 300, pinned=True, max_instances=2)], 512, 512)
    w.load("a")
    w.lease("a")
    w.scale_out("a", 4)
    assert w.starts() == ["a", "a"]
    w.ready("a#2")
    first, second = w.s.processes()
    assert (first["name"], first["pinned"], first["leases"], first["queued"]) == ("a", True, 1, w.model("a").waiting)
    assert (second["name"], second["pinned"], second["leases"], second["queued"]) == ("a#2", False, 0, 0)
    assert (first["requests"], second["requests"]) == (1, 0)
    w.done("a#2")
    first, second = w.s.processes()
    assert (first["requests"], second["requests"]) == (2, 1), "the first row counts for the model"
    w.settle()
    (loaded,) = w.s.status(w.now)["loaded_models"]
    assert (loaded["vram_mb"], loaded["workers"], loaded["last_used"]) == (600, 2, w.now)


def test_a_model_that_drains_is_still_among_the_loaded_ones() -> None:
    w = World([model("a"), model("b", 100)], 512)
    w.load("a", "b")
    w.ask("a")
    w.unload("a")
    assert w.state("a") is State.DRAINING
    assert [m["name"] for m in w.s.status(w.now)["loaded_models"]] == ["a", "b"]
    assert w.s.resident() == ["a", "b"]


def test_a_worker_has_answered_only_what_it_runs() -> None:
    w = World([model("a")], 512)
    w.load("a")
    asked = w.ask("a")
    number = w.process("a").worker
    assert w.s.awaits(number, [Finished(asked)])
    assert not w.s.awaits(number, [])
    assert not w.s.awaits(number, [Finished(asked + 1)])
    assert not w.s.awaits(number, [Finished(asked), Finished(asked + 1)])
    assert w.s.awaits(number + 1, [Finished(7)]), "what is said of a worker that is gone is not judged"
    w.done("a")
    assert not w.s.awaits(number, [])


def test_how_long_a_load_took_is_known_of_a_worker_that_is_ready_and_may_stay() -> None:
    w = World([model("a")], 512)
    w.preload("a")
    number = w.process("a").worker
    assert w.s.loaded_in(number) is None
    w.now += 2.0
    w.ready("a")
    assert w.s.loaded_in(number) == 2.0
    assert w.s.loaded_in(number + 1) is None
    w.ask("a")
    w.unload("a")
    assert w.s.loaded_in(number) is None


def test_a_model_is_measured_once_it_was_seen_at_work() -> None:
    w = World([model("a", 300)], 512, footprint="measured")
    w.load("a")
    number = w.process("a").worker
    assert not w.s.is_measured(number)
    w.measure("a", 200)
    assert not w.s.is_measured(number)
    w.ask("a")
    w.done("a")
    w.measure("a", 200)
    assert w.s.is_measured(number)
    assert not w.s.is_measured(number + 1)


def test_the_story_of_a_model_is_in_the_order_of_time_and_holds_its_requests() -> None:
    w = World([model("a")], 512)
    asked = w.ask("a")
    w.now += 1.0
    w.settle()
    w.now += 1.0
    w.cleanup()
    lines = w.s.explain("a")
    assert [line.at for line in lines] == sorted(line.at for line in lines)
    assert any(line.text.startswith(f"request {asked}") for line in lines), [line.text for line in lines]
    assert not any("request" in line.fields for line in w.s.decisions("a"))
    assert [line.kind for line in w.s.decisions("a")] == ["loading", "loaded", "evicted"]
    assert w.s.session_of(asked) == b"c"
    assert w.s.session_of(asked + 1) is None
    assert w.s.explain_request(asked + 1) is None


def test_a_model_is_cold_until_a_process_of_it_may_answer() -> None:
    w = World([model("a")], 512)
    assert w.s.is_cold("a")
    assert not w.s.is_cold("unknown")
    w.preload("a")
    assert not w.s.is_cold("a")
    w.settle()
    w.cleanup()
    assert w.s.is_cold("a")


def test_the_last_used_is_the_first_of_what_is_resident() -> None:
    w = World([model("a", 100), model("b", 100), model("c", 100)], 512)
    w.load("a", "b", "c")
    w.ask("b")
    w.settle()
    assert w.s.resident() == ["b", "c", "a"]


def test_a_footprint_is_told_of_each_device_that_the_model_may_use() -> None:
    w = World([model("a", 300), model("b", 100, device="gpu1")], 512, 512, footprint="measured")
    w.load("a")
    w.ask("a")
    w.done("a")
    w.measure("a", 320)
    nothing = {"name": "a", "device": "gpu1", "declared_mb": 300, "measured_mb": None, "charged_mb": 300}
    assert w.s.footprints("a") == [
        {
            "name": "a", "device": "gpu0", "declared_mb": 300, "measured_mb": 320, "charged_mb": 320, "worked": True,
            "lives_mb": [320],
        },
        {**nothing, "worked": False, "lives_mb": []},
    ]  # fmt: skip
    assert [row["device"] for row in w.s.footprints("b")] == ["gpu1"]


def test_readings_of_what_is_not_ours_are_passed_over() -> None:
    w = World([model("a", 300)], 512, footprint="measured")
    w.load("a")
    number = w.process("a").worker
    for event in (Measured(number + 7, 900.0), Measured(number, -1.0), DeviceUnread("gpu9", "no such device")):
        assert w.emit(event) == []
    assert w.s.ledger.used_mb("gpu0") == 300
    assert "gpu9" not in "".join(w.story())


def test_what_was_learnt_is_counted_and_a_reading_that_says_nothing_new_is_not() -> None:
    w = World([model("a", 300)], 512, footprint="measured")
    w.load("a")
    counts = []
    for mb in (310, 310, 320):
        w.measure("a", mb)
        counts.append(w.s.learnt)
    assert counts == [1, 1, 2]


def test_the_frames_of_an_answered_request_are_settled_once_by_its_worker() -> None:
    w = World([model("a")], 512)
    w.load("a")
    asked, ahead = w.ask("a"), w.ask("a")
    w.withdraw(asked)
    w.withdraw(ahead)
    number = w.process("a").worker
    w.exits("a")
    assert {(s.request, s.worker) for s in w.actions if isinstance(s, Settled)} == {(asked, number), (ahead, number)}
    assert w.s.status(w.now)["running"] == 0


@pytest.mark.parametrize("on", [True, False])
def test_a_pin_that_is_there_already_is_no_news(on: bool) -> None:
    w = World([model("a", pinned=on)], 512)
    w.pin("a", on)
    assert w.story("a") == []
    w.pin("a", not on)
    assert w.story("a") == ["unpinned" if on else "pinned: it will not be evicted"]


# ---------------------------------------------------------------- what happened, for a screen


def test_decisions_come_by_pages_and_without_those_about_single_requests() -> None:
    w = World([model("a"), model("b")], 1000)
    w.load("a")
    w.kill_twice("a", b"d" * 16)
    everything = w.s.explain()
    assert any("request" in line.fields for line in everything)
    found, at, more, pages = [], 0, True, 0
    while more:
        lines, at, more, missed = w.s.decided(at, 3)
        assert not missed
        found += lines
        pages += 1
    assert found == [line for line in everything if "request" not in line.fields]
    assert pages == -(-len(everything) // 3)
    assert w.s.decided(at, 3) == ([], at, False, False)
    w.pin("b")
    lines, _, more, _ = w.s.decided(at, 3)
    assert ([line.kind for line in lines], more) == (["pinned"], False)


def test_a_count_of_another_broker_gives_what_there_is() -> None:
    w = World([model("a")], 1000)
    w.load("a")
    assert w.s.decided(10**9, 10)[:2] == ([], w.s.story.count)
    w.s.story.tell(1.0, "a", "pinned", on=True)
    assert [line.kind for line in w.s.decided(-5, 100)[0]][-1] == "pinned"


def test_decisions_that_are_kept_no_more_are_missed() -> None:
    w = World([model("a")], 1000)
    first = w.s.decided(0, 1)[1]
    for number in range(KEEP + 10):
        w.pin("a", number % 2 == 0)
    lines, at, more, missed = w.s.decided(first, 5)
    assert (len(lines), more, missed) == (5, True, True)
    assert not w.s.decided(at, 5)[3]


def test_what_waits_for_a_model_whose_process_is_ending_is_told_so() -> None:
    w = World([model("a")], 1000)
    w.load("a")
    w.unload("a")
    w.ask("a")
    (row,) = w.s.waiting()
    assert row["why"] == "its process is ending, and it is loaded again"
    w.gone("a")
    (row,) = w.s.waiting()
    assert row["why"] == "it is loading"


def test_what_waits_is_told_with_its_sessions_and_the_reason() -> None:
    w = World([model("a"), model("b", 900)], 1000)
    w.load("a")
    lease = w.lease("a")
    assert w.s.waiting() == []
    w.ask("b", client=b"one")
    w.wait(2.0)
    w.ask("b", client=b"two")
    w.ask("b", client=b"two")
    (row,) = w.s.waiting()
    assert (row["model"], row["requests"], row["oldest"]) == ("b", 3, w.now - 2.0)
    assert row["sessions"] == {b"one": 1, b"two": 2}
    assert "a" in row["why"]
    w.release(w.granted(lease))
    (row,) = w.s.waiting()
    assert row["why"] == "room is being made for it"
    w.gone("a")
    (row,) = w.s.waiting()
    assert row["why"] == "it is loading"
    w.ready("b")
    (row,) = w.s.waiting()
    assert (row["requests"], row["why"]) == (1, "its worker is busy")  # two are at the worker


def test_times_are_those_of_inferences_that_got_a_result() -> None:
    w = World([model("a"), model("b")], 1000)
    w.load("a", "b")
    before = w.s.times().get("a", {"count": 0})["count"]
    for seconds in (0.3, 0.1, 0.2, 5.0):
        w.ask("a")
        w.wait(seconds)
        w.done("a")
    w.ask("a")
    w.done("a", ("invalid_input", "no"))
    w.lease("b")
    times = w.s.times()
    assert times["a"]["count"] == before + 4
    assert times["a"]["p50"] <= 0.2
    assert times["a"]["p95"] == 5.0
