"""What an adapter is. To add a model of your own, write one of these and name it in config.toml:

    [[models]]
    name = "brightness"
    adapter = "my_package.brightness:Brightness"     # module:Class, importable by the worker
    vram_mb = 50

`load` runs once in the model's own process, `predict` once per request, never two at a time. Both may raise:
from `load` that fails the load, from `predict` it fails that request alone. Raise `zoo.InvalidInput` with the
name of the field when the caller is to blame.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
import numpy as np

from zoo.errors import InvalidInput
from zoo.results import AnyResult

__all__ = ["AnyResult", "Input", "Model", "Spec", "read_options", "require_image"]


class Spec(msgspec.Struct, frozen=True):
    """The model's part of config.toml, as its adapter sees it.

    Attributes:
        path: the weights (file or folder), absolute; None where config.toml names none.
        options: the `options` table, for the adapter to interpret.
        threads: CPU threads this process should use.
    """

    name: str
    path: Path | None = None
    category: str = ""
    options: dict[str, Any] = {}
    threads: int = 1


class Input:
    """One thing to predict.

    Attributes:
        array: read-only. HxWx3 RGB uint8 for images, already decoded, cropped and in RGB order (it may be a
            strided view: a crop, or a BGR frame looked at backwards); whatever was sent otherwise.
        frames: all frames of a video request; `[array]` for a single one.
        options: the caller's keyword arguments.
    """

    __slots__ = ("array", "frames", "options")

    def __init__(self, array: np.ndarray, options: dict[str, Any], frames: list[np.ndarray] | None = None) -> None:
        self.array = array
        self.options = options
        self.frames = [array] if frames is None else frames


class Model(Protocol):
    """The two methods of an adapter."""

    def load(self, spec: Spec, device: str) -> None:
        """Weights in, onto `device` ("cpu" or "cuda:0"). Raise to fail the load."""

    def predict(self, inputs: list[Input]) -> list[AnyResult]:
        """One answer per input, in order."""


OptionsT = TypeVar("OptionsT", bound=msgspec.Struct)


def read_options(configured: dict[str, Any], asked: dict[str, Any], kind: type[OptionsT]) -> OptionsT:
    """The model's own options with the caller's over them, as `kind` (a Struct that forbids unknown fields).

    Raises:
        InvalidInput: naming the option that is unknown or of the wrong type, and those that there are.
    """
    try:
        return msgspec.convert({**configured, **asked}, kind)
    except msgspec.ValidationError as e:
        raise InvalidInput(f"options: {e}; this model takes {', '.join(kind.__struct_fields__)}") from None


def require_image(item: Input) -> np.ndarray:
    """`item.array` if it is an HxWx3 uint8 image.

    Raises:
        InvalidInput: naming what it is instead.
    """
    array = item.array
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise InvalidInput(f"frame: this model takes HxWx3 uint8 images, got shape {array.shape} of {array.dtype}")
    return array
