"""A batch of requests: the options of each, passes through the network, and answers in the order of the inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Generic, TypeVar

import msgspec
import numpy as np

from workers.models.base import AnyResult, Input, Spec, chunks, load_options, read_options
from zoo.results import Classification

BatchSize = Annotated[int, msgspec.Meta(ge=1, le=1024)]
TopK = Annotated[int, msgspec.Meta(ge=1)]


class PassOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`max_batch`: inputs in one forward pass. `half`: in half precision; in config.toml alone."""

    max_batch: BatchSize = 32
    half: bool = False


class RankOptions(PassOptions, frozen=True, forbid_unknown_fields=True):
    """`top_k`: how many labels to answer with, the most probable first; None for all."""

    top_k: TopK | None = None


OptionsT = TypeVar("OptionsT", bound=msgspec.Struct)
ItemT = TypeVar("ItemT")
FoundT = TypeVar("FoundT")


class Configured(Generic[OptionsT]):
    """The options of one model.

    Attributes:
        own: those of config.toml.
    """

    def __init__(self, spec: Spec, kind: type[OptionsT], *fixed: str) -> None:
        """Raises LoadFailed.

        Args:
            fixed: options beside `half` that no request may bring.
        """
        self.own = load_options(spec, kind)
        self._given, self._kind = spec.options, kind
        self._fixed = tuple(name for name in ("half", *fixed) if name in kind.__struct_fields__)

    def of(self, inputs: Iterable[Input], said: Callable[[dict[str, Any]], dict[str, Any]] = dict) -> list[OptionsT]:
        """Those of each request over those of config.toml. Raises InvalidInput.

        Args:
            said: what to make of a request's options first.
        """
        return [read_options(self._given, said(item.options), self._kind, self._fixed) for item in inputs]


def in_passes(
    asked: Sequence[PassOptions], items: Sequence[ItemT], forward: Callable[[Sequence[ItemT]], Iterable[FoundT]]
) -> list[FoundT]:
    """What `forward` finds in all items, in as few calls as the smallest `max_batch` allows."""
    size = min((options.max_batch for options in asked), default=1)
    return [found for some in chunks(items, size) for found in forward(some)]


def classified(
    labels: Sequence[str],
    asked: Sequence[RankOptions],
    frames: Sequence[np.ndarray],
    forward: Callable[[Sequence[np.ndarray]], Iterable[np.ndarray]],
    *,
    multi_label: bool = False,
) -> list[AnyResult]:
    """The `top_k` labels of each frame, of which `forward` gives a probability per label."""
    rows = in_passes(asked, frames, forward)
    found = [ranked(labels, row, options.top_k) for row, options in zip(rows, asked, strict=True)]
    return [Classification(labels=names, scores=scores, multi_label=multi_label) for names, scores in found]


def by_options(
    asked: Sequence[OptionsT], items: Sequence[ItemT], find: Callable[[OptionsT, list[ItemT]], Iterable[FoundT]]
) -> list[FoundT]:
    """What `find` finds in all items, in one call for those whose requests agree in their options."""
    alike: dict[OptionsT, list[int]] = {}
    for i, options in enumerate(asked):
        alike.setdefault(options, []).append(i)
    out: dict[int, FoundT] = {}
    for options, members in alike.items():
        out.update(zip(members, find(options, [items[i] for i in members]), strict=True))
    return [out[i] for i in range(len(asked))]


def ranked(labels: Sequence[str], scores: np.ndarray, top_k: int | None) -> tuple[list[str], np.ndarray]:
    """The `top_k` labels and their scores, from one score per label; the best first."""
    order = np.argsort(-scores, kind="stable")[:top_k]
    return [labels[i] for i in order], scores[order]
