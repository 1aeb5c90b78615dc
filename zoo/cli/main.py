"""`zoo`: the command line. One function per command; each asks one client and prints one answer.

Exit status: 0 done, 1 the zoo said no, 2 wrong usage or configuration, 3 no broker answers, 4 the answer could not be
written, 130 interrupted, 141 the reader of a pipe has gone. Answers go to standard output (with `--json` as one JSON
document), everything else to standard error (with `--json` an error is one JSON object on one line).
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib.metadata
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from zoo.cli import output
from zoo.errors import BrokerUnreachable, ConfigError, InvalidInput, ModelNotFound, ModelUnavailable, ZooError
from zoo.system import search_path

if TYPE_CHECKING:
    import numpy as np

    from zoo.client.client import Client
    from zoo.config.schema import ModelConfig, ZooConfig
    from zoo.weights.transfer import Limits, Watch

OK, REFUSED, USAGE, UNREACHABLE, LOST, INTERRUPTED, CUT_OFF = 0, 1, 2, 3, 4, 130, 141
_json = False  # errors as well: `--json` was given
LOOK_S = 3.0  # how long a question waits for an answer
LIST_S = 1.0  # the one that config.toml can answer as well
WORK_S = 30.0  # and a load or an inference
SHOWN = 20  # rows of a result in the readable summary
FEW = 4  # and where many models answer


class Usage(Exception):
    """The command line cannot be meant like this."""


class Parser(argparse.ArgumentParser):
    """Its complaints are ours: one line, or JSON."""

    def error(self, message: str) -> NoReturn:
        raise Usage(f"{message} (`{self.prog} --help` says more)")

    def _print_message(self, message: str, file: Any = None) -> None:
        (file or sys.stderr).write(message)  # argparse passes over what cannot be written


def main(argv: list[str] | None = None) -> int:
    """Runs one command and gives its exit status."""
    global _json
    given = sys.argv[1:] if argv is None else argv
    _json = "--json" in given
    lost = output.open_streams()
    for stream in (sys.stdout, sys.stderr):  # a file's name may hold what UTF-8 cannot say, and is shown all the same
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _run(given, lost)
        sys.stdout.flush()
        return status
    except Usage as e:
        return _complain("usage", str(e), USAGE)
    except ConfigError as e:
        return _complain("configuration", str(e), USAGE, e)
    except BrokerUnreachable as e:
        return _complain("no broker", str(e), UNREACHABLE, e)
    except ZooError as e:
        return _complain(e.code.replace("_", " "), str(e) + ("" if _json else _hint(e)), REFUSED, e)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader has seen enough, and lost the rest
        output.give_up(sys.stdout)
        return CUT_OFF
    except OSError as e:
        output.give_up(sys.stdout)
        return _complain("output", f"the answer could not be written: {e.strerror or e}", LOST)


def _run(given: list[str], lost: bool) -> int:
    parser = _parser()
    try:
        args, rest = parser.parse_known_args(given)
    except SystemExit as e:  # --help, --version
        sys.stdout.flush()
        return LOST if lost else int(e.code or 0)
    command: Callable[[argparse.Namespace], int] | None = getattr(args, "run", None)
    if command is None:
        parser.print_help(sys.stderr)
        return USAGE
    if args.command in ("serve", "standins"):  # handed on to a program of its own
        args.rest = rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    elif lost:  # before anything is done
        return _complain("output", "standard output is closed, so nothing was done; send it to /dev/null", LOST)
    return command(args)


def _complain(what: str, message: str, status: int, cause: Exception | None = None) -> int:
    line = f"zoo: {what}: {'; '.join(message.splitlines())}"
    if _json:
        line = json.dumps(output.error(what, message, status, cause), ensure_ascii=False)
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        output.give_up(sys.stderr)
    return status


def _hint(e: ZooError) -> str:
    hints = [f"trying again{f' in {e.retry_after:.1f} s' if e.retry_after else ''} may help"] if e.retryable else []
    hints += [f"`zoo explain {e.request}` tells its story"] if e.request else []
    return f" ({'; '.join(hints)})" if hints else ""


# ---------------------------------------------------------------- the command line


def _parser() -> argparse.ArgumentParser:
    def common(default: Any) -> Parser:
        parent = Parser(add_help=False)
        parent.add_argument("--endpoint", default=default, help="the broker's (default: $ZOO_ENDPOINT, config.toml's)")
        parent.add_argument("--timeout", type=_seconds, default=default, metavar="SECONDS", help="for the answer")
        parent.add_argument("--json", action="store_true", default=default or False, help="print JSON")
        return parent

    parser = Parser(
        prog="zoo",
        description="More vision models than the GPU can hold, one process each, within one budget.",
        epilog="Exit status: 0 done, 1 the zoo said no, 2 wrong usage or configuration, 3 no broker answers, "
        "4 the answer could not be written.",
        parents=[common(None)],
    )
    parser.add_argument("--version", action="version", version=f"zoo {importlib.metadata.version('model-zoo')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    everywhere = common(argparse.SUPPRESS)

    def add(name: str, run: Callable[[argparse.Namespace], int], help: str, more: str = "") -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}. {more}".strip(),
                                   parents=[everywhere])  # fmt: skip
        made.set_defaults(run=run)
        return made

    serve = commands.add_parser("serve", help="run the broker in the foreground", add_help=False)
    serve.set_defaults(run=_serve)
    init = add("init", _init, "write a config.toml to begin with, and its folders", "What is there is never replaced.")
    init.add_argument("folder", nargs="?", type=Path, default=Path(), metavar="FOLDER")
    check = add("check", _check, "read a configuration and say what keeps models from being served",
        "Imports the adapters, and serves nothing. "
        "Exit status 1: an enabled model cannot be served. 2: the file is not valid.")  # fmt: skip
    check.add_argument("--config", metavar="FILE", help="default: $ZOO_CONFIG, ./config.toml, the shipped one")
    add("ls", _ls, "list the models", "Without a broker: those of config.toml.")
    add("ps", _ps, "list the processes: one per loaded model, or more")
    add("status", _status, "show the budget and what uses it")

    load = add(
        "load",
        _load,
        "load a model",
        "It stays until its room is needed or it is idle for long. A lease would end with this command: to keep a "
        "model, pin it (--pin), or hold a lease in your program (`with zoo.load(name)`).",
    )
    load.add_argument("model")
    load.add_argument("--pin", action="store_true", help="and keep it: it is not evicted until `zoo unpin`")
    add("unload", _unload, "end a model's process and give its memory back").add_argument("model")
    add("pin", _pin, "keep a model from being evicted").add_argument("model")
    add("unpin", _pin, "let a model be evicted again").add_argument("model")

    footprint = add("footprint", _footprint, "show what was measured of the models' memory",
        "A model is charged the most of its last eight lives in which a request ran.")  # fmt: skip
    footprint.add_argument("model", nargs="?")
    footprint.add_argument("--forget", action="store_true", help="count what is declared, until it is measured again")

    add("reload", _reload, "have the broker read its config.toml again, and tell what has changed",
        "A file that is not valid changes nothing. A model that is in use goes on until it is let go. CURVE keys in "
        "curve_dir are read again as well.")  # fmt: skip

    infer = add("infer", _infer, "send one image to a model and print the answer")
    infer.add_argument("model")
    infer.add_argument("image", help="a JPEG or PNG file; - reads standard input")
    infer.add_argument(
        "-o", "--output", type=Path, metavar="OUT.png", help="write the image with the answer drawn on it"
    )
    infer.add_argument("--box", action="append", type=_box, metavar="X1,Y1,X2,Y2",
                       help="only this part, in pixels; may be repeated, one answer each")  # fmt: skip
    infer.add_argument("--option", action="append", type=_option, default=[], metavar="KEY=VALUE",
                       help="for the adapter; VALUE is JSON or a plain word")  # fmt: skip

    enrich = add(
        "enrich",
        _enrich,
        "ask the right models about everything that a detector finds in an image",
        "Which models these are, config.toml says (docs/enrich.md). Several images are a video, and the detector looks "
        "at the last one. --timeout is for the whole of it.",
    )
    enrich.add_argument("image", nargs="+", help="a JPEG or PNG file")
    enrich.add_argument("--detector", required=True, metavar="MODEL", help="whose boxes are the detections")
    enrich.add_argument("--detector-option", action="append", type=_option, default=[], metavar="KEY=VALUE",
                        help="for its adapter; VALUE is JSON or a plain word")  # fmt: skip
    enrich.add_argument("--min-score", type=_share, metavar="SHARE", help="leave less sure detections alone")
    enrich.add_argument("--suspicious", action="store_true", help="the event is, which some models wait for")
    enrich.add_argument(
        "-o", "--output", type=Path, metavar="OUT.png", help="write the last image with everything drawn on it"
    )

    pull = add(
        "pull",
        _pull,
        "fetch published weights",
        "What is there already is verified and stays; what was cut off is gone on with. --timeout is how long a server "
        "may be silent.",
    )
    pull.add_argument("models", nargs="*", metavar="MODEL")
    pull.add_argument("--all", action="store_true", help="of every enabled model")
    pull.add_argument("--config", metavar="FILE", help="default: the running broker's, else as of `zoo check`")
    pull.add_argument("--force", action="store_true", help="fetch them again, and replace whatever is there")
    pull.add_argument("--pin", action="store_true", help="print the commit and digests, to be pasted into config.toml")

    standins = commands.add_parser("standins", help="write small random checkpoints for models without weights",
                                   add_help=False)  # fmt: skip
    standins.set_defaults(run=_standins)
    explain = add(
        "explain",
        _explain,
        "tell the last decisions: loads, evictions, refusals, and why",
        "Of a MODEL also its last requests that had to wait. Of a REQUEST, by its number, all that it went through.",
    )
    explain.add_argument("about", nargs="?", metavar="MODEL|REQUEST")
    return parser


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _box(text: str) -> tuple[float, ...]:
    try:
        corners = tuple(float(part) for part in text.split(","))
    except ValueError:
        corners = ()
    if len(corners) != 4:
        raise argparse.ArgumentTypeError(f"expected X1,Y1,X2,Y2 in pixels, got {text!r}")
    return corners


def _option(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


@contextlib.contextmanager
def _client(args: argparse.Namespace, seconds: float) -> Iterator[Client]:
    from zoo.client.client import Client

    try:
        client = Client(args.endpoint, timeout=args.timeout or seconds)
    except InvalidInput as e:
        raise Usage(str(e)) from None
    with client:
        yield client


# ---------------------------------------------------------------- commands


def _serve(args: argparse.Namespace) -> int:
    rest = list(args.rest)
    if args.endpoint:
        rest += ["--endpoint", args.endpoint]
    search_path.run("zoo.broker", rest)
    return OK


def _init(args: argparse.Namespace) -> int:
    from zoo.cli import init

    file = init.write(args.folder)
    if args.json:
        _print_json({"config": str(file.resolve())})
    else:
        print(f"wrote {file}; next: describe your models in it, then `zoo check` and `zoo serve` in {file.parent}")
    return OK


def _check(args: argparse.Namespace) -> int:
    from zoo.cli import check
    from zoo.config.schema import load_config

    config = load_config(args.config)
    unknown = {"state": None, "measured_mb": None, "available": False, "pinned": False}
    rows = [{**row, **unknown} for row in check.rows(config)]
    if args.json:
        _print_json(rows)
    else:
        _print_models(rows)
    sys.stdout.flush()
    bad = [row["name"] for row in rows if row["enabled"] and row["problem"]]
    for row in rows if not args.json else ():
        if row["name"] in bad:
            print(f"zoo: {row['name']}: {row['problem']}", file=sys.stderr)
    where = config.file or "no config.toml: the defaults"
    print(f"zoo: {where}: {len(rows) - len(bad)} of {len(rows)} models are as they should be", file=sys.stderr)
    return REFUSED if bad else OK


def _standins(args: argparse.Namespace) -> int:
    search_path.run("workers.models.standins", args.rest)
    return OK


def _ls(args: argparse.Namespace) -> int:
    try:
        with _client(args, LIST_S) as zoo:
            rows, note = zoo.models(), ""
    except BrokerUnreachable:
        rows, note = _configured(), "no broker runs (`zoo serve` starts one); this is what config.toml lists"
    if args.json:
        _print_json(rows)
    else:
        _print_models(rows)
    if note and not args.json:
        sys.stdout.flush()
        print(f"zoo: {note}", file=sys.stderr)
    return OK


def _print_models(rows: list[dict[str, Any]]) -> None:
    lines = [
        (
            row["name"],
            row["category"],
            row["priority"],
            _mb(row["vram_mb"]),
            _mb(row["measured_mb"]),
            row["state"] or "-",
            row["weights"],
            _note(row),
        )
        for row in rows
    ]
    heads = ("NAME", "CATEGORY", "PRIORITY", "DECLARED", "MEASURED", "STATE", "WEIGHTS", "NOTE")
    _print_table(heads, lines, right=(3, 4))


def _note(row: dict[str, Any]) -> str:
    """What keeps the model from being served, in as few words as the columns before it leave to say."""
    if row["weights"] == "missing" and row["enabled"] and row["problem"]:
        return f"zoo pull {row['name']}" if "zoo pull" in row["problem"] else f"by hand: {row['source']}"
    if row["problem"] or row["pinned"]:
        return row["problem"] or "pinned"
    if row["enabled"] and not row["vram_mb"] and row["measured_mb"] is None:
        return "no vram_mb: counted as 0 MB until it is measured"
    return ""


def _configured() -> list[dict[str, Any]]:
    from zoo.config.schema import load_config
    from zoo.weights import catalogue

    config = load_config()
    unknown = {"state": None, "measured_mb": None, "available": False}
    rows = [{**catalogue.row(config, m), **unknown, "pinned": m.pinned} for m in config.models]
    for row, model in zip(rows, config.models, strict=True):
        if model.enabled:
            row["problem"] = row["problem"] or catalogue.too_large(config, model)
    return rows


def _pull(args: argparse.Namespace) -> int:
    from zoo.cli.progress import Bar
    from zoo.weights import catalogue
    from zoo.weights.transfer import LIMITS, Limits, Watch

    config = _pull_config(args)
    if args.all == bool(args.models):
        raise Usage("name the models whose weights to fetch, or say --all")
    known = {m.name: m for m in config.models}
    if unknown := [name for name in args.models if name not in known]:
        near = difflib.get_close_matches(unknown[0], known, 1)
        hint = f"did you mean {near[0]!r}?" if near else "`zoo ls` lists the models"
        raise ModelNotFound(f"there is no model {unknown[0]!r}; {hint}")
    chosen = [m for m in config.models if m.enabled] if args.all else [known[n] for n in dict.fromkeys(args.models)]
    limits = Limits(silence_s=args.timeout) if args.timeout else LIMITS
    bar = Bar()
    watch = Watch(bar.progress, bar.note)
    rows = []
    for model in chosen:
        path = config.weights(model)
        row: dict[str, Any] = {"name": model.name, "path": path and str(path), "source": model.source, "fetched": [],
                               "commit": None, "files": {}, "error": None, "retryable": False}  # fmt: skip
        rows.append(row)
        try:
            with contextlib.closing(bar):
                said = _pull_one(model, path, row, force=args.force, watch=watch, limits=limits)
        except ModelUnavailable as e:
            row |= {"error": str(e), "retryable": e.retryable}
            _complain("not pulled", str(e) + ("" if _json else _hint(e)), REFUSED, e)
        else:
            if not args.json:
                print(f"{model.name}: {said}", flush=True)
        row["weights"] = catalogue.row(config, model)["weights"]
    if args.json:
        _print_json(rows)
    elif args.pin:
        print("\n".join(line for row in rows for line in _pin_lines(row)))
    return REFUSED if any(row["error"] for row in rows) else OK


def _pull_config(args: argparse.Namespace) -> ZooConfig:
    """Of the file that was named, else the running broker's, else the one that a broker here would take.

    Raises:
        ConfigError: none that can be used, or one whose weights would come to lie in the installed package.
    """
    from zoo.config.schema import find_config, load_config

    file = args.config or _brokers_file(args) or find_config()
    config = load_config(file)
    folder = config.resolve(config.broker.weights_dir).resolve()
    if {"site-packages", "dist-packages"} & set(folder.parts):
        raise ConfigError(
            f"weights would be put into the installed package, {folder}: run `zoo init` in a folder of yours, or "
            "name a configuration with --config"
        )
    return config


def _brokers_file(args: argparse.Namespace) -> str | None:
    """Where a broker on this machine has its configuration; None without a broker, or when it does not say."""
    from zoo.client.client import Client
    from zoo.config.address import find_address

    address = find_address(args.endpoint)
    places = (address, *address.others)
    if not any(place.startswith("ipc://") and os.path.exists(place.removeprefix("ipc://")) for place in places):
        return None
    try:
        with Client(args.endpoint, timeout=LIST_S) as zoo:
            said = zoo.get_status()["broker"].get("config")
    except BrokerUnreachable:
        return None
    return said if isinstance(said, str) and said else None


def _pull_one(
    model: ModelConfig, path: Path | None, row: dict[str, Any], *, force: bool, watch: Watch, limits: Limits
) -> str:
    """Pulls one model's weights, fills its `row`, and gives what to say."""
    from zoo.weights import inventory
    from zoo.weights.pull import pull

    if path is None:
        return "no weights to fetch" + (f": {model.source}" if model.source else "")
    if not model.published.fetchable and inventory.state(path) == "here":
        return f"put there by hand, so not verified: {path}"
    report = pull(model.name, model.published, path, force=force, watch=watch, limits=limits)
    files = {name: {"size": file.size, "sha256": file.sha256} for name, file in report.files.items()}
    row |= {"fetched": report.fetched, "commit": report.commit, "files": files}
    done = f"fetched {len(report.fetched)} of" if report.fetched else "here and verified:"
    at = f", commit {report.commit}" if report.commit else ""
    return f"{done} {len(files)} file{'s' * (len(files) != 1)}, {report.size / 1e6:,.1f} MB{at}: {path}"


