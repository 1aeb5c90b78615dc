"""Who may do what is not only a client's own affair: operators, where the broker knows of any.

Without a folder `operators` in `curve_dir`, each client that may connect may do everything. Where it exists, what
changes things for all clients, or shows the requests of others, takes a key that lies in it. Over a Unix socket the
broker's own user and root are operators, and the members of `[broker] group` are not.
"""

from __future__ import annotations

import os
from typing import Protocol

from broker.front.keyring import Keyring
from zoo.errors import AccessDenied


class Caller(Protocol):
    """What is known of a session: its CURVE key (Z85, "" over a Unix socket) and the user behind its lifeline."""

    @property
    def curve_key(self) -> str: ...

    @property
    def uid(self) -> int | None: ...


class Roles:
    """`keyring`: None without `curve_dir`. `shared`: a Unix socket that a group may use."""

    def __init__(self, keyring: Keyring | None, shared: bool) -> None:
        self._keyring = keyring
        self._shared = shared

    def is_operator(self, caller: Caller) -> bool:
        operators = self._keyring.operators if self._keyring is not None else None
        if operators is None:
            return True
        if caller.curve_key:
            return caller.curve_key in operators
        return not self._shared or caller.uid in (os.geteuid(), 0)

    def require(self, caller: Caller, what: str) -> None:
        """Raises AccessDenied when the caller may not do `what`."""
        if not self.is_operator(caller):
            assert self._keyring is not None
            raise AccessDenied(f"{what} is for operators: the keys in {self._keyring.folder / 'operators'}")
