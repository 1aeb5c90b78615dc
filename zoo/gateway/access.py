"""Who calls: tokens with names and roles, and networks that need none.

* With a token: the caller is that of the file. A wrong token is refused, wherever it comes from.
* Without one, from a trusted network: a caller by its address.
* Without one, from this machine, where neither tokens nor networks are configured: an operator. Other users of this
  machine can do so too, and so can all that comes through a proxy on it: configure tokens then.

Tokens are compared in constant time, and all of them, so that the time says nothing of which one was nearly right. The
file is read again when it has changed, so a token that was taken out of it ends at once.
"""

from __future__ import annotations

import base64
import binascii
import enum
import hashlib
import hmac
import ipaddress
import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

from zoo.config.gateway import GatewayConfig
from zoo.errors import ConfigError
from zoo.gateway.refusals import NotAllowed, Unauthorized, log
from zoo.system import files

LEAST_TOKEN = 16  # characters
_LINE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,63})\s+(viewer|caller|operator)\s+(\S+)\Z")


class Rights(enum.IntEnum):
    """What a caller may do; each role may do all that those before it may."""

    VIEWER = 0  # look: models, status, metrics
    CALLER = 1  # infer, load
    OPERATOR = 2  # unload, pin


class KnownCaller(NamedTuple):
    """`name` is that of the token, or of the address: callers of one name share a session, and its limits."""

    name: str
    rights: Rights

    def need(self, rights: Rights) -> None:
        """Raises NotAllowed."""
        if self.rights < rights:
            raise NotAllowed(f"{self.name} is a {self.rights.name.lower()}; this takes the role {rights.name.lower()}")


LOCAL = KnownCaller("local", Rights.OPERATOR)


class Token(NamedTuple):
    digest: bytes
    caller: KnownCaller


class Callers:
    """See the module's docstring.

    Args:
        file: of the tokens; None where there is none.
    """

    def __init__(self, config: GatewayConfig, file: Path | None) -> None:
        """Raises ConfigError: the file cannot be read, or a line of it."""
        self._networks = config.networks
        self._file = file
        self._seen: tuple[int, ...] = ()
        self._tokens: list[Token] = []
        if file is not None:
            self._read(file)

    def find(self, address: str | None, token: str | None) -> KnownCaller:
        """Raises Unauthorized.

        Args:
            address: of the other side of the connection.
            token: that came with the request; "" and None: none did.
        """
        if token:
            return self._owner(token)
        if address is not None:
            found = ipaddress.ip_address(address.partition("%")[0])
            plain = (found.ipv4_mapped or found) if isinstance(found, ipaddress.IPv6Address) else found
            if any(plain in network for network in self._networks):
                return KnownCaller(f"address {plain}", Rights.CALLER)
            if self._file is None and not self._networks and plain.is_loopback:
                return LOCAL
        raise Unauthorized("this needs a token: send it as `Authorization: Bearer TOKEN` (docs/gateway.md)")

    def _owner(self, token: str) -> KnownCaller:
        if self._file is not None:
            try:
                self._read(self._file)
            except ConfigError as e:
                log.error("the tokens stay as they were: %s", e)
        given, owner = _digest(token), None
        for known in self._tokens:
            if hmac.compare_digest(known.digest, given):
                owner = known.caller
        if owner is None:
            raise Unauthorized("this token is not known here; the file of tokens (docs/gateway.md) has those that are")
        return owner

    def _read(self, file: Path) -> None:
        """If it has changed."""
        try:
            found = file.stat()
            seen = (found.st_ino, found.st_size, found.st_mtime_ns)
            if seen == self._seen:
                return
            text = files.read_regular(file, files.MAX_TEXT).decode()
        except (OSError, ValueError) as e:
            raise ConfigError(f"gateway.tokens: {file} cannot be read: {getattr(e, 'strerror', None) or e}") from None
        if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO) and found.st_uid == os.geteuid():
            log.warning("%s can be read by other users of this machine; `chmod 600` keeps the tokens secret", file)
        self._tokens = read_tokens(text, str(file))
        self._seen = seen


def read_tokens(text: str, shown: str) -> list[Token]:
    """Raises ConfigError with the number of the line."""
    tokens = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        parts = _LINE.match(line)
        if parts is None or len(parts[3]) < LEAST_TOKEN:
            raise ConfigError(
                f"{shown}:{number}: expected NAME ROLE TOKEN; the role is viewer, caller or operator, the token has at "
                f"least {LEAST_TOKEN} characters (`openssl rand -hex 24` makes one)"
            )
        tokens.append(Token(_digest(parts[3]), KnownCaller(parts[1], Rights[parts[2].upper()])))
    return tokens


def sent_token(headers: dict[str, str]) -> str | None:
    """The token of a request's headers (names in lower case): as a bearer, as a password, or as `X-API-Key`."""
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    if kind.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, ValueError):
            return value
    return headers.get("x-api-key")


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
