"""Whatever floods the broker: it lives, stays small, answers the clients that it has, and is as before when it is over.

Each attacker is a process of its own (`tests/flooder.py`), and most brokers here have few descriptors, so that a few
hundred connections are a flood.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from broker import descriptors
from tests import support
from tests.support import Running, toy, wait_until
from tests.wire.test_wire_attack import Raw
from zoo import BrokerUnreachable, Client, InvalidInput, QueueFull, WorkerCrashed, curve
from zoo.wire import arena, payload, protocol

FRAME = np.full((8, 8, 3), 7, np.uint8)
MOST_MB = 400.0

Start = Callable[..., Running]


def few_files(limit: int) -> list[str]:
    """What goes before a command that is to have so many descriptors, for good."""
    return ["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh"]


class Watched:
    """A broker, and a client that it has to go on answering."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.place = running.endpoint.partition("://")[2]
        self.good = running.client()
        self.worker = self.answer()
        self.fds = self.open_fds()
        self.largest_mb = 0.0

    def open_fds(self) -> int:
        return len(os.listdir(f"/proc/{self.running.pid}/fd"))

    def resident_mb(self) -> float:
        pages = int(Path(f"/proc/{self.running.pid}/statm").read_text().split()[1])
        return pages * arena.PAGE / (1 << 20)

    def answer(self, client: Client | None = None) -> int:
        """Asks the model something; gives the worker's process id."""
        answer = (client or self.good).infer("toy", FRAME)
        assert answer["first"] == [7, 7, 7]
        return int(answer["pid"])

    @contextlib.contextmanager
    def attacked(self, kind: str, count: int, processes: int = 1) -> Iterator[list[subprocess.Popen[bytes]]]:
        """Attackers at work: on entry they are, at the end they have gone, and all is as before."""
        command = [sys.executable, "-m", "tests.flooder", kind, self.place, str(count)]
        flooders = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=support.ROOT)
            for _ in range(processes)
        ]
        over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(over,))
        watcher.start()
        try:
            while any(f.poll() is None and not _has_said(f) for f in flooders):
                assert self.answer() == self.worker
            yield flooders
        finally:
            over.set()
            watcher.join()
            for f in flooders:
                with contextlib.suppress(OSError):
                    f.communicate(timeout=20.0)
                f.kill()
        assert self.answer() == self.worker, "the worker did not survive"
        assert self.largest_mb < MOST_MB
        wait_until(lambda: self.open_fds() <= self.fds, 20.0, f"{self.fds} descriptors, not {self.open_fds()}")
        wait_until(self._calm, 10.0, "nothing of the attackers is left")

    def _calm(self) -> bool:
        status = self.good.get_status()
        return bool((status["sessions"], status["requests"], status["running"]) == (1, 0, 0))

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(0.01):
            self.largest_mb = max(self.largest_mb, self.resident_mb())


def _has_said(flooder: subprocess.Popen[bytes]) -> bool:
    assert flooder.stdout is not None
    return bool(select.select([flooder.stdout], [], [], 0)[0])


@pytest.fixture
def watched(broker: Start) -> Callable[..., Watched]:
    return lambda limit=0, **keys: Watched(broker([toy()], **({"before": few_files(limit)} if limit else {}), **keys))


