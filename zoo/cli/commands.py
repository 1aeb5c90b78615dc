"""The commands without pictures and downloads. Each asks once and says the answer.

Those with a `zoo` get an open client (see `zoo.cli.parser`); each gives the exit status.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.cli import output, progress, show
from zoo.cli.output import OK, REFUSED, WrongUsage, remark, say
from zoo.errors import (
    BrokerUnreachable,
    ConfigError,
    InvalidInput,
    ModelNotFound,
    ModelUnavailable,
    ProtocolMismatch,
)
from zoo.system import program

if TYPE_CHECKING:
    from zoo.client.client import Client

LOOK_S = 2.0  # for the broker that `zoo doctor` may find
TEMPLATE = Path(__file__).with_name("init.toml")  # what `zoo init` writes

# ---------------------------------------------------------------- without a broker


def serve(args: Namespace, rest: list[str]) -> int:
    """Run the broker in the foreground."""
    program.run("zoo.broker", [*rest, *(("--endpoint", args.endpoint) if args.endpoint else ())])


def gateway(args: Namespace, rest: list[str]) -> int:
    """Run the gateway in the foreground: HTTP, and what recorders speak, for a broker that runs."""
    program.run("zoo.gateway", [*rest, *(("--endpoint", args.endpoint) if args.endpoint else ())])


def standins(args: Namespace, rest: list[str]) -> int:
    """Write small random checkpoints for models without weights."""
    program.run("workers.models.standins", rest)


def init(args: Namespace) -> int:
    """Write a config.toml to begin with, and its folders.

    What is there is never replaced.
    """
    file, text = args.folder / "config.toml", TEMPLATE.read_text(encoding="utf-8")
    try:
        args.folder.mkdir(parents=True, exist_ok=True)
        with open(file, "x", encoding="utf-8") as made:
            made.write(text)
        for name, mode in (("weights", 0o777), ("state", 0o700)):
            (args.folder / name).mkdir(mode, exist_ok=True)
    except FileExistsError as e:
        at = e.filename or file
        raise ConfigError(
            f"{at} is there already, and was left as it is; name another folder: `zoo init FOLDER`"
        ) from None
    except OSError as e:
        raise ConfigError(f"{e.filename or file} cannot be written: {e.strerror or e}") from None
    next_steps = f"next: describe your models in it, then `zoo check` and `zoo serve` in {file.parent}"
    return say(args, {"config": str(file.resolve())}, [f"wrote {file}; {next_steps}"])


def check(args: Namespace) -> int:
    """Read a configuration and say what keeps models from being served.

    Imports the adapters, and serves nothing. Exit status 1: an enabled model cannot be served. 2: the file is not
    valid.
    """
    from zoo.cli import check
    from zoo.config.reading import load_config
    from zoo.weights import catalogue

    config = load_config(args.config)
    with progress.Meanwhile(lambda: "importing the adapters of all models", quiet=args.json):
        rows = catalogue.rows(config, check.unimportable(config))
    say(args, rows, show.models(rows))
    bad = [row for row in rows if row["enabled"] and row["problem"]]
    for row in bad if not args.json else ():
        remark(f"{row['name']}: {row['problem']}")
    where = config.file or "no config.toml: the defaults"
    remark(f"{where}: {len(rows) - len(bad)} of {len(rows)} models are as they should be")
    return REFUSED if bad else OK


def doctor(args: Namespace) -> int:
    """Examine this machine and installation, and say what to do.

    Driver, memory, limits, kernel, shared memory, sockets, packages, config.toml, weights, and the broker that runs.
    Exit status 1: something is wrong.
    """
    from zoo.doctor import report
    from zoo.doctor.finding import WRONG

    found = []
    for finding in report.findings(args.config, args.endpoint, args.timeout or LOOK_S):
        found.append(finding)
        if not args.json:
            print(*show.finding(finding), sep="\n", flush=True)
    say(args, [finding._asdict() for finding in found], ())
    bad = Counter(finding.state for finding in found)
    remark(f"{len(found)} looked at: {bad['ok']} ok, {bad['warning']} warnings, {bad['wrong']} wrong")
    return REFUSED if bad[WRONG] else OK


# ---------------------------------------------------------------- questions


def ls(args: Namespace, zoo: Client) -> int:
    """List the models, or the labels of one.

    Without a broker: those of config.toml. Labels are what the model's answers call its classes, in the order of their
    numbers: as it said when it was loaded, until then as config.json or classes.txt of its weights say.
    """
    try:
        rows, note = zoo.models(args.labels), ""
    except BrokerUnreachable:
        from zoo.config.reading import load_config
        from zoo.weights import catalogue

        rows = _named(catalogue.rows(load_config(), {}), args.labels)
        note = "no broker runs (`zoo serve` starts one); this is what config.toml lists"
    if args.labels is None:
        say(args, rows, show.models(rows))
    else:
        known = _labels(rows[0])
        say(args, {"model": args.labels, "labels": known, "labels_from": rows[0]["labels_from"]}, known)
    if note and not args.json:
        remark(note)
    return OK


def _named(rows: list[dict[str, Any]], name: str | None) -> list[dict[str, Any]]:
    found = [row for row in rows if name in (None, row["name"])]
    if name is not None and not found:
        known = [row["name"] for row in rows]
        raise ModelNotFound(output.unknown("model", name, known, "`zoo ls` lists the models"))
    return found


def _labels(row: dict[str, Any]) -> list[str]:
    """Raises InvalidInput: there are none. ModelUnavailable: only a load can tell. ProtocolMismatch."""
    name: str = row["name"]
    if "labels" not in row:
        raise ProtocolMismatch(f"the broker is of an earlier release, which does not tell the labels of {name}")
    labels: list[str] | None = row["labels"]
    if labels is None:
        first = ""
        if row["weights"] == "missing":
            is_published = "zoo pull" in (row["problem"] or "")
            first = f"`zoo pull {name}`, " if is_published else "put its weights there by hand, "
        raise ModelUnavailable(
            f"the labels of {name} are known after its first load: {first}`zoo load {name}`, then ask again"
        )
    if not labels:
        raise InvalidInput(f"{name} has no labels of its own: its answers carry none, or the prompts of the request")
    return labels


def ps(args: Namespace, zoo: Client) -> int:
    """List the processes: one per loaded model, or more."""
    rows = zoo.processes()
    return say(args, rows, show.processes(rows))


def status(args: Namespace, zoo: Client) -> int:
    """Show the budget and what uses it."""
    found = zoo.get_status()
    return say(args, found, show.status(found))


def top(args: Namespace, zoo: Client) -> int:
    """Watch the zoo in this terminal: memory, models, queues, rates; load, unload and pin by key.

    It needs an extra: pip install 'model-zoo[top]'.
    """
    if args.json:
        raise WrongUsage("`zoo top` is for a terminal; `zoo status --json` and `zoo ps --json` tell the same")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise WrongUsage("`zoo top` needs a terminal; `zoo status` and `zoo ps` tell the same once")
    try:
        from zoo.top.app import Top
    except ModuleNotFoundError as e:
        raise WrongUsage(f"`zoo top` needs the package {e.name}: pip install 'model-zoo[top]'") from None
    zoo.get_status()  # a broker that cannot be reached is told before the screen is taken
    Top(zoo.endpoint).run()
    return OK


def footprint(args: Namespace, zoo: Client) -> int:
    """Show what was measured of the models' memory.

    A model is charged the most of its last eight lives in which a request ran.
    """
    rows = zoo.footprint(args.model, forget=args.forget)
    return say(args, rows, show.footprints(rows))


def explain(args: Namespace, zoo: Client) -> int:
    """Tell the last decisions: loads, evictions, refusals, and why.

    Of a MODEL also its last requests that had to wait. Of a REQUEST, by its number, all that it went through.
    """
    lines = zoo.explain(args.about)
    return say(args, lines, lines or ["nothing has happened yet"])


# ---------------------------------------------------------------- what changes something


def reload(args: Namespace, zoo: Client) -> int:
    """Have the broker read its config.toml again, and tell what has changed.

    A file that is not valid changes nothing. A model that is in use goes on until it is let go. CURVE keys in
    curve_dir are read again as well.
    """
    lines = zoo.reload()
    return say(args, lines, lines or ["nothing has changed"])


def load(args: Namespace, zoo: Client) -> int:
    """Load a model.

    It stays until its room is needed or it is idle for long. A lease would end with this command: to keep a model,
    pin it (--pin), or hold a lease in your program (`with zoo.load(name)`).
    """
    started = time.monotonic()
    with progress.Meanwhile(progress.waits_of(zoo), quiet=args.json):
        zoo.get_model(args.model)
    if args.pin:
        zoo.pin(args.model)
    seconds = time.monotonic() - started
    done = f"is loaded{' and pinned' if args.pin else ''} ({seconds:.2f} s)"
    return _done(args, done, loaded=True, pinned=args.pin, seconds=round(seconds, 3))


def unload(args: Namespace, zoo: Client) -> int:
    """End a model's process and give its memory back."""
    with progress.Meanwhile(lambda: f"{args.model}: {zoo.models(args.model)[0]['state']}", quiet=args.json):
        was = zoo.unload(args.model)
    return _done(args, "is unloaded" if was else "was not loaded", unloaded=was)


def pin(args: Namespace, zoo: Client) -> int:
    """Keep a model from being evicted."""
    zoo.pin(args.model)
    return _done(args, "is pinned", pinned=True)


def unpin(args: Namespace, zoo: Client) -> int:
    """Let a model be evicted again."""
    zoo.unpin(args.model)
    return _done(args, "is not pinned any more", pinned=False)


def _done(args: Namespace, what: str, **values: Any) -> int:
    return say(args, {"model": args.model, **values}, [f"{args.model} {what}"])
