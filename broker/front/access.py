"""Who may connect over tcp://, by CURVE keys, and who may change things for other clients: operators.

The folder `curve_dir` holds the broker's own keys, and those of the clients that may connect. A key file that cannot be
used is left out with a warning, the others count. libzmq asks (`callback`, in a thread) at each handshake, and never
again for a connection: ending those of a key that was taken away is the business of the caller of `read`.

Without a folder `operators` in `curve_dir`, each client that may connect may do everything. Where it exists, what
changes things for all clients, or shows the requests of others, takes a key that lies in it. Over a Unix socket the
broker's own user and root are operators, and the members of `[broker] group` are not.
"""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import zmq

from zoo.curve import read_key
from zoo.errors import AccessDenied, ConfigError
from zoo.system import files

if TYPE_CHECKING:
    from zmq.auth.thread import ThreadAuthenticator

log = logging.getLogger("zoo.broker")

Keys = dict[str, str]  # public key → name of its file


class Caller(Protocol):
    """What is known of a session: its CURVE key (Z85, "" over a Unix socket) and the user behind its lifeline."""

    @property
    def curve_key(self) -> str: ...

    @property
    def uid(self) -> int | None: ...


class Access:
    """See the module's docstring.

    Args:
        folder: `curve_dir`; None with a Unix socket that needs no keys.
        shared: a Unix socket that a group may use.

    Attributes:
        clients: who may connect, the operators included.

    Raises:
        ConfigError: a folder of keys cannot be used.
    """

    def __init__(self, folder: Path | None, shared: bool) -> None:
        self._folder = folder
        self._shared = shared
        self.clients: Keys = {}
        self._operators: Keys | None = None  # None where the folder is not there
        self._authenticator: ThreadAuthenticator | None = None
        self.read()

    # ------------------------------------------------------------ who may connect

    def read(self) -> list[str]:
        """Reads the folders again; gives what has changed, in words.

        Raises:
            ConfigError: a folder cannot be used, and nothing was changed.
        """
        if self._folder is None:
            return []
        clients = _keys(self._folder / "clients") or {}
        operators = _keys(self._folder / "operators")
        before, self.clients, self._operators = self._all(), {**clients, **(operators or {})}, operators
        now = self._all()
        told = [f"curve_dir: {kind} {name} was taken away" for key, (name, kind) in before.items() if key not in now]
        told += [f"curve_dir: {kind} {name} was added" for key, (name, kind) in now.items() if key not in before]
        kept = [(name, kind, before[key][1]) for key, (name, kind) in now.items() if key in before]
        return told + [f"curve_dir: {name}: {was} is now {kind}" for name, kind, was in kept if was != kind]

    def _all(self) -> dict[str, tuple[str, str]]:
        operators = self._operators or {}
        return {key: (name, "operator" if key in operators else "client") for key, name in self.clients.items()}

    def knows(self, key: str) -> bool:
        """Whether a client with this public key may connect; "" is that of a client at a Unix socket."""
        return not key or key in self.clients

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether a client with this public key (Z85) may connect. Called by the authenticator, in its thread."""
        return key.decode("ascii", "replace") in self.clients

    def guard(self, context: zmq.Context[zmq.Socket[bytes]], sock: zmq.Socket[bytes]) -> None:
        """Makes a socket that is not bound yet a CURVE server. Raises ConfigError: its own keys are not there."""
        from zmq.auth.thread import ThreadAuthenticator  # with asyncio: only where keys are used

        sock.curve_publickey, sock.curve_secretkey = self._own()
        sock.curve_server = True
        self._authenticator = ThreadAuthenticator(context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback(domain="*", credentials_provider=self)

    def _own(self) -> tuple[bytes, bytes]:
        assert self._folder is not None  # see `parse_config`
        file = self._folder / "server.key_secret"
        try:
            public, secret = read_key(file)
            if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                log.warning("%s can be read by other users; `chmod 600` it", file)
        except (OSError, ValueError) as e:
            text = f"no CURVE keys in {self._folder} ({e}); make them with `python -m zoo.curve {self._folder}`"
            raise ConfigError(text) from None
        if secret is None:
            raise ConfigError(f"{file} holds no secret key")
        return public, secret

    def stop(self) -> None:
        authenticator, self._authenticator = self._authenticator, None
        if authenticator is not None:
            authenticator.stop()

    # ------------------------------------------------------------ who may do what

    def is_operator(self, caller: Caller) -> bool:
        if self._operators is None:
            return True
        if caller.curve_key:
            return caller.curve_key in self._operators
        return not self._shared or caller.uid in (os.geteuid(), 0)

    def require(self, caller: Caller, what: str) -> None:
        """Raises AccessDenied when the caller may not do `what`."""
        if not self.is_operator(caller):
            raise AccessDenied(f"{what} is for operators: the keys in {self._folder}/operators")


def curve_key(frame: Any) -> str:
    """The public key (Z85) that the sender of a message proved to have; "" without CURVE."""
    try:
        return str(frame.get("User-Id"))
    except zmq.ZMQError:
        return ""


def _keys(folder: Path) -> Keys | None:
    """The public keys in the folder's *.key files; None where there is no such folder."""
    try:
        own = os.stat(folder)
        if own.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or own.st_uid not in (os.geteuid(), 0):
            raise ConfigError(f"{folder} belongs to another user, or others may write in it, and so add keys")
        names = [name for name in files.names(folder) if name.endswith(".key")]
    except FileNotFoundError:
        return None
    except OSError as e:
        raise ConfigError(f"the keys in {folder} cannot be read: {e.strerror or e}") from None
    found: Keys = {}
    for name in names:
        try:
            public, secret = read_key(folder / name)
        except (OSError, ValueError) as e:
            log.warning("the key %s is left out, the others count: %s", folder / name, e)
            continue
        found[public.decode()] = name.removesuffix(".key")
        if secret is not None:
            log.warning("%s holds a secret key; here belong public ones only", folder / name)
    return found
