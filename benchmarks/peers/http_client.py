"""The client of all HTTP peers: one kept connection, the array's bytes as they are, no copy of them."""

from __future__ import annotations

import http.client
from pathlib import Path

import numpy as np

from benchmarks.peers import peer, work
from benchmarks.peers.peer import Connect, Simple


class Connection:
    """`path`: of a model, whose name and process can be in it."""

    def __init__(self, port: int, path: str = "/{model}") -> None:
        self._path = path
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._http.connect()

    def post(self, path: str, body: object, kind: str = "application/octet-stream") -> bytes:
        try:
            answer = self._ask(path, body, kind)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            self._http.close()  # the server gives up connections that rest; every client tries once more
            answer = self._ask(path, body, kind)
        data = answer.read()
        if answer.status in (404, 503):  # while models load
            raise ConnectionError(data)
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {data[:200]!r}")
        return data

    def _ask(self, path: str, body: object, kind: str) -> http.client.HTTPResponse:
        self._http.request("POST", path, body, {"Content-Type": kind})
        return self._http.getresponse()

    def __call__(self, model: str, given: np.ndarray) -> np.ndarray:
        data = self.post(
            self._path.format(model=model, process=work.MODELS[model].process), memoryview(given).cast("B")
        )
        return work.answer_of(data, model)


def first(where: Path, path: str = "/{model}") -> None:
    """Raises a ConnectionError until the server answers."""
    Connection(peer.port(where), path)("bytes", work.example("bytes"))


def raw(where: Path, path: str = "/{model}") -> Simple:
    """A client of a server that takes and gives bytes at /MODEL."""
    first(where, path)
    return Simple(lambda: Connection(peer.port(where), path))


CLIENTS: dict[str, Connect] = {"": raw}