def _pin_lines(row: dict[str, Any]) -> list[str]:
    """A model's `revision` and `sha256`, to be pasted into its table in config.toml."""
    if not row["files"]:
        return []
    revision = [f'revision = "{row["commit"]}"'] if row["commit"] else []
    digests = ", ".join(f"{json.dumps(name)} = {json.dumps(file['sha256'])}" for name, file in row["files"].items())
    return [f"\n# {row['name']}", *revision, f"sha256 = {{ {digests} }}"]


def _ps(args: argparse.Namespace) -> int:
    with _client(args, LOOK_S) as zoo:
        rows = zoo.processes()
    if args.json:
        _print_json(rows)
        return OK
    if not rows:
        print("no model is loaded")
        return OK
    now = time.time()
    lines = [
        (
            row["name"],
            row["state"] + (", pinned" if row["pinned"] else ""),
            str(row["pid"] or "-"),
            row["device"],
            _mb(row["declared_mb"]),
            _mb(row["measured_mb"]),
            _mb(row["vram_mb"]),
            _mb(row["used_mb"]),
            str(row["leases"]),
            str(row["inflight"] + row["queued"]),
            str(row["requests"]),
            _ago(row["last_used"], now),
        )
        for row in rows
    ]
    heads = ("NAME", "STATE", "PID", "DEVICE", "DECLARED", "MEASURED", "CHARGED", "USED", "LEASES", "WAITING",
             "REQUESTS", "LAST USED")  # fmt: skip
    _print_table(heads, lines, right=(2, 4, 5, 6, 7, 8, 9, 10, 11))
    return OK


