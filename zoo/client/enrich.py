"""Enrichment: what is asked about one event, in which order, and what becomes of the answers. No I/O, no clock.

The table (`zoo/config/rules.py`) says which models look at what; `Plan` is what follows from it for one event. Its
subjects are the event's detections, by number, and the event itself. Each model of the table is a step. It is asked
once, about all of its subjects together: their boxes in one request, or the whole frame. (Once more only after an
error that may pass by itself.)

Between a step and a subject something is said exactly once (`_settle`): an answer, an error, or a condition that is
not met. The steps after that one then learn what it means for them: the box that was found, or why there is none. A
step is ready when the one before it has ended. Of the ready ones, models that are loaded go first, then those being
loaded, then the rest, small ones first, and no more than `parallel` are under way.

The client plans, the broker schedules: the broker hands out its table, one question per event (0.1 ms), and knows
nothing of events. So an event costs it no memory and ends with its client. A chain follows the best box alone, so that
each model has one answer per detection, of one shape. Boxes are cut to the frame here, with the worker's own function,
since one senseless box would fail the whole request. "Loaded models first" is decided once, when the event begins:
loads that the event causes change the picture, and following them would be a second scheduler. A broker that goes away
ends the event, for its successor would have to load everything again in what is left of the time.

`Client` and `AsyncClient` drive it: `take` says what to ask now, `answer` takes in what came, `wake` is when to take
again though nothing came, `fail` ends it, and `result` is what it has come to.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from zoo import results
from zoo.client import frames
from zoo.client.event import PERSON, Event
from zoo.config import rules
from zoo.enrichment import Enriched, Enrichment, Findings
from zoo.errors import (
    BrokerUnreachable,
    DeadlineExceeded,
    InferenceFailed,
    InvalidInput,
    ProtocolMismatch,
    ZooError,
)
from zoo.labels import folded
from zoo.wire.boxes import Box, crop_box, part_of

EVENT = -1  # the subject that is no detection
NEARNESS = {"loaded": 0, "loading": 1}  # of a model in that state to its first answer; in any other state it is 2


class Residence(msgspec.Struct, frozen=True):
    """Where a model stands when the event begins."""

    state: str
    vram_mb: float


class Table(rules.EnrichConfig, kw_only=True, frozen=True):
    """The broker's table, with the states of all its models."""

    models: dict[str, Residence]


def read_table(value: Any) -> Table:
    """The answer to `Query("enrich")`. Raises ProtocolMismatch when it is none."""
    try:
        table = msgspec.convert(value, Table)
    except msgspec.ValidationError as e:
        raise ProtocolMismatch(f"the broker's table of enrichment cannot be read: {e}") from None
    for number, _, what in rules.mistakes(table.rules, table.models):
        raise ProtocolMismatch(f"rule {number} of the broker's table of enrichment: {what}")
    return table


class Ask(NamedTuple):
    """One request to be made. `boxes`: whole pixels inside the frame; None asks about all of it."""

    model: str
    boxes: frames.Corners | None
    options: dict[str, Any]
    video: bool


class _Skip(NamedTuple):
    why: str


class _Step:
    """One model in one event.

    Attributes:
        rules: those that name it. They differ in labels, boxes and conditions only (`rules.mistakes`).
        then: the steps after it.
        parts: by subject, the box that is looked at, or None for the whole frame.
        cost: what decides who goes first.
        asked: how often. asked_at: when for the first time.
        not_before: when it may be asked again.
    """

    def __init__(self, model: str, where: Residence, place: int) -> None:
        self.model = model
        self.rules: list[rules.Rule] = []
        self.then: list[_Step] = []
        self.parts: dict[int, Box | None] = {}
        self.cost = NEARNESS.get(where.state, 2), where.vram_mb, place
        self.asked = 0
        self.asked_at = 0.0
        self.not_before = -math.inf

    @property
    def on(self) -> str:
        return self.rules[0].on

    def ask(self) -> Ask:
        boxes = tuple(part for part in self.parts.values() if part is not None)
        return Ask(self.model, boxes or None, self.rules[0].options, self.on == "video")


