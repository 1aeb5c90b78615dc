"""What the tests of models share: photographs, stand-ins, and a broker that has all models.

The photographs are real ones, HxWx3 RGB uint8 and read-only: those inside the ultralytics package, which is not
imported for them.
"""

from __future__ import annotations

import fcntl
import functools
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests import support
from tests.models import graphs, served
from tests.support import Running
from zoo.demo import scenes
from zoo.weights import inventory

ROOMY = {"vram_budget_gb": 2.75, "dispatch_timeout": 60, "host_cache_mb": 4000}


def photograph(name: str) -> np.ndarray:
    found = scenes.photograph(name)
    found.flags.writeable = False
    return found


@pytest.fixture(scope="session")
def bus() -> np.ndarray:
    return photograph("bus.jpg")


@pytest.fixture(scope="session")
def zidane() -> np.ndarray:
    return photograph("zidane.jpg")


@pytest.fixture(scope="session")
def weights_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `standin` puts them, each in its place. All processes of a run share it: they take 14 s to make."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "standins"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def standin(weights_dir: Path) -> Callable[[str], Path]:
    """`standin(name)` is the path of the stand-in of that name, made once for all tests. Copy it to change it."""
    from workers.models import standins

    def make(name: str) -> Path:
        with open(weights_dir.with_name(f"standin-{name}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
            target = weights_dir / {**standins.STANDINS, **graphs.STANDINS}[name][0]
            if not inventory.is_missing(target):
                return target
            if name not in graphs.STANDINS:
                return standins.make(name, weights_dir)
            return standins.place(lambda path, _: graphs.STANDINS[name][1](path, find), target, name)

    find = functools.cache(make)
    return find


@pytest.fixture(scope="session")
def whole_zoo(standin: Callable[[str], Path], weights_dir: Path) -> Iterator[Running]:
    """A broker with all models of the shipped config.toml, and of docs/models.md, on stand-ins, and room for a fifth of
    them at a time.
    """
    from workers.models.standins import STANDINS

    folder = Path(tempfile.mkdtemp(prefix="zoo-t-", dir="/tmp"))
    running = Running(folder, served.TABLES, weights_dir=weights_dir, **ROOMY).start()
    for name in (*STANDINS, *graphs.STANDINS):  # while the nursery imports
        standin(name)
    yield running
    try:
        running.close()
    finally:
        support.remove(folder)
