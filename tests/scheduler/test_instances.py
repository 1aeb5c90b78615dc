"""Several workers of one model: when a further one starts, who serves, what is promised of them, how they end."""

from __future__ import annotations

from typing import Any

import pytest

from broker.scheduler.events import SendBatch
from broker.scheduler.state import Phase, State
from tests.scheduler.world import World, model

HOT = model("hot", 300, max_instances=2)


def world(*models: Any, budgets: tuple[float, ...] = (500.0, 500.0), load_s: float = 1.0, **broker: Any) -> World:
    """Its first model is loaded, which took `load_s`, and has answered one request, in 0.5 s."""
    w = World(list(models) or [HOT], *budgets, **broker)
    name = next(iter(w.s.models))
    w.ask(name)
    w.now += load_s
    w.ready(name)
    w.now += 0.5
    w.done(name)
    return w


def grown(*models: Any, **more: Any) -> World:
    """And is so much asked for that a second worker was started, and is ready."""
    w = world(*models, **more)
    name = next(iter(w.s.models))
    for _ in range(5):
        w.ask(name)
    w.ready(f"{name}#2")
    return w


def devices(w: World, name: str = "hot") -> list[str]:
    return sorted(p.device for p in w.processes.values() if p.model == name and not p.killed)


# ---------------------------------------------------------------- one more


def test_a_further_worker_starts_when_the_queue_would_take_longer_than_a_load() -> None:
    w = world()
    for _ in range(4):  # one at work, one ahead, two in the queue: 2 x 0.5 s, as long as a load
        w.ask("hot")
    assert len(w.starts()) == 1
    w.ask("hot")
    assert w.starts() == ["hot", "hot"]
    assert devices(w) == ["gpu0", "gpu1"]
    assert "3 waiting x 0.5 s / 1 = 1.50 s to work off, an extra worker loads in 1.00 s" in w.story("hot")[-2]
    w.settle()
    assert all(w.code(n) == "ok" for n in w.questions)


def test_a_model_has_no_more_workers_than_it_may_and_one_on_a_device() -> None:
    w = grown()
    for _ in range(50):
        w.ask("hot")
    assert len(w.starts()) == 2
    w = grown(model("hot", 100, max_instances=5))
    for _ in range(50):
        w.ask("hot")
    assert len(w.starts()) == 2, "there are two devices"
    w = world(model("hot", 100))
    for _ in range(50):
        w.ask("hot")
    assert len(w.starts()) == 1, "one is the default"


def test_further_workers_start_one_at_a_time() -> None:
    w = world(model("hot", 300, max_instances=3), budgets=(500, 500, 500))
    for _ in range(50):
        w.ask("hot")
    assert len(w.starts()) == 2
    w.ready("hot#2")
    w.now += 0.5
    w.done("hot")
    assert devices(w) == ["gpu0", "gpu1", "gpu2"]


def test_a_further_worker_evicts_nothing_and_takes_no_room_that_is_waited_for() -> None:
    w = World([HOT, model("other", 400, "LOW"), model("big", 800)], 500, 500, 900)
    w.s.models["other"].config.device = "gpu1"
    w.s.models["big"].config.device = "gpu2"
    w.load("other", "big")
    w.lease("big")
    waits = model("waits", 500, device="gpu2")
    w.reconfigure([*(m.config for m in w.s.models.values()), waits])
    w.ask("hot")
    w.now += 0.1
    w.ready("hot")
    w.now += 0.5
    w.done("hot")
    assert devices(w) == ["gpu0"]
    for _ in range(20):
        w.ask("hot")
    assert w.state("other") is State.LOADED
    assert len(w.starts()) == 3
    waiting = w.ask("waits")
    w.unload("other")
    w.gone("other")
    w.done("hot")
    assert devices(w) == ["gpu0"], "a demand waits for room, though not for this"
    w.withdraw(waiting)
    w.done("hot")
    assert devices(w) == ["gpu0", "gpu1"]


