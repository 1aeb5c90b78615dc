"""A peer that misbehaves, for tests of `benchmarks.peers`. Its server starts a process in a session of its own."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import numpy as np

from benchmarks.peers.peer import Simple


def serve(where: Path) -> None:
    one = subprocess.Popen(["sleep", "600"], start_new_session=True)
    (where.parent / "apart").write_text(str(one.pid))
    time.sleep(600)


def _wrong(model: str, given: np.ndarray) -> np.ndarray:
    return np.zeros(1, np.float32)


def _never(model: str, given: np.ndarray) -> np.ndarray:
    raise NotImplementedError("it is not made for it")


def _hangs(model: str, given: np.ndarray) -> np.ndarray:
    time.sleep(600)
    raise AssertionError


CLIENTS = {
    name: lambda where, call=call: Simple(lambda: call)
    for name, call in {"wrong": _wrong, "never": _never, "hangs": _hangs}.items()
}
