"""Where a broker listens: which endpoints there can be, and which is the default."""

from __future__ import annotations

import contextlib
import os
import re

MAX_IPC_PATH = 107 - len(".handoff")  # sun_path of a Unix socket, less our longest suffix


def endpoint_problem(endpoint: str) -> str | None:
    """What is wrong with an endpoint, or None."""
    if endpoint.startswith("ipc://"):
        path = endpoint.removeprefix("ipc://")
        if not path or path.startswith(("@", "*")) or not path.isprintable():
            return "ipc:// wants a path in the file system"
        if len(os.fsencode(path)) > MAX_IPC_PATH:
            return f"the socket's path has {len(os.fsencode(path))} bytes, at most {MAX_IPC_PATH} work"
        return None
    tcp = re.fullmatch(r"tcp://(\[[0-9a-fA-F:]+\]|[^:/\s]+):(\d{1,5}|\*)", endpoint, re.ASCII)
    if tcp:
        return None if tcp[2] == "*" or int(tcp[2]) < 1 << 16 else f"there is no port {tcp[2]}"
    return f"expected ipc://PATH or tcp://HOST:PORT, got {endpoint!r}"


def default_endpoints() -> list[str]:
    """The default, a socket in a directory that is this user's alone; and where a broker of the same user has it that
    was started in other surroundings.
    """
    uid = os.getuid()
    runtime = [os.environ.get("XDG_RUNTIME_DIR", "")]
    with contextlib.suppress(OSError):
        if os.stat(f"/run/user/{uid}").st_uid == uid:
            runtime.append(f"/run/user/{uid}")
    folders = [*(f"{folder}/zoo" for folder in runtime if folder), f"/tmp/zoo-{uid}"]
    return [f"ipc://{folder}/broker" for folder in dict.fromkeys(folders)]
