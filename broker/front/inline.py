"""How many bytes of frames and answers the broker holds, for which client, and which one is refused. Only numbers.

Where memory is shared, messages are small and count for nothing here. Where it is not, frames and answers travel in the
messages themselves, and lie in the broker while they wait for a worker, or for a client that reads.

All clients together have `inline_budget_mb`, one client half of it, one message `max_inline_mb`.
"""

from __future__ import annotations

from zoo.errors import InvalidInput, QueueFull

MB = 1 << 20
FREE_BYTES = 4 << 10  # smaller messages are bounded well enough by how many of them may wait
HEADROOM_BYTES = 128 << 10  # of a part: what a header, or the description of a frame, may have beside the frame's bytes
RETRY_S = 0.2


def part_bytes(max_inline_mb: int) -> int:
    """The largest part of a message that libzmq should take in at all."""
    return max_inline_mb * MB + HEADROOM_BYTES


class InlineBytes:
    """The account of one broker.

    Attributes:
        held: bytes in it. most: that it may hold. most_one: bytes of one message.
    """

    def __init__(self, max_inline_mb: int, budget_mb: int) -> None:
        self.held = 0
        self.most = budget_mb * MB
        self._most_each = self.most // 2
        self.most_one = part_bytes(max_inline_mb)
        self._max_inline_mb, self._budget_mb = max_inline_mb, budget_mb

    def check(self, size: int, of_client: int) -> None:
        """Whether a client that has `of_client` bytes here may leave `size` more.

        Raises:
            InvalidInput: never. QueueFull: not now.
        """
        if size > self.most_one:
            raise InvalidInput(
                f"frame: {size / MB:.1f} MB in one message; the broker takes {self._max_inline_mb} MB "
                "([broker] max_inline_mb): share memory (an ipc:// endpoint), send an encoded image, or raise it"
            )
        if of_client + size > self._most_each or self.held + size > self.most:
            mine = of_client + size > self._most_each
            text = f"{(of_client if mine else self.held) / MB:.0f} MB of "
            text += "this client's frames" if mine else "frames and answers"
            raise QueueFull(
                f"{text} wait in the broker already, and {size / MB:.0f} MB more do not fit "
                f"([broker] inline_budget_mb = {self._budget_mb}, half of it for one client): "
                "wait for answers, or raise it",
                retry_after=RETRY_S,
            )

    def fits(self, size: int) -> bool:
        return self.held + size <= self.most


class Arrivals:
    """Large messages of workers on their way in: one at a time goes in any case, more while they fit.

    Attributes:
        most: bytes of them at once, and so of one.
    """

    def __init__(self, max_inline_mb: int) -> None:
        self.most = 2 * part_bytes(max_inline_mb)
        self._held = 0

    def make_room(self, size: int) -> bool:
        if self._held and self._held + size > self.most:
            return False
        self._held += size
        return True

    def give_back(self, size: int) -> None:
        self._held -= size
