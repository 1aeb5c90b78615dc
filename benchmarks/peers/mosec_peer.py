"""mosec: a Rust front, a process for each model behind it, a route for each model."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
from mosec import Runtime, Server, Worker

from benchmarks.peers import peer, work
from benchmarks.peers.http_client import CLIENTS

__all__ = ["CLIENTS", "serve"]


class Model(Worker):
    """Imported anew by each of mosec's processes, which hears from its environment what it is."""

    def __init__(self) -> None:
        self._name = os.environ["PEERS_MODEL"]
        self._function = work.MODELS[self._name].load()

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> np.ndarray:
        return self._function(work.array_of(data, self._name))

    def serialize(self, data: np.ndarray) -> bytes:
        return data.tobytes()


def serve(where: Path) -> None:
    sys.argv[1:] = ["--port", str(peer.port(where)), "--address", "127.0.0.1", "--timeout", "60000"]
    server = Server()
    server.register_runtime({f"/{name}": [Runtime(Model, env=[{"PEERS_MODEL": name}])] for name in work.names()})
    server.run()
