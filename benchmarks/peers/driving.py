"""A client of a peer, in the peer's environment: `python -m benchmarks.peers.driving PEER CLIENT FOLDER SECONDS`.

It waits at most that long for the server. Then, for each line of JSON on its standard input, [workload, calls,
seconds, most], it makes that many calls, and more for so many seconds, but after three stops when `most` seconds are
over, and prints their microseconds. It checks each answer, outside the time.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import work
from benchmarks.peers.peer import Client, Connect, Given


def connected(connect: Connect, where: Path, seconds: float) -> Client:
    end = time.monotonic() + seconds
    while True:
        try:
            return connect(where)
        except (ConnectionError, FileNotFoundError):
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


class Driver:
    def __init__(self, client: Client, known: Path) -> None:
        self._client = client
        self._known = known
        self._tolerance = getattr(client, "tolerance", 1e-3)
        self._given: dict[str, Given] = {}
        self._number = 0

    def run(self, workload: str, calls: int, seconds: float, most: float) -> list[float]:
        """Microseconds of each call."""
        models = work.WORKLOADS[workload].models
        times: list[float] = []
        start = time.monotonic()
        while True:
            times.append(self._once(models))
            took = time.monotonic() - start
            if (len(times) >= calls and took >= seconds) or (len(times) >= 3 and took >= most):
                return times

    def _once(self, models: tuple[str, ...]) -> float:
        given = self._place(models[0])
        if models != ("detector",):
            self._number += 1
            work.mark(given.array, self._number)
        client, several = self._client, len(models) > 1
        start = time.perf_counter()
        answers = client.infer_many(models, given) if several else [client.infer(models[0], given)]
        took = time.perf_counter() - start
        for model, answer in zip(models, answers, strict=True):
            if fault := work.wrong(model, given.array, answer, self._known, self._tolerance):
                raise AssertionError(fault)
        return took * 1e6

    def _place(self, model: str) -> Given:
        if model not in self._given:
            first = work.example(model)
            self._given[model] = self._client.place(first.shape, first.dtype.str)
            np.copyto(self._given[model].array, first)
        return self._given[model]


def main() -> None:
    name, client, where, seconds = sys.argv[1:]
    os.environ["PEERS_FOLDER"] = where
    told = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print

    def tell(what: Any) -> None:
        told.write(json.dumps(what) + "\n")

    try:
        connect = importlib.import_module(name).CLIENTS[client]
        driver = Driver(connected(connect, Path(where), float(seconds)), Path(where).parent / "known.npy")
        tell("ready")
        for line in sys.stdin:
            try:
                tell(driver.run(*json.loads(line)))
            except NotImplementedError as e:
                tell({"never": str(e)})
    except Exception as e:
        tell({"error": f"{type(e).__name__}: {e}"})
        raise
    finally:
        os._exit(0)  # some libraries do not end by themselves


if __name__ == "__main__":
    main()
