"""The command line, from its parsers."""

from __future__ import annotations

import argparse
import os
from unittest import mock

from docs.site import markdown
from workers.models.standins import __main__ as standins
from zoo import broker
from zoo.cli import parser
from zoo.gateway import __main__ as gateway

PROGRAMS = {"serve": broker.parser(), "gateway": gateway.parser(), "standins": standins.parser()}


def page() -> str:
    made = parser.build(PROGRAMS)
    parts = [markdown.block(_help(made))]
    for name, one in _commands(made).items():
        parts += [f"## zoo {name}", markdown.block(_help(one))]
    return "\n\n".join(parts)


def _commands(made: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (commands,) = (action for action in made._actions if isinstance(action, argparse._SubParsersAction))
    return dict(commands.choices)


def _help(made: argparse.ArgumentParser) -> str:
    with mock.patch.dict(os.environ, COLUMNS="100", NO_COLOR="1"):
        return made.format_help()
