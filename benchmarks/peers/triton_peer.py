"""Triton Inference Server, from the wheel of PyTriton, which serves Python functions with it.

By gRPC and by HTTP, and by gRPC with frames in system shared memory that the server was told of once: copied into it at
each request, or there already. Maps come back through shared memory as well then.
"""

from __future__ import annotations

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
from benchmarks.peers.peer import Connect, Given, Own


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


class _Client:
    """`triton`: the client's module, of gRPC or HTTP, which differ in how one waits for several answers."""

    def __init__(self, triton: Any, where: Path, offset: int, **how: Any) -> None:
        self._triton = triton
        self._client = triton.InferenceServerClient(f"127.0.0.1:{peer.port(where) + offset}", **how)
        try:
            if not all(self._client.is_model_ready(name) for name in work.names()):
                raise ConnectionError
        except InferenceServerException as e:
            raise ConnectionError from e

    def place(self, shape: tuple[int, ...], dtype: str) -> Given:
        return Own(shape, dtype)

    def infer(self, model: str, given: Given) -> np.ndarray:
        self._put(given)
        return self._read(model, self._client.infer(model, [self._asked(given)], outputs=self._wanted(model)))

    def infer_many(self, models: tuple[str, ...], given: Given) -> list[np.ndarray]:
        self._put(given)
        waiting = [self._later(model, self._asked(given)) for model in models]
        return [self._read(model, wait()) for model, wait in zip(models, waiting, strict=True)]

    def _later(self, model: str, asked: Any) -> Callable[[], Any]:
        raise NotImplementedError

    def _put(self, given: Given) -> None:
        """Where frames have to be somewhere before they are asked about."""

    def _asked(self, given: Given) -> Any:
        array = given.array
        asked = self._triton.InferInput("given", array.shape, np_to_triton_dtype(array.dtype))
        asked.set_data_from_numpy(array)
        return asked

    def _wanted(self, model: str) -> list[Any]:
        return [self._triton.InferRequestedOutput("answer")]

    def _read(self, model: str, result: Any) -> np.ndarray:
        found: np.ndarray = result.as_numpy("answer")
        return found


class _Http(_Client):
    def __init__(self, where: Path) -> None:
        super().__init__(triton_http, where, 0, concurrency=work.PROCESSES)

    def _later(self, model: str, asked: Any) -> Callable[[], Any]:
        return self._client.async_infer(model, [asked]).get_result  # type: ignore[no-any-return]


class _Grpc(_Client):
    def __init__(self, where: Path) -> None:
        super().__init__(triton_grpc, where, 1)

    def _later(self, model: str, asked: Any) -> Callable[[], Any]:
        arrived: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        self._client.async_infer(
            model, [asked], lambda result, error: arrived.put((result, error)), outputs=self._wanted(model)
        )
        return lambda: _unless(*arrived.get(timeout=60))


def _unless(result: Any, error: Any) -> Any:
    if error:
        raise error
    return result


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


class _Shared(_Grpc):
    """One region for what is given and one for a large answer, and small answers inline."""

    def __init__(self, where: Path, in_region: bool) -> None:
        super().__init__(where)
        self._in_region = in_region
        self._given = _Region(self._client, math.prod(work.FRAME), _token(where))
        self._answer = _Region(self._client, 4 * math.prod(work.FRAME[:2]), _token(where))

    def place(self, shape: tuple[int, ...], dtype: str) -> Given:
        return _Placed(self._given, self._given.view(dtype, shape)) if self._in_region else Own(shape, dtype)

    def _put(self, given: Given) -> None:
        if not self._in_region:
            np.copyto(self._given.view(given.array.dtype.str, given.array.shape), given.array)

    def _asked(self, given: Given) -> Any:
        array = given.array
        asked = triton_grpc.InferInput("given", array.shape, np_to_triton_dtype(array.dtype))
        asked.set_shared_memory(self._given.name, array.nbytes)
        return asked

    def _wanted(self, model: str) -> list[Any]:
        (wanted,) = super()._wanted(model)
        if model == "depth":
            wanted.set_shared_memory(self._answer.name, self._answer.size)
        return [wanted]

    def _read(self, model: str, result: Any) -> np.ndarray:
        if model == "depth":
            return self._answer.view("<f4", work.MODELS[model].answer)
        return super()._read(model, result)


CLIENTS: dict[str, Connect] = {
    "gRPC, shared memory, copied in": lambda where: _Shared(where, False),
    "gRPC, shared memory, in it already": lambda where: _Shared(where, True),
    "gRPC": _Grpc,
    "HTTP": _Http,
}