@pytest.fixture
def far(broker: Start, monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Behind tcp:// and CURVE."""
    return tcp(broker, monkeypatch)


def tcp(broker: Start, monkeypatch: pytest.MonkeyPatch, **keys: Any) -> Watched:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    running = broker([toy()], start=False, endpoint=f"tcp://127.0.0.1:{port}", curve_dir="keys", **keys)
    curve.make_keys(running.folder / "keys")
    monkeypatch.setenv("ZOO_CURVE_DIR", str(running.folder / "keys"))
    return Watched(running.start())


# ---------------------------------------------------------------- descriptors


def test_the_soft_limit_is_raised_to_the_hard_one(broker: Start) -> None:
    running = broker([toy()], before=["sh", "-c", 'ulimit -Sn 200; exec "$@"', "sh"])
    limits = Path(f"/proc/{running.pid}/limits").read_text()
    soft, hard = next(line.split()[3:5] for line in limits.splitlines() if line.startswith("Max open files"))
    assert soft == hard


@pytest.mark.parametrize("limit", [128, 200, 300, 1024, 4096, 20_000, 1 << 20])
@pytest.mark.parametrize("models", [1, 21, 1000])
@pytest.mark.parametrize("local", [True, False])
def test_the_shares_of_descriptors_fit_into_the_limit(limit: int, models: int, local: bool) -> None:
    s = descriptors.divide(limit, 30, models, 1, metrics=True, local=local)
    spent = s.front + local * s.sessions + s.nameless + s.arenas + s.workers + descriptors.METRICS
    assert 30 + descriptors.OWN + spent <= limit or limit == 128
    assert s.front >= s.sessions > 0
    assert not local or s.arenas >= s.sessions


@pytest.mark.slow
def test_connections_without_a_word_cost_no_client_its_place(watched: Callable[..., Watched]) -> None:
    target = watched(300)
    with target.attacked("silent", 600):
        assert target.open_fds() < 250, "there is a reserve"
        newcomer = target.running.client()
        assert target.answer(newcomer) == target.worker
        newcomer.close()


def test_more_clients_than_there_are_descriptors_for_are_told_so(watched: Callable[..., Watched]) -> None:
    target = watched(200)
    clients: list[Client] = []
    refused: list[QueueFull] = []
    try:
        for _ in range(60):
            client = Client(target.running.endpoint, timeout=10.0, arena_mb=1)
            clients.append(client)
            try:
                target.answer(client)
            except QueueFull as e:
                refused.append(e)
            assert target.answer() == target.worker
        assert 0 < len(refused) < 60
        assert all(e.retryable and "ulimit -n" in str(e) for e in refused)
        assert target.open_fds() < 180, "there is a reserve"
    finally:
        for client in clients:
            client.close()
    wait_until(lambda: target.open_fds() <= target.fds, 10.0, "as before")
    with Client(target.running.endpoint, timeout=10.0, arena_mb=1) as later:
        assert target.answer(later) == target.worker


def test_closed_clients_whose_results_are_looked_at_count_as_clients(watched: Callable[..., Watched]) -> None:
    one = watched(200)
    kept: list[np.ndarray] = []

    def one_more() -> None:
        with Client(one.running.endpoint) as client:
            kept.append(client.infer("toy", FRAME, do="large", height=10)["map"])

    for _ in range(10):
        one_more()
    with pytest.raises(QueueFull, match="results are still looked at"):
        wait_until(one_more)
    one.fds = one.open_fds()
    with one.attacked("silent", 200):
        assert one.answer() == one.worker
    kept.clear()
    with Client(one.running.endpoint) as client:
        assert one.answer(client) == one.worker


def test_where_hardly_a_descriptor_is_left_newcomers_wait_and_nothing_ends(watched: Callable[..., Watched]) -> None:
    one = watched()
    soft, hard = resource.prlimit(one.running.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(one.running.pid, resource.RLIMIT_NOFILE, (one.open_fds() + 8, hard))
    newcomer = one.running.client()
    with one.attacked("silent", 100), contextlib.suppress(BrokerUnreachable):
        newcomer.infer("toy", FRAME, timeout=1.0)
    resource.prlimit(one.running.pid, resource.RLIMIT_NOFILE, (soft, hard))
    assert one.answer(newcomer) == one.worker


@pytest.mark.slow
def test_a_flood_of_lifelines_waits_outside(watched: Callable[..., Watched]) -> None:
    target = watched(300)
    with target.attacked("lifelines", 400):
        assert target.open_fds() < 250, "there is a reserve"
        newcomer = target.running.client()
        assert target.answer(newcomer) == target.worker
        newcomer.close()


def test_each_client_may_share_an_arena_however_many_others_share(watched: Callable[..., Watched]) -> None:
    target = watched(300)
    greedy = [Raw(target.running.endpoint) for _ in range(12)]
    refused: list[protocol.LifelineRefused] = []
    try:
        for raw in greedy:
            raw.attach()
            for _ in range(protocol.MAX_ARENAS):
                answer = raw.offer()
                if isinstance(answer, protocol.LifelineRefused):
                    refused.append(answer)
                    break
        assert refused
        assert all(answer.code == QueueFull.code and "ulimit -n" in answer.message for answer in refused)
        newcomer = target.running.client()
        assert target.answer(newcomer) == target.worker
        newcomer.close()
        assert target.open_fds() < 250, "there is a reserve"
    finally:
        for raw in greedy:
            raw.close()
    wait_until(lambda: target.open_fds() <= target.fds, 10.0, "as before")


def test_a_client_has_no_more_connections_than_others_leave_it(watched: Callable[..., Watched]) -> None:
    target = watched(200)
    raw = Raw(target.running.endpoint)
    raw.attach()
    more = [Raw(target.running.endpoint, key=raw.key, identity=raw.key + i.to_bytes(4, "big")) for i in range(1, 60)]
    try:
        for other in more:
            other.say(protocol.Query(1, "status"))
        told = []
        for other in more:
            other.sock.setsockopt(zmq.RCVTIMEO, 1000)
            with contextlib.suppress(zmq.Again):
                told.append(other.hear())
        refused = [answer for answer in told if isinstance(answer, protocol.Error)]
        assert 0 < len(refused) < len(told)
        assert all(answer.code == QueueFull.code and answer.retryable for answer in refused)
        newcomer = target.running.client()
        assert target.answer(newcomer) == target.worker
        newcomer.close()
    finally:
        for other in [*more, raw]:
            other.die()


@pytest.mark.slow
def test_silent_connections_over_tcp_cost_no_client_its_place(broker: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tcp(broker, monkeypatch, before=few_files(200))
    with target.attacked("silent", 460):
        assert target.open_fds() < 180, "there is a reserve"
        newcomer = target.running.client()
        assert target.answer(newcomer) == target.worker
        newcomer.close()


# ---------------------------------------------------------------- bytes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "count", "processes"),
    [("commands", 8, 2), ("endless", 2000, 2), ("endless-after-hello", 2000, 2), ("unread", 2, 1), ("waiting", 20, 2)],
)
def test_the_broker_stays_small(watched: Callable[..., Watched], kind: str, count: int, processes: int) -> None:
    target = watched()
    before = target.resident_mb()
    with target.attacked(kind, count, processes):
        for _ in range(20):
            assert target.answer() == target.worker
    wait_until(lambda: target.resident_mb() < before + 60, 10.0, f"memory is back: {target.resident_mb():.0f} MB")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("commands", 8), ("silent", 50)])
