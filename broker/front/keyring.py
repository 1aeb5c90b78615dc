"""The CURVE keys of a tcp:// endpoint: the broker's own, and those of the clients that may connect.

`read` takes in what lies in the folders now; a key file that cannot be used is left out with a warning, the others
count. libzmq asks (`callback`, in a thread) at each handshake, and never again for a connection: ending those of a
key that was taken away is the business of those who `read`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zmq
from zmq.auth.thread import ThreadAuthenticator

from zoo.curve import read_key
from zoo.errors import ConfigError
from zoo.system import files

log = logging.getLogger("zoo.broker")

Keys = dict[str, str]  # public key → name of its file


class Keyring:
    """The keys in `curve_dir`.

    Attributes:
        clients: who may connect (operators may, too). operators: None where the folder is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clients: Keys = {}
        self.operators: Keys | None = None
        self._authenticator: ThreadAuthenticator | None = None
        self.read()

    def _own(self) -> tuple[bytes, bytes]:
        file = self.folder / "server.key_secret"
        try:
            public, secret = read_key(file)
            if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                log.warning("%s can be read by other users; `chmod 600` it", file)
        except (OSError, ValueError) as e:
            text = f"no CURVE keys in {self.folder} ({e}); make them with `python -m zoo.curve {self.folder}`"
            raise ConfigError(text) from None
        if secret is None:
            raise ConfigError(f"{file} holds no secret key")
        return public, secret

    def read(self) -> list[str]:
        """Reads the folders again; gives what has changed, in words.

        Raises:
            ConfigError: a folder cannot be used, and nothing was changed.
        """
        clients = _keys(self.folder / "clients") or {}
        operators = _keys(self.folder / "operators")
        before, self.clients, self.operators = self._all(), {**clients, **(operators or {})}, operators
        now = self._all()
        told = [f"curve_dir: {kind} {name} was taken away" for key, (name, kind) in before.items() if key not in now]
        told += [f"curve_dir: {kind} {name} was added" for key, (name, kind) in now.items() if key not in before]
        kept = [(name, kind, before[key][1]) for key, (name, kind) in now.items() if key in before]
        return told + [f"curve_dir: {name}: {was} is now {kind}" for name, kind, was in kept if was != kind]

    def _all(self) -> dict[str, tuple[str, str]]:
        operators = self.operators or {}
        return {key: (name, "operator" if key in operators else "client") for key, name in self.clients.items()}

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether a client with this public key (Z85) may connect. Called by the authenticator, in its thread."""
        return key.decode("ascii", "replace") in self.clients

    def guard(self, context: zmq.Context[zmq.Socket[bytes]], sock: zmq.Socket[bytes]) -> None:
        """Makes a socket that is not bound yet a CURVE server. Raises ConfigError: its own keys are not there."""
        sock.curve_publickey, sock.curve_secretkey = self._own()
        sock.curve_server = True
        authenticator = ThreadAuthenticator(context)
        authenticator.start()
        authenticator.configure_curve_callback(domain="*", credentials_provider=self)
        self._authenticator = authenticator

    def stop(self) -> None:
        authenticator, self._authenticator = self._authenticator, None
        if authenticator is not None:
            authenticator.stop()


def curve_key(frame: Any) -> str:
    """The public key (Z85) that the sender of a message proved to have; "" without CURVE."""
    try:
        return str(frame.get("User-Id"))
    except zmq.ZMQError:
        return ""


def _keys(folder: Path) -> Keys | None:
    """The public keys in the folder's *.key files; None where there is no such folder."""
    found: Keys = {}
    try:
        own = os.stat(folder)
        if own.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or own.st_uid not in (os.geteuid(), 0):
            raise ConfigError(f"{folder} belongs to another user, or others may write in it, and so add keys")
        for name in files.names(folder):
            if name.endswith(".key"):
                with _left_out_if_unusable(folder / name):
                    public, secret = read_key(folder / name)
                    found[public.decode()] = name.removesuffix(".key")
                    if secret is not None:
                        log.warning("%s holds a secret key; here belong public ones only", folder / name)
    except FileNotFoundError:
        return None
    except OSError as e:
        raise ConfigError(f"the keys in {folder} cannot be read: {e.strerror or e}") from None
    return found


@contextlib.contextmanager
def _left_out_if_unusable(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as e:
        log.warning("the key %s is left out, the others count: %s", file, e)