class Plan:
    """One event under way.

    Args:
        started: the moment on the caller's clock, in seconds; every later `now` is of the same clock.
        timeout: seconds for the whole event; None takes the table's.

    Attributes:
        frames: those that have to be in place, the one with the detections last.
        deadline: on the caller's clock. Every request is to be answered by then.
    """

    def __init__(self, table: Table, event: Event, started: float, timeout: float | None = None) -> None:
        self._timeout = table.timeout if timeout is None else timeout
        self.deadline = started + self._timeout
        self._started = started
        self._event = event
        self._parallel = table.parallel
        self._timings: dict[str, float] = {}
        self._findings: dict[int, Findings] = {EVENT: Findings(), **dict(enumerate(event.detections))}
        self._flaws = self._examine(table.min_score if event.min_score is None else event.min_score)
        self._persons = sum(folded(d.label) == PERSON for d in event.detections if not d.note)

        steps: dict[str, _Step] = {}
        for rule in table.rules:
            for model in rule.models:
                if model not in steps:
                    steps[model] = _Step(model, table.models[model], len(steps))
                steps[model].rules.append(rule)
        for step in steps.values():
            if (after := step.rules[0].after) is not None:
                steps[after].then.append(step)
        first = [step for step in steps.values() if step.rules[0].after is None]
        for step in first:
            for subject, part in self._boxes(step) if step.on == "box" else [(EVENT, self._whole(step))]:
                self._open(step, subject, part)
        self._ready = [step for step in first if step.parts]
        self._under_way: dict[str, _Step] = {}
        self._note_strangers()
        video = any(step.on == "video" for step in self._ready)
        self.frames: list[Any] = event.frames if video else event.frames[-1:]

    # ------------------------------------------------------------ driving it

    @property
    def done(self) -> bool:
        return not self._ready and not self._under_way

    @property
    def wake(self) -> float:
        """When to `take` again, though no answer came."""
        if not self._ready or len(self._under_way) >= self._parallel:
            return math.inf
        return min(step.not_before for step in self._ready)

    def take(self, now: float) -> list[Ask]:
        """What to ask now. Each is under way from here on, and wants an `answer`."""
        if now >= self.deadline:
            late, self._ready = self._ready, []
            for step in late:
                text = f"{step.model}: the event's {self._timeout:g} s were over before it was asked"
                self._end(step, DeadlineExceeded(text), now)
        asks = []
        for step in sorted(self._ready, key=lambda step: step.cost):
            if len(self._under_way) >= self._parallel:
                break
            if step.not_before <= now:
                self._ready.remove(step)
                self._under_way[step.model] = step
                if not step.asked:
                    step.asked_at = now
                step.asked += 1
                asks.append(step.ask())
        return asks

    def answer(self, model: str, outcome: Any, now: float) -> None:
        """What came of an `Ask`: a result, a list of them where there were boxes, or an error."""
        step = self._under_way.pop(model)
        whole = step.on != "box"
        if isinstance(outcome, ZooError):
            if self._may_help(step, outcome, now):
                step.not_before = now + (outcome.retry_after or 0.0)
                self._ready.append(step)
            else:
                self._end(step, outcome, now)
        elif not whole and (not isinstance(outcome, list) or len(outcome) != len(step.parts)):
            self._end(step, ProtocolMismatch(f"{model}: there is not one answer for each box"), now)
        else:
            self._time(step, now)
            for subject, found in zip(step.parts, [outcome] if whole else outcome, strict=True):
                self._settle(step, subject, found)
            self._ready += [after for after in step.then if after.parts]

    def fail(self, error: ZooError, now: float) -> None:
        """Nothing more will come, for this reason."""
        left = [*self._under_way.values(), *self._ready]
        self._under_way, self._ready = {}, []
        for step in left:
            self._end(step, error, now)

    def result(self, now: float) -> Enrichment:
        event = self._findings[EVENT]
        return Enrichment(
            detections=self._event.detections,
            frame=event.answers,
            missing=event.missing,
            skipped=event.skipped,
            timings=self._timings,
            seconds=now - self._started,
        )

    # ------------------------------------------------------------ before the first request

    def _examine(self, min_score: float) -> dict[int, ZooError]:
        """Notes whose score is too low; gives what is wrong with the boxes of the others."""
        flaws: dict[int, ZooError] = {}
        for number, detection in enumerate(self._event.detections):
            if detection.score < min_score:
                detection.note = f"its score of {detection.score:.2f} is below {min_score:g}"
            elif isinstance(flaw := self._part(detection.box, number), ZooError):
                flaws[number] = flaw
        return flaws

    def _boxes(self, step: _Step) -> Iterator[tuple[int, Box | _Skip | ZooError]]:
        """Where the model is to look for each detection that it is for."""
        for number, detection in enumerate(self._event.detections):
            rule = next((rule for rule in step.rules if _is_for(rule, detection)), None)
            if rule is None:
                continue
            if why := self._unmet(rule):
                yield number, _Skip(why)
            else:
                yield number, self._flaws.get(number) or self._part(detection.box, number, rule)

    def _whole(self, step: _Step) -> _Skip | None:
        """None, for the whole frame, if one of the model's rules applies."""
        labels = [label for rule in step.rules for label in rule.labels or ()]
        why = "nothing was detected" if rules.ANYTHING in labels else f"there is no {' or '.join(labels)}"
        for rule in step.rules:
            if any(_is_for(rule, detection) for detection in self._event.detections):
                unmet = self._unmet(rule)
                if unmet is None:
                    return None
                why = unmet
        return _Skip(why)

    def _unmet(self, rule: rules.Rule) -> str | None:
        """The condition that keeps a rule from being applied to this event."""
        count = len(self._event.frames)
        if rule.suspicious and not self._event.suspicious:
            return "only when the event is suspicious"
        if count < rule.min_frames:
            return f"only with {rule.min_frames} frames or more, not with {count}"
        if self._persons < rule.min_persons:
            return f"only with {rule.min_persons} persons or more, not with {self._persons}"
        return None

    def _part(self, box: Box, number: int, rule: rules.Rule | None = None) -> Box | ZooError:
        """The pixels that a model is to look at."""
        try:
            return crop_box(part_of(box, rule.upper, rule.grow) if rule else box, *self._event.size, number)
        except InvalidInput as e:
            return _copy(e)

    def _note_strangers(self) -> None:
        known = {subject for step in self._ready for subject in step.parts}
        for number, detection in enumerate(self._event.detections):
            if not (number in known or detection.note or detection.missing or detection.skipped):
                detection.note = f"no rule is for {detection.label!r}"

    # ------------------------------------------------------------ settling

    def _open(self, step: _Step, subject: int, part: Box | _Skip | ZooError | None) -> None:
        if isinstance(part, _Skip | ZooError):
            self._settle(step, subject, part)
        else:
            step.parts[subject] = part

    def _settle(self, step: _Step, subject: int, outcome: Any) -> None:
        """The one place where something is said between a step and a subject. What comes after follows from it."""
        findings = self._findings[subject]
        if isinstance(outcome, _Skip):
            findings.skipped[step.model] = outcome.why
        elif isinstance(outcome, ZooError):
            findings.missing[step.model] = outcome
        else:
            findings.answers[step.model] = outcome
        for after in step.then:
            self._open(after, subject, self._follow(step, after.rules[0], subject, outcome))

    def _follow(self, step: _Step, rule: rules.Rule, subject: int, outcome: Any) -> Box | _Skip | ZooError:
        """Where the next model of a chain is to look, or why nowhere."""
        if why := self._unmet(rule):
            return _Skip(why)
        if isinstance(outcome, _Skip):
            return _Skip(f"{step.model} was skipped: {outcome.why}")
        if isinstance(outcome, ZooError):
            return _copy(outcome, f"{step.model} comes first: ")
        if not isinstance(outcome, results.Detections | results.Keypoints) or outcome.boxes is None:
            return InferenceFailed(f"{step.model} comes first, and its {type(outcome).__name__} holds no boxes")
        if not len(outcome.boxes):
            return _Skip(f"{step.model} found nothing")
        return self._part(tuple(outcome.boxes[0].tolist()), max(0, subject), rule)

    def _end(self, step: _Step, error: ZooError, now: float) -> None:
        """The step has failed, for all of its subjects."""
        self._time(step, now)
        why = _copy(error)
        for subject in step.parts:
            self._settle(step, subject, why)

    def _time(self, step: _Step, now: float) -> None:
        if step.asked:
            self._timings[step.model] = now - step.asked_at

    def _may_help(self, step: _Step, error: ZooError, now: float) -> bool:
        """Whether to ask once more."""
        if isinstance(error, DeadlineExceeded | BrokerUnreachable) or not error.retryable or step.asked > 1:
            return False
        return now + (error.retry_after or 0.0) < self.deadline


def _is_for(rule: rules.Rule, detection: Enriched) -> bool:
    wanted = {folded(label) for label in rule.labels or ()}
    return not detection.note and (rules.ANYTHING in wanted or folded(detection.label) in wanted)


def _copy(error: ZooError, before: str = "") -> ZooError:
    """The same error without its traceback, which would keep the frame in memory."""
    found = copy.copy(error)
    found.args = (f"{before}{error}",)
    return found
