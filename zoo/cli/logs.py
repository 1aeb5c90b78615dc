"""`zoo logs`: the broker's log, as far as it is kept in memory, and what is added to it."""

from __future__ import annotations

import json
import select
import sys
import time
from argparse import Namespace
from collections import deque
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from zoo.cli.output import CUT_OFF, remark, say
from zoo.errors import InvalidInput, ProtocolMismatch, ZooError
from zoo.system.program import one_line

if TYPE_CHECKING:
    from zoo.client.client import Client

LOOK_S = 0.5  # between two questions for what is new

Line = dict[str, Any]


class LogReader:
    """Where a reader stands in the log of a broker, and of the one after it."""

    def __init__(self, zoo: Client, model: str | None) -> None:
        self._zoo = zoo
        self._model = model
        self._boot = ""
        self._next = 0

    def new(self) -> Iterator[Line]:
        """All that came since the last time, from the oldest line that is kept.

        Raises:
            ZooError: none is told now. What was given before is not given again.
        """
        more = True
        while more:
            page = self._page()
            if page["boot"] != self._boot:  # another broker counts anew
                again, self._boot, self._next = self._boot, page["boot"], 0
                if again:
                    page = self._page()
            self._next, more = page["next"], page["more"]
            yield from page["lines"]

    def _page(self) -> dict[str, Any]:
        try:
            return self._zoo.logs(self._model, since=self._next)
        except InvalidInput as e:
            if str(e).startswith("what:"):
                raise ProtocolMismatch("the broker is of an earlier release, which does not tell its log") from None
            raise


def logs(args: Namespace, zoo: Client) -> int:
    """Show the broker's log: its last lines, of all or of a MODEL.

    The broker keeps the last 5,000 lines, 4 MB at most, in memory; all of it went to its standard error. Decisions,
    what workers print, warnings and errors are in it; `zoo explain` tells of decisions and requests alone. With -f it
    goes on, also with the next broker when this one ends, and --json is an object a line; else it is one list.
    """
    reading = LogReader(zoo, args.model)
    lines = deque(reading.new(), maxlen=args.lines)
    if not args.follow:
        return say(args, list(lines), (text for line in lines for text in shown(line)))
    _write(args, lines)
    gone = False
    while not _is_cut_off():
        time.sleep(LOOK_S)
        try:
            for line in reading.new():
                _write(args, [line])
            gone = False
        except ZooError as e:
            if not e.retryable:
                raise
            if not gone:
                remark("the broker does not answer; its log goes on when one does")
            gone = True
    return CUT_OFF


def _write(args: Namespace, lines: deque[Line] | list[Line]) -> None:
    for line in lines:
        print(json.dumps(line, ensure_ascii=False) if args.json else "\n".join(shown(line)))
    sys.stdout.flush()


def shown(line: Line) -> Iterator[str]:
    """A line for people; a traceback follows it."""
    at = datetime.fromisoformat(line["time"]).astimezone()
    model = f"{line['model']}: " if line["model"] else ""
    if worker := line.get("worker"):
        model = f"{line['model'] or 'no model'} (worker {worker}): "
    yield f"{at:%Y-%m-%d %H:%M:%S}.{at.microsecond // 1000:03d} {line['level']} {one_line(model + line['message'])}"
    yield from (f"    {one_line(text)}" for text in line.get("exception", "").splitlines())


def _is_cut_off() -> bool:
    """Whether the reader of standard output has gone."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):
        return False  # no descriptor: a test's
    return any(what & (select.POLLERR | select.POLLNVAL) for _, what in poll.poll(0))