# ---------------------------------------------------------------- who serves


def test_the_worker_with_the_fewest_requests_at_hand_is_chosen() -> None:
    w = grown()
    w.settle()
    first, second = w.process("hot"), w.process("hot#2")
    counts = []
    for _ in range(4):
        w.ask("hot")
        counts.append((len(first.running) + len(first.ahead), len(second.running) + len(second.ahead)))
    assert counts == [(1, 0), (1, 1), (2, 1), (2, 2)]
    w.ask("hot")
    w.emit_done(second)
    assert len(second.running) == len(second.ahead) == 1, "the one that has a place takes what is next"


def test_one_request_after_another_stays_with_the_first_so_that_the_further_one_becomes_idle() -> None:
    w = grown(idle_seconds=10.0)
    w.settle()
    for _ in range(15):
        w.ask("hot")
        assert w.process("hot").running
        w.done("hot")
        w.wait(1)
    assert w.extras() == [] or w.worker("hot#2").state is State.EVICTING
    assert w.state("hot") is State.LOADED


def test_a_suspect_runs_alone_on_whichever_worker_is_free() -> None:
    w = grown()
    w.settle()
    suspect, bystander = w.ask("hot"), w.ask("hot")
    w.exits("hot")
    second = w.process("hot")
    assert (second.running, second.ahead) == ([bystander], [])
    w.emit_done(second)
    assert second.running == [suspect]
    w.ask("hot")
    assert second.ahead == []


def test_a_retry_hint_knows_how_many_work_on_the_queue() -> None:
    w = grown(max_queue=10)
    for _ in range(12):
        w.ask("hot")
    refused = w.ask("hot")
    assert "14 x 250 ms = 3.50 s of work" in w.answer(refused).message


# ---------------------------------------------------------------- one less


def test_when_a_worker_dies_the_other_goes_on_and_nothing_is_lost() -> None:
    for name in ("hot", "hot#2"):
        w = grown()
        w.exits(name)
        assert w.state("hot") is State.LOADED
        assert len(w.process("hot").running) == 1
        w.settle()
        assert all(w.code(n) == "ok" for n in w.questions)


def test_when_the_first_dies_while_the_second_loads_what_waits_waits_for_that_one() -> None:
    w = world()
    asked = [w.ask("hot") for _ in range(5)]
    w.exits("hot")
    assert w.state("hot") is State.LOADING
    assert len(w.starts()) == 2
    w.ready("hot")
    w.settle()
    assert [w.code(n) for n in asked] == ["ok"] * 5


def test_a_hung_worker_is_killed_and_the_other_goes_on() -> None:
    w = grown(dispatch_timeout=5.0)
    second = w.process("hot#2")
    hung = w.process("hot").running[0]
    for _ in range(5):
        w.wait(1.1)
        if second.running:
            w.emit_done(second)
    assert w.code(hung) == "worker_hung"
    assert "hot did not answer" in w.answer(hung).message
    assert w.state("hot") is State.LOADED
    assert w.process("hot").worker == second.worker


@pytest.mark.parametrize("learnt_by", ["hot", "hot#2"])
def test_a_limit_learnt_from_one_process_stays_with_it_when_the_primary_ends(learnt_by: str) -> None:
    w = grown(max_batch=4)
    second = w.process("hot#2")
    w.worker(learnt_by).batch_limit.ran_out(4)
    w.emit_exit(w.process("hot"), "signal 9")
    assert w.worker("hot").number == second.worker
    assert w.worker("hot").batch_limit.most == (2 if learnt_by == "hot#2" else 0)


