"""`zoo completion`: a script that a shell reads, so that it completes the commands, their options and what they take.

shtab writes it from the parser. What it is to complete beyond names of options, an argument's METAVAR tells.
"""

from __future__ import annotations

import argparse
from typing import Any

SHELLS = ("bash", "zsh")
NAMES = """zoo ls --json 2>/dev/null | tr ',{' '\\n\\n' | sed -n 's/^ *"name": *"\\(.*\\)".*$/\\1/p'"""
MODELS = {
    "bash": f'_zoo_models() {{ compgen -W "$({NAMES})" -- "$1"; }}',
    "zsh": f'_zoo_models() {{ local -a names; names=(${{(f)"$({NAMES})"}}); compadd -a names; }}',
}


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """For a shell of `SHELLS`."""
    import shtab

    models = dict.fromkeys(SHELLS, "_zoo_models")
    kinds: dict[str, Any] = dict.fromkeys(("FILE", "IMAGE", "OUT.png"), shtab.FILE)
    kinds |= {"FOLDER": shtab.DIRECTORY, "MODEL": models, "MODEL|REQUEST": models}
    for action in _actions(parser):
        if isinstance(action.metavar, str) and action.metavar in kinds:
            action.complete = kinds[action.metavar]  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell, preamble=MODELS[shell]))


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Of the parser, and of its commands'."""
    found = list(parser._actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += [one for made in action.choices.values() for one in _actions(made)]
    return found
