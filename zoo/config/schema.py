"""config.toml: what is in it, and every mistake in it with its line and key.

`load_config` reads one file into a `ZooConfig`. Nothing else in the project parses configuration.
"""

from __future__ import annotations

import contextlib
import enum
import math
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from zoo.config import rules
from zoo.errors import ConfigError
from zoo.system import files
from zoo.weights.source import Published, mistakes

MAX_BYTES = 16 << 20  # of a config.toml
DEFAULT_BUDGET_GB = 6.8  # 6963.2 MB
MB_PER_GB = 1024
MOST_DELAY_MS = 10_000.0
MAX_IPC_PATH = 107 - len(".handoff")  # sun_path of a Unix socket, less our longest suffix

Seconds = Annotated[float, msgspec.Meta(gt=0)]
Megabytes = Annotated[float, msgspec.Meta(ge=0)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]


class ModelPriority(enum.IntEnum):
    """Who goes first when room is needed: LOW goes first, CRITICAL last and only for another CRITICAL."""

    CRITICAL = 0
    HIGH = 1
    MEDIUM = 2
    LOW = 3


class ModelConfig(msgspec.Struct, kw_only=True):
    """One `[[models]]` table.

    Attributes:
        name: what clients ask for.
        path: weights, absolute or relative to `weights_dir`; "" when the adapter's library carries them.
        category: detection, pose, classification, embedding, segmentation, depth, ocr, quality, action.
        vram_mb: declared footprint.
        adapter: "package.module:Class", or "" while there is none.
        source, revision, files, sha256: where the published weights come from: see `zoo.weights.source`.
        idle_seconds: evict after this long without use; None takes the broker's.
        dispatch_timeout: kill the worker after this long in one request; None takes the broker's.
        device: the only one of the `[[devices]]` that it is loaded on; "" leaves the choice to the broker.
        max_instances: how many workers it may have when one cannot keep up, each on a device of its own.
        max_delay_ms: the first request of a batch waits up to so long for others to fill it (where the adapter takes
            more than one): each takes longer, but the worker gets through more of them. 0: nobody waits.
        pinned: never evicted once it is loaded.
        options: for the adapter.
        trust_pickle: read the weights although their format can run code of its own (see `docs/models.md`).
        available: run time only: it has been loaded successfully at least once.
    """

    name: Name
    path: str = ""
    category: str = ""
    vram_mb: Megabytes = 0.0
    priority: ModelPriority = ModelPriority.MEDIUM
    adapter: str = ""
    source: str = ""
    revision: str = "main"
    files: tuple[str, ...] = ()
    sha256: dict[str, str] = {}
    enabled: bool = True
    pinned: bool = False
    idle_seconds: Seconds | None = None
    dispatch_timeout: Seconds | None = None
    device: str = ""
    max_instances: Annotated[int, msgspec.Meta(ge=1)] = 1
    max_delay_ms: Annotated[float, msgspec.Meta(ge=0, le=MOST_DELAY_MS)] = 0.0
    options: dict[str, Any] = {}
    trust_pickle: bool = False
    available: bool = False

    @property
    def published(self) -> Published:
        return Published(self.source, self.revision, self.files, self.sha256)


class DeviceConfig(msgspec.Struct, kw_only=True):
    """One `[[devices]]` table. `kind` is "cuda" or "cpu" (host memory); `name` such as "cuda:0" or "cpu"."""

    name: str
    kind: Literal["cuda", "cpu"]
    budget_gb: Annotated[float, msgspec.Meta(gt=0)] = DEFAULT_BUDGET_GB


