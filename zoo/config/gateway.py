"""config.toml: the `[gateway]` table and its `[[gateway.frigate]]` ones. See `zoo/config/schema.py`."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec

from zoo.config.endpoint import endpoint_problem

HTTP = "127.0.0.1:8000"
MEGABYTE = 1 << 20

Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]
Wait = Annotated[float, msgspec.Meta(gt=0, le=3600)]


class FrigateConfig(msgspec.Struct, kw_only=True):
    """One `[[gateway.frigate]]` table: a socket that Frigate's `zmq` detector connects to.

    Attributes:
        endpoint: "ipc://PATH" or "tcp://127.0.0.1:PORT".
        models: what Frigate calls a model (the file name of its `model.path`) → its name here.
        labels: which numbers Frigate's classes have: "coco80", "coco91", or the names in their order.
    """

    endpoint: str
    models: dict[str, str]
    labels: str | list[str] = "coco80"


class GatewayConfig(msgspec.Struct, kw_only=True):
    """The `[gateway]` table.

    Attributes:
        http: "HOST:PORT" to listen on; false for none.
        tokens: file with the tokens of callers, a line each: NAME ROLE TOKEN. Read again when it changes.
        trusted_networks: addresses, such as "192.168.1.0/24", from which callers without a token may infer and load.
        hosts: further names under which the gateway is reached, such as "zoo.lan" (a `Host` header that is neither an
            address, nor this machine's name, nor one of these is refused).
        deepstack_labels: labels that DeepStack's routes for objects (detection, custom models) answer with, in this
            spelling; the others are left out. [] for all.
        deepstack_seconds: DeepStack's routes answer within it, with `success: false` where a model is not loaded by
            then: these requests do not say how long their callers wait.
        max_body_mb: the largest body of a request.
        body_seconds: how long a body may take to arrive.
        max_connections: at once; further ones are answered with 503.
        max_callers: sessions of callers at the broker, at once.
        arena_mb: shared memory of each of them for pictures under way, made with its first picture.
        shared_memory: whether callers of KServe may register regions of system shared memory.
        frigate: see `FrigateConfig`.
    """

    http: str | Literal[False] = HTTP
    tokens: str = ""
    trusted_networks: list[str] = []
    hosts: list[str] = []
    deepstack_labels: list[str] = []
    deepstack_seconds: Wait = 9.0
    max_body_mb: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 64
    body_seconds: Wait = 30.0
    max_connections: Count = 512
    max_callers: Count = 32
    arena_mb: Annotated[int, msgspec.Meta(ge=1, le=1 << 16)] = 64
    shared_memory: bool = False
    frigate: list[FrigateConfig] = []

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port to listen on."""
        return split_address(self.http) if self.http is not False else None

    @property
    def networks(self) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
        return [ipaddress.ip_network(network) for network in self.trusted_networks]

    @property
    def max_body_bytes(self) -> int:
        return self.max_body_mb * MEGABYTE


def split_address(text: str) -> tuple[str, int]:
    """Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not host or not colon or not port.isascii() or not port.isdecimal() or int(port) > 0xFFFF:
        raise ValueError(f'expected "HOST:PORT" or false, got {text!r}')
    return host.removeprefix("[").removesuffix("]"), int(port)


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_gateway(gateway: GatewayConfig) -> Iterator[tuple[str, str]]:
    """Key and mistake of each value that is fine by its type and wrong all the same."""
    for network in gateway.trusted_networks:
        try:
            ipaddress.ip_network(network)
        except ValueError as e:
            yield "trusted_networks", str(e)
    if gateway.http is False:
        return
    try:
        host, _ = split_address(gateway.http)
    except ValueError as e:
        yield "http", str(e)
        return
    if not is_loopback(host) and not gateway.tokens and not gateway.trusted_networks:
        yield (
            "http",
            f"{gateway.http} can be reached from other machines: name a file of tokens, or the trusted_networks whose "
            'machines may call without one, or keep to "127.0.0.1:PORT"',
        )


def check_frigate(frigate: FrigateConfig) -> Iterator[tuple[str, str]]:
    """As `check_gateway`."""
    if problem := endpoint_problem(frigate.endpoint):
        yield "endpoint", problem
    if not frigate.models:
        yield "models", 'name at least one: { "yolov8n.onnx" = "NAME" }'
    if isinstance(frigate.labels, str) and frigate.labels not in ("coco80", "coco91"):
        yield "labels", f'expected "coco80", "coco91" or a list of names, got {frigate.labels!r}'


def check_reach(frigate: FrigateConfig, gateway: GatewayConfig) -> Iterator[tuple[str, str]]:
    """As `check_gateway`: who can reach the endpoint."""
    host = frigate.endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    if frigate.endpoint.startswith("tcp://") and not is_loopback(host) and not gateway.trusted_networks:
        yield (
            "endpoint",
            f"{frigate.endpoint}: only ipc:// and loopback addresses without trusted_networks in [gateway]: this "
            "protocol knows no tokens",
        )
