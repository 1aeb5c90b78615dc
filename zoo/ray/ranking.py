"""Which node a request goes to. Pure: from what is known of the nodes to their order, the best first.

The decision, by the first of these that tells two nodes apart:

    1. the model is loaded, or loads, there: requests go where the model is. Among several, the shortest queue of the
       model, then the caller's own node (its frames need no network).
    2. requests of it wait there for its load.
    3. there is free room for it, and no long line of loads that will take it: the node with the fewest loads under way
       or waited for (a device has one at a time), then the one on which most is left, so that the work is spread.
    4. room can be made: again the fewest loads, then the node that loses least, by what its own eviction policy says of
       its workers. Without the line, one node gets all loads: what it has just loaded is what it loses least by.
    5. it would have to wait there for workers in use: the node with the fewest requests.

A node that can never hold the model is left out. When each node that has a model has `copy_at` requests of it, and
fewer than `copies` have it, the best node with free room comes first: demand makes copies, idleness ends them (a
broker evicts what is not used). A copy never costs another model its place.

Ties go by a hash of model and node, so that routers that know the same choose the same, and different models spread.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from zoo.ray.reports import NodeReport, Room

EPSILON_MB = 0.5
LONG_LINE = 2  # loads: behind more of them free room is none, for they will take it
HERE = ("loaded", "loading")


class Need(NamedTuple):
    """A model that a request is for. `mb`: declared."""

    name: str
    mb: float
    critical: bool = False


class Sight(NamedTuple):
    """What a router knows of a node: its last report, and what itself has done since.

    Attributes:
        own: it is the caller's own node.
        sent: requests by model that were sent there and are not answered.
        coming: models sent there that the report does not show yet → MB that they take.
    """

    node: str
    report: NodeReport
    own: bool = False
    sent: Mapping[str, int] = {}
    coming: Mapping[str, float] = {}


class CopyLimits(NamedTuple):
    """`[cluster]` of config.toml."""

    copies: int = 2
    copy_at: int = 16


LIMITS = CopyLimits()


def rank(wanted: Need, sights: Iterable[Sight], limits: CopyLimits = LIMITS) -> list[str]:
    """Nodes that may serve the model, the best first."""
    able = [(score, _spread(wanted.name, one.node), one) for one in sights if (score := _score(wanted, one))]
    scored = sorted(able, key=lambda entry: entry[:2])
    holders = [one for score, _, one in scored if score[0] <= 2]
    crowded = all(requests(wanted.name, one) >= limits.copy_at for one in holders)
    if holders and crowded and len(holders) < limits.copies:
        free = next((entry for entry in scored if entry[0][0] == 3), None)
        if free is not None:
            scored.remove(free)
            scored.insert(0, free)
    return [one.node for *_, one in scored]


def requests(model: str, sight: Sight) -> int:
    """Requests of the model that are at the node, as far as is known: others' sends show in its report only."""
    here = sight.report.models.get(model)
    return max(here.requests if here is not None else 0, sight.sent.get(model, 0))


def _score(wanted: Need, sight: Sight) -> tuple[float, ...]:
    """The least is the best; () where the model can never be."""
    report = sight.report
    if report.stopping or wanted.name in report.refuses:
        return ()
    here = report.models.get(wanted.name)
    if wanted.name in sight.coming or (here is not None and here.state in HERE):
        loads = here is None or here.state != "loaded"
        return 1, requests(wanted.name, sight), loads, not sight.own
    taken = sum(sight.coming.values())
    if here is not None and here.requests:
        return 2, requests(wanted.name, sight), 1, not sight.own
    line = _loads(sight)
    best: tuple[float, ...] = ()
    for name, room in report.devices.items():
        found = _on(room, report.needs.get(wanted.name, {}).get(name, wanted.mb), taken, line, wanted.critical)
        if found and (not best or found < best):
            best = found
    if not best:
        return ()
    return best if best[0] < 5 else (5, report.requests, not sight.own)


def _loads(sight: Sight) -> int:
    """Models that load there, or wait for it: a device loads one at a time."""
    known = sight.report.models
    told = sum(one.state == "loading" or (one.state != "loaded" and one.requests > 0) for one in known.values())
    return told + sum(model not in known for model in sight.coming)


def _on(room: Room, mb: float, taken: float, line: int, critical: bool) -> tuple[float, ...]:
    if mb > room.budget_mb + EPSILON_MB:
        return ()
    for step in room.steps:
        if step.mb - taken + EPSILON_MB >= mb and (critical or not step.critical):
            free = not step.loss and line <= LONG_LINE
            return (3 if free else 4, line, *(step.loss or (-math.inf, -(step.mb - taken - mb))))
    return (5, math.inf)


def _spread(model: str, node: str) -> int:
    return zlib.crc32(f"{model}\0{node}".encode())
