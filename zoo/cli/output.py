"""What the command line writes: a command's answer, remarks, errors; and what becomes of it when it cannot be written.

An answer goes to standard output, as lines or, with `--json`, as one JSON document. Remarks and errors go to standard
error, an error as one line or, with `--json`, as one JSON object on one line.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import sys
from argparse import Namespace
from collections.abc import Iterable
from typing import Any

from zoo.errors import ZooError
from zoo.system.program import one_line

OK, REFUSED, USAGE, UNREACHABLE, LOST, INTERRUPTED, CUT_OFF = 0, 1, 2, 3, 4, 130, 141  # exit statuses
STATUS = {"usage": USAGE, "config_error": USAGE, "broker_unreachable": UNREACHABLE, "output": LOST}  # else REFUSED
WORDS = {"config_error": "configuration", "broker_unreachable": "no broker"}  # else the code


class WrongUsage(ZooError):
    """The command line asks for something that cannot be done as it is written."""

    code = "usage"


class OutputLost(ZooError):
    """The answer could not be written."""

    code = "output"


def say(args: Namespace, value: Any, lines: Iterable[str]) -> int:
    """Prints the answer of a command: `value` with `--json`, else `lines`. Gives the exit status 0."""
    if args.json:
        json.dump(value, sys.stdout, ensure_ascii=False, indent=2, default=lambda array: array.tolist())
        print()
    else:
        for line in lines:
            print(for_terminal(line))
    return OK


def for_terminal(text: str) -> str:
    """Labels, texts that were read and names come from files of others: a terminal is to obey nothing in them."""
    return "\n".join(map(one_line, text.split("\n")))


def remark(text: str) -> None:
    """A line about the answer, after what was printed of it so far."""
    sys.stdout.flush()
    print(f"zoo: {for_terminal(text)}", file=sys.stderr, flush=True)


def complain(e: ZooError, as_json: bool, what: str = "") -> int:
    """Writes an error and gives its exit status. `what`: how the line begins, instead of the error's own words."""
    status = STATUS.get(e.code, REFUSED)
    if as_json:
        line = json.dumps(
            {"error": e.code, "message": str(e), "status": status, "retryable": e.retryable,
             "retry_after": e.retry_after, "request": e.request or None}, ensure_ascii=False,
        )  # fmt: skip
    else:
        what = what or WORDS.get(e.code) or e.code.replace("_", " ")
        line = f"zoo: {what}: {one_line('; '.join(str(e).splitlines()))}{_hint(e) if status == REFUSED else ''}"
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        give_up(sys.stderr)
    return status


def _hint(e: ZooError) -> str:
    hints = (
        [f"trying again{f' in {max(e.retry_after, 0.1):.1f} s' if e.retry_after else ''} may help"]
        if e.retryable
        else []
    )
    hints += [f"`zoo explain {e.request}` tells its story"] if e.request else []
    return f" ({'; '.join(hints)})" if hints else ""


def unknown(kind: str, name: str, known: Iterable[str], otherwise: str) -> str:
    """Says that there is no such name, and which may have been meant."""
    near = difflib.get_close_matches(name, known, 1)
    return f"there is no {kind} {name!r}; {f'did you mean {near[0]!r}?' if near else otherwise}"


def give_up(stream: Any) -> None:
    """Drops what a stream still holds, so that the interpreter does not fail on it once more when it ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        stream.flush()
