"""LitServe: FastAPI in front, a process for each model behind it, messages by ZeroMQ (`fast_queue`)."""

from pathlib import Path
from typing import Annotated

import litserve
import numpy as np
from fastapi import Depends, Request, Response

from benchmarks.peers import peer, work
from benchmarks.peers.http_client import CLIENTS

__all__ = ["CLIENTS", "serve"]


async def _body(request: Request) -> bytes:
    """As it is; LitServe itself reads JSON and forms alone. It looks at annotations, so they are no strings here."""
    return await request.body()


class Model(litserve.LitAPI):
    def __init__(self, name: str) -> None:
        super().__init__(api_path=f"/{name}")
        self._name = name

    def setup(self, device: str) -> None:
        self._function = work.MODELS[self._name].load()

    def decode_request(self, request: Annotated[bytes, Depends(_body)]) -> bytes:
        return request

    def predict(self, x: bytes) -> np.ndarray:
        return self._function(work.array_of(x, self._name))

    def encode_response(self, output: np.ndarray) -> Response:
        return Response(output.tobytes())


def serve(where: Path) -> None:
    server = litserve.LitServer([Model(name) for name in work.names()], accelerator="cpu", fast_queue=True, timeout=60)
    server.run(
        host="127.0.0.1", port=peer.port(where), num_api_servers=1, generate_client_file=False, log_level="warning"
    )
