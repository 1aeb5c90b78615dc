"""The configuration, its folders and weights, the endpoint with the broker that may serve it, and the gateway."""

from __future__ import annotations

import os
import socket
import stat
from collections import Counter
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from zoo.client.client import Client
from zoo.config.gateway import split_address
from zoo.config.reading import find_config, load_config
from zoo.config.schema import ZooConfig
from zoo.doctor.finding import OK, WARNING, WRONG, Finding
from zoo.errors import BrokerUnreachable, ConfigError, ZooError
from zoo.system.files import shown
from zoo.weights import catalogue

HTTP_S, MOST_BYTES = 3.0, 1000  # of an answer of the gateway
READY = "/v2/health/ready"
LEAST_MB = 64  # free on the disk of state_dir
Broker = dict[str, Any]  # of `get_status`


def read(path: str | None) -> tuple[ZooConfig | None, list[Finding]]:
    """The configuration that a broker here would take, and what is wrong with it: a finding for each mistake."""
    about = "config.toml"
    try:
        config = load_config(path if path is not None else find_config())
    except ConfigError as e:
        return None, [Finding(about, WRONG, line, "correct it, then `zoo check`") for line in str(e).splitlines()]
    if config.file is None:
        message = "there is none: the broker would have the defaults, and no models"
        return config, [Finding(about, WARNING, message, "`zoo init` writes one to begin with")]
    enabled = sum(model.enabled for model in config.models)
    return config, [Finding(about, OK, f"{shown(config.file.resolve())}: valid, enabled models: {enabled}")]


# ---------------------------------------------------------------- folders and weights