def _status(args: argparse.Namespace) -> int:
    with _client(args, LOOK_S) as zoo:
        status = zoo.get_status()
    if args.json:
        _print_json(status)
        return OK
    broker = status["broker"]
    print(f"broker     process {broker['pid']} on {broker['endpoint']}" + (", stopping" if status["stopping"] else ""))
    print(
        f"budget     {_mb(status['vram_used_mb'])} of {_mb(status['vram_budget_mb'])} used"
        f" ({status['vram_utilization_percent']:.1f} %), {_mb(status['vram_available_mb'])} free"
    )
    for device in status["devices"]:
        print(
            f"device     {device['name']}: {_mb(device['used_mb'])} of {_mb(device['budget_mb'])} charged;"
            f" {_known(device['device_used_mb'])} of {_known(device['device_total_mb'])} in use by everybody"
        )
        if device["limit_mb"] < device["budget_mb"]:
            print(f"           other programs leave {_mb(device['limit_mb'])} of that budget")
        if device["overrun_mb"]:
            print(f"           {_mb(device['overrun_mb'])} more than may be are charged: nothing is loaded there")
        if device["unreturned_mb"]:
            print(f"           {_mb(device['unreturned_mb'])} of ended processes have not come back")
    print(f"models     {len(status['loaded_models'])} of {len(status['registered_models'])} loaded", end="")
    print(f", loading {', '.join(status['pending_loads'])}" if status["pending_loads"] else "")
    print(f"requests   {status['running']} running, {status['requests'] - status['running']} waiting")
    print(f"clients    {status['sessions']} connected (this one included), {status['leases']} leases")
    if status["loaded_models"]:
        print()
        now = time.time()
        lines = [
            (
                row["name"],
                row["priority"],
                *map(_mb, (row["declared_mb"], row["measured_mb"], row["vram_mb"])),
                _ago(row["last_used"], now),
            )
            for row in status["loaded_models"]
        ]
        _print_table(("NAME", "PRIORITY", "DECLARED", "MEASURED", "CHARGED", "LAST USED"), lines, right=(2, 3, 4, 5))
    return OK


