"""Adapters for tests: small, honest, and some of them badly behaved on purpose."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

from workers.models.base import Input, Spec
from zoo.errors import InvalidInput, LoadFailed


def only_once() -> None:
    raise ValueError("only once")


class Once:
    """Can be pickled, and not be made again."""

    def __reduce__(self) -> tuple[Any, ...]:
        return only_once, ()


class Toy:
    """Answers what it saw.

    Options of the model: ballast_mb, load_seconds, awaited (a file that its load waits for), load (ok, raise, hang,
    die, flag), max_batch, labels. Of its copy: uncopyable, unreadable. spare_mb: how much larger than at the beginning
    of its load the process can become; lifted: a file that ends this limit, made when memory has run out.
    """

    def load(self, spec: Spec, device: str) -> None:
        self.spec, self.device = spec, device
        o = spec.options
        self.max_batch = o.get("max_batch", 1)
        if "labels" in o:
            self.labels = o["labels"]
        time.sleep(o.get("load_seconds", 0.0))
        while "awaited" in o and not Path(o["awaited"]).exists():
            time.sleep(0.02)
        if "spare_mb" in o:
            self._limit(o["spare_mb"])
        how = o.get("load", "ok")
        if how == "flag" and Path(o["flag"]).exists():
            how = o["then"]
        if how == "raise":
            raise RuntimeError("the weights are made of cheese")
        if how == "refuse":
            raise LoadFailed("not today")
        if how == "hang":
            time.sleep(3600)
        if how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        self.ballast = self._take(o.get("ballast_mb", 0))
        self.ballast.fill(1)
        if "uncopyable" in o:
            self.socket = socket.socket()
        if "unreadable" in o:
            self.once = Once()

    def _limit(self, spare_mb: float) -> None:
        if not ("lifted" in self.spec.options and Path(self.spec.options["lifted"]).exists()):
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            most = pages * resource.getpagesize() + int(spare_mb * (1 << 20))
            resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))

    def _take(self, mb: float) -> np.ndarray:
        try:
            return np.empty(int(mb * (1 << 20)), np.uint8)
        except MemoryError:
            if "lifted" in self.spec.options:
                Path(self.spec.options["lifted"]).touch()
                resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            raise

    def predict(self, inputs: list[Input]) -> list[Any]:
        self.together = len(inputs)
        self._take(sum(item.options.get("take_mb", 0) for item in inputs))
        return [self._one(item) for item in inputs]

    def _one(self, item: Input) -> Any:
        a, o = item.array, item.options
        match o.get("do"):
            case "peek":
                return {"value": int(a[0, 0, 0])}
            case "sleep":
                time.sleep(o["seconds"])
            case "raise":
                raise ValueError("no such animal")
            case "refuse":
                raise InvalidInput("frame: not to my taste")
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "die-once":
                flag = Path(o["flag"])
                if not flag.exists():
                    flag.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            case "fork-and-die":  # a grandchild keeps every descriptor open
                if os.fork() == 0:
                    time.sleep(3600)
                os.kill(os.getpid(), signal.SIGKILL)
            case (
                "fork-away"
            ):  # a grandchild that leaves the group and lives on, memory and all, until the flag is there
                child = os.fork()
                if child == 0:
                    os.setsid()
                    for _ in range(3000):
                        if Path(o["flag"]).exists():
                            break
                        time.sleep(0.01)
                    os._exit(0)
                while os.getpgid(child) == os.getpgid(0):
                    time.sleep(0.001)
            case "environment":
                return {"device": self.device, **{name: os.environ.get(name) for name in o["names"]}}
            case "keep":  # the frame, with the mapping that it lies in
                self.kept = a
            case "start-and-end":
                if (forked := os.fork()) == 0:
                    time.sleep(3600)
                os.kill(forked, signal.SIGTERM)
                with subprocess.Popen(["sleep", "3600"]) as run:
                    run.terminate()
                status = os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1])
                return {"forked": status, "run": run.returncode}
            case "print":
                print("\n".join([o["text"]] * o["lines"]))
            case "print-and-die":
                print(o["text"], end="", flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            case "grow":
                self.ballast = np.concatenate([self.ballast, np.ones(int(o["mb"] * (1 << 20)), np.uint8)])
            case "babble":  # nonsense on whatever stream there is: the channel to the broker
                for fd in map(int, os.listdir("/proc/self/fd")):
                    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as sock:
                        if sock.type == socket.SOCK_STREAM:
                            sock.sendall(b"\xff" * 4096)
            case "announce":  # as many parts as may be, each as large as may be, and a beginning of them
                head = np.full(1 + (1 << 15), 160 << 20, "<u4")
                head[0] = 1 << 15
                for fd in map(int, os.listdir("/proc/self/fd")):
                    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as sock:
                        if sock.type == socket.SOCK_STREAM:
                            sock.sendall(head.tobytes())
                            for _ in range(1000):
                                sock.sendall(bytes(1 << 20))
            case "hang-python":
                while True:
                    pass
            case "hang-gil":  # a C call that never gives the interpreter's lock back
                ctypes.PyDLL(None).sleep(3600)
            case "ignore-term":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                time.sleep(3600)
            case "large":
                return {"map": np.full((o.get("height", 1080), 1920), a.reshape(-1)[0], np.float32)}
            case "echo":
                return {"array": np.array(a), "frames": len(item.frames)}
        return {
            "pid": os.getpid(),
            "shape": list(a.shape),
            "dtype": str(a.dtype),
            "first": a.reshape(-1)[:3].tolist() if a.size else [],
            "mean": float(a.mean()) if a.size else 0.0,
            "writeable": bool(a.flags.writeable),
            "frames": len(item.frames),
            "together": self.together,
        }
