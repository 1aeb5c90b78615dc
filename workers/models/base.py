"""What an adapter is. To add a model of your own, write one of these and name it in config.toml:

    [[models]]
    name = "brightness"
    adapter = "my_package.brightness:Brightness"     # module:Class, importable by the worker
    vram_mb = 50

`load` runs once in the model's own process, `predict` once per request, never two at a time. Both may raise:
from `load` that fails the load, from `predict` it fails that request alone. Raise `zoo.InvalidInput` with the
name of the field when the caller is to blame. Let an error that means that memory ran out pass, or raise `LoadFailed`
from it: the zoo knows it (`workers/memory.py`), halves the batch, has memory freed, and tries once more.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, get_args, get_origin, get_type_hints

import msgspec
import numpy as np

from workers.camera import Picture
from zoo.errors import InvalidInput, LoadFailed, ModelUnavailable
from zoo.results import AnyResult

__all__ = [
    "Adapter", "AnyResult", "Input", "Spec", "chunks", "images", "load_options", "read_options", "require_image",
    "require_numbers", "require_trust",
]  # fmt: skip


class Spec(msgspec.Struct, frozen=True):
    """The model's part of config.toml, as its adapter sees it.

    Attributes:
        path: the weights (file or folder), absolute; None where config.toml names none.
        options: the `options` table, for the adapter to interpret.
        threads: CPU threads this process should use.
        trust_pickle: the operator trusts the weights, which may be a pickle: see `require_trust`.
    """

    name: str
    path: Path | None = None
    category: str = ""
    options: dict[str, Any] = {}
    threads: int = 1
    trust_pickle: bool = False


class Input:
    """One thing to predict.

    Attributes:
        array: read-only. HxWx3 RGB uint8 for images, already decoded, cropped and in RGB order (it may be a
            strided view: a crop, or a BGR frame looked at backwards); whatever was sent otherwise.
        frames: all frames of a video request; `[array]` for a single one.
        options: the caller's keyword arguments.
        whole: the frame that `array` is cut from, for models that look around a box. One object for all boxes of a
            frame; `array` itself where the whole frame was asked for.
        box: (x1, y1, x2, y2), pixel bounds of `array` in `whole`; None where the whole frame was asked for.
        sources: the frames as they came; one of a camera (NV12, grey, …) is converted when `array`, `frames` or `whole`
            is first read, and only what is read of it.

    Answers are in coordinates of `array`, whatever the model looked at.
    """

    __slots__ = ("_array", "_frames", "box", "options", "sources")

    def __init__(
        self,
        array: np.ndarray | Picture,
        options: dict[str, Any],
        frames: Sequence[np.ndarray | Picture] | None = None,
        *,
        whole: np.ndarray | Picture | None = None,
        box: tuple[int, int, int, int] | None = None,
    ) -> None:
        self._array = array
        self._frames: list[np.ndarray] | None = None
        self.options = options
        self.sources = frames or [array if whole is None else whole]
        self.box = box

    @property
    def array(self) -> np.ndarray:
        found = self._array
        if not isinstance(found, np.ndarray):
            found = self._array = found.whole() if self.box is None else found.part(self.box)
        return found

    @property
    def frames(self) -> list[np.ndarray]:
        if self._frames is None:
            self._frames = [self.array] if self.box is not None else [_converted(one) for one in self.sources]
        return self._frames

    @property
    def whole(self) -> np.ndarray:
        return _converted(self.sources[0])


def _converted(source: np.ndarray | Picture) -> np.ndarray:
    return source if isinstance(source, np.ndarray) else source.whole()


class Adapter(Protocol):
    """The two methods of an adapter.

    An attribute `max_batch` (of the class, or set by `load`) says how many requests `predict` may get at once. Without
    it, 1: a batch is worth while only where several take hardly longer than one, for its first waits for its last.
    An attribute `max_frames` says how many frames of a video it takes; more are refused before they are decoded.
    Without it, as many as a request can have.
    An attribute `labels`, set by `load`, says what its answers call the classes: texts in the order of the classes'
    numbers, spelled as in the answers; for a model that is asked with prompts, those of config.toml. `zoo ls --labels`
    and `Client.models` tell them. Without it, there are none to tell.
    """

    def load(self, spec: Spec, device: str) -> None:
        """Weights in, onto `device` ("cpu" or "cuda:0"). Raise to fail the load."""

    def predict(self, inputs: list[Input]) -> list[AnyResult]:
        """One answer per input, in order."""


# ---------------------------------------------------------------- what adapters share

OptionsT = TypeVar("OptionsT", bound=msgspec.Struct)
ItemT = TypeVar("ItemT")


def read_options(
    configured: dict[str, Any], asked: dict[str, Any], kind: type[OptionsT], fixed: tuple[str, ...] = ()
) -> OptionsT:
    """The model's own options with the caller's over them, as `kind` (a Struct that forbids unknown fields).

    How much memory a model takes is config.toml's to say: of `max_batch` a caller may ask for less, not for more.

    Args:
        fixed: options that count when the model is loaded, and so cannot come with a request.

    Raises:
        InvalidInput: naming the option that is unknown, fixed or of the wrong type, and those that there are.
    """
    if late := sorted(asked.keys() & set(fixed)):
        raise InvalidInput(f"options: {late[0]} is set in config.toml, when the model is loaded, not with a request")
    values = {**configured, **asked}
    for name, value in values.items():
        if value != value:  # msgspec's bounds let it through
            raise InvalidInput(f"options: {name} is not a number (NaN)")
    try:
        options = msgspec.convert(values, kind)
    except msgspec.ValidationError as e:
        takes = ", ".join(name for name in kind.__struct_fields__ if name not in fixed)
        raise InvalidInput(f"options: {_wrong(e, kind)}" + (f"; this model takes {takes}" if takes else "")) from None
    if "max_batch" in asked:
        asked_for, most = (msgspec.structs.asdict(o)["max_batch"] for o in (options, msgspec.convert(configured, kind)))
        if asked_for > most:
            raise InvalidInput(f"options: max_batch: {asked_for} is more than the {most} that config.toml allows")
    return options


def _wrong(error: msgspec.ValidationError, kind: type[msgspec.Struct]) -> str:
    """What is wrong with which option, the option first; of one that names a choice, what there is to choose from."""
    said, _, place = str(error).partition(" - at `$.")
    if not place:
        unknown = re.fullmatch(r"Object contains unknown field `(.*)`", said, re.DOTALL)
        if unknown is None:
            return said
        more = ", and it takes no dict of arrays as frame" if unknown[1] == "inputs" else ""  # which that becomes
        return f"{unknown[1]:.100} is no option of this model{more}"
    option = place.removesuffix("`")
    choices = _choices(get_type_hints(kind).get(option)) if said.startswith("Invalid enum value") else ()
    said = said[0].lower() + said[1:].replace("`", "")
    return f"{option}: {said}" + (f"; it is one of {', '.join(map(str, choices))}" if choices else "")


def _choices(hint: Any) -> tuple[Any, ...]:
    """The values of a Literal, also of one that may be None."""
    found = get_args(hint)
    return next((get_args(one) for one in found if get_origin(one) is Literal), found)


def load_options(spec: Spec, kind: type[OptionsT]) -> OptionsT:
    """The options of config.toml.

    Raises:
        LoadFailed: one of them is unknown or of the wrong type.
    """
    with configured(spec):
        return read_options(spec.options, {}, kind)


@contextlib.contextmanager
def configured(spec: Spec) -> Iterator[None]:
    """Around what is done with the options of config.toml: raises LoadFailed in place of InvalidInput."""
    try:
        yield
    except InvalidInput as e:
        raise unservable(spec, f"options in config.toml: {e}") from e


def unservable(spec: Spec, why: str) -> LoadFailed:
    """What to raise when a retry of the load cannot help."""
    return LoadFailed(f"{spec.name}: {why}", retryable=False)


def damaged(spec: Spec, why: str) -> LoadFailed:
    """What to raise when the weights, or what lies beside them, are not what was published."""
    return unservable(spec, f"{why}; fetch it again: zoo pull {spec.name}, or by hand where it has no `source`")


def not_there(spec: Spec, why: str) -> ModelUnavailable:
    """What to raise when weights, or what belongs to them, are missing."""
    return ModelUnavailable(f"{spec.name}: {why}; fetch it: zoo pull {spec.name}, or by hand where it has no `source`")


def require_trust(spec: Spec, file: Path) -> None:
    """To be called before a pickle is read, which can run code of its own.

    Raises:
        LoadFailed: config.toml does not say `trust_pickle = true` for this model.
    """
    if not spec.trust_pickle:
        raise unservable(
            spec,
            f"{file} is a pickle, which can run code of its own while it is read; if you trust where it "
            "came from, say trust_pickle = true for this model in config.toml, else convert it to safetensors",
        )


def require_numbers(spec: Spec, *answers: np.ndarray) -> None:
    """To be called with what a network answers to a blank picture, at the end of its load.

    Raises:
        LoadFailed: it is NaN or infinite, for which JSON has no word, and by which nothing can be put in order.
    """
    if not all(np.isfinite(answer).all() for answer in answers):
        raise unservable(
            spec,
            f"{spec.path} answers a blank picture with what is not a number: its weights are damaged, or their sums "
            "too large for half precision (half = true)",
        )


def images(inputs: list[Input]) -> list[np.ndarray]:
    """The pictures of a batch, each HxWx3 uint8 with at least one pixel.

    Raises:
        InvalidInput: naming what one of them is instead.
    """
    found = [require_image(item) for item in inputs]
    for frame in found:
        if frame.size == 0:
            raise InvalidInput(f"frame: it has no pixels, its shape is {frame.shape}")
    return found


def chunks(items: Sequence[ItemT], size: int) -> Iterator[Sequence[ItemT]]:
    """`items` in order, at most `size` at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


