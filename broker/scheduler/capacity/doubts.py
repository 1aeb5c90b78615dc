"""Devices on which nothing loads any more, though they look empty and would attract every load. Pure.

Where the loads of three different models have failed in a row, nothing that fits elsewhere is loaded for a minute. A
model whose load failed is tried on another device next time, if one has room, but not at once: a broken checkpoint is
broken everywhere.
"""

from __future__ import annotations

MODELS_IN_DOUBT = 3
DOUBT_S = 60.0


class Doubts:
    """When the last loads of `MODELS_IN_DOUBT` different models have failed on a device, with none succeeding in
    between, it is in doubt for `DOUBT_S`; a load that succeeds there clears it. One broken model cannot bring that
    about.
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
