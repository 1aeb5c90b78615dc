"""Brokers in virtual time under the router, as `benchmarks/cluster.py` has them: what is to be reached, but smaller."""

from __future__ import annotations

import pytest

from benchmarks import cluster, traces
from benchmarks.cluster import ByReports, Cluster, OfTwo, Outcome

NODES, LOST_AT = 6, 30.0
TRACE = traces.zipf(3, requests=900, per_s=15.0, models=60)


@pytest.fixture(scope="module")
def ours() -> Outcome:
    return Cluster(TRACE, NODES, ByReports(TRACE, cluster.names(NODES)), lost_at=LOST_AT).run()


def test_requests_go_where_their_model_is_and_none_is_lost_with_a_node(ours: Outcome) -> None:
    assert ours.requests == len(TRACE.events)
    assert ours.failed == 0
    assert ours.held >= 0.95 * ours.possible


def test_fewer_loads_than_with_other_routers(ours: Outcome) -> None:
    assert ours.loads <= 0.5 * Cluster(TRACE, NODES, OfTwo(1), lost_at=LOST_AT).run().loads
    largest = max(model.vram_mb for model in TRACE.models)
    assert ours.loads <= 0.7 * cluster.multiplexed(TRACE, NODES, largest).loads


def test_no_node_gets_all_loads() -> None:
    one = Cluster(TRACE, NODES, ByReports(TRACE, cluster.names(NODES)))
    one.run()
    loads = [node.simulation.counts.loads for node in one.nodes.values()]
    assert max(loads) <= 3 * sum(loads) / NODES


def test_waiting_times_are_as_before_soon_after_a_loss(ours: Outcome) -> None:
    before, after = ours.p95(20.0, LOST_AT), ours.p95(LOST_AT + cluster.AFTER_S + 15.0)
    assert after <= 2 * before + 1.0
