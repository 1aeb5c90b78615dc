"""`zoo pull`: published weights arrive whole and verified or not at all, whatever the server and the disk do."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import threading
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests import hub
from tests.hub import COMMIT, LATER, Server
from tests.support import config_text, toy, wait_until
from workers.models import standins
from zoo import LoadFailed, ModelUnavailable
from zoo.cli import main, progress
from zoo.weights import inventory
from zoo.weights.pull import Report, pull
from zoo.weights.source import Published
from zoo.weights.transfer import Limits, Watch

FAST = Limits(silence_s=5.0, back_off_s=0.001)
BODY = np.random.default_rng(0).bytes(300_000)
OTHER = np.random.default_rng(1).bytes(300_000)
CONFIG = b'{"model_type": "toy"}'
REPOSITORY = Published("hf:owner/repo", files=("config.json", "model.safetensors", "vocab.json?"))


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    for name in ("HF_TOKEN", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", server.base)
    yield server
    server.close()


@pytest.fixture
def other(server: Server) -> Iterator[Server]:
    """Another host."""
    another = Server()
    yield another
    another.close()


@pytest.fixture
def published(server: Server) -> Server:
    """The hub with owner/repo on it: config.json and model.safetensors, no vocab.json."""
    server.publish("config.json", CONFIG, large=False)
    server.publish("model.safetensors", BODY)
    return server


class Notes(list[str]):
    """What people were told."""

    @property
    def watch(self) -> Watch:
        return Watch(note=self.append)


@pytest.fixture
def notes() -> Notes:
    return Notes()


def fetch(what: Published, target: Path, notes: Notes | None = None, limits: Limits = FAST, **how: bool) -> Report:
    watch = Notes().watch if notes is None else notes.watch
    return pull("thing", what, target, limits=limits, watch=watch, **how)


def refusal(what: Published, target: Path, limits: Limits = FAST, **how: bool) -> ModelUnavailable:
    with pytest.raises(ModelUnavailable) as caught:
        fetch(what, target, limits=limits, **how)
    assert str(caught.value).startswith("thing: ")
    return caught.value


def one(server: Server, name: str = "thing.pt", body: bytes = BODY, **keys: object) -> tuple[Published, hub.File]:
    """A file at an address of its own."""
    server.files[f"/{name}"] = file = hub.File(body, **keys)  # type: ignore[arg-type]
    return Published(f"{server.base}/{name}"), file


def listing(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}


# ---------------------------------------------------------------- it works


def test_a_repository_is_pulled_into_its_folder_and_recorded(published: Server, tmp_path: Path) -> None:
    target = tmp_path / "w" / "thing"
    report = fetch(REPOSITORY, target)
    assert listing(target) == {"config.json", "model.safetensors", "PULLED.json"}
    assert (target / "config.json").read_bytes() == CONFIG
    assert (target / "model.safetensors").read_bytes() == BODY
    assert report.fetched == ["config.json", "model.safetensors"]
    assert (report.commit, report.size) == (COMMIT, len(BODY) + len(CONFIG))
    assert json.loads((target / "PULLED.json").read_text())["model.safetensors"] == {
        "source": "hf:owner/repo", "revision": "main", "commit": COMMIT, "size": len(BODY), "sha256": sha256(BODY),
    }  # fmt: skip
    assert all(f"/resolve/{COMMIT}/" in asked.path for asked in published.gets())
    assert inventory.state(target) == "here"


def test_a_second_pull_verifies_without_the_network(published: Server, tmp_path: Path) -> None:
    first = fetch(REPOSITORY, tmp_path / "thing")
    published.asked.clear()
    assert fetch(REPOSITORY, tmp_path / "thing") == Report(first.files, [])
    assert published.asked == []


def test_a_file_of_a_repository_goes_to_the_path(server: Server, tmp_path: Path) -> None:
    server.publish("weights/best.pt", BODY)
    target = tmp_path / "thing" / "own name.pt"
    fetch(Published("hf:owner/repo", files=("weights/best.pt",)), target)
    assert target.read_bytes() == BODY
    assert listing(target.parent) == {"own name.pt", "PULLED.json"}


def test_files_in_folders_of_the_repository_keep_their_folders(server: Server, tmp_path: Path) -> None:
    server.publish("sub/model.safetensors", BODY)
    fetch(Published("hf:owner/repo", files=("sub/model.safetensors",)), tmp_path / "thing")
    assert (tmp_path / "thing/sub/model.safetensors").read_bytes() == BODY


def test_an_address_is_pulled_to_a_file_or_into_a_folder(server: Server, tmp_path: Path) -> None:
    what, _ = one(server)
    assert fetch(what, tmp_path / "a" / "x.pt").fetched == ["x.pt"]
    assert (tmp_path / "a" / "x.pt").read_bytes() == BODY
    fetch(what, tmp_path / "b")
    assert (tmp_path / "b" / "thing.pt").read_bytes() == BODY


def test_models_that_share_a_folder_do_not_disturb_each_other(server: Server, tmp_path: Path) -> None:
    a, _ = one(server, "a.pt", BODY)
    b, cut_off = one(server, "b.pt", OTHER)
    cut_off.script = [hub.cut(1000), hub.status(400)]
    refusal(b, tmp_path / "b.pt")
    fetch(a, tmp_path / "a.pt")
    server.asked.clear()
    fetch(b, tmp_path / "b.pt")
    assert [asked.headers.get("range") for asked in server.gets()] == ["bytes=1000-"]
    assert set(inventory.pulled(tmp_path)) == {"a.pt", "b.pt"}
    (tmp_path / "b.pt").write_bytes(b"short")
    assert [inventory.state(tmp_path / name) for name in ("a.pt", "b.pt")] == ["here", "damaged"]


def test_an_empty_file_and_an_optional_one(published: Server, tmp_path: Path) -> None:
    published.publish("vocab.json", b"", large=False)
    assert fetch(REPOSITORY, tmp_path / "thing").fetched[-1] == "vocab.json"
    assert (tmp_path / "thing" / "vocab.json").read_bytes() == b""


def test_a_server_without_head_is_asked_otherwise(server: Server, tmp_path: Path) -> None:
    what, _ = one(server, head_status=405)
    fetch(what, tmp_path / "x.pt")
    assert (tmp_path / "x.pt").read_bytes() == BODY


# ---------------------------------------------------------------- what is not there, or not for us


def test_what_is_missing_is_named(published: Server, tmp_path: Path) -> None:
    needed = Published("hf:owner/repo", files=("config.json", "vocab.json"))
    error = refusal(needed, tmp_path / "thing")
    assert "vocab.json" in str(error)
    assert "404" in str(error)
    assert not error.retryable
    assert list(tmp_path.iterdir()) == []  # not even a folder
    published.error_code = "RevisionNotFound"  # nothing is optional where there is no such revision
    wrong = Published("hf:owner/repo", "v9", ("vocab.json?", "config.json"))
    assert "RevisionNotFound" in str(refusal(wrong, tmp_path / "thing"))


@pytest.mark.parametrize("code", [401, 403])
def test_a_gated_repository_asks_for_a_token(published: Server, tmp_path: Path, code: int) -> None:
    published.files["/owner/repo/resolve/main/config.json"] = hub.File(b"", head_status=code, script=[hub.status(code)])
    error = refusal(REPOSITORY, tmp_path / "thing")
    assert "HF_TOKEN" in str(error)
    assert not error.retryable
    assert len(published.asked) <= 2


def test_weights_to_be_fetched_by_hand_say_where_to(tmp_path: Path) -> None:
    error = refusal(Published("torchreid model zoo: osnet"), tmp_path / "x.pth")
    assert "torchreid model zoo: osnet" in str(error)
    assert str(tmp_path / "x.pth") in str(error)


def test_without_a_network_it_ends_at_once(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    error = refusal(REPOSITORY, tmp_path / "thing")
    assert "hub.invalid" in str(error)
    assert error.retryable
    monkeypatch.setenv("HF_ENDPOINT", "http://example.org")
    assert "https" in str(refusal(REPOSITORY, tmp_path / "thing"))


# ---------------------------------------------------------------- cut off


def test_a_transfer_that_breaks_off_is_gone_on_with(server: Server, tmp_path: Path, notes: Notes) -> None:
    what, file = one(server)
    file.script = [hub.cut(100_000), hub.cut(50_000)]
    fetch(what, tmp_path / "x.pt", notes)
    assert (tmp_path / "x.pt").read_bytes() == BODY
    assert [(a.headers.get("range"), a.headers.get("if-range")) for a in server.gets()] == [
        (None, None), ("bytes=100000-", '"one"'), ("bytes=150000-", '"one"'),
    ]  # fmt: skip
    assert "broke off after 100,000 of 300,000 bytes" in notes[0]


def test_the_next_pull_goes_on_where_the_last_one_gave_up(published: Server, tmp_path: Path) -> None:
    target = tmp_path / "thing"
    file = published.files["/owner/repo/resolve/main/model.safetensors"]
    file.script = [hub.cut(1000)] * FAST.attempts
    error = refusal(REPOSITORY, target)
    assert error.retryable
    assert "5 attempts" in str(error)
    assert {p.name for p in target.iterdir()} == {".pull"}  # nothing of it is in place
    assert inventory.state(target) == "missing"
    published.asked.clear()
    fetch(REPOSITORY, target)
    assert [asked.headers.get("range") for asked in published.gets()] == ["bytes=5000-"]
    assert listing(target) == {"config.json", "model.safetensors", "PULLED.json"}


@pytest.mark.parametrize("what", ["the folder", "the lock", "the record", "a part"])
def test_nothing_is_written_through_a_link_that_another_left(published: Server, tmp_path: Path, what: str) -> None:
    """In a folder where others may write, names that can be foreseen lead elsewhere."""
    target, victim = tmp_path / "thing", tmp_path / "victim"
    staging = target / ".pull"
    victim.write_bytes(b"the user's own")
    target.mkdir()
    if what == "a part":
        published.files["/owner/repo/resolve/main/model.safetensors"].script = [hub.cut(1000)] * FAST.attempts
        refusal(REPOSITORY, target)
        (part,) = staging.glob("*.model.safetensors")
        part.unlink()
        part.symlink_to(victim)
    elif what == "the folder":
        (tmp_path / "elsewhere").mkdir()
        staging.symlink_to(tmp_path / "elsewhere")
    elif what == "the lock":
        staging.mkdir()
        (staging / "lock").symlink_to(victim)
    else:
        (target / "PULLED.json").symlink_to(victim)
    if what in ("the folder", "the lock"):
        assert "link" in str(refusal(REPOSITORY, target))
    else:
        fetch(REPOSITORY, target)
        assert (target / "model.safetensors").read_bytes() == BODY
        assert not any(file.is_symlink() for file in target.iterdir())
    assert victim.read_bytes() == b"the user's own"


def test_progress_earns_new_attempts(server: Server, tmp_path: Path) -> None:
    what, file = one(server)
    file.script = [hub.cut(20_000)] * 10
    fetch(what, tmp_path / "x.pt", limits=Limits(silence_s=5.0, back_off_s=0.001, attempts=2, progress_bytes=20_000))
    assert (tmp_path / "x.pt").read_bytes() == BODY


@pytest.mark.parametrize("etag", [None, 'W/"one"'])
def test_without_a_promise_that_it_is_the_same_file_it_starts_over(
    server: Server, tmp_path: Path, etag: str | None
) -> None:
    what, file = one(server, etag=etag)
    file.script = [hub.cut(100_000)]
    fetch(what, tmp_path / "x.pt")
    assert [asked.headers.get("range") for asked in server.gets()] == [None, None]
    assert (tmp_path / "x.pt").read_bytes() == BODY


def test_a_server_that_ignores_ranges_sends_the_whole(server: Server, tmp_path: Path) -> None:
    what, file = one(server)
    file.script = [hub.cut(100_000), hub.ignoring_range]
    fetch(what, tmp_path / "x.pt")
    assert (tmp_path / "x.pt").read_bytes() == BODY


def test_a_file_that_changes_meanwhile_is_never_mixed(server: Server, tmp_path: Path) -> None:
    what, file = one(server)
    file.script = [hub.changing(hub.cut(100_000), OTHER[:200_000], '"two"')]
    assert fetch(what, tmp_path / "x.pt").size == 200_000
    assert (tmp_path / "x.pt").read_bytes() == OTHER[:200_000]


def test_a_file_that_has_changed_since_the_last_pull_starts_over(server: Server, tmp_path: Path) -> None:
    what, file = one(server)
    file.script = [hub.cut(1000)] * FAST.attempts
    refusal(what, tmp_path / "x.pt")
    file.body, file.etag = OTHER, '"two"'
    server.asked.clear()
    fetch(what, tmp_path / "x.pt")
    assert [asked.headers.get("range") for asked in server.gets()] == [None]
    assert listing(tmp_path) == {"x.pt", "PULLED.json"}


def test_a_beginning_that_does_not_belong_is_thrown_away(published: Server, tmp_path: Path, notes: Notes) -> None:
    """The digest tells, where a server does not say that the file was changed under the same name."""
    file = published.files["/owner/repo/resolve/main/model.safetensors"]
    file.body = OTHER
    file.script = [hub.changing(hub.cut(100_000), BODY, '"one"')]
    fetch(REPOSITORY, tmp_path / "thing", notes)
    assert (tmp_path / "thing" / "model.safetensors").read_bytes() == BODY
    assert "does not belong" in notes[1]


# ---------------------------------------------------------------- not now


def test_a_busy_server_is_asked_again_after_the_time_it_names(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("zoo.weights.transfer.time.sleep", waits.append)
    what, file = one(server)
    file.script = [hub.status(503), hub.status(429, Retry_After="7"), hub.status(429, Retry_After="9999"),
                   hub.status(500)]  # fmt: skip
    fetch(what, tmp_path / "x.pt", limits=Limits(back_off_s=0.5))
    assert (tmp_path / "x.pt").read_bytes() == BODY
    assert waits == [0.5, 7, 60, 4]  # bounded, and doubled


def test_a_server_that_stays_down_is_given_up(server: Server, tmp_path: Path) -> None:
    what, file = one(server)
    file.script = [hub.status(503)] * 50
    error = refusal(what, tmp_path / "x.pt")
    assert "503" in str(error)
    assert error.retryable
    assert len(server.gets()) == FAST.attempts


def test_a_silent_server_is_not_waited_for(server: Server, tmp_path: Path, notes: Notes) -> None:
    what, file = one(server)
    file.script = [hub.hold(100_000, threading.Event(), threading.Event())]
    fetch(what, tmp_path / "x.pt", notes, limits=Limits(silence_s=0.2, back_off_s=0.001))
    assert (tmp_path / "x.pt").read_bytes() == BODY
    assert "silent for 0.2 s" in notes[0]
    assert server.gets()[1].headers["range"] == "bytes=100000-"


def test_a_trickle_is_a_stall_and_a_slow_server_is_not(server: Server, tmp_path: Path, notes: Notes) -> None:
    what, file = one(server, body=BODY[:50_000])
    file.script = [hub.trickle(100, 0.01)]
    fetch(what, tmp_path / "x.pt", notes, limits=Limits(silence_s=0.3, slowest=1e6, back_off_s=0.001))
    assert "stalled" in notes[0]
    notes.clear()
    file.script = [hub.trickle(2000, 0.01)]
    fetch(what, tmp_path / "y.pt", notes, limits=Limits(silence_s=0.1, slowest=1000))
    assert notes == []
    assert (tmp_path / "x.pt").read_bytes() == (tmp_path / "y.pt").read_bytes() == BODY[:50_000]


# ---------------------------------------------------------------- liars


def test_a_wrong_digest_is_refused_and_nothing_kept(published: Server, tmp_path: Path) -> None:
    published.files["/owner/repo/resolve/main/model.safetensors"].body = OTHER
    error = refusal(REPOSITORY, tmp_path / "thing")
    assert sha256(OTHER) in str(error)
    assert sha256(BODY) in str(error)
    assert not error.retryable
    assert not [name for name in listing(tmp_path) if "safetensors" in name]


def test_a_pinned_digest_holds_against_hub_and_file(published: Server, tmp_path: Path) -> None:
    pinned = Published("hf:owner/repo", files=REPOSITORY.files, sha256={"model.safetensors": sha256(OTHER)})
    assert "pins" in str(refusal(pinned, tmp_path / "thing"))
    assert published.gets() == []
    what, _ = one(published)
    pinned = Published(what.source, sha256={"x.pt": sha256(OTHER)})
    assert sha256(OTHER) in str(refusal(pinned, tmp_path / "x.pt"))
    assert listing(tmp_path) == set()


def test_sizes_that_do_not_agree_are_refused(published: Server, tmp_path: Path) -> None:
    file = published.files["/owner/repo/resolve/main/model.safetensors"]
    file.headers["X-Linked-Size"] = "299999"
    assert "announced 299,999 bytes, and then 300,000" in str(refusal(REPOSITORY, tmp_path / "thing"))
    file.headers["X-Linked-Size"] = "300001"
    assert "announced 300,001" in str(refusal(REPOSITORY, tmp_path / "thing"))
    file.headers["X-Linked-Size"] = "300000"
    file.script = [hub.chunked(BODY + b"!")]
    assert "more than" in str(refusal(REPOSITORY, tmp_path / "thing"))
    assert inventory.state(tmp_path / "thing") == "missing"


def test_a_length_never_said_is_taken_only_with_a_digest(server: Server, tmp_path: Path) -> None:
    what, file = one(server, head_status=405)
    file.script = [hub.until_closed] * 2
    assert "pin its sha256" in str(refusal(what, tmp_path / "x.pt"))
    file.script = [hub.chunked(BODY)] * 2  # which says where it ends
    fetch(what, tmp_path / "x.pt")
    file.script = [hub.until_closed] * 2
    fetch(Published(what.source, sha256={"y.pt": sha256(BODY)}), tmp_path / "y.pt")
    assert (tmp_path / "x.pt").read_bytes() == (tmp_path / "y.pt").read_bytes() == BODY


def test_another_range_or_encoding_than_asked_for_is_refused(server: Server, tmp_path: Path) -> None:
    what, file = one(server)
    wrong = hub.status(206, Content_Range="bytes 5-9/300000")
    file.script = [hub.cut(100_000), wrong]
    assert "another range" in str(refusal(what, tmp_path / "x.pt"))
    file.headers["Content-Encoding"] = "gzip"
    assert "encoding" in str(refusal(what, tmp_path / "x.pt"))


# ---------------------------------------------------------------- redirects


def test_the_token_goes_to_the_hub_and_nowhere_else(
    published: Server, other: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    other.files["/bytes"] = hub.File(BODY, etag='"of the storage"')
    elsewhere = hub.redirect(f"{other.base}/bytes")
    file = published.files["/owner/repo/resolve/main/model.safetensors"]
    file.head_status, file.headers["Location"] = 302, f"{other.base}/bytes"
    file.script = [elsewhere, elsewhere]
    other.files["/bytes"].script = [hub.cut(1000)]
    moved = hub.File(b"", head_status=307, script=[hub.redirect("/moved")], headers={"Location": "/moved"})
    published.files["/owner/repo/resolve/main/config.json"] = moved
    published.files["/moved"] = published.files[f"/owner/repo/resolve/{COMMIT}/config.json"]
    fetch(REPOSITORY, tmp_path / "thing")
    assert (tmp_path / "thing" / "model.safetensors").read_bytes() == BODY
    assert {asked.headers.get("authorization") for asked in published.asked} == {"Bearer secret"}
    assert "/moved" in {asked.path for asked in published.asked}
    assert [(a.method, a.headers.get("range")) for a in other.asked] == [("GET", None), ("GET", "bytes=1000-")]
    assert all("authorization" not in asked.headers for asked in other.asked)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://example.org/x", "https:///x"])
def test_a_redirect_leads_only_where_a_pull_may_go(server: Server, tmp_path: Path, target: str) -> None:
    what, file = one(server, head_status=302, headers={"Location": target})
    error = refusal(what, tmp_path / "x.pt")
    assert "redirects elsewhere" in str(error)
    assert not error.retryable
    for nowhere in (what.source, ""):
        file.headers["Location"] = nowhere
        assert "more than 10 redirects" in str(refusal(what, tmp_path / "x.pt"))


# ---------------------------------------------------------------- the disk


def test_a_full_disk_is_known_before_and_told_after(
    published: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as m:
        m.setattr("zoo.weights.transfer.shutil.disk_usage", lambda _: usage._replace(free=len(BODY)))
        assert "300,021 bytes are needed" in str(refusal(REPOSITORY, tmp_path / "thing"))
        assert published.gets() == []

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as m:
        m.setattr("zoo.weights.transfer.os.fsync", full)
        error = refusal(REPOSITORY, tmp_path / "thing")
    assert "No space left" in str(error)
    assert error.retryable
    assert inventory.state(tmp_path / "thing") == "missing"
    fetch(REPOSITORY, tmp_path / "thing")


def test_a_place_that_cannot_be_written_is_named(published: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert str(tmp_path / "file") in str(refusal(REPOSITORY, tmp_path / "file"))
    assert str(tmp_path / "file") in str(refusal(REPOSITORY, tmp_path / "file" / "thing"))
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert str(tmp_path / "link") in str(refusal(REPOSITORY, tmp_path / "link"))


def test_nothing_is_at_its_name_before_it_is_whole(published: Server, tmp_path: Path) -> None:
    target = tmp_path / "thing"
    reached, go_on = threading.Event(), threading.Event()
    file = published.files["/owner/repo/resolve/main/model.safetensors"]
    file.script = [hub.hold(100_000, reached, go_on)]
    puller = threading.Thread(target=fetch, args=(REPOSITORY, target))
    puller.start()
    try:
        assert reached.wait(10)
        assert {p.name for p in target.iterdir()} == {".pull"}  # config.json is whole, and waits for the rest
        assert inventory.state(target) == "missing"
    finally:
        go_on.set()
        puller.join(10)
    assert listing(target) == {"config.json", "model.safetensors", "PULLED.json"}


def test_two_pulls_at_once_fetch_once(published: Server, tmp_path: Path, notes: Notes) -> None:
    target = tmp_path / "thing"
    reached, go_on = threading.Event(), threading.Event()
    published.files["/owner/repo/resolve/main/model.safetensors"].script = [hub.hold(1000, reached, go_on)]
    pullers = [threading.Thread(target=fetch, args=(REPOSITORY, target, notes)) for _ in range(4)]
    pullers[0].start()
    assert reached.wait(10)
    for puller in pullers[1:]:
        puller.start()
    wait_until(lambda: len(notes) == 3, what="the others wait")
    assert all("another pull" in note for note in notes)
    go_on.set()
    for puller in pullers:
        puller.join(10)
    assert len(published.gets()) == 2
    assert listing(target) == {"config.json", "model.safetensors", "PULLED.json"}


# ---------------------------------------------------------------- what is there already


def test_files_that_were_not_pulled_are_left_alone(published: Server, tmp_path: Path) -> None:
    target = tmp_path / "thing"
    target.mkdir()
    (target / "model.safetensors").write_bytes(OTHER)
    error = refusal(REPOSITORY, target)
    assert "--force" in str(error)
    assert listing(target) == {"model.safetensors"}
    assert (target / "model.safetensors").read_bytes() == OTHER
    assert published.gets() == []
    (target / "model.safetensors").unlink()
    (target / "config.json").write_bytes(CONFIG[::-1])  # of which the hub tells the size alone
    assert "config.json" in str(refusal(REPOSITORY, target))
    assert (target / "config.json").read_bytes() == CONFIG[::-1]
    fetch(REPOSITORY, target, force=True)
    assert (target / "config.json").read_bytes() == CONFIG


def test_own_files_that_are_the_published_ones_are_taken_for_them(published: Server, tmp_path: Path) -> None:
    target = tmp_path / "thing"
    target.mkdir()
    (target / "model.safetensors").write_bytes(BODY)
    (target / "config.json").write_bytes(CONFIG)
    report = fetch(REPOSITORY, target)
    assert report.fetched == ["config.json"]  # to compare it
    assert set(inventory.pulled(target)) == {"config.json", "model.safetensors"}


def test_a_damaged_file_is_fetched_again_and_no_other(published: Server, tmp_path: Path, notes: Notes) -> None:
    target = tmp_path / "thing"
    fetch(REPOSITORY, target)
    (target / "model.safetensors").write_bytes(OTHER)  # of the same size: only the digest tells
    assert inventory.state(target) == "here"
    for name in ("config.json", "model.safetensors"):  # main goes on
        published.publish(name, b"something new", commit=LATER)
    published.files[f"/owner/repo/resolve/{COMMIT}/model.safetensors"] = hub.File(BODY)
    report = fetch(REPOSITORY, target, notes)
    assert (report.fetched, report.commit) == (["model.safetensors"], COMMIT)  # of the commit that config.json is of
    assert (target / "model.safetensors").read_bytes() == BODY
    assert "damaged" in notes[0]


def test_another_revision_in_config_replaces_what_was_pulled(published: Server, tmp_path: Path) -> None:
    target = tmp_path / "thing"
    fetch(REPOSITORY, target)
    published.asked.clear()
    pinned = Published("hf:owner/repo", COMMIT, REPOSITORY.files)
    assert fetch(pinned, target).fetched == []
    assert published.asked == []  # main was that commit
    for name in ("config.json", "model.safetensors"):
        published.publish(name, OTHER, commit=LATER)
    assert fetch(REPOSITORY, target).fetched == []  # what is there stays until more is asked for
    assert fetch(Published("hf:owner/repo", LATER, REPOSITORY.files), target).commit == LATER
    assert (target / "config.json").read_bytes() == OTHER
    assert fetch(REPOSITORY, target, force=True).fetched == ["config.json", "model.safetensors"]


def test_a_stand_in_gives_way_all_of_it(published: Server, tmp_path: Path) -> None:
    target = tmp_path / "thing"
    target.mkdir()
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        (target / name).write_bytes(b"random")
    inventory.mark_stand_in(target, "thing")
    assert inventory.state(target) == "stand-in"
    fetch(REPOSITORY, target)
    assert listing(target) == {"config.json", "model.safetensors", "PULLED.json"}
    assert inventory.state(target) == "here"


def test_a_stand_in_stays_until_the_real_one_is_whole(published: Server, tmp_path: Path) -> None:
    target = tmp_path / "thing"
    target.mkdir()
    (target / "model.safetensors").write_bytes(b"random")
    inventory.mark_stand_in(target, "thing")
    published.files["/owner/repo/resolve/main/model.safetensors"].script = [hub.cut(1000)] * FAST.attempts
    refusal(REPOSITORY, target)
    assert inventory.state(target) == "stand-in"
    assert inventory.is_stand_in(target)


def test_a_stand_in_may_be_made_where_a_pull_has_failed(published: Server, tmp_path: Path) -> None:
    target = tmp_path / "thing"
    published.files["/owner/repo/resolve/main/model.safetensors"].script = [hub.cut(1000)] * FAST.attempts
    refusal(REPOSITORY, target)

    def build(target: Path, seed: int) -> None:
        target.mkdir()
        (target / "model.safetensors").write_bytes(b"random")

    standins.place(build, target, "thing")
    assert inventory.is_stand_in(target)
    fetch(REPOSITORY, target)
    assert inventory.state(target) == "here"


def test_a_stand_in_file_gives_way_and_its_neighbours_stay(server: Server, tmp_path: Path) -> None:
    for name in ("x.pt", "y.pt"):
        (tmp_path / name).write_bytes(b"random " + name.encode())
    inventory.mark_stand_in(tmp_path, "x and y")
    what, _ = one(server)
    fetch(what, tmp_path / "x.pt")
    assert [inventory.state(tmp_path / name) for name in ("x.pt", "y.pt")] == ["here", "stand-in"]
    fetch(what, tmp_path / "y.pt")
    assert listing(tmp_path) == {"x.pt", "y.pt", "PULLED.json"}


def test_pulls_that_come_and_go_do_not_hinder_each_other(published: Server, tmp_path: Path) -> None:
    """Each that fails takes its lock and its empty folders away, while others wait for them."""
    never = Published("hf:owner/repo", files=("config.json", "never.there"))
    wrong: list[Exception] = []

    def attempt(what: Published, target: Path) -> None:
        try:
            fetch(what, target)
        except ModelUnavailable as e:
            if "404" not in str(e):
                wrong.append(e)

    for number in range(5):
        target = tmp_path / str(number) / "thing"
        pullers = [threading.Thread(target=attempt, args=(what, target)) for what in (never, REPOSITORY) * 3]
        for puller in pullers:
            puller.start()
        for puller in pullers:
            puller.join(20)
        assert listing(target) == {"config.json", "model.safetensors", "PULLED.json"}
    assert wrong == []


def test_an_unreadable_record_counts_as_none(published: Server, tmp_path: Path) -> None:
    target = tmp_path / "thing"
    fetch(REPOSITORY, target)
    (target / "PULLED.json").write_text("[")
    assert inventory.state(target) == "here"
    fetch(REPOSITORY, target)
    assert set(inventory.pulled(target)) == {"config.json", "model.safetensors"}


# ---------------------------------------------------------------- the command line


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(zoo_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line with the configuration in `zoo_dir`: status, standard output, standard error."""
    monkeypatch.setenv("ZOO_CONFIG", str(zoo_dir / "config.toml"))
    monkeypatch.setattr("zoo.weights.transfer.time.sleep", lambda _: None)

    def run(*argv: str) -> tuple[int, str, str]:
        status = main.main([*argv])
        return status, *capsys.readouterr()

    return run


