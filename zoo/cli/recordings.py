"""`zoo record`: the broker's recording of its requests, started, stopped and fetched."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from zoo.cli.output import OutputLost, WrongUsage, say
from zoo.errors import ModelUnavailable
from zoo.system import files

if TYPE_CHECKING:
    from zoo.client.client import Client

PENDING_S = 10.0  # for what is recorded and not made into lines yet
LOOK_S = 0.1


def record(args: Namespace, zoo: Client) -> int:
    """Have the broker record its requests, for `zoo advise`.

    When a request came, for which model, its deadline, priority and outcome; loads and what ended; nothing of frames,
    options or answers. `start` keeps it in memory, record_mb of [broker] at most, until `stop`; it can be fetched until
    the next start. [broker] record has the broker write it to a file from its start on.
    """
    if (args.what == "fetch") != (args.file is not None):
        raise WrongUsage("`zoo record fetch FILE` writes what is recorded; only fetch takes a FILE")
    if args.what == "fetch":
        return _fetch(args, zoo)
    found = zoo.record(args.what)
    return say(args, found, [_shown(found)])


def _fetch(args: Namespace, zoo: Client) -> int:
    lines = list(fetched(zoo))
    try:
        files.write_whole(args.file, "".join(f"{line}\n" for line in lines).encode())
    except OSError as e:
        raise OutputLost(f"{args.file} cannot be written: {e.strerror or e}") from None
    done = {"file": str(args.file), "lines": len(lines)}
    return say(args, done, [f"wrote {len(lines)} lines to {args.file}; `zoo advise {args.file}` says what they tell"])


def fetched(zoo: Client) -> Iterator[str]:
    """The lines of a broker's recording, as far as they are in memory.

    Raises:
        ModelUnavailable: nothing is recorded.
    """
    until = time.monotonic() + PENDING_S
    wanted = zoo.record("status")["requests"]
    while (now := zoo.record("status"))["requests"] - now["pending"] < wanted and time.monotonic() < until:
        time.sleep(LOOK_S)
    number, more, any_line = 0, True, False
    while more:
        page: dict[str, Any] = zoo.record("fetch", since=number)
        number, more = page["next"], page["more"]
        any_line = any_line or bool(page["lines"])
        yield from page["lines"]
    if not any_line:
        raise ModelUnavailable("the broker has recorded nothing: `zoo record start`, and fetch it after a while")


def _shown(found: dict[str, Any]) -> str:
    state = f"recording since {found['since']}" if found["recording"] else "not recording"
    kept = f", {found['requests']} requests" if found["since"] else ""
    lost = f", {found['dropped']} lines are missing" if found["dropped"] else ""
    where = f", in {found['file']}" if found["file"] else ""
    problem = f"; it cannot be written now: {found['problem']}" if found["problem"] else ""
    return f"{state}{kept}{lost}{where}{problem}"
