"""What this door keeps from request to request."""

from __future__ import annotations

from zoo.errors import ModelNotFound
from zoo.gateway.doors.kserve.regions import Regions
from zoo.gateway.doors.kserve.statistics import Statistics

VERSION = "1"  # of every model


class KServe:
    """Handlers get it as their argument `kserve`."""

    def __init__(self) -> None:
        self.regions = Regions()
        self.statistics = Statistics()


def check_version(model: str, version: str) -> None:
    """Raises ModelNotFound."""
    if version not in ("", VERSION):
        raise ModelNotFound(f"{model}: there is no version {version!r:.40}; each model has version {VERSION}")