def test_larger_batches_are_told_once_when_they_are_tried_again_and_never_where_there_was_no_limit() -> None:
    w = World([model("a")], 512, max_batch=4)
    w.load("a")

    def batch(size: int, *, halved: bool = False) -> int:
        """So many requests gather behind one at work and one ahead; how many of them are then sent at once."""
        for _ in range(size + 2):
            w.ask("a")
        w.done("a")
        w.done("a")
        sent = len(w.batches()[-1])
        w.emit_done(w.process("a"), halved=halved)
        w.settle()
        return sent

    def told() -> list[str]:
        return [line.kind for line in w.s.decisions() if line.kind in ("smaller batches", "larger batches")]

    assert batch(4) == 4
    assert told() == []
    batch(4, halved=True)
    assert told() == ["smaller batches"]
    while "larger batches" not in told():
        assert batch(2) == 2
        assert len(w.questions) < 500
    assert told() == ["smaller batches", "larger batches"]
    assert batch(4) == 4


def test_an_input_that_killed_two_processes_is_refused_by_all_workers() -> None:
    w = grown()
    w.settle()
    bad = w.ask("hot")
    w.says("hot", b"bad")
    w.exits("hot")
    w.says("hot", b"bad")
    w.exits("hot")
    assert w.code(bad) == "worker_crashed"
    assert list(w.s.models["hot"].quarantine.refused) == [b"bad"]
    w.settle()
    w.load("hot")
    for _ in range(8):
        w.ask("hot")
    w.ready("hot#2")
    told = {a.worker: a.refuse for a in w.actions if isinstance(a, SendBatch)}
    assert told[w.process("hot").worker] == told[w.process("hot#2").worker] == (b"bad",)


def test_a_further_worker_that_does_not_load_harms_no_other_and_is_tried_again_after_a_while() -> None:
    w = world()
    asked = [w.ask("hot") for _ in range(20)]
    w.load_fails("hot#2")
    w.gone("hot#2")
    assert w.state("hot") is State.LOADED
    assert w.extras() == []
    w.now += 0.5
    w.done("hot")
    assert len(w.starts()) == 2, "not at once"
    w.now += 0.5
    w.done("hot")
    assert len(w.starts()) == 3
    w.settle()
    assert all(w.code(n) == "ok" for n in asked)


# ---------------------------------------------------------------- room


def test_an_idle_further_worker_goes_before_any_first_of_its_priority() -> None:
    for eviction in ("priority", "adaptive"):
        there = [model("old", 200, device="gpu1"), model("new", 300, device="gpu1")]
        w = grown(HOT, *there, budgets=(600, 500), eviction=eviction)
        w.load("old")
        w.settle()
        w.now += 1
        w.ask("hot")
        w.ask("hot")
        w.settle()
        assert w.process("hot#2").device == "gpu1"
        w.load("new")
        assert (w.state("old"), w.state("hot")) == (State.LOADED, State.LOADED)
        assert any("another worker stays" in s or "worth 0 s" in s for s in w.story("hot")), w.story("hot")


def test_where_the_first_has_to_go_the_other_takes_its_place() -> None:
    w = grown(HOT, model("new", 300, device="gpu0"))
    w.settle()
    w.load("new")
    assert w.process("new").device == "gpu0"
    assert devices(w) == ["gpu1"]
    assert w.state("hot") is State.LOADED
    assert w.extras() == []


def test_a_busy_further_worker_gives_way_after_patience_and_what_has_queued_stays() -> None:
    w = grown(HOT, model("new", 300), patience_seconds=0.2)
    asked = [w.ask("hot") for _ in range(20)]
    w.ask("new")
    w.wait(0.3)
    assert w.worker("hot").phase is Phase.YIELDING or w.worker("hot#2").phase is Phase.YIELDING
    w.settle()
    w.wait(5)
    w.settle()
    assert w.state("new") is State.LOADED
    assert w.state("hot") is State.LOADED
    assert all(w.code(n) == "ok" for n in asked)


def test_leases_and_pins_hold_the_first_and_no_more() -> None:
    w = grown(HOT, model("x", 300), model("y", 300))
    w.settle()
    w.lease("hot")
    held = w.process("hot")
    w.load("x")
    assert devices(w) == [held.device]
    waiting = w.ask("y", timeout=2.0)
    w.settle()
    assert w.code(waiting) == "ok"
    assert w.state("x") is not State.LOADED
    assert not held.killed
    w.release_all()
    w.pin("hot")
    w.cleanup()
    assert not held.killed


