"""What became of a request: told afterwards, from its record and the story of its model."""

from __future__ import annotations

import pytest

from broker.scheduler.events import Asked, Deliver, Kind
from broker.scheduler.story import journal
from tests.scheduler.world import World, model


def tell(w: World, request: int) -> list[str]:
    lines = w.s.explain_request(request)
    assert lines is not None
    assert lines == sorted(lines, key=lambda line: line.at)
    return [line.text for line in lines]


def test_a_request_s_story_is_its_own_moments_and_what_was_decided_meanwhile() -> None:
    w = World([model("a", 300), model("b", 400)], 512)
    w.load("b")
    asked = w.ask("a")
    w.now += 1.0
    w.settle(holding={"a"})
    w.now += 2.0
    w.ready("a")
    w.now += 0.5
    w.settle()
    told = tell(w, asked)
    assert told[0] == f"request {asked} came in, found it unloaded, 0 waiting"
    assert any(text.startswith("loading on gpu0") for text in told)
    assert "loaded in 2.00 s" in told
    assert told[-2] == f"request {asked} went to worker 2 in batch 1"
    assert told[-1] == f"request {asked} was answered after 3.500 s, 0.500 s of it at the worker"
    w.ask("a")
    assert tell(w, asked) == told, "what came later is not part of it"


def test_a_batch_tells_who_went_together() -> None:
    w = World([model("a")], 512, max_batch=4)
    w.load("a")
    w.ask("a"), w.ask("a")
    three = [w.ask("a") for _ in range(3)]
    w.done("a")
    assert tell(w, three[0])[-1].endswith(f"in batch 3, together with {three[1]}, {three[2]}"), "it is still at work"
    w.settle()
    assert tell(w, three[1])[0] == f"request {three[1]} came in, found it loaded but at work, 1 waiting"
    assert f"together with {three[0]}, {three[2]}" in tell(w, three[1])[-2]


def test_a_request_that_found_its_model_free_has_a_short_story_and_no_line_with_the_model() -> None:
    w = World([model("a")], 512)
    w.load("a")
    asked = w.ask("a")
    w.settle()
    assert [text.split(" after ")[0] for text in tell(w, asked)] == [
        f"request {asked} came in", f"request {asked} went to worker 1 in batch 1", f"request {asked} was answered",
    ]  # fmt: skip
    assert not any(line.kind == "request" for line in w.s.explain("a") if f"request {asked} " in line.text)


def test_refusals_of_every_sort_can_be_explained() -> None:
    w = World([model("a", 400), model("b", 400)], 512, max_queue=1)
    lease = w.lease("a")
    w.settle()
    late, unknown = w.ask("b", timeout=1.0), w.ask("nosuch")
    full, in_use = w.ask("b"), w.unload("a")
    w.wait(1.5)
    assert "no model there may go" in tell(w, late)[-1]
    assert f"request {late} was refused after 1.000 s, deadline_exceeded" in tell(w, late)[-1]
    assert "there is no model 'nosuch'" in tell(w, unknown)[0]
    assert "max_queue = 1" in tell(w, full)[0]
    assert "model_in_use" in tell(w, in_use)[-1]
    w.withdraw(gone := w.ask("b"))
    assert "withdrawn by the caller" in tell(w, gone)[-1]
    w.close(b"c")
    assert w.s.explain_request(lease) is not None


def test_a_request_that_is_retried_says_so() -> None:
    w = World([model("a")], 512)
    w.load("a")
    asked = w.ask("a")
    w.exits("a")
    w.settle()
    told = tell(w, asked)
    assert f"request {asked} is tried once more, alone, on another process" in told
    assert any("its process ended (signal 9)" in text for text in told)
    assert told[-1].startswith(f"request {asked} was answered")
    assert any(line.text.startswith(f"request {asked} came in") for line in w.s.explain("a"))


def test_of_a_model_the_last_requests_that_had_to_wait_are_told() -> None:
    w = World([model("a")], 512)
    asked = w.ask("a")
    w.now += 2.0
    w.settle()
    line = next(line for line in w.s.explain("a") if line.kind == "request")
    assert line.text == (
        f"request {asked} came in, found it unloaded, 0 waiting; went to worker 1 after 2.00 s; was answered after "
        "2.000 s, 0.000 s of it at the worker"
    )
    for i in range(100):
        w.ask("a", client=b"%d" % i)
    w.settle()
    assert sum(line.kind == "request" for line in w.s.explain("a")) == journal.SHOWN


def test_only_the_last_are_kept_and_of_them_no_payload_and_no_result() -> None:
    w = World([model("a")], 512)
    w.load("a")
    first = w.ask("a")
    w.settle()
    kept = w.s.registry.journal.find(first)
    assert (kept.payload, kept.outcome) == (None, Deliver)
    for number in range(10_000, 10_000 + journal.KEEP):
        w.s.handle(Asked(number, b"c", "nosuch", Kind.INFER, 1e9), w.now)
    assert w.s.explain_request(first) is None
    assert w.s.explain_request(10_000 + journal.KEEP) is None


@pytest.mark.parametrize("kind", [Kind.LEASE, Kind.PRELOAD, Kind.UNLOAD])
def test_other_requests_than_inferences_have_a_story_too(kind: Kind) -> None:
    w = World([model("a")], 512)
    w.load("a")
    asked = w.ask("a", kind)
    w.settle()
    assert tell(w, asked)[0].startswith(f"request {asked} ({kind.value}) came in")
    assert tell(w, asked)[-1].startswith(f"request {asked} was granted after")