def configure(zoo_dir: Path, *models: dict[str, object], **broker_keys: object) -> None:
    keys = {"endpoint": f"ipc://{zoo_dir}/b", **broker_keys}
    (zoo_dir / "config.toml").write_text(config_text([*models], **keys))


def repository(name: str = "thing", **keys: object) -> dict[str, object]:
    return toy(name, path=name, source="hf:owner/repo", files=list(REPOSITORY.files), **keys)


def test_pull_fetches_what_is_named_and_says_what_it_did(published: Server, zoo_dir: Path, run: Run) -> None:
    configure(zoo_dir, repository(), toy("none"))
    status, out, err = run("pull", "thing")
    assert (status, err) == (0, "")
    assert out == (
        f"thing: fetched 2 of 2 files, 0.3 MB, commit {COMMIT}: {zoo_dir}/weights/thing\n"
        "thing: labels: known after its first load (`zoo load thing`, then `zoo ls --labels thing`)\n"
    )
    assert run("pull", "thing")[1].startswith("thing: here and verified: 2 files")
    assert run("pull", "none")[:2] == (0, "none: no weights to fetch\n")
    assert run("pull", "nobody")[0] == 1
    assert run("pull")[0] == run("pull", "--all", "thing")[0] == 2


def test_one_failure_does_not_keep_the_others_and_is_one_line(published: Server, zoo_dir: Path, run: Run) -> None:
    address, _ = one(published)
    models = [
        toy("by-hand", path="x.pth", source="some zoo: x"),
        toy("gone", path="gone.pt", source=f"{published.base}/nowhere.pt"),
        toy("off", path="off.pt", source=f"{published.base}/nowhere.pt", enabled=False),
        toy("file", path="file.pt", source=address.source),
        repository(),
    ]
    configure(zoo_dir, *models)
    status, out, err = run("pull", "--all")
    assert status == 1
    assert [line.split(":")[0] for line in out.splitlines()] == ["file", "file", "thing", "thing"]
    assert [line.split(": ")[:3] for line in err.splitlines()] == [
        ["zoo", "not pulled", "by-hand"], ["zoo", "not pulled", "gone"],
    ]  # fmt: skip
    (zoo_dir / "weights" / "x.pth").write_bytes(b"put there")
    status, out, _ = run("pull", "by-hand", "gone", "thing", "--json")
    by_hand, gone, thing = json.loads(out)
    assert status == 1
    assert (by_hand["error"], by_hand["weights"], by_hand["files"]) == (None, "here", {})
    assert (gone["weights"], gone["retryable"]) == ("missing", False)
    assert "404" in gone["error"]
    assert (thing["weights"], thing["commit"], thing["fetched"]) == ("here", COMMIT, [])
    assert thing["files"]["model.safetensors"] == {"size": len(BODY), "sha256": sha256(BODY)}


