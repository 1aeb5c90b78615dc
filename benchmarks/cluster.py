"""Many nodes in virtual time: `python -m benchmarks.cluster`. The broker's own scheduler under `zoo/ray/`'s router.

Each of `NODES` nodes is a `Simulation`; `ROUTERS` callers' processes each have a `Board`, hear a report of each node
twice a second and with each answer, and rank the nodes by `zoo/ray/ranking.py`, without knowing what the others send.
Compared are, on the same requests: two nodes drawn, of which the one with fewer requests is taken, over the same
brokers; and Ray Serve's own `serve.multiplexed`, which routes to replicas that have the model, and evicts by count:
once as many models as always fit, and once as many as fit of the mean size, which would run out of memory. It loses no
node here.

A load takes 0.3 s + 1 s per 1,000 MB. In the middle a node is lost: what it had under way is asked for elsewhere.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import random
import statistics
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from benchmarks import common, traces
from benchmarks.traces import Step, Trace
from benchmarks.world import IN_BATCH
from broker.scheduler.capacity.ledger import Device
from broker.scheduler.events import Asked, Deliver, Kind
from broker.simulation.simulation import Answered, Costs, Simulation
from zoo.config.schema import BrokerConfig, ModelPriority
from zoo.ray import ranking, reports
from zoo.ray.board import Board
from zoo.ray.ranking import Need
from zoo.ray.reports import NodeReport

NODES, MODELS, PER_S, REQUESTS = 30, 300, 60.0, 24_000
ROUTERS = 4
REPORT_S, PUSH_S = 0.2, 0.5  # between two reports of a node; between two that are sent to all routers
AFTER_S = 5.0  # after a loss, until waiting times are to be as before
HERE = ("loaded", "loading")


def load_s(mb: float) -> float:
    return 0.3 + mb / 1000


@dataclass
class Outcome:
    """What came of a trace. `waits`: when a request came, and how long it waited beyond its model's own time."""

    requests: int = 0
    loads: int = 0
    load_s: float = 0.0
    possible: int = 0  # requests for a model that some node had, or loaded
    held: int = 0  # of these, those that went to such a node
    failed: int = 0
    again: int = 0  # asked for once more, since their node was lost
    waits: list[tuple[float, float]] = field(default_factory=list)
    decisions: list[float] = field(default_factory=list)  # seconds of processor time

    def p95(self, since: float = -math.inf, until: float = math.inf) -> float:
        found = sorted(wait for at, wait in self.waits if since <= at < until)
        return found[len(found) * 95 // 100] if found else math.nan

    def summary(self) -> dict[str, float]:
        waits = sorted(wait for _, wait in self.waits)
        made = {
            "requests": self.requests, "loads": self.loads, "load_s": round(self.load_s, 1),
            "to_a_holder": round(self.held / max(1, self.possible), 4), "failed": self.failed, "again": self.again,
            "wait_p50_s": round(statistics.median(waits), 4), "wait_p95_s": round(self.p95(), 4),
            "wait_p99_s": round(waits[len(waits) * 99 // 100], 4),
        }  # fmt: skip
        if self.decisions:
            ordered = sorted(self.decisions)
            made["decision_p50_ms"] = round(statistics.median(ordered) * 1e3, 3)
            made["decision_p99_ms"] = round(ordered[len(ordered) * 99 // 100] * 1e3, 3)
        return made


@dataclass
class Request:
    """`router`: number of the process that asks. `node`: where it was sent."""

    number: int
    step: Step
    at: float
    deadline: float
    router: int
    node: str = ""


class SimulatedNode:
    """A broker in virtual time, and what it says of itself."""

    def __init__(self, name: str, simulation: Simulation) -> None:
        self.name = name
        self.simulation = simulation
        self.open: dict[int, Request] = {}
        self._report = NodeReport({}, {}, {})
        self._made_at = -math.inf

    def report(self, now: float) -> NodeReport:
        if now - self._made_at >= REPORT_S:
            self._made_at, number = now, self._report.number + 1
            self._report = reports.read({**self.simulation.scheduler.room(), "number": number})
        return self._report

    def holds(self, model: str) -> bool:
        return self.simulation.scheduler.models[model].state.value in HERE


class Router(Protocol):
    """Which node a request goes to; is told of what becomes of it."""

    def choose(self, request: Request, nodes: dict[str, SimulatedNode], now: float) -> str: ...

    def ended(self, request: Request, report: NodeReport) -> None: ...

    def heard(self, node: str, report: NodeReport) -> None: ...

    def lost(self, left: dict[str, SimulatedNode]) -> None: ...


class ByReports:
    """The router of `zoo/ray/`, once in each of several processes."""

    def __init__(self, trace: Trace, names: list[str]) -> None:
        self._needs = {m.name: Need(m.name, m.vram_mb, m.priority == ModelPriority.CRITICAL) for m in trace.models}
        self._boards = [Board() for _ in range(ROUTERS)]
        for board in self._boards:
            board.there_are(dict.fromkeys(names, ""))

    def choose(self, request: Request, nodes: dict[str, SimulatedNode], now: float) -> str:
        board, need = self._boards[request.router], self._needs[request.step.model]
        node = ranking.rank(need, board.sights(at=now))[0]
        board.sent(node, need.name, need.mb)
        return node

    def ended(self, request: Request, report: NodeReport) -> None:
        board = self._boards[request.router]
        board.ended(request.node, request.step.model)
        board.heard(request.node, report)

    def heard(self, node: str, report: NodeReport) -> None:
        for board in self._boards:
            board.heard(node, report)

    def lost(self, left: dict[str, SimulatedNode]) -> None:
        for board in self._boards:
            board.there_are(dict.fromkeys(left, ""))


class OfTwo:
    """Two nodes by lot, and of them the one with fewer requests."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)

    def choose(self, request: Request, nodes: dict[str, SimulatedNode], now: float) -> str:
        return min(self._draw.sample(list(nodes), 2), key=lambda name: len(nodes[name].open))

    def ended(self, request: Request, report: NodeReport) -> None:
        pass

    def heard(self, node: str, report: NodeReport) -> None:
        pass

    def lost(self, left: dict[str, SimulatedNode]) -> None:
        pass


class Cluster:
    """Nodes, a router, and the requests of a trace under one clock.

    Args:
        lost_at: when a node is lost, if one is.
    """

    def __init__(self, trace: Trace, count: int, router: Router, *, lost_at: float = math.inf, seed: int = 1) -> None:
        self.outcome = Outcome()
        self._trace = trace
        self._router = router
        self._lost_at = lost_at
        self._mb = {m.name: m.vram_mb for m in trace.models}
        self._requests: dict[int, Request] = {}
        self._draw = random.Random(seed)
        self._now = 0.0
        self.nodes = {name: self._node(name) for name in names(count)}

    def _node(self, name: str) -> SimulatedNode:
        config = BrokerConfig(idle_seconds=1e9, max_queue=1_000_000, max_queue_per_client=1_000_000)
        costs = Costs(lambda model, _: load_s(self._mb[model]), self._batch_s, lambda _: 8)
        devices = [Device("gpu0", "cuda", self._trace.budget_mb)]

        def answered(number: int, answer: Answered) -> None:
            self._answered(node, number, answer)

        node = SimulatedNode(name, Simulation(config, devices, self._trace.models, costs, answered))
        return node

    def run(self) -> Outcome:
        arrivals = self._arrivals()
        coming, push = next(arrivals, None), 0.0
        while coming is not None or any(node.open for node in self.nodes.values()):
            first = min(self.nodes.values(), key=lambda node: node.simulation.next_at)
            then = coming.at if coming is not None else math.inf
            self._now = min(then, push, self._lost_at, first.simulation.next_at)
            if self._now == self._lost_at:
                self._lose()
            elif self._now == push:
                push += PUSH_S
                for node in self.nodes.values():
                    self._router.heard(node.name, node.report(self._now))
            elif coming is not None and self._now == then:
                self._send(coming)
                coming = next(arrivals, None)
            else:
                first.simulation.step()
        self._count(self.nodes.values())
        return self.outcome

    def _arrivals(self) -> Iterator[Request]:
        numbers = itertools.count()
        for event in self._trace.events:
            for step in event.steps:
                router = self._draw.randrange(ROUTERS)
                yield Request(next(numbers), step, event.at, event.at + self._trace.deadline_s, router)

    def _send(self, request: Request) -> None:
        model = request.step.model
        began = time.thread_time()
        name = self._router.choose(request, self.nodes, self._now)
        self.outcome.decisions.append(time.thread_time() - began)
        holders = [node.name for node in self.nodes.values() if node.holds(model)]
        self.outcome.possible += bool(holders)
        self.outcome.held += name in holders
        node = self.nodes[name]
        request.node = name
        node.open[request.number] = self._requests[request.number] = request
        node.simulation.now = self._now
        node.simulation.ask(Asked(request.number, b"router", model, Kind.INFER, request.deadline))

    def _answered(self, node: SimulatedNode, number: int, answer: Answered) -> None:
        request = node.open.pop(number)
        self._router.ended(request, node.report(self._now))
        self.outcome.requests += 1
        if isinstance(answer, Deliver):
            self.outcome.waits.append((request.at, self._now - request.at - request.step.seconds))
        else:
            self.outcome.failed += 1

    def _batch_s(self, _: str, batch: list[int]) -> float:
        times = sorted(self._requests[number].step.seconds for number in batch)
        return times[-1] + IN_BATCH * sum(times[:-1])

    def _lose(self) -> None:
        """The callers are told by the end of their connections, and ask elsewhere at once."""
        self._lost_at = math.inf
        lost = self.nodes.pop(max(self.nodes, key=lambda name: len(self.nodes[name].open)))
        self._count([lost])
        self._router.lost(self.nodes)
        for request in lost.open.values():
            self.outcome.again += 1
            self._send(request)

    def _count(self, nodes: Iterable[SimulatedNode]) -> None:
        for node in nodes:
            self.outcome.loads += node.simulation.counts.loads
            self.outcome.load_s += node.simulation.counts.load_s


# ---------------------------------------------------------------- Ray Serve's own


class Replica:
    """Of `serve.multiplexed`: the models it has, the least recently used first, and when each can be used."""

    def __init__(self) -> None:
        self.models: OrderedDict[str, float] = OrderedDict()
        self.open = 0
        self.loads_until = 0.0

    def ready_at(self, model: str, now: float, most: int, seconds: float, outcome: Outcome) -> float:
        """Loads are one after another, and the least recently used model makes room."""
        if model not in self.models:
            if len(self.models) >= most:
                self.models.popitem(last=False)
            self.loads_until = max(now, self.loads_until) + seconds
            self.models[model] = self.loads_until
            outcome.loads += 1
            outcome.load_s += seconds
        self.models.move_to_end(model)
        return max(now, self.models[model])


def multiplexed(trace: Trace, count: int, size_mb: float, seed: int = 1) -> Outcome:
    """The engine's own choice: among replicas with the model, else among those with the fewest models, two by lot.

    Args:
        size_mb: a replica has as many models as fit of this size.
    """
    draw, outcome = random.Random(seed), Outcome()
    mb = {m.name: m.vram_mb for m in trace.models}
    most = int(trace.budget_mb / size_mb)
    replicas = [Replica() for _ in range(count)]
    ends: list[tuple[float, int, Replica]] = []
    for number, event in enumerate(trace.events):
        for step in event.steps:
            while ends and ends[0][0] <= event.at:
                heapq.heappop(ends)[2].open -= 1
            holders = [one for one in replicas if step.model in one.models]
            fewest = min(len(one.models) for one in replicas)
            able = holders or [one for one in replicas if len(one.models) == fewest]
            chosen = min(draw.sample(able, min(2, len(able))), key=lambda one: one.open)
            outcome.possible += bool(holders)
            outcome.held += bool(holders)
            ready = chosen.ready_at(step.model, event.at, most, load_s(mb[step.model]), outcome)
            chosen.open += 1
            heapq.heappush(ends, (ready + step.seconds, number, chosen))
            outcome.requests += 1
            outcome.waits.append((event.at, ready - event.at))
    return outcome


# ---------------------------------------------------------------- all of it


def names(count: int) -> list[str]:
    return [f"node{i:02}" for i in range(count)]


def compare(trace: Trace, count: int) -> tuple[dict[str, Any], list[tuple[str, str, str]]]:
    """Figures by router, and what is to be reached."""
    lost_at = trace.events[-1].at / 2
    ours = Cluster(trace, count, ByReports(trace, names(count)), lost_at=lost_at).run()
    two = Cluster(trace, count, OfTwo(1), lost_at=lost_at).run()
    sizes = [m.vram_mb for m in trace.models]
    safe, bold = multiplexed(trace, count, max(sizes)), multiplexed(trace, count, statistics.mean(sizes))
    before, after = ours.p95(lost_at - 60, lost_at), ours.p95(lost_at + AFTER_S, lost_at + 60)
    by_name = {"zoo.ray": ours, "two by lot": two, "multiplexed": safe, "multiplexed, mean size": bold}
    figures = {name: one.summary() for name, one in by_name.items()}
    figures["zoo.ray"] |= {"p95_before_the_loss_s": round(before, 4), "p95_after_the_loss_s": round(after, 4)}
    own = figures["zoo.ray"]
    goals = [
        ("requests to a node that has the model, where one does", f"{own['to_a_holder']:.1%}", ">= 95 %"),
        ("loads, to two by lot", f"{ours.loads / two.loads:.2f}", "<= 0.5"),
        ("loads, to serve.multiplexed", f"{ours.loads / safe.loads:.2f}", "<= 0.7"),
        ("the same, with as many models as fit of the mean size", f"{ours.loads / bold.loads:.2f}", ""),
        ("a decision, p99 (ms)", f"{own['decision_p99_ms']:.2f}", "<= 1"),
        ("lost with a node", f"{own['failed']} of {own['again']}", "0"),
        ("p95 of waits, 5 s after the loss, to before (s)", f"{after:.3f} / {before:.3f}", "as before"),
    ]
    return figures, goals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a tenth of the requests, nothing is saved")
    arguments = parser.parse_args()
    trace = traces.zipf(1, requests=REQUESTS // (10 if arguments.quick else 1), per_s=PER_S, models=MODELS)
    figures, goals = compare(trace, NODES)
    rows = [(key, *(str(one.get(key, "")) for one in figures.values())) for key in figures["zoo.ray"]]
    print(common.table([("", *figures), *rows]))
    print()
    print(common.table([("figure", "measured", "to reach"), *goals]))
    if not arguments.quick:
        common.save("cluster", {"nodes": NODES, "models": MODELS, "routers": ROUTERS, "figures": figures})


if __name__ == "__main__":
    main()
