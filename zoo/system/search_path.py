"""Where Python looks for modules, when the zoo is a program of its own: the working directory comes last.

`python -m` puts it first. A user's own `workers/`, `broker/` or `queue.py` there, beside config.toml, would then be
imported instead of ours, or of the standard library's. Adapters in it are found all the same.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def put_ours_first() -> None:
    """To be called before anything else is imported. A source checkout as the working directory stays first: it is the
    zoo's own.
    """
    if sys.flags.safe_path or not sys.path:
        return
    first = sys.path[0]
    try:
        here = os.getcwd()
    except FileNotFoundError:
        return
    if first in ("", here) and not os.path.samefile(here, ROOT):
        sys.path.append(sys.path.pop(0))


def run(module: str, arguments: list[str]) -> NoReturn:
    """Becomes `python -m MODULE ARGUMENTS`, which finds this very zoo, and nothing in the working directory."""
    environment = dict(os.environ)
    if sys.path and os.path.abspath(sys.path[0]) == ROOT:  # found by nothing but the working directory
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [ROOT, environment.get("PYTHONPATH", "")]))
    os.execve(sys.executable, [sys.executable, "-P", "-m", module, *arguments], environment)
