"""The records and small containers of the scheduler's state, one by one: what they count, keep and forget."""

from __future__ import annotations

import math
from typing import Any

import pytest

from broker.scheduler.capacity.doubts import DOUBT_S, Doubts
from broker.scheduler.capacity.habits import AHEAD, REMEMBERED, Habits
from broker.scheduler.capacity.ledger import EPSILON_MB, Device, Ledger, OverBudget
from broker.scheduler.capacity.unread import Unread
from broker.scheduler.events import Kind
from broker.scheduler.state import MOST_MB, Due, Model, Move, Peak, Queue, Request, State, Timers, Worker
from broker.scheduler.state.model import BATCHES_FIRST, BATCHES_MOST, BatchLimit, LoadFailures
from broker.scheduler.state.peaks import LIVES, is_mb, known_mb, known_seconds, moment, priority
from broker.scheduler.state.quarantine import KEPT, WARY_REQUESTS, WARY_S, Quarantine
from broker.scheduler.state.queue import SWEEP
from broker.scheduler.story.story import OFTEN_S, Story
from tests.scheduler.world import model

NAN, INF = math.nan, math.inf


def request(of: Model, number: int = 1, *, session: bytes = b"c", priority: int = 2) -> Request:
    return Request(number, session, of, Kind.INFER, 1e9, priority, None, None, number, 0.0)


def living(of: Model, number: int = 1, device: str = "gpu0", before: Worker | None = None) -> Worker:
    """A further worker of the model, loaded; the first one is the primary."""
    worker = Worker(of, number, device, before)
    if not of.workers:
        of.primary = worker
    of.workers.append(worker)
    worker.move(Move.START)
    worker.move(Move.READY)
    return worker


# ---------------------------------------------------------------- figures from outside


@pytest.mark.parametrize(
    ("mb", "known"), [(0.0, 0.0), (0.5, 0.5), (MOST_MB, MOST_MB), (-0.5, 0.0), (NAN, 0.0), (INF, 0.0)]
)
def test_megabytes_that_make_no_sense_are_unknown(mb: float, known: float) -> None:
    assert known_mb(mb) == known
    assert is_mb(mb) == (mb == known)


@pytest.mark.parametrize(
    ("seconds", "known"), [(0.0, 0.0), (0.5, 0.5), (INF, INF), (-0.5, None), (NAN, None), (None, None)]
)
def test_seconds_that_make_no_sense_are_unknown(seconds: float | None, known: float | None) -> None:
    assert known_seconds(seconds) == known


def test_a_moment_that_is_no_number_is_now_and_a_priority_is_the_nearest() -> None:
    assert (moment(3.0, 5.0), moment(NAN, 5.0)) == (3.0, 5.0)
    assert [priority(wanted) for wanted in (-7, 0, 1, 3, 9)] == [0, 0, 1, 3, 3]


# ---------------------------------------------------------------- peaks


def test_a_peak_grows_with_what_a_load_takes_and_keeps_the_rest() -> None:
    peak = Peak(100.0, True, (90.0, 100.0))
    assert peak.loaded(50.0) == peak
    assert peak.loaded(150.0) == Peak(150.0, True, (90.0, 100.0))


def test_a_process_that_has_worked_counts_with_what_its_load_took() -> None:
    assert Peak(100.0).lived(80.0, again=False) == Peak(100.0, True, (100.0,))
    assert Peak(100.0).lived(120.0, again=True) == Peak(120.0, True, (120.0,))


def test_the_same_process_again_counts_once_with_its_most() -> None:
    peak = Peak(100.0, True, (70.0, 100.0))
    assert peak.lived(90.0, again=True) == peak
    assert peak.lived(130.0, again=True) == Peak(130.0, True, (70.0, 130.0))
    assert peak.lived(90.0, again=False) == Peak(100.0, True, (70.0, 100.0, 90.0))


def test_a_peak_without_lives_counts_as_one() -> None:
    assert Peak(100.0, True).lived(80.0, again=False) == Peak(100.0, True, (100.0, 80.0))
    assert Peak(100.0, True).lived(80.0, again=True) == Peak(100.0, True, (100.0,))


def test_only_the_last_lives_are_remembered() -> None:
    peak = Peak(1000.0, True, (1000.0,))
    for _ in range(LIVES - 1):
        peak = peak.lived(10.0, again=False)
    assert (peak.mb, len(peak.lives)) == (1000.0, LIVES)
    assert peak.lived(10.0, again=False) == Peak(10.0, True, (10.0,) * LIVES)


