"""The connection of this process to the engine."""

from __future__ import annotations

import ray

from zoo.errors import BrokerUnreachable


def connect(address: str | None = None) -> None:
    """Connects, unless this process is. Never starts an engine of its own. Raises BrokerUnreachable."""
    if ray.is_initialized():
        return
    try:
        ray.init(address=address or "auto", logging_level="WARNING")
    except (ConnectionError, RuntimeError, ValueError) as e:
        raise BrokerUnreachable(
            f"no Ray cluster at {address or 'this machine'}: start it with `ray start` ({e})"
        ) from e