def folders(config: ZooConfig) -> Iterator[Finding]:
    state = config.state
    there = next(place for place in (state, *state.parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        message = f"{shown(state)} cannot be written: what is measured of models is lost with the broker"
        yield Finding("state_dir", WARNING, message, f"make it writable for user {os.geteuid()}, or set state_dir")
        return
    disk = os.statvfs(there)
    free_mb = disk.f_bavail * disk.f_frsize >> 20
    if free_mb < LEAST_MB:
        yield Finding("state_dir", WARNING, f"{shown(state)}: {free_mb} MB free on its disk", "free some space there")
    else:
        yield Finding("state_dir", OK, f"{shown(state)} can be written")


def weights(config: ZooConfig) -> Iterator[Finding]:
    """One line for those that are as they should be, one for each enabled model that cannot be served."""
    rows = [row for row in catalogue.rows(config, {}) if row["enabled"]]
    good = [row for row in rows if not row["problem"]]
    states = Counter(row["weights"] for row in good)
    if rows:
        told = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        message = f"{len(good)} of {len(rows)} enabled models can be loaded" + (f" (weights: {told})" if told else "")
        yield Finding("weights", OK, message)
    if count := states["stand-in"]:
        remedy = "`zoo pull --force MODEL` fetches the published ones"
        yield Finding("weights", WARNING, f"stand-ins: {count} models, whose answers mean nothing", remedy)
    lacking = [row["name"] for row in rows if row["weights"] == "missing" and "zoo pull" in (row["problem"] or "")]
    if lacking:
        message = (
            f"to be fetched: {len(lacking)} models have none at {shown(config.resolve(config.broker.weights_dir))}"
        )
        yield Finding("weights", WARNING, message, f"zoo pull {' '.join(lacking)}")
    for row in rows:
        if row["problem"] and row["name"] not in lacking:
            yield Finding("weights", WARNING if row["weights"] == "missing" else WRONG, row["problem"], _mend(row))


def _mend(row: dict[str, Any]) -> str:
    name = row["name"]
    if row["weights"] == "missing":
        return f"put them there, or say enabled = false of {name}"
    if "zoo pull" in row["problem"]:
        return f"zoo pull {name}"
    return f"`zoo check` says more; until then, say enabled = false of {name}"


# ---------------------------------------------------------------- endpoint and broker


def endpoint(config: ZooConfig, given: str | None, timeout: float) -> Iterator[Finding]:
    """`given`: instead of the configured one. `timeout`: seconds for a broker to answer."""
    where = given or config.endpoint
    if where.startswith("ipc://"):
        place = Path(os.path.abspath(where.removeprefix("ipc://")))
        yield _folder(place.parent)
        yield from _serves(config, where, place, timeout)
    else:
        keys = config.broker.curve_dir
        if keys and not config.resolve(keys).is_dir():
            remedy = f"`python -m zoo.curve {keys}` makes the keys"
            yield Finding("keys", WRONG, f"curve_dir: there is no folder {shown(config.resolve(keys))}", remedy)
        yield from _serves(config, where, None, timeout)


def _folder(folder: Path) -> Finding:
    """As a broker wants it: ours or root's, and no other user writes there."""
    about, remedy = "endpoint", "set endpoint in [broker] to a path in a folder of yours"
    there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    try:
        found = os.lstat(there)
    except OSError as e:
        return Finding(about, WRONG, f"{there}: {e.strerror}", remedy)
    if there != folder:
        if os.access(there, os.W_OK | os.X_OK):
            return Finding(about, OK, f"{shown(folder)} will be made by the broker")
        return Finding(about, WRONG, f"{shown(folder)} cannot be made in {shown(there)}", remedy)
    if not stat.S_ISDIR(found.st_mode):
        return Finding(about, WRONG, f"{shown(folder)} is no folder", remedy)
    if found.st_uid not in (os.geteuid(), 0):
        message = f"{shown(folder)} is of user {found.st_uid}, this is user {os.geteuid()}"
        return Finding(about, WRONG, message, f"{remedy}, or run this as that user")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not found.st_mode & stat.S_ISVTX:
        return Finding(about, WRONG, f"others may write in {shown(folder)}", f"chmod go-w {shown(folder)}")
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding(about, WRONG, f"{shown(folder)} cannot be written", remedy)
    return Finding(about, OK, f"{shown(folder)} is private")


def _serves(config: ZooConfig, where: str, path: Path | None, timeout: float) -> Iterator[Finding]:
    about = "broker"
    if path is not None and not os.path.lexists(path):
        yield Finding(about, OK, f"none runs on {where}; `zoo serve` starts one")
        yield from _ports(config)
        return
    try:
        with Client(where, timeout=timeout) as zoo:
            status = zoo.get_status()
    except ZooError as e:
        if path is not None and _is_stale(path):
            yield Finding(about, OK, f"none runs on {where}: one that was killed left its socket, the next replaces it")
            yield from _ports(config)
        elif path is None:
            remedy = "`zoo serve` starts one" if isinstance(e, BrokerUnreachable) else "do what it says, and ask again"
            yield Finding(about, WARNING, f"none answers on {where}: {e}", remedy)
        else:
            yield Finding(about, WRONG, f"something listens on {where}, but: {e}", "end it, or take another endpoint")
        return
    yield _running(config, where, status)


def _running(config: ZooConfig, where: str, status: Broker) -> Finding:
    about, told = "broker", status["broker"]
    message = f"process {told['pid']} serves {where}, loaded models: {len(status['loaded_models'])}"
    mine = shown(config.file.resolve()) if config.file is not None else ""
    if status["stopping"]:
        return Finding(about, WARNING, f"{message}; it is stopping", "wait until it has ended")
    if told.get("config", mine) != mine:
        message += f", with the configuration {told['config'] or '(defaults)'}, not {mine or 'the defaults'}"
        return Finding(about, WARNING, message, "name that file with --config, or start the broker with yours")
    if status.get("internal_errors"):
        message += f"; errors of its own so far: {status['internal_errors']}"
        return Finding(about, WARNING, message, "its log has a traceback of each: please report them")
    return Finding(about, OK, message)


def _is_stale(path: Path) -> bool:
    """A socket at which no process listens."""
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        with socket.socket(socket.AF_UNIX, kind) as sock:
            sock.settimeout(0.5)
            try:
                sock.connect(os.fspath(path))
            except ConnectionRefusedError:
                return True
            except OSError:
                continue
            return False
    return False


def _ports(config: ZooConfig) -> Iterator[Finding]:
    """While no broker runs, its ports have to be free."""
    metrics = config.broker.metrics
    if metrics is False:
        return
    try:
        host, port = split_address(metrics)
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except (OSError, ValueError) as e:
        yield Finding("metrics", WRONG, f"{metrics} cannot be listened on: {e}", "set another address in [broker]")
    else:
        yield Finding("metrics", OK, f"{metrics} is free")


# ---------------------------------------------------------------- gateway


def gateway(config: ZooConfig) -> Iterator[Finding]:
    """Whether what listens at `[gateway] http` is a gateway, and ready. Nothing where its libraries are not there."""
    if find_spec("litestar") is None or (address := config.gateway.address) is None:
        return
    about, where = "gateway", f"http://{config.gateway.http}"
    host, port = address
    if not port:
        yield Finding(about, OK, f"{where}: it will take any port that is free")
        return
    connection = HTTPConnection(host, port, timeout=HTTP_S)
    try:
        connection.request("GET", READY)
        answer = connection.getresponse()
        status, text = answer.status, answer.read(MOST_BYTES).decode("utf-8", "replace").strip()
    except ConnectionRefusedError:
        yield Finding(about, OK, f"none runs on {where}; `zoo gateway` or `zoo serve --gateway` starts one")
        return
    except (OSError, HTTPException) as e:
        status, text = 0, str(e) or type(e).__name__
    finally:
        connection.close()
    if status == 200:
        yield Finding(about, OK, f"one serves {where}, and is ready")
    elif status == 503:
        yield Finding(about, WARNING, f"one serves {where}, and is not ready: {text}", "start or repair its broker")
    else:
        remedy = "end what listens there, or set http in [gateway] to another port"
        yield Finding(about, WARNING, f"no gateway of the zoo's listens on {where} ({status or text})", remedy)
