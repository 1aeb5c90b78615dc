"""What the broker keeps of its log in memory: bounded, in pages, by model."""

from __future__ import annotations

import json
import os

from hypothesis import given
from hypothesis import strategies as st

from broker import logs
from broker.recent import LogRing
from broker.scheduler.story.story import Line
from tests.broker.test_logs import record


def all_of(recent: LogRing, number: int = 0, model: str | None = None, most: int = 100) -> tuple[list[str], int]:
    lines: list[str] = []
    more = True
    while more:
        page, number, more = recent.since(number, model, most)
        assert page or not more
        lines += page
    return lines, number


@given(
    st.lists(st.tuples(st.text("xyz", max_size=30), st.sampled_from(["a", "b"])), max_size=60),
    st.integers(1, 20), st.integers(1, 400), st.integers(-3, 70), st.integers(1, 90),
)  # fmt: skip
def test_what_is_kept_comes_in_order_once_and_within_its_bounds(
    put: list[tuple[str, str]], most_lines: int, most_bytes: int, since: int, page: int
) -> None:
    recent = LogRing(most_lines, most_bytes)
    for line, model in put:
        recent.put(line, frozenset([model]))
    texts = [line for line, _ in put]
    kept, number = all_of(recent, 0, None, page)
    assert kept == texts[len(texts) - len(kept) :]
    assert len(kept) <= most_lines
    assert len(kept) <= 1 or sum(map(len, kept)) <= most_bytes
    assert number == len(put)
    assert all_of(recent, since, None, page)[0] == (kept if since <= 0 else texts[max(since, len(texts) - len(kept)) :])
    mine = [line for line, model in put[len(put) - len(kept) :] if model == "a"]
    assert all_of(recent, 0, "a", page)[0] == mine
    recent.put("new", frozenset(["a"]))
    assert all_of(recent, number, "a", page)[0] == ["new"]


def test_a_line_is_kept_as_json_with_every_model_that_it_is_about() -> None:
    for kind in ("text", "json"):
        log = logs.Log(kind, os.open(os.devnull, os.O_WRONLY))  # type: ignore[arg-type]
        decision = Line(5.0, "toy#2", "printed", {"others": ["large"]})
        log.emit(record("worker's words", model="toy", worker=3))
        log.printed("plain")
        for model, messages in ((None, ["worker's words", "plain"]), ("toy", ["worker's words"]), ("large", [])):
            lines, _, _ = log.recent.since(0, model)
            assert [json.loads(line)["message"] for line in lines] == messages
        assert decision.models == {"toy", "large"}
