"""Many machines: a zoo on each node, and one face for all of them, on Ray Serve (the extra `ray`).

    from zoo.ray import Client, deploy

    deploy("config.toml")        # once, from any node: a broker on every node that offers the resource "zoo"
    client = Client()
    client.infer("yolo11-face", frame)

Frames and answers travel through the engine's object store. Which node a request goes to is decided where it is asked,
by `ranking.py`, from what the brokers report (`reports.py`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.ray.client import ClusterClient as Client
    from zoo.ray.client import NodeLease as Lease
    from zoo.ray.deploying import deploy, undeploy

__all__ = ["Client", "Lease", "deploy", "undeploy"]

_HOMES = {
    "Client": ("client", "ClusterClient"),
    "Lease": ("client", "NodeLease"),
    "deploy": ("deploying", "deploy"),
    "undeploy": ("deploying", "undeploy"),
}


def __getattr__(name: str) -> Any:
    """The engine is imported with the first use of these: the pure parts work, and are tested, without it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, cls = _HOMES[name]
    return getattr(importlib.import_module(f"zoo.ray.{module}"), cls)