def test_pull_tells_the_labels_that_came(server: Server, zoo_dir: Path, run: Run) -> None:
    labels = {str(i): f"label {i}" for i in range(300)}
    for name, id2label in (("few", {"0": "sun/clear", "1": "Rain/Storm"}), ("many", labels)):
        server.publish("config.json", json.dumps({"id2label": id2label}).encode(), large=False)
        server.publish("model.safetensors", BODY)
        configure(zoo_dir, repository(name), repository("vectors", category="embedding"))
        status, out, err = run("pull", name)
        assert (status, err) == (0, "")
        told = out.splitlines()[1]
        if name == "few":
            assert told == "few: labels: sun/clear, Rain/Storm"
        else:
            assert told.startswith("many: labels: label 0, label 1, ")
            assert told.endswith("more (`zoo ls --labels` lists them)")
            assert len(told) < 300
        assert json.loads(run("pull", name, "--json")[1])[0]["labels"] == [*id2label.values()]
    assert len(run("pull", "vectors")[1].splitlines()) == 1  # it has none to tell


def test_what_pin_prints_can_be_pasted(published: Server, zoo_dir: Path, run: Run) -> None:
    configure(zoo_dir, repository())
    lines = run("pull", "thing", "--pin")[1].splitlines()
    pins = tomllib.loads("\n".join(lines[1:]))
    assert pins == {"revision": COMMIT, "sha256": {"config.json": sha256(CONFIG), "model.safetensors": sha256(BODY)}}
    configure(zoo_dir, repository(**pins))
    published.asked.clear()
    assert run("pull", "thing")[0] == 0
    assert published.asked == []


