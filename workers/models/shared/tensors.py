"""Torch's storages outside a pickle: what `workers/copies.py` needs to know of torch and transformers, nothing else.

A storage becomes a buffer beside the pickle, as protocol 5 has it, and is made again around the very memory that the
buffer lies in, without a copy, or copied to the device that it came from. Tensors, parameters and modules are then
pickled by torch's own rules, which also keep storages shared that were.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch


def reduce(value: Any, beside: Callable[[Any], Any], protocol: int) -> Any:
    """For `reducer_override` of a pickler.

    Args:
        beside: marks an array as a buffer that goes beside the pickle.
    """
    if type(value) is torch.UntypedStorage and value.device.type in ("cpu", "cuda"):
        if not value.nbytes():
            return torch.UntypedStorage, (0,)
        flat = torch.tensor([], dtype=torch.uint8).set_(value.cpu())
        return _storage, (beside(flat.numpy()), str(value.device))
    if type(value) is torch.storage.TypedStorage:
        return _typed, (value._untyped_storage, value.dtype)
    transformers = sys.modules.get("transformers.modeling_utils")
    if transformers is not None and isinstance(value, transformers.PreTrainedModel):
        make, args, state, *rest = value.__reduce_ex__(protocol)
        return make, args, state, *rest, _enter_transformers
    return NotImplemented


def use_threads(threads: int) -> None:
    """What an adapter's `load` does first."""
    torch.set_num_threads(threads)


def _storage(buffer: Any, device: str) -> Any:
    storage = torch.frombuffer(buffer, dtype=torch.uint8).untyped_storage()
    return storage if device == "cpu" else storage.to(device=torch.device(device))


def _enter_transformers(model: Any, state: dict[str, Any]) -> None:
    """Once per process, `PreTrainedModel.__init__` notes which outputs a class can give; nothing works without."""
    from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

    model.__setstate__(state)
    _CAN_RECORD_REGISTRY[model] = model._can_record_outputs


def _typed(storage: Any, dtype: torch.dtype) -> Any:
    return torch.storage.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)