class BrokerConfig(msgspec.Struct, kw_only=True):
    """The `[broker]` table.

    Attributes:
        endpoint: "ipc://PATH" or "tcp://HOST:PORT"; "" is a socket in a private directory of the user's.
        user: the account that the broker runs under, if it is not the clients' own: they believe its broker then.
        group: the Unix group whose members may connect too, each under an account of their own.
        device: "auto" takes CUDA where there is one, else host memory.
        vram_budget_gb: the budget of the one device; ignored when there are `[[devices]]`.
        reserve_mb: of each device, left free beside what other programs use (with measured footprints).
        footprint: "measured" charges `vram_mb` until a model has been seen at work, then the most that it was seen to
            use, and counts what other programs use of the device. "declared" charges `vram_mb` and nothing else.
        state_dir: where measured footprints are kept; "" is $XDG_STATE_HOME/zoo or ~/.local/state/zoo.
        idle_seconds: models unused for this long are evicted.
        request_timeout: for requests that bring no deadline of their own, and the longest drain on SIGTERM is
            `drain_seconds`.
        load_timeout, dispatch_timeout: after these a worker is killed.
        max_queue: requests waiting per model.
        max_inline_mb: the largest message that carries frames or an answer itself, where memory is not shared.
        inline_budget_mb: of all such frames and answers together that the broker holds; one client may have half.
        max_queue_per_client: requests of one client that are not answered yet, over all models.
        max_leases_per_client: leases that one client holds or waits for, over all models.
        concurrent_loads: per device.
        eviction: "priority" lets LOW go first and CRITICAL last, whatever their reload costs; "adaptive" weighs that,
            and how often, how lately and after which others a model is asked for (see `docs/eviction.md`).
        patience_seconds: how long a busy model may keep others waiting for its room.
        metrics: "HOST:PORT" for Prometheus, or false.
        arena_limit_mb: the largest arena a client may share.
        worker_threads: CPU threads per worker; 0 is a quarter of the cores, at least one.
        restore: after a restart, load again what was loaded when the broker ended, the last used first, as room allows.
        prefetch: load models that usually follow the one just asked for, into free room and while nobody waits.
        standby: processes forked ahead of need, so that a load begins at once.
        host_cache_mb: host memory for copies of loaded models, by which they come back without being read and parsed;
            beside every budget. 0 keeps none.
        preload: further modules to import in the nursery.
        environment: further variables of the broker's environment that workers get. `NAME*` is all that begin so.
        curve_dir: CURVE keys, required for tcp:// (see `python -m zoo.curve`).
        auto_pull: a worker whose model's weights are missing fetches them first, within `load_timeout`.
    """

    endpoint: str = ""
    user: str = ""
    group: str = ""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    vram_budget_gb: Annotated[float, msgspec.Meta(gt=0)] = DEFAULT_BUDGET_GB
    reserve_mb: Megabytes = 0.0
    footprint: Literal["declared", "measured"] = "measured"
    idle_seconds: Seconds = 300.0
    request_timeout: Seconds = 30.0
    load_timeout: Seconds = 60.0
    dispatch_timeout: Seconds = 30.0
    drain_seconds: Annotated[float, msgspec.Meta(ge=0)] = 5.0
    max_queue: Annotated[int, msgspec.Meta(ge=1)] = 256
    max_queue_per_client: Annotated[int, msgspec.Meta(ge=1)] = 128
    max_leases_per_client: Annotated[int, msgspec.Meta(ge=1)] = 128
    max_inline_mb: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 32
    inline_budget_mb: Annotated[int, msgspec.Meta(ge=2, le=1 << 16)] = 150
    concurrent_loads: Annotated[int, msgspec.Meta(ge=1)] = 1
    eviction: Literal["priority", "adaptive"] = "priority"
    patience_seconds: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    metrics: str | Literal[False] = False
    state_dir: str = ""
    weights_dir: str = "weights"
    arena_limit_mb: Annotated[int, msgspec.Meta(ge=1)] = 1024
    worker_threads: Annotated[int, msgspec.Meta(ge=0)] = 0
    restore: bool = False
    prefetch: bool = False
    standby: Annotated[int, msgspec.Meta(ge=0, le=64)] = 1
    host_cache_mb: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 0.0
    preload: list[str] = []
    environment: list[str] = []
    curve_dir: str = ""
    auto_pull: bool = False


class ZooConfig(msgspec.Struct, kw_only=True):
    """A whole, valid configuration. Relative paths in it start at the file's own folder."""

    broker: BrokerConfig = msgspec.field(default_factory=BrokerConfig)
    devices: list[DeviceConfig] = []
    models: list[ModelConfig] = []
    enrich: rules.EnrichConfig = msgspec.field(default_factory=rules.EnrichConfig)
    file: Path | None = None

    @property
    def base(self) -> Path:
        return self.file.parent.resolve() if self.file else Path.cwd()

    def resolve(self, path: str) -> Path:
        """A path of the configuration as an absolute one."""
        return self.base / Path(path).expanduser()

    def weights(self, model: ModelConfig) -> Path | None:
        """Where the model's weights should be; None when it needs no file."""
        return self.resolve(self.broker.weights_dir) / Path(model.path).expanduser() if model.path else None

    @property
    def state(self) -> Path:
        """The folder for what outlives a broker."""
        if self.broker.state_dir:
            return self.resolve(self.broker.state_dir)
        return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "zoo"

    @property
    def endpoint(self) -> str:
        return self.broker.endpoint or default_endpoint()


