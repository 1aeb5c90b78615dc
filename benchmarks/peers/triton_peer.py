"""Triton Inference Server, from the wheel of PyTriton, which serves Python functions with it.

By gRPC and by HTTP, and by gRPC with frames in system shared memory that the server was told of once: copied into it at
each request, or there already. Maps come back through shared memory as well then.
"""

from __future__ import annotations

import functools
import math
import os
import queue
import sysconfig
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig, TritonSecurityConfig
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, shared_memory

from benchmarks.peers import peer, work
from benchmarks.peers.peer import Connect, Given, Own, Simple


def serve(where: Path) -> None:
    # Its stub loads libpython, and some of another version, which does not go with this standard library.
    os.environ["LD_LIBRARY_PATH"] = f"{sysconfig.get_config_var('LIBDIR')}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    http, grpc, metrics = (peer.port(where) + i for i in range(3))
    config = TritonConfig(http_port=http, grpc_port=grpc, metrics_port=metrics, allow_gpu_metrics=False,
                          http_address="127.0.0.1", grpc_address="127.0.0.1")  # fmt: skip
    access = TritonSecurityConfig(access_token=_token(where))
    with Triton(config=config, security_config=access, workspace=where / "triton") as triton:
        for name, function in work.loaded().items():
            model = work.MODELS[name]
            given = Tensor(name="given", dtype=np.dtype(model.dtype), shape=model.shape)
            answer = Tensor(name="answer", dtype=np.float32, shape=model.answer)
            triton.bind(name, _one_by_one(function), [given], [answer], config=ModelConfig(batching=False))
        triton.serve()


def _token(where: Path) -> str:
    """PyTriton lets only those register shared memory who know it."""
    return (where / "token").read_text()


def _one_by_one(function: work.Function) -> Callable[[list[Any]], list[dict[str, np.ndarray]]]:
    return lambda requests: [{"answer": function(request["given"])} for request in requests]


# ------------------------------------------------------------ the clients


class _Wire:
    """`triton`: the client's module, of gRPC or HTTP."""

    def __init__(self, triton: Any, where: Path, offset: int) -> None:
        self._triton = triton
        self._client = triton.InferenceServerClient(f"127.0.0.1:{peer.port(where) + offset}")
        try:
            if not all(self._client.is_model_ready(name) for name in work.names()):
                raise ConnectionError
        except InferenceServerException as e:
            raise ConnectionError from e

    def __call__(self, model: str, given: np.ndarray) -> np.ndarray:
        asked = self._triton.InferInput("given", given.shape, np_to_triton_dtype(given.dtype))
        asked.set_data_from_numpy(given)
        found: np.ndarray = self._client.infer(model, [asked]).as_numpy("answer")
        return found


class _Region:
    """System shared memory that the server knows."""

    def __init__(self, client: Any, size: int, token: str) -> None:
        self.name = f"peers-{uuid.uuid4().hex}"
        self.size = size
        self.handle = shared_memory.create_shared_memory_region(self.name, f"/{self.name}", size)
        client.register_system_shared_memory(
            self.name, f"/{self.name}", size, headers={"triton-grpc-protocol-triton-access-token": token}
        )

    def view(self, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        found: np.ndarray = shared_memory.get_contents_as_numpy(self.handle, np.dtype(dtype), shape)
        return found


class _Placed:
    def __init__(self, region: _Region, array: np.ndarray) -> None:
        self.region, self.array = region, array


class _Shared(_Wire):
    """One region for what is given and one for a large answer, and small answers inline."""

    def __init__(self, where: Path, in_region: bool) -> None:
        super().__init__(triton_grpc, where, 1)
        self._in_region = in_region
        self._given = _Region(self._client, math.prod(work.FRAME), _token(where))
        self._answer = _Region(self._client, 4 * math.prod(work.FRAME[:2]), _token(where))

    def place(self, shape: tuple[int, ...], dtype: str) -> Given:
        return _Placed(self._given, self._given.view(dtype, shape)) if self._in_region else Own(shape, dtype)

    def infer(self, model: str, given: Given) -> np.ndarray:
        self._put(given)
        return self._read(model, self._client.infer(model, [self._asked(model)], outputs=self._wanted(model)))

    def infer_many(self, models: tuple[str, ...], given: Given) -> list[np.ndarray]:
        self._put(given)
        arrived: queue.SimpleQueue[tuple[str, Any, Any]] = queue.SimpleQueue()
        for model in models:
            callback = functools.partial(lambda model, result, error: arrived.put((model, result, error)), model)
            self._client.async_infer(model, [self._asked(model)], callback, outputs=self._wanted(model))
        found = {}
        for _ in models:
            model, result, error = arrived.get(timeout=60)
            if error:
                raise error
            found[model] = self._read(model, result)
        return [found[model] for model in models]

    def _put(self, given: Given) -> None:
        if not self._in_region:
            np.copyto(self._given.view(given.array.dtype.str, given.array.shape), given.array)

    def _asked(self, model: str) -> Any:
        shape, dtype = work.MODELS[model].shape, np.dtype(work.MODELS[model].dtype)
        asked = triton_grpc.InferInput("given", shape, np_to_triton_dtype(dtype))
        asked.set_shared_memory(self._given.name, math.prod(shape) * dtype.itemsize)
        return asked

    def _wanted(self, model: str) -> list[Any]:
        wanted = triton_grpc.InferRequestedOutput("answer")
        if model == "depth":
            wanted.set_shared_memory(self._answer.name, self._answer.size)
        return [wanted]

    def _read(self, model: str, result: Any) -> np.ndarray:
        if model == "depth":
            return self._answer.view("<f4", work.MODELS[model].answer)
        found: np.ndarray = result.as_numpy("answer")
        return found


def _wire(triton: Any, offset: int) -> Connect:
    return lambda where: Simple(lambda: _Wire(triton, where, offset))


CLIENTS = {
    "gRPC, shared memory, copied in": lambda where: _Shared(where, False),
    "gRPC, shared memory, in it already": lambda where: _Shared(where, True),
    "gRPC": _wire(triton_grpc, 1),
    "HTTP": _wire(triton_http, 0),
}
