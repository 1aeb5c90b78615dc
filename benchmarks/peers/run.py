"""All peers side by side: `python -m benchmarks.peers.run [--quick] [--only NAME …]`, or `make bench-peers`.

All servers but Ray's, which has a group of its own with the zoo, are started first, and are there together; then each
workload in turn is asked of all clients in turn, for several rounds, so that a host that slows down slows all of them.
A ratio is the median over the rounds of the ratio within a round. Each answer is checked. What cannot be started,
answers wrongly or not in time is ended and reported as that.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import common
from benchmarks.peers import job, report, servers, work

START_S, ANSWER_S = 120.0, 30.0  # until a peer counts as failed
MOST_S, LOAD_S, REST_S = 0.4, 0.7, 5.0  # of one client in a round; of several at once; of a look at what rests
JOB_S = 10.0  # of the trace


class Peer(NamedTuple):
    """`environment`: the folder in .peers and the list of versions here; none where this one has all that it needs."""

    environment: str
    module: str
    clients: tuple[str, ...]
    apart: bool = False  # takes so much while it rests that the others would be slower; measured beside the zoo alone


PEERS = {
    "zoo": Peer("", "benchmarks.peers.zoo_peer", ("copied in", "in the arena")),
    "floor": Peer("", "benchmarks.peers.floors_peer", (
        "a broker that does nothing, copied in", "a broker that does nothing, in shared memory",
        "a bare socket, copied in", "a bare socket, in shared memory")),
    "pickled pipe": Peer("", "benchmarks.peers.pipe_peer", ("",)),
    "Triton": Peer("triton", "benchmarks.peers.triton_peer", (
        "gRPC, shared memory, copied in", "gRPC, shared memory, in it already", "gRPC", "HTTP")),
    "Ray": Peer("ray", "benchmarks.peers.ray_peer", ("actor", "Serve, handle", "Serve, HTTP"), apart=True),
    "mosec": Peer("mosec", "benchmarks.peers.mosec_peer", ("",)),
    "FastAPI": Peer("fastapi", "benchmarks.peers.fastapi_peer", ("raw body", "JPEG and base64 in JSON")),
    "BentoML": Peer("bentoml", "benchmarks.peers.bentoml_peer", ("",)),
    "LitServe": Peer("litserve", "benchmarks.peers.litserve_peer", ("",)),
}  # fmt: skip


class Running:
    """A peer that was started: its server, and clients that are connected; or why not."""

    def __init__(self, name: str, folder: Path, extra: dict[str, str]) -> None:
        self.name, self.of = name, PEERS[name]
        self.clients: dict[str, servers.Driver] = {}
        self.failed: dict[str, str] = {}  # client → why
        self.never: dict[tuple[str, str], str] = {}  # (client, workload) → why not
        self.server: servers.Server | None = None
        if not Path(servers.python(self.of.environment)).exists():
            why = f"not installed in .peers/{self.of.environment}: run `make bench-peers`, and see what it says"
            self.failed.update(dict.fromkeys(self.of.clients, why))
            return
        where = folder / self.of.module.rpartition(".")[-1]
        self.server = servers.Server(self.of.environment, self.of.module, where, extra)
        for client in self.of.clients:
            with self.failing(client):
                self.clients[client] = self.connect(client)

    def connect(self, client: str) -> servers.Driver:
        assert self.server is not None
        driver = servers.Driver(self.server, client, START_S)
        try:
            driver.ready(START_S + 10)
        except servers.Failed as e:
            driver.end()
            raise servers.Failed(f"{e}; the server: {self.server.told()}") from e
        return driver

    @contextlib.contextmanager
    def failing(self, client: str, workload: str = "") -> Iterator[None]:
        """What fails is ended and remembered."""
        try:
            yield
        except servers.Never as e:
            self.never[client, workload] = str(e)
        except (servers.Failed, OSError) as e:
            self.failed[client] = f"{workload}: {e}".removeprefix(": ")
            if driver := self.clients.pop(client, None):
                driver.end()

    def end(self) -> None:
        for driver in self.clients.values():
            driver.end()
        if self.server:
            self.server.end()


def in_rounds(peers: list[Running], workload: str, rounds: int, share: float) -> dict[str, list[float]]:
    """Per client the median microseconds of each round; the first round warms up and is not kept."""
    found: dict[str, list[float]] = {}
    calls = max(3, round(work.WORKLOADS[workload].calls * share))
    for turn in range(rounds + 1):
        for peer in peers:
            for client, driver in list(peer.clients.items()):
                if (client, workload) in peer.never:
                    continue
                with peer.failing(client, workload):
                    times = driver.run(workload, calls if turn else 3, MOST_S * share, ANSWER_S)
                    if turn:
                        found.setdefault(title(peer.name, client), []).append(statistics.median(times))
    return found


def title(peer: str, client: str) -> str:
    return f"{peer}, {client}".removesuffix(", ")


def at_once(peers: list[Running], workload: str, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Per client the requests a second of several, each in a process of its own, all asking at once."""
    found: dict[str, list[float]] = {}
    with contextlib.ExitStack() as others:
        crews = list(_crews(peers, workload, others))
        for turn in range(rounds + 1):
            for peer, client, drivers in crews:
                if client not in peer.clients:
                    continue
                with peer.failing(client, workload):
                    for driver in drivers:
                        driver.ask(workload, 1, seconds if turn else 0.2, seconds)
                    rate = sum(len(driver.answer(ANSWER_S)) for driver in drivers) / seconds
                    if turn:
                        found.setdefault(title(peer.name, client), []).append(rate)
    return found


