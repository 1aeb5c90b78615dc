"""`zoo infer` and `zoo enrich`: images to models, their answers as lines and as a picture."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.cli.output import OK, REFUSED, WrongUsage, remark, say
from zoo.errors import InvalidInput, ZooError

if TYPE_CHECKING:
    from zoo.client.client import Client
    from zoo.enrichment import Enrichment

SHOWN = 20  # lines of an answer
FEW = 4  # and where many models answer
TAKEN = {"boxes", "color", "timeout", "priority", "model", "frame"}  # names of arguments of `Client.infer`


def infer(args: Namespace, zoo: Client) -> int:
    """Send one image to a model and print the answer."""
    from zoo.results import typed

    raw = _read(args.image)
    _check_output(args.output)
    options = _adapter_options(args.option)
    started = time.monotonic()
    answer = zoo.infer(args.model, raw, boxes=args.box, **options)
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
    _check_output(args.output)
    detections = zoo.infer(args.detector, raw[-1], **_adapter_options(args.detector_option))
    event = zoo.enrich(raw, detections, suspicious=args.suspicious, min_score=args.min_score, timeout=args.timeout)
    say(args, {"detector": args.detector, **event.to_dict()}, _told_event(args.detector, detections, event))
    if args.output is not None:
        _draw(raw[-1], [event], args.output, detections=detections)
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


def _adapter_options(given: list[tuple[str, Any]]) -> dict[str, Any]:
    options = dict(given)
    if taken := TAKEN & options.keys():
        raise WrongUsage(f"{min(taken)}=: this name is not an adapter's option")
    return options


# ---------------------------------------------------------------- what comes out, as lines


def _told(model: str, seconds: float, boxes: list[tuple[float, ...]] | None, answers: list[Any]) -> Iterator[str]:
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


def _told_event(detector: str, detections: Any, event: Enrichment) -> Iterator[str]:
    from zoo.results import place

    count = len(event.detections)
    yield (
        f"{detector}: {count} detection{'s' * (count != 1)}{_mark(detections)};"
        f" {len(event.timings)} models in {event.seconds * 1000:.0f} ms"
    )
    for found in event.detections:
        yield f"{found.label}  {found.score:.2f}  {place(found.box)}"
        yield from _findings(found.answers, found.missing, found.skipped, found.note)
    yield "the whole frame"
    yield from _findings(event.frame, event.missing, event.skipped)


def _findings(
    answers: dict[str, Any], missing: dict[str, ZooError], skipped: dict[str, str], note: str = ""
) -> Iterator[str]:
    from zoo.results import typed

    if note:
        yield f"  {note}"
    for model, answer in answers.items():
        first, *more = typed(answer).summary()
        few = more if len(more) < FEW else [*more[: FEW - 1], "and more (--json has it all)"]
        yield f"  {model}{_mark(answer)}: {first}"
        yield from (f"    {line}" for line in few)
    for model, error in missing.items():
        yield f"  {model}: missing, {error.code.replace('_', ' ')}: {'; '.join(str(error).splitlines())}"
    for model, why in skipped.items():
        yield f"  {model}: skipped, {why}"
    if not (note or answers or missing or skipped):
        yield "  nothing was asked"


def _mark(answer: Any) -> str:
    from zoo.results import typed

    return " [STAND-IN]" if typed(answer).stand_in else ""


# ---------------------------------------------------------------- what comes out, as a picture


def _check_output(output: Path | None) -> None:
    """Before any work is done: whether the picture can be written at all."""
    if output is None:
        return
    from PIL import Image

    if output.suffix.lower() not in Image.registered_extensions():
        raise WrongUsage(f"-o {output}: name a picture file, such as {output.stem or 'out'}.png")
    if not output.parent.is_dir():
        raise WrongUsage(f"-o {output}: there is no folder {output.parent}")


def _draw(raw: bytes, answers: list[Any], output: Path, *, detections: Any = None) -> None:
    """`detections`: what the boxes of an enrichment come from; a stand-in's are marked too."""
    from PIL import Image

    from zoo.drawing.canvas import marked
    from zoo.results import PlainAnswer, typed

    if any(isinstance(answer, PlainAnswer) for answer in answers):
        raise InvalidInput(
            f"no picture was written to {output}: this model answers a plain dict, there is nothing to draw"
        )
    frame: Any = raw
    for answer in answers:
        frame = answer.draw(frame)
    if detections is not None and typed(detections).stand_in:
        frame = marked(frame)
    try:
        Image.fromarray(frame).save(output)
    except (OSError, ValueError) as e:
        raise WrongUsage(f"-o {output}: {e}") from None
    remark(f"wrote {output}")
