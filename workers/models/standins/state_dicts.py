"""Stand-ins for checkpoints that are state dicts: the vectors of people, the classifier of vehicles."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from workers.models.standins.common import Builder, pieces, repeatable, settle, spelled

PEOPLE = 1041  # classes of the classifier that published checkpoints bring along, not read here
KINDS = [
    "articulated_truck", "background", "bicycle", "bus", "car", "motorcycle", "non_motorized_vehicle", "pedestrian",
    "pickup_truck", "single_unit_truck", "work_van",
]  # fmt: skip


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


def vehicle(target: Path, seed: int) -> None:
    """Builds pytorch_model.bin and classes.txt. A whole ResNet-50, for there is no smaller one; its numbers in half
    precision, which halves its 94 MB.
    """
    import torch

    adapter: Any = import_module("workers.models.vehicle")

    with repeatable(seed):
        network = adapter.resnet50(num_classes=len(KINDS))
        torch.nn.init.normal_(network.fc.weight, 0, 0.05)  # a fresh head answers every label alike
        settle(network, adapter.pictures.squeezed(pieces(), adapter.SIDE, adapter.SIDE, "cpu", torch.float32))
    target.mkdir(parents=True)
    torch.save(network.half().state_dict(), target / "pytorch_model.bin")
    (target / "classes.txt").write_text("\n".join(spelled(KINDS)) + "\n", encoding="utf-8")


STANDINS: dict[str, tuple[str, Builder]] = {
    "osnet-x0-25": ("osnet-x0-25/osnet_x0_25.pth", osnet),
    "vehicle-segment-classification": ("vehicle-segment-classification", vehicle),
}