def test_a_process_beyond_the_whole_budget_is_left_out_unless_all_were() -> None:
    assert Peak(200.0).within(100.0) == Peak(200.0), "it has not worked: a load takes that"
    assert Peak(100.0, True, (100.0,)).within(100.0) == Peak(100.0, True, (100.0,))
    assert Peak(200.0, True, (50.0, 100.0, 200.0)).within(100.0) == Peak(100.0, True, (50.0, 100.0))
    assert Peak(200.0, True, (150.0, 200.0)).within(100.0) == Peak(200.0, True, (150.0, 200.0))
    assert Peak(200.0, True, (200.0,)).within(100.0) is None
    assert Peak(200.0, True).within(100.0) is None


# ---------------------------------------------------------------- batches


def test_half_of_what_ran_out_is_the_limit() -> None:
    limit = BatchLimit()
    assert not limit.ran_out(1), "there is no smaller batch"
    assert limit.most == 0
    assert limit.ran_out(9)
    assert limit.most == 4
    assert not limit.ran_out(5), "it was sent before"
    assert limit.most == 4
    assert limit.ran_out(4)
    assert limit.most == 2


def well(limit: BatchLimit, max_batch: int) -> int:
    """How many full batches go well until larger ones are tried."""
    most = limit.most
    for count in range(1, 2 * BATCHES_MOST):
        if limit.went_well(most, max_batch):
            return count
        assert limit.most == most
    raise AssertionError("larger batches are never tried")


def test_larger_batches_are_tried_after_so_many_that_went_well() -> None:
    limit = BatchLimit()
    assert not limit.went_well(8, 8), "there is no limit to lift"
    limit.ran_out(4)
    assert not any(limit.went_well(1, 8) for _ in range(100)), "smaller ones say nothing"
    assert well(limit, 8) == BATCHES_FIRST
    assert limit.most == 4
    assert well(limit, 8) == BATCHES_FIRST
    assert limit.most == 0, "as many as its adapter takes"


def test_each_time_that_memory_runs_out_it_takes_twice_as_many_up_to_a_most() -> None:
    limit, needed = BatchLimit(), []
    for _ in range(9):
        limit.ran_out(2)
        needed.append(well(limit, 2))
    assert needed == [16, 32, 64, 128, 256, 512, 1024, 1024, 1024]


# ---------------------------------------------------------------- workers


def test_how_long_a_request_takes_is_an_average_in_which_the_newest_weighs_a_fifth() -> None:
    worker = Worker(Model(model("a")))
    for seconds in (1.0, 2.0, 0.5):
        worker.took(seconds)
    assert worker.service_s == pytest.approx(1.2 + 0.2 * (0.5 - 1.2))
    assert worker.least_service_s == 0.5


def test_why_a_worker_cannot_go() -> None:
    a = Model(model("a"))
    worker = living(a)
    assert worker.reasons() == "idle"
    a.leases[1] = b"c"
    assert worker.reasons() == "1 lease"
    a.leases[2], a.pinned = b"c", True
    worker.inflight.append(request(a, 1))
    assert worker.reasons() == "2 leases, pinned, a request in flight"
    worker.inflight.append(request(a, 2))
    a.queue.push(request(a, 3))
    assert worker.reasons() == "2 leases, pinned, 2 requests in flight, 1 queued"
    assert living(a, 2).reasons() == "idle", "these hold the primary worker"


def test_leases_pins_and_the_queue_are_the_primary_workers() -> None:
    a = Model(model("a"))
    primary, extra = living(a, 1), living(a, 2, "gpu1")
    assert not any(w.held or w.referenced for w in (primary, extra))
    a.pinned = True
    assert (primary.held, extra.held) == (True, False)
    a.pinned, a.leases[1] = False, b"c"
    assert (primary.held, primary.referenced, extra.referenced) == (True, True, False)
    a.queue.push(request(a))
    assert (primary.queued, extra.queued, primary.idle, extra.idle) == (1, 0, False, True)
    extra.inflight.append(request(a, 2))
    assert (extra.referenced, extra.idle) == (True, False)
    assert a.extras == [extra]


def test_what_another_worker_stays_beside_is_dispensable() -> None:
    a = Model(model("a"))
    primary = living(a, 1)
    assert not primary.dispensable
    extra = living(a, 2, "gpu1")
    assert primary.dispensable
    assert extra.dispensable
    extra.move(Move.DRAIN)
    assert not primary.dispensable
    assert extra.dispensable
    assert a.answering == [primary, extra], "one that drains answers what it has"


