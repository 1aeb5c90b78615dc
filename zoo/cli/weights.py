"""`zoo pull`: fetches the weights of models, one after another, and says of each what is there now."""

from __future__ import annotations

import contextlib
import json
import os
from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from zoo.cli import output
from zoo.cli.output import OK, REFUSED, WrongUsage, say
from zoo.errors import BrokerUnreachable, ConfigError, ModelNotFound, ModelUnavailable
from zoo.labels import listed

if TYPE_CHECKING:
    from zoo.config.schema import ModelConfig, ZooConfig
    from zoo.weights.transfer import Limits, Watch

LOOK_S = 1.0  # for a broker to say where its config.toml is
SHOWN = 200  # characters of the labels of a model


def pull(args: Namespace) -> int:
    """Fetch published weights.

    What is there already is verified and stays; what was cut off is gone on with. --timeout is how long a server may
    be silent.
    """
    from zoo.cli.progress import Bar
    from zoo.weights.transfer import LIMITS, Limits, Watch

    config = _config(args)
    chosen = _chosen(args, config)
    limits = Limits(silence_s=args.timeout) if args.timeout else LIMITS
    bar = Bar(quiet=args.json)
    watch = Watch(bar.progress, bar.note)
    rows = []
    for model in chosen:
        with contextlib.closing(bar):
            row, told = _pull(config, model, args.force, watch, limits)
        rows.append(row)
        if isinstance(told, ModelUnavailable):
            output.complain(told, args.json, "not pulled")
        elif not args.json:
            for line in (f"{model.name}: {told}", *(() if args.pin else _labels(row))):
                print(output.for_terminal(line), flush=True)
    say(args, rows, (line for row in rows if args.pin for line in _pins(row)))
    return REFUSED if any(row["error"] for row in rows) else OK


def _chosen(args: Namespace, config: ZooConfig) -> list[ModelConfig]:
    if args.all == bool(args.models):
        raise WrongUsage("name the models whose weights to fetch, or say --all")
    if args.all:
        return [model for model in config.models if model.enabled]
    known = {model.name: model for model in config.models}
    for name in args.models:
        if name not in known:
            raise ModelNotFound(output.unknown("model", name, known, "`zoo ls` lists the models"))
    return [known[name] for name in dict.fromkeys(args.models)]


def _config(args: Namespace) -> ZooConfig:
    """Of the file that was named, else the running broker's, else the one that a broker here would take.

    Raises:
        ConfigError: none that can be used, or one whose weights would come to lie in the installed package.
    """
    from zoo.config.reading import find_config, load_config

    config = load_config(args.config or _brokers_file(args) or find_config())
    folder = config.resolve(config.broker.weights_dir).resolve()
    if {"site-packages", "dist-packages"} & set(folder.parts):
        raise ConfigError(
            f"weights would be put into the installed package, {folder}: run `zoo init` in a folder of yours, or "
            "name a configuration with --config"
        )
    return config


def _brokers_file(args: Namespace) -> str | None:
    """Where a broker on this machine has its configuration; None without a broker, or when it does not say."""
    from zoo.client.client import Client
    from zoo.config.address import find_address

    address = find_address(args.endpoint)
    sockets = [place.removeprefix("ipc://") for place in (address, *address.others) if place.startswith("ipc://")]
    if not any(map(os.path.exists, sockets)):
        return None
    try:
        with Client(args.endpoint, timeout=LOOK_S) as zoo:
            said = zoo.get_status()["broker"].get("config")
    except BrokerUnreachable:
        return None
    return said if isinstance(said, str) and said else None


def _pull(
    config: ZooConfig, model: ModelConfig, force: bool, watch: Watch, limits: Limits
) -> tuple[dict[str, Any], str | ModelUnavailable]:
    """Pulls one model's weights. Gives the row for `--json`, and what to say."""
    from zoo.weights import catalogue, inventory, labels
    from zoo.weights.pull import Report, pull

    path, report, error = config.weights(model), Report({}, []), None
    if path is None:
        told = "no weights to fetch" + (f": {model.source}" if model.source else "")
    elif not model.published.fetchable and inventory.state(path) == "here":
        told = f"put there by hand, so not verified: {path}"
    else:
        try:
            report = pull(model.name, model.published, path, force=force, watch=watch, limits=limits)
        except ModelUnavailable as e:
            error = e
        told = f"{report}: {path}"
    return {
        "name": model.name,
        "path": path and str(path),
        "source": model.source,
        "fetched": report.fetched,
        "commit": report.commit,
        "files": {name: {"size": file.size, "sha256": file.sha256} for name, file in report.files.items()},
        "error": error and str(error),
        "retryable": error is not None and error.retryable,
        "weights": catalogue.weights(config, model),
        "labels": labels.described(model, path),
    }, error or told


def _labels(row: dict[str, Any]) -> Iterator[str]:
    """A line about them, if the model may have any."""
    name = row["name"]
    if row["labels"]:
        yield f"{name}: labels: {listed(row['labels'], SHOWN)}"
    elif row["labels"] is None and row["path"]:
        yield f"{name}: labels: known after its first load (`zoo load {name}`, then `zoo ls --labels {name}`)"


def _pins(row: dict[str, Any]) -> Iterator[str]:
    """A model's `revision` and `sha256`, to be pasted into its table in config.toml."""
    if row["files"]:
        yield f"\n# {row['name']}"
        if row["commit"]:
            yield f'revision = "{row["commit"]}"'
        digests = (f"{json.dumps(name)} = {json.dumps(file['sha256'])}" for name, file in row["files"].items())
        yield f"sha256 = {{ {', '.join(digests)} }}"