def test_ls_shows_where_weights_are(published: Server, zoo_dir: Path, run: Run) -> None:
    models = [
        repository(),
        toy("inside", source="in some package"),
        toy("nothing"),
        toy("by-hand", path="by-hand.bin", source="some zoo: x"),
        {**toy("pickled", path="pickled.pt"), "adapter": "workers.models.yolo:Detector"},
    ]
    configure(zoo_dir, *models)

    def look() -> tuple[dict[str, str], dict[str, str]]:
        rows = json.loads(run("ls", "--timeout", "0.1", "--json")[1])
        return {row["name"]: row["weights"] for row in rows}, {row["name"]: row["problem"] or "" for row in rows}

    states, notes = look()
    assert states == {
        "thing": "missing", "inside": "in package", "nothing": "-", "by-hand": "missing", "pickled": "missing",
    }  # fmt: skip
    assert "`zoo pull thing`" in notes["thing"]
    assert "by hand (some zoo: x)" in notes["by-hand"]
    lines = {line.split()[0]: line for line in run("ls", "--timeout", "0.1")[1].splitlines()}
    assert lines["by-hand"].endswith("by hand: some zoo: x")
    assert lines["pickled"].endswith("by hand")  # there is no source to name
    fetch(REPOSITORY, zoo_dir / "weights" / "thing")
    stand_in = zoo_dir / "weights" / "by-hand.bin"
    stand_in.write_bytes(b"random")
    inventory.mark_stand_in(stand_in, "by-hand")
    (zoo_dir / "weights" / "pickled.pt").write_bytes(b"a user's own")
    states, notes = look()
    assert (states["thing"], states["by-hand"], states["pickled"]) == ("here", "stand-in", "here")
    assert (notes["thing"], notes["by-hand"]) == ("", "")
    assert "trust_pickle" in notes["pickled"]
    (zoo_dir / "weights" / "thing" / "model.safetensors").write_bytes(BODY[:1000])
    states, notes = look()
    assert states["thing"] == "damaged"
    assert "1,000 bytes, not 300,000" in notes["thing"]
    head, row, *_ = run("ls", "--timeout", "0.1")[1].splitlines()
    assert row[head.index("WEIGHTS") :].startswith("damaged")


