"""What a node says of itself, for those that choose among nodes: the answer to `Query("room")`, and whose it is."""

from __future__ import annotations

from typing import Any

import msgspec

from zoo.errors import ProtocolMismatch


class Step(msgspec.Struct, frozen=True, array_like=True):
    """So much room there is at this price. `critical`: only for a model that is CRITICAL. See docs/protocol.md."""

    mb: float
    loss: tuple[float, ...] = ()
    critical: bool = False


class Room(msgspec.Struct, frozen=True):
    """A device."""

    budget_mb: float
    limit_mb: float
    steps: tuple[Step, ...]


class Residency(msgspec.Struct, frozen=True, array_like=True):
    """Where a model stands on the node. `requests`: wait for it or are under way."""

    state: str
    requests: int


class NodeReport(msgspec.Struct, frozen=True):
    """A node.

    Attributes:
        number: counts up with each report of the node, from 1.
        refuses: models that the node does not serve by its labels.
    """

    devices: dict[str, Room]
    models: dict[str, Residency]
    needs: dict[str, dict[str, float]]
    requests: int = 0
    stopping: bool = False
    number: int = 0
    refuses: frozenset[str] = frozenset()


def read(value: Any) -> NodeReport:
    """A report out of plain values. Raises ProtocolMismatch."""
    try:
        return msgspec.convert(value, NodeReport)
    except msgspec.ValidationError as e:
        raise ProtocolMismatch(f"a node's report cannot be read: {e}") from None


def plain(report: NodeReport) -> dict[str, Any]:
    """Of values that every transport takes."""
    found: dict[str, Any] = msgspec.to_builtins(report)
    return found