def test_the_broker_stays_small_under_connections_without_a_key(far: Watched, kind: str, count: int) -> None:
    with far.attacked(kind, count, 2):
        for _ in range(20):
            assert far.answer() == far.worker


def test_a_worker_that_announces_more_than_fits_is_ended_and_its_request_answered(
    watched: Callable[..., Watched],
) -> None:
    target = watched()
    with pytest.raises(WorkerCrashed):
        target.good.infer("toy", FRAME, do="announce")
    assert target.resident_mb() < 150
    assert target.answer() != target.worker


def test_an_inline_frame_over_the_limit_is_refused_with_the_key_to_raise(far: Watched) -> None:
    with pytest.raises(InvalidInput, match="max_inline_mb"):
        far.good.infer("toy", np.zeros((4000, 3000, 3), np.uint8))
    assert far.good.infer("toy", np.ones((2000, 3000, 3), np.uint8))["shape"] == [2000, 3000, 3]


def test_frames_over_the_budget_are_refused_and_the_others_are_answered(far: Watched) -> None:
    frame = np.ones((3000, 3000, 3), np.uint8)  # 27 MB
    outcomes: list[object] = []

    def ask() -> None:
        try:
            outcomes.append(far.good.infer("toy", frame, do="sleep", seconds=0.5)["first"])
        except QueueFull as e:
            outcomes.append(e)

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [one for one in outcomes if isinstance(one, QueueFull)]
    assert 0 < len(refused) < 5
    assert all("inline_budget_mb" in str(one) and one.retryable for one in refused)
    assert all(one == [1, 1, 1] for one in outcomes if one not in refused)


def test_a_client_that_reads_late_gets_every_answer(watched: Callable[..., Watched]) -> None:
    """Its answers are more than libzmq is given at once, and no more than the broker keeps for it."""
    target = watched()
    raw = Raw(target.running.endpoint)
    raw.sock.setsockopt(zmq.RCVHWM, 1)
    raw.hello()
    body = payload.pack_request(payload.InferBody((payload.FrameRef(-1, 0, (1,), "|u1"),), None, {"do": "large"}))
    for rid in range(1, 7):
        raw.say(protocol.Infer(rid, "toy", 10_000), body, b"x")
    wait_until(lambda: target.good.get_status()["requests"] == 0, 10.0, "all are done")
    answers = [raw.hear() for _ in range(6)]
    assert all(isinstance(answer, protocol.Result) for answer in answers)
    assert [answer.rid for answer in answers] == [1, 2, 3, 4, 5, 6]
    raw.close()