_HINTS: dict[tuple[str, tuple[int, ...] | str], str] = {  # by type and what comes after height and width
    ("uint8", "flat"): '; the bytes of a JPEG or PNG file go with color="encoded"',
    ("uint8", ()): '; HxW frames go with color="gray", YUV of (H * 3/2, W) with color="nv12" or "i420"',
    ("uint8", (1,)): '; of one channel, send frame[..., 0] with color="gray"',
    ("uint8", (4,)): "; of four channels, send frame[..., :3]",
    ("uint16", "any"): "; 16-bit frames go with scale=(lo, hi)",
    ("float32", "any"): "; of 0 to 1, send (frame * 255).astype(numpy.uint8)",
    ("float64", "any"): "; of 0 to 1, send (frame * 255).astype(numpy.uint8)",
}


def require_image(item: Input) -> np.ndarray:
    """`item.array` if it is an HxWx3 uint8 image, and all that was sent.

    Raises:
        InvalidInput: naming what it is instead.
    """
    if len(item.frames) > 1:
        raise InvalidInput(f"frame: this model takes one image, got a video of {len(item.frames)} frames")
    array = item.array
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        name, channels = array.dtype.name, array.shape[2:] if array.ndim > 1 else "flat" if array.ndim else ""
        hint = _HINTS.get((name, channels)) or _HINTS.get((name, "any"), "")
        raise InvalidInput(
            f"frame: this model takes HxWx3 uint8 images, got shape {array.shape} of {array.dtype}{hint}"
        )
    return array
