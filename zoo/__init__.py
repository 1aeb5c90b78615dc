"""Model Zoo: more vision models than the GPU can hold, one process each, within one budget.

`from zoo import Client` is the front door. Names are resolved on first use, so that the broker, which
imports `zoo.wire.protocol` and `zoo.config`, never pays for numpy or the client.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.client.aio import AsyncClient, AsyncLease
    from zoo.client.client import Client, Lease
    from zoo.client.frames import Frame
    from zoo.config.reading import load_config
    from zoo.config.schema import ModelConfig, ModelPriority, ZooConfig
    from zoo.enrichment import Enriched, Enrichment
    from zoo.errors import *
    from zoo.results import (
        Action,
        Classification,
        DepthMap,
        Detections,
        Embedding,
        Keypoints,
        OcrText,
        Quality,
        Segmentation,
    )
    from zoo.timings import Timings

_HOMES = (  # where a public name is looked for: the modules that load least come first
    "zoo.errors", "zoo.config.schema", "zoo.config.reading", "zoo.timings", "zoo.results", "zoo.enrichment",
    "zoo.client.frames", "zoo.client.client", "zoo.client.aio",
)  # fmt: skip

__all__ = [
    "AccessDenied", "Action", "AsyncClient", "AsyncLease", "BrokerUnreachable", "Cancelled", "Classification",
    "Client", "ConfigError", "DeadlineExceeded", "DepthMap", "Detections", "Embedding", "Enriched", "Enrichment",
    "Frame", "InferenceFailed", "InvalidInput", "Keypoints", "Lease", "LoadFailed", "ModelConfig", "ModelDisabled",
    "ModelInUse", "ModelNotFound", "ModelPriority", "ModelTooLarge", "ModelUnavailable", "OcrText",
    "OutOfMemory", "ProtocolMismatch", "Quality", "Quarantined", "QueueFull", "Segmentation", "Timings",
    "WorkerCrashed", "WorkerHung", "ZooConfig", "ZooError", "load_config",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    for home in _HOMES if name in __all__ else ():
        module = importlib.import_module(home)
        if hasattr(module, name):
            return globals().setdefault(name, getattr(module, name))
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")
