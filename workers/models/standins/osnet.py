"""Stand-in for the vectors of people."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from workers.models.standins.common import Builder, pieces, repeatable, settle

PEOPLE = 1041  # classes of the classifier that published checkpoints bring along, not read here


def osnet(target: Path, seed: int) -> None:
    """Builds a state dict with the published names."""
    import torch

    adapter: Any = import_module("workers.models.osnet")

    with repeatable(seed):
        network = adapter.osnet_x0_25()
        settle(network, adapter.squeezed(pieces(), adapter.HEIGHT, adapter.WIDTH, "cpu", torch.float32))
        classifier = torch.nn.Linear(512, PEOPLE)
    tensors = {**network.state_dict(), **{f"classifier.{k}": v for k, v in classifier.state_dict().items()}}
    torch.save(tensors, target)


STANDINS: dict[str, tuple[str, Builder]] = {"osnet-x0-25": ("osnet-x0-25/osnet_x0_25.pth", osnet)}
