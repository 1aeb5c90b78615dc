"""`zoo advise`: what another configuration would have done with recorded requests."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from zoo.cli import recordings
from zoo.cli.output import OutputLost, remark, say
from zoo.config.schema import MB_PER_GB, ModelPriority

if TYPE_CHECKING:
    from zoo.advise.advice import Advisor, Recommended, Row
    from zoo.advise.change import Change
    from zoo.client.client import Client
    from zoo.recording import RecordingPart


def advise(args: Namespace, zoo: Client) -> int:
    """Say what another configuration would have done with recorded requests.

    Replays a recording (`zoo record`, or [broker] record) through the scheduler in virtual time: loads, waiting, missed
    deadlines. Options say what is changed, all at once; each --budget is a replay of its own. Without any, some changes
    that may help are tried. How well a replay agrees with what was recorded is said first.
    """
    from zoo.advise import report
    from zoo.advise.advice import Advisor

    part = _part(args, zoo)
    advisor = Advisor(part)
    changes = _asked(args) or ([] if args.p95 else list(advisor.suggestions()))
    rows = [advisor.recorded, advisor.present, *advisor.replay_all(changes)]
    recommended = None
    if args.p95 is not None:
        recommended = advisor.smallest(args.p95, _change(args, None))
    say(args, report.as_json(advisor, rows, recommended), report.as_text(advisor, rows, recommended))
    if args.output is not None:
        _draw(args, advisor, rows, recommended)
    return 0


def _part(args: Namespace, zoo: Client) -> RecordingPart:
    from zoo import recording

    if args.file is not None:
        return recording.read(args.file)
    return recording.parse((line.encode() for line in recordings.fetched(zoo)), "the broker's recording")


def _asked(args: Namespace) -> list[Change]:
    """One change for each budget, with all the others in each; none where nothing is asked."""
    changes = [_change(args, budget) for budget in args.budget or [None]]
    return [change for change in changes if change.label]


def _change(args: Namespace, budget_gb: float | None) -> Change:
    from zoo.advise.change import Change

    own = {"eviction": args.policy, "standby": args.standby, "host_cache_mb": args.host_cache}
    broker: dict[str, Any] = dict(args.set) | {key: value for key, value in own.items() if value is not None}
    told = [f"budget {budget_gb:g} GB"] if budget_gb is not None else []
    told += [f"{key} = {value}" for key, value in broker.items()]
    told += [f"{name} of {gb:g} GB" for name, gb in args.device]
    told += [f"{name} pinned" for name in args.pin]
    told += [f"{name} {priority}" for name, priority in args.priority]
    return Change(
        ", ".join(told),
        None if budget_gb is None else budget_gb * MB_PER_GB,
        broker,
        {name: gb * MB_PER_GB for name, gb in args.device},
        tuple(args.pin),
        {name: ModelPriority[priority] for name, priority in args.priority},
    )


def _draw(args: Namespace, advisor: Advisor, rows: list[Row], recommended: Recommended | None) -> None:
    from zoo.advise import chart

    try:
        chart.draw(rows, recommended, advisor.budget_mb).save(args.output)
    except OSError as e:
        raise OutputLost(f"{args.output} cannot be written: {e.strerror or e}") from None
    remark(f"wrote {args.output}")