def _load(args: argparse.Namespace) -> int:
    started = time.monotonic()
    with _client(args, WORK_S) as zoo:
        zoo.get_model(args.model)
        if args.pin:
            zoo.pin(args.model)
    seconds = time.monotonic() - started
    pinned = " and pinned" if args.pin else ""
    return _done(
        args,
        f"{args.model} is loaded{pinned} ({seconds:.2f} s)",
        loaded=True,
        pinned=args.pin,
        seconds=round(seconds, 3),
    )


def _unload(args: argparse.Namespace) -> int:
    with _client(args, WORK_S) as zoo:
        was = zoo.unload(args.model)
    return _done(args, f"{args.model} is unloaded" if was else f"{args.model} was not loaded", unloaded=was)


def _pin(args: argparse.Namespace) -> int:
    on = args.command == "pin"
    with _client(args, LOOK_S) as zoo:
        (zoo.pin if on else zoo.unpin)(args.model)
    return _done(args, f"{args.model} is {'pinned' if on else 'not pinned any more'}", pinned=on)


def _footprint(args: argparse.Namespace) -> int:
    with _client(args, LOOK_S) as zoo:
        rows = zoo.footprint(args.model, forget=args.forget)
    if args.json:
        _print_json(rows)
        return OK
    table = []
    for row in rows:
        measured = "-" if row["measured_mb"] is None else f"{row['measured_mb']:g}"
        lives = " ".join(f"{mb:g}" for mb in row["lives_mb"])
        table.append([row["name"], row["device"], f"{row['declared_mb']:g}", measured, f"{row['charged_mb']:g}", lives])
    _print_table(["MODEL", "DEVICE", "DECLARED MB", "MEASURED", "CHARGED", "LAST LIVES"], table, right=(2, 3, 4))
    return OK


