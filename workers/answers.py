"""What an adapter answered, checked and packed: whatever it is, it costs that request and nothing else.

Large arrays go into the worker's arena, the rest inline, within a budget of bytes.

Type, keys, and that the arrays fit together are checked. A bad answer is `InferenceFailed` with its cause; sent on, it
would be an unreadable result at the client.
"""

from __future__ import annotations

import functools
from typing import Any

import msgspec
import numpy as np

from workers.batch import Task
from workers.lifeline import WorkerLifeline
from zoo import results
from zoo.errors import InferenceFailed, InvalidInput
from zoo.wire import arrays, payload, protocol
from zoo.wire.launch import Launch

MARGIN_BYTES = 64 << 10  # of a result, for what is not its arrays
MAX_DEPTH = 100


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

    def message(self, halved: bool, grown: bool, seconds: tuple[float, float, float]) -> tuple[bytes, ...]:
        return protocol.pack(protocol.Done(tuple(self._outcomes), halved, grown, seconds)), *self._bodies

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


def check(answer: Any) -> None:
    """Raises InferenceFailed: it is no result, or one whose parts do not fit together."""
    if type(answer) in results.TYPES:
        _check_result(answer)
    elif isinstance(answer, dict):
        _check_plain(answer, "answer", 0)
    else:
        raise InferenceFailed(
            f"the adapter answered {_kind(answer)}; an answer is one of zoo's results, or a dict of JSON-like "
            "values and arrays"
        )


def _check_result(answer: results.TypedResult) -> None:
    name = type(answer).__name__
    sizes: dict[str, tuple[int, str]] = {}
    for field, shape, is_list, required in _parts(type(answer)):
        value = getattr(answer, field)
        left_out = isinstance(value, list | tuple) and not value if is_list else value is None
        if left_out and not required:
            continue
        if is_list:
            if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
                raise InferenceFailed(f"the adapter answered {name} with {field} that is no list of texts")
            found: tuple[int, ...] = (len(value),)
        else:
            if not isinstance(value, np.ndarray) or value.dtype.kind not in arrays.KINDS:
                raise InferenceFailed(f"the adapter answered {name} with {field} that is {_kind(value)}, no array")
            found = value.shape
        if len(found) != len(shape) or any(
            isinstance(n, int) and n != size for n, size in zip(shape, found, strict=True)
        ):
            raise InferenceFailed(f"the adapter answered {name} with {field} of shape {found}, not {_said(shape)}")
        for size, letter in zip(found, shape, strict=True):
            before, other = sizes.setdefault(str(letter), (size, field))
            if before != size:
                raise InferenceFailed(
                    f"the adapter answered {name} whose parts disagree: {other} are of {before}, {field} of {size}"
                )


@functools.cache
def _parts(kind: type[results.TypedResult]) -> list[tuple[str, tuple[int | str, ...], bool, bool]]:
    """Of each part with a shape: its name, the shape, whether it is a list of texts, and whether it has to be there."""
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    return [(name, shape, fields[name].type == list[str], fields[name].required) for name, shape in kind.shapes.items()]


def _check_plain(value: Any, where: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise InferenceFailed(f"the adapter answered values inside of values, {MAX_DEPTH} deep or without end")
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise InferenceFailed(f"the adapter answered a dict with the key {key!r} ({where}); keys are texts")
            _check_plain(inner, f"{where}[{key!r}]" if depth < 3 else where, depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            if isinstance(inner, dict | list | tuple):
                _check_plain(inner, where, depth + 1)


def _said(shape: tuple[Any, ...]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
