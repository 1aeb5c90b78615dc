"""The model of the storm: its answer proves which frame and which request it is the answer to."""

from __future__ import annotations

import os
import signal
import time
import zlib
from typing import Any

import numpy as np

from workers.models.base import Input, Spec

MAP_SHAPE = (256, 512)  # of float32: half a megabyte, so it travels through the worker's arena


def checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data)


class Sum:
    """Options of the model: load_seconds, load_fails (every n-th load), max_batch."""

    def load(self, spec: Spec, device: str) -> None:
        o = spec.options
        self.max_batch = o.get("max_batch", 1)
        time.sleep(o.get("load_seconds", 0.0))
        if "load_fails" in o and os.getpid() % o["load_fails"] == 0:
            raise RuntimeError("this load fails, as the storm wants it")
        self.name = spec.name
        self.ballast = np.ones(int(o.get("ballast_mb", 1) * (1 << 20)), np.uint8)

    def predict(self, inputs: list[Input]) -> list[Any]:
        return [self._one(item) for item in inputs]

    def _one(self, item: Input) -> dict[str, Any]:
        o = item.options
        match o.get("do"):
            case "sleep":
                time.sleep(o["seconds"])
            case "raise":
                raise ValueError("as the storm wants it")
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "print":
                for _ in range(200):
                    print(f"{self.name} says {o['nonce']} " + "x" * 200)
        answer: dict[str, Any] = {"model": self.name, "nonce": o["nonce"], "sum": checksum(item.array)}
        if o.get("map"):
            answer["map"] = np.full(MAP_SHAPE, o["nonce"], np.float32)
        return answer