def _reload(args: argparse.Namespace) -> int:
    with _client(args, LOOK_S) as zoo:
        lines = zoo.reload()
    if args.json:
        _print_json(lines)
    else:
        print("\n".join(lines) if lines else "nothing has changed")
    return OK


def _done(args: argparse.Namespace, said: str, **values: Any) -> int:
    if args.json:
        _print_json({"model": args.model, **values})
    else:
        print(said)
    return OK


def _explain(args: argparse.Namespace) -> int:
    with _client(args, LOOK_S) as zoo:
        lines = zoo.explain(args.about)
    if args.json:
        _print_json(lines)
    else:
        print("\n".join(lines) if lines else "nothing has happened yet")
    return OK


# ---------------------------------------------------------------- infer


def _infer(args: argparse.Namespace) -> int:
    raw = _read(args.image)
    if args.output is not None:
        _check_output(args.output)
    options = _adapter_options(args.option)
    started = time.monotonic()
    with _client(args, WORK_S) as zoo:
        answer = zoo.infer(args.model, raw, boxes=args.box, **options)
        seconds = time.monotonic() - started
        results = answer if args.box else [answer]
        if args.json:
            plain = [_to_plain(result) for result in results]
            _print_json(plain if args.box else plain[0])
        else:
            print(f"{args.model}: {seconds * 1000:.0f} ms")
            for number, result in enumerate(results):
                if args.box:
                    print(f"box {','.join(f'{v:g}' for v in args.box[number])}")
                print("\n".join(f"  {line}" for line in [*_warning(result), *summary(result)]))
        if args.output is not None:
            _draw(raw, results, args.output)
    return OK


