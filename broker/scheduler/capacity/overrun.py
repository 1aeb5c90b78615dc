"""Where more is charged than may be: which workers go until it fits. Pure.

That comes about when a worker turns out to use more than it was charged, when other programs leave less of a device, or
when a budget is made smaller. Idle workers go at once, CRITICAL ones last, but not one more than needed. A process that
alone has grown beyond the whole budget goes first, whatever its priority, when it has done what it has: others that
went for it would go for nothing.

CRITICAL goes too, because memory that is not there protects no model. Nothing is started on the device meanwhile, so no
decision makes an overrun larger.
"""

from __future__ import annotations

import msgspec

from broker.scheduler.capacity.by_priority import Candidate
from broker.scheduler.capacity.ledger import EPSILON_MB
from broker.scheduler.capacity.placement import View, candidates
from broker.scheduler.state import State, Worker
from zoo.config.schema import ModelPriority


class Relief(msgspec.Struct):
    """What goes, and by how many MB it does not suffice. `oversized`: processes that alone exceed the budget."""

    oversized: list[Worker]
    victims: list[Candidate]
    short_mb: float


def short_mb(device: str, view: View) -> float:
    """By how much more is charged than may be, also when all has gone that is going."""
    space = view.spaces[device]
    if space.free_mb >= -EPSILON_MB:
        return 0.0
    draining = [w for w in view.workers if w.device == device and w.state is State.DRAINING and _is_oversized(w, view)]
    return -space.coming_mb - sum(w.mb for w in draining)


def relieve(device: str, view: View) -> Relief:
    """What has to go from the device, now."""
    short = short_mb(device, view)
    if short <= EPSILON_MB:
        return Relief([], [], 0.0)
    there = [w for w in view.workers if w.device == device and w.state is State.LOADED and not w.held]
    oversized = [w for w in there if _is_oversized(w, view)]
    if oversized:
        return Relief(oversized, [], short)
    idle = [c for c in candidates(view, device, (), "", busy=False) if c.mb > 0]
    victims = view.policy.choose(short, idle, ModelPriority.CRITICAL)
    if victims is not None:
        return Relief([], victims, 0.0)
    return Relief([], idle, short - sum(c.mb for c in idle))


def _is_oversized(worker: Worker, view: View) -> bool:
    most = max(view.spaces[worker.device].budget_mb, worker.model.need_mb(worker.device))
    return worker.mb > most + EPSILON_MB
