"""A link to the broker's socket, for clients that know less of this user's surroundings than the broker does.

The default endpoint lies in $XDG_RUNTIME_DIR, which a service manager, a cron job or `su` may not set. A broker there
leaves a link in the folder where a client without the variable looks; a client takes it from its own user only.
"""

from __future__ import annotations

import contextlib
import os

from broker.front import listening
from zoo.errors import ConfigError


class Signpost:
    """A link at `path` to `target`, where nothing else has that name."""

    def __init__(self, path: str, target: str) -> None:
        self.path = path
        self._target = target

    def put(self) -> None:
        """Puts it up if it is not there. What cannot be linked is left: the broker has an endpoint without it."""
        with contextlib.suppress(OSError, ConfigError):
            if not self._stands():
                listening.clear(self.path, self.path)
                os.symlink(self._target, self.path)

    def remove(self) -> None:
        if self._stands():
            with contextlib.suppress(OSError):
                os.unlink(self.path)

    def _stands(self) -> bool:
        try:
            return os.readlink(self.path) == self._target
        except OSError:
            return False
