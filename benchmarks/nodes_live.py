"""Three nodes of a Ray cluster on this machine, for real: `make bench-ray` (an environment of its own).

What is compared, in one run:

* loads, with 60 small models of which no node holds more than eight, asked for by four callers: our router, the
  engine's own (the shorter of two queues), and `serve.multiplexed` (LRU by count in each replica);
* what the engine adds to a call: our client beside a bare handle of it, and beside a client of the node's broker;
* how long a choice among nodes takes; and what a killed node does to those that wait.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.config import RequestRouterConfig

import zoo
from benchmarks import common
from tests.support import config_text, toy, wait_until
from zoo.errors import ZooError
from zoo.ray import Client, ranking
from zoo.ray.deploying import deployment
from zoo.ray.ranking import CopyLimits, Need, Sight
from zoo.ray.reports import NodeReport, Residency, Room, Step

NODES, MODELS, MB, HELD, LOAD_S = 3, 60, 100, 8, 0.1
SMALL = np.zeros((8, 8, 3), np.uint8)
FRAME = np.zeros((480, 640, 3), np.uint8)


@contextmanager
def cluster(folder: str) -> Iterator[tuple[Cluster, list[Any], Path]]:
    file = Path(folder) / "config.toml"
    models = [toy(f"m{i}", vram_mb=MB, options={"load_seconds": LOAD_S}) for i in range(MODELS)]
    keys = {"device": "cpu", "vram_budget_gb": HELD * MB / 1024, "footprint": "declared", "eviction": "adaptive"}
    file.write_text(config_text(models, **keys))
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    added = [
        made.add_node(num_cpus=1, resources={"zoo": 1, f"place{i}": 1}, object_store_memory=200 << 20)
        for i in range(NODES)
    ]
    ray.init(address=made.address, logging_level="ERROR", log_to_driver=False)
    serve.start(proxy_location="Disabled")
    try:
        yield made, added, file
    finally:
        end(made)


def end(made: Cluster) -> None:
    serve.shutdown()
    while ray.is_initialized():  # a thread of the engine may have connected again meanwhile
        ray.shutdown()
    made.shutdown()


def names(count: int, seed: int) -> list[str]:
    """A skewed stream, as cameras make it: a few models often, many seldom."""
    rng = random.Random(seed)
    return [f"m{min(MODELS - 1, int(rng.expovariate(1 / 12)))}" for _ in range(count)]


def asked(ask: Callable[[str], Any], count: int, callers: int = 4) -> tuple[int, float, float]:
    """Loads (answers of so many different processes), p50 and p95 in seconds."""
    processes: set[Any] = set()
    times: list[float] = []

    def one(seed: int) -> None:
        for name in names(count // callers, seed):
            began = time.perf_counter()
            processes.add((name, ask(name)))
            times.append(time.perf_counter() - began)

    threads = [threading.Thread(target=one, args=(seed,)) for seed in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ordered = sorted(times)
    return len(processes), ordered[len(ordered) // 2], ordered[len(ordered) * 95 // 100]


# ---------------------------------------------------------------- loads


@serve.deployment(
    ray_actor_options={"num_cpus": 0, "resources": {"zoo": 1}}, num_replicas=NODES, max_replicas_per_node=1
)
class Multiplexed:
    """The engine's way to share a replica among models."""

    @serve.multiplexed(max_num_models_per_replica=HELD)
    async def model(self, name: str) -> str:
        await asyncio.sleep(LOAD_S + 0.06)  # and what a process and a kill take here
        return uuid.uuid4().hex

    async def __call__(self, frame: np.ndarray[Any, Any]) -> str:
        return await self.model(serve.get_multiplexed_model_id())


def loads(file: Path, count: int) -> list[list[Any]]:
    rows = []
    ours = deployment(file)
    plain = {"request_router_config": RequestRouterConfig(), "_internal": True}
    routers = (("zoo", "the zoo's router", ours), ("plain", "the shorter of two queues", ours.options(**plain)))
    for name, label, one in routers:
        serve.run(one.bind(), name=name, route_prefix=None)
        wait_until(lambda n=name: serve.status().applications[n].deployments["node"].replica_states["RUNNING"] == NODES)
        with Client(name) as client:
            rows.append([label, *asked(lambda name, c=client: c.infer(name, SMALL)["pid"], count)])
        serve.delete(name)
    handle = serve.run(Multiplexed.bind(), name="multiplexed", route_prefix=None)
    handles = {name: handle.options(multiplexed_model_id=name) for name in {f"m{i}" for i in range(MODELS)}}
    rows.append(["serve.multiplexed", *asked(lambda name: handles[name].remote(SMALL).result(), count)])
    serve.delete("multiplexed")
    return rows


# ---------------------------------------------------------------- what a call costs


@serve.deployment(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=100)
class Bare:
    async def __call__(self, frame: np.ndarray[Any, Any]) -> dict[str, Any]:
        return {"mean": 0.0, "pid": 0, "first": [0, 0, 0]}