def _crews(
    peers: list[Running], workload: str, others: contextlib.ExitStack
) -> Iterator[tuple[Running, str, list[servers.Driver]]]:
    """Further clients, which end with `others`."""
    for peer in peers:
        for client, driver in list(peer.clients.items()):
            with peer.failing(client, workload):
                drivers = [driver]
                for _ in range(work.WORKLOADS[workload].clients - 1):
                    drivers.append(peer.connect(client))
                    others.callback(drivers[-1].end)
                yield peer, client, drivers


def at_rest(peers: list[Running], seconds: float) -> dict[str, dict[str, float]]:
    """What each server takes while nothing is asked of it: memory in MB (shared pages in parts), per cent of a core."""
    pids = {peer.name: peer.server.pids() for peer in peers if peer.server}
    before = {name: _cpu_seconds(of) for name, of in pids.items()}
    time.sleep(seconds)
    return {
        name: {
            "mb": round(sum(map(_pss_mb, of))),
            "cpu_percent": round((_cpu_seconds(of) - before[name]) / seconds * 100, 1),
            "processes": len(of),
        }
        for name, of in pids.items()
    }


def _cpu_seconds(pids: list[int]) -> float:
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += common.cpu_seconds(pid)
    return total


def _pss_mb(pid: int) -> float:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


def detector(folder: Path) -> dict[str, str]:
    """The environment with a checkpoint for all, and beside it what the library itself answers (`known.npy`)."""
    code = (
        "import sys, numpy as np; from ultralytics import YOLO; YOLO('yolo11n.yaml').save(sys.argv[1]);"
        "from benchmarks.peers import work; np.save(sys.argv[2], work.MODELS['detector'].load()(work.picture()))"
    )
    extra = {"PEERS_WEIGHTS": str(folder / "yolo11n.pt"), "YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false",
             "YOLO_CONFIG_DIR": str(folder), "OMP_NUM_THREADS": "1"}  # fmt: skip
    subprocess.run([sys.executable, "-c", code, extra["PEERS_WEIGHTS"], str(folder / "known.npy")], check=True,
                   env={**os.environ, **extra}, cwd=servers.ROOT, stdout=subprocess.DEVNULL)  # fmt: skip
    return extra


def measure(names: list[str], workloads: list[str], rounds: int, share: float) -> dict[str, Any]:
    """By workload and client: what its rounds gave, and what the zoo's gave in the same rounds."""
    together = [name for name in names if not PEERS[name].apart]
    groups = [together, *(["zoo", name] for name in names if PEERS[name].apart)]
    figures: dict[str, Any] = {"rounds": rounds, "workloads": {}, "at_rest": {}, "failed": {}, "never": []}
    for group in filter(None, groups):
        found = measure_group(group, workloads, rounds, share)
        for workload, of in found.pop("workloads").items():
            known = figures["workloads"].setdefault(workload, {})
            for name, values in of.items():
                known.setdefault(name, {"rounds": values, "zoo": of.get(report.ZOO)})
        for key, value in found.items():
            figures[key] = figures[key] + value if key == "never" else {**value, **figures[key]}
    return figures


def measure_group(names: list[str], workloads: list[str], rounds: int, share: float) -> dict[str, Any]:
    """Of peers that are all there together."""
    figures: dict[str, Any] = {"workloads": {}}
    peers: list[Running] = []
    with servers.adopting(), common.folder() as where, contextlib.ExitStack() as started:
        extra = detector(Path(where)) if "detector" in workloads else {}
        for name in names:
            say(f"starting {name}")
            peers.append(Running(name, Path(where), extra))
            started.callback(peers[-1].end)
        for workload in workloads:
            say(workload)
            if work.WORKLOADS[workload].clients > 1:
                figures["workloads"][workload] = at_once(peers, workload, rounds, LOAD_S * share)
            else:
                figures["workloads"][workload] = in_rounds(peers, workload, rounds, share)
        figures["at_rest"] = at_rest(peers, REST_S * share)
        figures["failed"] = {title(p.name, client): why for p in peers for client, why in p.failed.items()}
        figures["never"] = sorted({(title(p.name, c), w, why) for p in peers for (c, w), why in p.never.items()})
    return figures


def versions(names: list[str]) -> dict[str, list[str]]:
    """Of each peer, the packages that were asked for: the first lines of its list, up to the empty one."""
    lists = {name: servers.LISTS / f"{PEERS[name].environment}.txt" for name in names if PEERS[name].environment}
    return {name: file.read_text().split("\n\n")[0].splitlines()[1:] for name, file in lists.items()}


def say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds; nothing is written")
    parser.add_argument("--only", nargs="+", choices=PEERS, default=list(PEERS), metavar="PEER")
    parser.add_argument(
        "--workloads", nargs="+", choices=work.WORKLOADS, default=list(work.WORKLOADS), metavar="WORKLOAD"
    )
    args = parser.parse_args(argv)
    rounds, share = (2, 0.4) if args.quick else (4, 1.0)
    figures = measure(args.only, args.workloads, rounds, share)
    if args.only == list(PEERS):
        say("the job itself")
        figures["job"] = job.measure(list(job.CONTENDERS), JOB_S * share)
    figures["versions"] = versions(args.only)
    print(report.text(figures))
    if not args.quick and args.only == list(PEERS):
        common.save("peers", figures)
        report.write(figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
