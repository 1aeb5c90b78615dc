"""Puts a zoo on every node that offers the resource "zoo", and keeps it so as nodes come and go.

How many replicas there are is the engine's own decision, by a policy of ours: one per such node. So a node that joins
gets its zoo with the next look of the engine, and no process of ours has to watch.
"""

from __future__ import annotations

import os
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.exceptions import RayServeException

from zoo.config import reading
from zoo.config.schema import ModelPriority
from zoo.errors import BrokerUnreachable, ConfigError
from zoo.ray import engine
from zoo.ray.node import ZooNode
from zoo.ray.router import ZooRouter
from zoo.system import files

APPLICATION = "zoo"
RESOURCE = "zoo"
STATS_S = 0.5  # between two reports of a node to the routers
MOST_NODES = 4096
MOST_REQUESTS = 4096  # of a node at a time: the broker has its own limits
LOOK_S = 0.5
_looked: tuple[float, int] = 0.0, 1


def nodes_there_are() -> int:
    """Living nodes with the resource."""
    return sum(node["Alive"] and node["Resources"].get(RESOURCE, 0) >= 1 for node in ray.nodes())


def one_per_node(context: Any) -> tuple[int, dict[str, Any]]:
    """The engine's policy of how many replicas there are."""
    global _looked
    if time.monotonic() - _looked[0] > LOOK_S:
        _looked = time.monotonic(), max(1, nodes_there_are())
    return _looked[1], {}


def deploy(config: str | os.PathLike[str], *, name: str = APPLICATION) -> None:
    """Starts the zoo on the nodes, or gives running ones a changed configuration. Returns when all serve.

    Args:
        config: config.toml. Relative paths in it start at its folder, which has to be there on every node.
        name: of the application, for `Client`.

    Raises:
        ConfigError: the file is not valid, or no node offers the resource "zoo".
        BrokerUnreachable: there is no cluster, or no node can start with it.
    """
    made = deployment(config)
    engine.connect()
    if not nodes_there_are():
        raise ConfigError(
            f"no node offers the resource {RESOURCE!r}: start those that are to serve with "
            f"""`ray start … --resources '{{"{RESOURCE}": 1}}'`"""
        )
    serve.start(proxy_location="Disabled")
    try:
        serve.run(made.bind(), name=name, route_prefix=None)
    except RuntimeError as e:
        raise BrokerUnreachable(f"the zoo does not start on its nodes; their logs say why: {e}", retryable=False) from e


def deployment(config: str | os.PathLike[str]) -> Any:
    """What the engine is told. Raises ConfigError."""
    file = Path(config).resolve()
    found = reading.load_config(file)
    text = files.read_regular(file, files.MAX_TEXT).decode()
    models = {m.name: (m.vram_mb, m.priority == ModelPriority.CRITICAL) for m in found.models if m.enabled}
    return serve.deployment(ZooNode).options(
        name="node",
        # By default each deployment has a version of its own, and every node would start again for it. With this one a
        # changed config.toml comes to nodes that run (`user_config`).
        version=metadata.version("model-zoo"),
        _internal=True,
        ray_actor_options={"num_cpus": 0, "resources": {RESOURCE: 1}},
        max_replicas_per_node=1,
        max_ongoing_requests=MOST_REQUESTS,
        user_config={"text": text, "base": str(file.parent)},
        health_check_period_s=1.0,
        health_check_timeout_s=5.0,
        graceful_shutdown_timeout_s=10.0,
        autoscaling_config=AutoscalingConfig(
            min_replicas=1, max_replicas=MOST_NODES, initial_replicas=max(1, nodes_there_are()), upscale_delay_s=0.0,
            downscale_delay_s=10.0, policy=AutoscalingPolicy(policy_function=one_per_node),
        ),
        request_router_config=RequestRouterConfig(
            request_router_class=ZooRouter,
            request_router_kwargs={
                "models": models, "copies": found.cluster.copies, "copy_at": found.cluster.copy_at,
            },
            request_routing_stats_period_s=STATS_S,
            request_routing_stats_timeout_s=5.0,
        ),
    )  # fmt: skip


def undeploy(name: str = APPLICATION) -> None:
    """Ends the zoo on all nodes. Raises BrokerUnreachable: there is no cluster, or no such application."""
    engine.connect()
    try:
        serve.get_app_handle(name)
    except RayServeException as e:
        raise BrokerUnreachable(f"no application {name!r} is deployed: {e}", retryable=False) from None
    serve.delete(name)
