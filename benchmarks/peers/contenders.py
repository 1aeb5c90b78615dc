"""Those that do the job of `job.py`: how each is given a budget, and what its user writes for it."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.job import Contender, Weights


class Lru:
    """In the caller's process. Loads and answers of different models run at once, and none waits for another's load.

    A model that answers is not dropped; one that is loading counts already; a load that finds no room waits for it;
    what was freed is given back to the system (`malloc_trim`).
    """

    def __init__(self, folder: Path, mb: dict[str, float], budget_mb: float) -> None:
        self._folder, self._mb, self._budget_mb = folder, mb, budget_mb
        self._changed = threading.Condition()
        self._models: OrderedDict[str, Weights | None] = OrderedDict()  # None while it loads
        self._users: dict[str, int] = dict.fromkeys(mb, 0)
        self._trim = ctypes.CDLL(None).malloc_trim

    def place(self, frame: np.ndarray) -> np.ndarray:
        return frame

    def infer(self, model: str, frame: np.ndarray) -> np.ndarray:
        with self._held(model) as weights:
            return weights(frame)

    @contextmanager
    def _held(self, model: str) -> Iterator[Weights]:
        with self._changed:
            self._changed.wait_for(lambda: self._models.get(model) or (model not in self._models and self._fits(model)))
            self._users[model] += 1
            weights = self._models.setdefault(model, None)
            self._models.move_to_end(model)
        try:
            yield weights or self._load(model)
        finally:
            with self._changed:
                self._users[model] -= 1
                self._changed.notify_all()

    def _fits(self, model: str) -> bool:
        """Drops models until it does; only if dropping those without users is enough."""
        idle = [name for name in self._models if not self._users[name]]
        used = sum(self._mb[name] for name in self._models)
        if used - sum(self._mb[name] for name in idle) + self._mb[model] > self._budget_mb:
            return False
        while used + self._mb[model] > self._budget_mb:
            used -= self._mb[name := idle.pop(0)]
            del self._models[name]
        self._trim(0)
        return True

    def _load(self, model: str) -> Weights:
        try:
            weights = Weights(self._folder, model)
        except BaseException:
            with self._changed:
                del self._models[model]
            raise
        with self._changed:
            self._models[model] = weights
            self._changed.notify_all()
        return weights

    def drop_all(self) -> None:
        self._models.clear()
        gc.collect()
        self._trim(0)


ZOO_HEAD = """
[broker]
device = "cpu"
vram_budget_gb = {gb}
idle_seconds = 3600
state_dir = "{folder}/state"
eviction = "{eviction}"
"""
ZOO_MODEL = """
[[models]]
name = "{name}"
adapter = "benchmarks.peers.contenders:Loaded"
vram_mb = {mb}
priority = "{priority}"
[models.options]
folder = "{folder}"
"""


class Loaded:
    """The zoo's adapter."""

    def load(self, spec: Any, device: str) -> None:
        self._weights = Weights(Path(spec.options["folder"]), spec.name)

    def predict(self, inputs: list[Any]) -> list[Any]:
        return [{"answer": self._weights(item.array)} for item in inputs]


class Zoo:
    def __init__(self, weights: Path, folder: Path, trace: dict[str, Any], eviction: str) -> None:
        import zoo

        config = ZOO_HEAD.format(gb=trace["budget_mb"] / 1024, folder=folder, eviction=eviction)
        for name, mb in trace["models"].items():
            config += ZOO_MODEL.format(name=name, mb=mb, folder=weights, priority=trace["priorities"][name])
        (folder / "config.toml").write_text(config)
        endpoint = f"ipc://{folder}/zoo"
        subprocess.Popen([sys.executable, "-m", "zoo.broker", "--config", f"{folder}/config.toml",
                          "--endpoint", endpoint, "--log-level", "WARNING"])  # fmt: skip
        self._client = zoo.Client(endpoint, timeout=60, arena_mb=256)
        self._client.get_status()

    def place(self, frame: np.ndarray) -> Any:
        placed = self._client.frame(frame.shape)
        placed.array[:] = frame
        return placed

    def infer(self, model: str, frame: Any) -> np.ndarray:
        answer: np.ndarray = self._client.infer(model, frame)["answer"]
        return answer

    def drop_all(self) -> None:
        self._client.cleanup_idle_models(0)


class RayServe:
    """`limit`: the models of its one replica, which loads and answers in threads."""

    def __init__(self, weights: Path, folder: Path, limit: int) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        import ray
        from ray import serve

        class Multiplexed:
            @serve.multiplexed(max_num_models_per_replica=limit)  # type: ignore[untyped-decorator]
            async def get(self, model: str) -> Weights:
                return await asyncio.to_thread(Weights, weights, model)

            async def __call__(self, frame: np.ndarray) -> np.ndarray:
                model = await self.get(serve.get_multiplexed_model_id())
                return await asyncio.to_thread(model, frame)

        env = {"env_vars": {"PYTHONPATH": os.getcwd()}}
        ray.init(num_cpus=4, object_store_memory=512 << 20, include_dashboard=False, runtime_env=env,
                 log_to_driver=False, _temp_dir=str(folder / "ray"))  # fmt: skip
        serve.start(http_options={"location": "NoServer"})
        deployment = serve.deployment(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=1000)(Multiplexed)
        self._handle, self._put = serve.run(deployment.bind()), ray.put

    def place(self, frame: np.ndarray) -> Any:
        return self._put(frame)

    def infer(self, model: str, frame: Any) -> np.ndarray:
        answer: np.ndarray = self._handle.options(multiplexed_model_id=model).remote(frame).result()
        return answer

    def drop_all(self) -> None:
        """It has no call for that."""


def limits(mb: dict[str, float], budget_mb: float) -> tuple[int, int]:
    """How many models fit, whichever they are; and on average."""
    largest = sorted(mb.values(), reverse=True)
    always = max(n for n in range(1, len(mb)) if sum(largest[:n]) <= budget_mb)
    return always, int(budget_mb / (sum(largest) / len(largest)))


def started(name: str, weights: Path, folder: Path, trace: dict[str, Any]) -> Contender:
    if "zoo" in name:
        return Zoo(weights, folder, trace, "adaptive" if "adaptive" in name else "priority")
    if name == "one process, LRU":
        return Lru(weights, trace["models"], trace["budget_mb"])
    always, average = limits(trace["models"], trace["budget_mb"])
    return RayServe(weights, folder, always if "always" in name else average)
