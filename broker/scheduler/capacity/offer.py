"""What room for a further model would cost on a device, for a router that chooses among several brokers. Pure.

An offer is a stair: so much room is free, so much more if the least valuable worker goes, and so on, each step with
the loss that the policy of this broker sees in it: its first number, then how long ago the last used of them was (as
less than 0 seconds), then its others. So of workers that are worth the same, the one that is unused the longest on any
node goes. A router needs no more to compare brokers, whatever their policy.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from broker.scheduler.capacity.by_priority import may_go
from broker.scheduler.capacity.placement import View, candidates
from zoo.config.schema import ModelPriority

MOST_STEPS = 64


class Offered(NamedTuple):
    """`mb` are free at the price of `loss` (() for nothing). `critical`: only for a model that is CRITICAL."""

    mb: float
    loss: tuple[float, ...] = ()
    critical: bool = False


def offer(view: View, device: str) -> list[Offered]:
    """The stair of a device. Empty where nothing may be started."""
    space = view.spaces[device]
    if space.closed or space.doubtful_until is not None:
        return []
    idle = [c for c in candidates(view, device, (), "", busy=False) if c.mb > 0]
    plain = may_go(idle, ModelPriority.LOW)
    critical = [c for c in idle if c not in plain]
    ordered = [*view.policy.order(plain), *view.policy.order(critical)]
    steps, mb, latest = [Offered(max(0.0, space.coming_mb))], space.coming_mb, -math.inf
    for i, one in enumerate(ordered[:MOST_STEPS]):
        mb += one.mb
        latest = max(latest, one.last_used)
        dearest, *more = view.policy.loss(ordered[: i + 1])
        steps.append(Offered(mb, (dearest, latest - view.now, *more), i >= len(plain)))
    return steps
