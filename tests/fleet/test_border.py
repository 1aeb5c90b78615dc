"""What a worker says is looked at before it counts: nonsense ends that worker, and nothing else."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from broker.fleet import channels, reports
from broker.scheduler.events import Finished
from tests import liar, support
from tests.support import Running, toy, wait_until
from zoo import Client, LoadFailed, WorkerCrashed
from zoo.errors import ProtocolMismatch
from zoo.wire import protocol

FRAME = np.full((8, 8, 3), 7, np.uint8)
LIAR = {"adapter": "tests.liar:Liar"}


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Running, Client]]:
    """A broker with a good model that stays loaded, and liars."""
    folder = Path(tempfile.mkdtemp(prefix="zoo-t-", dir="/tmp"))
    models = [toy(), toy("liar", **LIAR), *(
        toy(f"l{n}", **LIAR, options={"loads": key}) for n, key in enumerate([*liar.LOADS, *liar.LABELS])
    )]  # fmt: skip
    running = Running(folder, models, arguments=["--debug"], vram_budget_gb=2, host_cache_mb=1).start()
    try:
        yield running, running.client()
        running.close()
    finally:
        running.close()
        support.remove(folder)


@pytest.fixture
def good(served: tuple[Running, Client]) -> Iterator[Client]:
    """The client; after the test its model is answered by the same process as before, and the books are right."""
    running, client = served
    pid = client.infer("toy", FRAME)["pid"]
    yield client
    assert client.infer("toy", FRAME)["pid"] == pid
    status = client.get_status()
    assert (status["internal_errors"], status["requests"], status["running"]) == (0, 0, 0)
    assert "contradicts itself" not in running.log()


@pytest.mark.parametrize("says", liar.NONSENSE)
def test_a_worker_that_talks_nonsense_is_ended_at_once(good: Client, says: str) -> None:
    began = time.monotonic()
    with pytest.raises(WorkerCrashed):  # tried once more, alone, with the same end
        good.infer("liar", FRAME, says=says)
    assert time.monotonic() - began < 10.0, "not only when the dispatch has taken too long"
    assert good.infer("liar", FRAME)["pid"] > 0


@pytest.mark.parametrize("offers", ["null", "pipe", "memfd", "listening", "datagram", "packets", "tcp"])
def test_a_second_channel_of_any_kind_ends_its_worker(good: Client, offers: str) -> None:
    with pytest.raises(WorkerCrashed):
        good.infer("liar", FRAME, offers=offers)


@pytest.mark.parametrize("copies", ["null", "pipe", "memfd", "listening"])
def test_a_copy_that_is_none_is_not_kept(served: tuple[Running, Client], good: Client, copies: str) -> None:
    refused = served[0].log().count("its copy is not kept")
    pid = good.infer("liar", FRAME)["pid"]
    assert good.infer("liar", FRAME, copies=copies)["pid"] == pid
    wait_until(lambda: served[0].log().count("its copy is not kept") == refused + 1)
    assert good.infer("liar", FRAME)["pid"] == pid


@pytest.mark.parametrize("n", range(len(liar.LOADS)))
def test_a_load_is_not_harmed_by_figures_that_make_no_sense(good: Client, n: int) -> None:
    with good.load(f"l{n}"):
        row = next(row for row in good.processes() if row["name"] == f"l{n}")
        assert 0.0 <= row["load_seconds"] < 60.0
        assert good.get_status()["leases"] == 1
    wait_until(lambda: good.unload(f"l{n}"))


@pytest.mark.parametrize("n", range(len(liar.LOADS), len(liar.LOADS) + len(liar.LABELS)))
def test_labels_that_are_none_end_their_worker(good: Client, n: int) -> None:
    with pytest.raises(LoadFailed):
        good.get_model(f"l{n}")
    (row,) = good.models(f"l{n}")
    assert (row["labels"], row["labels_from"], row["available"]) == (None, None, False)


# ---------------------------------------------------------------- one by one


@pytest.mark.parametrize("kind", ["null", "pipe", "memfd", "listening", "datagram", "packets", "tcp"])
def test_a_channel_is_a_connected_unix_stream(kind: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    fd = liar.odd_descriptor(kind)
    with pytest.raises(ConnectionError):
        channels.stream(fd)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)
    if kind != "pipe":  # its other end is the test's
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_blocking_channel_is_made_to_wait_for_nothing() -> None:
    ours, theirs = socket.socketpair()
    with ours, channels.stream(theirs.detach()) as sock:
        assert sock.getblocking() is False


def test_results_and_bodies_have_to_fit() -> None:
    failed, fine = protocol.Outcome(1, (), "c" * 100, "m" * 9000), protocol.Outcome(2, (8,))
    made = reports.outcomes(protocol.Done((failed, fine)), [b"body"])
    assert made == [Finished(1, None, ("c" * reports.MOST_CODE, "m" * protocol.MAX_TEXT)), Finished(2, ((8,), b"body"))]
    for bodies in ([], [b"a", b"b"]):
        with pytest.raises(ProtocolMismatch, match="results than it said"):
            reports.outcomes(protocol.Done((failed, fine)), bodies)


@pytest.mark.parametrize(
    ("said", "taken"), [(1, 1), (0, 1), (-(1 << 63), 1), (8, 8), ((1 << 64) - 1, reports.MOST_BATCH)]
)
def test_a_batch_has_a_size_that_one_message_can_carry(said: int, taken: int) -> None:
    assert reports.batch(said) == taken
