"""Loads models, and asks each once, with the network replaced by a trap. Run as a program of its own:

    python tests/models/trapped.py WEIGHTS_DIR NAME...

Prints a JSON list of what was tried: [] if nothing was.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import traceback
import urllib.request
from importlib import import_module
from pathlib import Path
from typing import Any

tried: list[str] = []


def trap(place: Any, name: str) -> None:
    def caught(*args: Any, **_: Any) -> Any:
        if any(isinstance(arg, socket.socket) and arg.family == socket.AF_UNIX for arg in args):
            return real(*args)
        where = "".join(traceback.format_stack(limit=8)[:-1])
        tried.append(f"{getattr(place, '__name__', place)}.{name}{args[-1:]!r}\n{where}")
        raise OSError(f"{name}: the network is a trap")

    real = getattr(place, name)
    setattr(place, name, caught)


def set_traps() -> None:
    for place, name in (
        (socket, "getaddrinfo"), (socket, "gethostbyname"), (socket, "create_connection"), (socket.socket, "connect"),
        (socket.socket, "connect_ex"), (socket.socket, "sendto"), (urllib.request, "urlopen"),
        (subprocess, "check_output"), (subprocess, "run"), (os, "system"),
    ):  # fmt: skip
        trap(place, name)
    for library, name in (("requests.sessions", "Session"), ("httpx", "Client"), ("urllib3", "HTTPConnectionPool")):
        try:
            trap(getattr(import_module(library), name), {"Session": "send", "Client": "send"}.get(name, "urlopen"))
        except ImportError:
            continue


def main(weights_dir: Path, names: list[str]) -> None:
    set_traps()
    import numpy as np

    from tests.models.served import MODELS
    from workers.models.base import Input, Spec

    models = {model.name: model for model in MODELS}
    frame = np.arange(240 * 320 * 3, dtype=np.uint32).astype(np.uint8).reshape(240, 320, 3)
    for name in names:
        model = models[name]
        module, _, adapter = model.adapter.partition(":")
        made = getattr(import_module(module), adapter)()
        path = weights_dir / model.path if model.path else None
        made.load(Spec(name, path, model.category, model.options, 1, model.trust_pickle), "cpu")
        (answer,) = made.predict([Input(frame, {})])
        assert answer is not None
    print(json.dumps(tried))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
