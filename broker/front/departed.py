"""Results of sessions that have ended, while their processes still look at them.

A slot in a worker's arena goes back when its last array is gone, or the process. So whatever ends a session (the client
closes, talks nonsense, does not read its lifeline), its line stays open, in this direction only, until everything was
given back or its end-of-file comes.
"""

from __future__ import annotations

Slot = tuple[int, int]  # (arena, offset)


class Departed:
    def __init__(self) -> None:
        self._results: dict[bytes, set[Slot]] = {}

    def __len__(self) -> int:
        return len(self._results)

    def keep(self, key: bytes, results: set[Slot]) -> None:
        self._results[key] = results

    def release(self, key: bytes, slot: Slot) -> bool:
        """False when the session does not have that slot."""
        found = self._results.get(key, set())
        if slot not in found:
            return False
        found.discard(slot)
        return True

    def is_done(self, key: bytes) -> bool:
        """Everything was given back."""
        return not self._results.get(key)

    def forget(self, key: bytes) -> set[Slot]:
        """The process is gone; what it had."""
        return self._results.pop(key, set())
