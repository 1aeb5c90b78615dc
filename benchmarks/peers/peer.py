"""What a peer is: a module with two functions and its clients' names.

    def serve(where: Path) -> None: ...         # serves work.MODELS until it is killed, with all its processes
    CLIENTS = {"raw body": connect}             # connect(where) -> Client; a ConnectionError while it is starting

`where` is a folder of this peer alone, also $PEERS_FOLDER; it holds a free `port` (and the next two are free) and a
random `token`. Both functions run with the peer's own environment, in processes of their own (`serving.py`,
`driving.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np

from benchmarks.peers import work


class Given(Protocol):
    """An array that the caller fills, in its own memory or where the server can see it."""

    @property
    def array(self) -> np.ndarray: ...


class Client(Protocol):
    def place(self, shape: tuple[int, ...], dtype: str) -> Given: ...
    def infer(self, model: str, given: Given) -> np.ndarray: ...
    def infer_many(self, models: tuple[str, ...], given: Given) -> list[np.ndarray]: ...


Connect = Callable[[Path], Client]


class Own:
    """An array in the caller's own memory."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self.array = np.zeros(shape, dtype)


class Simple:
    """A client made of one call. To several models at once: in threads, each with a connection of its own."""

    def __init__(self, connect: Callable[[], Callable[[str, np.ndarray], np.ndarray]]) -> None:
        self._call = connect()
        self._others: list[Callable[[str, np.ndarray], np.ndarray]] = []
        self._connect = connect
        self._pool = ThreadPoolExecutor(work.PROCESSES)

    def place(self, shape: tuple[int, ...], dtype: str) -> Given:
        return Own(shape, dtype)

    def infer(self, model: str, given: Given) -> np.ndarray:
        return self._call(model, given.array)

    def infer_many(self, models: tuple[str, ...], given: Given) -> list[np.ndarray]:
        self._others += [self._connect() for _ in models[len(self._others) :]]
        asked = zip(self._others, models, strict=False)
        return [one.result() for one in [self._pool.submit(call, model, given.array) for call, model in asked]]


def port(where: Path) -> int:
    return int((where / "port").read_text())


def each_process(run: Callable[[int], None]) -> None:
    """Forks a process for each number of `work.MODELS`; returns when one of them has ended."""
    for number in range(work.PROCESSES):
        if os.fork() == 0:
            run(number)
            os._exit(0)
    os.wait()