def overhead(file: Path, rounds: int) -> dict[str, float]:
    """p50 in milliseconds of each way, interleaved."""
    serve.run(deployment(file).bind(), name="zoo", route_prefix=None)
    with Client() as client:
        client.infer("m0", FRAME)
        row = next(row for row in client.processes() if row["name"] == "m0")
        # The bare handle's replica is on the same node: to another one the frame is copied once more.
        here = next(n for n in ray.nodes() if n["NodeID"] == client._board.nodes()[row["node"]])
        place = next(name for name in here["Resources"] if name.startswith("place"))
        beside = Bare.options(ray_actor_options={"num_cpus": 0, "resources": {place: 0.1}})
        bare = serve.run(beside.bind(), name="bare", route_prefix=None)
        endpoint = client.get_status()["nodes"][row["node"]]["broker"]["endpoint"]
        with zoo.Client(endpoint) as own:
            ways: dict[str, Callable[[], Any]] = {
                "node": lambda: own.infer("m0", FRAME),
                "bare": lambda: bare.remote(FRAME).result(),
                "ours": lambda: client.infer("m0", FRAME),
            }
            times: dict[str, list[float]] = defaultdict(list)
            for _ in range(rounds):
                for way, call in ways.items():
                    began = time.perf_counter()
                    call()
                    times[way].append(time.perf_counter() - began)
    serve.delete("bare")
    p50 = {way: 1000 * statistics.median(found) for way, found in times.items()}
    return {**p50, "added over the node's client, to a bare handle": (p50["ours"] - p50["node"]) / p50["bare"]}


def choices() -> dict[str, float]:
    """Milliseconds for one choice, of a model that is nowhere: the longest way."""
    found = {}
    for nodes, models in ((3, 60), (30, 300)):
        held = models // nodes // 2
        steps = tuple(Step(100.0 * i, (float(i), 100.0 * i) if i else ()) for i in range(held))
        here = Residency("loaded", 1)
        sights = [
            Sight(f"n{n}", NodeReport({"gpu": Room(8000, 8000, steps)}, {f"m{n}-{i}": here for i in range(held)}, {}))
            for n in range(nodes)
        ]
        need, limits = Need("elsewhere", 350.0), CopyLimits()
        began = time.perf_counter()
        for _ in range(1000):
            ranking.rank(need, sights, limits)
        found[f"{nodes} nodes, {models} models"] = time.perf_counter() - began
    return found


# ---------------------------------------------------------------- a node is killed


def killed(made: Cluster, added: list[Any], seconds: float = 12.0) -> dict[str, float]:
    """Four callers ask for 12 models; a node is killed after a third of the time."""
    lost = 0
    times: list[tuple[float, float]] = []
    stop = threading.Event()
    with Client(timeout=60.0) as client:
        for i in range(12):
            client.infer(f"m{i}", SMALL)

        def ask(seed: int) -> None:
            nonlocal lost
            rng = random.Random(seed)
            while not stop.is_set():
                began = time.monotonic()
                try:
                    client.infer(f"m{rng.randrange(12)}", SMALL)
                except ZooError:
                    lost += 1
                times.append((began, time.monotonic() - began))

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        stop.wait(seconds / 3)
        before = _p95([took for _, took in times])
        at = time.monotonic()
        there = len(client._board.nodes())
        made.remove_node(added[0], allow_graceful=False)
        wait_until(lambda: len(client._board.nodes()) < there, 60.0)
        seen = time.monotonic()
        stop.wait(2 * seconds / 3)
        stop.set()
        for thread in threads:
            thread.join()
    late = [began + took for began, took in times if began > at and took > max(4 * before, 0.1)]
    return {
        "requests": len(times), "lost": lost, "p95 before, ms": 1000 * before,
        "p95 from 5 s after the router saw it, ms": 1000 * _p95([took for began, took in times if began > seen + 5.0]),
        "router saw it after, s": seen - at, "longest, s": max(took for _, took in times),
        "last slow answer after the router saw it, s": max(late, default=seen) - seen,
    }  # fmt: skip


def _p95(times: list[float]) -> float:
    return sorted(times)[len(times) * 95 // 100]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=300)
    args = parser.parse_args()
    with common.folder() as folder, cluster(folder) as (made, added, file):
        result: dict[str, Any] = {"choice_ms": choices(), "loads": loads(file, args.requests)}
        for label, count, p50, p95 in result["loads"]:
            print(f"{label:28} {count:5} loads   p50 {1000 * p50:6.1f} ms   p95 {1000 * p95:7.1f} ms")
        result["overhead_ms"] = overhead(file, args.rounds)
        result["killed"] = killed(made, added)
    for part in ("choice_ms", "overhead_ms", "killed"):
        for label, value in result[part].items():
            print(f"{label:48} {value:10.3f}")
    common.save("nodes_live", result)


if __name__ == "__main__":
    main()
