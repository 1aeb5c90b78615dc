"""Whose broker it is: a client asks that before it says a word.

On a machine with several users, another one may have made the folder, or the socket, before the broker did; frames
would then go to that user, and answers come from there. What is looked at: the owners and modes of folder and socket,
and which user's process listens, as the kernel knows it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import socket
import stat
import time
from typing import Protocol

from zoo.config.address import SERVER_USER, Address
from zoo.errors import AccessDenied
from zoo.system.unix import credentials

LOOK_S = 0.02
SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # says nothing of whose it is


class Gone(Protocol):
    """Raised when nothing waits for the answer any more."""

    def wait(self, timeout: float) -> bool: ...


def find_server(address: Address, deadline: float, gone: Gone) -> str | None:
    """The endpoint at which a broker that may be believed listens; None when there is none in time, or `gone` is set.

    Raises:
        OSError: this process has no descriptor or memory left.
        AccessDenied: what is there belongs to a user that was not to be expected.
    """
    if not address.startswith("ipc://"):
        return str(address)
    while True:
        refused: AccessDenied | None = None
        for endpoint in (address, *address.others):
            try:
                found = _listening(endpoint.removeprefix("ipc://"), address.owners)
            except AccessDenied as e:
                if not address.others:
                    raise
                refused = refused or e
            else:
                if found is not None:
                    return f"ipc://{found}"
        if time.monotonic() > deadline or gone.wait(LOOK_S):
            if refused is not None:
                raise refused
            return None


def _listening(path: str, owners: frozenset[int], follow: bool = True) -> str | None:
    """The path at which one of the owners' processes listens; None when no process does."""
    folder, name = os.path.split(path)
    folder = folder or "."
    looked_at = f"the broker's folder {folder}"
    try:
        fd = os.open(folder, getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            own = os.fstat(fd)
            _check_owner(own.st_uid, owners, f"the folder {folder} belongs to")
            if own.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not own.st_mode & stat.S_ISVTX:
                raise AccessDenied(f"others may write in {folder}, and so answer in the broker's place (chmod go-w)")
            looked_at = path
            found = os.lstat(name, dir_fd=fd)
            _check_owner(found.st_uid, owners, f"{path} belongs to")
            if stat.S_ISLNK(found.st_mode) and follow:  # a broker elsewhere left it here, to be found
                return _listening(os.path.join(folder, os.readlink(name, dir_fd=fd)), owners, False)
        finally:
            os.close(fd)
    except FileNotFoundError:
        return None
    except OSError as e:
        if e.errno in SHORT:
            raise
        raise AccessDenied(f"{looked_at} cannot be used: {_why(e)}") from None
    if not stat.S_ISSOCK(found.st_mode):
        raise AccessDenied(f"{path} is not a socket")
    return _probe(path, owners)


def _probe(path: str, owners: frozenset[int]) -> str | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        try:
            sock.connect(path)
        except PermissionError:
            raise AccessDenied(f"this user may not connect to {path}; is it in the broker's group?") from None
        except OSError as e:  # none listens, or the queue is full
            if e.errno == errno.EPROTOTYPE:
                raise AccessDenied(f"{path} is not a broker's socket") from None
            return None
        check_server(sock, owners, path)
    return path


def check_server(sock: socket.socket, owners: frozenset[int], path: str) -> None:
    """Raises AccessDenied when the process behind a connected Unix socket is not one of the owners'."""
    if hasattr(socket, "SO_PEERCRED"):
        _check_owner(credentials(sock).uid, owners, f"{path} is served by")


def _check_owner(uid: int, owners: frozenset[int], what: str) -> None:
    if uid not in owners:
        name = str(uid)
        with contextlib.suppress(KeyError):
            name = pwd.getpwuid(uid).pw_name
        text = f"{what} user {uid} ({name}); this client believes only a broker of its own user's or root's"
        raise AccessDenied(
            f"{text}. If that user's is meant, set {SERVER_USER}={name}, or [broker] user in config.toml"
        )


def _why(e: OSError) -> str:
    if e.errno in (errno.ELOOP, errno.ENOTDIR):
        return "it is a symbolic link, or no folder; name the folder itself"
    if e.errno == errno.EACCES:
        return "this user may not enter it; is it in the broker's group?"
    return os.strerror(e.errno or 0)
