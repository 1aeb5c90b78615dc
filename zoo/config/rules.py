"""The table of enrichment: which models look at which detections, at what part of the frame, and when.

config.toml's `[enrich]` and `[[enrich.rules]]` are read into these types by `zoo/config/reading.py`; the broker hands
them to its clients, where `zoo/client/enrich.py` makes a plan of them for each event. `mistakes` finds what makes no
sense in a table whose values, each on its own, are fine. Two rules that would ask a model differently are refused:
which of them counts is not for a plan to guess.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Annotated, Any, Literal

import msgspec

from zoo.labels import folded

ANYTHING = "*"

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Names = Annotated[list[Annotated[str, msgspec.Meta(min_length=1)]], msgspec.Meta(min_length=1)]


class Rule(msgspec.Struct, kw_only=True, frozen=True, rename={"labels": "for"}):
    """One `[[enrich.rules]]` table: these models, for these detections.

    Attributes:
        models: which ones to ask.
        labels: `for` in the table: what a detection must be, in any spelling (see `zoo.labels`); "*" is anything.
        after: instead of `for`: a model of another rule, and these look at the best box that it found.
        on: "box" looks at each detection's box, "frame" at the whole frame, once per event, "video" at all frames of
            the event, once.
        upper: share of the box's height that is looked at, from the top.
        grow: share of the width (height) of that, by which its left and right (upper and lower) edges move outwards.
        suspicious: only when the caller says that the event is.
        min_frames: only when the event has so many frames.
        min_persons: only when it has so many detections of a person.
        options: for the models, with each request.
    """

    models: Names
    labels: Names | None = None
    after: str | None = None
    on: Literal["box", "frame", "video"] = "box"
    upper: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    grow: Share = 0.0
    suspicious: bool = False
    min_frames: Count = 0
    min_persons: Count = 0
    options: dict[str, Any] = {}


class EnrichConfig(msgspec.Struct, kw_only=True, frozen=True):
    """The `[enrich]` table.

    Attributes:
        min_score: detections below it are left alone.
        timeout: seconds for one event, unless the caller gives another.
        parallel: requests of one event that are under way at once.
        rules: in the order of the table, which decides between models that are equally cheap.
    """

    min_score: Share = 0.5
    timeout: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    parallel: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4
    rules: list[Rule] = []


def mistakes(rules: list[Rule], registered: Collection[str]) -> Iterator[tuple[int, str | None, str]]:
    """What is wrong: the rule's number, the key in it (None: the rule as a whole), and what.

    Args:
        registered: the names of all models.
    """
    parent: dict[str, str] = {}
    for i, rule in enumerate(rules):
        yield from ((i, key, what) for key, what in _alone(rule))
        for model in dict.fromkeys(rule.models):
            if model not in registered:
                yield i, "models", f"there is no model {model!r} in [[models]]"
            for other in rules[:i]:
                if model in other.models and (what := _twice(model, other, rule)):
                    yield i, "models", what
            if rule.after is not None and rule.labels is None:
                parent.setdefault(model, rule.after)
    asked = {model for rule in rules for model in rule.models}
    for i, rule in enumerate(rules):
        if rule.after is None or rule.labels is not None:
            continue
        if rule.after not in asked:
            yield i, "after", f"no rule asks {rule.after!r}"
        elif loop := _loop(rule.after, parent):
            yield i, "after", f"the chain {' → '.join(loop)} has no beginning"


def _alone(rule: Rule) -> Iterator[tuple[str | None, str]]:
    if (rule.labels is None) == (rule.after is None):
        yield None, "a rule is `for` some labels, or `after` another model: one of the two"
    if len(set(rule.models)) < len(rule.models):
        yield "models", "a name is there twice"
    if rule.on != "box":
        if rule.after is not None:
            yield "on", f'{rule.after!r} leads to a box; leave it out, or say "box"'
        for key, changed in (("upper", rule.upper != 1.0), ("grow", rule.grow != 0.0)):
            if changed:
                yield key, f"there is no box on a whole {rule.on}"


def _twice(model: str, first: Rule, second: Rule) -> str | None:
    """Why two rules cannot both name the model, for it is asked once per event."""
    if first.labels is None or second.labels is None or (first.on, first.options) != (second.on, second.options):
        return f"{model!r} is asked once per event, and another rule asks it otherwise (`after`, `on` or `options`)"
    mine, others = ({folded(label) for label in rule.labels or ()} for rule in (second, first))
    if both := mine | others if ANYTHING in mine | others else mine & others:
        return f"another rule asks {model!r} for {min(both)!r} already"
    return None


def _loop(model: str, parent: dict[str, str]) -> list[str]:
    """The chain that leads to the model, if it leads round in a circle."""
    chain = [model]
    while (before := parent.get(chain[0])) is not None:
        if before in chain:
            return [before, *chain]
        chain.insert(0, before)
    return []