def test_a_lease_outlives_the_worker_that_it_was_granted_on() -> None:
    w = grown()
    w.settle()
    w.lease("hot")
    w.exits("hot")
    survivor = w.process("hot")
    w.cleanup()
    assert not survivor.killed
    assert w.s.models["hot"].leases


# ---------------------------------------------------------------- changes


def test_unload_ends_all_of_them_and_is_answered_when_the_last_ones_memory_is_back() -> None:
    w = grown()
    unload = w.unload("hot")
    assert (w.state("hot"), w.worker("hot#2").state) == (State.DRAINING, State.DRAINING)
    late = w.ask("hot")
    w.settle(holding=set())
    assert w.code(unload) == "ok"
    assert w.code(late) == "ok"
    assert all(w.code(n) == "ok" for n in w.questions)


def test_the_next_life_begins_when_all_of_the_last_one_is_gone() -> None:
    w = grown()
    w.settle()
    unload, again = w.unload("hot"), w.ask("hot")
    w.exits("hot")
    w.memory_back("hot")
    assert w.code(unload) is None
    assert len(w.starts()) == 2
    w.settle()
    assert (w.code(unload), w.code(again)) == ("ok", "ok")


def test_fewer_workers_are_as_many_as_config_toml_says_when_they_are_done() -> None:
    w = grown()
    second = w.process("hot#2")
    w.lease("hot")
    w.reconfigure([model("hot", 300, max_instances=1)])
    assert w.worker("hot#2").state is State.DRAINING
    assert second.running
    w.settle()
    assert w.extras() == []
    assert w.state("hot") is State.LOADED
    w.reconfigure([model("hot", 300, max_instances=2)])
    for _ in range(30):
        w.ask("hot")
    assert len(devices(w)) == 2


def test_a_model_that_is_removed_goes_with_all_of_its_workers() -> None:
    w = grown(HOT, model("other"))
    w.settle()
    w.reconfigure([model("other")])
    w.settle()
    assert list(w.s.models) == ["other"]
    assert not w.processes
    assert not w.extras()


def test_keep_alive_0_ends_all_of_them_with_the_last_reference() -> None:
    w = grown()
    w.settle()
    lease = w.lease("hot", keep_alive=0)
    w.release(w.granted(lease))
    w.settle()
    assert not w.processes


def test_a_model_counts_once_and_ps_has_a_row_for_each() -> None:
    w = grown()
    status = w.s.status(w.now)
    assert [(m["name"], m["workers"], m["vram_mb"]) for m in status["loaded_models"]] == [("hot", 2, 600)]
    assert status["registered_models"] == ["hot"]
    rows = w.s.processes()
    assert [(row["name"], row["device"]) for row in rows] == [("hot", "gpu0"), ("hot#2", "gpu1")]
    assert sum(row["queued"] + row["inflight"] for row in rows) <= len(w.open_questions())
    w.settle()
    assert w.s.models["hot"].requests == len(w.questions)


def test_footprints_are_those_of_the_model_on_each_device() -> None:
    w = grown(footprint="measured")
    w.settle()
    w.measure("hot#2", 420)
    assert w.s.models["hot"].need_mb("gpu1") == 420
    assert (w.worker("hot").mb, w.worker("hot#2").mb) == (300, 420)


def test_a_lease_keeps_the_worker_that_was_to_go_when_the_primary_is_gone() -> None:
    w = grown()
    w.lease("hot")
    first, second = w.process("hot"), w.process("hot#2")
    w.reconfigure([model("hot", max_instances=1)])
    assert w.worker("hot#2").state is State.DRAINING
    w.emit_exit(first, "signal 9")
    w.emit_back(first)
    assert (w.worker("hot").number, w.state("hot")) == (second.worker, State.LOADED)
