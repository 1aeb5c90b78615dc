"""The ledger never holds more than the budget, and forgets nothing."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from broker.scheduler.capacity.ledger import Device, Ledger, OverBudget


def ledger(*budgets: float) -> Ledger:
    return Ledger([Device(f"gpu{i}", "cuda", mb) for i, mb in enumerate(budgets)])


def test_a_charge_takes_room_and_its_release_gives_it_back() -> None:
    book = ledger(512)
    book.charge(1, "a", "gpu0", 300)
    assert (book.used_mb("gpu0"), book.free_mb("gpu0")) == (300, 212)
    released = book.release(1)
    assert released is not None
    assert (released.model, released.mb) == ("a", 300)
    assert book.free_mb("gpu0") == 512


def test_a_charge_over_the_budget_raises_and_changes_nothing() -> None:
    book = ledger(512)
    book.charge(1, "a", "gpu0", 300)
    with pytest.raises(OverBudget, match=r"b wants 213 MB on gpu0, 212 MB are free of 512"):
        book.charge(2, "b", "gpu0", 213)
    assert book.used_mb("gpu0") == 300
    assert book.of(2) is None


def test_a_worker_is_charged_once() -> None:
    book = ledger(512)
    book.charge(1, "a", "gpu0", 100)
    with pytest.raises(ValueError, match="charged already"):
        book.charge(1, "a", "gpu0", 100)


def test_a_release_of_nothing_is_none() -> None:
    assert ledger(512).release(7) is None


def test_devices_have_budgets_of_their_own() -> None:
    book = ledger(512, 1024)
    book.charge(1, "a", "gpu1", 1000)
    assert (book.free_mb("gpu0"), book.free_mb("gpu1")) == (512, 24)


def test_a_ledger_without_devices_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="at least one device"):
        Ledger([])


def test_a_model_as_large_as_the_budget_fits_however_often_it_comes_and_goes() -> None:
    book = ledger(6963.2)
    for worker in range(1000):
        for part in range(3):
            book.charge(3 * worker + part, "a", "gpu0", 6963.2 / 3)
        for part in range(3):
            book.release(3 * worker + part)
    book.charge(10_000, "all of it", "gpu0", 6963.2)


STEPS = st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 1), st.floats(0, 700)), max_size=60)


@settings(max_examples=300, deadline=None, print_blob=True)
@given(steps=STEPS)
def test_against_a_dictionary(steps) -> None:
    book, plain = ledger(512, 1000.1), {}
    budgets = {"gpu0": 512, "gpu1": 1000.1}
    for charge, worker, device, mb in steps:
        name = f"gpu{device}"
        if not charge:
            assert (book.release(worker) is None) == (plain.pop(worker, None) is None)
        elif worker not in plain:
            used = sum(m for d, m in plain.values() if d == name)
            try:
                book.charge(worker, "m", name, mb)
            except OverBudget:
                assert used + mb > budgets[name]
            else:
                plain[worker] = (name, mb)
        for name, budget in budgets.items():
            used = sum(m for d, m in plain.values() if d == name)
            assert book.used_mb(name) == pytest.approx(used)
            assert used <= budget + 1e-3
        assert {x.worker for x in book.charges()} == set(plain)
