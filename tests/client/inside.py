"""What tests look at inside a client: here alone."""

from __future__ import annotations

from typing import Any

from zoo import AsyncClient, Client
from zoo.client.frame_arena import FrameArena
from zoo.client.link import Link


def driver(client: Client | AsyncClient) -> Any:
    return client._calls._driver


def link(client: Client | AsyncClient) -> Link:
    found = driver(client).link
    assert isinstance(found, Link)
    return found


def arena(client: Client | AsyncClient) -> FrameArena:
    store = driver(client).depot.store
    assert store is not None
    assert store.shared is not None
    return store.shared


def slots(client: Client | AsyncClient) -> int:
    """How many slots of its arena are in use."""
    return arena(client).slots


def settled(client: Client | AsyncClient) -> bool:
    """No slot is taken any more, once the lifeline was looked at."""
    return link(client).look() and slots(client) == 0
