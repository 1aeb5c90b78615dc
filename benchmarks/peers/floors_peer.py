"""Two floors, with nothing but what passing a frame takes: no scheduling, no checks, no limits, one memory for all.

* a broker that does nothing: the ROUTER sockets of `benchmarks/floor.py` between client and model;
* a bare socket: the client speaks to the process of each model.

Frames and maps lie in the client's memfd, which the servers open through /proc; a message is the model's name.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from benchmarks import floor
from benchmarks.peers import work
from benchmarks.peers.peer import Given, Own, each_process

ROOM, ANSWER_AT = 20 << 20, 8 << 20  # bytes of a client's memory, and where a map is put


class _Memory:
    """A client's memory as a server sees it, and the client itself. Its key: process id, descriptor."""

    def __init__(self, key: str) -> None:
        pid, fd = key.split(":")
        with open(f"/proc/{pid}/fd/{fd}", "r+b") as file:
            self.map = np.frombuffer(mmap.mmap(file.fileno(), ROOM), np.uint8)

    def given(self, model: str) -> np.ndarray:
        nbytes = int(np.prod(work.MODELS[model].shape)) * np.dtype(work.MODELS[model].dtype).itemsize
        return work.array_of(self.map[:nbytes], model)

    def answer(self, found: np.ndarray) -> bytes:
        """A small answer itself; a large one is put into the memory."""
        if found.nbytes < 4096:
            return found.tobytes()
        self.map[ANSWER_AT : ANSWER_AT + found.nbytes].view(np.float32)[:] = found.reshape(-1)
        return b""


class _Models:
    def __init__(self, process: int) -> None:
        self._functions = work.loaded(process)
        self._memories: dict[str, _Memory] = {}
        self._turn = threading.Lock()

    def __call__(self, message: bytes) -> bytes:
        key, model = message.decode().split(" ")
        memory = self._memories.get(key) or self._memories.setdefault(key, _Memory(key))
        with self._turn:
            return memory.answer(self._functions[model](memory.given(model)))


# ------------------------------------------------------------ the servers


def serve(where: Path) -> None:
    for number in range(work.PROCESSES):
        if os.fork() == 0:
            _behind_broker(where, number)
    if os.fork() == 0:
        each_process(lambda number: _at_socket(where, number))
    ends = f"ipc://{where}/front", f"ipc://{where}/back"
    floor.pass_on(*ends, (where / "up").touch, work.PROCESSES, lambda client, parts: [parts[0], client, parts[1]])


def _behind_broker(where: Path, process: int) -> None:
    models = _Models(process)
    sock = zmq.Context().socket(zmq.DEALER)
    sock.setsockopt(zmq.ROUTING_ID, b"%d" % process)
    sock.connect(f"ipc://{where}/back")
    sock.send(b"")
    while True:
        identity, message = sock.recv_multipart()
        sock.send_multipart([identity, models(message)])


def _at_socket(where: Path, process: int) -> None:
    models = _Models(process)

    def answer(line: socket.socket) -> None:
        with contextlib.suppress(ConnectionError):
            while message := line.recv(256):
                line.send(models(message))

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"{where}/{process}.sock")
        listener.listen(32)
        while True:
            threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()


# ------------------------------------------------------------ the clients


class _Broker:
    def __init__(self, where: Path) -> None:
        if not (where / "up").exists():
            raise ConnectionError
        self._sock = zmq.Context.instance().socket(zmq.DEALER)
        self._sock.connect(f"ipc://{where}/front")

    def send(self, process: int, message: bytes) -> None:
        self._sock.send_multipart([b"%d" % process, message])

    def receive(self, process: int) -> bytes:
        """Whichever comes first: small answers differ in nothing but their model's number."""
        found: bytes = self._sock.recv_multipart()[-1]
        return found


class _Sockets:
    def __init__(self, where: Path) -> None:
        self._lines = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(work.PROCESSES)]
        for number, line in enumerate(self._lines):
            line.connect(f"{where}/{number}.sock")

    def send(self, process: int, message: bytes) -> None:
        self._lines[process].send(message)

    def receive(self, process: int) -> bytes:
        return self._lines[process].recv(4096)


class _Placed:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array


class _Client:
    def __init__(self, line: Any, in_memory: bool) -> None:
        fd = os.memfd_create("floor")
        os.posix_fallocate(fd, 0, ROOM)
        self._map = np.frombuffer(mmap.mmap(fd, ROOM), np.uint8)
        self._map.fill(0)
        self._key = f"{os.getpid()}:{fd}"
        self._line = line
        self._in_memory = in_memory

    def place(self, shape: tuple[int, ...], dtype: str) -> Given:
        return _Placed(self._view(Own(shape, dtype).array)) if self._in_memory else Own(shape, dtype)

    def _view(self, like: np.ndarray) -> np.ndarray:
        return self._map[: like.nbytes].view(like.dtype).reshape(like.shape)

    def infer(self, model: str, given: Given) -> np.ndarray:
        return self.infer_many((model,), given)[0]

    def infer_many(self, models: tuple[str, ...], given: Given) -> list[np.ndarray]:
        if not self._in_memory:
            np.copyto(self._view(given.array), given.array)
        for model in models:
            self._line.send(work.MODELS[model].process, f"{self._key} {model}".encode())
        return [self._answer(self._line.receive(work.MODELS[model].process), model) for model in models]

    def _answer(self, data: bytes, model: str) -> np.ndarray:
        size = 4 * int(np.prod(work.MODELS[model].answer))
        return work.answer_of(data or self._map[ANSWER_AT : ANSWER_AT + size], model)


def _client(line: Callable[[Path], Any], in_memory: bool) -> Callable[[Path], _Client]:
    return lambda where: _Client(line(where), in_memory)


CLIENTS = {
    "a broker that does nothing, copied in": _client(_Broker, False),
    "a broker that does nothing, in shared memory": _client(_Broker, True),
    "a bare socket, copied in": _client(_Sockets, False),
    "a bare socket, in shared memory": _client(_Sockets, True),
}
