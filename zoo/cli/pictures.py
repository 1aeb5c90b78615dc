"""`zoo infer` and `zoo enrich`: images to models, their answers as lines and as a picture."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.cli.output import OK, REFUSED, WrongUsage, remark, say
from zoo.errors import InvalidInput

if TYPE_CHECKING:
    from zoo.client.client import Client
    from zoo.enrichment import Enrichment, Findings
    from zoo.results import TypedResult

SHOWN = 20  # lines of an answer
FEW = 4  # and where many models answer
MARK = " [STAND-IN]"


def infer(args: Namespace, zoo: Client) -> int:
    """Send one image to a model and print the answer."""
    from zoo.results import typed

    raw = _read(args.image)
    started = time.monotonic()
    answer = zoo.infer(args.model, raw, boxes=args.box, **dict(args.option))
    seconds = time.monotonic() - started
    answers = [typed(one) for one in (answer if args.box else [answer])]
    plain = [one.to_dict() for one in answers]
    say(args, plain if args.box else plain[0], _told(args.model, seconds, args.box, answers))
    if args.output is not None:
        _draw(raw, answers, args.output)
    return OK


def enrich(args: Namespace, zoo: Client) -> int:
    """Ask the right models about everything that a detector finds in an image.

    Which models these are, config.toml says (docs/enrich.md). Several images are a video, and the detector looks at
    the last one. --timeout is for the whole of it.
    """
    raw = [_read(image) for image in args.image]
    detections = zoo.infer(args.detector, raw[-1], **dict(args.detector_option))
    event = zoo.enrich(raw, detections, suspicious=args.suspicious, min_score=args.min_score, timeout=args.timeout)
    say(args, {"detector": args.detector, **event.to_dict()}, _told_event(args.detector, detections, event))
    if args.output is not None:
        _draw(raw[-1], [event], args.output, marked=detections.stand_in)
    failed = event.missing or any(found.missing for found in event.detections)
    answered = event.frame or any(found.answers for found in event.detections)
    return REFUSED if failed and not answered else OK


# ---------------------------------------------------------------- what goes in


def _read(image: str) -> bytes:
    try:
        raw = sys.stdin.buffer.read() if image == "-" else Path(image).read_bytes()
    except OSError as e:
        raise WrongUsage(f"{image}: {e.strerror or e}") from None
    if not raw:
        raise WrongUsage(f"{'standard input' if image == '-' else image}: it is empty")
    return raw


# ---------------------------------------------------------------- what comes out, as lines


def _told(
    model: str, seconds: float, boxes: list[tuple[float, ...]] | None, answers: list[TypedResult]
) -> Iterator[str]:
    yield f"{model}: {seconds * 1000:.0f} ms"
    for number, answer in enumerate(answers):
        if boxes:
            yield f"box {','.join(f'{v:g}' for v in boxes[number])}"
        if answer.stand_in:
            yield "  STAND-IN: the model runs on random weights, this answer means nothing"
        lines = answer.summary()
        yield from (f"  {line}" for line in lines[:SHOWN])
        if len(lines) > SHOWN:
            yield f"  and {len(lines) - SHOWN} more (--json has them all)"


def _told_event(detector: str, detections: TypedResult, event: Enrichment) -> Iterator[str]:
    from zoo.enrichment import Findings
    from zoo.results import place

    count = len(event.detections)
    yield (
        f"{detector}: {count} detection{'s' * (count != 1)}{MARK * detections.stand_in};"
        f" {len(event.timings)} models in {event.seconds * 1000:.0f} ms"
    )
    for found in event.detections:
        yield f"{found.label}  {found.score:.2f}  {place(found.box)}"
        yield from _findings(found, found.note)
    yield "the whole frame"
    yield from _findings(Findings(answers=event.frame, missing=event.missing, skipped=event.skipped))


def _findings(found: Findings, note: str = "") -> Iterator[str]:
    from zoo.results import typed

    if note:
        yield f"  {note}"
    for model, one in found.answers.items():
        answer = typed(one)
        first, *more = answer.summary()
        yield f"  {model}{MARK * answer.stand_in}: {first}"
        yield from (f"    {line}" for line in (more if len(more) < FEW else more[: FEW - 1]))
        if len(more) >= FEW:
            yield "    and more (--json has it all)"
    for model, error in found.missing.items():
        yield f"  {model}: missing, {error.code.replace('_', ' ')}: {'; '.join(str(error).splitlines())}"
    for model, why in found.skipped.items():
        yield f"  {model}: skipped, {why}"
    if not (note or found.answers or found.missing or found.skipped):
        yield "  nothing was asked"


# ---------------------------------------------------------------- what comes out, as a picture


def _draw(raw: bytes, answers: list[Any], output: Path, *, marked: bool = False) -> None:
    """`marked`: says that a stand-in has answered, whatever the answers do."""
    from PIL import Image

    from zoo.drawing import canvas
    from zoo.results import PlainAnswer

    if any(isinstance(answer, PlainAnswer) for answer in answers):
        raise InvalidInput(
            f"no picture was written to {output}: this model answers a plain dict, there is nothing to draw"
        )
    frame: Any = raw
    for answer in answers:
        frame = answer.draw(frame)
    try:
        Image.fromarray(canvas.marked(frame) if marked else frame).save(output)
    except (OSError, ValueError) as e:
        raise WrongUsage(f"-o {output}: {e}") from None
    remark(f"wrote {output}")
