"""FastAPI under uvicorn with uvloop and httptools: an endpoint per model, all models in the server's one process.

A raw body; and a JPEG in base64 in JSON, as most examples have it, which loses the exact pixels: its answers are
checked to within four grey levels. To several models at once: one request with one frame, which is easily written.
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Response
from PIL import Image
from pydantic import BaseModel

from benchmarks.peers import peer, work
from benchmarks.peers.http_client import Connection, first
from benchmarks.peers.peer import Connect, Given, Simple

app = FastAPI()
functions: dict[str, work.Function] = {}


class Picture(BaseModel):
    image: str


@app.post("/jpeg/{model}")
def jpeg(model: str, picture: Picture) -> list[float]:
    with Image.open(io.BytesIO(base64.b64decode(picture.image))) as image:
        found: list[float] = functions[model](np.asarray(image)).tolist()
    return found


@app.post("/{models}")
async def raw(models: str, request: Request) -> Response:
    names = models.split(",")
    given = work.array_of(await request.body(), names[0])
    return Response(b"".join(functions[name](given).tobytes() for name in names))


def serve(where: Path) -> None:
    functions.update(work.loaded())
    uvicorn.run(app, port=peer.port(where), log_level="warning", loop="uvloop", http="httptools")


class _Raw(Simple):
    _call: Connection

    def infer_many(self, models: tuple[str, ...], given: Given) -> list[np.ndarray]:
        data = self._call.post("/" + ",".join(models), memoryview(given.array).cast("B"))
        return list(np.frombuffer(data, np.float32).reshape(len(models), 1))


class _Jpeg(Simple):
    """Quality 90, by Pillow. Only of pictures, and of one model."""

    tolerance = 4.0
    _call: Connection

    def infer(self, model: str, given: Given) -> np.ndarray:
        if model != "frame":
            raise NotImplementedError("a JPEG is not what it was, and JSON not for arrays")
        file = io.BytesIO()
        Image.fromarray(given.array).save(file, "JPEG", quality=90)
        body = json.dumps({"image": base64.b64encode(file.getvalue()).decode()})
        data = self._call.post(f"/jpeg/{model}", body, "application/json")
        return np.array(json.loads(data), np.float32)

    def infer_many(self, models: tuple[str, ...], given: Given) -> list[np.ndarray]:
        raise NotImplementedError("it would be the same as six requests")


def _client(kind: type[Simple]) -> Connect:
    def connect(where: Path) -> Simple:
        first(where)
        return kind(lambda: Connection(peer.port(where)))

    return connect


CLIENTS = {"raw body": _client(_Raw), "JPEG and base64 in JSON": _client(_Jpeg)}