def test_a_process_is_outdated_by_other_settings_or_another_device() -> None:
    a = Model(model("a"))
    worker = living(a)
    assert not worker.outdated
    a.settings += 1
    assert worker.outdated
    assert not Worker(a).outdated
    b = Model(model("b", device="gpu0"))
    assert not living(b, 2, "gpu0").outdated
    assert living(b, 3, "gpu1").outdated
    waiting = Worker(b)
    b.settings += 1
    assert not waiting.outdated, "there is no process"


def test_a_worker_is_alive_from_its_start_until_it_ends() -> None:
    worker = Worker(Model(model("a")), 1, "gpu0")
    alive = [worker.alive]
    for move in (Move.START, Move.READY, Move.YIELD, Move.DRAIN, Move.KILL, Move.FREED):
        worker.move(move)
        alive.append(worker.alive)
    assert alive == [False, True, True, True, True, False, False]


def test_a_process_is_used_once_it_was_given_a_request() -> None:
    worker = Worker(Model(model("a")), 1, "gpu0")
    worker.move(Move.START)
    assert not worker.was_used
    worker.move(Move.READY)
    worker.loaded_at = 5.0
    assert not worker.was_used
    worker.dispatched_at = 5.0
    assert worker.was_used


def test_a_process_begins_with_what_the_one_before_has_shown() -> None:
    a = Model(model("a"))
    before = living(a)
    before.took(0.25)
    before.load_seconds, before.last_used = 3.0, 7.0
    before.batch_limit.ran_out(8)
    beside = Worker(a, 2, "gpu1", before)
    assert (beside.service_s, beside.load_seconds, beside.last_used, beside.batch_limit.most) == (0.25, 3.0, 0.0, 0)
    before.move(Move.KILL)
    after = Worker(a, 3, "gpu0", before)
    assert (after.service_s, after.last_used, after.batch_limit.most) == (0.25, 7.0, 4)
    before.move(Move.FREED)
    assert Worker(a, 4, "gpu0", before).batch_limit.most == 4


# ---------------------------------------------------------------- models


def test_failed_loads_wait_twice_as_long_each_time_up_to_five_minutes() -> None:
    failures = LoadFailures()
    told = [failures.add("broken", 100.0, extra=False, guessed=False, permanent=True) for _ in range(11)]
    assert [count for count, _ in told] == list(range(1, 12))
    assert [wait for _, wait in told] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert (failures.cause, failures.permanent, failures.retry_at) == ("broken", True, 400.0)
    failures.clear()
    assert (failures.cause, failures.permanent, failures.ran_out, failures.retry_at) == ("", False, False, 0.0)
    assert failures.add("broken", 0.0, extra=False, guessed=False, permanent=False) == (1, 1.0)


def test_a_guess_that_fails_does_not_count_and_an_extra_worker_counts_by_itself() -> None:
    failures = LoadFailures()
    failures.ran_out = True
    assert failures.add("broken", 100.0, extra=False, guessed=True, permanent=False) == (0, 0.0)
    assert (failures.retry_at, failures.ran_out) == (100.0, False)
    assert failures.add("broken", 100.0, extra=False, guessed=False, permanent=False) == (1, 1.0)
    assert [failures.add("x", 200.0, extra=True, guessed=False, permanent=True) for _ in range(2)] == [(1, 1), (2, 2)]
    assert (failures.cause, failures.permanent, failures.retry_at, failures.extra_at) == ("broken", False, 101.0, 202.0)
    failures.clear()
    assert failures.extra_at == 0.0


def test_a_model_is_failed_after_a_load_that_failed_until_the_next() -> None:
    a = Model(model("a"))
    assert a.state is State.UNLOADED
    a.failures.add("broken", 0.0, extra=False, guessed=False, permanent=False)
    assert a.state is State.FAILED
    living(a)
    assert a.state is State.LOADED


def test_a_model_waits_with_both_its_queues_and_leaves_when_removed_or_disabled() -> None:
    a = Model(model("a"))
    a.queue.push(request(a, 1))
    a.later.push(request(a, 2))
    assert a.waiting == 2
    assert not a.leaving
    a.removed = True
    assert a.leaving
    assert Model(model("b", enabled=False)).leaving


def test_the_gap_is_an_average_in_which_the_newest_weighs_a_fifth() -> None:
    a = Model(model("a"))
    a.came_back_after(1.0)
    assert a.gap_s == 1.0
    a.came_back_after(3.0)
    assert a.gap_s == pytest.approx(1.4)
    a.came_back_after(0.4)
    assert a.gap_s == pytest.approx(1.2)