def test_the_bar_tells_how_far_and_how_fast() -> None:
    assert progress.line("a.pt", 50_000_000, 200_000_000, 5e6, 99) == (
        "a.pt  [######..................]  25%  50.0 of 200 MB  5.0 MB/s  0:30 left"
    )
    assert progress.line("a.pt", 1_500_000, None, 0.0, 99) == "a.pt  1.5 MB"
    assert progress.line("a.pt", 0, 0, 0.0, 20) == "a.pt  [#############"


def test_a_terminal_gets_a_bar_and_a_log_does_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for terminal in (True, False):
        monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal)
        bar = progress.Bar()
        for done in range(0, 1001, 10):
            bar.progress("a.pt", done, 1000)
        bar.note("it broke off")
        err = capsys.readouterr().err
        assert err.endswith("zoo: it broke off\n")
        assert ("[####" in err) is terminal
        assert err.count("\r") <= 4  # the first, the last, and what makes room


# ---------------------------------------------------------------- through a broker


FRAME = np.zeros((8, 8, 3), np.uint8)


def test_missing_weights_are_refused_without_a_look_at_the_network(published: Server, broker: Callable) -> None:
    address, _ = one(published)
    running = broker([toy(path="toy.bin", source=address.source)])
    with running.client() as zoo:
        with pytest.raises(ModelUnavailable, match=r"zoo pull toy"):
            zoo.infer("toy", FRAME)
        assert [row["weights"] for row in zoo.models()] == ["missing"]
        pull("toy", address, running.folder / "weights" / "toy.bin")
        published.asked.clear()
        zoo.infer("toy", FRAME)
        assert [row["weights"] for row in zoo.models()] == ["here"]
        assert published.asked == []
        zoo.unload("toy")
        (running.folder / "weights" / "toy.bin").write_bytes(b"short")
        with pytest.raises(ModelUnavailable, match=r"zoo pull toy"):
            zoo.infer("toy", FRAME)


