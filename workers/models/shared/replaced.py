"""Names in other people's modules, replaced for a while: where a library has no setting for what it should not do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def replaced(*names: tuple[Any, str, Any]) -> Iterator[None]:
    """Args: (module, name, what to have there instead).

    Raises:
        AttributeError: a release of the library knows no such name, so what it was replaced for has to be found anew.
    """
    with contextlib.ExitStack() as after:
        for place, name, instead in names:
            after.callback(setattr, place, name, getattr(place, name))
            setattr(place, name, instead)
        yield
