"""Checkpoints that hold tensors by name and nothing else (a state dict), and networks filled from them.

`.safetensors`, or a pickle (`.bin`, `.pth`): that is read with torch's `weights_only` unpickler, which makes tensors
and plain containers, after config.toml has said `trust_pickle = true` (see `base.require_trust`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from workers.models.base import Spec, damaged, require_trust, unservable
from zoo.errors import LoadFailed

WRAPPERS = ("module.", "model.")  # what DataParallel, and a class around the network, put before every name


def read(spec: Spec, file: Path) -> dict[str, Any]:
    """The tensors in `file` by name, on the CPU. A dictionary around them, under "state_dict", is taken off; so is a
    `module.` or `model.` that all names have in common.

    Raises:
        LoadFailed: a pickle that is not trusted; damaged; something else than a state dict.
    """
    try:
        if file.suffix == ".safetensors":
            found = load_file(file)
        else:
            require_trust(spec, file)
            found = torch.load(file, map_location="cpu", weights_only=True)
    except LoadFailed:
        raise
    except Exception as e:
        why = f"{type(e).__name__}: {_start(e)}"
        raise damaged(spec, f"{file} is damaged, or holds something else than tensors by name ({why})") from e
    if isinstance(found, dict):
        found = found.get("state_dict", found)
    if not isinstance(found, dict) or not found or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise unservable(spec, f"{file} does not hold tensors by name (a state dict)")
    while wrapper := next((w for w in WRAPPERS if all(name.startswith(w) for name in found)), ""):
        found = {name.removeprefix(wrapper): value for name, value in found.items()}
    return found


def build(
    spec: Spec, make: Callable[[], Any], tensors: dict[str, Any], what: str, device: str, *, half: bool = False
) -> Any:
    """The network that `make` makes, with these tensors, on the device, in evaluation mode.

    Args:
        what: it in words, for messages: "an OSNet x0.25".

    Raises:
        LoadFailed: a tensor is missing, left over or of another shape: it is another architecture's checkpoint.
    """
    with torch.device("meta"):  # no random numbers are drawn for weights that are replaced anyway
        network = make()
    try:
        network.load_state_dict(tensors, assign=True)
    except RuntimeError as e:
        raise unservable(spec, f"{spec.path} is not a checkpoint of {what}: {_start(e)}") from e
    dtype = torch.float16 if half else torch.float32
    return network.to(device, dtype).eval().requires_grad_(False)


def _start(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
