"""`zoo`: the command line. Reads the arguments, runs one command of the table in `zoo.cli.parser`, and tells errors.

Exit status: 0 done, 1 the zoo refused, 2 wrong usage or configuration, 3 no broker answers, 4 the answer could not be
written, 130 interrupted, 141 the reader of a pipe has gone.
"""

from __future__ import annotations

import io
import sys
from argparse import Namespace

from zoo.cli import output
from zoo.cli.output import CUT_OFF, INTERRUPTED, LOST, USAGE, OutputLost, WrongUsage
from zoo.cli.parser import COMMANDS, build
from zoo.errors import InvalidInput, ZooError
from zoo.system import program


def main(argv: list[str] | None = None) -> int:
    """Runs one command and gives its exit status."""
    given = sys.argv[1:] if argv is None else argv
    as_json = "--json" in given
    lost = program.open_streams()
    for stream in (sys.stdout, sys.stderr):  # a file's name may hold bytes that are no UTF-8, and is shown all the same
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _run(given, lost)
        sys.stdout.flush()
        return status
    except ZooError as e:
        return output.complain(e, as_json)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader has seen enough
        output.give_up(sys.stdout)
        return CUT_OFF
    except OSError as e:
        output.give_up(sys.stdout)
        return output.complain(OutputLost(f"the answer could not be written: {e.strerror or e}"), as_json)


def _run(given: list[str], lost: bool) -> int:
    parser = build()
    try:
        args, rest = parser.parse_known_args(given)
    except SystemExit as e:  # --help, --version
        sys.stdout.flush()
        return LOST if lost else int(e.code or 0)
    if args.command is None:
        if args.json:
            parser.error("there is no command")
        parser.print_help(sys.stderr)
        return USAGE
    command = COMMANDS[args.command]
    if command.arguments is None:  # a program with arguments of its own
        return command.run(args, rest)
    if rest:
        raise WrongUsage(f"unrecognized arguments: {' '.join(rest)} (`zoo {args.command} --help` says more)")
    if lost:
        raise OutputLost("standard output is closed, so nothing was done; send it to /dev/null")
    return command.run(args) if command.wait_s is None else _ask(args, command.wait_s)


def _ask(args: Namespace, wait_s: float) -> int:
    """Runs a command that asks the broker."""
    from zoo.client.client import Client

    try:
        client = Client(args.endpoint, timeout=args.timeout or wait_s)
    except InvalidInput as e:
        raise WrongUsage(str(e)) from None
    with client:
        return COMMANDS[args.command].run(args, client)
