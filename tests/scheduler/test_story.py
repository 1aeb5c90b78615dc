"""Why: every decision has its line, with a kind, the arithmetic, and its numbers as fields."""

from __future__ import annotations

from broker.scheduler.story.story import Line
from tests.scheduler.world import World, model


def told(w: World, kind: str, name: str | None = None) -> list[Line]:
    return [line for line in w.s.story.about(name) if line.kind == kind]


def test_loading_and_evicting_are_told_with_their_numbers() -> None:
    w = World([model("a", 300), model("b", 400)], 512)
    w.load("a", "b")
    loading = told(w, "loading", "b")[-1]
    assert (loading.fields["mb"], loading.fields["limit_mb"]) == (400, 512)
    assert told(w, "evicted", "a")[0].fields["mb"] == 300
    assert "b needs 400 MB, 188 MB short of 512" in told(w, "evicted", "a")[0].text
    assert told(w, "loaded", "b")[0].fields["seconds"] == 0.0


def test_who_was_spared_and_why_is_told_to_all_whom_it_concerns() -> None:
    w = World([model("small", 100), model("big", 250), model("vip", 100, "HIGH"), model("new", 300)], 512)
    w.load("small", "big", "vip")
    w.preload("new")
    w.settle()
    line = told(w, "spared")[0]
    assert line in w.s.story.about("small")
    assert line in w.s.story.about("vip")
    assert line in w.s.story.about("new")
    assert line not in w.s.story.about("big")
    assert line.text.startswith("spared for it: ")
    assert "small 100 MB (MEDIUM, unused for 0.0 s)" in line.text
    assert line.text.endswith("big gave 250 MB, 238 were needed")
    assert (line.fields["needed_mb"], line.fields["freed_mb"], line.fields["victims"]) == (238, 250, ["big"])


def test_a_refusal_is_told_but_a_thousand_of_them_do_not_wash_the_rest_away() -> None:
    w = World([model("a"), model("b")], 512, max_queue=1)
    w.ask("a", client=b"x")
    refused = [w.ask("a") for _ in range(1000)]
    w.ask("nosuch")
    lines = told(w, "refused")
    assert [line.model for line in lines] == ["a", ""]
    assert lines[0].fields["request"] == refused[0]
    assert "max_queue = 1" in lines[0].text
    w.wait(2.0)
    w.ask("a")
    assert told(w, "refused", "a")[-1].fields["untold"] == 999
    assert "999 more like this" in told(w, "refused", "a")[-1].text


def test_queued_killed_and_retried_are_told() -> None:
    w = World([model("a", 400, dispatch_timeout=1.0), model("b", 400)], 512)
    with_lease = w.lease("a")
    w.settle()
    w.ask("b")
    assert "no model there may go: " in told(w, "waits", "b")[0].text
    w.release(w.granted(with_lease))
    w.settle()
    asked = w.ask("a")
    w.settle(holding={"a"})
    w.ready("a")
    w.exits("a", "signal 11")
    assert told(w, "crashed", "a")[0].fields["running"] == [asked]
    assert told(w, "retried", "a")[0].fields["request"] == asked
    w.memory_back("a")
    w.ready("a")
    w.wait(1.5)
    assert told(w, "killed", "a")[0].fields["running"] == [asked]