def _adapter_options(given: list[tuple[str, Any]]) -> dict[str, Any]:
    options = dict(given)
    taken = {"boxes", "color", "timeout", "priority", "model", "frame"} & options.keys()
    if taken:
        raise Usage(f"{min(taken)}=: this name is not an adapter's option")
    return options


def _enrich(args: argparse.Namespace) -> int:
    raw = [_read(image) for image in args.image]
    if args.output is not None:
        _check_output(args.output)
    options = _adapter_options(args.detector_option)
    with _client(args, WORK_S) as zoo:
        detections = zoo.infer(args.detector, raw[-1], **options)
        event = zoo.enrich(raw, detections, suspicious=args.suspicious, min_score=args.min_score, timeout=args.timeout)
        if args.json:
            _print_json({"detector": args.detector, **event.to_dict()})
        else:
            count = len(event.detections)
            print(
                f"{args.detector}: {count} detection{'s' * (count != 1)}{_mark(detections)};"
                f" {len(event.timings)} models in {event.seconds * 1000:.0f} ms"
            )
            for found in event.detections:
                print(f"{found.label}  {found.score:.2f}  {_corners(found.box)}")
                print("\n".join(_findings(found.answers, found.missing, found.skipped, found.note)))
            print("the whole frame")
            print("\n".join(_findings(event.frame, event.missing, event.skipped)))
        if args.output is not None:
            _draw(raw[-1], [event], args.output, detections=detections)
    failed = event.missing or any(found.missing for found in event.detections)
    answered = event.frame or any(found.answers for found in event.detections)
    return REFUSED if failed and not answered else OK


