"""Stand-in for the classifier of vehicles."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from workers.models.standins.common import Builder, pieces, repeatable, settle

KINDS = [
    "articulated_truck", "background", "bicycle", "bus", "car", "motorcycle", "non_motorized_vehicle", "pedestrian",
    "pickup_truck", "single_unit_truck", "work_van",
]  # fmt: skip


def vehicle(target: Path, seed: int) -> None:
    """Builds pytorch_model.bin and classes.txt. A whole ResNet-50, for there is no smaller one; its numbers in half
    precision, which halves its 94 MB.
    """
    import torch

    adapter: Any = import_module("workers.models.vehicle")

    with repeatable(seed):
        network = adapter.resnet50(num_classes=len(KINDS))
        torch.nn.init.normal_(network.fc.weight, 0, 0.05)  # a fresh head answers every label alike
        settle(network, adapter.squeezed(pieces(), adapter.SIDE, adapter.SIDE, "cpu", torch.float32))
    target.mkdir(parents=True)
    torch.save(network.half().state_dict(), target / "pytorch_model.bin")
    (target / "classes.txt").write_text("\n".join(KINDS) + "\n", encoding="utf-8")


STANDINS: dict[str, tuple[str, Builder]] = {
    "vehicle-segment-classification": ("vehicle-segment-classification", vehicle),
}
