"""The requests of one dispatch: read one by one, predicted together, answered one by one.

What is wrong with one request does not concern the others: an input that cannot be read never reaches the adapter, and
when the adapter raises over several, each is tried by itself. Where memory does not suffice for all inputs at once,
they are tried in halves first.

That memory ran out is recognised here, by the worker, which says what the process used and what it asked for while
the error still holds what was allocated: the broker's own reading comes too late for that.
"""

from __future__ import annotations

import traceback

from workers import inputs, memory
from workers.models.base import Adapter, Input
from zoo import results
from zoo.errors import InferenceFailed, OutOfMemory, ZooError
from zoo.wire import protocol

MAX_CAUSE = 2000  # characters


class Task:
    """One request on its way through the worker.

    Attributes:
        given: what the adapter gets of it, once it is read.
        answers: one result per item of `given`, as the adapter gave them.
        error: (code, message) when it failed.
        short: what is known of it if memory ran out.
    """

    __slots__ = ("answers", "error", "given", "job", "short")

    def __init__(self, job: protocol.Job) -> None:
        self.job = job
        self.given = inputs.Given([], None)
        self.answers: list[results.AnyResult] = []
        self.error: tuple[str, str] | None = None
        self.short: protocol.Shortage | None = None

    def done(self) -> None:
        """Lets go of what it held: the answer is packed."""
        self.given = inputs.Given([], None)
        self.answers = []

    def fail(self, error: Exception, model: str, device: str) -> None:
        """Takes note of what went wrong with which model; what is no error of the zoo's is a bug of the adapter's."""
        self.short = memory.shortage(error, device)
        if self.short is not None:
            error = OutOfMemory(f"memory ran out: {cause(error)}")
        elif not isinstance(error, ZooError):
            traceback.print_exception(error)
            error = InferenceFailed(f"the adapter raised {cause(error)}")
        self.answers = []
        self.error = (error.code, f"{model}: {cause(error)}"[:MAX_CAUSE])


def predict(model: Adapter, name: str, device: str, tasks: list[Task]) -> bool:
    """Fills in the answers (or the errors) of tasks that have been read.

    Returns:
        True when memory did not suffice for all of them at once.
    """
    items = [item for task in tasks for item in task.given.items]
    halved: list[int] = []
    answers: list[results.AnyResult] | None = None
    try:
        answers = _in_halves(model, device, items, halved) if items else []
        if len(answers) != len(items):
            raise RuntimeError(f"the adapter gave {len(answers)} answers for {len(items)} inputs")
    except Exception as e:
        answers = None
        if len(tasks) == 1:
            tasks[0].fail(e, name, device)
    if answers is not None:
        at = 0
        for task in tasks:
            task.answers = answers[at : at + len(task.given.items)]
            at += len(task.given.items)
    elif len(tasks) > 1:
        for task in tasks:
            predict(model, name, device, [task])
    elif tasks[0].short is not None:
        memory.give_back(device)  # not while the error is being handled: it keeps what was allocated before it
    return bool(halved)


def _in_halves(model: Adapter, device: str, items: list[Input], halved: list[int]) -> list[results.AnyResult]:
    """The answers to all of them at once, or to halves as often as memory runs out. `halved`: gets those sizes."""
    try:
        return list(model.predict(items))
    except Exception as e:
        if len(items) == 1 or memory.shortage(e, device) is None:
            raise
    halved.append(len(items))
    memory.give_back(device)
    half = len(items) // 2
    return [answer for part in (items[:half], items[half:]) for answer in _in_halves(model, device, part, halved)]


def cause(e: BaseException) -> str:
    """An exception in words."""
    try:
        text = str(e).strip() or "no message"
    except Exception as broken:  # its own __str__ raises
        text = f"no message: {type(broken).__name__} while it was asked for one"
    return sendable(text if isinstance(e, ZooError) else f"{type(e).__name__}: {text}")


def sendable(text: str) -> str:
    """The text with what UTF-8 cannot say (lone surrogates, of file names for example) escaped."""
    return text.encode("utf-8", "backslashreplace").decode()
