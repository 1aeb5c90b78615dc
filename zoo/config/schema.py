"""config.toml: what is in it. Every key is a field here, with its meaning, its unit and its default.

`zoo/config/reading.py` makes a `ZooConfig` of a file. A field's type and bounds are checked by msgspec; what it cannot
say of a single value, or of several together, is checked there.
"""

from __future__ import annotations

import enum
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from zoo.config import rules
from zoo.config.cluster import ClusterConfig
from zoo.config.endpoint import default_endpoints
from zoo.config.gateway import GatewayConfig
from zoo.weights.source import Published

DEFAULT_BUDGET_GB = 6.8  # 6963.2 MB
MB_PER_GB = 1024
MOST_DELAY_MS = 10_000.0

Seconds = Annotated[float, msgspec.Meta(gt=0)]
Megabytes = Annotated[float, msgspec.Meta(ge=0)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]


class ModelPriority(enum.IntEnum):
    """Which models are evicted first when memory is needed: LOW first, CRITICAL last and only for another CRITICAL."""

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
        vram_mb: declared footprint: the most that it may take, until it has been measured.
        priority: LOW is evicted first, CRITICAL last and only for another CRITICAL one (see `docs/eviction.md`).
        adapter: "package.module:Class", or "" while there is none.
        source: where the published weights come from: "hf:OWNER/NAME", the address of one file, or words for people.
        revision: branch, tag or commit of that repository.
        files: names in it that are fetched; one that ends in "?" may be missing.
        sha256: digests that files must have, by name. Where there is none, the repository's own is taken.
        enabled: false: it is listed, and not served.
        idle_seconds: evict after this long without use; None takes the broker's.
        dispatch_timeout: kill the worker after this long in one request; None takes the broker's.
        device: the only one of the `[[devices]]` that it is loaded on; "" leaves the choice to the broker.
        max_instances: how many workers it may have when one cannot keep up, each on a device of its own.
        max_delay_ms: the first request of a batch waits up to so long for others to fill it (where the adapter takes
            more than one): each takes longer, but the worker gets through more of them. 0: none waits.
        pinned: never evicted once it is loaded.
        deepstack: which of DeepStack's routes it answers (see `docs/gateway.md`); "": it is one of the custom models.
            "alpr" finds plates; the model that is `after` it in `[[enrich.rules]]` reads them.
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
    deepstack: Literal["", "detection", "face", "scene", "alpr"] = ""
    options: dict[str, Any] = {}
    trust_pickle: bool = False
    available: bool = False

    @property
    def published(self) -> Published:
        return Published(self.source, self.revision, self.files, self.sha256)


class DeviceConfig(msgspec.Struct, kw_only=True):
    """One `[[devices]]` table.

    Attributes:
        name: "cuda:0" and so on, its number among those that are visible; of kind "cpu" any name.
        kind: "cpu" is host memory.
        budget_gb: all that is loaded there stays within it.
    """

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
        state_dir: where measured footprints and labels are kept; "" is $XDG_STATE_HOME/zoo or ~/.local/state/zoo.
        weights_dir: where the models' `path`s begin, and `zoo pull` puts weights.
        idle_seconds: models unused for this long are evicted.
        request_timeout: for requests that bring no deadline of their own.
        drain_seconds: after SIGTERM, the longest time for what runs to be finished.
        load_timeout, dispatch_timeout: after these a worker is killed.
        max_queue: requests waiting per model.
        max_inline_mb: the largest message that carries frames or an answer itself, where memory is not shared.
        inline_budget_mb: of all such frames and answers together that the broker holds; one client may have half.
        max_queue_per_client: requests of one client that are not answered yet, over all models.
        max_leases_per_client: leases that one client holds or waits for, over all models.
        concurrent_loads: per device.
        eviction: "priority" lets LOW go first and CRITICAL last, whatever their reload costs; "adaptive" weighs that,
            and how often, how lately and after which others a model is asked for (see `docs/eviction.md`).
        patience_seconds: how long a busy model may keep others waiting for its memory.
        metrics: "HOST:PORT" for Prometheus, or false.
        arena_limit_mb: the largest arena a client may share.
        worker_threads: CPU threads per worker; 0 is a quarter of the cores, at least one.
        restore: after a restart, load again what was loaded when the broker ended, the last used first, as it fits.
        prefetch: load models that usually follow the one just asked for, into free memory and while no model waits.
        standby: processes forked ahead of need, so that a load begins at once.
        host_cache_mb: host memory for copies of loaded models, by which they come back without being read and parsed;
            beside every budget. 0 keeps none.
        preload: further modules to import in the nursery.
        environment: further variables of the broker's environment that workers get. `NAME*` is all that begin so.
        record: a file in which the broker keeps what was asked of it and when, for `zoo advise`: nothing of frames. ""
            is none; `zoo record` has it kept in memory for a while.
        record_mb: the most that is kept so, in memory and in the file each; the oldest goes.
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
    record: str = ""
    record_mb: Annotated[float, msgspec.Meta(ge=1, le=1024)] = 16.0
    curve_dir: str = ""
    auto_pull: bool = False


class ZooConfig(msgspec.Struct, kw_only=True):
    """A whole, valid configuration. Relative paths in it start at the file's own folder."""

    broker: BrokerConfig = msgspec.field(default_factory=BrokerConfig)
    devices: list[DeviceConfig] = []
    models: list[ModelConfig] = []
    enrich: rules.EnrichConfig = msgspec.field(default_factory=rules.EnrichConfig)
    gateway: GatewayConfig = msgspec.field(default_factory=GatewayConfig)
    cluster: ClusterConfig = msgspec.field(default_factory=ClusterConfig)
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
        return self.broker.endpoint or default_endpoints()[0]