def test_the_declared_megabytes_count_until_one_has_been_seen_at_work() -> None:
    a = Model(model("a", 300))
    assert (a.need_mb("gpu0"), a.measured_mb("gpu0")) == (300, None)
    a.peaks["gpu0"] = Peak(200.0)
    assert (a.need_mb("gpu0"), a.measured_mb("gpu0"), a.need_mb("gpu1")) == (300, 200.0, 300)
    a.peaks["gpu0"] = Peak(400.0)
    assert a.need_mb("gpu0") == 400.0
    a.peaks["gpu0"] = Peak(200.0, True)
    assert a.need_mb("gpu0") == 200.0


# ---------------------------------------------------------------- quarantine


def test_the_newest_fingerprints_are_kept() -> None:
    quarantine = Quarantine()
    digests = [b"%d" % i for i in range(KEPT)]
    for digest in digests:
        quarantine.refuse(digest)
    assert list(quarantine.refused) == digests
    quarantine.refuse(digests[0])
    quarantine.refuse(b"new")
    assert list(quarantine.refused) == [*digests[2:], digests[0], b"new"]
    assert quarantine.lift()
    assert not quarantine.lift()
    assert not quarantine.refused


def test_after_a_hang_so_many_requests_are_suspects_or_for_so_long() -> None:
    quarantine = Quarantine()
    assert not quarantine.wary
    quarantine.be_wary(10.0)
    assert quarantine.wary
    assert sum(quarantine.suspects(10.0) for _ in range(2 * WARY_REQUESTS)) == WARY_REQUESTS - 1
    assert not quarantine.wary
    quarantine.be_wary(10.0)
    assert quarantine.suspects(10.0 + WARY_S - 1.0)
    assert not quarantine.suspects(10.0 + WARY_S)
    assert not quarantine.wary
    quarantine.be_wary(10.0)
    assert not quarantine.lift(), "no input was refused"
    assert not quarantine.wary


# ---------------------------------------------------------------- timers


def test_what_is_due_comes_in_order_and_not_before_its_time() -> None:
    timers = Timers()
    timers.add(3.0, Due.IDLE, 7)
    timers.add(2.0, Due.LOOK)
    assert timers.next(lambda entry: False) == 2.0
    assert timers.pop_due(1.9) is None
    assert timers.pop_due(2.0) == (2.0, Due.LOOK, 0)
    assert timers.next(lambda entry: entry[2] == 7) is None
    assert timers.pop_due(9.0) is None, "an entry that no longer holds is gone"


def test_what_no_longer_holds_is_swept_out_once_there_is_a_lot_of_it() -> None:
    timers = Timers()
    for number in range(4096):
        timers.add(float(-number % 97), Due.DEADLINE, number)
    timers.next(lambda entry: entry[2] >= 3000)
    assert len(list(timers)) == 4096
    timers.add(1.0, Due.DEADLINE, 4096)
    timers.next(lambda entry: entry[2] >= 3000)
    assert len(list(timers)) == 3000
    assert not list(timers.faults())
    for number in range(3000):
        timers.add(500.0, Due.DEADLINE, 5000 + number)
    timers.next(lambda entry: entry[2] >= 5000)
    assert len(list(timers)) == 6000, "not before there are twice as many"
    timers.add(1.0, Due.DEADLINE, 9000)
    timers.next(lambda entry: entry[2] >= 5000)
    assert len(list(timers)) == 3000
    popped = [timers.pop_due(1000.0) for _ in range(3000)]
    assert popped == sorted(popped)  # type: ignore[type-var]


# ---------------------------------------------------------------- the queue


def test_answered_requests_are_swept_out_of_a_queue_in_time() -> None:
    a = Model(model("a"))
    queue: Queue[Request] = Queue()
    waiting = [request(a, number, session=b"%d" % (number % 3), priority=number % 4) for number in range(100)]
    for one in waiting:
        queue.push(one)
    assert queue.entries == 100
    while 2 * queue.live + SWEEP >= 100:
        assert queue.entries == 100
        if 2 * (queue.live - 1) + SWEEP < 100:
            break
        queue.drop(waiting.pop(0))
    queue.drop(waiting.pop(0))
    assert queue.entries == queue.live == len(waiting)
    assert queue.all() == sorted(waiting, key=lambda one: (one.priority, one.seq))
    assert not list(queue.faults())
    assert [queue.pop() for _ in range(len(waiting) + 1)][-1] is None


