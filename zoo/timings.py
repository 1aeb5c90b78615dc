"""Where the time of one answer went, as it travels and as the caller sees it."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

FIELDS = ("queue", "load", "dispatch", "preprocess", "infer", "postprocess", "total")


class Timings(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Seconds, by the broker's clock. `dict(timings)` and `timings["queue"]` have them by name, too.

    All are 0 where they are not known: a broker of an earlier release, or a result that came from no broker.

    Attributes:
        queue: it waited: for room, for the requests before it, for its batch.
        load: it waited while the process that ran it was loading the model.
        infer: the adapter's `predict`, with all the requests of its batch.
        total: from being accepted by the broker to being answered.
        preprocess, postprocess: its batch was read (decoded, cropped), and its results were packed.
    """

    queue: float = 0.0
    load: float = 0.0
    infer: float = 0.0
    total: float = 0.0
    preprocess: float = 0.0
    postprocess: float = 0.0

    @property
    def dispatch(self) -> float:
        """All the rest: its way to the process and back."""
        known = self.queue + self.load + self.preprocess + self.infer + self.postprocess
        return max(0.0, self.total - known)

    def __getitem__(self, name: str) -> float:
        if name not in FIELDS:
            raise KeyError(name)
        return float(getattr(self, name))

    def keys(self) -> tuple[str, ...]:
        """The names, in the order in which the time passes."""
        return FIELDS

    def __iter__(self) -> Iterator[str]:
        return iter(FIELDS)


UNKNOWN = Timings()