def _findings(
    answers: dict[str, Any], missing: dict[str, ZooError], skipped: dict[str, str], note: str = ""
) -> list[str]:
    lines = [f"  {note}"] if note else []
    for model, answer in answers.items():
        first, *more = summary(answer)
        few = more if len(more) < FEW else [*more[: FEW - 1], "and more (--json has it all)"]
        lines += [f"  {model}{_mark(answer)}: {first}", *(f"    {line}" for line in few)]
    for model, error in missing.items():
        lines.append(f"  {model}: missing, {error.code.replace('_', ' ')}: {'; '.join(str(error).splitlines())}")
    return lines + [f"  {model}: skipped, {why}" for model, why in skipped.items()] or ["  nothing was asked"]


def _read(image: str) -> bytes:
    try:
        raw = sys.stdin.buffer.read() if image == "-" else Path(image).read_bytes()
    except OSError as e:
        raise Usage(f"{image}: {e.strerror or e}") from None
    if not raw:
        raise Usage(f"{image}: it is empty")
    return raw


def _check_output(output: Path) -> None:
    """Before any work is done: whether the picture can be written at all."""
    from PIL import Image

    if output.suffix.lower() not in Image.registered_extensions():
        raise Usage(f"-o {output}: name a picture file, such as {output.stem or 'out'}.png")
    if not output.parent.is_dir():
        raise Usage(f"-o {output}: there is no folder {output.parent}")


def _draw(raw: bytes, results: list[Any], output: Path, *, detections: Any = None) -> None:
    """`detections`: what the boxes of an enrichment come from; a stand-in's are marked too."""
    from PIL import Image

    from zoo.drawing.draw import marked

    if any(isinstance(result, dict) for result in results):
        raise InvalidInput(
            f"no picture was written to {output}: this model answers a plain dict, there is nothing to draw"
        )
    frame: Any = raw
    for result in results:
        frame = result.draw(frame)
    if _is_stand_in(detections):
        frame = marked(frame)
    try:
        Image.fromarray(frame).save(output)
    except (OSError, ValueError) as e:
        raise Usage(f"-o {output}: {e}") from None
    print(f"zoo: wrote {output}", file=sys.stderr)


