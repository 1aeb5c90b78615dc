"""Where a client looks for its broker, how that was decided, and whose broker it may be."""

from __future__ import annotations

import os
import pwd
import tomllib
from pathlib import Path
from typing import Any

from zoo.config.endpoint import default_endpoints, endpoint_problem
from zoo.config.reading import load_config
from zoo.config.schema import BrokerConfig
from zoo.errors import ConfigError

SERVER_USER = "ZOO_SERVER_USER"


class Address(str):
    """An endpoint.

    Attributes:
        how: where it was found, in words.
        owners: user ids whose broker is believed: this process's own, root's, and a configured one.
        others: where a broker with the default endpoint may be as well, in this order, when it is not here.
    """

    how: str
    owners: frozenset[int]
    others: tuple[str, ...]

    def __new__(cls, endpoint: str, how: str = "", user: str = "", others: tuple[str, ...] = ()) -> Address:
        made = super().__new__(cls, endpoint)
        made.how = how
        made.others = others
        named = [name for name in (user, os.environ.get(SERVER_USER, "")) if name]
        made.owners = frozenset({os.geteuid(), 0, *(user_id(name) for name in named)})
        return made


def user_id(name: str) -> int:
    """Of a user's name, or of a number as text. Raises ConfigError."""
    try:
        return int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid
    except KeyError:
        raise ConfigError(f"user: this machine has no user {name!r} (see [broker] user, ${SERVER_USER})") from None


def find_address(given: str | None = None) -> Address:
    """What was given, else $ZOO_ENDPOINT, else the configuration's, else the default.

    A ./config.toml that is another program's, or another user's, is passed over; one that $ZOO_CONFIG names is not.

    Raises:
        ConfigError: the file that $ZOO_CONFIG names cannot be used.
    """
    named = os.environ.get("ZOO_CONFIG")
    broker = load_config(named).broker if named else BrokerConfig()
    user, note = broker.user, ""
    if given:
        return Address(given, "the endpoint that was given", user)
    if endpoint := os.environ.get("ZOO_ENDPOINT"):
        return Address(endpoint, "from $ZOO_ENDPOINT", user)
    endpoint, file = broker.endpoint, named or os.path.abspath("config.toml")
    if not named:
        endpoint, user, note = _glance(Path(file))
    if endpoint:
        return Address(endpoint, f"from {file}", user)
    first, *others = default_endpoints()
    return Address(first, f"the default{note}", user, tuple(others))


def _glance(file: Path) -> tuple[str, str, str]:
    """(endpoint, user, what to say of the file) of a config.toml that lies in the working directory."""
    try:
        found = file.stat()
        if found.st_uid not in (os.geteuid(), 0):
            return "", "", f"; {file} belongs to user {found.st_uid} and is not read"
        raw: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except FileNotFoundError:
        return "", "", ""
    except (OSError, ValueError, RecursionError) as e:
        return "", "", f"; {file} cannot be read: {e}"
    broker = raw.get("broker")
    if not isinstance(broker, dict):
        return "", "", ""
    endpoint, user = broker.get("endpoint", ""), broker.get("user", "")
    if not isinstance(endpoint, str) or not isinstance(user, str) or (endpoint and endpoint_problem(endpoint)):
        return "", "", f"; broker.endpoint in {file} is none of the zoo's"
    return endpoint, user, ""
