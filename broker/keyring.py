"""The CURVE keys of a tcp:// endpoint: the broker's own, and those of the clients that may connect."""

from __future__ import annotations

from pathlib import Path

import zmq
import zmq.auth
from zmq.auth.thread import ThreadAuthenticator

from zoo.errors import ConfigError

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
