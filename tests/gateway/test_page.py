"""The page without a browser: its files, who may look and press, what its stream says, and what it is made of."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.gateway.serving import RunningGateway, both_alone
from tests.gateway.test_kserve import jpeg
from tests.support import Running, toy, wait_until
from zoo.gateway.page import snapshot
from zoo.gateway.page.history import KEEP, LONGEST, History
from zoo.gateway.page.routes import FILES
from zoo.top import figures

TOKENS = "eye viewer viewer-0123456789\nyard caller caller-0123456789\nme operator operator-0123456789\n"
PICTURE = jpeg(np.full((40, 60, 3), 3, np.uint8))


def key(role: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {role}-0123456789"}


class Stream:
    """`/page/live`, line by line. `seen`: the parts of the page as its script keeps them."""

    def __init__(self, gateway: RunningGateway, headers: dict[str, str] | None = None) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
        self._connection.request("GET", "/page/live", headers=headers or {})
        self._answer = self._connection.getresponse()
        assert self._answer.status == 200, self._answer.read()
        self.seen: dict[str, Any] = {}
        self.decisions: list[list[Any]] = []

    def next(self) -> dict[str, Any]:
        """The next message; {} at the end."""
        line = self._answer.readline()
        message: dict[str, Any] = json.loads(line) if line else {}
        self.decisions = [*([] if message.get("whole") else self.decisions), *message.get("decisions", ())]
        self.seen |= message
        return message

    def until(self, condition: Any) -> Any:
        """Reads until the condition holds of `self`; gives its value."""

        def step() -> Any:
            self.next()
            return condition(self)

        return wait_until(step)

    def model(self, name: str) -> dict[str, Any]:
        return next((row for row in self.seen.get("models", ()) if row["name"] == name), {})

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def stream_of() -> Iterator[Any]:
    opened: list[Stream] = []

    def open_(gateway: RunningGateway, headers: dict[str, str] | None = None) -> Stream:
        opened.append(Stream(gateway, headers))
        return opened[-1]

    yield open_
    for one in opened:
        one.close()


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Running, RunningGateway]]:
    """A broker with room for one of `a` and `b`, and a gateway, for the tests that leave both as they were."""
    with beside_each_other() as made:
        yield made


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tokens") / "tokens"
    file.write_text(TOKENS)
    file.chmod(0o600)
    return file


@pytest.fixture(scope="module")
def guarded(tokens: Path) -> Iterator[RunningGateway]:
    """A gateway with tokens."""
    with beside_each_other(tokens=str(tokens)) as (_, gateway):
        yield gateway


@contextlib.contextmanager
def beside_each_other(**keys: Any) -> Iterator[tuple[Running, RunningGateway]]:
    every = {"name": "every", "adapter": "tests.gateway.adapter:Every", "vram_mb": 1}
    models = [toy("a", vram_mb=30, priority="HIGH"), toy("b", vram_mb=30), every]
    with both_alone(models, {"vram_budget_gb": 50 / 1024}, **keys) as made:
        yield made


# ---------------------------------------------------------------- what it is made of


def test_the_page_is_small_and_asks_for_nothing_from_elsewhere() -> None:
    assert sum(len(content) for content, _ in FILES.values()) < 150_000
    assert {"index.html", "page.css", "page.js", "icon.svg"} <= set(FILES)
    for name, (content, _) in FILES.items():
        text = content.decode().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//[a-z]|@import|url\(", text.replace("://", "")), name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text), (
            name
        )
        asked = re.findall(r'(?:src|href)="(?!#)([^"]+)"|from "\./([^"]+)"', text)
        assert {(a or b).removeprefix("page/") for a, b in asked} <= set(FILES), name
    html = FILES["index.html"][0].decode()
    assert not re.search(r"\sstyle=|\son[a-z]+=|<style|<script(?![^>]*\ssrc=)", html)  # the policy would refuse them


# ---------------------------------------------------------------- what was decided


def line(at: float, model: str, kind: str, text: str = "") -> dict[str, Any]:
    return {"at": at, "model": model, "kind": kind, "text": text, "others": []}


def test_a_history_keeps_an_hour_and_so_many_decisions() -> None:
    history = History()
    history.add(line(at, "m#2", "loaded", "x" * 1000) for at in range(2 * KEEP))
    assert len(history.since(0)) == KEEP
    (last,) = history.since(history.count - 1)
    assert (last.at, last.model, len(last.text)) == (2 * KEEP - 1, "m", LONGEST)
    assert history.since(history.count) == []
    assert history.whole_from == KEEP  # what came before is not known any more
    history.forget(2 * KEEP + 3590, ["m"])
    assert [kept.at for kept in history.since(0)] == list(range(2 * KEEP - 10, 2 * KEEP))
    assert history.last["m"].at == 2 * KEEP - 1  # as long as it is registered
    history.forget(1e9, [])
    assert (history.since(0), history.last) == ([], {})


def test_what_a_broker_kept_no_more_is_not_taken_for_known() -> None:
    history = History()
    history.add([], missed=True)
    history.add([line(7, "a", "loaded"), line(8, "b", "loaded")])
    assert history.whole_from == 7


def test_a_measurement_is_not_why_a_model_is_where_it_is() -> None:
    history = History()
    history.add([line(1, "a", "evicted", "evicted: b needs it"), line(2, "a", "measured"), line(3, "", "client gone")])
    assert history.last["a"].text == "evicted: b needs it"
    assert [kept.kind for kept in history.since(0)] == ["evicted"]


def seen(models: list[dict[str, Any]], processes: list[dict[str, Any]], **status: Any) -> figures.Seen:
    filled = {
        "loaded_models": [], "registered_models": [], "leases": 0, "stopping": False, "pending_loads": [],
        "broker": {"pid": 1, "boot": "b"}, "devices": [], **status,
    }  # fmt: skip
    rest = {
        "category": "", "priority": "LOW", "state": "unloaded", "enabled": True, "pinned": False, "problem": None,
        "vram_mb": 10.4, "measured_mb": None,
    }  # fmt: skip
    return figures.Seen(0.0, filled, processes, [{**rest, **model} for model in models])


def why(found: figures.Seen, waiting: list[dict[str, Any]], *decisions: dict[str, Any]) -> list[tuple[str, str]]:
    history = History()
    history.add(decisions)
    rows = figures.rows(found)
    parts = snapshot.sections(found, rows, {"waiting": waiting, "times": {}}, history.last)
    return [(row["state"], row["why"]) for row in parts["models"]]


def process(name: str, **how: Any) -> dict[str, Any]:
    rest = {
        "state": "loaded", "device": "cpu", "vram_mb": 10.4, "pinned": False, "inflight": 0, "queued": 0, "leases": 0,
        "requests": 0, "used_mb": None,
    }  # fmt: skip
    return {"name": name, **rest, **how}


def test_why_a_model_is_where_it_is() -> None:
    names = ["kept", "gone", "waits", "never", "off", "broken"]
    models: list[dict[str, Any]] = [{"name": name} for name in names]
    models[4]["enabled"] = False
    models[5] |= {"problem": "weights missing", "state": "failed"}
    found = seen(models, [process("kept", leases=2, pinned=True)], pending_loads=["waits"])
    waiting = [{"model": "waits", "requests": 1, "oldest": 5.0, "why": "no room", "clients": []}]
    assert why(
        found, waiting, line(1, "kept", "loaded", "loaded in 1 s"), line(2, "gone", "evicted", "evicted: why")
    ) == [
        ("loaded", "pinned; 2 leases; loaded in 1 s"),
        ("unloaded", "evicted: why"),
        ("waiting", "waits: no room"),
        ("unloaded", "not asked for yet"),
        ("unloaded", "disabled in config.toml"),
        ("failed", "weights missing"),
    ]


def test_a_model_that_waits_no_more_is_not_said_to_wait() -> None:
    found = seen([{"name": "a"}], [])
    ((state, text),) = why(found, [], line(1, "a", "waits", "waits: needs 640 MB"))
    assert (state, text) == ("unloaded", "its requests ended before it got room; the last waited: needs 640 MB")


def test_a_device_shows_what_others_use_as_far_as_it_is_known() -> None:
    device = {"name": "cpu", "budget_mb": 100.0, "used_mb": 10.4, "limit_mb": 80.0, "overrun_mb": 0.0}
    known = {**device, "device_used_mb": 70.0, "device_total_mb": 200.0}
    found = seen([{"name": "a"}], [process("a", used_mb=9.0)], devices=[known, {**device, "name": "other"}])
    first, second = snapshot.sections(found, figures.rows(found), {}, {})["devices"]
    assert (first["others_mb"], first["total_mb"]) == (60, 200)
    assert (second["others_mb"], second["total_mb"]) == (20, None)
    assert [piece[:3] for piece in first["pieces"]] == [["model", "a", 10], ["free", "", 70], ["others", "", 20]]
    assert sum(piece[3] for piece in first["pieces"]) == 1000


# ---------------------------------------------------------------- the routes


def test_its_files_need_no_token_and_what_it_shows_does(guarded: RunningGateway) -> None:
    gateway = guarded
    page = gateway.ask("GET", "/")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    for name, (content, kind) in FILES.items():
        answer = gateway.ask("GET", f"/page/{name}")
        assert (answer.status, answer.headers["content-type"].partition(";")[0], answer.body) == (200, kind, content)
    for path in ("/page/nothing.js", "/page/../access.py", "/page/..%2faccess.py", "/page/routes.py"):
        assert gateway.ask("GET", path).status == 404
    for path, method in (("/page/live", "GET"), ("/page/try/a", "POST"), ("/models/pin?model_name=a", "POST")):
        assert gateway.ask(method, path).status == 401
        assert gateway.ask(method, path, headers={"Authorization": "Bearer wrong-0123456789"}).status == 401
        assert gateway.ask(method, path, headers={**key("operator"), "Origin": "http://evil.example"}).status == 403


def test_each_role_sees_and_presses_what_it_may(guarded: RunningGateway, stream_of) -> None:
    gateway = guarded
    for role, name in (("viewer", "eye"), ("caller", "yard"), ("operator", "me")):
        assert stream_of(gateway, key(role)).next()["you"] == {"name": name, "role": role}
    statuses = {
        role: [
            gateway.ask("POST", f"/models/{what}?model_name=a", headers=key(role)).status
            for what in ("preload", "pin", "unpin", "unload")
        ]
        + [gateway.ask("POST", "/page/try/every", PICTURE, key(role)).status]
        for role in ("viewer", "caller", "operator")
    }
    assert statuses["viewer"] == [403, 403, 403, 403, 403]
    assert statuses["caller"] == [200, 403, 403, 403, 200]
    assert statuses["operator"] == [200, 200, 200, 200, 200]


def test_a_stream_ends_with_its_token(guarded: RunningGateway, tokens: Path, stream_of) -> None:
    stream = stream_of(guarded, key("viewer"))
    assert stream.next()["whole"]
    tokens.write_text(TOKENS.replace("eye viewer viewer", "eye viewer another"))
    wait_until(lambda: stream.next() == {})
    tokens.write_text(TOKENS)


def test_the_stream_says_what_status_says_and_then_what_changes(pair, stream_of) -> None:
    running, gateway = pair
    client, stream = running.client(), stream_of(gateway)
    stream.until(lambda s: len(s.seen.get("models", ())) == 3)
    assert (stream.model("a")["state"], stream.model("a")["priority"]) == ("unloaded", "HIGH")
    for _ in range(3):
        client.infer("a", np.zeros((2, 2, 3), np.uint8))
    client.pin("a")
    stream.until(lambda s: s.model("a")["pinned"] and s.model("a")["count"] == 3)
    status, row = client.get_status(), stream.model("a")
    assert (row["state"], row["charged_mb"], row["devices"]) == ("loaded", 30, ["cpu"])
    assert stream.seen["totals"]["loaded"] == len(status["loaded_models"])
    (device,) = stream.seen["devices"]
    assert (device["used_mb"], device["budget_mb"]) == (round(status["vram_used_mb"]), round(status["vram_budget_mb"]))
    assert ["model", "a", 30] in [piece[:3] for piece in device["pieces"]]
    times = client.overview()["times"]["a"]
    assert (row["p50"], row["p95"]) == (times["p50"], times["p95"])
    client.unpin("a")
    client.get_model("b")
    stream.until(lambda s: s.model("a")["state"] == "unloaded" and s.model("b")["state"] == "loaded")
    told = [(name, kind) for _, _, name, kind, _ in stream.decisions]
    assert [one for one in told if one[0] == "a" and one[1] != "pinned"] == [
        ("a", "loading"),
        ("a", "loaded"),
        ("a", "evicted"),
    ]
    assert "b needs 30 MB" in stream.model("a")["why"]
    wait_until(lambda: "models" not in stream.next())  # what stays as it is is not sent again


def test_who_waits_for_what_is_told(pair, stream_of) -> None:
    running, gateway = pair
    client, stream = running.client(), stream_of(gateway)
    with client.load("a"):
        thread = threading.Thread(target=client.get_model, args=("b",))
        thread.start()
        (row,) = stream.until(lambda s: s.seen.get("waiting"))
        assert (row["model"], row["requests"]) == ("b", 1)
        assert "a 30 MB (HIGH, 1 lease)" in row["why"]
        assert stream.model("b")["state"] == "waiting"
    thread.join()
    stream.until(lambda s: s.seen["waiting"] == [] and s.model("b")["state"] == "loaded")


def test_a_broker_that_goes_and_comes_back_is_said_and_a_stream_ends_with_the_gateway(
    broker, gateway_of, stream_of
) -> None:
    running = broker()
    gateway: RunningGateway = gateway_of(running)
    stream = stream_of(gateway)
    stream.until(lambda s: s.seen.get("models"))
    assert stream.seen["trouble"] == ""
    running.kill()
    stream.until(lambda s: s.seen["trouble"])
    assert stream.model("toy")  # what was seen last stays
    running.start()
    stream.until(lambda s: not s.seen["trouble"])
    kinds = [kind for _, _, _, kind, _ in stream.decisions]
    assert [kind for kind in kinds if kind.startswith("broker")] == ["broker gone", "broker started"]
    gateway.stop()
    while stream.next():
        pass
    gateway.start()


def test_a_picture_is_answered_with_a_drawing(pair) -> None:
    _, gateway = pair
    answer = gateway.ask("POST", "/page/try/every", PICTURE)
    assert answer.status == 200
    assert answer.json["picture"].startswith("data:image/jpeg;base64,/9j/")
    assert answer.json["lines"]
    assert answer.json["request"] > 0
    assert answer.json["timings"]["total"] > 0
    for body in (b"", b"no picture at all"):
        refused = gateway.ask("POST", "/page/try/every", body)
        assert (refused.status, refused.json["code"]) == (400, "invalid_input")
    assert gateway.ask("POST", "/page/try/none", PICTURE).status == 404
