"""config.toml: read into a `ZooConfig`, with the line and key of every mistake.

Nothing else in the project reads configuration, but for the glance that a client takes at a ./config.toml
(`zoo/config/address.py`). tomllib does not tell where a key stands: `_lines` finds that in the text.
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec

from zoo.config import cluster, rules
from zoo.config.endpoint import endpoint_problem
from zoo.config.gateway import FrigateConfig, GatewayConfig, check_frigate, check_gateway, check_reach
from zoo.config.schema import BrokerConfig, DeviceConfig, ModelConfig, ModelPriority, ZooConfig
from zoo.errors import ConfigError
from zoo.system import files
from zoo.weights import source

Place = tuple[str, int]  # table name, index of the table among those of its name


def load_config(path: str | os.PathLike[str] | None = None) -> ZooConfig:
    """Reads and validates a configuration.

    Args:
        path: the file; None looks where `find_config` looks, and without a file gives the defaults.

    Raises:
        ConfigError: listing every mistake as `file:line: key: what is wrong`.
    """
    file = Path(path) if path is not None else find_config()
    if file is None:
        return ZooConfig()
    try:
        text = files.read_regular(file, files.MAX_TEXT).decode("utf-8").replace("\r\n", "\n")
    except (OSError, ValueError) as e:  # no UTF-8, a NUL in its name
        raise ConfigError(f"{files.shown(file)}: cannot be read: {getattr(e, 'strerror', None) or e}") from None
    return parse_config(text, file)


def find_config() -> Path | None:
    """$ZOO_CONFIG, else ./config.toml, else the one shipped with the package."""
    named = os.environ.get("ZOO_CONFIG")
    if named:
        return Path(named)
    here = Path(__file__).resolve().parent.parent
    for candidate in (Path("config.toml"), here / "config.toml", here.parent / "config.toml"):
        if candidate.is_file():
            return candidate
    return None


def parse_config(text: str, file: Path | None = None) -> ZooConfig:
    """`load_config` for a text at hand."""
    shown = str(file) if file else "config"
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as e:  # TOMLDecodeError, a number of thousands of digits, endless brackets
        at = re.search(r" ?\(at line (\d+), column \d+\)", str(e))
        line = at[1] if at else text.count("\n", 0, len(text.rstrip())) + 1 if "end of document" in str(e) else 1
        raise ConfigError(f"{shown}:{line}: not valid TOML: {e}") from None
    reader = _Reader(shown, _lines(text))
    broker = reader.table(BrokerConfig, raw.pop("broker", {}), ("broker", 0))
    devices = reader.tables(DeviceConfig, raw.pop("devices", []), "devices")
    models = reader.tables(ModelConfig, raw.pop("models", []), "models")
    enrich: Any = _read_enrich(raw.pop("enrich", {}), models, reader)
    gateway: Any = _read_gateway(raw.pop("gateway", {}), models, reader)
    nodes: Any = _read_cluster(raw.pop("cluster", {}), models, reader)
    for key in raw:
        known = "there are broker, devices, models, enrich, gateway and cluster"
        reader.wrong((key, 0), None, f"unknown table or key {key!r}; {known}")
    reader.distinct(devices, "devices")
    reader.distinct(models, "models")
    if enrich is not None and None not in models:
        _check_roles(models, enrich, reader)
    if None not in devices:
        for i, model in enumerate(models):
            reader.each(("models", i), _misplaced(model, [d.name for d in devices]) if model else ())
    if reader.mistakes:
        raise ConfigError("\n".join(reader.mistakes))
    return ZooConfig(
        broker=broker, devices=devices, models=models, enrich=enrich, gateway=gateway, cluster=nodes, file=file
    )


def _read_enrich(raw: Any, models: list[ModelConfig | None], reader: _Reader) -> rules.EnrichConfig | None:
    tables = raw.pop("rules", []) if isinstance(raw, dict) else []
    enrich: rules.EnrichConfig | None = reader.table(rules.EnrichConfig, raw, ("enrich", 0))
    read: list[rules.Rule | None] = reader.tables(rules.Rule, tables, "enrich.rules")
    sound = [rule for rule in read if rule is not None]
    names = [model.name for model in models if model is not None]
    if len(sound) < len(read) or len(names) < len(models):
        return enrich  # what is wrong there is told; more would only follow from it
    for number, key, what in rules.mistakes(sound, names):
        reader.wrong(("enrich.rules", number), key, what)
    return enrich and msgspec.structs.replace(enrich, rules=sound)


def _read_gateway(raw: Any, models: list[ModelConfig | None], reader: _Reader) -> GatewayConfig | None:
    tables = raw.pop("frigate", []) if isinstance(raw, dict) else []
    gateway: GatewayConfig | None = reader.table(GatewayConfig, raw, ("gateway", 0))
    read: list[FrigateConfig | None] = reader.tables(FrigateConfig, tables, "gateway.frigate")
    known = {model.name for model in models if model is not None}
    for number, frigate in enumerate(read):
        if frigate and gateway:
            reader.each(("gateway.frigate", number), check_reach(frigate, gateway))
        for name in sorted({*frigate.models.values()} - known) if frigate and None not in models else ():
            reader.wrong(("gateway.frigate", number), "models", f"there is no model {name!r} in this file")
    return gateway and msgspec.structs.replace(gateway, frigate=[one for one in read if one is not None])


def _read_cluster(raw: Any, models: list[ModelConfig | None], reader: _Reader) -> cluster.ClusterConfig | None:
    tables = raw.pop("nodes", []) if isinstance(raw, dict) else []
    found: cluster.ClusterConfig | None = reader.table(cluster.ClusterConfig, raw, ("cluster", 0))
    read: list[cluster.NodeConfig | None] = reader.tables(cluster.NodeConfig, tables, "cluster.nodes")
    if found is None or None in read or None in models:
        return None  # what is wrong there is told
    found = msgspec.structs.replace(found, nodes=[one for one in read if one is not None])
    for number, key, what in cluster.mistakes(found, {model.name for model in models if model is not None}):
        reader.wrong(("cluster", 0) if number is None else ("cluster.nodes", number), key, what)
    return found


def _check_roles(models: list[Any], enrich: rules.EnrichConfig, reader: _Reader) -> None:
    """One model for each of DeepStack's routes, and plates are read by the enrichment table."""
    first: dict[str, str] = {}
    for i, model in enumerate(models):
        if not model.deepstack or not model.enabled:
            continue
        other = first.setdefault(model.deepstack, model.name)
        if other != model.name:
            reader.wrong(("models", i), "deepstack", f"{other!r} says {model.deepstack!r} already; one model may")
        if model.deepstack == "alpr" and all(rule.after != model.name for rule in enrich.rules):
            what = f'no rule of [[enrich.rules]] has after = "{model.name}", for a model that reads what this one finds'
            reader.wrong(("models", i), "deepstack", what)


