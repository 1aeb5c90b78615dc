"""The commands of `zoo` as a table, of which `build` makes the parser.

A command's name is that of its function; its docstring is what `--help` says of it.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

from zoo.cli import advising, commands, logs, output, pictures, recordings, shells, weights

LIST_S = 1.0  # `zoo ls`: without a broker config.toml answers
LOOK_S = 3.0  # how long a question waits for an answer
WORK_S = 30.0  # a load or an inference
# arguments of `Client.infer`, so no options
PRIORITIES = ("CRITICAL", "HIGH", "MEDIUM", "LOW")
TAKEN = {"boxes", "color", "size", "stride", "scale", "timeout", "priority", "model", "frame"}

Argument = tuple[tuple[str, ...], dict[str, Any]]  # what `ArgumentParser.add_argument` gets


class Command(NamedTuple):
    """One command.

    Attributes:
        run: gets the parsed arguments, and an open client if there is a `wait_s`; gives the exit status.
        wait_s: how long that client waits for an answer, unless `--timeout` says otherwise.
        arguments: besides `--endpoint`, `--timeout` and `--json`. None: `run` gets all that follow, unread.
    """

    run: Callable[..., int]
    wait_s: float | None = None
    arguments: tuple[Argument, ...] | None = ()


class Parser(argparse.ArgumentParser):
    """Raises `WrongUsage` instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise output.WrongUsage(f"{message} (`{self.prog} --help` says more)")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.dest == "command" and value not in COMMANDS:
            raise output.WrongUsage(output.unknown("command", value, COMMANDS, "`zoo --help` lists the commands"))
        super()._check_value(action, value)

    def _print_message(self, message: str, file: Any = None) -> None:
        (file or sys.stderr).write(message)  # argparse passes over what cannot be written


