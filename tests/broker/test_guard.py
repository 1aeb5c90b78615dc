"""The broker lives on, whatever happens to one event: each function of it fails once, and it goes on serving."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from broker import guard
from tests import faulty, support
from tests.support import Running, toy, wait_until
from zoo import Client, ZooError

FRAME = np.full((8, 8, 3), 7, np.uint8)
SAMPLE = (
    "Intake._take",
    "Clients.deliver",
    "Fleet.start",
    "Fleet.kill",
    "event WorkerDone",
    "after WorkerDone",
    "event WorkerExited",
    "wire.take",
    "os.read",
    "open",
)
REACHED: dict[str, bool] = {}


def test_an_error_costs_what_is_to_blame_and_asks_for_a_verdict() -> None:
    said: list[str] = []
    g = guard.Guard(lambda: said.append("verdict"))
    g.run("a test", lambda: 1 / 0, lambda: said.append("blamed"))
    g.run("a test", lambda: said.append("fine"), lambda: said.append("never"))
    assert said == ["blamed", "verdict", "fine"]
    assert g.errors == 1


def test_an_error_while_dealing_with_an_error_goes_no_deeper_than_it_must() -> None:
    g = guard.Guard(lambda: 1 / 0)  # type: ignore[arg-type, return-value]

    def again() -> None:
        g.run("a test", lambda: 1 / 0, again)

    g.run("a test", lambda: 1 / 0, again)
    assert 1 < g.errors <= 2 * guard.DEEPEST + 2


def test_errors_without_end_are_counted_and_not_all_told(caplog: pytest.LogCaptureFixture) -> None:
    g = guard.Guard(lambda: None)
    for _ in range(100):
        g.run("a test", lambda: 1 / 0)
    assert g.errors == 100
    assert len(caplog.records) < 40


@pytest.fixture(scope="module")
def running() -> Iterator[list[Running]]:
    """The broker of all tests here; one that a test has left is replaced by the next."""
    made: list[Running] = []
    yield made
    for one in made:
        one.close()
        support.remove(one.folder)


def _broker(made: list[Running]) -> Running:
    if made and made[-1].process is not None and made[-1].process.poll() is None:
        return made[-1]
    folder = Path(tempfile.mkdtemp(prefix="zoo-t-", dir="/tmp"))
    models = [toy(), toy("toy2"), toy("broken", options={"load": "raise"})]
    one = Running(
        folder, models, module="tests.faulty", arguments=["--debug"], vram_budget_gb=2, standby=1, host_cache_mb=4,
        footprint="measured", idle_seconds=0.5, state_dir=str(folder / "state"),
    )  # fmt: skip
    made.append(one.start())
    return one


def _everything(one: Running, fault: Path) -> None:
    """Calls whatever a broker can be asked, until the fault has struck. What becomes of each call is no matter."""
    for attempt in range(3):
        with Client(one.endpoint, timeout=3.0, arena_mb=2) as zoo:
            asks = [
                lambda: zoo.infer("toy", FRAME),
                lambda: zoo.infer("toy", FRAME, do="large"),
                lambda: zoo.infer_many(FRAME, ["toy", "toy2"]),
                lambda: zoo.load("toy2").release(),
                lambda: zoo.infer("toy", FRAME, do="sleep", seconds=0.2, timeout=0.05),
                lambda: zoo.infer("toy2", FRAME, do="die"),
                lambda: zoo.infer("broken", FRAME),
                lambda: (zoo.pin("toy"), zoo.unpin("toy")),
                lambda: (zoo.get_status(), zoo.models(), zoo.processes(), zoo.explain()),
                lambda: (one.config_path.write_text(one.config_path.read_text() + "# \n"), zoo.reload()),
                partial(_change, one, attempt),
                zoo.reload,
                lambda: os.kill(one.pid, signal.SIGHUP),
                lambda: zoo.get_model("toy"),
                lambda: zoo.cleanup_idle_models(0.0),
                lambda: zoo.unload("toy"),
            ]
            for ask in asks:
                if not fault.exists():
                    return
                with contextlib.suppress(ZooError):
                    ask()
        with contextlib.suppress(AssertionError):  # time passes: housekeeping, idle models
            wait_until(lambda: not fault.exists(), 1.5)


def _change(one: Running, n: int) -> None:
    text = one.config_path.read_text()
    one.config_path.write_text(text.replace("drain_seconds = 1.0", f"drain_seconds = 1.{n + 1}"))


def _is_served(zoo: Client, name: str) -> bool:
    """False while the failed start is held against the model, for a second."""
    try:
        return bool(zoo.infer(name, FRAME)["first"] == [7, 7, 7])
    except ZooError as e:
        if not e.retryable:
            raise
        return False


def _strike(made: list[Running], target: str) -> bool:
    """Lets it fail once; the broker has to go on. Whether it was called at all."""
    one = _broker(made)
    fault = one.folder / faulty.FAULT
    fault.with_suffix(".new").write_text(target)
    fault.with_suffix(".new").rename(fault)
    _everything(one, fault)
    reached = REACHED[target] = not fault.exists()
    fault.unlink(missing_ok=True)
    assert one.process is not None
    assert one.process.poll() is None, one.log()[-5000:]
    with Client(one.endpoint, timeout=20.0, arena_mb=8) as zoo:
        for name in ("toy", "toy2"):
            wait_until(lambda name=name: _is_served(zoo, name), what=f"{name} is served")  # type: ignore[misc]
        wait_until(lambda: zoo.get_status()["sessions"] == 1, what="other sessions are gone")
        status = zoo.get_status()
        assert (status["leases"], status["requests"]) == (0, 1 if status["requests"] else 0)
    assert "contradicts itself" not in one.log(), one.log()[-5000:]
    return reached


@pytest.mark.parametrize("target", SAMPLE)
def test_a_function_fails_once(running: list[Running], target: str) -> None:
    assert _strike(running, target)


@pytest.mark.slow
@pytest.mark.parametrize("target", [t for t in faulty.targets() if t not in SAMPLE])
def test_each_function_fails_once(running: list[Running], target: str) -> None:
    _strike(running, target)


@pytest.mark.slow
def test_most_functions_are_reached() -> None:
    """Else the tests above would show nothing. After all of them only."""
    if len(REACHED) < len(faulty.targets()):
        pytest.skip("the others were not run")
    assert sum(REACHED.values()) > 0.7 * len(REACHED), sorted(name for name, hit in REACHED.items() if not hit)
