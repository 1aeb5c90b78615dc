"""One node: the engine's replica. Starts or finds its node's broker, and is a thin client of it.

It keeps no model and decides nothing: what is loaded is the broker's. Calls come in as a name and its arguments, and
go out as an `NodeAnswer`, so that an error of the zoo keeps its type and fields through the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import ray
import tomli_w
from ray import serve

from zoo import AsyncClient, errors
from zoo.client import calls
from zoo.client.aio import AsyncLease
from zoo.config import reading
from zoo.errors import BrokerUnreachable, ModelUnavailable, ZooError
from zoo.ray import reports
from zoo.wire import protocol

REPORT_S = 0.2  # between two looks at the broker
START_S = 60.0  # for the broker to answer
END_S = 8.0  # for it to end: less than the engine waits for a replica
LOOK_S = 5.0  # for one look, once it has answered
FOLDER = "zoo-node-"
RENEW_S = 3.0  # how often a caller says that it still holds its leases
FORGET_S = 12.0  # a lease not renewed for so long is given back
FORWARDED = {
    "infer", "get_model", "unload", "pin", "unpin", "cleanup_idle_models", "footprint", "reload", "get_status",
    "models", "processes", "explain", "overview", "logs", "record",
}  # fmt: skip


class NodeAnswer(NamedTuple):
    """What a call came to.

    Attributes:
        node: who answers. failure: class name, text, retryable, retry_after, request of an error, or None.
        report: of the node, if the caller does not know it yet.
    """

    node: str
    value: Any = None
    failure: tuple[str, str, bool, float | None, int] | None = None
    report: dict[str, Any] | None = None


def failure(e: ZooError) -> tuple[str, str, bool, float | None, int]:
    return type(e).__name__, str(e), e.retryable, e.retry_after, e.request


def error(told: tuple[str, str, bool, float | None, int], node: str) -> ZooError:
    """The other side of `failure`."""
    name, text, retryable, retry_after, request = told
    cls = getattr(errors, name, ZooError)
    made: ZooError = cls(f"{text} (node {node})", retryable=retryable, retry_after=retry_after, request=request)
    return made


class ZooNode:
    """See the module's docstring. The engine makes it, and gives it its configuration by `reconfigure`."""

    def __init__(self) -> None:
        self.name: str = serve.get_replica_context().replica_id.unique_id
        self._labels: dict[str, str] = ray.get_runtime_context().get_node_labels()
        self._sent: dict[str, str] = {}
        self._folder = _own_folder()
        self._broker: subprocess.Popen[bytes] | None = None
        self._client: AsyncClient | None = None
        self._refuses: frozenset[str] = frozenset()
        self._report = reports.NodeReport({}, {}, {})
        self._numbers = itertools.count(secrets.randbits(60))  # no two nodes give the same
        self._leases: dict[int, AsyncLease] = {}
        self._renewed: dict[int, float] = {}
        self._watching: asyncio.Task[None] | None = None

    @property
    def client(self) -> AsyncClient:
        if self._client is None:
            raise BrokerUnreachable(f"node {self.name} is still starting")
        return self._client

    # ------------------------------------------------------------ its broker

    async def reconfigure(self, config: dict[str, str]) -> None:
        """Starts the broker, or finds it; later: has it read a changed config.toml.

        Args:
            config: `text`: config.toml; `base`: the folder that relative paths in it start at.
        """
        if config == self._sent:
            return
        endpoint = self._configure(config["text"], config["base"])
        if self._client is not None:
            await self._client.reload()
        else:
            if not endpoint:
                endpoint = f"ipc://{self._folder}/broker"
                self._start(endpoint)
            self._client = AsyncClient(endpoint, timeout=START_S)
            await self._first_look()
            self._watching = asyncio.create_task(self._watch())
        self._sent = config

    def _configure(self, text: str, base: str) -> str:
        """Writes this node's config.toml; gives the endpoint of a broker that is there anyway, or ""."""
        config = reading.parse_config(text, Path(base) / "config.toml")
        own = config.cluster.node(self._labels)
        self._refuses = frozenset(m.name for m in config.models if not config.cluster.serves(m.name, self._labels))
        raw = tomllib.loads(text)
        broker = raw.setdefault("broker", {})
        for key in ("weights_dir", "state_dir", "curve_dir"):
            if value := getattr(config.broker, key):
                broker[key] = str(config.resolve(value))
        if own.vram_budget_gb is not None:
            broker["vram_budget_gb"] = own.vram_budget_gb
        (self._folder / "config.toml").write_text(tomli_w.dumps(raw))
        return own.endpoint

    def _start(self, endpoint: str) -> None:
        hidden = {name for name in ("CUDA_VISIBLE_DEVICES",) if not os.environ.get(name)}  # the engine hides them
        self._broker = subprocess.Popen(
            [sys.executable, "-m", "zoo.ray.broker", str(os.getpid()),
             "--config", str(self._folder / "config.toml"), "--endpoint", endpoint],
            stdin=subprocess.DEVNULL, env={k: v for k, v in os.environ.items() if k not in hidden},
        )  # fmt: skip

    async def _first_look(self) -> None:
        """Raises BrokerUnreachable as soon as the broker has ended, or when it does not answer."""
        looking = asyncio.create_task(self._look(START_S))
        try:
            while not (await asyncio.wait({looking}, timeout=REPORT_S))[0]:
                self.check_health()
            await looking
        finally:
            looking.cancel()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(REPORT_S)
            with contextlib.suppress(ZooError):
                await self._look(LOOK_S)
            now = time.monotonic()
            await self.release([number for number, at in self._renewed.items() if at < now - FORGET_S])

    async def _look(self, seconds: float) -> None:
        found = await self.client._ask(calls.Call(protocol.Query(0, "room"), dict, seconds))
        number = self._report.number + 1
        self._report = reports.read({**found, "number": number, "refuses": list(self._refuses)})

    # ------------------------------------------------------------ what callers ask

    async def call(self, what: str, seen: int, about: Any, how: dict[str, Any]) -> NodeAnswer:
        """A call of `Client` by its name.

        Args:
            seen: number of the last report of this node that the caller knows.
            about: its positional arguments, of `infer` the model and the frame.
        """
        try:
            if what in ("infer", "get_model"):
                self._check_served(about[0])
            if what == "enrich_table":
                value: Any = await self.client._ask(calls.Call(protocol.Query(0, "enrich"), dict, how["timeout"]))
            elif what in FORWARDED:
                value = await getattr(self.client, what)(*about, **how)
            else:
                raise errors.InvalidInput(f"{what!r} is no call of a node")
        except ZooError as e:
            return NodeAnswer(self.name, failure=failure(e), report=self._news(seen))
        return NodeAnswer(self.name, value, report=self._news(seen))

    async def infer(self, model: str, frame: Any, seen: int, how: dict[str, Any]) -> NodeAnswer:
        """`Client.infer`. The frame is an argument of its own, so that the engine finds it in its store."""
        return await self.call("infer", seen, (model, frame), how)

    def _check_served(self, model: str) -> None:
        if model in self._refuses:
            raise ModelUnavailable(f"{model}: node {self.name} does not serve it by its labels")

    def _news(self, seen: int) -> dict[str, Any] | None:
        return reports.plain(self._report) if self._report.number > seen else None

    # ------------------------------------------------------------ leases

    async def lease(self, model: str, seen: int, how: dict[str, Any]) -> NodeAnswer:
        """`Client.load`. The value is the lease's number; it wants `renew` every few seconds."""
        try:
            self._check_served(model)
            held = await self.client.load(model, **how)
        except ZooError as e:
            return NodeAnswer(self.name, failure=failure(e), report=self._news(seen))
        number = next(self._numbers)
        self._leases[number], self._renewed[number] = held, time.monotonic()
        return NodeAnswer(self.name, number, report=self._news(seen))

    async def renew(self, numbers: list[int]) -> list[int]:
        """Those that are held, and that the broker still knows."""
        now = time.monotonic()
        held = [number for number in numbers if number in self._leases and not self._leases[number].lost]
        self._renewed.update(dict.fromkeys(held, now))
        return held

    async def release(self, numbers: list[int]) -> None:
        for number in numbers:
            self._renewed.pop(number, None)
            if (held := self._leases.pop(number, None)) is not None:
                with contextlib.suppress(ZooError):
                    await held.release()

    # ------------------------------------------------------------ the engine's

    def record_routing_stats(self) -> dict[str, Any]:
        return reports.plain(self._report)

    def check_health(self) -> None:
        """Raises BrokerUnreachable: the replica is then replaced, with a new broker."""
        if self._broker is not None and (status := self._broker.poll()) is not None:
            raise BrokerUnreachable(f"the broker of node {self.name} has ended with status {status}")

    async def __del__(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
        if self._client is not None:
            await self._client.close()
        if self._broker is not None:
            self._broker.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self._broker.wait, END_S)
            self._broker.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


def _own_folder() -> Path:
    """A new private folder. Those of replicas that were killed go: their names tell whose they were."""
    for left in Path(tempfile.gettempdir()).glob(f"{FOLDER}*-*"):
        owner = left.name.removeprefix(FOLDER).partition("-")[0]
        with contextlib.suppress(OSError):  # another replica may be at it too
            if owner.isdecimal() and not os.path.exists(f"/proc/{owner}") and left.stat().st_uid == os.getuid():
                shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{FOLDER}{os.getpid()}-"))