# ---------------------------------------------------------------- reading


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
        text = files.read_regular(file, MAX_BYTES).decode("utf-8").replace("\r\n", "\n")
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
    enrich = _read_enrich(raw.pop("enrich", {}), models, reader)
    for key in raw:
        reader.wrong((key, 0), None, f"unknown table or key {key!r}; there are broker, devices, models and enrich")
    reader.distinct(devices, "devices")
    reader.distinct(models, "models")
    if broker is not None:
        _check_broker(broker, reader)
    for i, device in enumerate(devices):
        if device is not None:
            _check_device(device, i, reader)
    for i, model in enumerate(models):
        if model is not None:
            _check_model(model, i, reader)
            if None not in devices:
                _check_placement(model, i, [d.name for d in devices], reader)
    if reader.mistakes:
        raise ConfigError("\n".join(reader.mistakes))
    assert broker is not None
    assert enrich is not None
    return ZooConfig(
        broker=broker,
        devices=[d for d in devices if d is not None],
        models=[m for m in models if m is not None],
        enrich=enrich,
        file=file,
    )


def _check_broker(broker: BrokerConfig, reader: _Reader) -> None:
    here = ("broker", 0)
    if broker.endpoint:
        problem = endpoint_problem(broker.endpoint)
        if problem:
            reader.wrong(here, "endpoint", problem)
        elif broker.endpoint.startswith("tcp://") and not broker.curve_dir:
            reader.wrong(
                here,
                "endpoint",
                "tcp:// is only served with CURVE keys: make them with `python -m zoo.curve DIR` and set curve_dir",
            )
    if broker.inline_budget_mb < 2 * broker.max_inline_mb:
        reader.wrong(
            here,
            "inline_budget_mb",
            f"one client may have half of it: at least 2 x max_inline_mb = {2 * broker.max_inline_mb}",
        )
    if broker.metrics is not False and not re.fullmatch(r"[^:\s]*:\d{1,5}", broker.metrics):
        reader.wrong(here, "metrics", f'expected "HOST:PORT" or false, got {broker.metrics!r}')


def _check_device(device: DeviceConfig, index: int, reader: _Reader) -> None:
    if device.kind == "cuda" and not re.fullmatch(r"cuda(:\d{1,3})?", device.name, re.ASCII):
        reader.wrong(("devices", index), "name", f'expected "cuda:0", "cuda:1" …, got {device.name!r}')


def _check_model(model: ModelConfig, index: int, reader: _Reader) -> None:
    here = ("models", index)
    if model.adapter and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", model.adapter):
        reader.wrong(here, "adapter", f'expected "package.module:Class", got {model.adapter!r}')
    for key, what in mistakes(model.published, model.path):
        reader.wrong(here, key, what)


def _check_placement(model: ModelConfig, index: int, devices: list[str], reader: _Reader) -> None:
    here = ("models", index)
    if model.device and model.device not in devices:
        known = f"there are {', '.join(devices)}" if devices else "there are none: leave it out"
        reader.wrong(here, "device", f"{model.device!r} is not the name of one of the [[devices]]; {known}")
    if model.device and model.max_instances > 1:
        reader.wrong(here, "max_instances", "a model has one worker on a device at most, and this one names its device")
    elif model.max_instances > max(1, len(devices)):
        have = f"there are {len(devices)}" if len(devices) > 1 else "there is one"
        reader.wrong(here, "max_instances", f"a model has one worker on a device at most, and {have}")


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


def endpoint_problem(endpoint: str) -> str | None:
    """What is wrong with an endpoint, or None."""
    if endpoint.startswith("ipc://"):
        path = endpoint.removeprefix("ipc://")
        if not path or path.startswith(("@", "*")) or not path.isprintable():
            return "ipc:// wants a path in the file system"
        if len(os.fsencode(path)) > MAX_IPC_PATH:
            return f"the socket's path has {len(os.fsencode(path))} bytes, at most {MAX_IPC_PATH} work"
        return None
    tcp = re.fullmatch(r"tcp://(\[[0-9a-fA-F:]+\]|[^:/\s]+):(\d{1,5}|\*)", endpoint, re.ASCII)
    if tcp:
        return None if tcp[2] == "*" or int(tcp[2]) < 1 << 16 else f"there is no port {tcp[2]}"
    return f"expected ipc://PATH or tcp://HOST:PORT, got {endpoint!r}"


