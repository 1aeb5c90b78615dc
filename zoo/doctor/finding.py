"""What an examination gives: one finding for each thing that was looked at."""

from __future__ import annotations

from typing import Literal, NamedTuple

OK: Literal["ok"] = "ok"
WARNING: Literal["warning"] = "warning"  # it works, but not as it could
WRONG: Literal["wrong"] = "wrong"


class Finding(NamedTuple):
    """One line.

    Attributes:
        about: what was looked at, in a word or two.
        message: what is there.
        remedy: what to do; "" where nothing has to be done.
    """

    about: str
    state: Literal["ok", "warning", "wrong"]
    message: str
    remedy: str = ""
