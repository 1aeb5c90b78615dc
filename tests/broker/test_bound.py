"""What replays are compared with: the proven bound against all that could be done, plain caches, and real requests."""

from __future__ import annotations

import functools
import itertools

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from benchmarks import bound, clairvoyant, gentd26, plain, replay, traces
from benchmarks.world import World
from zoo.config.schema import ModelConfig


def best_possible(requests: str, mb: dict[str, float], load_s: dict[str, float], budget_mb: float) -> float:
    """The least seconds of loading, by trying all that can be kept after each request."""

    @functools.cache
    def rest(i: int, loaded: frozenset[str]) -> float:
        if i == len(requests):
            return 0.0
        name, others = requests[i], sorted(loaded - {requests[i]})
        kept = (
            frozenset(some)
            for size in range(len(others) + 1)
            for some in itertools.combinations(others, size)
            if sum(mb[n] for n in some) + mb[name] <= budget_mb
        )
        return (0.0 if name in loaded else load_s[name]) + min(rest(i + 1, some | {name}) for some in kept)

    return rest(0, frozenset())


MODELS = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(rows=MODELS, picks=st.lists(st.integers(0, 4), max_size=12), budget=st.integers(5, 12), equal=st.booleans())
def test_no_policy_is_better_than_the_bound_and_it_is_reached_where_all_are_equal(rows, picks, budget, equal) -> None:
    mb = {name: 2.0 if equal else float(size) for name, (size, _) in zip("abcde", rows, strict=False)}
    load_s = {name: 1.0 if equal else float(cost) for name, (_, cost) in zip("abcde", rows, strict=False)}
    models = [ModelConfig(name=name, vram_mb=size) for name, size in mb.items()]
    requests = "".join(list(mb)[pick % len(mb)] for pick in picks)
    least = bound.load_time(requests, models, budget, load_s)
    best = best_possible(requests, mb, load_s, budget)
    assert least <= best + 1e-6
    for policy in (plain.lru, plain.gdsf, functools.partial(clairvoyant.load_time, by_priority=False)):
        assert best <= policy(requests, models, budget, load_s)[0] + 1e-6
    if equal and budget % 2 == 0:
        assert least == pytest.approx(best), "then the programme's solution is in whole numbers"


def test_the_bound_keeps_parts_of_models() -> None:
    models = [ModelConfig(name=n, vram_mb=2) for n in "abc"]
    cost = dict.fromkeys("abc", 1.0)
    assert bound.load_time("abcabc", models, 4, cost) == pytest.approx(4.0)
    assert bound.load_time("abcabc", models, 6, cost) == pytest.approx(3.0)
    assert bound.load_time("abcabc", models, 5, cost) == pytest.approx(3.5)
    assert bound.load_time("", models, 4, cost) == 0.0
    with pytest.raises(ValueError, match="b: more MB than the whole budget of 4"):
        bound.load_time("ab", [models[0], ModelConfig(name="b", vram_mb=5)], 4, cost)


def test_plain_caches_do_as_their_papers_say() -> None:
    models = [ModelConfig(name="dear", vram_mb=100), *(ModelConfig(name=n, vram_mb=100) for n in "abc")]
    cost = {"dear": 3.0, "a": 1.0, "b": 1.0, "c": 1.0}
    requests = ["dear", "a", "b", "dear", "c", "a", "dear"]
    assert plain.lru(requests, models, 200, cost) == (3 + 1 + 1 + 3 + 1 + 1 + 3, 7)
    assert plain.gdsf(requests, models, 200, cost) == (3 + 1 + 1 + 1 + 1, 5), "the dear one stays"


def test_a_trace_in_order_is_held_against_the_bound() -> None:
    trace = traces.cameras("street", 7, count=10, seconds=traces.HOUR_S)
    load_s = {m.name: 0.3 + m.vram_mb / 1000 for m in trace.models}
    least = bound.load_time(trace.requests(), trace.models, trace.budget_mb, load_s)
    for eviction in ("priority", "adaptive"):
        assert World(trace, load_s, eviction=eviction, in_order=True).run().load_s >= least


def test_requests_that_get_lost_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = traces.round_robin(1, requests=20)
    load_s = {m.name: 1.0 for m in trace.models}
    monkeypatch.setattr(World, "_begin", lambda *_: None)
    with pytest.raises(RuntimeError, match="of 20 requests 0 were asked, 0 answered, 0 refused and 0 missed"):
        World(trace, load_s).run()


@pytest.mark.slow
def test_adaptive_is_hardly_ever_behind_the_better_plain_cache() -> None:
    """On no trace that is shipped by more than 2 %, and on the street within 1.45 times the bound."""
    for trace in replay.shipped():
        load_s, _ = replay.load_seconds(trace.models)
        asked = trace.requests(), trace.models, trace.budget_mb, load_s
        adaptive = World(trace, load_s, eviction="adaptive", in_order=True).run().load_s
        assert adaptive <= 1.02 * min(plain.lru(*asked)[0], plain.gdsf(*asked)[0]), trace.name
        if trace.name == "street":
            assert adaptive <= 1.45 * bound.load_time(*asked)


# ---------------------------------------------------------------- real requests

TABLE = """gmt_create,predict_status,checkpoint_model_version_id
2024-11-15 18:16:14,SUCCEED,M0001
2024-11-15 16:57:50,SUCCEED,M0000
2024-11-16 16:57:50,SUCCEED,M0001
"""


def test_real_requests_become_a_trace() -> None:
    asks = gentd26.requests(TABLE)
    assert asks == [(0.0, "M0000"), (4704.0, "M0001"), (86400.0, "M0001")]
    equal = gentd26.trace(asks, 8, equal=True)
    assert equal.requests() == ["M0000", "M0001", "M0001"]
    assert equal.budget_mb == 8000
    by_lot = gentd26.trace(asks, 4, equal=False)
    sizes = [m.vram_mb for m in by_lot.models]
    assert all(gentd26.SMALLEST_MB <= mb <= gentd26.LARGEST_MB for mb in sizes)
    assert by_lot.budget_mb == 2 * sum(sizes)
    assert by_lot == gentd26.trace(asks, 4, equal=False)


def test_another_file_is_refused_and_the_right_one_named(tmp_path) -> None:
    file = tmp_path / "requests.csv"
    file.write_text(TABLE)
    with pytest.raises(ValueError, match=r"SHA-256 is .*, not 263fb.*alibaba/clusterdata"):
        gentd26.read(file)


def test_what_was_measured_with_real_requests_stays_without_them(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay.common, "RESULTS", tmp_path)
    assert replay.saved() == {}
    (tmp_path / "replay.json").write_text('{"traces": {"day": {}, "GenTD26, 8 fit": {"bound_s": 1.0}}}')
    assert replay.saved() == {"GenTD26, 8 fit": {"bound_s": 1.0}}