def default_endpoint() -> str:
    """A socket in a directory that is this user's alone."""
    return default_endpoints()[0]


def default_endpoints() -> list[str]:
    """The default, and where a broker of the same user has it that was started in other surroundings."""
    uid = os.getuid()
    runtime = [os.environ.get("XDG_RUNTIME_DIR", "")]
    with contextlib.suppress(OSError):
        if os.stat(f"/run/user/{uid}").st_uid == uid:
            runtime.append(f"/run/user/{uid}")
    folders = [*(f"{folder}/zoo" for folder in runtime if folder), f"/tmp/zoo-{uid}"]
    return [f"ipc://{folder}/broker" for folder in dict.fromkeys(folders)]


# ---------------------------------------------------------------- lines and keys

Place = tuple[str, int]  # table name, index of the table among those of its name


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _choices(hint: Any) -> list[str]:
    """The values of a key that takes only these; empty for all other keys."""
    return [str(value) for value in get_args(hint)] if get_origin(hint) is Literal else []


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

    def table(self, cls: type[Any], raw: Any, place: Place) -> Any:
        if not isinstance(raw, dict):
            self.wrong(place, None, f"expected a table, got {raw!r}")
            return None
        before = len(self.mistakes)
        hints = get_type_hints(cls, include_extras=True)
        known = {f.encode_name: f.name for f in msgspec.structs.fields(cls) if f.name != "available"}
        values: dict[str, Any] = {}
        for key, value in raw.items():
            if key not in known:
                self.wrong(place, key, f"unknown key; known are {', '.join(known)}")
                continue
            field = known[key]
            if key == "priority" and hints[field] is ModelPriority:
                if not isinstance(value, str) or value not in ModelPriority.__members__:
                    self.wrong(place, key, f"expected one of {', '.join(ModelPriority.__members__)}, got {value!r}")
                else:
                    values[field] = ModelPriority[value]
                continue
            if isinstance(value, float) and not math.isfinite(value):
                self.wrong(place, key, f"expected a finite number, got {value!r}")
                continue
            try:
                values[field] = msgspec.convert(value, hints[field])
            except (ValueError, OverflowError) as e:  # msgspec.ValidationError is a ValueError
                choices = _choices(hints[field])
                what = f"expected one of {', '.join(choices)}" if choices else str(e)
                self.wrong(place, key, f"{what}, got {_short(value)}")
        for info in msgspec.structs.fields(cls):
            if info.required and info.encode_name not in raw:
                self.wrong(place, None, f"the key {info.encode_name!r} is missing")
        return cls(**values) if len(self.mistakes) == before else None

    def tables(self, cls: type[Any], raw: Any, name: str) -> list[Any]:
        if not isinstance(raw, list):
            self.wrong((name, 0), None, f"expected [[{name}]] tables")
            return []
        return [self.table(cls, table, (name, i)) for i, table in enumerate(raw)]

    def distinct(self, tables: list[Any], name: str) -> None:
        first: dict[str, int] = {}
        for i, table in enumerate(tables):
            if table is None:
                continue
            if table.name in first:
                self.wrong((name, i), "name", f"{table.name!r} is there twice")
            first.setdefault(table.name, i)


_HEADER = re.compile(r"^\s*(\[\[?)\s*([A-Za-z0-9_.\"'-]+)\s*\]\]?")
_KEY = re.compile(r"^\s*([A-Za-z0-9_-]+|\"[^\"]+\")\s*[.=]")


def _lines(text: str) -> dict[tuple[Place, str | None], int]:
    """The line of each key of each top-level table (tomllib does not tell)."""
    found: dict[tuple[Place, str | None], int] = {}
    counts: dict[str, int] = {}
    place: Place = ("", 0)
    prefix: str | None = None  # inside [models.options], keys belong to models.options
    for number, line in enumerate(text.splitlines(), 1):
        header = _HEADER.match(line)
        if header:
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
            continue
        key = _KEY.match(line)
        if key and prefix is None:
            if place[0] == "":
                found.setdefault(((key[1].strip('"'), 0), None), number)
            found.setdefault((place, key[1].strip('"')), number)
    return found