def test_a_lone_request_is_an_entry_and_can_be_dropped_or_taken() -> None:
    a = Model(model("a"))
    queue: Queue[Request] = Queue()
    one = request(a)
    queue.push(one)
    assert (queue.entries, queue.live, queue.all(), queue.head()) == (1, 1, [one], one)
    queue.drop(one)
    assert (queue.entries, queue.live, queue.all(), queue.head(), one.queue) == (0, 0, [], None, None)
    queue.push(one)
    queue.push(two := request(a, 2))
    assert (queue.entries, queue.live, queue.all()) == (2, 2, [one, two])
    assert [queue.pop(), queue.pop(), queue.pop()] == [one, two, None]
    assert queue.entries == 0


# ---------------------------------------------------------------- the ledger


def test_a_sum_of_floats_that_misses_by_a_hair_still_fits() -> None:
    book = Ledger([Device("gpu0", "cuda", 512.0)])
    with pytest.raises(OverBudget):
        book.charge(1, "a", "gpu0", 512.0 + 2 * EPSILON_MB)
    book.charge(1, "a", "gpu0", 512.0 + EPSILON_MB)
    assert book.overrun_mb("gpu0") == 0.0
    book.recharge(1, 512.5)
    assert book.overrun_mb("gpu0") == 0.5
    book.recharge(1, 500.0)
    assert (book.overrun_mb("gpu0"), book.used_mb("gpu0")) == (0.0, 500.0)


def test_what_may_be_charged_is_the_budget_or_what_others_leave() -> None:
    book = Ledger([Device("gpu0", "cuda", 512.0)])
    book.allow("gpu0", 600.0)
    assert book.limit_mb("gpu0") == 512.0
    book.set_budget("gpu0", 700.0)
    assert book.limit_mb("gpu0") == 600.0


@pytest.mark.parametrize(
    ("corrupt", "fault"),
    [
        (lambda book: book.recharge(1, -1.0), "worker 1 is charged -1.0 MB on 'gpu0'"),
        (lambda book: book.recharge(1, INF), "worker 1 is charged inf MB on 'gpu0'"),
        (lambda book: book.recharge(1, NAN), "gpu0: nan MB are said to be charged"),
        (lambda book: book.devices.pop("gpu0"), "worker 1 is charged 100.0 MB on 'gpu0'"),
        (lambda book: book.set_budget("gpu1", -1.0), "gpu1: a budget of -1.0 MB, -1.0 may be charged"),
        (lambda book: book.allow("gpu1", -1.0), "gpu1: a budget of 512.0 MB, -1.0 may be charged"),
        (lambda book: book.set_budget("gpu1", 0.0), None),
        (lambda book: book.recharge(1, 0.0), None),
    ],
)
def test_a_ledger_that_contradicts_itself_says_so(corrupt: Any, fault: str | None) -> None:
    book = Ledger([Device("gpu0", "cuda", 512.0), Device("gpu1", "cuda", 512.0)])
    book.charge(1, "a", "gpu0", 100.0)
    assert not list(book.faults())
    corrupt(book)
    assert any(told.startswith(fault) for told in book.faults()) if fault else not list(book.faults())


# ---------------------------------------------------------------- doubts, readings, habits


def test_a_device_is_in_doubt_when_loads_of_three_models_have_failed_in_a_row() -> None:
    doubts = Doubts()
    assert [doubts.failed("gpu0", name, 10.0) for name in ("a", "b", "a")] == [False] * 3
    doubts.loaded("gpu0")
    assert [doubts.failed("gpu0", name, 10.0) for name in ("a", "b", "c")] == [False, False, True]
    assert doubts.until("gpu0", 10.0) == 10.0 + DOUBT_S
    assert doubts.until("gpu0", 10.0 + DOUBT_S) is None
    assert doubts.until("gpu1", 10.0) is None
    assert doubts.failed("gpu0", "d", 100.0), "still"
    doubts.loaded("gpu0")
    assert doubts.until("gpu0", 100.0) is None


def test_readings_that_fail_are_told_once_and_a_late_one_changes_nothing_then() -> None:
    unread = Unread()
    assert (unread.why_not("gpu0"), unread.is_late("gpu0"), unread.next_end()) == ("", False, INF)
    assert unread.note("gpu0", "lost", INF)
    assert not unread.note("gpu0", "lost", INF)
    assert unread.note("gpu0", "lost otherwise", INF)
    assert not unread.note("gpu0", "late", 5.0)
    assert (unread.why_not("gpu0"), unread.is_late("gpu0")) == ("lost otherwise", False)
    assert unread.expired(1e9) == []
    assert unread.note("gpu0", "", 0.0)
    assert unread.why_not("gpu0") == ""
    assert not unread.note("gpu0", "", 0.0)


