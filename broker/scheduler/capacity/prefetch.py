"""`prefetch`: which model will probably be asked for next. Advice only; `room.py` loads it, where that costs nothing.

A model that is loaded ahead is a guess. It is made in free room alone, while nobody waits for anything. It goes before
any other model when somebody needs its room, and its load ends when anybody needs one. A guess that was wrong is not
made again before the model has been asked for.
"""

from __future__ import annotations

from collections.abc import Iterable

from broker.scheduler.capacity.habits import Habits
from broker.scheduler.events import State
from broker.scheduler.residency import Residency

LEAST = 0.5  # how probable it has to be that the model is among the next requests


def likely(habits: Habits, asked: str, models: Iterable[Residency], now: float) -> list[tuple[float, Residency]]:
    """Models that are worth a guess after a request for `asked`, with how probably they follow, the surest first.

    Only those that have been loaded before: nothing is known of the others' weights and memory.
    """
    found = [(habits.follows(asked, m.name), m) for m in models if _may(m, now)]
    return sorted(((p, m) for p, m in found if p >= LEAST), key=lambda guess: (-guess[0], guess[1].name))


def _may(model: Residency, now: float) -> bool:
    return (
        model.state is State.UNLOADED
        and model.config.available
        and not (model.leaving or model.pinned or model.misguessed or model.others)
        and now >= model.retry_at
    )
