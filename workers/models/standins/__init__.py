"""Stand-ins: small checkpoints with random weights, in the very form and place of the published ones.

They are for machines without the published weights: tests, demonstrations, a laptop without a network. Everything
works as with the real ones (files, labels, shapes, timing of small networks) except that **the answers mean
nothing**. A `STAND-IN` file beside the weights says so, and so does every answer (`stand_in`).

    zoo standins DIR yolo11-face pet-classifier     # names as in config.toml
    zoo standins DIR                                # all of them

One module per family, each with its `STANDINS`: name → (path as in config.toml, builder). The same name always gives
the same weights. Files appear whole or not at all, and weights that the STAND-IN file does not vouch for are taken for
real ones and never touched (see `zoo.weights`).
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from workers.models.standins import classify, clip, dense, detr, state_dicts, yolo
from workers.models.standins.common import Builder
from zoo.errors import ZooError
from zoo.weights import inventory

# Paths are those of config.toml. Labels are those that users of the published checkpoints report, each in one of a few
# spellings (`common.spelled`).
STANDINS: dict[str, tuple[str, Builder]] = {
    **yolo.STANDINS,
    **classify.STANDINS,
    **clip.STANDINS,
    **dense.STANDINS,
    **detr.STANDINS,
    **state_dicts.STANDINS,
}


def place(builder: Builder, target: Path, name: str, seed: int = 0) -> Path:
    """Builds into `target` (a file where it has a suffix, else a folder), whole or not at all, and marks it.

    Raises:
        ZooError: something is there already that is not a stand-in.
    """
    if not inventory.is_missing(target) and not inventory.is_stand_in(target):
        raise ZooError(f"{name}: {target} is not a stand-in and is left alone; remove it first to have one there")
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the last step is a rename within one file system.
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        fresh = Path(scratch) / target.name
        builder(fresh, seed)
        for file in filter(Path.is_file, Path(scratch).rglob("*")):
            file.chmod(0o644)  # safetensors writes for the owner alone; the server may be another user
        marker = inventory.mark_stand_in(fresh, name)
        if target.suffix:
            for beside in sorted({*Path(scratch).iterdir()} - {fresh, marker}):
                if not (target.parent / beside.name).exists():  # a user's own is left alone
                    os.replace(beside, target.parent / beside.name)
            # The marker first: a crash between the two must not leave unmarked random weights.
            os.replace(marker, inventory.marker(target))
        elif target.exists():
            os.replace(target, Path(scratch) / "old")
        os.replace(fresh, target)
    return target


def make(kind: str, directory: str | os.PathLike[str], *, seed: int = 0) -> Path:
    """The stand-in for the catalogue's model `kind`, under the weights folder `directory`.

    Returns:
        Its file or folder.

    Raises:
        ZooError: there is no stand-in of that name, or real weights are in its place.
    """
    if kind not in STANDINS:
        raise ZooError(f"no stand-in for {kind!r}; there are: {', '.join(STANDINS)}")
    relative, builder = STANDINS[kind]
    return place(builder, Path(directory) / relative, kind, seed)
