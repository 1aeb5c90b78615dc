"""The answer to one dispatch: large arrays go into the worker's arena, the rest inline, within a budget of bytes."""

from __future__ import annotations

import numpy as np

from workers.answers import check
from workers.batch import Task
from workers.lifeline import WorkerLifeline
from zoo import results
from zoo.errors import InferenceFailed, InvalidInput
from zoo.wire import payload, protocol
from zoo.wire.launch import Launch

MARGIN_BYTES = 64 << 10  # of a result, for what is not its arrays


class Reply:
    """The results of a dispatch that are packed so far."""

    def __init__(self, launch: Launch, lifeline: WorkerLifeline, *, stand_in: bool) -> None:
        self._launch = launch
        self._lifeline = lifeline
        self._stand_in = stand_in
        self._most = launch.inline_bytes - MARGIN_BYTES  # inline, of one answer
        self._left = 2 * launch.inline_bytes - MARGIN_BYTES  # and of all of them together
        self._outcomes: list[protocol.Outcome] = []
        self._bodies: list[bytes] = []

    def message(self, halved: bool, grown: bool) -> tuple[bytes, ...]:
        return protocol.pack(protocol.Done(tuple(self._outcomes), halved, grown)), *self._bodies

    def add(self, task: Task) -> None:
        """Packs a task's answers; one that failed, or fails here, is answered with its error."""
        placed: list[int] = []
        if task.error is None:
            try:
                raw = self._packed(task, placed)
            except Exception as e:
                self._lifeline.take_back(placed)
                if isinstance(e, UnicodeError):
                    e = InferenceFailed(f"the adapter answered a text that UTF-8 cannot say: {e}")
                task.fail(e, self._launch.model, self._launch.device)
        if task.error is not None:
            self._outcomes.append(protocol.Outcome(task.job.id, (), *task.error, task.short))
            return
        self._outcomes.append(protocol.Outcome(task.job.id, tuple(placed)))
        self._bodies.append(raw)
        self._left -= len(raw)

    def _packed(self, task: Task, placed: list[int]) -> bytes:
        """The result's bytes. `placed`: gets the slots that they refer to."""
        corners = task.given.corners
        inline = 0

        def place(value: np.ndarray) -> int | None:
            nonlocal inline
            offset = None if task.job.inline else self._lifeline.place(value)
            if offset is not None:
                placed.append(offset)
                return offset
            inline += value.nbytes
            if inline > self._most:  # before it is copied: the parts of a depth map cost nothing until then
                raise InvalidInput(
                    f"{'frame' if corners is None else 'boxes'}: the answer has more than the {self._most >> 20} MB "
                    "that can be sent; ask about less at once, or raise [broker] max_inline_mb"
                )
            if inline > self._left:
                raise InferenceFailed(
                    f"the answers of its batch together have more than {2 * self._most >> 20} MB; ask again"
                )
            return None

        for answer in task.answers:
            check(answer)
        answers = [_marked(answer) for answer in task.answers] if self._stand_in else task.answers
        if corners is not None:
            answers = [
                answer.moved(*corner) if isinstance(answer, results.TypedResult) else answer
                for answer, corner in zip(answers, corners, strict=True)
            ]
        raw, _ = payload.pack_result(payload.ResultBody(answers, corners is not None), place)
        if len(raw) > min(self._most, self._left) + MARGIN_BYTES // 2:
            raise InferenceFailed(f"a result of {len(raw) >> 20} MB is too large to send")
        return raw


def _marked(answer: results.AnyResult) -> results.AnyResult:
    """The same answer, saying that it comes from a stand-in."""
    if isinstance(answer, dict):
        return {**answer, "stand_in": True}
    answer.stand_in = True
    return answer