def test_auto_pull_fetches_before_the_load_and_its_failure_is_told(published: Server, broker: Callable) -> None:
    address, _ = one(published)
    models = [
        toy(path="toy.bin", source=address.source),
        toy("gone", path="gone.bin", source=f"{published.base}/nowhere.bin"),
        toy("by-hand", path="by-hand.bin", source="some zoo: x"),
    ]
    running = broker(models, auto_pull=True)
    with running.client() as zoo:
        assert [row["problem"] is None for row in zoo.models()] == [True, True, False]
        zoo.infer("toy", FRAME)
        assert (running.folder / "weights" / "toy.bin").read_bytes() == BODY
        with pytest.raises(ModelUnavailable, match="404"):
            zoo.infer("gone", FRAME)
        with pytest.raises(ModelUnavailable, match="by hand"):
            zoo.infer("by-hand", FRAME)
        published.asked.clear()
        zoo.unload("toy")
        zoo.infer("toy", FRAME)
        assert published.asked == []
    wait_until(lambda: "fetched 300,000 bytes" in running.log())


def test_a_load_that_times_out_while_pulling_is_gone_on_with(published: Server, broker: Callable) -> None:
    address, file = one(published)
    reached = threading.Event()
    file.script = [hub.hold(100_000, reached, threading.Event())]
    running = broker([toy(path="toy.bin", source=address.source)], auto_pull=True, load_timeout=1.0)
    with running.client() as zoo:
        with pytest.raises(LoadFailed):
            zoo.infer("toy", FRAME)
        assert reached.is_set()

        def is_served() -> bool:
            with contextlib.suppress(LoadFailed):  # while the scheduler backs off
                zoo.infer("toy", FRAME)
                return True
            return False

        wait_until(is_served)
    assert published.gets()[-1].headers["range"] == "bytes=100000-"
    assert (running.folder / "weights" / "toy.bin").read_bytes() == BODY