def _is_stand_in(answer: Any) -> bool:
    return answer.get("stand_in") is True if isinstance(answer, dict) else bool(getattr(answer, "stand_in", False))


def _mark(answer: Any) -> str:
    return " [STAND-IN]" if _is_stand_in(answer) else ""


def _warning(answer: Any) -> list[str]:
    return ["STAND-IN: the model runs on random weights, this answer means nothing"] if _is_stand_in(answer) else []


def summary(result: Any) -> list[str]:
    """A result in a few lines that a person can read."""
    from zoo import results

    match result:
        case results.Detections():
            rows = [
                f"{label}  {score:.2f}  {_corners(box)}"
                for label, score, box in zip(result.labels, result.scores, result.boxes, strict=True)
            ]
            return _some(rows, "nothing was found")
        case results.Keypoints():
            rows = [
                f"person {i}" + (f", {result.postures[i]}" if result.postures else "")
                + f": {int((result.scores[i] > 0.3).sum())} of {result.points.shape[1]} points seen"
                for i in range(len(result.points))
            ]  # fmt: skip
            return _some(rows, "nobody was found")
        case results.Classification() | results.Action():
            return _some([f"{label}  {score:.3f}" for label, score in zip(result.labels, result.scores, strict=True)])
        case results.Embedding():
            head = ", ".join(f"{v:.4f}" for v in result.vector[:4])
            return [f"{result.vector.size} numbers of unit length: {head}, …"]
        case results.DepthMap():
            return [f"{_size(result.depth)} relative depths from {result.depth.min():.3g} to {result.depth.max():.3g}"
                    " (larger is nearer)"]  # fmt: skip
        case results.Segmentation():
            shares = sorted(result.coverage.items(), key=lambda item: -item[1])
            return [f"{_size(result.mask)} pixels", *_some([f"{label}  {share:.1%}" for label, share in shares])]
        case results.OcrText():
            return [f"{result.text or '(no text)'}  {result.score:.2f}", *(f"line: {line}" for line in result.lines)]
        case results.Quality():
            return [f"{result.verdict or 'score'}  {result.score:.1f} (0 best, 100 worst)"]
        case dict():
            return _some([f"{key}: {_short(value)}" for key, value in result.items()])
    return [str(result)]


def _some(rows: list[str], none: str = "nothing") -> list[str]:
    if not rows:
        return [none]
    more = [f"and {len(rows) - SHOWN} more (--json has them all)"] if len(rows) > SHOWN else []
    return rows[:SHOWN] + more


def _corners(box: Sequence[float] | np.ndarray) -> str:
    return f"x {box[0]:.0f} to {box[2]:.0f}, y {box[1]:.0f} to {box[3]:.0f} px"


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"


def _short(value: Any) -> str:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    text = f"array of {shape} {dtype}" if shape is not None and value.size > 16 else str(value)
    return text if len(text) <= 200 else text[:199] + "…"


# ---------------------------------------------------------------- printing


def _to_plain(value: Any) -> Any:
    return value.to_dict() if hasattr(value, "to_dict") else value


def _print_json(value: Any) -> None:
    json.dump(value, sys.stdout, ensure_ascii=False, indent=2, default=lambda v: v.tolist())
    print()


def _print_table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
    table = [heads, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(heads))]
    for row in table:
        cells = [cell.rjust(widths[i]) if i in right else cell.ljust(widths[i]) for i, cell in enumerate(row)]
        print("  ".join(cells).rstrip())


def _mb(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f} MB" if value >= 10 or value == int(value) else f"{value:.1f} MB"


def _known(value: float | None) -> str:
    return "unknown" if value is None else _mb(value)


def _ago(at: str | None, now: float) -> str:
    if not at:
        return "never"
    from zoo.wire import moments

    seconds = max(0.0, now - moments.to_seconds(at))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
