"""`zoo infer` and `zoo enrich`: images to models, their answers as lines and as a picture."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.cli import progress
from zoo.cli.output import OK, REFUSED, WrongUsage, remark, say
from zoo.errors import InvalidInput

if TYPE_CHECKING:
    from zoo.client.client import Client
    from zoo.enrichment import Enrichment, Findings
    from zoo.results import TypedResult

SHOWN = 20  # lines of an answer
FEW = 4  # and where many models answer
MARK = " [STAND-IN]"
DESCRIBED = ("color", "size", "stride", "scale")  # of raw pixels, as `Client.infer` has them
COLORS, CAMERA = ("rgb", "bgr"), ("nv12", "i420", "gray")


def infer(args: Namespace, zoo: Client) -> int:
    """Send one image to a model and print the answer."""
    from zoo.results import typed

    frame, how = _frame(args, args.image)
    started = time.monotonic()
    with progress.Meanwhile(progress.waits_of(zoo), quiet=args.json):
        answer = zoo.infer(args.model, frame, boxes=args.box, **how, **dict(args.option))
    seconds = time.monotonic() - started
    parts = answer if args.box else [answer]
    answers = [typed(one) for one in parts]
    plain = [one.to_dict() for one in answers]
    say(args, plain if args.box else plain[0], _told(args.model, seconds, args.box, answers, _spent(parts[0])))
    if args.output is not None:
        _draw(frame, answers, args.output, args.color or "rgb")
    return OK


def enrich(args: Namespace, zoo: Client) -> int:
    """Ask the right models about everything that a detector finds in an image.

    Which models these are, config.toml says (docs/enrich.md). Several images are a video, and the detector looks at
    the last one. --timeout is for the whole of it.
    """
    frames, hows = zip(*(_frame(args, image) for image in args.image), strict=True)
    how = hows[0]
    with progress.Meanwhile(progress.waits_of(zoo), quiet=args.json):
        detections = zoo.infer(args.detector, frames[-1], **how, **dict(args.detector_option))
        event = zoo.enrich(list(frames), detections, suspicious=args.suspicious, min_score=args.min_score,
                           timeout=args.timeout, **how)  # fmt: skip
    say(args, {"detector": args.detector, **event.to_dict()}, _told_event(args.detector, detections, event))
    if args.output is not None:
        _draw(frames[-1], [event], args.output, args.color or "rgb", marked=detections.stand_in)
    failed = event.missing or any(found.missing for found in event.detections)
    answered = event.frame or any(found.answers for found in event.detections)
    return REFUSED if failed and not answered else OK


# ---------------------------------------------------------------- what goes in


def _frame(args: Namespace, image: str) -> tuple[Any, dict[str, Any]]:
    """A file as it is sent, and the arguments of `infer` that describe it: none for an encoded image."""
    how = {key: value for key in DESCRIBED if (value := getattr(args, key)) is not None}
    if not how:
        return _read(image), how
    if args.output is not None and (args.color not in (None, *COLORS) or args.scale):
        raise WrongUsage(f"-o: drawn is on encoded images, and raw ones of --color {' or '.join(COLORS)}")
    return _pixels(_read(image), image, args), {key: how[key] for key in how if key != "size" or args.color in CAMERA}


def _pixels(raw: bytes, image: str, args: Namespace) -> Any:
    """Raw pixels: of rgb and bgr HxWx3, of the others all bytes in one dimension. 16-bit numbers with --scale."""
    import numpy as np

    kind = np.dtype("<u2" if args.scale else "u1")
    if args.size is None:
        raise WrongUsage(f"{image}: say --size WIDTHxHEIGHT of raw pixels")
    if args.color in CAMERA:
        if len(raw) % kind.itemsize:
            raise WrongUsage(f"{image}: has {len(raw):,} bytes, an odd number: these are no 16-bit pixels")
        return np.frombuffer(raw, kind)
    width, height = args.size
    if len(raw) != (size := width * height * 3 * kind.itemsize):
        raise WrongUsage(f"{image}: has {len(raw):,} bytes; {width}x{height} pixels of three colours have {size:,}")
    return np.frombuffer(raw, kind).reshape(height, width, 3)


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
    model: str, seconds: float, boxes: list[tuple[float, ...]] | None, answers: list[TypedResult], spent: str
) -> Iterator[str]:
    yield f"{model}: {seconds * 1000:.0f} ms{spent}"
    for number, answer in enumerate(answers):
        if boxes:
            yield f"box {','.join(f'{v:g}' for v in boxes[number])}"
        if answer.stand_in:
            yield "  STAND-IN: the model runs on random weights, this answer means nothing"
        lines = answer.summary()
        yield from (f"  {line}" for line in lines[:SHOWN])
        if len(lines) > SHOWN:
            yield f"  and {len(lines) - SHOWN} more (--json has them all)"


def _spent(answer: Any) -> str:
    """Where the broker saw the time go, without what is too short to show, and by which number it knows the request."""
    times = [f"{name} {seconds * 1000:.0f}" for name, seconds in dict(answer.timings).items() if seconds >= 0.0005]
    said = [", ".join(times)] if times else []
    said += [f"request {answer.request}"] if answer.request else []
    return f" ({'; '.join(said)})" if said else ""


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


def _draw(frame: Any, answers: list[Any], output: Path, color: str, *, marked: bool = False) -> None:
    """`marked`: says that a stand-in has answered, whatever the answers do."""
    from PIL import Image

    from zoo.drawing import canvas
    from zoo.results import PlainAnswer

    if any(isinstance(answer, PlainAnswer) for answer in answers):
        raise InvalidInput(
            f"no picture was written to {output}: this model answers a plain dict, there is nothing to draw"
        )
    for answer in answers:
        frame = answer.draw(frame, color=color)  # in the order of its colours that came
    frame = frame[..., ::-1] if color == "bgr" else frame
    try:
        Image.fromarray(canvas.marked(frame) if marked else frame).save(output)
    except (OSError, ValueError) as e:
        raise WrongUsage(f"-o {output}: {e}") from None
    remark(f"wrote {output}")
