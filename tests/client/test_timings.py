"""Every answer says where its time went, and by which number the broker knows its request."""

from __future__ import annotations

import asyncio
import copy
import pickle
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import support
from tests.support import Running, toy
from zoo import AsyncClient, InvalidInput, Timings, results

FRAME = np.full((40, 60, 3), 200, np.uint8)
NAMES = ["queue", "load", "dispatch", "preprocess", "infer", "postprocess", "total"]


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    folder = Path(tempfile.mkdtemp(prefix="zoo-t-", dir="/tmp"))
    models = [toy("cold", options={"load_seconds": 0.1}), toy(), toy("find", adapter="tests.finder:Finder")]
    made = Running(folder, models).start()
    yield made
    try:
        made.close()
    finally:
        support.remove(folder)


def check(answer: Any, within: float) -> Timings:
    """What holds for each answer. `within`: seconds of the caller's clock in which it was asked and came."""
    found: Timings = answer.timings
    assert [*dict(found)] == NAMES
    assert all(found[name] >= 0.0 for name in NAMES)
    assert 0.0 < found.infer <= found.total <= within
    assert sum(found[name] for name in NAMES[:-1]) == pytest.approx(found.total)
    assert answer.request > 0
    return found


def test_the_first_answer_of_a_model_says_how_long_it_was_loaded_and_the_next_that_it_was_not(running: Running) -> None:
    client, started = running.client(), time.monotonic()
    first = client.infer("cold", FRAME)
    assert check(first, time.monotonic() - started).load >= 0.1
    asked = time.monotonic()
    second = client.infer("cold", FRAME, do="sleep", seconds=0.05)
    timings = check(second, time.monotonic() - asked)
    assert timings.load == 0.0
    assert timings.infer >= 0.05
    assert second.request > first.request


def test_a_request_that_waits_for_another_says_so(running: Running) -> None:
    async def work() -> None:
        async with AsyncClient(running.endpoint, timeout=20.0, arena_mb=8) as zoo:
            await zoo.infer("toy", FRAME)
            started = time.monotonic()
            answers = await asyncio.gather(*(zoo.infer("toy", FRAME, do="sleep", seconds=0.25) for _ in range(3)))
            timings = sorted((check(answer, time.monotonic() - started) for answer in answers), key=lambda t: t.queue)
            late = 0.2  # at most, one comes after the other
            assert [t.queue >= 0.25 * n - late for n, t in enumerate(timings)] == [True] * 3
            assert timings[0].queue < timings[1].queue < timings[2].queue

    asyncio.run(work())


def test_each_of_several_answers_has_them_a_typed_one_and_a_dict(running: Running) -> None:
    client, started = running.client(), time.monotonic()
    both = client.infer_many(FRAME, ["toy", "find"], do="find")
    crops = client.infer("find", FRAME, boxes=[(0, 0, 20, 20), (5, 5, 30, 30)], do="find")
    dicts = client.infer("toy", FRAME, boxes=[(0, 0, 20, 20), (5, 5, 30, 30)])
    with client.load("find") as lease:
        leased = lease(FRAME, do="find")
    for answer in (*both.values(), *crops, *dicts, leased):
        check(answer, time.monotonic() - started)
    assert isinstance(crops[0], results.Detections)
    assert isinstance(dicts[0], dict)
    for pair in (crops, dicts):
        assert pair[0].timings == pair[1].timings
        assert pair[0].request == pair[1].request
    assert len({both["toy"].request, both["find"].request, crops[0].request, dicts[0].request, leased.request}) == 5


def test_the_number_of_an_answer_is_the_one_to_explain_it_by(running: Running) -> None:
    client = running.client()
    answer = client.infer("toy", FRAME)
    assert any(f"request {answer.request} was answered" in line for line in client.explain(answer.request))
    with pytest.raises(InvalidInput) as refused:
        client.infer("toy", FRAME, do="refuse")
    assert refused.value.request == answer.request + 1


def test_they_are_beside_the_answer_and_not_in_it(running: Running) -> None:
    client = running.client()
    plain, typed = client.infer("toy", FRAME), client.infer("find", FRAME, do="find")
    assert not {"timings", "request"} & plain.keys()
    assert plain == dict(plain)
    assert not {"timings", "request"} & typed.to_dict().keys()
    assert results.typed(plain).timings == plain.timings
    assert results.typed(plain).request == plain.request


@pytest.mark.parametrize("model", ["toy", "find"])
def test_a_copy_of_an_answer_keeps_them(running: Running, model: str) -> None:
    answer = running.client().infer(model, FRAME, do="find")
    for found in (copy.copy(answer), copy.deepcopy(answer), pickle.loads(pickle.dumps(answer))):
        assert type(found) is type(answer)
        assert (found.timings, found.request) == (answer.timings, answer.request)
        assert found is not answer
    if isinstance(answer, results.TypedResult):
        moved = answer.moved(3.0, 4.0)
        assert (moved.timings, moved.request) == (answer.timings, answer.request)


def test_a_result_that_came_from_no_broker_has_none() -> None:
    made = results.Quality(score=1.0)
    assert (made.timings, made.request) == (Timings(), 0)
    with pytest.raises(KeyError):
        made.timings["_dispatch"]
