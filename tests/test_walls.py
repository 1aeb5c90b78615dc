"""Who may import whom. The client stays light, the broker never meets a pixel, and only adapters know libraries."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = {
    "torch", "torchvision", "ultralytics", "transformers", "rapidocr", "onnxruntime", "cv2", "brisque", "open_clip",
}  # fmt: skip
COPIES = "workers/copies.py"  # the one file that may pickle: what a worker made comes back to its like, sealed
ENTRY = "zoo/broker.py"  # the one file of zoo/ that may import broker: it is `python -m zoo.broker`


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """(line, full name) of every import in a file, wherever it stands, and of what is given to import_module."""
    package = file.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield node.lineno, name.name
        elif isinstance(node, ast.ImportFrom):
            start = ".".join([*package[: len(package) - node.level + 1]]) if node.level else ""
            module = ".".join(filter(None, [start, node.module or ""]))
            for name in node.names:
                yield node.lineno, f"{module}.{name.name}"
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


FILES = [p for room in ("zoo", "broker", "workers") for p in sorted((ROOT / room).rglob("*.py"))]


WALLS = (  # (folder, what nothing in it imports)
    ("", {"tests", "benchmarks"}),
    ("zoo", {"workers"}),
    ("zoo/client", {"broker", "zoo.cli"}),
    ("broker", {"workers", "numpy", "PIL", "zoo.client", "zoo.wire.payload", "zoo.wire.arrays", "zoo.results",
                "zoo.drawing", "zoo.gateway", "zoo.weights.pull", "zoo.weights.transfer", "zoo.weights.web"}),
    ("workers", {"broker", "zoo.client", "zoo.gateway"}),
)  # fmt: skip


def forbidden(file: str) -> set[str]:
    """The packages and modules that a file must not import."""
    wall = set().union(*(names for folder, names in WALLS if file.startswith(folder)))
    if not file.startswith("workers/models/"):
        wall |= LIBRARIES
    if file.startswith("zoo/") and file != ENTRY:
        wall |= {"broker"}
    return wall | (set() if file == COPIES else {"pickle"})


@pytest.mark.parametrize("file", [str(p.relative_to(ROOT)) for p in FILES])
def test_a_room_keeps_to_its_walls(file: str) -> None:
    wall = forbidden(file)
    for line, name in imports(ROOT / file):
        for stone in wall:
            assert name != stone, f"{file}:{line} imports {name}"
            assert not name.startswith(f"{stone}."), f"{file}:{line} imports {name}"


def test_the_scheduler_is_pure() -> None:
    """No sockets, clocks, processes, logging or threads in the state machine, nor in anything of ours it is made of."""
    io = {"time", "socket", "zmq", "os", "threading", "logging", "subprocess", "multiprocessing", "asyncio", "signal",
          "selectors", "select", "random", "datetime"}  # fmt: skip
    files = sorted((ROOT / "broker/scheduler").rglob("*.py"))
    assert len(files) > 20
    for file in files:
        for line, name in imports(file):
            assert name.split(".")[0] not in io, f"{file}:{line} imports {name}"
            assert not name.startswith("broker.") or name.startswith("broker.scheduler."), f"{file}:{line}: {name}"


def test_the_walls_would_be_seen_through() -> None:
    """The walker itself: it finds imports in functions, in `from` form and by name."""
    folder = ROOT / "tests"
    found = {name for _, name in imports(folder / "test_walls.py")}
    assert {"ast", "collections.abc.Iterator", "os", "tests.support.wait_until"} <= found


def _unused() -> None:
    from tests.support import wait_until

    wait_until(lambda: True)


# ---------------------------------------------------------------- at run time


def loaded_by(statement: str) -> set[str]:
    """Top-level modules, and all of ours, in a fresh interpreter after `statement`."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True, timeout=60)
    return set(done.stdout.split())


def test_the_broker_loads_nothing_heavy() -> None:
    loaded = loaded_by("import broker.service")
    assert not loaded & (
        LIBRARIES
        | {
            "numpy",
            "PIL",
            "scipy",
            "workers",
            "zoo.client.client",
            "zoo.wire.payload",
            "zoo.wire.arrays",
            "zoo.results",
        }
    )


def test_a_client_loads_no_model_library_and_no_broker() -> None:
    loaded = loaded_by("from zoo import *\nfrom zoo import Client, AsyncClient, Detections, load_config")
    assert {"zoo.client.client", "numpy"} <= loaded
    assert not loaded & (LIBRARIES | {"scipy", "broker", "workers"})


def test_the_name_alone_costs_nothing() -> None:
    loaded = loaded_by("import zoo")
    assert not loaded & (LIBRARIES | {"numpy", "zmq", "msgspec", "broker", "workers", "zoo.client"})


def test_a_worker_itself_loads_no_model_library() -> None:
    loaded = loaded_by("import workers.runtime, workers.nursery")
    assert not loaded & (LIBRARIES | {"scipy", "broker"})
    assert not any(name.startswith("zoo.client") for name in loaded)
