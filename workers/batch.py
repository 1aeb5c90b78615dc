"""The requests of one dispatch: read one by one, predicted together, answered one by one.

What is wrong with one request is its own affair: an input that cannot be read never reaches the adapter, and when the
adapter raises over several, each is tried by itself.
"""

from __future__ import annotations

import traceback

from workers import inputs
from workers.models.base import Model
from zoo import protocol, results
from zoo.errors import InferenceFailed, ZooError

MAX_CAUSE = 2000  # characters


class Task:
    """One request on its way through the worker.

    Attributes:
        given: what the adapter gets of it, once it is read.
        answers: one result per item of `given`, as the adapter gave them.
        error: (code, message) when it failed.
    """

    __slots__ = ("answers", "error", "given", "job")

    def __init__(self, job: protocol.Job) -> None:
        self.job = job
        self.given = inputs.Given([], None)
        self.answers: list[results.AnyResult] = []
        self.error: tuple[str, str] | None = None

    def fail(self, error: Exception, model: str) -> None:
        """Takes note of what went wrong with which model; what is no error of the zoo's is a bug of the adapter's."""
        if not isinstance(error, ZooError):
            traceback.print_exception(error)
            error = InferenceFailed(f"the adapter raised {cause(error)}")
        self.answers = []
        self.error = (error.code, f"{model}: {error}"[:MAX_CAUSE])


def predict(model: Model, name: str, tasks: list[Task]) -> None:
    """Fills in the answers (or the errors) of tasks that have been read."""
    items = [item for task in tasks for item in task.given.items]
    try:
        answers = list(model.predict(items)) if items else []
        if len(answers) != len(items):
            raise RuntimeError(f"the adapter gave {len(answers)} answers for {len(items)} inputs")
    except Exception as e:
        if len(tasks) == 1:
            tasks[0].fail(e, name)
        else:
            for task in tasks:
                predict(model, name, [task])
        return
    at = 0
    for task in tasks:
        task.answers = answers[at : at + len(task.given.items)]
        at += len(task.given.items)


def cause(e: BaseException) -> str:
    """An exception in words."""
    text = str(e).strip() or "no message"
    return text if isinstance(e, ZooError) else f"{type(e).__name__}: {text}"