class Version(argparse.Action):
    """Looks the version up when it is asked for: importing what does that takes 30 ms."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"zoo {version('model-zoo')}")
        parser.exit()


# ---------------------------------------------------------------- values


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _seconds(text: str) -> float:
    if not 0 < (value := _number(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return value


def _count(text: str) -> int:
    if not text.isascii() or not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number")
    return int(text)


def _share(text: str) -> float:
    if not 0 <= (value := _number(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _box(text: str) -> tuple[float, ...]:
    corners = tuple(map(_number, text.split(",")))
    if len(corners) != 4 or not all(map(math.isfinite, corners)):
        raise argparse.ArgumentTypeError(f"expected X1,Y1,X2,Y2 in pixels, got {text!r}")
    return corners


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and text.isascii() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT in pixels, such as 1920x1080, got {text!r}")
    return int(width), int(height)


def _scale(text: str) -> tuple[float, ...]:
    ends = tuple(map(_number, text.split(",")))
    if len(ends) != 2 or not all(map(math.isfinite, ends)):
        raise argparse.ArgumentTypeError(f"expected LO,HI, got {text!r}")
    return ends


def _gigabytes(text: str) -> float:
    if not 0 < (value := _number(text)) < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of gigabytes")
    return value


def _megabytes(text: str) -> float:
    if not 0 <= (value := _number(text)) <= 1e9:
        raise argparse.ArgumentTypeError(f"{text} is not a number of megabytes")
    return value


def _device(text: str) -> tuple[str, float]:
    name, _, size = text.partition("=")
    if not name or not 0 < (value := _number(size)) < 1e6:
        raise argparse.ArgumentTypeError(f"expected NAME=GB, such as cuda:1=6.8, got {text!r}")
    return name, value


def _ranked(text: str) -> tuple[str, str]:
    name, _, priority = text.partition("=")
    if not name or priority not in PRIORITIES:
        raise argparse.ArgumentTypeError(f"expected MODEL=PRIORITY, of {', '.join(PRIORITIES)}, got {text!r}")
    return name, priority


def _picture(text: str) -> Path:
    """A file that a picture can be written to, so that this is known before any work is done."""
    from PIL import Image

    file = Path(text)
    if file.suffix.lower() not in Image.registered_extensions():
        raise argparse.ArgumentTypeError(f"{file}: name a picture file, such as {file.stem or 'out'}.png")
    if not file.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{file}: there is no folder {file.parent}")
    return file


def _option(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    if key in TAKEN:
        raise argparse.ArgumentTypeError(f"{key}=: this name is not an adapter's option")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def completion(args: argparse.Namespace) -> int:
    """Print what a shell reads to complete this command line, the names of models too.

    bash: zoo completion bash > ~/.local/share/bash-completion/completions/zoo; zsh: to a file _zoo in a folder of its
    fpath. It works from the next shell on.
    """
    from zoo import broker
    from zoo.gateway import __main__ as gateway

    whole = build({"serve": broker.parser(), "gateway": gateway.parser()})
    return output.say(args, {"script": (text := shells.script(whole, args.shell))}, text.splitlines())


# ---------------------------------------------------------------- the table


def _argument(*names: str, **keys: Any) -> Argument:
    return names, keys


def _flag(name: str, help: str) -> Argument:
    return _argument(name, action="store_true", help=help)


def _options(name: str) -> Argument:
    return _argument(name, action="append", type=_option, default=[], metavar="KEY=VALUE",
                     help="for the adapter; VALUE is JSON or a plain word")  # fmt: skip


def _drawn(what: str) -> Argument:
    return _argument("-o", "--output", type=_picture, metavar="OUT.png", help=f"write {what} drawn on it")


MODEL = _argument("model", metavar="MODEL")
FORGET = _flag("--forget", "count what is declared, until it is measured again")
ABOUT = _argument("about", nargs="?", metavar="MODEL|REQUEST")
LOADED = (MODEL, _flag("--pin", "and keep it: it is not evicted until `zoo unpin`"))
CHECKED = _argument("--config", metavar="FILE", help="default: $ZOO_CONFIG, ./config.toml, the shipped one")
RAW = (
    _argument("--color", choices=(*pictures.COLORS, *pictures.CAMERA), help="IMAGE is raw pixels: with --size"),
    _argument("--size", type=_size, metavar="WIDTHxHEIGHT", help="of raw pixels (default of --color: rgb)"),
    _argument("--stride", type=_count, metavar="BYTES", help="of a row of Y or grey, if rows are padded"),
    _argument("--scale", type=_scale, metavar="LO,HI", help="raw pixels of 16 bits (little-endian): 0 and 255"),
)
INFERRED = (
    MODEL,
    _argument("image", metavar="IMAGE", help="a JPEG or PNG file; - reads standard input"),
    *RAW,
    _drawn("the image with the answer"),
    _argument("--box", action="append", type=_box, metavar="X1,Y1,X2,Y2",
              help="only this part, in pixels (--box=-5,0,9,9 if it begins with a minus); may be repeated, "
                   "one answer each"),
    _options("--option"),
)  # fmt: skip
ENRICHED = (
    _argument("image", nargs="+", metavar="IMAGE", help="a JPEG or PNG file; - reads standard input"),
    *RAW,
    _argument("--detector", required=True, metavar="MODEL", help="whose boxes are the detections"),
    _options("--detector-option"),
    _argument("--min-score", type=_share, metavar="SHARE", help="leave less sure detections alone"),
    _flag("--suspicious", "the event is, which some models wait for"),
    _drawn("the last image with everything"),
)
PULLED = (
    _argument("models", nargs="*", metavar="MODEL"),
    _flag("--all", "of every enabled model"),
    _argument("--config", metavar="FILE", help="default: the running broker's, else as of `zoo check`"),
    _flag("--force", "fetch them again, and replace whatever is there"),
    _flag("--pin", "print the commit and digests, to be pasted into config.toml"),
)
LOGGED = (
    _argument("model", nargs="?", metavar="MODEL"),
    _argument("-f", "--follow", action="store_true", help="go on with what is added"),
    _argument("-n", "--lines", type=_count, metavar="N", help="the last N lines alone (default: all that are kept)"),
)
RECORDED = (
    _argument("what", choices=("start", "stop", "status", "fetch"), metavar="start|stop|status|fetch"),
    _argument("file", nargs="?", type=Path, metavar="FILE", help="of fetch: where it is written"),
)
ADVISED = (
    _argument("file", nargs="?", type=Path, metavar="FILE", help="a recording (default: the running broker's)"),
    _argument("--p95", type=_seconds, metavar="SECONDS", help="find the smallest budget with which 95 %% of the "
              "requests are answered within so long"),
    _argument("--budget", type=_gigabytes, action="append", default=[], metavar="GB", help="may be repeated"),
    _argument("--policy", choices=("priority", "adaptive"), help="eviction"),
    _argument("--standby", type=_count, metavar="N"),
    _argument("--host-cache", type=_megabytes, metavar="MB"),
    _argument("--pin", action="append", default=[], metavar="MODEL"),
    _argument("--device", type=_device, action="append", default=[], metavar="NAME=GB", help="a further device"),
    _argument("--priority", type=_ranked, action="append", default=[], metavar="MODEL=PRIORITY"),
    _argument("--set", type=_option, action="append", default=[], metavar="KEY=VALUE", help="any other key of [broker] "
              "that decides what is loaded, such as idle_seconds=60"),
    _argument("-o", "--output", type=_picture, metavar="OUT.png", help="draw it"),
)  # fmt: skip
TABLE = (
    Command(commands.serve, arguments=None),
    Command(commands.gateway, arguments=None),
    Command(commands.init, None, (_argument("folder", nargs="?", type=Path, default=Path(), metavar="FOLDER"),)),
    Command(commands.check, None, (CHECKED,)),
    Command(commands.doctor, None, (CHECKED,)),
    Command(commands.ls, LIST_S, (_argument("--labels", metavar="MODEL", help="list what it calls its classes"),)),
    Command(commands.ps, LOOK_S),
    Command(commands.status, LOOK_S),
    Command(commands.top, LOOK_S),
    Command(commands.load, WORK_S, LOADED),
    Command(commands.unload, WORK_S, (MODEL,)),
    Command(commands.pin, LOOK_S, (MODEL,)),
    Command(commands.unpin, LOOK_S, (MODEL,)),
    Command(commands.footprint, LOOK_S, (_argument("model", nargs="?", metavar="MODEL"), FORGET)),
    Command(commands.reload, LOOK_S),
    Command(pictures.infer, WORK_S, INFERRED),
    Command(pictures.enrich, WORK_S, ENRICHED),
    Command(weights.pull, None, PULLED),
    Command(commands.standins, arguments=None),
    Command(commands.explain, LOOK_S, (ABOUT,)),
    Command(logs.logs, LOOK_S, LOGGED),
    Command(recordings.record, LOOK_S, RECORDED),
    Command(advising.advise, LOOK_S, ADVISED),
    Command(completion, None, (_argument("shell", choices=shells.SHELLS),)),
)
COMMANDS = {command.run.__name__: command for command in TABLE}


def build(programs: Mapping[str, Any] = MappingProxyType({})) -> Parser:
    """The parser of the whole command line.

    Args:
        programs: parsers of commands that are programs with arguments of their own. They alone read them; here they
            are only shown.
    """
    parser = Parser(
        prog="zoo",
        description="More vision models than the GPU can hold, one process each, within one budget.",
        epilog="Exit status: 0 done, 1 the zoo refused, 2 wrong usage or configuration, 3 no broker answers, "
        "4 the answer could not be written.",
        parents=[_common(None)],
    )
    parser.add_argument("--version", action=Version, nargs=0, help="show the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    everywhere = _common(argparse.SUPPRESS)
    for name, command in COMMANDS.items():
        told = inspect.getdoc(command.run) or ""
        own = command.arguments is None
        parents = [programs[name]] if name in programs else [] if own else [everywhere]
        made = subparsers.add_parser(name, help=told.partition("\n")[0], description=told, add_help=not own,
                                     parents=parents)  # fmt: skip
        for names, keys in command.arguments or ():
            made.add_argument(*names, **keys)
    return parser


def _common(default: Any) -> Parser:
    """The options that stand before or after the command. `default`: what an option is set to where it is left out."""
    common = Parser(add_help=False)
    common.add_argument("--endpoint", default=default, help="the broker's (default: $ZOO_ENDPOINT, config.toml's)")
    common.add_argument("--timeout", type=_seconds, default=default, metavar="SECONDS", help="for the answer")
    common.add_argument("--json", action="store_true", default=default or False, help="print JSON")
    return common
