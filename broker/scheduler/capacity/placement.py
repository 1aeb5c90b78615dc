"""On which device a model is placed, among those that have room for it now. Pure; who has to go is not told here.

Models on one device share its computing power, so the work should be spread: the device with the most room left is the
best. But room that is left in small pieces on every device makes the next large model evict somebody. So a place is
kept for the largest model that is not loaded and would fit now: the rest goes where that place remains.
"""

from __future__ import annotations

from collections.abc import Iterable

from broker.scheduler.capacity.ledger import EPSILON_MB

MODELS_IN_DOUBT = 3
DOUBT_S = 60.0


def choose(need: dict[str, float], room: dict[str, float], absent: Iterable[dict[str, float]]) -> str:
    """The device to load on.

    Args:
        need: MB by device, of those that have room for the model.
        room: free MB of every device.
        absent: what each model that is not loaded needs, by device.
    """
    left = {device: room[device] - mb for device, mb in need.items()}
    good = list(need)
    if len(good) > 1:
        fitting = ({d: mb for d, mb in other.items() if mb <= room[d] + EPSILON_MB} for other in absent)
        largest = max(filter(None, fitting), key=lambda other: min(other.values()), default={})
        good = [d for d in good if any(at != d or mb <= left[d] + EPSILON_MB for at, mb in largest.items())] or good
    return max(good, key=lambda device: left[device])


class Doubts:
    """Devices on which nothing loads any more, though they look empty and would attract every load.

    When the last loads of `MODELS_IN_DOUBT` different models have failed on a device, with none succeeding in between,
    it is in doubt for `DOUBT_S`; a load that succeeds there clears it. One broken model cannot bring that about.
    """

    def __init__(self) -> None:
        self._failed: dict[str, set[str]] = {}
        self._until: dict[str, float] = {}

    def failed(self, device: str, model: str, now: float) -> bool:
        """A load has failed. True when the device is in doubt, from now on or still."""
        models = self._failed.setdefault(device, set())
        models.add(model)
        if len(models) < MODELS_IN_DOUBT:
            return False
        self._until[device] = now + DOUBT_S
        return True

    def loaded(self, device: str) -> None:
        self._failed.pop(device, None)
        self._until.pop(device, None)

    def until(self, device: str, now: float) -> float | None:
        """When the doubt about the device ends; None when there is none."""
        until = self._until.get(device, now)
        return until if until > now else None
