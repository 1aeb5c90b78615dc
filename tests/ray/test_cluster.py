"""Several nodes on one machine, with the engine itself: `make test-ray`, in an environment of its own."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import ROOT, alive, config_text, toy, wait_until
from zoo.errors import (
    BrokerUnreachable,
    DeadlineExceeded,
    InferenceFailed,
    InvalidInput,
    ModelInUse,
    ModelNotFound,
    ModelUnavailable,
    ZooError,
)

ray = pytest.importorskip("ray", reason="the extra `ray` has an environment of its own: make test-ray")
from ray import serve  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from zoo.ray import Client, deploy  # noqa: E402
from zoo.ray import node as replica  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

FRAME = np.zeros((8, 8, 3), np.uint8)
MODELS = 60
MB = 100  # of each; a node has room for eight
BUDGET_GB = 8 * MB / 1024
LOAD_S = 0.05
RULES = """
[[enrich.rules]]
for = ["person"]
models = ["m20", "m21"]
[[enrich.rules]]
for = ["person", "car"]
models = ["m22"]
[[enrich.rules]]
for = ["car"]
models = ["m23"]
on = "frame"
[[enrich.rules]]
for = ["slow"]
models = ["m24"]
options = { do = "sleep", seconds = 20.0 }
[cluster]
models = { m59 = { zone = "west" } }
"""


def models(count: int = MODELS, **keys: Any) -> list[dict[str, Any]]:
    return [toy(f"m{i}", vram_mb=MB, options={"load_seconds": LOAD_S}, **keys) for i in range(count)]


class Nodes:
    """A cluster of the engine with our zoo on three nodes."""

    def __init__(self, folder: Path) -> None:
        self.config = folder / "config.toml"
        self.write(models())
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        self.added = [self.add() for _ in range(3)]
        ray.init(address=self.cluster.address, logging_level="ERROR", log_to_driver=False)
        deploy(self.config)

    def write(self, rows: list[dict[str, Any]]) -> None:
        keys = {"device": "cpu", "vram_budget_gb": BUDGET_GB, "footprint": "declared", "standby": 0}
        self.config.write_text(config_text(rows, **keys) + RULES)

    def add(self) -> Any:
        return self.cluster.add_node(
            num_cpus=1, resources={"zoo": 1}, labels={"zone": "east"}, object_store_memory=200 << 20
        )

    def end(self) -> None:
        serve.shutdown()
        while ray.is_initialized():  # a thread of the engine may have connected again meanwhile
            ray.shutdown()
        self.cluster.shutdown()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    os.environ["PYTHONPATH"] = str(ROOT)  # the engine's processes find the toy
    made = Nodes(tmp_path_factory.mktemp("cluster"))
    yield made
    made.end()
    left = Path("/proc")
    needle = str(os.getpid()).encode()
    assert not [p for p in left.glob("[0-9]*/cmdline") if b"zoo.ray.broker" in _read(p) and needle in _read(p)]


def _read(path: Path) -> bytes:
    with contextlib.suppress(OSError):
        return path.read_bytes()
    return b""


@pytest.fixture
def client(nodes: Nodes) -> Iterator[Client]:
    with Client(timeout=30.0) as client:
        wait_until(lambda: len(client.get_status()["nodes"]) >= 3, what="three nodes serve")
        yield client


# ---------------------------------------------------------------- the same calls


def test_one_model_one_node_one_answer(client: Client) -> None:
    frame = np.arange(1080 * 1920 * 3, dtype=np.uint32).astype(np.uint8).reshape(1080, 1920, 3)
    answer = client.infer("m0", frame)
    assert answer["mean"] == pytest.approx(float(frame.mean()))
    assert answer.request > 0
    assert {client.infer("m0", frame)["pid"] for _ in range(5)} == {answer["pid"]}
    boxed = client.infer("m0", frame, boxes=[(0, 0, 10, 10), (5, 5, 20, 30)])
    assert len(boxed) == 2
    with client.frame((8, 8, 3)) as empty:
        empty.array[:] = 7
        assert client.infer("m0", empty)["mean"] == 7


def test_errors_keep_their_type_and_name_the_node(client: Client) -> None:
    with pytest.raises(ModelNotFound, match=r"nope.*node"):
        client.infer("nope", FRAME)
    with pytest.raises(InferenceFailed, match="no such animal") as failed:
        client.infer("m0", FRAME, do="raise")
    assert failed.value.request > 0
    with pytest.raises(DeadlineExceeded):
        client.infer("m0", FRAME, do="sleep", seconds=5.0, timeout=0.5)
    with pytest.raises(ZooError, match="no call of a node"):
        client._call("close", "m0", ())


def test_frames_in_every_form(client: Client) -> None:
    with client.frame((8, 8, 3)) as first, client.frame((8, 8, 3)) as second:
        second.array[:] = 4
        for i in (20, 21, 22):
            client.get_model(f"m{i}")
        assert client.infer("m0", [first, second.array])
        assert client.infer_many([first, second], ["m0", "m1"]).keys() == {"m0", "m1"}
        event = client.enrich(second, [("person", (0, 0, 8, 8))])
    assert event.missing == {}
    with pytest.raises(InvalidInput, match="frame"):
        client.frame((8, -8))


WRONG: list[dict[str, Any]] = [
    {"frame": object()},
    {"frame": []},
    {"frame": {1: FRAME}},
    {"color": "pink"},
    {"priority": "now"},
    {"timeout": 0},
    {"scale": 3},
    {"options": threading.Lock()},
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda one: next(iter(one)))
def test_what_cannot_be_sent_is_said_by_name(client: Client, wrong: dict[str, Any]) -> None:
    how = {"frame": FRAME, **wrong}
    with pytest.raises(InvalidInput):
        client.infer("m0", **how)


def test_a_client_that_is_closed_says_so(nodes: Nodes) -> None:
    with Client() as client:
        lease = client.load("m9")
    for call in (lambda: client.infer("m9", FRAME), lambda: lease(FRAME), client.get_status, lambda: client.load("m9")):
        with pytest.raises(BrokerUnreachable, match="closed") as closed:
            call()
        assert not closed.value.retryable
    with Client() as other:
        assert other.unload("m9") in (True, False), "its lease was given back"


def test_a_call_to_a_node_that_is_gone_is_not_made_at_another(client: Client) -> None:
    lease = client.load("m9")
    node, lease.node = lease.node, "gone"
    assert lease(FRAME)["mean"] == 0
    assert lease.lost
    assert lease(FRAME)["mean"] == 0
    assert not lease.lost, "taken again"
    assert lease.node == node
    lease.release()
    assert lease(FRAME)["mean"] == 0, "like a call of the client"
    with pytest.raises(BrokerUnreachable, match="gone"):
        client._call("pin", "@gone", ("m9",))
    assert not any(row["pinned"] for row in client.processes())


def test_numbers_of_leases_are_those_of_one_node(client: Client) -> None:
    held = [client.load(f"m{i}") for i in range(30, 42)]
    assert len({lease.node for lease in held}) == 3
    assert len({lease.number for lease in held}) == 12
    one = held[0]
    for node in {lease.node for lease in held} - {one.node}:
        assert client._tell("renew", node, [one.number]).result(timeout_s=10.0) == []
        client._tell("release", node, [one.number]).result(timeout_s=10.0)
    names = {lease.model for lease in held}
    assert [row["leases"] for row in client.processes() if row["name"] in names] == [1] * 12
    for lease in held:
        lease.release()


def test_one_frame_to_several_models_goes_into_the_store_once(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    puts: list[int] = []
    put = ray.put
    monkeypatch.setattr(ray, "put", lambda value: puts.append(1) or put(value))
    found = client.infer_many(np.full((1080, 1920, 3), 3, np.uint8), [f"m{i}" for i in range(6)])
    assert [answer["mean"] for answer in found.values()] == [3.0] * 6
    assert len({answer["pid"] for answer in found.values()}) == 6
    assert len(puts) == 1
    mixed = client.infer_many(FRAME, ["m0", "nope"])
    assert isinstance(mixed["nope"], ModelNotFound)


def test_questions_are_answered_by_all_nodes(client: Client) -> None:
    for i in range(6):
        client.infer(f"m{i}", FRAME)
    status = client.get_status()
    assert len(status["nodes"]) == 3
    assert status["vram_budget_mb"] == pytest.approx(3 * 8 * MB)
    assert {row["name"] for row in status["loaded_models"]} >= {f"m{i}" for i in range(6)}
    rows = {row["name"]: row for row in client.models()}
    assert len(rows) == MODELS
    assert all(len(rows[f"m{i}"]["nodes"]) == 1 for i in range(6)), "no model is loaded twice"
    assert {row["node"] for row in client.processes()} == set(status["nodes"]), "the work is spread"
    assert any("m0: loaded in" in line for line in client.explain("m0"))
    assert set(client.logs()) == set(status["nodes"])
    assert client.unload("m0") is True
    assert client.unload("m0") is False
    client.pin("m1")
    assert [row["pinned"] for row in client.processes() if row["name"] == "m1"] == [True]
    client.unpin("m1")
    assert {"m1", "m2"} <= set(client.cleanup_idle_models(0.0))


def test_a_lease_stays_on_its_node(client: Client) -> None:
    with client.load("m7") as lease:
        assert lease(FRAME)["mean"] == 0
        row = next(row for row in client.processes() if row["name"] == "m7")
        assert (row["node"], row["leases"]) == (lease.node, 1)
        with pytest.raises(ModelInUse):
            client.unload("m7")
    wait_until(lambda: client.unload("m7"), what="it is given back")
    lease.release()  # again is harmless


def test_the_lease_of_a_client_that_is_gone_is_given_back(client: Client, nodes: Nodes) -> None:
    code = (
        "import ray, sys, time; from zoo.ray import Client\n"
        f"ray.init(address={nodes.cluster.address!r}, logging_level='ERROR')\n"
        "client = Client(); lease = client.load('m8'); print('held', flush=True); time.sleep(600)"
    )

    def given_back(name: str) -> bool:
        try:
            return client.unload(name)
        except ModelInUse:
            return False

    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(ModelInUse):
            client.unload("m8")
        client.load("m10")  # garbage at once
        with pytest.raises(ModelInUse):
            client.unload("m10")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()

    wait_until(lambda: given_back("m8"), 3 * replica.FORGET_S, "the node forgets it")
    wait_until(lambda: given_back("m10"), 3 * replica.FORGET_S, "a lease that is garbage is not renewed")


def test_an_event_is_enriched_by_models_wherever_they_are(client: Client) -> None:
    for i in range(20, 26):
        client.infer(f"m{i}", FRAME)
    event = client.enrich(np.full((64, 64, 3), 9, np.uint8), [("person", (0, 0, 32, 32)), ("car", (8, 8, 60, 60))])
    assert event.missing == {}
    person, car = event.detections
    assert {name: answer["mean"] for name, answer in person.answers.items()} == {"m20": 9, "m21": 9, "m22": 9}
    assert set(car.answers) == {"m22"}
    assert len({answer["pid"] for answer in (*person.answers.values(), *event.frame.values())}) == 4
    late = client.enrich(np.zeros((64, 64, 3), np.uint8), [("slow", (0, 0, 32, 32))], timeout=1.0)
    assert isinstance(late.detections[0].missing["m24"], DeadlineExceeded)


def test_a_model_goes_only_to_nodes_with_its_labels(client: Client, nodes: Nodes) -> None:
    with pytest.raises(ZooError, match="labels"):
        client.infer("m59", FRAME, timeout=5.0)
    with pytest.raises(ModelUnavailable, match="labels"):
        client.load("m59", timeout=5.0)
    with pytest.raises(ModelUnavailable, match="labels"):
        client.get_model("m59", timeout=5.0)


# ---------------------------------------------------------------- where requests go


def test_requests_go_where_their_model_is(client: Client) -> None:
    """A skewed stream over models that no node can hold all of: at least 95 % of those that could hit do."""
    client.cleanup_idle_models(0.0)
    rng = random.Random(1)
    could = did = 0
    for _ in range(250):
        name = f"m{min(MODELS - 1, int(rng.expovariate(1 / 10)))}"
        there = any(
            row["name"] == name and row["state"] == "loaded" for row in client.processes()
        )  # the truth, asked of every node
        answer = client.infer(name, FRAME)
        could += there
        did += there and answer.timings.load == 0.0
    assert could > 100
    assert did >= 0.95 * could, f"{did} of {could}"


def test_two_clients_at_once_do_not_load_a_model_twice_for_long(client: Client) -> None:
    client.cleanup_idle_models(0.0)
    with Client() as other:
        threads = [
            threading.Thread(target=lambda c=c: [c.infer(f"m{i % 12}", FRAME) for i in range(120)])
            for c in (client, other)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    held = [row["name"] for row in client.processes()]
    assert set(held) == {f"m{i}" for i in range(12)}
    assert len(held) <= 12 + 4


# ---------------------------------------------------------------- changes and faults


def test_a_changed_configuration_comes_to_every_node_while_it_serves(client: Client, nodes: Nodes) -> None:
    pids = {node: one["broker"]["pid"] for node, one in client.get_status()["nodes"].items()}
    nodes.write([*models(), toy("new", vram_mb=MB)])
    stop, failed = threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            try:
                client.infer("m3", FRAME)
            except ZooError as e:
                failed.append(e)

    asking = threading.Thread(target=ask)
    asking.start()
    deploy(nodes.config)
    wait_until(lambda: all("new" in one["registered_models"] for one in client.get_status()["nodes"].values()))
    stop.set()
    asking.join()
    assert failed == []
    assert client.infer("new", FRAME)["mean"] == 0
    assert {node: one["broker"]["pid"] for node, one in client.get_status()["nodes"].items()} == pids, "none restarted"


def test_a_node_that_is_killed_loses_no_request(client: Client, nodes: Nodes) -> None:
    for i in range(18):
        client.infer(f"m{i}", FRAME)
    lease = client.load("m0")
    victim = next(one for one in nodes.added if one.node_id == _place(client, lease.node))
    broker = client.get_status()["nodes"][lease.node]["broker"]["pid"]
    stop = threading.Event()
    lost: list[ZooError] = []
    answered: list[tuple[float, float]] = []

    def ask(seed: int) -> None:
        rng = random.Random(seed)
        while not stop.is_set():
            began = time.monotonic()
            try:
                client.infer(f"m{rng.randrange(18)}", FRAME, timeout=60.0)
            except ZooError as e:
                lost.append(e)
            answered.append((began, time.monotonic() - began))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(answered) > 100)
    nodes.cluster.remove_node(victim, allow_graceful=False)
    nodes.added.remove(victim)
    wait_until(lambda: lease.node not in client._board.nodes(), 60.0, "the router sees that it is gone")
    seen = len(answered)
    wait_until(lambda: len(answered) > seen + 200, 60.0)
    stop.set()
    for thread in threads:
        thread.join()
    assert lost == []
    wait_until(lambda: not alive(broker), what="its broker has ended with it")
    assert lease(FRAME)["mean"] == 0, "taken again on another node"
    assert lease.node in client._board.nodes()
    lease.release()
    assert len(client.get_status()["nodes"]) == 2


def test_a_node_that_joins_takes_load(client_of_two: Client, nodes: Nodes) -> None:
    client = client_of_two
    nodes.added.append(nodes.add())
    wait_until(lambda: len(client.get_status()["nodes"]) == 3, 60.0, "the new node serves")
    before = {row["node"] for row in client.processes()}
    (new,) = set(client.get_status()["nodes"]) - before

    def used() -> bool:
        for i in range(24):
            client.infer(f"m{i}", FRAME)
        return any(row["node"] == new for row in client.processes())

    wait_until(used, 30.0, "it has models")


@pytest.fixture
def client_of_two(nodes: Nodes) -> Iterator[Client]:
    with Client(timeout=30.0) as client:
        yield client


def _place(client: Client, node: str) -> str:
    return client._board.nodes()[node]


def test_the_command_line(nodes: Nodes) -> None:
    environment = {**os.environ, "RAY_ADDRESS": nodes.cluster.address}
    run = [sys.executable, "-m", "zoo.ray", "status"]
    done = subprocess.run(run, capture_output=True, text=True, env=environment, timeout=60, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"of {8 * MB} MB") == 3
