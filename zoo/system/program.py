"""How a program of the zoo's begins: where Python looks for modules, and its standard streams.

The working directory comes last, although `python -m` puts it first. A user's own `workers/`, `broker/` or `queue.py`
there, beside config.toml, would then be imported instead of ours, or of the standard library's. Adapters in it are
found all the same.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from argparse import ArgumentParser  # at run time only after `put_ours_first`

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


def environment() -> dict[str, str]:
    """For a further process `python -P -m MODULE` that finds this very zoo, and nothing in the working directory."""
    environment = dict(os.environ)
    if sys.path and os.path.abspath(sys.path[0]) == ROOT:  # found by nothing but the working directory
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [ROOT, environment.get("PYTHONPATH", "")]))
    return environment


def run(module: str, arguments: list[str]) -> NoReturn:
    """Becomes `python -m MODULE ARGUMENTS`, as `environment` says."""
    os.execve(sys.executable, [sys.executable, "-P", "-m", module, *arguments], environment())


def add_arguments(parser: ArgumentParser, endpoint: str) -> None:
    """Those that every program that serves has. `endpoint`: the help of that one."""
    parser.add_argument(
        "--config", metavar="FILE", help="config.toml (default: $ZOO_CONFIG, ./config.toml, the shipped one)"
    )
    parser.add_argument("--endpoint", help=endpoint)
    parser.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    parser.add_argument("--log-format", default="text", choices=["text", "json"], help="json: one object per line")


def open_streams() -> bool:
    """Gives closed descriptors 0 to 2 to /dev/null; else the next file or socket would get them, and with them whatever
    a library prints. True: standard output was closed, so what is printed is lost.
    """
    lost = sys.stdout is None
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != fd:  # another thread took the number in between
                os.dup2(opened, fd)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, open(fd, "w" if fd else "r", closefd=False, errors="backslashreplace"))  # noqa: SIM115
    return lost


def one_line(text: str) -> str:
    """For a terminal or a log: on one line, and without what UTF-8 cannot say (undecodable bytes, which Python keeps as
    lone surrogates).
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
