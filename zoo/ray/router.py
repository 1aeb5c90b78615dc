"""The engine's request router, as `ranking.py` decides. It runs in each process that asks."""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, ReplicaResult, RequestRouter, RunningReplica

from zoo.ray import ranking, reports
from zoo.ray.board import board

AT = "@"  # before a node's name: to that node alone


class ZooRouter(RequestRouter):  # type: ignore[misc]  # the engine is not installed where types are checked
    """`multiplexed_model_id` of a request: the model; `@NODE` for that node alone; "" for any.

    Args (of `initialize_state`):
        models: name → [declared MB, whether it is CRITICAL]. copies, copy_at: of `[cluster]`.
    """

    def __init__(self, *args: Any, self_node_id: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._own = self_node_id or ""
        self._board = board(self._deployment_id.app_name)
        self._open: dict[str, tuple[str, str]] = {}

    def initialize_state(self, models: dict[str, tuple[float, bool]], copies: int, copy_at: int) -> None:
        self._models = {name: ranking.Need(name, mb, critical) for name, (mb, critical) in models.items()}
        self._limits = ranking.CopyLimits(copies, copy_at)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        self._board.there_are(
            {one.replica_id.unique_id: one.node_id or "" for one in replicas},
            {one.replica_id.unique_id: one.actor_id.hex() for one in replicas},
        )
        for one in replicas:
            if one.routing_stats:
                self._board.heard(one.replica_id.unique_id, reports.read(one.routing_stats))
        super().update_replicas(replicas)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        by_name = {one.replica_id.unique_id: one for one in candidate_replicas}
        key = pending_request.metadata.multiplexed_model_id if pending_request is not None else ""
        if key.startswith(AT):
            # Of a node that is gone any other is asked, and says that it is not the one.
            return [[by_name[key[1:]]] if key[1:] in by_name else candidate_replicas]
        wanted = self._models.get(key) or ranking.Need(key, 0.0)
        order = ranking.rank(wanted, self._board.sights(self._own), self._limits)
        ranked = [[by_name[name]] for name in order if name in by_name]
        return ranked or [candidate_replicas]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult) -> None:
        model, node = pending_request.metadata.multiplexed_model_id, replica_id.unique_id
        if model and not model.startswith(AT):
            known = self._models.get(model)
            self._board.sent(node, model, known.mb if known is not None else 0.0)
            self._open[pending_request.metadata.internal_request_id] = node, model

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        if (found := self._open.pop(internal_request_id, None)) is not None:
            self._board.ended(*found)
