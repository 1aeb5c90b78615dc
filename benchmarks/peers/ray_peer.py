"""Ray on this machine: an actor per process of models, and Ray Serve with a deployment for each, by handle and by HTTP.

The object store takes frames of 6 MB by copy, once for all who are given the same reference.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

os.environ.update(
    RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=f"{os.environ['PEERS_FOLDER']}/token"
)  # before the import
import ray
from ray import serve as ray_serve
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.peers import peer, work
from benchmarks.peers.http_client import raw
from benchmarks.peers.peer import Connect, Given, Own


class Models:
    def __init__(self, process: int) -> None:
        self._functions = work.loaded(process)

    def infer(self, model: str, given: np.ndarray) -> np.ndarray:
        return self._functions[model](given)

    async def __call__(self, request: Request) -> Response:
        model = request.url.path.rpartition("/")[-1]
        return Response(self.infer(model, work.array_of(await request.body(), model)).tobytes())


def serve(where: Path) -> None:
    env = {"env_vars": {"PYTHONPATH": os.getcwd()}}
    started = ray.init(num_cpus=2 * work.PROCESSES, object_store_memory=512 << 20, include_dashboard=False,
             namespace="peers", runtime_env=env, _temp_dir=str(where / "ray"), log_to_driver=False)  # fmt: skip
    actors = [ray.remote(Models).options(name=f"actor-{i}", num_cpus=0).remote(i) for i in range(work.PROCESSES)]
    ray_serve.start(http_options={"host": "127.0.0.1", "port": peer.port(where)})
    deployment = ray_serve.deployment(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=32)(Models)
    ray_serve.run_many([ray_serve.RunTarget(deployment.bind(i), name=f"app-{i}", route_prefix=f"/{i}")
                        for i in range(work.PROCESSES)])  # fmt: skip
    ray.get(actors[0].infer.remote("bytes", work.example("bytes")))
    (where / "up").write_text(started.address_info["address"])
    while True:
        time.sleep(3600)


class _Client:
    """By `remote(model, frame)`: an actor's method, or the handle of a deployment."""

    def __init__(self, where: Path, methods: Any) -> None:
        if not (where / "up").exists():
            raise ConnectionError
        ray.init((where / "up").read_text(), namespace="peers", log_to_driver=False)
        self._methods, self._result = methods()

    def place(self, shape: tuple[int, ...], dtype: str) -> Given:
        return Own(shape, dtype)

    def infer(self, model: str, given: Given) -> np.ndarray:
        found: np.ndarray = self._result(self._methods[work.MODELS[model].process].remote(model, given.array))
        return found

    def infer_many(self, models: tuple[str, ...], given: Given) -> list[np.ndarray]:
        frame = ray.put(given.array)
        asked = [self._methods[work.MODELS[model].process].remote(model, frame) for model in models]
        return [self._result(one) for one in asked]


def _actors() -> Any:
    return [ray.get_actor(f"actor-{i}").infer for i in range(work.PROCESSES)], ray.get


def _handles() -> Any:
    handles = [ray_serve.get_app_handle(f"app-{i}").infer for i in range(work.PROCESSES)]
    return handles, lambda one: one.result()


CLIENTS: dict[str, Connect] = {
    "actor": lambda where: _Client(where, _actors),
    "Serve, handle": lambda where: _Client(where, _handles),
    "Serve, HTTP": lambda where: raw(where, "/{process}/{model}"),
}