def test_a_late_reading_keeps_a_device_for_a_moment() -> None:
    unread = Unread()
    assert not unread.note("gpu0", "late", 5.0)
    unread.note("gpu1", "late", 0.5)
    assert (unread.why_not("gpu0"), unread.is_late("gpu0"), unread.is_late("gpu1")) == ("late", True, True)
    assert unread.next_end() == 0.5
    assert unread.expired(0.4) == []
    assert unread.expired(0.5) == [("gpu1", "late")]
    assert (unread.why_not("gpu1"), unread.next_end(), unread.is_late("gpu1")) == ("", 5.0, False)


def test_what_follows_counts_once_a_turn_and_not_itself() -> None:
    habits = Habits()
    for turn, name in enumerate(("a", "b", "b", "a")):
        habits.asked(name)
        assert habits.follows("a", "b") == (0.5 if turn == 3 else 0.0)
    habits.asked("b")
    assert habits.follows("a", "b") == 1.0
    assert habits.follows("a", "a") == 0.0
    assert habits.follows("never", "b") == 0.0


def test_what_comes_after_more_than_the_next_few_does_not_follow() -> None:
    habits = Habits()
    for last in ("in", "out"):
        habits.asked("a")
        for i in range(AHEAD - (last == "in")):
            habits.asked(f"{last}{i}")
        habits.asked(last)
    assert (habits.follows("a", "in"), habits.follows("a", "out")) == (0.5, 0.0)


def test_old_turns_fade_and_what_followed_once_is_forgotten() -> None:
    habits = Habits()
    habits.asked("a")
    habits.asked("once")
    for turn in range(REMEMBERED - 1):
        if turn < 2:
            habits.asked("twice")
            for i in range(AHEAD):
                habits.asked(f"other{i}")
        habits.asked("a")
        habits.asked("b")
    assert habits.follows("a", "once") == pytest.approx(1 / REMEMBERED)
    assert habits.follows("a", "twice") == pytest.approx(2 / REMEMBERED)
    assert habits.follows("a", "b") == pytest.approx((REMEMBERED - 1) / REMEMBERED)
    habits.asked("a")
    turns = (REMEMBERED + 1) / 2
    assert habits.follows("a", "once") == 0.0
    assert habits.follows("a", "twice") == pytest.approx(1 / turns)
    assert habits.follows("a", "b") == pytest.approx((REMEMBERED - 1) / 2 / turns)


# ---------------------------------------------------------------- the story


def test_the_same_line_within_a_second_is_only_counted() -> None:
    story = Story()
    for at in (10.0, 10.5, 10.0 + OFTEN_S - 0.1, 10.0 + OFTEN_S, 10.5 + OFTEN_S):
        story.tell_once(at, "a", "refused", "overloaded", request=1, message="full")
    story.tell_once(10.6, "b", "refused", "overloaded", request=1, message="full")
    story.tell_once(10.6, "a", "refused", "other", request=1, message="full")
    assert [(line.at, line.model, line.fields["untold"]) for line in story.about()] == [
        (10.0, "a", 0), (10.0 + OFTEN_S, "a", 2), (10.6, "b", 0), (10.6, "a", 0),
    ]  # fmt: skip


def test_a_reader_gets_what_is_new_and_still_kept() -> None:
    story = Story(keep=3)
    assert story.since(0) == []
    for number in range(5):
        story.tell(float(number), "a", "yields", needer="b")
    assert [line.at for line in story.since(0)] == [2.0, 3.0, 4.0]
    assert [line.at for line in story.since(4)] == [4.0]
    assert story.since(5) == []
    assert story.since(9) == []
    assert story.count == 5


def test_a_line_is_about_its_model_its_extra_workers_and_the_others_that_it_names() -> None:
    story = Story()
    story.tell(1.0, "a#2", "yields", needer="b")
    story.tell(2.0, "b", "dropped", others=["a", "c#3"])
    assert [line.at for line in story.about("a")] == [1.0, 2.0]
    assert [line.at for line in story.about("b")] == [2.0]
    assert [line.at for line in story.about("c")] == [2.0]
    assert len(story.about()) == 2