# ---------------------------------------------------------------- values that are fine each on its own

Mistakes = Iterator[tuple[str, str]]  # key, and what is wrong


def _check(table: Any) -> Mistakes:
    """What no type says of a table's values."""
    match table:
        case BrokerConfig():
            yield from _check_broker(table)
        case DeviceConfig(kind="cuda", name=name) if not re.fullmatch(r"cuda(:\d{1,3})?", name, re.ASCII):
            yield "name", f'expected "cuda:0", "cuda:1" …, got {name!r}'
        case ModelConfig(adapter=adapter):
            if adapter and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", adapter):
                yield "adapter", f'expected "package.module:Class", got {adapter!r}'
            yield from source.mistakes(table.published, table.path)
        case GatewayConfig():
            yield from check_gateway(table)
        case FrigateConfig():
            yield from check_frigate(table)


def _check_broker(broker: BrokerConfig) -> Mistakes:
    if broker.endpoint and (problem := endpoint_problem(broker.endpoint)):
        yield "endpoint", problem
    elif broker.endpoint.startswith("tcp://") and not broker.curve_dir:
        yield (
            "endpoint",
            "tcp:// is only served with CURVE keys: make them with `python -m zoo.curve DIR` and set curve_dir",
        )
    if broker.inline_budget_mb < (least := 2 * broker.max_inline_mb):
        yield "inline_budget_mb", f"one client may have half of it: at least 2 x max_inline_mb = {least}"
    if broker.metrics is not False and not re.fullmatch(r"[^:\s]*:\d{1,5}", broker.metrics):
        yield "metrics", f'expected "HOST:PORT" or false, got {broker.metrics!r}'


