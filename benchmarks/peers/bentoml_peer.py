"""BentoML: a service with an endpoint for each model, all models in its one process.

A body as it is becomes a temporary file in the server (`Path`): of what BentoML's endpoints take, the nearest to an
array's bytes. Its own clients send arrays as JSON; pickles it accepts from its own services only.
"""
# No annotations as strings: BentoML reads them.

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import bentoml
from bentoml.validators import ContentType

from benchmarks.peers import peer, work
from benchmarks.peers.http_client import CLIENTS

__all__ = ["CLIENTS", "Models", "serve"]


class Endpoints:
    def __init__(self) -> None:
        self.functions = work.loaded()


def _endpoint(name: str) -> Any:
    async def answer(self: Endpoints, given: Annotated[Path, ContentType("application/octet-stream")], /) -> bytes:
        return self.functions[name](work.array_of(given.read_bytes(), name)).tobytes()

    answer.__name__ = f"answer_{name.replace('-', '_')}"  # it is looked up by that
    return bentoml.api(answer, route=f"/{name}")


for one in map(_endpoint, work.MODELS):
    setattr(Endpoints, one.name, one)
Models = bentoml.service(Endpoints, workers=1, traffic={"timeout": 60}, logging={"access": {"enabled": False}})


def serve(where: Path) -> None:
    os.execv(
        sys.executable,
        [
            sys.executable,
            "-m",
            "bentoml",
            "serve",
            "benchmarks.peers.bentoml_peer:Models",
            "--host",
            "127.0.0.1",
            "--port",
            str(peer.port(where)),
            "--working-dir",
            os.getcwd(),
        ],
    )
