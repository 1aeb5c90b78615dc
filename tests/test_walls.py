"""Who may import whom. The client stays light, the broker never meets a pixel, and only adapters know libraries."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import zoo
from zoo import errors

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = {
    "torch", "torchvision", "ultralytics", "transformers", "rapidocr", "onnxruntime", "cv2", "brisque", "open_clip",
}  # fmt: skip
PIXELS = {"numpy", "PIL", "zoo.drawing", "zoo.enrichment", "zoo.results", "zoo.wire.arrays", "zoo.wire.formats",
          "zoo.wire.payload"}  # fmt: skip
IO = {
    "asyncio", "datetime", "logging", "multiprocessing", "os", "random", "select", "selectors", "signal", "socket",
    "subprocess", "threading", "time", "zmq",
}  # fmt: skip
ONLY_WHERE_USED = {"asyncio", "difflib", "hashlib", "http", "prometheus_client", "shutil", "ssl"}  # a start is 0.1 s
MOST_FILES = 16  # of a folder, `__init__.py` not counted

WALLS: dict[str, set[str]] = {  # folder, or file → what nothing in it imports
    "": {"tests", "benchmarks"},
    "zoo": {"workers", "broker", *LIBRARIES},
    "zoo/client": {"zoo.cli", "zoo.gateway"},
    "zoo/gateway": {"zoo.cli", "zoo.demo"},
    "broker": {"workers", "zoo.client", "zoo.gateway", *PIXELS, *LIBRARIES,
               "zoo.weights.pull", "zoo.weights.transfer", "zoo.weights.web"},
    "broker/scheduler": {"broker", *IO},
    "broker/simulation": {"broker", *IO},
    "workers": {"broker", "zoo.client", "zoo.gateway", *LIBRARIES},
}  # fmt: skip
DOORS: dict[str, set[str]] = {  # folder, or file → what it may import all the same
    "zoo/broker.py": {"broker"},  # `python -m zoo.broker`
    "zoo/advise": {"broker.scheduler", "broker.simulation"},  # the scheduler in virtual time
    "broker/scheduler": {"broker.scheduler"},
    "broker/simulation": {"broker.scheduler", "broker.simulation"},
    "workers/models": LIBRARIES,
    "workers/camera.py": {"cv2"},  # only when the first frame that is not RGB comes
}
COPIES = "workers/copies.py"  # the one file that may pickle: what a worker made comes back to its like, sealed

FILES = [p.relative_to(ROOT) for top in ("zoo", "broker", "workers") for p in sorted((ROOT / top).rglob("*.py"))]


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse((ROOT / file).read_text(), str(file))


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """(line, full name) of every import in a file, wherever it stands, and of what is given to import_module."""
    package = file.parent.parts
    for node in ast.walk(tree(file)):
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


def within(name: str, names: set[str]) -> bool:
    """Whether a full name is one of these, or lies in one of them."""
    return any(name == one or name.startswith(f"{one}.") for one in names)


def of(table: dict[str, set[str]], file: Path) -> set[str]:
    """What a table says of a file, and of the folders around it."""
    places = {"", str(file), *map(str, file.parents)}
    return set().union(*(names for place, names in table.items() if place in places))


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_file_keeps_to_the_walls_of_its_folder(file: Path) -> None:
    wall = of(WALLS, file) | ({"pickle"} if str(file) != COPIES else set())
    for line, name in imports(file):
        assert not within(name, wall) or within(name, of(DOORS, file)), f"{file}:{line} imports {name}"


def test_no_imports_run_in_a_circle() -> None:
    """Of whole modules or in functions: what two files need of each other belongs into a third."""
    modules = {".".join(file.with_suffix("").parts).removesuffix(".__init__"): file for file in FILES}
    needs = {
        module: {next(filter(modules.get, (name, name.rpartition(".")[0])), module) for _, name in imports(file)}
        - {module}
        for module, file in modules.items()
    }
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as e:
        pytest.fail(" imports ".join(reversed(e.args[1])))


def test_no_folder_has_too_many_files() -> None:
    files = Counter(file.parent for file in FILES if file.name != "__init__.py")
    assert not {str(folder): count for folder, count in files.items() if count > MOST_FILES}


def test_no_name_stands_for_two_classes() -> None:
    homes: dict[str, list[str]] = {}
    for file in FILES:
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(f"{file}:{node.lineno}")
    assert not {name: places for name, places in homes.items() if len(places) > 1}


def test_every_public_name_is_there_and_every_error_has_one() -> None:
    assert all(getattr(zoo, name).__name__ == name for name in zoo.__all__)
    assert {kind.__name__ for kind in errors.BY_CODE.values()} <= {*zoo.__all__}


def test_the_walls_would_be_seen_through() -> None:
    """The walker itself: it finds imports in functions, in `from` form and by name."""
    found = {name for _, name in imports(Path("tests/test_walls.py"))}
    assert {"ast", "collections.abc.Iterator", "os", "tests.support.wait_until"} <= found
    assert within("tests.support.wait_until", of(WALLS, Path("zoo/client/client.py")))
    assert within("os.path", of(WALLS, Path("broker/scheduler/capacity/ledger.py")))
    assert not within("zoological", {"zoo"})


def _unused() -> None:
    from tests.support import wait_until

    wait_until(lambda: True)


# ---------------------------------------------------------------- at run time


def loaded_by(statement: str) -> set[str]:
    """All modules in a fresh interpreter after `statement`."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True, timeout=60)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("statement", "lacks"),
    [
        ("import zoo", {"numpy", "zmq", "msgspec", "broker", "workers", "zoo.client"}),
        ("from zoo import *\nfrom zoo import Client, AsyncClient, Detections, load_config", {"broker", "workers"}),
        ("import broker.service", {"workers", "zoo.client.client", *PIXELS, *ONLY_WHERE_USED}),
        ("import workers.runtime, workers.nursery", {"broker", "zoo.client"}),
    ],
    ids=["the name alone", "a client", "the broker", "a worker"],
)
def test_what_is_loaded_stays_light(statement: str, lacks: set[str]) -> None:
    assert not {name for name in loaded_by(statement) if within(name, lacks | LIBRARIES | {"scipy"})}


def test_the_schedulers_tests_touch_nothing_private() -> None:
    """They hold on to behaviour, so that what is inside can be changed. `registry` may be looked at."""
    for file in sorted((ROOT / "tests/scheduler").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                assert own, f"{file.name}:{node.lineno} touches {node.attr}"
