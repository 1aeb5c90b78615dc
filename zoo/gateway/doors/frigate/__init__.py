"""Frigate's `zmq` detector: a socket for each `[[gateway.frigate]]` table of config.toml.

The client is a REQ socket of a detector's process. It asks for a model, and then for one detection after the other,
each of which it awaits for 200 ms. What it can be told: that the model is there and loaded, that it is not there, and
the rows of a detection. There is no answer for an error, and zeros mean that nothing was seen. So **where there is no
right answer within 200 ms, there is none at all**: the client then makes a new socket and asks for its model again,
which is answered once the model is loaded.
"""

from __future__ import annotations

import asyncio

from zoo.gateway.doors.frigate.detector import FrigateDetectors
from zoo.gateway.doors.frigate.listener import FrigateListener
from zoo.gateway.gateway import Gateway

LOOK_S = 5.0


async def serve(gateway: Gateway) -> None:
    """Until it is cancelled; returns at once where there is no table. Raises ConfigError: an endpoint cannot be had."""
    listeners: list[FrigateListener] = []
    detectors: list[FrigateDetectors] = []
    try:
        for table in gateway.config.gateway.frigate:
            its = FrigateDetectors(table, gateway.sessions.client(), gateway.metrics)
            detectors.append(its)
            listeners.append(FrigateListener(table.endpoint, gateway.config.gateway, its))
        while listeners:
            await asyncio.sleep(LOOK_S)
            for listener in listeners:
                listener.reconcile()
    finally:
        for listener in listeners:
            listener.close()
        for its in detectors:
            await its.close()
