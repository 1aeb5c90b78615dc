"""The floor: a broker and a worker that do nothing but pass messages of the zoo's sizes.

Two ROUTER sockets and a plain `zmq.Poller` loop in one process, a DEALER worker that answers at once in another.
No headers are read, nothing is decided: no broker written this way in Python can be faster.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import zmq

Addressed = Callable[[bytes, list[bytes]], list[bytes]]  # (client, parts) -> parts for a worker, its name first


def _worker(back: str, answer: list[bytes]) -> None:
    sock = zmq.Context().socket(zmq.DEALER)
    sock.setsockopt(zmq.ROUTING_ID, b"worker")
    sock.connect(back)
    sock.send_multipart([b"", b"", b""])
    while True:
        parts = sock.recv_multipart()
        sock.send_multipart([parts[0], *answer])


def _one(identity: bytes, parts: list[bytes]) -> list[bytes]:
    return [b"worker", identity, *parts]


def pass_on(front: str, back: str, up: Callable[[], object], of: int = 1, to: Addressed = _one) -> None:
    """What comes at `front` goes to one of `of` workers at `back`, as `to` addresses it, and its answer back. For ever.

    Calls `up` when all workers have said a word and clients may come.
    """
    context = zmq.Context()
    clients, workers = context.socket(zmq.ROUTER), context.socket(zmq.ROUTER)
    workers.bind(back)
    for _ in range(of):
        workers.recv_multipart()
    clients.bind(front)
    poller = zmq.Poller()
    poller.register(clients, zmq.POLLIN)
    poller.register(workers, zmq.POLLIN)
    up()
    while True:
        for sock, _ in poller.poll():
            if sock is clients:
                identity, *parts = clients.recv_multipart()
                workers.send_multipart(to(identity, parts))
            else:
                _, *parts = workers.recv_multipart()
                clients.send_multipart(parts)


def _broker(front: str, back: str, ready: Any) -> None:
    pass_on(front, back, ready.set)


@contextlib.contextmanager
def running(folder: str, answer: list[bytes]) -> Iterator[tuple[str, int]]:
    """The endpoint of a running floor, and its broker's process id."""
    context = multiprocessing.get_context("spawn")
    front, back = f"ipc://{folder}/floor", f"ipc://{folder}/floor-back"
    ready = context.Event()
    broker = context.Process(target=_broker, args=(front, back, ready), daemon=True)
    worker = context.Process(target=_worker, args=(back, answer), daemon=True)
    broker.start()
    worker.start()
    try:
        if not ready.wait(20):
            raise TimeoutError("the floor did not start")
        assert broker.pid is not None
        yield front, broker.pid
    finally:
        for process in (broker, worker):
            if process.pid is not None:
                os.kill(process.pid, signal.SIGKILL)
            process.join()
