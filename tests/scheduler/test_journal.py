"""What became of a request: told afterwards, from its record and the story of its model."""

from __future__ import annotations

from typing import Any

import pytest

from broker.scheduler.events import Answer, Asked, Deliver, Forget, Kind, Refuse
from broker.scheduler.state import Model, Request, State
from broker.scheduler.story import journal
from broker.scheduler.story.journal import Journal, Turned
from broker.scheduler.story.story import Story
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


# ---------------------------------------------------------------- the ring by itself


A = Model(model("a"))


def record(number: int, of: Model = A, **more: Any) -> Request:
    """One that came in at 5 s, went to worker 3 at 6 s and was answered at 8 s."""
    kept = Request(number, b"c", of, Kind.INFER, 1e9, 2, None, None, number, 5.0)
    kept.sent, kept.worker, kept.batch, kept.ended, kept.outcome = 6.0, 3, number, 8.0, Deliver
    for key, value in more.items():
        setattr(kept, key, value)
    return kept


def test_what_was_decided_stands_between_the_moments_of_the_request() -> None:
    story = Story()
    for at in (4.9, 5.0, 6.0, 8.0, 8.1):
        story.tell(at, "a", "yields", needer=f"b{at}")
    story.tell(6.0, "z", "yields", needer="other")
    lines = Journal().tell(record(7), story, [])
    assert [(line.at, line.text) for line in lines] == [
        (5.0, "request 7 came in"),
        (5.0, "yields: b5.0 waits for its room"),
        (6.0, "yields: b6.0 waits for its room"),
        (6.0, "request 7 went to worker 3 in batch 7"),
        (8.0, "yields: b8.0 waits for its room"),
        (8.0, "request 7 was answered after 3.000 s, 2.000 s of it at the worker"),
    ]
    under_way = Journal().tell(record(7, outcome=None), story, [])
    assert under_way[-1].text == "yields: b8.1 waits for its room"
    queued = Journal().tell(record(7, outcome=None, batch=0), Story(), [])
    assert [line.text for line in queued] == ["request 7 came in"]


@pytest.mark.parametrize(
    ("outcome", "text"),
    [
        (Answer, "was granted after 3.000 s"),
        (Forget, "lost its client after 3.000 s"),
        (Refuse(7, "overloaded", "too many"), "was refused after 3.000 s, overloaded: too many"),
    ],
)
def test_how_a_request_ended_is_told(outcome: Any, text: str) -> None:
    assert Journal().tell(record(7, outcome=outcome), Story(), [])[-1].text == f"request 7 {text}"


def test_who_was_in_the_same_batch_is_told_whether_kept_or_under_way() -> None:
    ring, one = Journal(), record(7, batch=4)
    for kept in (one, record(6, batch=4), record(8, batch=5), Turned(9, 5.0, "a", Refuse(9, "x", "no"), b"c")):
        ring.add(kept)
    assert ring.tell(one, Story(), [record(5, batch=4, outcome=None)])[1].text == (
        "request 7 went to worker 3 in batch 4, together with 5, 6"
    )
    assert ring.find(6) is not None
    assert ring.find(6) is not ring.find(7)
    assert ring.find(99) is None


def test_of_a_model_those_are_told_that_waited_died_or_were_refused_the_newest_last() -> None:
    ring = Journal()
    ring.add(record(1, found=State.LOADED, behind=2))
    ring.add(record(2))  # found it free
    ring.add(record(3, crashes=1))
    ring.add(record(4, outcome=Refuse(4, "deadline_exceeded", "late"), batch=0))
    ring.add(record(5, Model(model("b")), found=State.UNLOADED))
    ring.add(Turned(6, 5.0, "a", Refuse(6, "overloaded", "full"), b"c"))
    ring.add(record(7, found=State.UNLOADED, kind=Kind.PRELOAD, outcome=Answer, batch=0))
    assert [line.text for line in ring.about("a")] == [
        "request 1 came in, found it loaded but at work, 2 waiting; went to worker 3 after 1.00 s; was answered after "
        "3.000 s, 2.000 s of it at the worker",
        "request 3 came in; went to worker 3 after 1.00 s; was answered after 3.000 s, 2.000 s of it at the worker",
        "request 4 came in; was refused after 3.000 s, deadline_exceeded: late",
        "request 7 (preload) came in, found it unloaded, 0 waiting; was granted after 3.000 s",
    ]
    for number in range(10, 10 + journal.SHOWN + 1):
        ring.add(record(number, found=State.LOADED))
    assert [line.text.split()[1] for line in ring.about("a")] == [str(11 + i) for i in range(journal.SHOWN)]
