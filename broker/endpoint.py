"""Where the broker listens: the claim on an endpoint, who may reach it, and its keys.

A claim is a lock on a file beside the socket. The kernel drops it with the process, so a broker that was killed
leaves nothing that a new one would have to guess about, and a second broker on the same endpoint is told so.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
from pathlib import Path

import zmq
import zmq.auth
from zmq.auth.thread import ThreadAuthenticator

from zoo.config import default_endpoint
from zoo.errors import ConfigError


class Place:
    """A claimed endpoint. `handoff` is where lifelines connect."""

    def __init__(self, lock: int, handoff: str, files: list[str]) -> None:
        self.handoff = handoff
        self._lock = lock
        self._files = files

    def release(self) -> None:
        for file in self._files:
            with contextlib.suppress(OSError):
                os.unlink(file)
        os.close(self._lock)


def claim(endpoint: str) -> Place:
    """Takes an endpoint for this process.

    Raises:
        ConfigError: another broker serves it, or its folder cannot be used.
    """
    if endpoint.startswith("ipc://"):
        path = endpoint.removeprefix("ipc://")
    else:  # workers and lifelines are local all the same, under a name that a broker after a killed one finds again
        path = default_endpoint().removeprefix("ipc://") + re.sub(r"[^\w.-]+", "-", endpoint.removeprefix("tcp"))
    _private(os.path.dirname(os.path.abspath(path)))
    lock = _lock(f"{path}.lock", endpoint)
    files = [path, f"{path}.handoff", f"{path}.lock"]
    try:
        for stale in files[:2]:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(stale)
    except OSError as e:
        os.close(lock)
        raise ConfigError(f"the endpoint {endpoint} cannot be used: {e}") from None
    return Place(lock, f"{path}.handoff", files)


def _private(folder: str) -> None:
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        mine = os.stat(folder)
    except OSError as e:
        raise ConfigError(f"the folder of the endpoint cannot be used: {e}") from None
    writable = mine.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if mine.st_uid not in (os.getuid(), 0) or (writable and not mine.st_mode & stat.S_ISVTX):
        raise ConfigError(f"{folder} belongs to somebody else, or others may write in it; use a folder of your own")


def _lock(path: str, endpoint: str) -> int:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as e:
        raise ConfigError(f"the endpoint {endpoint} cannot be used: {e}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise ConfigError(f"a broker (process {holder}) serves {endpoint} already") from None
    if not _is_still(fd, path):  # its last holder removed it between our open and our lock
        os.close(fd)
        return _lock(path, endpoint)
    os.ftruncate(fd, 0)
    os.write(fd, str(os.getpid()).encode())
    return fd


def _is_still(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except OSError:
        return False


def restrict(endpoint: str) -> None:
    """Only this user may connect to an ipc:// socket."""
    if endpoint.startswith("ipc://"):
        os.chmod(endpoint.removeprefix("ipc://"), 0o600)


# ---------------------------------------------------------------- CURVE, for tcp://

_authenticators: dict[int, ThreadAuthenticator] = {}


def secure(context: zmq.Context[zmq.Socket[bytes]], sock: zmq.Socket[bytes], keys: Path) -> None:
    """Makes a socket a CURVE server that knows the clients whose public keys lie in `keys/clients`.

    Raises:
        ConfigError: the keys are not there. `python -m zoo.curve DIR` makes them.
    """
    try:
        public, secret = zmq.auth.load_certificate(keys / "server.key_secret")
    except (OSError, ValueError) as e:
        raise ConfigError(f"no CURVE keys in {keys} ({e}); make them with `python -m zoo.curve {keys}`") from None
    if secret is None:
        raise ConfigError(f"{keys}/server.key_secret holds no secret key")
    authenticator = ThreadAuthenticator(context)
    authenticator.start()
    authenticator.configure_curve(domain="*", location=str(keys / "clients"))
    _authenticators[id(context)] = authenticator
    sock.curve_publickey, sock.curve_secretkey, sock.curve_server = public, secret, True


def stop_security(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    authenticator = _authenticators.pop(id(context), None)
    if authenticator is not None:
        authenticator.stop()
