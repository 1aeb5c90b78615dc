"""Inputs of one model that are not run again, because they ended two of its processes. Pure.

The broker reads no pixels: a worker says the fingerprint of an input before it runs it, when it is told that the
request is a suspect. One whose process died is tried once more, as a suspect, so a second death has a fingerprint. One
that hung is answered at once, without another try: so after a hang the model is *wary*, and the requests that follow
are suspects for a while, `WARY_REQUESTS` of them or `WARY_S`. They run alone and are hashed, a few milliseconds each.
If one of these hangs, its input is taken for the one that did before.

`lift` forgets all of it: the model was unloaded, or its weights, adapter or settings are others.

Nothing is hashed on the normal path. The fingerprint goes over the lifeline before the input runs, so it is in the
kernel's hands before the input can do harm.
"""

from __future__ import annotations

from collections import OrderedDict

KEPT = 64  # fingerprints, the newest
WARY_S, WARY_REQUESTS = 300.0, 200


class Quarantine:
    """`refused`: fingerprints, the oldest first."""

    __slots__ = ("_left", "_until", "refused")

    def __init__(self) -> None:
        self.refused: OrderedDict[bytes, None] = OrderedDict()
        self._left = 0
        self._until = 0.0

    def refuse(self, digest: bytes) -> None:
        """The input is not run again."""
        self.refused[digest] = None
        self.refused.move_to_end(digest)
        while len(self.refused) > KEPT:
            self.refused.popitem(last=False)

    def be_wary(self, now: float) -> None:
        """A process has hung."""
        self._left, self._until = WARY_REQUESTS, now + WARY_S

    @property
    def wary(self) -> bool:
        """Some of the next requests may be suspects."""
        return self._left > 0

    def suspects(self, now: float) -> bool:
        """Whether the next request is one; it counts as that."""
        self._left = self._left - 1 if now < self._until else 0
        return self._left > 0

    def lift(self) -> bool:
        """Forgets everything; True when inputs were refused."""
        had = bool(self.refused)
        self.refused.clear()
        self._left = 0
        return had