def _misplaced(model: ModelConfig, devices: list[str]) -> Mistakes:
    if model.device and model.device not in devices:
        known = f"there are {', '.join(devices)}" if devices else "there are none: leave it out"
        yield "device", f"{model.device!r} is not the name of one of the [[devices]]; {known}"
    if model.device and model.max_instances > 1:
        yield "max_instances", "a model has one worker on a device at most, and this one names its device"
    elif model.max_instances > max(1, len(devices)):
        have = f"there are {len(devices)}" if len(devices) > 1 else "there is one"
        yield "max_instances", f"a model has one worker on a device at most, and {have}"


# ---------------------------------------------------------------- tables, lines and keys


class _Reader:
    """Collects mistakes while tables become structs."""

    def __init__(self, shown: str, lines: dict[tuple[Place, str | None], int]) -> None:
        self.mistakes: list[str] = []
        self._shown = shown
        self._lines = lines

    def wrong(self, place: Place, key: str | None, what: str) -> None:
        root, _, within = place[0].partition(".")
        found = (self._lines.get(at) for at in ((place, key), (place, None), ((root, 0), within)))
        line = next(filter(None, found), 1)
        name = place[0] if key is None else f"{place[0]}.{key}"
        self.mistakes.append(f"{self._shown}:{line}: {name}: {what}")

    def each(self, place: Place, mistakes: Iterable[tuple[str, str]]) -> None:
        for key, what in mistakes:
            self.wrong(place, key, what)

    def table(self, cls: type[Any], raw: Any, place: Place) -> Any:
        """The struct, or None where a key or value is wrong by itself."""
        if not isinstance(raw, dict):
            self.wrong(place, None, f"expected a table, got {raw!r}")
            return None
        before = len(self.mistakes)
        fields = {f.encode_name: f for f in msgspec.structs.fields(cls) if f.name != "available"}
        values: dict[str, Any] = {}
        for key, value in raw.items():
            if key not in fields:
                self.wrong(place, key, f"unknown key; known are {', '.join(fields)}")
                continue
            try:
                values[fields[key].name] = _converted(value, fields[key].type)
            except (ValueError, OverflowError) as e:  # msgspec.ValidationError is a ValueError
                self.wrong(place, key, f"{e}, got {value!r:.100}")
        for key, field in fields.items():
            if field.required and key not in raw:
                self.wrong(place, None, f"the key {key!r} is missing")
        if len(self.mistakes) > before:
            return None
        made = cls(**values)
        self.each(place, _check(made))
        return made

    def tables(self, cls: type[Any], raw: Any, name: str) -> list[Any]:
        if not isinstance(raw, list):
            self.wrong((name, 0), None, f"expected [[{name}]] tables")
            return []
        return [self.table(cls, table, (name, i)) for i, table in enumerate(raw)]

    def distinct(self, tables: list[Any], name: str) -> None:
        names = [table and table.name for table in tables]
        for i, one in enumerate(names):
            if one is not None and one in names[:i]:
                self.wrong((name, i), "name", f"{one!r} is there twice")


def _converted(value: Any, hint: Any) -> Any:
    """A value of the file as its field's type. Raises ValueError, OverflowError: saying what is expected."""
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    if hint is ModelPriority:
        choices = tuple(ModelPriority.__members__)
    if choices and value not in choices:
        raise ValueError(f"expected one of {', '.join(choices)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("expected a finite number")
    return ModelPriority[value] if hint is ModelPriority else msgspec.convert(value, hint)


_HEADER = re.compile(r"^\s*(\[\[?)\s*([A-Za-z0-9_.\"'-]+)\s*\]\]?")
_KEY = re.compile(r"^\s*([A-Za-z0-9_-]+|\"[^\"]+\")\s*[.=]")


def _lines(text: str) -> dict[tuple[Place, str | None], int]:
    """The line of each key of each top-level table (tomllib does not tell)."""
    found: dict[tuple[Place, str | None], int] = {}
    counts: dict[str, int] = {}
    place: Place = ("", 0)
    prefix: str | None = None  # inside [models.options], keys belong to models.options
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            root, _, rest = header[2].partition(".")
            if header[1] == "[[":
                root, rest = header[2], ""
                counts[root] = counts.get(root, -1) + 1
            if not rest:
                place = (root, counts.get(root, 0))
                found.setdefault((place, None), number)
            prefix = rest.split(".")[0] or None
            if prefix:
                found.setdefault((place, prefix), number)
        elif prefix is None and (key := _KEY.match(line)):
            if place[0] == "":
                found.setdefault(((key[1].strip('"'), 0), None), number)
            found.setdefault((place, key[1].strip('"')), number)
    return found
