"""Fixtures: a short private directory, and brokers that leave nothing behind (which is asserted)."""

from __future__ import annotations

import atexit
import gc
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests import support
from tests.support import Running, toy
from zoo import curve
from zoo.cli import main

# Processes that tests start keep what they have compiled: hundreds of them would compile it anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# In CI the same examples every time, so that a red run can be repeated; everywhere else new ones.
settings.register_profile("ci", derandomize=True, database=None)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Half of its time went into looking for garbage among modules that stay: tests and the libraries of models. Nor
    does a test that calls `gc.collect` look at them again.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.unfreeze)  # libraries say at the end what was not collected


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process more than cores: for almost half of its time a test of processes waits for them."""
    return len(os.sched_getaffinity(0)) + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile` the files that use `whole_zoo` share a process: one broker, libraries read once."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    @cache
    def uses_whole_zoo(file: str) -> bool:
        return "whole_zoo" in (config.rootpath / file).read_text()

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return "whole_zoo" if uses_whole_zoo(file) else file

    return Scheduling(config, log)


@pytest.fixture(autouse=True)
def _no_zoo_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ZOO_ENDPOINT", "ZOO_CONFIG", "ZOO_CURVE_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def zoo_dir() -> Iterator[Path]:
    """A private directory with a short name: the paths of Unix sockets hold about 100 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="zoo-t-", dir="/tmp"))
    yield folder
    support.remove(folder)


@pytest.fixture
def broker() -> Iterator[Callable[..., Running]]:
    """`broker(models, **broker_keys)` starts one; `start=False` leaves that to the test."""
    folders: list[Path] = []
    made: list[Running] = []

    def start(models: list[dict[str, Any]] | str | None = None, *, start: bool = True, **broker_keys: Any) -> Running:
        folder = Path(tempfile.mkdtemp(prefix="zoo-t-", dir="/tmp"))
        folders.append(folder)
        running = Running(folder, [toy()] if models is None else models, **broker_keys)
        made.append(running)
        return running.start() if start else running

    yield start
    try:
        for running in made:
            running.close()
    finally:
        for folder in folders:
            support.remove(folder)


@pytest.fixture
def far_broker(broker: Callable[..., Running], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Running]:
    """`far_broker(models)` makes one behind tcp:// and CURVE, and gives this process its keys; the test starts it."""

    def make(models: list[dict[str, Any]] | str | None = None) -> Running:
        running = broker(models, start=False, endpoint=f"tcp://127.0.0.1:{support.free_port()}", curve_dir="keys")
        curve.make_keys(running.folder / "keys")
        monkeypatch.setenv("ZOO_CURVE_DIR", str(running.folder / "keys"))
        return running

    return make


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line in this process: status, standard output, standard error."""

    def run(*argv: object) -> tuple[int, str, str]:
        try:
            status = main.main([str(arg) for arg in argv])
        except SystemExit as e:
            status = int(str(e.code))
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def shared_broker() -> Iterator[Running]:
    """One broker for all tests that only ask: models `toy`, `toy2` and `broken` (which cannot be loaded)."""
    folder = Path(tempfile.mkdtemp(prefix="zoo-t-", dir="/tmp"))
    models = [toy(), toy("toy2"), toy("broken", options={"load": "raise"}), toy("off", enabled=False)]
    running = Running(folder, models).start()
    yield running
    try:
        running.close()
    finally:
        support.remove(folder)
