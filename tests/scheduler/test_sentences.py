"""Each kind of line in the story has its sentence, word for word."""

from __future__ import annotations

from typing import Any

import pytest

from broker.scheduler.story.sentences import SENTENCES
from broker.scheduler.story.story import Line

SAID: list[tuple[str, dict[str, Any], str]] = [
    ("refused", {"request": 7, "message": "the queue is full"}, "refused request 7: the queue is full"),
    (
        "refused",
        {"request": 7, "message": "no", "untold": 1, "code": "overloaded"},
        "refused request 7: no (1 more like this since the last such line)",
    ),
    ("client gone", {"leases": 1, "requests": 0}, "a client went away: 1 leases released, no requests dropped"),
    ("client gone", {"leases": 0, "requests": 1}, "a client went away: 0 leases released, 1 requests dropped"),
    ("unwanted", {}, "the load goes on, though no request waits for it"),
    ("pinned", {"on": True}, "pinned: it will not be evicted"),
    ("pinned", {"on": False}, "unpinned"),
    ("request", {"text": "request 7 came in"}, "request 7 came in"),
    ("waits", {"why": "another model is loading", "others": []}, "waits: another model is loading"),
    (
        "loading",
        {"device": "gpu0", "waiting": 2, "used_mb": 700.0, "mb": 300.0, "limit_mb": 1000.0},
        "loading on gpu0: 2 waiting; 400 + 300 = 700 of 1000 MB",
    ),
    ("loaded", {"seconds": 1.234}, "loaded in 1.23 s"),
    (
        "load failed",
        {"cause": "no such file", "retry_seconds": 4.0},
        "load failed: no such file; no further try for 4 s",
    ),
    (
        "in doubt",
        {"device": "gpu0", "seconds": 60.0, "models": 3},
        "3 models in a row could not be loaded on gpu0: for 60 s nothing is loaded there that fits elsewhere",
    ),
    (
        "growing",
        {"waiting": 8, "workers": 2, "seconds": 2.0, "service_s": 0.5, "load_s": 1.5},
        "8 waiting x 0.5 s / 2 = 2.00 s to work off, an extra worker loads in 1.50 s",
    ),
    (
        "ahead",
        {"after": "plate", "probability": 0.75, "device": "gpu0", "need_mb": 300.0, "free_mb": 512.0},
        "loaded ahead: follows plate 75% of the time, and needs 300 of 512 MB that are free on gpu0",
    ),
    (
        "restored",
        {"device": "gpu0", "need_mb": 300.0, "free_mb": 512.0},
        "loaded again, as it was before the broker's start: 300 of 512 MB on gpu0",
    ),
    ("dropped", {"others": ["a", "b"]}, "its load ahead of any request ends: a, b waits for a load"),
    ("evicted", {"mb": 300.0, "device": "gpu0", "why": "idle"}, "evicted, 300 MB on gpu0: idle"),
    (
        "spared",
        {
            "spared": [("a", 100.0, "LOW", 2.0), ("b", 50.0, "HIGH", 3.25)],
            "others": ["a", "b", "c"],
            "victims": ["x", "y"],
            "freed_mb": 300.0,
            "needed_mb": 250.0,
        },
        "spared for it: a 100 MB (LOW, unused for 2.0 s), b 50 MB (HIGH, unused for 3.2 s) and 1 more; "
        "x, y gave 300 MB, 250 were needed",
    ),
    (
        "spared",
        {
            "spared": [("a", 100.0, "LOW", 2.0)],
            "others": ["a"],
            "victims": ["x"],
            "freed_mb": 300.0,
            "needed_mb": 250.0,
        },
        "spared for it: a 100 MB (LOW, unused for 2.0 s); x gave 300 MB, 250 were needed",
    ),
    ("yields", {"needer": "b"}, "yields: b waits for its room"),
    ("draining", {"why": "unload", "reasons": "1 lease"}, "draining: unload (1 lease)"),
    ("first", {"device": "gpu1", "before": 3}, "its primary worker is the one on gpu1 from now on"),
    ("crashed", {"how": "signal 9", "running": []}, "its process ended (signal 9)"),
    ("crashed", {"how": "signal 9", "running": [1]}, "its process ended (signal 9) while running request 1"),
    ("crashed", {"how": "signal 9", "running": [1, 2]}, "its process ended (signal 9) while running requests 1, 2"),
    (
        "killed",
        {"running": [1, 2, 3], "limit_seconds": 60.0},
        "killed: requests 1, 2, 3 ran longer than dispatch_timeout (60 s)",
    ),
    ("retried", {"request": 7}, "request 7 is tried once more, alone, on another process"),
    (
        "quarantined",
        {"input": "0a0b", "what": "ended"},
        "input 0a0b ended two processes: quarantined, until the model is unloaded or changes",
    ),
    ("lifted", {"why": "unloaded"}, "unloaded: no input is refused any more"),
    (
        "memory stuck",
        {"device": "gpu0", "mb": 300.0},
        "its process is gone but 300 MB on gpu0 have not come back; they stay charged",
    ),
    ("stopping", {"seconds": 5.0}, "shutting down: at most 5 s for what is running"),
    (
        "measured",
        {"device": "gpu0", "seen_mb": 350.0, "mb": 360.0, "before_mb": 300.0, "declared_mb": 310.0},
        "measured: uses 350 MB on gpu0, charged 360 instead of 300 MB (declared 310)",
    ),
    (
        "forgotten",
        {"declared_mb": 300.0},
        "its footprint is forgotten: the declared 300 MB count until it is measured",
    ),
    (
        "grown",
        {"mb": 400.0, "before_mb": 300.0, "device": "gpu0", "used_mb": 700.0, "limit_mb": 1000.0},
        "charged 400 instead of 300 MB on gpu0, 700 of 1000 MB in all: what ran out of memory is tried once more",
    ),
    ("out of memory", {"what": "memory ran out", "mb": 3.0}, "memory ran out"),
    (
        "smaller batches",
        {"batch": 8, "most": 4},
        "memory ran out under 8 requests at once: at most 4 from now on",
    ),
    (
        "larger batches",
        {"batch": 4, "most": 8},
        "at most 8 requests at once again, 4 went well for a while",
    ),
    (
        "overdrawn",
        {"device": "gpu0", "used_mb": 1100.0, "limit_mb": 1000.0, "users": "a 1100 MB"},
        "gpu0 is charged 1100 MB, 1000 may be, and no model there may go: a 1100 MB; nothing is loaded there until it "
        "fits",
    ),
    (
        "fits again",
        {"device": "gpu0"},
        "what gpu0 is charged fits again, or will when what is ending is gone",
    ),
    (
        "limited",
        {
            "device": "gpu0",
            "others_mb": 200.0,
            "total_mb": 1000.0,
            "reserve_mb": 50.0,
            "limit_mb": 750.0,
            "budget_mb": 900.0,
        },
        "other programs use 200 of gpu0's 1000 MB, 50 are kept free: 750 of the budget's 900 MB may be charged",
    ),
    (
        "unread",
        {"device": "gpu0", "why": "lost"},
        "gpu0 cannot be read: lost; nothing new is started there, what is loaded serves on",
    ),
    ("read again", {"device": "gpu0"}, "gpu0 can be read again"),
    (
        "by the ledger",
        {"device": "gpu0", "why": "no reading"},
        "gpu0: no reading, for too long: what is started there goes by what is charged alone",
    ),
    ("changed", {"text": "max_batch is 4"}, "max_batch is 4"),
]


@pytest.mark.parametrize(("kind", "fields", "sentence"), SAID)
def test_a_line_is_told_in_these_words(kind: str, fields: dict[str, Any], sentence: str) -> None:
    assert Line(1.0, "a", kind, fields).text == sentence


def test_every_kind_of_line_has_an_example_here() -> None:
    assert {kind for kind, _, _ in SAID} == set(SENTENCES)
